"""HQQ: the zero point of every group is fitted so that a few large rounding errors count little.

Badri, Shaji (2023), "Half-Quadratic Quantization of Large Machine Learning Models"; computed by the hqq package.
"""

import torch
from torch import Tensor

from bayesqid.errors import BadInput
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe


def fit(weight: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values and codes (rows, columns), scales and zero points (rows, columns / size); values = scale (code - zero).

    The package searches in float32 because it is told to stay on the CPU: on a GPU it would take float16.
    """
    from hqq.core.quantize import Quantizer

    codes, meta = Quantizer.quantize(weight, nbits=bits, group_size=size, axis=1, bitpack=False, device="cpu")
    values = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    rows = len(weight)
    return values, codes.reshape(rows, -1), meta["scale"].view(rows, -1), meta["zero"].view(rows, -1)


def quantize(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) rounded by HQQ per row and group, computed in float32 on the CPU.

    The scale is (max - min) / (2^b - 1) but at least 5e-5; the zero point, a real number, is moved from -min / scale
    by at most 20 half-quadratic steps towards the least sum |w - value|^0.7, its weight beta staying at 10. A short
    last group is fitted apart. What calibration text showed is not used. `BadInput` when hqq is not installed.
    """
    size = weight.shape[1] if recipe.group_size == -1 else recipe.group_size
    whole = weight.shape[1] // size * size
    here = weight.float().cpu()
    parts = [part for part in (here[:, :whole], here[:, whole:]) if part.numel()]
    try:
        fits = [fit(part, recipe.bits, min(size, part.shape[1])) for part in parts]
    except ImportError as error:
        raise BadInput(f"Recipe {recipe} needs the package hqq: install bayesqid[quantizers].") from error
    # joining also copies out of the package's inference mode
    values, codes, scale, zero = (torch.cat(found, 1).to(weight.device) for found in zip(*fits, strict=True))
    return Quantized(values, "", codes.to(torch.uint8), scale, zero)
