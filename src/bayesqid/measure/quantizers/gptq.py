"""GPTQ: columns are rounded one by one and the error of each is made up for by the columns after it.

Frantar, Ashkboos, Hoefler, Alistarh (2022), arXiv:2210.17323, algorithm 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bayesqid.measure.quantizers import mx, rtn
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe

# number format -> how the grid of a group is fitted, and rounding to nearest on it
GRID = {"int": rtn.grid, "mxint": mx.grid}
NEAREST = {"int": rtn.quantize, "mxint": mx.quantize}
# Share of the mean diagonal that is added to the Hessian's diagonal, as in the paper's section 3.3
DAMP = 0.01
COLUMNS_PER_BLOCK = 128
# Weights of all recipes and their factors in work at once hold at most this many numbers: on a CPU (1 GiB in float32),
# and as a share of what is free on a GPU, whose many small steps are worth sharing among more recipes
NUMBERS = 2**28
SHARE = 0.15


class Factor(NamedTuple):
    """What a recipe needs of a Hessian: U of its inverse in the order of columns, dead columns, damp used."""

    upper: Tensor
    order: Tensor | None
    dead: Tensor
    damp: float


def inverse_factor(hessian: Tensor, damp: float = DAMP) -> tuple[Tensor, float]:
    """Upper Cholesky factor U of the inverse of the damped Hessian (columns, columns), H^-1 = U^T U.

    Returns U in float32 and the damp that was needed: it is raised tenfold, up to 1, while the Cholesky
    decomposition, done in float64, fails. Raises ValueError when it fails at 1 too.
    """
    hessian = hessian.double()
    mean = hessian.diagonal().mean()
    while True:
        damped = hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * (damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return factor.float(), damp
        if damp >= 1:
            raise ValueError("the Hessian has no Cholesky factor, whatever the damping: its inputs are not finite")
        damp = min(10 * damp, 1.0)


def factorize(seen: Seen, act_order: bool) -> Factor:
    """The factor of a Hessian, its columns by falling diagonal for `act_order`; dead inputs get a diagonal of 1."""
    hessian = seen.hessian.double()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else None
    if dead.any():
        hessian = hessian + torch.diag(dead.to(hessian.dtype))
    if order is not None:
        hessian = hessian[order][:, order]
    upper, damp = inverse_factor(hessian)
    return Factor(upper, order, dead, damp)


def _numbers(device: torch.device) -> int:
    if device.type != "cuda":
        return NUMBERS
    return max(NUMBERS, int(SHARE * torch.cuda.mem_get_info(device)[0] / 4))


def quantize(weight: Tensor, seens: Sequence[Seen | None], recipes: Sequence[Recipe]) -> list[Quantized]:
    """One weight (rows, columns) quantized by GPTQ for several recipes at once, each with what it has seen.

    Recipes run in lockstep, column by column, as one batch; what they share (`seens` that are one object) is
    factorized once. Inputs that never fire get a zero weight, as in the reference code. A group's scale is
    fitted to the weights as they are when its block of 128 columns is begun, as GPTQModel does (the paper updates
    them first); without groups, to the original weights. The shared scale of an MX block is fitted likewise. A layer
    that no calibration input reached is rounded to nearest. The note tells each damp above the usual and each such
    fallback. Raises ValueError when a Hessian cannot be factorized.
    """
    factors: dict[tuple[int, bool], Factor] = {}
    done: dict[int, Quantized] = {}
    for index, (seen, recipe) in enumerate(zip(seens, recipes, strict=True)):
        if seen is None:
            raise ValueError("GPTQ needs a Hessian")
        key = (id(seen), "act" in recipe.options)
        if not bool(seen.hessian.diagonal().any()):
            nearest = NEAREST[recipe.format](weight, None, recipe)
            done[index] = nearest._replace(note="no input reached it: rounded to nearest")
        elif key not in factors:
            factors[key] = factorize(seen, key[1])
    columns = weight.shape[1]
    waiting = [index for index in range(len(recipes)) if index not in done]
    shared = len(factors) == 1
    most = max(1, _numbers(weight.device) // (3 * columns**2)) if not shared else len(recipes)
    for start in range(0, len(waiting), most):
        chosen = waiting[start : start + most]
        mine = [factors[id(seens[index]), "act" in recipes[index].options] for index in chosen]
        made = _rows_in_turn(weight, mine, [recipes[index] for index in chosen], shared)
        done |= dict(zip(chosen, made, strict=True))
    return [done[index] for index in range(len(recipes))]


def _rows_in_turn(weight: Tensor, factors: list[Factor], recipes: list[Recipe], shared: bool) -> list[Quantized]:
    """`_lockstep` on as many rows at a time as fit into memory: rows do not depend on one another."""
    rows = max(1, _numbers(weight.device) // (3 * weight.shape[1] * len(recipes)))
    parts = [_lockstep(part, factors, recipes, shared) for part in weight.split(rows)]
    if len(parts) == 1:
        return parts[0]
    joined = []
    for pieces in zip(*parts, strict=True):
        stacked = {name: torch.cat([getattr(piece, name) for piece in pieces])
                   for name in ("weight", "codes", "scale", "zero")}  # fmt: skip
        joined.append(pieces[0]._replace(**stacked))
    return joined


def _lockstep(weight: Tensor, factors: list[Factor], recipes: list[Recipe], shared: bool) -> list[Quantized]:
    rows, columns = weight.shape
    # (recipes, columns, rows): the loop below touches whole columns, which this makes contiguous
    work = torch.stack([_columns(weight, factor) for factor in factors])
    upper = factors[0].upper[None] if shared else torch.stack([factor.upper for factor in factors])
    pivots = upper.diagonal(dim1=1, dim2=2)
    codes = torch.empty(work.shape, dtype=torch.uint8, device=work.device)
    sizes = [columns if recipe.group_size == -1 else recipe.group_size for recipe in recipes]
    top = torch.tensor([2.0**recipe.bits - 1 for recipe in recipes], device=work.device)[:, None].expand(-1, rows)
    scale, zero = (torch.empty(top.shape, device=work.device) for _ in range(2))
    grids: list[list[tuple[Tensor, Tensor]]] = [[] for _ in recipes]
    nothing = torch.zeros((), device=work.device)
    for start in range(0, columns, COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, columns)
        block, inverse = work[:, start:stop], upper[:, start:stop, start:stop]
        # what scales are fitted to: GPTQModel sees no update from inside the block either
        before = block.clone()
        errors = torch.empty_like(block)
        for i in range(stop - start):
            for r, size in enumerate(sizes):
                if (start + i) % size == 0:
                    # groups never straddle a block, 128 being a multiple of every group size; whole rows do
                    members = before[r, i : i + size] if size < columns else work[r]
                    lie = GRID[recipes[r].format](members.T, recipes[r])
                    scale[r], zero[r] = lie[0][:, 0], lie[1][:, 0]
                    grids[r].append((lie[0], lie[1]))
            column = block[:, i]
            code = torch.clamp((column / scale).round_().add_(zero), nothing, top)
            codes[:, start + i] = code
            rounded = code.sub_(zero).mul_(scale)
            error = torch.sub(column, rounded, out=errors[:, i]).div_(pivots[:, start + i, None])
            column.copy_(rounded)
            if i + 1 < stop - start:
                block[:, i + 1 :].addcmul_(inverse[:, i, i + 1 :, None], error[:, None], value=-1)
        if stop < columns:
            work[:, stop:].sub_(upper[:, start:stop, stop:].transpose(1, 2) @ errors)
    return [
        _outcome(values, number, lies, recipe, factor)
        for values, number, lies, recipe, factor in zip(work, codes, grids, recipes, factors, strict=True)
    ]


def _columns(weight: Tensor, factor: Factor) -> Tensor:
    """The weight's columns as rows, in the factor's order, those of dead inputs zero."""
    work = weight.float().T.clone(memory_format=torch.contiguous_format)
    work[factor.dead] = 0
    return work if factor.order is None else work[factor.order]


def _outcome(values: Tensor, codes: Tensor, grids: list, recipe: Recipe, factor: Factor) -> Quantized:
    scale, zero = (torch.cat([lie[which] for lie in grids], 1) for which in (0, 1))
    note = "" if factor.damp == DAMP else f"damp {factor.damp:g}"
    if factor.order is None:
        return Quantized(values.T.contiguous(), note, codes.T.contiguous(), scale, zero)
    size = len(values) if recipe.group_size == -1 else recipe.group_size
    back = torch.argsort(factor.order)
    return Quantized(values[back].T.contiguous(), note, codes[back].T.contiguous(), scale, zero, back // size)
