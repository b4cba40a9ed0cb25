"""Quantize a whole model: plainly, or block by block with Hessians from calibration text."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bayesqid.errors import BadInput
from bayesqid.measure import layers
from bayesqid.measure.quantizers import QUANTIZERS
from bayesqid.recipe import Recipe


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
def _hooks(handles: list) -> Iterator[None]:
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


def capture(model: nn.Module, batches: list[Tensor]) -> Inputs:
    """Run token batches (sequences, tokens) through the model and note what its blocks are called with.

    Arguments are noted for each block, for they may differ: some models alternate attention masks.
    """
    stack = layers.blocks(model)
    hidden: list[Tensor] = []
    calls: list[list[Call]] = []

    def note(block: nn.Module, args: tuple, kwargs: dict) -> None:
        state, call = _split_call(args, kwargs)
        if block is stack[0]:
            hidden.append(state)
            calls.append([])
        calls[-1].append(call)
        if block is stack[-1]:
            raise _Stop

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in stack]
    with _hooks(handles):
        for batch in batches:
            try:
                model(input_ids=batch, use_cache=False)
            except _Stop:
                continue
    return Inputs(hidden, calls)


def _run(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    output = block(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output


def stages(names: Mapping[str, layers.Layer], run: Callable[[], object]) -> list[list[str]]:
    """Names of a block's linear layers in the order they run; those fed the same tensor share a stage."""
    order: list[tuple[list[str], Tensor]] = []
    label = {id(module): name for name, module in names.items()}

    def note(module: nn.Module, args: tuple) -> None:
        if order and order[-1][1] is args[0]:
            order[-1][0].append(label[id(module)])
        else:
            order.append(([label[id(module)]], args[0]))

    with _hooks([module.register_forward_pre_hook(note) for module in names.values()]):
        run()
    return [members for members, _ in order]


def hessian(module: nn.Module, run: Callable[[int], object], batches: int) -> Tensor:
    """H = 2/n sum x x^T over every input x (inputs,) that reaches a layer; shape (inputs, inputs), float64.

    Each batch is left as soon as the layer is reached: what comes after it is not needed.
    """
    total = torch.zeros((), dtype=torch.float64)
    count = 0

    def note(_: nn.Module, args: tuple) -> None:
        nonlocal total, count
        rows = args[0].reshape(-1, args[0].shape[-1]).float()
        total = total.to(rows.device) + (rows.T @ rows).double()
        count += len(rows)
        raise _Stop

    with _hooks([module.register_forward_pre_hook(note)]):
        for batch in range(batches):
            try:
                run(batch)
            except _Stop:
                continue
    return total * (2 / max(count, 1))


def _sequential(model: nn.Module, recipe: Recipe, inputs: Inputs) -> tuple[dict[str, Tensor], list[str]]:
    """Quantize block by block, stage by stage: each Hessian is taken behind what is already quantized."""
    found = layers.linears(model)
    stack = layers.blocks(model)
    hidden, done, notes = list(inputs.hidden), {}, []
    for depth, block in enumerate(stack):
        inside = {id(module) for module in block.modules()}
        names = {name: module for name, module in found.items() if id(module) in inside}

        def run(batch: int, block=block, depth=depth, hidden=hidden) -> Tensor:
            return _run(block, hidden[batch], inputs.calls[batch][depth])

        for stage in stages(names, partial(run, 0)):
            curvature = hessian(names[stage[0]], run, len(hidden))
            for name in stage:
                module = names[name]
                weight, note = QUANTIZERS[recipe.method].quantize(layers.matrix(module), curvature, recipe)
                done[name] = layers.native(module, weight)
                notes += [f"{name}: {note}"] if note else []
                layers.install(names, {name: done[name]})
        if depth + 1 < len(stack):
            hidden = [run(batch) for batch in range(len(hidden))]
    unreached = sorted(set(found) - set(done))
    if unreached:
        raise BadInput(f"The calibration text never reaches {unreached[0]}: it cannot be quantized by {recipe}.")
    return done, notes


def needs_inputs(recipe: Recipe) -> bool:
    """Whether a recipe needs calibration inputs."""
    return recipe.method != "none" and QUANTIZERS[recipe.method].calibrated


def quantize(model: nn.Module, recipe: Recipe, inputs: Inputs | None) -> tuple[dict[str, Tensor], str]:
    """Quantized weights of every linear layer by name, in the layers' own layout, and a note.

    The model is left as it was. `inputs` may be None for methods that need no calibration.
    """
    found = layers.linears(model)
    if recipe.method == "none":
        return {}, ""
    if not needs_inputs(recipe):
        plain = QUANTIZERS[recipe.method].quantize
        pairs = ((name, module, plain(layers.matrix(module), None, recipe)[0]) for name, module in found.items())
        return {name: layers.native(module, weight) for name, module, weight in pairs}, ""
    if inputs is None:
        raise ValueError(f"{recipe} needs calibration inputs")
    before = layers.originals(found)
    try:
        weights, notes = _sequential(model, recipe, inputs)
    finally:
        layers.install(found, before)
    return weights, "; ".join(notes)
