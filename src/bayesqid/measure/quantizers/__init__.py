"""Quantizers by the method name that recipes use."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from bayesqid.measure.quantizers import gptq, rtn
from bayesqid.recipe import Recipe


class Quantizer(NamedTuple):
    """A pure function (weight, hessian, recipe) -> (weight, note) and whether it needs a Hessian."""

    quantize: Callable[[Tensor, Tensor | None, Recipe], tuple[Tensor, str]]
    calibrated: bool


QUANTIZERS = {
    "rtn": Quantizer(rtn.quantize, calibrated=False),
    "gptq": Quantizer(gptq.quantize, calibrated=True),
}
