"""Quantizers by the method name that recipes use."""

from collections.abc import Callable, Sequence

from torch import Tensor

from bayesqid.measure.quantizers import awq, floats, fourbit, gptq, hqq, mx, rtn
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe

One = Callable[[Tensor, Seen | None, Recipe], Quantized]
Many = Callable[[Tensor, Sequence[Seen | None], Sequence[Recipe]], list[Quantized]]

# number format -> rounding to nearest in it
ROUND: dict[str, One] = {
    "int": rtn.quantize,
    "mxint": mx.quantize,
    "mxfp": mx.quantize,
    "mxfp-e2m3": mx.quantize,
    "mxfp-e3m2": mx.quantize,
    "mxfp-e4m3": mx.quantize,
    "mxfp-e5m2": mx.quantize,
    "fp-e4m3": floats.fp8,
    "fp-e5m2": floats.fp8,
    "nvfp": floats.nvfp4,
    "nf": fourbit.quantize,
    "fp": fourbit.quantize,
}


def nearest(weight: Tensor, seen: Seen | None, recipe: Recipe) -> Quantized:
    """Weight (rows, columns) rounded to nearest in the recipe's number format."""
    return ROUND[recipe.format](weight, seen, recipe)


def each(quantize: One) -> Many:
    """A quantizer of several recipes from one that takes them one by one."""

    def several(weight: Tensor, seens: Sequence[Seen | None], recipes: Sequence[Recipe]) -> list[Quantized]:
        return [quantize(weight, seen, recipe) for seen, recipe in zip(seens, recipes, strict=True)]

    return several


# method -> pure function of a weight (rows, columns), what each recipe has seen of its inputs, and the recipes
QUANTIZERS: dict[str, Many] = {
    "rtn": each(nearest),
    "gptq": gptq.quantize,
    "awq": each(awq.quantize),
    "hqq": each(hqq.quantize),
}
# methods whose Hessians are taken behind everything already quantized, unless the recipe says `oneshot`
SEQUENTIAL = ("gptq",)
