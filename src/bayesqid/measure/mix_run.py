"""`bayesqid mix` in one call: load one checkpoint, choose its assignment, measure it beside random ones."""

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bayesqid.errors import BadInput
from bayesqid.measure import assign, load, mix, mix_search, text
from bayesqid.measure import plan as planning
from bayesqid.measure.checkpoint import prepare
from bayesqid.measure.parts import Found
from bayesqid.measure.together import Ready
from bayesqid.recipe import NONE

# the same unquantized model, for which neither family nor tokens matter
NOBODY = {"family": "own", "tokens": 1.0, "lr_phase": "unknown", "called": None}


@dataclass(frozen=True)
class Search:
    """How an assignment is looked for: `samples` windows of calibration text, `trials` of the random search."""

    budget: str
    formats: tuple[str, ...] = mix.FORMATS
    granularity: str = "matmul"
    search: str = "knapsack"
    trials: int = 50
    samples: int = 1024
    draws: int = 10
    seed: int = 0
    independent: bool = False

    def check(self) -> "Search":
        """The same search if it can be done, else `BadInput`."""
        for name, value, known in (("search", self.search, mix.SEARCHES),
                                   ("granularity", self.granularity, mix.GRANULARITIES)):  # fmt: skip
            if value not in known:
                raise BadInput(f"--{name} {value!r} is unknown: choose one of {', '.join(known)}.")
        for name, value, least in (("trials", self.trials, 1), ("samples", self.samples, 2), ("draws", self.draws, 0),
                                   ("seed", self.seed, 0)):  # fmt: skip
            if value < least:
                raise BadInput(f"--{name} is {value}: give at least {least}.")
        chosen = [assign.usable(name) for name in self.formats]
        if len(set(chosen)) < 2:
            raise BadInput("--formats names fewer than two formats, so there is nothing to choose: give another one.")
        if len({one.rounds_inputs for one in chosen if one != NONE}) > 1:
            raise BadInput("--formats mixes formats with -wa and without: what enters the layers is rounded or is not.")
        return self


def bar(total: int, what: str) -> tqdm:
    """Progress on stderr, in runs of one block."""
    pace = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, mininterval=pace, delay=2.0, file=sys.stderr, unit=" blocks", leave=False)


def choose(ready: Ready, tokens: np.ndarray, search: Search, others: int) -> tuple[mix.Table, mix.Chosen, float]:
    """What there was to choose from, what was chosen on the text that stands before the model, and the budget in bits.

    `others` counts the parameters that are not quantized.
    """
    formats = list(dict.fromkeys(assign.usable(name) for name in search.formats))
    choice = mix.table(ready.shapes, formats, search.granularity)
    budget = mix.budget_bits(search.budget, assign.weights(ready.shapes), others)
    mix_search.within(choice.costs, budget)
    depth = len(ready.shapes)
    if search.search == "random":
        rng = np.random.default_rng((search.seed, 1))
        with bar(depth * (search.trials + 1), "random trials") as progress:
            found = mix.by_trials(ready, choice, tokens, budget, search.trials, rng, search.independent,
                                  progress.update)  # fmt: skip
    else:
        with bar(mix.blocks_run(choice.depths, depth, len(formats)), "layer by layer") as progress:
            differences, values = mix.sensitivity(ready, choice, tokens, progress.update)
        found = mix.by_sensitivity(choice, differences, values, tokens, budget, search.search)
    return choice, found, budget


def of_ready(ready: Ready, tokenizer: Path, plan: planning.Plan, search: Search, others: int) -> dict[str, Any]:
    """Everything that is found about a loaded checkpoint, as plain values; `layers` holds format by layer."""
    context, most = plan.protocol.context, max(len(ready.windows), 1)
    cut = text.cut(list(plan.calibration), plan.protocol.max_bytes)
    searched, seen = mix.on_text(ready, cut, tokenizer, context, search.samples)
    choice, found, budget = choose(searched, seen, search, others)
    searched.work, searched.evaluation = [], searched.evaluation._replace(hidden=[], calls=[])
    chosen = choice.assignment(found.formats)
    rng = np.random.default_rng((search.seed, 2))
    rest = [choice.assignment(mix_search.drawn(choice.costs, budget, rng)) for _ in range(search.draws)]
    measured, tokens = mix.on_text(ready, plan.documents, tokenizer, context, most)
    with bar(len(ready.shapes) * (len(rest) + 2), "measured") as progress:
        result = mix.measured(measured, tokens, chosen, rest, progress.update)
    formats = {name: str(form) for name, form in chosen.items()}
    return {
        "search": search.search, "budget": search.budget, "granularity": search.granularity,
        "effective_bits": assign.average(chosen, ready.shapes),
        "linear_fraction": assign.low_share(chosen, ready.shapes),
        "bytes": (assign.bits(chosen, ready.shapes) + 16 * others) / 8,
        "predicted_qid": found.predicted.qid, "predicted_qid_se": found.predicted.se,
        "measured_qid": result.pop("qid"), "measured_qid_se": result.pop("qid_se"), **result,
        "trials": search.trials if search.search == "random" else 0,
        "search_text": plan.calibration_text, "search_tokens": int(seen.sum()),
        "text": plan.text, "text_tokens": int(tokens.sum()), "seed": search.seed,
        "counts": dict(Counter(formats.values())), "layers": formats,
    }  # fmt: skip


def run(
    target: str, search: Search, device: str, settings: dict[str, Any], evaluation: Path | None = None,
    calibration: Path | None = None, tokenizer: Path | None = None, keep: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Choose and measure an assignment for the checkpoint in a folder or on the hub; `BadInput` for what cannot be."""
    search = search.check()
    if not planning.is_own(target):
        raise BadInput(f"{target} is no single checkpoint: name its folder or hub/id@revision.")
    plan = planning.make(target, ["none"], device, settings, NOBODY, evaluation, calibration, tokenizer, keep=keep)
    checkpoint, found = plan.checkpoints[0], Found()
    load.quiet()
    with tempfile.TemporaryDirectory() as aside, load.brought(checkpoint, Path(aside) / "lock", keep) as source:
        ready = prepare(plan, checkpoint, source, {}, found)
        others = found.facts["n_params"] - assign.weights(ready.shapes)
        result = of_ready(ready, Path(plan.tokenizer) if plan.tokenizer else source, plan, search, others)
    known = {"model": f"{checkpoint.model}@{checkpoint.revision}", "weight_sha256": found.facts["weight_sha256"]}
    return known | result


# facts that the file of an assignment keeps
KEPT = ("model", "weight_sha256", "budget", "granularity", "effective_bits", "linear_fraction", "predicted_qid",
        "predicted_qid_se", "measured_qid", "measured_qid_se", "search_text", "search_tokens", "text", "text_tokens",
        "seed")  # fmt: skip


def as_mix(result: dict[str, Any]) -> assign.Mix:
    """The assignment as its file has it; numbers that are unknown are left out."""
    trials = result["trials"]
    facts = {name: result[name] for name in KEPT
             if not (isinstance(result[name], float) and not np.isfinite(result[name]))}  # fmt: skip
    return assign.Mix(f"best{trials}" if trials else result["search"], result["layers"], facts)


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The result without NaN, and the recipe that names it."""
    plain = {name: None if isinstance(value, float) and not np.isfinite(value) else value
             for name, value in result.items()}  # fmt: skip
    return plain | {"recipe": str(as_mix(result).recipe)}


def as_text(result: dict[str, Any]) -> str:
    """The result as a table of at most 80 columns."""
    rows: list[tuple[str, float, float, str]] = [
        ("predicted", result["predicted_qid"], result["predicted_qid_se"],
         f"best of {result['trials']} on the search text" if result["trials"] else "layers alone, summed, search text"),
        ("measured", result["measured_qid"], result["measured_qid_se"], "evaluation text"),
    ]  # fmt: skip
    if "random_qid" in result:
        count = result["random_draws"]
        error = result["random_sd"] / count**0.5
        rows += [("random", result["random_qid"], error, f"mean of {count} of equal budget"),
                 ("measured - random", result["difference"], result["difference_se"], "paired over documents")]
    counts = ", ".join(f"{count} {form}" for form, count in result["counts"].items())
    lines = [f"{result['model']}: {result['effective_bits']:.3f} bits per weight for a budget of {result['budget']}",
             f"linear layers by format ({result['search']}): {counts}", "",
             f"{'QiD, nats per token':<20}{'':>9}{'SE':>10}"]  # fmt: skip
    return "\n".join([*lines, *(f"{name:<20}{qid:9.4f}{se:10.4f}  {what}" for name, qid, se, what in rows)])


def parse_formats(given: str | None) -> Sequence[str]:
    """Formats from text such as `rtn-w2,rtn-w4,none`."""
    return mix.FORMATS if given is None else tuple(item.strip() for item in given.split(","))


def with_formats(search: Search, given: str | None) -> Search:
    """The search over the formats given as text."""
    return replace(search, formats=tuple(parse_formats(given)))
