"""Narrow numbers that MX and NVFP4 blocks and FP8 rows are made of, and rounding to FP8 and NVFP4.

FP8: Micikevicius et al. (2022), arXiv:2209.05433. NVFP4: NVIDIA et al. (2025), arXiv:2509.25149.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe


class Element(NamedTuple):
    """Numbers of a narrow format: least and largest exponent, bits after the binary point, least and largest number.

    Neighbours of v are 2^(clamp(floor(log2 |v|), e_min, e_max) - fraction) apart; for integers e_min = e_max = 0.
    """

    e_min: int
    e_max: int
    fraction: int
    low: float
    high: float


E2M1 = Element(0, 2, 1, -6, 6)
E2M3 = Element(0, 2, 3, -7.5, 7.5)
E3M2 = Element(-2, 4, 2, -28, 28)
# without infinities, as in torch's float8_e4m3fn
E4M3 = Element(-6, 8, 3, -448, 448)
E5M2 = Element(-14, 15, 2, -57344, 57344)
# sign and exponent of a float32 without its fraction are +-2^floor(log2 |v|), 0 for subnormal numbers
EXPONENT = 0x7F800000


def snap(number: Tensor, element: Element) -> Tensor:
    """Nearest number of the element format, float32, ties to even, saturated at its ends; NaN stays NaN."""
    if element.e_min == element.e_max:
        step = 2.0 ** (element.e_min - element.fraction)
    else:
        power = (number.view(torch.int32) & EXPONENT).view(torch.float32)
        step = power.clamp_(2.0**element.e_min, 2.0**element.e_max).mul_(2.0**-element.fraction)
    return (number / step).round_().mul_(step).clamp_(element.low, element.high)


def in_blocks(matrix: Tensor, size: int) -> Tensor:
    """Matrix (rows, columns) as float32 (rows, blocks, size); a short last block is filled up with zeros."""
    rows, columns = matrix.shape
    whole = pad(matrix, (0, -columns % size)) if columns % size else matrix
    return whole.float().reshape(rows, -1, size)


def in_rows(blocks: Tensor, columns: int) -> Tensor:
    """What `in_blocks` was made from: (rows, columns)."""
    return blocks.reshape(len(blocks), -1)[:, :columns].contiguous()


FP8 = {"fp8e4m3": E4M3, "fp8e5m2": E5M2}


def fp8(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) rounded to FP8 with one float32 scale per row.

    A row's scale is max |w| / largest number of the format (1 for a row of zeros), and its numbers are
    `snap`(w / scale) * scale. What calibration text showed is not used.
    """
    element, numbers = FP8[recipe.number], weight.float()
    scale = numbers.abs().amax(-1, keepdim=True) / element.high
    # a scale that is no float32 leaves a row whose numbers round to zero at scale 1
    scale = torch.where(scale == 0, 1.0, scale)
    return Quantized(snap(numbers / scale, element).mul_(scale))


def nvfp4(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) rounded to E2M1 in blocks of 16 along each row, each with an E4M3 scale.

    With a = max |w| of the matrix, one float32 scale t = a / (448 6); with m = max |w| of a block its scale is
    s = `snap`(m / 6 / t, E4M3), and its numbers are `snap`(w / (t s), E2M1) t s. A block far below the largest, whose
    s is 0, becomes zeros. The last block of a row may be short. What calibration text showed is not used.
    """
    blocks = in_blocks(weight, recipe.group_size)
    top = blocks.abs().amax(-1, keepdim=True)
    whole = top.amax() / (E4M3.high * E2M1.high)
    whole = torch.where(whole == 0, 1.0, whole)
    scale = snap(top / E2M1.high / whole, E4M3) * whole
    values = snap(blocks / torch.where(scale == 0, 1.0, scale), E2M1).mul_(scale)
    return Quantized(in_rows(values, weight.shape[1]))
