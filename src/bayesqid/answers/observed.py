"""Observed QiDs of one checkpoint: read from words or from cells, checked, and turned into targets of a posterior."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
import xarray as xr

from bayesqid import cells as cells_module
from bayesqid import likelihood
from bayesqid.answers import asking
from bayesqid.answers.draws import Target
from bayesqid.errors import BadInput
from bayesqid.quantized_share import PLAIN

# field of a target -> column of cells: what a file knows of a QiD beside its value
FIELDS = {"bits": "bits", "effective_bits": "effective_bits", "method": "quantizer", "per_channel": "per_channel",
          "lr_phase": "lr_phase", "eval_dataset": "eval_dataset", "context": "ctx_len",
          "source_method": "source_method", "checkpoint": "checkpoint", "vocab_size": "vocab_size", "loss16": "loss16",
          "headroom": "headroom"}  # fmt: skip
MAY_LACK = ("vocab_size", "loss16")
# effective bits count what is stored once a row, so one recipe differs by this much between shapes of layers
SAME_BITS = 0.02
LISTED = 4


@dataclass(frozen=True)
class Observed:
    """One measured QiD in nats per token with its standard error, at bits or at a recipe in text form.

    `target` describes the recipe and the measurement instead where a file does; `censored`: only known to be diverged.
    """

    bits: float | str
    qid: float
    se: float
    censored: bool = False
    target: Target | None = None


def number(text: str) -> float | None:
    """The number that a text holds, None where it holds none."""
    try:
        return float(text)
    except ValueError:
        return None


def parse_qid(text: str) -> Observed:
    """Read `BITS=QID:SE` or `RECIPE=QID:SE`, e.g. `4=0.05:0.004`; `BadInput` says what is wrong with it."""
    where, _, values = text.partition("=")
    qid, se = map(number, values.partition(":")[::2])
    if not where or qid is None or se is None:
        raise BadInput(f"--qid {text!r} is malformed: write BITS=QID:SE in nats per token, e.g. --qid 4=0.05:0.004.")
    bits = number(where)
    return checked(Observed(where if bits is None else bits, qid, se))


def checked(observed: Observed) -> Observed:
    """The same observation if its numbers can be used, else `BadInput`."""
    if not observed.censored and not (math.isfinite(observed.qid) and -1 <= observed.qid <= 100):
        raise BadInput(f"The QiD at {observed.bits} is {observed.qid:g}: give nats per token between -1 and 100.")
    if not (math.isfinite(observed.se) and 0 < observed.se <= 10):
        raise BadInput(f"The standard error at {observed.bits} is {observed.se:g}: give one above 0 and up to 10 nats.")
    return observed


def parse_tokens_prior(text: str) -> tuple[float, float]:
    """Read `LOW:HIGH`, e.g. `1e9:1e16`; `BadInput` says what is wrong with it."""
    low, high = map(number, text.partition(":")[::2])
    if low is None or high is None:
        raise BadInput(f"--tokens-prior {text!r} is malformed: write LOW:HIGH, e.g. --tokens-prior 1e9:1e16.")
    return checked_prior((low, high))


def checked_prior(bounds: tuple[float, float]) -> tuple[float, float]:
    """The same bounds of the prior of D if they can be used, else `BadInput`."""
    smallest, largest = asking.LIMITS["tokens"]
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and smallest <= low < high <= largest):
        raise BadInput(
            f"--tokens-prior runs from {low:g} to {high:g}: give two rising numbers from {smallest:g} to {largest:g}."
        )
    return float(low), float(high)


def targets_of(qids: Sequence[Observed], method: str, **model) -> list[Target]:
    """The target of every observation; `BadInput` when there is none or one recipe occurs twice.

    `model`: family, params, tokens and what else a file has no say in.
    """
    if not qids:
        raise BadInput("No QiD is given: add at least one, e.g. --qid 4=0.05:0.004, or --measurements FILE.")
    targets = []
    for one in map(checked, qids):
        if one.target is not None:
            targets.append(replace(one.target, **model))
        elif isinstance(one.bits, str):
            targets.append(asking.target_of(one.bits, 4.0, method, **model))
        else:
            targets.append(asking.target_of(None, float(one.bits), method, **model))
    # a file has cells, each with scatter of its own, even where two sources measured one recipe
    keys = [(t.method, t.effective_bits, t.per_channel, str(t.features)) if q.target is None else place
            for place, (q, t) in enumerate(zip(qids, targets, strict=True))]  # fmt: skip
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise BadInput(f"The QiD at {qids[place].bits} is given twice: give one value with its standard error.")
    return targets


def is_censored(qid: float, headroom: float) -> bool:
    """Whether a QiD says only that the model diverged: past ten-fold perplexity or past a uniform guess."""
    return qid > likelihood.LN10 or qid >= headroom


def same_recipe(one: Target, other: Target) -> bool:
    """Whether two targets name the same recipe, whatever the shapes of the layers it was counted on."""
    alike = (one.method, one.per_channel, one.share) == (other.method, other.per_channel, other.share)
    nominal = one.bits is None or other.bits is None or one.bits == other.bits
    return alike and nominal and abs(one.effective_bits - other.effective_bits) < SAME_BITS


def from_cells(cells: xr.Dataset, checkpoint: str | None = None) -> tuple[list[Observed], dict]:
    """The QiDs of one checkpoint and what its file knows of it: checkpoint, model, family, params, tokens (or NaN).

    Headroom, text and context, learning-rate phase, source and loss landscape are those measured. `checkpoint` is
    needed where there are several, in any case of letters; `BadInput` lists some otherwise, and where the cells cannot
    be used.
    """
    names = cells["checkpoint"].to_numpy().astype(str)
    own = cells.isel(cell=np.flatnonzero(names == chosen(list(dict.fromkeys(names)), checkpoint)))
    cells_module.check(own, latent_tokens=True)
    columns = {field: own[name].to_numpy().tolist() for field, name in FIELDS.items()}
    for field in MAY_LACK:
        columns[field] = [None if math.isnan(value) else value for value in columns[field]]
    facts = {key: own[name].to_numpy()[0] for key, name in (("checkpoint", "checkpoint"), ("model", "model"),
             ("family", "family"), ("params", "n_params_nonembedding"), ("tokens", "train_tokens"))}  # fmt: skip
    known = {key: value if isinstance(value, str) else float(value) for key, value in facts.items()}
    seen = [name for name in (*cells_module.FEATURES, "loss16", *PLAIN, "group_size") if name in own.coords]
    columns["features"] = [dict(zip(seen, values, strict=True)) for values in
                           zip(*(own[name].to_numpy().tolist() for name in seen), strict=True)]  # fmt: skip
    qids = [
        checked(Observed(row["bits"], float(qid), float(se), bool(censored), _target(known, row)))
        for row, qid, se, censored in zip(
            (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)),
            *(own[name].to_numpy() for name in ("qid", "qid_se", "censored")), strict=True)
    ]  # fmt: skip
    return qids, known


def _target(known: Mapping, row: Mapping) -> Target:
    return Target(family=None, params=known["params"], tokens=1.0, **row)


def chosen(names: Sequence[str], wanted: str | None) -> str:
    """The one checkpoint meant; `BadInput` lists some where that is not clear."""
    if wanted is None:
        if len(names) == 1:
            return names[0]
        some = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
        raise BadInput(f"The file has {len(names)} checkpoints: choose one with --checkpoint NAME ({some}).")
    by_case = {name.casefold(): name for name in names}
    if wanted.casefold() in by_case:
        return by_case[wanted.casefold()]
    close = get_close_matches(wanted.casefold(), by_case, LISTED, 0.3) or list(by_case)[:LISTED]
    raise BadInput(f"The file has no checkpoint {wanted!r}: choose one of {', '.join(by_case[one] for one in close)}.")


@dataclass(frozen=True)
class Asked:
    """A question in the words of the command line, put together: QiDs, size, and what is known of the family.

    `family` is a wish that must be met where `wanted`, else what a file or a list of models calls it; None: a new one.
    """

    qids: tuple[Observed, ...]
    params: float
    family: str | None
    wanted: bool


def question(
    texts: Sequence[str] = (), cells: xr.Dataset | None = None, checkpoint: str | None = None,
    params: float | None = None, known: Mapping | None = None, family: str | None = None, new_family: bool = False,
) -> Asked:  # fmt: skip
    """QiDs in words and those of a checkpoint in a file, with the size and family that words, model or file give.

    `known` describes a named model (`bayesqid.importers.tables.lookup_model`). Words overrule the model, and the model
    the file. `BadInput` where the size is missing or given twice, or two options contradict each other.
    """
    if params is not None and known is not None:
        raise BadInput("--params and --model-name both set the size: give one of them.")
    if family is not None and new_family:
        raise BadInput("--family and --new-family contradict each other: leave one of them out.")
    if checkpoint is not None and cells is None:
        raise BadInput(f"--checkpoint {checkpoint!r} names one in a measurement file: add --measurements FILE.")
    qids = tuple(parse_qid(text) for text in texts)
    facts: Mapping = {}
    if cells is not None:
        of_file, facts = from_cells(cells, checkpoint)
        qids = (*of_file, *qids)
    if known is not None:
        facts = {"params": known["n_params_nonembedding"], "family": known["family"]}
    size = facts.get("params") if params is None else params
    if size is None:
        raise BadInput("The size of the model is needed: give --params 7e9, --model-name NAME or --measurements FILE.")
    return Asked(qids, float(size), None if new_family else family or facts.get("family"), family is not None)


def family_of(asked: Asked, fitted: Sequence[str]) -> tuple[str | None, str]:
    """The family to ask a posterior for, None for a new one, and a sentence where a known one was not fitted."""
    if asked.family is None or asked.wanted or asked.family in fitted:
        return asked.family, ""
    return None, f"Family {asked.family} was not fitted: taken as new."
