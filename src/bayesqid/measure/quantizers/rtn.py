"""Round to nearest on the uniform grid that the GPTQ libraries use."""

import torch
from torch import Tensor

from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe


def grid(weight: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (..., 1), of the uniform grid that covers each last dimension of (..., columns).

    With levels q = 0 .. 2^b - 1 a weight is s (q - z). Symmetric: s = 2 max|w| / (2^b - 1), z = 2^(b-1).
    Asymmetric: s = (max - min) / (2^b - 1), z = round(-min / s), with 0 inside [min, max]. A row of zeros
    is given the range [-1, 1]. This is the convention of AutoGPTQ and GPTQModel: all 2^b levels are used.
    """
    top = 2**recipe.bits - 1
    low, high = torch.aminmax(weight, dim=-1, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if recipe.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    scale = (high - low) / top
    zero = torch.full_like(scale, (top + 1) / 2) if recipe.symmetric else torch.round(-low / scale)
    return scale, zero


def code(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Number of the grid's nearest point, clamp(round(w / s) + z, 0, 2^b - 1), as float; shapes broadcast."""
    return torch.clamp(torch.round(weight / scale) + zero, 0, 2**bits - 1)


def snap(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest point of the grid, s (code - z); shapes broadcast."""
    return scale * (code(weight, scale, zero, bits) - zero)


def quantize(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) rounded to nearest per row and group.

    What calibration text showed is not used: it is there so that all quantizers are called alike.
    """
    rows, columns = weight.shape
    size = columns if recipe.group_size == -1 else recipe.group_size
    whole = columns // size * size
    parts = [weight[:, :whole].float().view(rows, -1, size)] if whole else []
    parts += [weight[:, whole:].float().view(rows, 1, -1)] if whole < columns else []
    grids = [grid(part, recipe) for part in parts]
    codes = [code(part, *lie, recipe.bits) for part, lie in zip(parts, grids, strict=True)]
    values = [scale * (q - zero) for q, (scale, zero) in zip(codes, grids, strict=True)]
    scales, zeros = (torch.cat([lie[which][..., 0] for lie in grids], 1) for which in (0, 1))
    flat = [torch.cat([part.reshape(rows, -1) for part in found], 1) for found in (values, codes)]
    return Quantized(flat[0], "", flat[1].to(torch.uint8), scales, zeros)
