"""Several recipes of one loaded model at once: through its blocks side by side, then scored against its baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bayesqid.errors import BadInput
from bayesqid.measure import activations, assign, blocks, calibrate, layers, loss, text
from bayesqid.measure.calibrate import Lane, Quantization
from bayesqid.measure.quantizers.outcome import Quantized
from bayesqid.recipe import NONE, Recipe

# What recipes that are in work at once may take: bytes on a CPU, share of the free memory on a GPU
LANES_BYTES = 2**29
LANES_SHARE = 0.4
Progress = Callable[[float], object]


@dataclass
class Ready:
    """A loaded checkpoint with everything its recipes share; `most` is the tokens of a batch, once it was cut."""

    model: PreTrainedModel
    device: torch.device
    as_tuple: bool
    inside: list[dict[str, layers.Layer]]
    windows: list[text.Window]
    rows: Callable[[int], Tensor]
    documents: int
    most: int | None = None
    work: list[loss.Batch] = field(default_factory=list)
    evaluation: blocks.Inputs = field(default_factory=lambda: blocks.Inputs([], []))
    calibration: dict[int, blocks.Inputs] = field(default_factory=dict)
    baseline: list[Tensor] | None = None
    mixes: Mapping[str, assign.Formats] = field(default_factory=dict)

    @property
    def shapes(self) -> assign.Blocks:
        """(rows, columns) of the linear layers, block by block."""
        return layers.shapes_by_block(self.inside)

    def lay_out(self) -> None:
        """Put the evaluation text into batches anew and forget what was derived from the old ones."""
        self.work = loss.batches(self.windows, self.model.config.vocab_size, self.device, self.most)
        self.evaluation = blocks.capture(self.model, [batch.inputs for batch in self.work], self.as_tuple)
        self.calibration, self.baseline = {}, None

    def calibrated(self, seed: int) -> blocks.Inputs:
        """What the calibration text drawn with a seed puts into the blocks."""
        if seed not in self.calibration:
            rows = self.rows(seed)
            most = max(1, (self.most or loss.BATCH_TOKENS) // rows.shape[1])
            self.calibration[seed] = blocks.capture(self.model, rows.split(most), self.as_tuple)
        return self.calibration[seed]


def lanes_at_once(ready: Ready, recipes: Sequence[Recipe]) -> int:
    """How many recipes may be in work at once, by what each holds: hidden states, and copies of one block's weights.

    Copies: as float32, as codes, in the model's dtype, and while GPTQ is at work. Sequential recipes have calibration
    rows of their own, and outputs inside a block that are up to eight times as wide.
    """
    one = sum(state.nbytes for state in ready.evaluation.hidden) + 6 * layers.size(layers.blocks(ready.model)[0])
    if any(calibrate.sequential(recipe) for recipe in recipes):
        seed = next(recipe.seed for recipe in recipes if calibrate.sequential(recipe))
        one += 9 * sum(state.nbytes for state in ready.calibrated(seed).hidden)
    if ready.device.type != "cuda":
        return max(1, LANES_BYTES // one)
    return max(1, int(LANES_SHARE * torch.cuda.mem_get_info(ready.device)[0] / one))


def quantize_block(
    ready: Ready, depth: int, lanes: Sequence[Lane], shared: dict[int, list[Tensor]]
) -> list[Quantization]:
    """Quantization of one block by lane.

    `shared` holds the unquantized model's calibration rows by seed, for lanes whose Hessians come from it; they
    are moved behind the block.
    """
    block, found = layers.blocks(ready.model)[depth], ready.inside[depth]
    done: dict[int, Quantization] = {}

    def note(chosen: Sequence[Lane], made: Sequence[Quantization]) -> None:
        done.update({id(lane): one for lane, one in zip(chosen, made, strict=True)})

    live = [lane for lane in lanes if not lane.failed and lane.recipe != NONE]
    for lane in live:
        if lane.saved is not None:
            done[id(lane)] = {name: Quantized(lane.saved[name].to(ready.device)) for name in found}
        elif lane.recipe.mix and lane.formats is not None:
            done[id(lane)] = calibrate.by_layer(found, lane.formats)
    plain = [lane for lane in live if not lane.recipe.calibrated and id(lane) not in done]
    note(plain, calibrate.plainly(found, plain))
    for seed, rows in shared.items():
        inputs = ready.calibrated(seed)
        once = [lane for lane in live if lane.recipe.calibrated and lane.recipe.seed == seed
                and not calibrate.sequential(lane.recipe)]  # fmt: skip
        made, shared[seed] = calibrate.at_once(block, depth, found, rows, inputs, once)
        note(once, made)
    turn = [lane for lane in live if calibrate.sequential(lane.recipe)]
    if turn:
        seeds = {lane.recipe.seed: ready.calibrated(lane.recipe.seed) for lane in turn}
        note(turn, calibrate.in_turn(block, depth, found, seeds, turn))
    return [lane.wanted(done.get(id(lane), {})) for lane in lanes]


def through(ready: Ready, lanes: Sequence[Lane], tick: Callable[[], object]) -> None:
    """Take every lane through the model's blocks: quantize a block for all, then run it for each."""
    stack = layers.blocks(ready.model)
    seeds = {lane.recipe.seed for lane in lanes
             if lane.recipe.calibrated and not calibrate.sequential(lane.recipe)}  # fmt: skip
    shared = {seed: list(ready.calibrated(seed).hidden) for seed in sorted(seeds)}
    for depth, block in enumerate(stack):
        found = ready.inside[depth]
        with layers.lent(block, ready.device):
            before = layers.originals(found)
            for lane, made in zip(lanes, quantize_block(ready, depth, lanes, shared), strict=True):
                if lane.failed:
                    continue
                try:
                    calibrate.install(found, made)
                    with activations.rounded(found, lane.recipe, lane.formats):
                        for batch, state in enumerate(lane.hidden):
                            lane.hidden[batch] = blocks.run(block, state, ready.evaluation.calls[batch][depth])
                finally:
                    layers.install(found, before)
                if lane.kept is not None:
                    lane.kept |= {name: _on_host(one) for name, one in made.items()}
        tick()


def _on_host(one: Quantized) -> Quantized:
    """What is stored of a quantized layer, in the host's memory; the weight follows from it."""
    names = [name for name in ("codes", "scale", "zero", "group") if getattr(one, name) is not None]
    empty = one.weight.new_empty(0).cpu() if "codes" in names else one.weight.cpu()
    return one._replace(weight=empty, **{name: getattr(one, name).cpu() for name in names})


def scores(ready: Ready, lanes: Sequence[Lane]) -> list[loss.Scores]:
    """Scores of every lane against the baseline, batch by batch: its predictions are never held whole."""
    parts: list[list[loss.Scores]] = [[] for _ in lanes]
    assert ready.baseline is not None
    for index, batch in enumerate(ready.work):
        states = (lane.hidden[index] for lane in lanes)
        base = loss.reference(_log(ready, batch, ready.baseline[index]))
        for part, state in zip(parts, states, strict=True):
            other = base.log if state is ready.baseline[index] else _log(ready, batch, state)
            part.append(loss.compare(base, other, batch, ready.documents))
    return [loss.add(part) for part in parts]


def _log(ready: Ready, batch: loss.Batch, state: Tensor) -> Tensor:
    logits = next(blocks.logits(ready.model, batch.inputs, [state], ready.as_tuple))
    return loss.log_probabilities(logits, batch)


def measure_lanes(ready: Ready, lanes: Sequence[Lane], tick: Progress) -> list[loss.Scores | None]:
    """Scores of several recipes at once, None for a lane that failed; the baseline is run along the first time.

    Raises torch.OutOfMemoryError when the device cannot hold them, and `BadInput` when the baseline's loss is
    not finite.
    """

    def advance() -> None:
        tick(len(lanes) / len(layers.blocks(ready.model)))

    others = [lane for lane in lanes if lane.recipe != NONE]
    if ready.baseline is None:
        first = Lane(NONE, list(ready.evaluation.hidden))
        through(ready, [first, *others], advance)
        ready.baseline = first.hidden
    else:
        through(ready, others, advance)
    for lane in lanes:
        if lane.recipe == NONE:
            lane.hidden = ready.baseline
    whole = [lane for lane in lanes if not lane.failed]
    found: dict[int, loss.Scores | None] = dict(zip(map(id, whole), scores(ready, whole), strict=True))
    for lane in whole:
        if not all(np.isfinite(values).all() for values in found[id(lane)] or ()):
            if lane.recipe == NONE:
                raise BadInput("its loss is not finite before any quantization")
            lane.failed, found[id(lane)] = "its loss is not finite", None
    return [found.get(id(lane)) for lane in lanes]


def measure(ready: Ready, recipes: Sequence[Recipe], weights: Mapping[str, Mapping[str, Tensor]], keep: bool,
            tick: Progress) -> list[tuple[Lane, loss.Scores | None]]:  # fmt: skip
    """Lanes of recipes that are in work at once, with their scores; when memory runs out, of each half in turn.

    `weights` are those of recipes that were saved quantized, by layer; with `keep` a lane holds on to what it
    quantized. The batches are halved with the recipes, down to one window each, before torch.OutOfMemoryError is
    passed on.
    """
    lanes = [Lane(recipe, list(ready.evaluation.hidden), saved=weights.get(str(recipe)),
                  rows=list(ready.calibrated(recipe.seed).hidden) if calibrate.sequential(recipe) else None,
                  kept={} if keep and recipe != NONE else None) for recipe in recipes]  # fmt: skip
    for lane in lanes:
        try:
            lane.formats = assign.formats(lane.recipe, ready.shapes, ready.mixes)
        except BadInput as error:
            lane.failed = str(error)
    if ready.most:
        for lane in lanes:
            lane.notes.append(f"batches of {ready.most} tokens, for memory ran out with more")
    try:
        return list(zip(lanes, measure_lanes(ready, lanes, tick), strict=True))
    except torch.OutOfMemoryError:
        longest = max(len(window.inputs) for window in ready.windows)
        now = max(batch.inputs.numel() for batch in ready.work)
        if len(recipes) == 1 and now <= longest:
            raise
    lanes.clear()
    _forget(ready, max(longest, now // 2))
    middle = max(1, len(recipes) // 2)
    parts = [part for part in (recipes[:middle], recipes[middle:]) if part]
    return [one for part in parts for one in measure(ready, part, weights, keep, tick)]


def _forget(ready: Ready, most: int) -> None:
    """Lay the work out in batches of at most `most` tokens, with nothing of the last try in memory."""
    ready.most, ready.work, ready.evaluation = most, [], blocks.Inputs([], [])
    ready.calibration, ready.baseline = {}, None
    if ready.device.type == "cuda":
        torch.cuda.empty_cache()
    ready.lay_out()
