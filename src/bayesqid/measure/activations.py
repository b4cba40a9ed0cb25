"""Activations: what enters a block's linear layers, rounded as a recipe with the option `wa` says."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from bayesqid.measure import blocks, layers, quantizers
from bayesqid.recipe import Recipe


def rounded_inputs(inputs: Tensor, recipe: Recipe) -> Tensor:
    """Inputs (..., columns) of a linear layer rounded to nearest in the recipe's number format, in their own dtype.

    Each token is a row: MX blocks run along its columns, and FP8 has one scale per token, taken from that token alone.
    Nothing depends on the other tokens of a batch, so neither do scores on how texts are put into batches.
    """
    tokens = inputs.reshape(-1, inputs.shape[-1])
    return quantizers.nearest(tokens, None, recipe).weight.to(inputs.dtype).view(inputs.shape)


@contextmanager
def rounded(
    found: Mapping[str, layers.Layer], recipe: Recipe, formats: Mapping[str, Recipe] | None = None
) -> Iterator[None]:
    """Context in which the layers get their inputs rounded if the recipe says so, and as they are if not.

    With `formats` each layer has a recipe of its own.
    """
    # layers that are fed the same tensor, as queries, keys and values are, share its rounding
    last: list[tuple[Tensor, Recipe, Tensor]] = []

    def hook(own: Recipe) -> Callable[[nn.Module, tuple], tuple]:
        def enter(_: nn.Module, args: tuple) -> tuple:
            if not last or last[0][0] is not args[0] or last[0][1] != own:
                last[:] = [(args[0], own, rounded_inputs(args[0], own))]
            return (last[0][2], *args[1:])

        return enter

    chosen = [(module, recipe if formats is None else formats[name]) for name, module in found.items()]
    with blocks.hooks([module.register_forward_pre_hook(hook(own)) for module, own in chosen if own.rounds_inputs]):
        yield
