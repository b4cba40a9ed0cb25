"""Microscaling (MX) formats: blocks of narrow numbers that share a power of two.

Open Compute Project, Microscaling Formats (MX) Specification, version 1.0 (2023), sections 5.2, 5.3 and 6.3.
"""

import torch
from torch import Tensor

from bayesqid.measure.quantizers import floats
from bayesqid.measure.quantizers.floats import Element
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe


def integer(bits: int) -> Element:
    """Two's complement with one bit before the binary point besides the sign: the specification's INT8 for 8 bits.

    Narrower ones have fewer bits after the point; the specification does not have them.
    """
    return Element(0, 0, bits - 2, -2.0, 2 - 2.0 ** (2 - bits))


# number format -> element
ELEMENTS = {f"mxint{bits}": integer(bits) for bits in (2, 3, 4, 6, 8)} | {
    "mxfp4": floats.E2M1,
    "mxfp6e2m3": floats.E2M3,
    "mxfp6e3m2": floats.E3M2,
    "mxfp8e4m3": floats.E4M3,
    "mxfp8e5m2": floats.E5M2,
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


def shared_scale(top: Tensor, element: Element) -> Tensor:
    """Scale 2^clamp(floor(log2 m) - e_max, -127, 127) of blocks whose largest magnitudes are m, NaN if m is not finite.

    It is the specification's: the largest power of two not above m, over the element's largest power of two. A number
    that is then above the element's largest saturates. For NaN and infinity the specification leaves the choice.
    """
    scale = power((floor_log2(top) - element.e_max).clamp(-SCALE_EXPONENT, SCALE_EXPONENT))
    return torch.where(top.isfinite(), scale, torch.nan)


def grid(weight: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (..., 1), of each last dimension of (..., columns) as one block of an MXINT format.

    MXINT is a uniform grid s (q - z) with q = 0 .. 2^b - 1, z = 2^(b-1) and s the shared scale over 2^(b-2).
    """
    element = ELEMENTS[recipe.number]
    scale = shared_scale(weight.abs().amax(-1, keepdim=True), element) * 2.0**-element.fraction
    return scale, torch.full_like(scale, 2.0 ** (recipe.bits - 1))


def quantize(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) rounded to the recipe's MX format in blocks of `group_size` along each row.

    With a block's `shared_scale` s its numbers are `floats.snap`(w / s) s. The last block of a row may be short. What
    calibration text showed is not used.
    """
    element = ELEMENTS[recipe.number]
    blocks = floats.in_blocks(weight, recipe.group_size)
    scale = shared_scale(blocks.abs().amax(-1, keepdim=True), element)
    return Quantized(floats.in_rows(floats.snap(blocks / scale, element).mul_(scale), weight.shape[1]))
