"""Which number format each linear layer of one checkpoint should get under a budget of bits: searched, then measured.

What is chosen is chosen on the calibration text and measured on the evaluation text, so that the best of many trials
is not taken for better than it is.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayesqid.errors import BadInput
from bayesqid.measure import activations, assign, blocks, calibrate, layers, load, loss, mix_search, text
from bayesqid.measure.together import LANES_BYTES, LANES_SHARE, Ready
from bayesqid.recipe import BASELINE_BITS, NONE, Recipe, stored_bits

FORMATS = ("rtn-w2", "rtn-w3", "rtn-w4", "rtn-w8", "none")
SEARCHES = ("knapsack", "greedy", "random")
GRANULARITIES = ("matmul", "layer")
# letters behind a budget -> bits
BYTES = {"kB": 8e3, "MB": 8e6, "GB": 8e9, "KiB": 2.0**13, "MiB": 2.0**23, "GiB": 2.0**33}
_BUDGET = re.compile(r"(?P<count>[0-9]+\.?[0-9]*|\.[0-9]+)\s*(?P<unit>bits?|kB|KB|MB|GB|KiB|MiB|GiB)")
Tick = Callable[[int], object]


def _room(ready: Ready) -> int:
    """How many hidden states of the whole text may be in memory at once."""
    one = max(1, sum(state.nbytes for state in ready.evaluation.hidden))
    free = torch.cuda.mem_get_info(ready.device)[0] * LANES_SHARE if ready.device.type == "cuda" else LANES_BYTES
    return max(1, int(free // (2 * one)))


@torch.inference_mode()
def nats(ready: Ready, assignments: Sequence[assign.Formats], tick: Tick = lambda runs: None) -> np.ndarray:
    """Nats of every document under every assignment, float64 (assignments, documents).

    Blocks are taken one after another, and all assignments that give the blocks so far the same formats share one
    hidden state: each block is run once for each of these beginnings, each layer rounded once to each format. The
    numbers are to the bit those of running every assignment by itself. `tick` is told how many blocks were run.
    """
    keys = [[tuple(str(one[name]) for name in found) for found in ready.inside] for one in assignments]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    size, result = _room(ready), np.empty((len(keys), ready.documents))
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        result[chunk] = _side_by_side(ready, [assignments[one] for one in chunk], [keys[one] for one in chunk], tick)
    return result


def _side_by_side(
    ready: Ready, assignments: Sequence[assign.Formats], keys: Sequence[Sequence[tuple]], tick: Tick
) -> np.ndarray:
    # number of each assignment's beginning, and the hidden states behind each beginning
    trunk, states = [0] * len(keys), [list(ready.evaluation.hidden)]
    for depth, block in enumerate(layers.blocks(ready.model)):
        groups: dict[tuple, list[int]] = {}
        for number, key in enumerate(keys):
            groups.setdefault((trunk[number], key[depth]), []).append(number)
        behind = []
        with layers.lent(block, ready.device):
            rounded = _Rounded(ready.inside[depth])
            before = layers.originals(ready.inside[depth])
            for (parent, _), members in groups.items():
                own = assignments[members[0]]
                try:
                    layers.install(ready.inside[depth], rounded.of(own))
                    with activations.rounded(ready.inside[depth], NONE, own):
                        behind.append([blocks.run(block, state, ready.evaluation.calls[batch][depth])
                                       for batch, state in enumerate(states[parent])])  # fmt: skip
                finally:
                    layers.install(ready.inside[depth], before)
                for number in members:
                    trunk[number] = len(behind) - 1
                tick(1)
        states = behind
    return np.array([_scored(ready, state) for state in states])[trunk]


class _Rounded:
    """A block's layers rounded, each once to each format."""

    def __init__(self, found: Mapping[str, layers.Layer]) -> None:
        self.found, self.made = found, {}

    def of(self, formats: assign.Formats) -> dict[str, Tensor]:
        """Weights of the layers that are quantized, as the layers keep them."""
        weights = {}
        for name, module in self.found.items():
            key = (name, formats[name])
            if formats[name] != NONE and key not in self.made:
                one = calibrate.by_layer({name: module}, formats)[name]
                self.made[key] = layers.native(module, one.weight)
            if formats[name] != NONE:
                weights[name] = self.made[key]
        return weights


def _scored(ready: Ready, states: Sequence[Tensor]) -> np.ndarray:
    total = np.zeros(ready.documents)
    for batch, state in zip(ready.work, states, strict=True):
        logits = next(blocks.logits(ready.model, batch.inputs, [state], ready.as_tuple))
        chosen = -loss.log_probabilities(logits, batch).gather(1, batch.targets[:, None])[:, 0]
        total += np.bincount(batch.documents, weights=chosen.double().cpu().numpy(), minlength=ready.documents)
    return total


class Estimate(NamedTuple):
    """A QiD, nats per token, and its standard error over documents."""

    qid: float
    se: float


def estimate(differences: np.ndarray, tokens: np.ndarray) -> Estimate:
    """QiD and its paired standard error from differences of nats by document, as `measurements.ratio_se` has it."""
    ratio = differences.sum() / tokens.sum()
    count = int((tokens > 0).sum())
    spread = ((differences - ratio * tokens) ** 2).sum() * count / (count - 1) if count > 1 else math.nan
    return Estimate(float(ratio), float(np.sqrt(spread) / tokens.sum()))


@dataclass(frozen=True)
class Table:
    """What there is to choose: items (groups of layers), formats, bits of each in each, and the items' blocks."""

    items: tuple[tuple[str, ...], ...]
    formats: tuple[Recipe, ...]
    costs: np.ndarray
    depths: np.ndarray

    def assignment(self, chosen: Sequence[int] | np.ndarray) -> dict[str, Recipe]:
        """Format by layer of one format's number per item."""
        return {name: self.formats[form] for item, form in zip(self.items, chosen, strict=True) for name in item}


def table(shapes: assign.Blocks, formats: Sequence[Recipe], granularity: str) -> Table:
    """Items of a granularity, and the bits that each takes in each format."""
    flat, depth = assign.joined(shapes), {name: number for number, found in enumerate(shapes) for name in found}
    items = assign.units(shapes, granularity)
    costs = [[sum(stored_bits(form, *flat[name]) for name in item) for form in formats] for item in items]
    return Table(tuple(items), tuple(formats), np.array(costs), np.array([depth[item[0]] for item in items]))


def budget_bits(budget: str, linear: int, others: int) -> float:
    """Bits that the blocks' linear layers may take, for a budget such as `3.5bits`, `2.1MB`, `1.2GB`.

    Bits are per weight of these layers, scales included; bytes are those of the whole checkpoint, whose `others`
    parameters stay at 16 bits.
    """
    match = _BUDGET.fullmatch(budget.strip())
    if match is None or not 0 < float(match["count"]) < math.inf:
        raise BadInput(f"The budget {budget!r:.40} cannot be read: write e.g. 3.5bits per weight, or 2.1MB or 1.2GB.")
    count, unit = float(match["count"]), match["unit"]
    if unit.startswith("bit"):
        return count * linear
    rest = others * BASELINE_BITS
    bits = count * BYTES["kB" if unit == "KB" else unit]
    if bits <= rest:
        raise BadInput(f"What is not quantized takes {rest / 8e6:.3g} MB at 16 bits, more than the budget: raise it.")
    return bits - rest


def sensitivity(
    ready: Ready, choice: Table, tokens: np.ndarray, tick: Tick = lambda runs: None
) -> tuple[np.ndarray, np.ndarray]:
    """Differences of nats by document with one item alone in one format, (items, formats, documents), and their QiD.

    Up to the item's block all of these share the unquantized model's hidden states.
    """
    shape, blank = choice.costs.shape, choice.formats.index(NONE) if NONE in choice.formats else -1
    plain = dict.fromkeys(assign.joined(ready.shapes), NONE)
    cells = [(item, form) for item in range(shape[0]) for form in range(shape[1]) if form != blank]
    alone = [plain | dict.fromkeys(choice.items[item], choice.formats[form]) for item, form in cells]
    found = nats(ready, [plain, *alone], tick)
    differences = np.zeros((*shape, ready.documents))
    for (item, form), one in zip(cells, found[1:], strict=True):
        differences[item, form] = one - found[0]
    return differences, differences.sum(2) / tokens.sum()


class Chosen(NamedTuple):
    """Formats by number per item, and what the search text promises of them."""

    formats: np.ndarray
    predicted: Estimate


def by_sensitivity(choice: Table, differences: np.ndarray, values: np.ndarray, tokens: np.ndarray, budget: float,
                   search: str) -> Chosen:  # fmt: skip
    """Assignment of least summed QiD; QiDs of layers are taken to add up, and the error is that of their sum.

    A format that breaks a layer (its loss is not finite) is never chosen as long as the budget allows another.
    """
    solve = mix_search.greedy if search == "greedy" else mix_search.knapsack
    finite = np.isfinite(values)
    chosen = solve(choice.costs, np.where(finite, values, 1e3), budget)
    together = differences[np.arange(len(chosen)), chosen].sum(0)
    return Chosen(chosen, estimate(together, tokens))


def by_trials(ready: Ready, choice: Table, tokens: np.ndarray, budget: float, trials: int, rng: np.random.Generator,
              independent: bool = False, tick: Tick = lambda runs: None) -> Chosen:  # fmt: skip
    """The best of random assignments within the budget; its QiD on the text it was chosen on is too good by luck."""
    if independent:
        made = np.array([mix_search.drawn(choice.costs, budget, rng) for _ in range(trials)])
    else:
        made = mix_search.branched(choice.costs, choice.depths, budget, trials, rng)
    plain = dict.fromkeys(assign.joined(ready.shapes), NONE)
    found = nats(ready, [plain, *map(choice.assignment, made)], tick)
    differences = found[1:] - found[0]
    qids = differences.sum(1) / tokens.sum()
    best = int(np.argmin(np.where(np.isfinite(qids), qids, np.inf)))
    return Chosen(made[best], estimate(differences[best], tokens))


def on_text(ready: Ready, documents: Sequence[text.Document], tokenizer: Path, context: int,
            most: int) -> tuple[Ready, np.ndarray]:  # fmt: skip
    """The same loaded model before at most `most` windows of other documents, and the scored tokens of each."""
    embedding: Any = ready.model.get_input_embeddings().weight
    made = text.tokenize(list(documents), load.tokenizer(tokenizer), len(embedding))
    windows = text.windows(made, context)[:most]
    counts = np.bincount([window.document for window in windows], [len(window.targets) for window in windows],
                         len(documents))  # fmt: skip
    other = replace(ready, windows=windows, documents=len(documents), work=[], baseline=None, calibration={},
                    evaluation=blocks.Inputs([], []))  # fmt: skip
    other.lay_out()
    return other, counts


def measured(ready: Ready, tokens: np.ndarray, chosen: assign.Formats, others: Sequence[assign.Formats],
             tick: Tick = lambda runs: None) -> dict[str, Any]:  # fmt: skip
    """QiD of an assignment, and beside it that of others of equal budget: `compared` with what they lose."""
    plain = dict.fromkeys(assign.joined(ready.shapes), NONE)
    found = nats(ready, [plain, chosen, *others], tick)
    return compared(found[0], found[1], found[2:], tokens)


def compared(base: np.ndarray, chosen: np.ndarray, others: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """QiD from nats by document, and beside it that of others, (others, documents): mean, spread, the difference.

    The variance of the difference from the mean is that of the paired differences over documents plus that of the
    others among themselves over their number.
    """
    own, rest = chosen - base, others - base
    one = estimate(own, tokens)
    result: dict[str, Any] = {"qid": one.qid, "qid_se": one.se, "loss16": float(base.sum() / tokens.sum())}
    if len(rest) > 1:
        qids = rest.sum(1) / tokens.sum()
        gap = estimate(own - rest.mean(0), tokens)
        result |= {"random_qid": float(qids.mean()), "random_sd": float(qids.std(ddof=1)), "random_draws": len(rest),
                   "random_best": float(qids.min()), "difference": gap.qid,
                   "difference_se": float(np.hypot(gap.se, qids.std(ddof=1) / len(rest) ** 0.5))}  # fmt: skip
    return result


def blocks_run(depths: np.ndarray, count: int, cells: int) -> int:
    """Block runs that `sensitivity` takes: the baseline's, and for every cell those from its item's block on."""
    return count + int(((count - depths) * cells).sum())
