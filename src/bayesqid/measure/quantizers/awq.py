"""AWQ: columns that meet large inputs are stretched before they are rounded, then ranges are clipped, both by search.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han (2023), arXiv:2306.00978, section 3.2.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesqid.measure.quantizers import rtn
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe

# the authors' code searches these: finer grids fit a layer better, but are not the AWQ that people use
EXPONENTS = tuple(i / 20 for i in range(20))
SHRINKS = tuple(1 - i / 20 for i in range(10))
# smallest m^a, for W s is divided by s again
LEAST = 1e-4
# a dozen float32 tensors of this many weights are alive at once: 0.8 GB
CHUNK = 2**24


def stretch(magnitude: Tensor, exponent: float) -> Tensor:
    """Factors s = m^a / sqrt(max m^a min m^a) of the columns (columns,), m = mean |x| of their inputs, m^a >= 1e-4.

    A common factor of all columns would change nothing: the division keeps numbers near 1.
    """
    powers = magnitude.float().pow(exponent).clamp(min=LEAST)
    return powers / (powers.max() * powers.min()).sqrt()


def output_error(gap: Tensor, hessian: Tensor) -> Tensor:
    """Squared error d H d^T of every row's output, for rows d of W - Q (..., rows, columns); shape (..., rows)."""
    return ((gap @ hessian) * gap).sum(-1)


def _grouped(matrix: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """Matrix (rows, columns) as (rows, groups, size); a short last group is filled up."""
    return pad(matrix, (0, -matrix.shape[1] % size), value=fill).reshape(len(matrix), -1, size)


def _flat(parts: Tensor, columns: int) -> Tensor:
    """What `_grouped` was made from: (rows, columns)."""
    return parts.reshape(len(parts), -1)[:, :columns]


def _blocks(hessian: Tensor, size: int) -> Tensor:
    """Diagonal blocks (groups, size, size) of a Hessian; a short last block is filled up with zeros."""
    short = -len(hessian) % size
    whole = pad(hessian, (0, short, 0, short)) if short else hessian
    groups = len(whole) // size
    return whole.reshape(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def stretched(weight: Tensor, factor: Tensor, recipe: Recipe, size: int) -> Tensor:
    """Weight (rows, columns) stretched by s, rounded to nearest in groups of `size` and shrunk back, Q(W s) / s."""
    parts = _grouped(weight * factor, size)
    return _flat(rtn.snap(parts, *rtn.grid(parts, recipe), recipe.bits), len(factor)) / factor


def clipped(weight: Tensor, factor: Tensor, hessian: Tensor, recipe: Recipe, size: int) -> Tensor:
    """Q(W s) / s with the range of every row and group clipped where that group's own output error is least.

    Ranges are those of clamp(W s, -c m, c m), m = max |W s| of the group, c in `SHRINKS`; a group's own error takes
    its diagonal block of H. A row whose whole error would grow, for errors of groups add up, is left unclipped.
    """
    columns = len(factor)
    target, factors, blocks = _grouped(weight, size), _grouped(factor[None], size, 1.0), _blocks(hessian, size)
    parts = target * factors
    top = parts.abs().amax(-1, keepdim=True)

    def rounded(shrink: float) -> tuple[Tensor, Tensor]:
        scale, zero = rtn.grid(parts.clamp(-shrink * top, shrink * top), recipe)
        values = rtn.snap(parts, scale, zero, recipe.bits) / factors
        return values, output_error((target - values).transpose(0, 1), blocks).T[..., None]

    plain, least = rounded(SHRINKS[0])
    best = plain
    for shrink in SHRINKS[1:]:
        values, error = rounded(shrink)
        best, least = torch.where(error < least, values, best), torch.minimum(error, least)
    before, after = _flat(plain, columns), _flat(best, columns)
    helps = output_error(weight - after, hessian) < output_error(weight - before, hessian)
    return torch.where(helps[:, None], after, before)


def quantize(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) quantized by AWQ and a note with the exponent a whose output error was least.

    The error is tr((W - Q) H (W - Q)^T), exact for the calibration inputs; of equal exponents the smallest is taken.
    It is never more than that of rounding to nearest, which is a = 0 unclipped. Layers that share their inputs are
    one weight with one a. The authors' code compares outputs of the attention block for them and does not clip
    queries and keys; here every layer is judged by its own outputs and clipped.
    """
    if seen is None or seen.magnitude is None:
        raise ValueError("AWQ needs a Hessian and the magnitudes of the inputs")
    weight, (hessian, magnitude) = weight.float(), (seen.hessian.float(), seen.magnitude)
    size = weight.shape[1] if recipe.group_size == -1 else recipe.group_size
    parts = weight.split(max(1, CHUNK // weight.shape[1]))

    def total(exponent: float) -> float:
        factor = stretch(magnitude, exponent)
        gaps = (part - stretched(part, factor, recipe, size) for part in parts)
        return sum(output_error(gap, hessian).double().sum().item() for gap in gaps)

    exponent = min(EXPONENTS, key=total)
    factor = stretch(magnitude, exponent)
    result = torch.cat([clipped(part, factor, hessian, recipe, size) for part in parts])
    return Quantized(result, f"exponent {exponent:g}")
