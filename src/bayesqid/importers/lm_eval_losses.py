"""What documents lost in a run of lm-evaluation-harness, and how that changed against another run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bayesqid import cells, measurements
from bayesqid.errors import BadInput
from bayesqid.importers import formats
from bayesqid.importers.formats import Given, dig, number

PER_BYTE = ("byte_perplexity,none", "bits_per_byte,none")


@dataclass(frozen=True)
class Run:
    """One results file: where it lies, its content, the model and revision it is of, the model's arguments."""

    file: Path
    data: dict[str, Any]
    model: str
    revision: str
    arguments: dict[str, Any]


def samples(run: Run, task: str) -> Path:
    """Where the harness wrote the samples of a task, if it did."""
    return run.file.with_name(f"samples_{task}_{run.file.stem.removeprefix('results_')}.jsonl")


def _documents(run: Run, task: str) -> dict[Any, tuple[str, float, str]]:
    """Hash, nats and text of every document by its number; `BadInput` when one stands there twice."""
    file, found = samples(run, task), {}
    for line, sample in formats.json_lines(file):
        where = f"{file.name}, line {line}"
        key = dig(sample, where, "doc_id", kind=(int, str))
        if key in found:
            raise BadInput(f"{where}: document {key} stands there twice: evaluate again with one repeat.")
        answers = dig(sample, where, "filtered_resps", kind=list)
        one: Any = answers[0] if len(answers) == 1 else None
        loss: Any = one[0] if isinstance(one, list) and one else one
        try:
            nats = -float(loss)  # a diverged model may have said nan or inf
        except (TypeError, ValueError):
            raise BadInput(f"{where}: {str(loss)[:40]!r} is no log-likelihood.") from None
        found[key] = (str(sample.get("doc_hash", "")), nats, _text(sample, where))
    return found


def _text(sample: dict[str, Any], where: str) -> str:
    said = sample.get("arguments")
    if isinstance(said, dict):
        return dig(said, where, "gen_args_0", "arg_0", kind=str)
    first = said[0] if isinstance(said, list) and said else None  # before 0.4.9
    if isinstance(first, list) and first and isinstance(first[0], str):
        return first[0]
    raise BadInput(f"{where} lacks the text that the model was given (arguments): run with --log_samples.")


def _counted(text: str, given: Given) -> float:
    if given.count_tokens is not None:
        return float(given.count_tokens(text))
    return len(text.encode()) * _rate(given)


def _rate(given: Given) -> float:
    if given.tokens_per_byte is None:
        raise BadInput("lm-eval's files do not say how many tokens a text has: give the model's --tokenizer FOLDER, "
                       "or --tokens-per-byte (1 for a model of bytes).")  # fmt: skip
    return given.tokens_per_byte


def paired(base: Run, run: Run, task: str, given: Given) -> tuple[dict[str, Any], str]:
    """QiD, its error, the baseline's perplexity per token and a note; or why there are none.

    `BadInput` where the two runs' documents are not the same, or their tokens cannot be counted.
    """
    files = [samples(one, task) for one in (base, run)]
    if not all(file.is_file() for file in files):
        nats = [_per_byte(one, task) / _rate(given) for one in (base, run)]
        note = "no samples on both sides, so a loss per byte and no paired error"
        return {"qid": nats[1] - nats[0], "ppl_fp": math.exp(nats[0]), "note": note}, ""
    before, after = _documents(base, task), _documents(run, task)
    if before.keys() != after.keys():
        raise BadInput(f"{task}: the {len(before)} documents of the baseline are not the {len(after)} of {run.model}.")
    if len(before) < 2:
        raise BadInput(f"{task} has {len(before)} documents: an error needs two or more.")
    for key, (digest, _, text) in before.items():
        if (digest, text) != (after[key][0], after[key][2]):
            raise BadInput(f"{task}: document {key} is another text for {run.model} than for the baseline.")
    nats = np.array([[before[key][1], after[key][1]] for key in before])
    if not np.isfinite(nats).all():
        return {}, "a loss that is not finite"
    tokens = xr.DataArray([_counted(before[key][2], given) for key in before], dims="document")
    if not (tokens > 0).any():
        raise BadInput(f"{task}: no document has a token.")
    change = xr.DataArray(nats[:, 1] - nats[:, 0], dims="document")
    error = math.hypot(float(measurements.ratio_se(change, tokens)), cells.NOISE_FLOOR)
    total = float(tokens.sum())
    return {"qid": float(change.sum()) / total, "qid_se": error, "ppl_fp": math.exp(nats[:, 0].sum() / total),
            "note": f"{len(before)} documents paired, {total:,.0f} tokens"}, ""  # fmt: skip


def _per_byte(run: Run, task: str) -> float:
    """Nats per byte from the results file."""
    found, where = dig(run.data, str(run.file), "results", task), f"{run.file.name}, {task}"
    if PER_BYTE[1] in found:
        return number(found[PER_BYTE[1]], f"{where}: bits_per_byte") * math.log(2)
    return math.log(max(number(found.get(PER_BYTE[0]), f"{where}: byte_perplexity"), 1.0))
