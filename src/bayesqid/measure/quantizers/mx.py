"""Microscaling (MX) formats: blocks of narrow numbers that share a power of two.

Open Compute Project, Microscaling Formats (MX) Specification, version 1.0 (2023), sections 5.2, 5.3 and 6.3.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe


class Element(NamedTuple):
    """Numbers of an MX block: least and largest exponent, bits after the binary point, least and largest number.

    Neighbours of v are 2^(clamp(floor(log2 |v|), e_min, e_max) - fraction) apart; for integers e_min = e_max = 0.
    """

    e_min: int
    e_max: int
    fraction: int
    low: float
    high: float


# format and bits -> element. mxint8 is the specification's INT8, two's complement 1.6; mxint4 is 1.2 likewise
ELEMENTS = {
    "mxint4": Element(0, 0, 2, -2, 1.75),
    "mxint8": Element(0, 0, 6, -2, 1.984375),
}
# an E8M0 scale is 2^-127 to 2^127
SCALE_EXPONENT = 127


def floor_log2(number: Tensor) -> Tensor:
    """Exact floor(log2 |number|), int32; -1 for 0."""
    return torch.frexp(number).exponent - 1


def power(exponent: Tensor) -> Tensor:
    """Exact 2^exponent, float32, of int32 exponents -149 .. 127."""
    # two halves, for subnormal numbers are not 2^exponent in these bits; pow() need not be exact
    half = exponent >> 1
    return ((half + 127) << 23).view(torch.float32) * ((exponent - half + 127) << 23).view(torch.float32)


def snap(number: Tensor, element: Element) -> Tensor:
    """Nearest number of the element format, ties to even, saturated at its ends."""
    step = power(floor_log2(number).clamp(element.e_min, element.e_max) - element.fraction)
    return (torch.round(number / step) * step).clamp(element.low, element.high)


def quantize(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) rounded to the recipe's MX format in blocks of `group_size` along each row.

    A block's scale is 2^clamp(floor(log2 max |w|) - e_max, -127, 127) and its numbers are `snap`(w / scale) * scale.
    The last block of a row may be short. What calibration text showed is not used.
    """
    element = ELEMENTS[f"{recipe.format}{recipe.bits}"]
    rows, columns = weight.shape
    blocks = pad(weight.float(), (0, -columns % recipe.group_size)).reshape(rows, -1, recipe.group_size)
    shared = floor_log2(blocks.abs().amax(-1, keepdim=True)) - element.e_max
    scale = power(shared.clamp(-SCALE_EXPONENT, SCALE_EXPONENT))
    return Quantized((snap(blocks / scale, element) * scale).view(rows, -1)[:, :columns].contiguous())
