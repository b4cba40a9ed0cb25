"""Choose: the cheapest recipe that keeps QiD under a tolerance with a given probability, and the whole trade-off."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np
import xarray as xr

from bayesqid import laws, quantized_share, recipe
from bayesqid.answers import asking, budget, candidates, observed, project, record, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

TOLERANCE, CONFIDENCE = 0.05, 0.9
HIGHEST_TOLERANCE = 100.0
# Monte Carlo standard errors within which a probability cannot be told from the confidence
CLOSE = 2.0


def tolerance_nats(value: float | str) -> float:
    """A tolerance in nats per token, above 0; `5%` is a relative rise of perplexity, QiD = ln 1.05."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    good = math.isfinite(number) and number > 0
    nats = math.log1p(number / 100) if good and text.endswith("%") else number
    if not (good and 0 < nats <= HIGHEST_TOLERANCE):
        raise BadInput(f"--tolerance is {text}: give nats per token above 0, e.g. 0.05, or a rise of perplexity, 5%.")
    return nats


def checked_confidence(value: float) -> float:
    """The same probability if it lies inside (0, 1), else `BadInput`."""
    if not 0 < value < 1:
        raise BadInput(f"--confidence is {value:g}: give a probability above 0 and below 1, e.g. 0.9.")
    return float(value)


def fitted_checkpoint(posterior: Posterior, name: str) -> xr.Dataset:
    """The cells of a fitted checkpoint whatever its case; `BadInput` lists some that are known."""
    levels = [str(level) for level in posterior.sample["checkpoint"].values]
    by_case = {level.casefold(): level for level in levels}
    if name.casefold() not in by_case:
        close = get_close_matches(name.casefold(), by_case, 3) or list(by_case)[:3]
        some = ", ".join(by_case[key] for key in close)
        raise BadInput(f"Checkpoint {name!r} is not among the {len(levels)} fitted ones, such as {some}: name one of "
                       "them, or sample a posterior with your measurements of it.")  # fmt: skip
    return posterior.cells.isel(cell=posterior.cells["checkpoint"].to_numpy() == by_case[name.casefold()])


def own_targets(posterior: Posterior, recipes: Sequence[str], own: xr.Dataset, tokens: float | None) -> list[Target]:
    """Targets of a fitted checkpoint: its facts, its deviation, and a method's source where there is but one."""
    names = ("family", "checkpoint", "n_params_nonembedding", "lr_phase")
    facts = {name: own[name].values.tolist()[0] for name in names}
    count = float(own["train_tokens"].values[0]) if tokens is None else tokens
    if math.isnan(count):
        raise BadInput(f"The tokens of {facts['checkpoint']} are not disclosed: give --tokens.")
    found = candidates.targets(posterior, recipes, count, params=facts["n_params_nonembedding"], family=facts["family"])
    rest = {name: float(np.median(own[name].values)) for name in ("headroom", "vocab_size", "loss16")}
    rest = {name: value for name, value in rest.items() if not math.isnan(value)}
    made = {method: set(own["source_method"].values[own["quantizer"].values == method].tolist())
            for method in {t.method for t in found}}  # fmt: skip
    return [replace(t, checkpoint=facts["checkpoint"], lr_phase=facts["lr_phase"],
                    source_method=next(iter(made[t.method])) if len(made[t.method]) == 1 else t.source_method, **rest)
            for t in found]  # fmt: skip


def landscape_targets(
    posterior: Posterior, cells: xr.Dataset, checkpoint: str | None
) -> tuple[list[str], list[Target], float]:
    """Names, targets and all parameters of a checkpoint whose loss landscape was measured, one target a recipe.

    Its QiDs are not read: a law of the landscape predicts them. `BadInput` for a posterior of another law.
    """
    if not posterior.law.features:
        raise BadInput(f"--landscape is for a posterior of the law landscape, and this is of {posterior.law.name}: "
                       "give one from `bayesqid sample --law landscape`, or leave --landscape out.")  # fmt: skip
    qids, facts = observed.from_cells(cells, checkpoint)
    own = cells.isel(cell=cells["checkpoint"].to_numpy() == facts["checkpoint"])
    laws.require_features(posterior.law, {name: own[name].to_numpy() for name in map(str, own.coords)})
    groups = [f"-g{group:.0f}" if group > 0 else "" for group in own["group_size"].to_numpy()]
    texts = [f"{quantizer}-w{bits:g}{group}" for quantizer, bits, group in
             zip(own["quantizer"].values, own["bits"].to_numpy(), groups, strict=True)]  # fmt: skip
    family = facts["family"] if facts["family"] in posterior.families else None
    tokens = asking.positive("tokens", facts["tokens"])
    found = [replace(q.target, family=family, tokens=tokens, checkpoint=facts["checkpoint"])
             for q in qids if q.target is not None]  # fmt: skip
    return texts, found, float(own["n_params"].values[0])


def choose(
    posterior: Posterior,
    params: float | None = None,
    known: dict | None = None,
    tokens: float | None = None,
    tolerance: float | str | None = None,
    confidence: float | None = None,
    recipes: str | None = None,
    family: str | None = None,
    new_family: bool = False,
    lr_phase: str | None = None,
    checkpoint: str | None = None,
    memory: str | None = None,
    loss_law: str | None = None,
    landscape: xr.Dataset | None = None,
    seed: int = project.SEED,
) -> xr.Dataset:
    """Every candidate recipe of one model with its bytes and P(QiD <= tolerance), dim `recipe`, cheapest first.

    The model is given by `params`, `known` (`bayesqid.importers.tables.lookup_model`) or `checkpoint`, a fitted one
    whose own deviation then counts; with cells of a measured `landscape` it is a checkpoint of those, its recipes are
    the candidates, and the posterior is one of the law landscape. The band is `new`. Attribute `choice`: the recipe of
    fewest bytes whose probability reaches the confidence, the likelier of two that cost the same, "" when none does.
    All recipes share the draws of family and checkpoint, those of one method also the source. Defaults: 0.05 nats, 0.9,
    `candidates.RECIPES`, the tokens of the named model. With `memory` and `loss_law` the answer is `budget.budget`.
    `BadInput` where options contradict each other or a number cannot be used.
    """
    if memory is None and loss_law is not None:
        raise BadInput("--loss-law is for a memory budget: add --memory, e.g. 6GB, or leave it out.")
    if memory is not None:
        given = {"params": params, "model-name": known, "checkpoint": checkpoint, "tolerance": tolerance,
                 "confidence": confidence}  # fmt: skip
        clash = [name for name, value in given.items() if value is not None]
        if clash:
            raise BadInput(f"--memory looks for the size of lowest loss itself: leave --{clash[0]} out.")
        if loss_law is None:
            raise BadInput("--memory needs a law of the loss before quantization: add --loss-law, e.g. chinchilla.")
        return budget.budget(posterior, memory, tokens, loss_law, recipes, family, new_family, lr_phase or "annealed",
                             seed)  # fmt: skip
    limit = tolerance_nats(TOLERANCE if tolerance is None else tolerance)
    wanted = checked_confidence(CONFIDENCE if confidence is None else confidence)
    if landscape is not None:
        clash = {"params": params, "model-name": known, "tokens": tokens, "recipes": recipes, "family": family,
                 "lr-phase": lr_phase, "memory": memory}  # fmt: skip
        told = [name for name, value in clash.items() if value is not None]
        if told or new_family:
            raise BadInput(f"--landscape brings the model and its recipes: leave --{(told or ['new-family'])[0]} out.")
        found = _answer(posterior, *landscape_targets(posterior, landscape, checkpoint), limit, wanted, seed)
        return found.assign_attrs(fitted_checkpoint="")
    if sum(value is not None for value in (params, known, checkpoint)) != 1:
        raise BadInput("The model is needed once: give --params 8e9, --model-name LLaMA-3-8B or --checkpoint NAME.")
    texts = candidates.names(recipes)
    if checkpoint is not None:
        if family is not None or new_family or lr_phase is not None:
            raise BadInput("--checkpoint sets family and learning rate itself: leave --family and --lr-phase out.")
        own = fitted_checkpoint(posterior, checkpoint)
        targets, total = own_targets(posterior, texts, own, tokens), float(own["n_params"].values[0])
    else:
        told = known.get("train_tokens", math.nan) if known and tokens is None else tokens
        if told is None or (tokens is None and math.isnan(told)):
            raise BadInput("The training tokens are needed: give --tokens, e.g. 15e12.")
        targets = candidates.targets(posterior, texts, told, params=params, known=known, family=family,
                                     new_family=new_family, lr_phase=lr_phase or "annealed")  # fmt: skip
        total = known.get("n_params", math.nan) if known else math.nan
    answer = _answer(posterior, texts, targets, total, limit, wanted, seed)
    name = known["model"] if known else ""
    return answer.assign_attrs(fitted_checkpoint=name if name in posterior.sample["checkpoint"].values else "")


def _answer(
    posterior: Posterior, texts: Sequence[str], targets: Sequence[Target], total: float, limit: float, wanted: float,
    seed: int,
) -> xr.Dataset:  # fmt: skip
    qid, _ = project.qid_draws(posterior, candidates.filled(posterior, targets), "new", seed)
    p_under = (qid <= limit).mean(axis=0)
    bits = np.array([quantized_share.average_bits(t.share, t.effective_bits) for t in targets])
    one = targets[0]
    # what a table of models calls parameters beyond the non-embedding ones stays at 16 bits
    rest = max(total - one.params, 0.0) if total == total else 0.0
    cost = (bits * one.params + recipe.BASELINE_BITS * rest) / 8
    median = np.median(qid, axis=0)
    order = np.lexsort((median, -p_under, cost))
    values = {name: np.quantile(qid, q, axis=0) for name, q in project.quantile_names("").items()}
    # one draw of either kind is added, so that no error is zero
    smoothed = (p_under * posterior.size + 1) / (posterior.size + 2)
    values |= {
        "p_under": p_under, "p_under_se": np.sqrt(smoothed * (1 - smoothed) / posterior.size), "effective_bits": bits,
        "bytes": cost, "fitted": candidates.fitted(posterior, targets),
    }  # fmt: skip
    values = {name: value[order] for name, value in values.items()}
    beyond = project.beyond(posterior, [targets[i] for i in order])
    values["p_outside"] = beyond["p_outside"]
    values["efficient"] = _record(-values["median"]) & _record(values["p_under"])
    names = [texts[i] for i in order]
    enough = np.flatnonzero(values["p_under"] >= wanted)
    pick = int(enough[0]) if enough.size else None
    nearest = int(np.lexsort((values["median"], -values["p_under"]))[0])
    shown = nearest if pick is None else pick
    far = {name: ratio[shown].item() for name, ratio in beyond.items()}
    outside = far["n_ratio"] > 1 or far["d_ratio"] > 1 or far["p_outside"]
    close = np.abs(values["p_under"] - wanted) <= CLOSE * values["p_under_se"]
    # dearer ones matter only where the choice itself may fail
    close &= np.arange(len(names)) <= (len(names) if pick is None else pick)
    attrs = record.attrs(posterior, project.verdict(posterior, [one.family], outside),
                         _assumptions(posterior, targets, rest)) | {
        "band": "new", "choice": "" if pick is None else names[pick], "nearest": names[nearest],
        "tolerance": limit, "confidence": wanted,
        "family": one.of, "params": one.params, "tokens": one.tokens,
        "bytes16": recipe.BASELINE_BITS * (one.params + rest) / 8, "draws": posterior.size,
        "extrapolation": json.dumps(far),
        "close": json.dumps([name for name, near in zip(names, close, strict=True) if near]),
    }  # fmt: skip
    return xr.Dataset({name: ("recipe", value) for name, value in values.items()}, {"recipe": names}, attrs)


def _assumptions(posterior: Posterior, targets: Sequence[Target], rest: float) -> dict[str, str]:
    """What the answer takes for granted, in words; `rest` parameters are embeddings."""
    one = targets[0]
    return {
        "lr_phase": one.lr_phase, "text": f"{one.eval_dataset}, context {one.context:g}",
        "params": "non-embedding parameters",
        "model": f"checkpoint {one.checkpoint}" if one.checkpoint else "a new checkpoint",
        "bytes": "weights of all linear layers with scales and zero points"
        + (f"; {wording.count_text(rest)} embedding parameters at 16 bits" if rest else "; without embeddings"),
        "source": "a new source, shared by the recipes of one method"
        + ("; its own where a method was measured on it in one source" if one.checkpoint else ""),
        "quantizers": candidates.unfitted_words(targets, candidates.fitted(posterior, targets)),
    }  # fmt: skip


def _record(values: np.ndarray) -> np.ndarray:
    """Whether each value is above all before it, (recipe,)."""
    return values > np.maximum.accumulate(np.append(-np.inf, values))[:-1]


def as_json(answer: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract; `choice` is None when no recipe qualifies."""
    if "memory" in answer.attrs:
        return budget.as_json(answer)
    told = record.decoded(answer.attrs)
    plain = {name: answer[name].values.tolist() for name in ("recipe", *answer.data_vars)}
    curve = [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]
    told |= {name: json.loads(told[name]) for name in ("close", "extrapolation")}
    return told | {"choice": told["choice"] or None, "curve": curve}


def as_text(answer: xr.Dataset, everything: bool = False) -> str:
    """The answer for a terminal of 80 columns: verdict, choice, trade-off; dominated recipes only with `everything`."""
    if "memory" in answer.attrs:
        return budget.as_text(answer, everything)
    told = as_json(answer)
    curve, takes = told["curve"], told["assumptions"]
    family = "a new family" if told["family"] == "new" else f"family {told['family']}"
    lines = [*wording.opening(told), *textwrap.wrap(_choice(told), 80), *textwrap.wrap(
        f"{wording.count_text(told['params'])} parameters, {wording.count_text(told['tokens'])} tokens, {family}, "
        f"{takes['model']}; QiD in nats per token; band 'new', equal-tailed; law {told['law']}, model {told['model']}; "
        f"learning rate {takes['lr_phase']}; {takes['text']}. GB (1e9 bytes): {takes['bytes']}.", 80)]  # fmt: skip
    lines += ["", f"  {'recipe':<20}{'bits':>6}{'GB':>9} {'median':>8} {'90 % interval':>18}{'P(under)':>9}"
              f"{'s.e.':>6}"]  # fmt: skip
    shown = [row for row in curve
             if everything or row["efficient"] or row["recipe"] == (told["choice"] or told["nearest"])]  # fmt: skip
    for row in shown:
        mark = ">" if row["recipe"] == told["choice"] else " "
        interval = f"{wording.short(row['lower90'])} - {wording.short(row['upper90'])}"
        lines.append(
            f"{mark} {row['recipe'] + ('' if row['fitted'] else ' *'):<20}{row['effective_bits']:>6.3g}"
            f"{candidates.size_text(row['bytes']):>9} {wording.short(row['median']):>8} {interval:>18}"
            f"{row['p_under']:>9.3f}{row['p_under_se']:>6.3f}"
        )
    return "\n".join([*lines, *_footnotes(told, shown)])


def _choice(told: dict) -> str:
    """What is chosen, or that nothing is, as a sentence."""
    limit, wanted = f"{told['tolerance']:.3g}", f"{told['confidence']:g}"
    whole = candidates.size_text(told["bytes16"])
    if told["choice"] is None:
        top = next(row for row in told["curve"] if row["recipe"] == told["nearest"])
        return (f"Choice: none. No recipe keeps QiD within {limit} with probability {wanted}; {top['recipe']} comes "
                f"nearest with {top['p_under']:.2f}. What remains is 16 bits, {whole} GB.")  # fmt: skip
    row = next(row for row in told["curve"] if row["recipe"] == told["choice"])
    return (f"Choice: {row['recipe']}, {row['effective_bits']:.3g} bits, {candidates.size_text(row['bytes'])} GB "
            f"instead of {whole} at 16 bits: QiD stays within {limit} with probability {row['p_under']:.2f}, "
            f"{wanted} was asked for.")  # fmt: skip


def _footnotes(told: dict, shown: list[dict]) -> list[str]:
    """What the table leaves out, which quantizers were not fitted, and what the choice hangs on."""
    hidden, words = len(told["curve"]) - len(shown), []
    if hidden:
        words.append(f"{hidden} more are not both likelier and of lower median than all that cost no more: --all shows "
                     "them.")  # fmt: skip
    if not all(row["fitted"] for row in shown):
        words.append(f"* {told['assumptions']['quantizers']}.")
    if told["close"]:
        first, more = told["close"][:3], len(told["close"]) - 3
        rest = f" and {more} more" if more > 0 else ""
        words.append(f"{', '.join(first)}{rest}: within {CLOSE:g} Monte Carlo standard errors ({told['draws']} draws) "
                     f"of the confidence, so the choice hangs on {'it' if more < -1 else 'them'}.")  # fmt: skip
    if told["fitted_checkpoint"]:
        words.append(f"This model was fitted: --checkpoint {told['fitted_checkpoint']} uses its own deviation.")
    return ["", *(line for text in words for line in textwrap.wrap(text, 80))] if words else []
