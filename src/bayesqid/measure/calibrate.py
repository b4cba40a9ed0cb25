"""Quantize one block for many recipes: what calibration text shows of its layers, and what quantizers make of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from bayesqid.measure import blocks, layers
from bayesqid.measure.blocks import Inputs
from bayesqid.measure.quantizers import QUANTIZERS, SEQUENTIAL
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import NONE, Recipe


@dataclass
class Lane:
    """One recipe's way through the model: hidden states of the evaluation and of its own calibration text."""

    recipe: Recipe
    hidden: list[Tensor]
    rows: list[Tensor] | None = None
    notes: list[str] = field(default_factory=list)
    failed: str = ""
    saved: Mapping[str, Tensor] | None = None
    kept: dict[str, Quantized] | None = None
    # what each layer gets where that is not the recipe everywhere
    formats: Mapping[str, Recipe] | None = None

    def wanted(self, made: "Quantization") -> "Quantization":
        """The layers among those made that the lane quantizes."""
        own = self.formats
        return made if own is None else {name: one for name, one in made.items() if own[name] != NONE}


Quantization = dict[str, Quantized]


def sequential(recipe: Recipe) -> bool:
    """Whether the recipe's Hessians are taken behind what it has quantized already."""
    return recipe.calibrated and recipe.method in SEQUENTIAL and "oneshot" not in recipe.options


class _Stop(Exception):  # noqa: N818 - leaves a block early, it is no error
    pass


def stages(names: Mapping[str, layers.Layer], run: Callable[[], object]) -> list[list[str]]:
    """Names of a block's linear layers in the order they run; those fed the same tensor share a stage.

    Layers that do not run are in none.
    """
    order: list[tuple[list[str], Tensor]] = []
    label = {id(module): name for name, module in names.items()}

    def note(module: nn.Module, args: tuple) -> None:
        if order and order[-1][1] is args[0]:
            order[-1][0].append(label[id(module)])
        else:
            order.append(([label[id(module)]], args[0]))

    with blocks.hooks([module.register_forward_pre_hook(note) for module in names.values()]):
        run()
    return [members for members, _ in order]


@contextmanager
def _exact_products(dtype: torch.dtype) -> Iterator[None]:
    """TF32 for inputs that were in half precision: their mantissas fit into its, so only it is faster, not coarser."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = before or dtype in (torch.float16, torch.bfloat16)
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class _Tally:
    """Sums over the inputs that reach a layer."""

    def __init__(self, magnitudes: bool) -> None:
        self.products: Tensor | None = None
        self.magnitudes: Tensor | None = None
        self.wanted, self.count = magnitudes, 0

    def add(self, inputs: Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        with _exact_products(inputs.dtype):
            products = (rows.T @ rows).double()
        self.products = products if self.products is None else self.products.add_(products)
        if self.wanted:
            magnitudes = rows.abs().sum(0, dtype=torch.float64)
            self.magnitudes = magnitudes if self.magnitudes is None else self.magnitudes.add_(magnitudes)
        self.count += len(rows)

    def seen(self) -> Seen | None:
        if self.products is None:
            return None
        magnitude = None if self.magnitudes is None else (self.magnitudes / self.count).float()
        return Seen(self.products * (2 / self.count), magnitude)


def observe(
    modules: Sequence[layers.Layer], runs: Iterable[Callable[[], object]], stop: bool, magnitudes: bool = False
) -> list[Seen | None]:
    """What reaches each of some layers while a block is run: H = 2/n sum x x^T (float64), and mean |x| if wanted.

    With `stop` each run is left as soon as the last of the layers is reached.
    """
    tallies = [_Tally(magnitudes) for _ in modules]

    def hook(index: int) -> Callable[[nn.Module, tuple], None]:
        def note(_: nn.Module, args: tuple) -> None:
            tallies[index].add(args[0])
            if stop and index == len(modules) - 1:
                raise _Stop

        return note

    with blocks.hooks([module.register_forward_pre_hook(hook(i)) for i, module in enumerate(modules)]):
        for one in runs:
            try:
                one()
            except _Stop:
                continue
    return [tally.seen() for tally in tallies]


def _several(weight: Tensor, seens: Sequence[Seen | None], lanes: Sequence[Lane]) -> list[Quantized | None]:
    """One method's quantization of a weight for several lanes; a lane that fails is marked, the others go on."""
    method = QUANTIZERS[lanes[0].recipe.method]
    try:
        return list(method(weight, seens, [lane.recipe for lane in lanes]))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if len(lanes) > 1:
            return [_several(weight, [seen], [lane])[0] for seen, lane in zip(seens, lanes, strict=True)]
        lanes[0].failed = " ".join(str(error).split()) or type(error).__name__
        return [None]


def _together(
    names: Sequence[str], found: Mapping[str, layers.Layer], seens: Sequence[Seen | None], lanes: Sequence[Lane]
) -> list[Quantization]:
    """Quantization of layers that share their inputs, as one weight with all their rows, by lane."""
    weights = [layers.matrix(found[name]) for name in names]
    results: list[Quantization] = [{} for _ in lanes]
    for method in dict.fromkeys(lane.recipe.method for lane in lanes):
        chosen = [index for index, lane in enumerate(lanes) if lane.recipe.method == method and not lane.failed]
        if not chosen:
            continue
        made = _several(torch.cat(weights), [seens[i] for i in chosen], [lanes[i] for i in chosen])
        for index, whole in zip(chosen, made, strict=True):
            if whole is not None:
                results[index] = dict(zip(names, _apart(whole, [len(weight) for weight in weights]), strict=True))
                lanes[index].notes += [f"{names[0]}: {whole.note}"] if whole.note else []
    return results


def _apart(whole: Quantized, rows: list[int]) -> list[Quantized]:
    """Quantized layers out of the quantization of all their rows."""
    split = {name: value.split(rows) for name in ("weight", "codes", "scale", "zero")
             if (value := getattr(whole, name)) is not None}  # fmt: skip
    return [whole._replace(**{name: parts[i] for name, parts in split.items()}) for i in range(len(rows))]


def plainly(found: Mapping[str, layers.Layer], lanes: Sequence[Lane]) -> list[Quantization]:
    """Quantization of every layer of a block by methods that need no calibration text, by lane."""
    results: list[Quantization] = [{} for _ in lanes]
    for name in found:
        for result, one in zip(results, _together([name], found, [None] * len(lanes), lanes), strict=True):
            result |= one
    return results


def by_layer(found: Mapping[str, layers.Layer], formats: Mapping[str, Recipe]) -> Quantization:
    """Quantization of a block's layers, each in a format of its own by a method that needs no calibration text."""
    return {name: QUANTIZERS[formats[name].method](layers.matrix(module), [None], [formats[name]])[0]
            for name, module in found.items() if formats[name] != NONE}  # fmt: skip


def unreached(order: list[list[str]], found: Mapping[str, layers.Layer], lanes: Sequence[Lane]) -> None:
    """Mark lanes as failed when the calibration text never reaches one of the block's layers."""
    lost = sorted(set(found) - {name for stage in order for name in stage})
    for lane in lanes if lost else ():
        lane.failed = f"the calibration text never reaches {lost[0]}: it cannot be quantized by {lane.recipe}"


def at_once(
    block: nn.Module, depth: int, found: Mapping[str, layers.Layer], rows: list[Tensor], inputs: Inputs,
    lanes: Sequence[Lane],
) -> tuple[list[Quantization], list[Tensor]]:  # fmt: skip
    """Quantization by what the unquantized model's calibration inputs show, by lane, and the rows behind the block.

    One pass shows all layers, and is shared by all lanes.
    """
    order = stages(found, lambda: blocks.run(block, rows[0], inputs.calls[0][depth]))
    unreached(order, found, lanes)
    behind: list[Tensor] = []

    def one(batch: int) -> Callable[[], object]:
        return lambda: behind.append(blocks.run(block, rows[batch], inputs.calls[batch][depth]))

    seens = observe([found[stage[0]] for stage in order], map(one, range(len(rows))), False,
                    any(lane.recipe.method == "awq" for lane in lanes))  # fmt: skip
    results: list[Quantization] = [{} for _ in lanes]
    for stage, seen in zip(order, seens, strict=True):
        for result, more in zip(results, _together(stage, found, [seen] * len(lanes), lanes), strict=True):
            result |= more
    return results, behind


def finished(block: nn.Module, found: Mapping[str, layers.Layer], done: set[str]) -> list[nn.Module]:
    """Modules inside a block all of whose linear layers are done: their outputs will not change any more."""
    name_of = {id(module): name for name, module in found.items()}
    inside = [(module, {name_of[id(part)] for part in module.modules() if id(part) in name_of})
              for module in block.modules() if module is not block]  # fmt: skip
    return [module for module, names in inside if names and names <= done]


@contextmanager
def remembered(modules: Sequence[nn.Module], outputs: dict[int, object]) -> Iterator[None]:
    """Modules that compute their output once and then hand out what they found in `outputs`, by identity."""

    def forward_of(module: nn.Module) -> Callable:
        own = module.forward

        def forward(*args: object, **kwargs: object) -> object:
            if id(module) not in outputs:
                outputs[id(module)] = own(*args, **kwargs)
                for inner in module.modules():
                    # what lies inside a module whose output is known is never asked for again
                    if inner is not module:
                        outputs.pop(id(inner), None)
            return outputs[id(module)]

        return forward

    try:
        for module in modules:
            module.forward = forward_of(module)
        yield
    finally:
        for module in modules:
            del module.forward


def in_turn(
    block: nn.Module, depth: int, found: Mapping[str, layers.Layer], inputs: Mapping[int, Inputs],
    lanes: Sequence[Lane],
) -> list[Quantization]:  # fmt: skip
    """Quantization stage by stage, each Hessian behind everything that the lane has quantized so far, by lane.

    All lanes go through a stage before the next, so that one call quantizes it for all. Each lane's own
    calibration rows are moved behind the block. What is behind finished parts of the block is computed once.
    """
    before = layers.originals(found)
    calls = [[call[depth] for call in inputs[lane.recipe.seed].calls] for lane in lanes]
    rows = [lane.rows or [] for lane in lanes]
    results: list[Quantization] = [{} for _ in lanes]
    outputs: list[list[dict[int, object]]] = [[{} for _ in batches] for batches in rows]
    order = stages(found, lambda: blocks.run(block, rows[0][0], calls[0][0]))
    unreached(order, found, lanes)

    def runs(index: int, done: set[str]) -> Iterator[Callable[[], Tensor]]:
        for known, row, call in zip(outputs[index], rows[index], calls[index], strict=True):
            with remembered(finished(block, found, done), known):
                yield partial(blocks.run, block, row, call)

    try:
        done: set[str] = set()
        for stage in order:
            seens = []
            for index, (lane, result) in enumerate(zip(lanes, results, strict=True)):
                install(found, result)
                seen = None if lane.failed else observe([found[stage[0]]], runs(index, done), stop=True)[0]
                seens.append(seen)
                layers.install(found, before)
            for lane, result, more in zip(lanes, results, _together(stage, found, seens, lanes), strict=True):
                result |= lane.wanted(more)
            done |= set(stage)
        for index, (lane, result) in enumerate(zip(lanes, results, strict=True)):
            install(found, result)
            lane.rows = None if lane.failed else [run() for run in runs(index, done)]
            outputs[index].clear()
            layers.install(found, before)
    finally:
        layers.install(found, before)
    return results


def install(found: Mapping[str, layers.Layer], quantization: Quantization) -> None:
    """Let layers use their quantized weights."""
    layers.install(found, {name: layers.native(found[name], made.weight) for name, made in quantization.items()})
