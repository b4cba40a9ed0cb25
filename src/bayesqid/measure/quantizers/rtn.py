"""Round to nearest on the uniform grid that the GPTQ libraries use."""

import torch
from torch import Tensor

from bayesqid.recipe import Recipe


def grid(weight: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (rows, 1), of the uniform grid that covers every row of (rows, columns).

    With levels q = 0 .. 2^b - 1 a weight is s (q - z). Symmetric: s = 2 max|w| / (2^b - 1), z = 2^(b-1).
    Asymmetric: s = (max - min) / (2^b - 1), z = round(-min / s), with 0 inside [min, max]. A row of zeros
    is given the range [-1, 1]. This is the convention of AutoGPTQ and GPTQModel: all 2^b levels are used.
    """
    top = 2**recipe.bits - 1
    low, high = torch.aminmax(weight, dim=1, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if recipe.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    scale = (high - low) / top
    zero = torch.full_like(scale, (top + 1) / 2) if recipe.symmetric else torch.round(-low / scale)
    return scale, zero


def snap(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest point of the grid, s (clamp(round(w / s) + z, 0, 2^b - 1) - z); shapes broadcast."""
    return scale * (torch.clamp(torch.round(weight / scale) + zero, 0, 2**bits - 1) - zero)


def quantize(weight: Tensor, hessian: Tensor | None, recipe: Recipe) -> tuple[Tensor, str]:
    """Weight (rows, columns) rounded to nearest per row and group, in float32, and an empty note.

    The Hessian is not used: it is there so that all quantizers are called alike.
    """
    groups = weight.float().split(weight.shape[1] if recipe.group_size == -1 else recipe.group_size, dim=1)
    return torch.cat([snap(group, *grid(group, recipe), recipe.bits) for group in groups], dim=1), ""
