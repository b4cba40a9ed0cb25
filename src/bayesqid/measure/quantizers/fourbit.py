"""NF4 and FP4: each block of the flattened weight is scaled by its largest magnitude and rounded to 16 fixed levels.

Dettmers, Pagnoni, Holtzman, Zettlemoyer (2023), arXiv:2305.14314; computed by the bitsandbytes package.
"""

from torch import Tensor
from torch.nn.functional import pad

from bayesqid.errors import BadInput
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe


def quantize(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) rounded to NF4 or FP4 in blocks of `group_size` weights, row after row.

    A block w becomes m L(w / m), with m = max |w| in float32 and L the nearest level in [-1, 1]; the last block
    may be short. What calibration text showed is not used. `BadInput` when bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    except ImportError as error:
        raise BadInput(f"Recipe {recipe} needs the package bitsandbytes: install bayesqid[quantizers].") from error
    flat = weight.float().reshape(1, -1)
    # two codes share a byte: an odd count would take the package's compiled fallback
    codes, state = quantize_4bit(
        pad(flat, (0, flat.numel() % 2)),
        blocksize=recipe.group_size,
        compress_statistics=False,
        quant_type=f"{recipe.format}{recipe.bits}",
    )
    return Quantized(dequantize_4bit(codes, state)[0, : flat.numel()].view(weight.shape))
