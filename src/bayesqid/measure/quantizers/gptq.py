"""GPTQ: columns are rounded one by one and the error of each is made up for by the columns after it.

Frantar, Ashkboos, Hoefler, Alistarh (2022), arXiv:2210.17323, algorithm 1.
"""

import torch
from torch import Tensor

from bayesqid.measure.quantizers import rtn
from bayesqid.recipe import Recipe

# Share of the mean diagonal that is added to the Hessian's diagonal, as in the paper's section 3.3
DAMP = 0.01
COLUMNS_PER_BLOCK = 128


def inverse_factor(hessian: Tensor, damp: float = DAMP) -> tuple[Tensor, float]:
    """Upper Cholesky factor U of the inverse of the damped Hessian (columns, columns), H^-1 = U^T U.

    Returns U in float32 and the damp that was needed: it is raised tenfold, up to 1, while the Cholesky
    decomposition, done in float64, fails.
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


def quantize(weight: Tensor, hessian: Tensor | None, recipe: Recipe, damp: float = DAMP) -> tuple[Tensor, str]:
    """Weight (rows, columns) quantized by GPTQ, in float32, and a note when the damp had to be raised.

    The Hessian (columns, columns) is H = 2/n sum x x^T over n calibration inputs x. Inputs that never
    fire get a zero weight, as in the reference code. A group's scale is fitted when its first column is
    reached, to the weights as updated by then; without groups, to the original weights.
    """
    if hessian is None:
        raise ValueError("GPTQ needs a Hessian")
    work, hessian = weight.float().clone(), hessian.clone()
    columns = work.shape[1]
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    work[:, dead] = 0
    factor, used = inverse_factor(hessian, damp)
    group = columns if recipe.group_size == -1 else recipe.group_size
    scale, zero = rtn.grid(work, recipe)
    result = torch.empty_like(work)
    for start in range(0, columns, COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, columns)
        # contiguous columns: the loop below touches one column and those after it
        block, inverse = work[:, start:stop].T.contiguous(), factor[start:stop, start:stop]
        errors, pivots = torch.empty_like(block), inverse.diagonal().tolist()
        for i, pivot in enumerate(pivots):
            if recipe.group_size != -1 and (start + i) % group == 0:
                # groups never straddle a block: 128 is a multiple of every group size
                scale, zero = rtn.grid(block[i : i + group].T, recipe)
            rounded = rtn.snap(block[i], scale[:, 0], zero[:, 0], recipe.bits)
            errors[i] = (block[i] - rounded) / pivot
            result[:, start + i] = rounded
            block[i + 1 :].addr_(inverse[i, i + 1 :], errors[i], alpha=-1)
        work[:, stop:] -= errors.T @ factor[start:stop, stop:]
    return result, "" if used == damp else f"damp {used:g}"
