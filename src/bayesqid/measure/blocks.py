"""A language model taken apart: what enters its blocks, the blocks one by one, and what becomes of their output."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from bayesqid.errors import BadInput
from bayesqid.measure import layers

# How far logits may be from the whole model's, relative to the largest: other models are refused
TOLERANCE = 1e-3


class Call(NamedTuple):
    """What one block was called with for one batch: other positional arguments and keywords."""

    args: tuple
    kwargs: dict


class Inputs(NamedTuple):
    """For each batch, the hidden state that enters the first block and the `Call` of every block."""

    hidden: list[Tensor]
    calls: list[list[Call]]


class _Stop(Exception):  # noqa: N818 - leaves a forward pass early, it is no error
    pass


@contextmanager
def hooks(handles: list) -> Iterator[None]:
    """Remove hooks at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _split_call(args: tuple, kwargs: dict) -> tuple[Tensor, Call]:
    """A block's hidden state and the rest of its arguments."""
    if args:
        return args[0], Call(args[1:], dict(kwargs))
    rest = dict(kwargs)
    return rest.pop("hidden_states"), Call((), rest)


@contextmanager
def _bypassed(stack: nn.ModuleList, through: Callable[[int, Tensor, Call], Tensor], as_tuple: bool) -> Iterator[None]:
    """Blocks that compute nothing: block i returns what `through` makes of its number, hidden state and call."""

    def forward_of(depth: int) -> Callable:
        def forward(*args: object, **kwargs: object) -> Tensor | tuple[Tensor]:
            state = through(depth, *_split_call(args, kwargs))
            return (state,) if as_tuple else state

        return forward

    try:
        for depth, block in enumerate(stack):
            block.forward = forward_of(depth)
        yield
    finally:
        for block in stack:
            # the method of the class shows again
            del block.forward


def returns_tuple(model: PreTrainedModel, batch: Tensor) -> bool:
    """Whether the model's blocks return their hidden state inside a tuple."""
    found: list[bool] = []

    def note(block: nn.Module, args: tuple, output: object) -> None:
        found.append(isinstance(output, tuple))
        raise _Stop

    with hooks([layers.blocks(model)[0].register_forward_hook(note)]), suppress(_Stop):
        model(input_ids=batch, use_cache=False)
    return found[0]


def capture(model: PreTrainedModel, batches: Sequence[Tensor], as_tuple: bool) -> Inputs:
    """What enters the first block for token batches (sequences, tokens), and what all blocks are called with.

    No block is run. Arguments are noted for each block, for they may differ: some models alternate masks.
    """
    stack = layers.blocks(model)
    hidden: list[Tensor] = []
    calls: list[list[Call]] = []

    def note(depth: int, state: Tensor, call: Call) -> Tensor:
        if depth == 0:
            hidden.append(state)
            calls.append([])
        calls[-1].append(call)
        if depth == len(stack) - 1:
            raise _Stop
        return state

    with _bypassed(stack, note, as_tuple):
        for batch in batches:
            try:
                model(input_ids=batch, use_cache=False)
            except _Stop:
                continue
    return Inputs(hidden, calls)


def run(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """Hidden state behind one block."""
    output = block(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output


def logits(model: PreTrainedModel, batch: Tensor, states: Iterable[Tensor], as_tuple: bool) -> Iterator[Tensor]:
    """Logits that the model makes of each hidden state behind its last block, for one token batch.

    The model's own code runs with blocks that hand the state through, so that final norms, scaled and
    capped logits are as the model has them.
    """
    stack = layers.blocks(model)
    current: list[Tensor] = []

    def hand(depth: int, state: Tensor, call: Call) -> Tensor:
        return current[0] if depth == len(stack) - 1 else state

    for state in states:
        current[:] = [state]
        with _bypassed(stack, hand, as_tuple):
            yield model(input_ids=batch, use_cache=False).logits


def verify(model: PreTrainedModel, batch: Tensor) -> bool:
    """Whether blocks return tuples, for a model that really is the chain of its blocks; `BadInput` for others."""
    as_tuple = returns_tuple(model, batch)
    whole = model(input_ids=batch, use_cache=False).logits
    inputs = capture(model, [batch], as_tuple)
    state = inputs.hidden[0]
    for block, call in zip(layers.blocks(model), inputs.calls[0], strict=True):
        state = run(block, state, call)
    parts = next(logits(model, batch, [state], as_tuple))
    if not (parts - whole).abs().max() <= TOLERANCE * whole.abs().max():
        raise BadInput(
            f"{type(model).__name__} gives other predictions when its blocks are run one by one: "
            "models whose blocks are no plain chain cannot be measured."
        )
    return as_tuple
