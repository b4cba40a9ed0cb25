"""Logs of llama.cpp's `llama-perplexity`: a run against stored logits, or two plain runs paired by their chunks."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bayesqid import cells, measurements
from bayesqid.errors import BadInput
from bayesqid.importers import formats
from bayesqid.importers.formats import Found, Given, number

_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|-?nan(?:\(ind\))?|-?inf)"
_ERROR = rf"{_NUMBER}\s+\S{{1,3}}\s+{_NUMBER}"
_INFO = r"(?:print_info|llm_load_print_meta):\s*"
# what -> where it stands in a log, in wordings from 2024 on
FIELDS = {
    "type": rf"{_INFO}(?:file type|model ftype)\s*=\s*([^\n]+)",
    "bits": rf"{_INFO}(?:file size|model size)\s*=\s*[\d.]+ [KMGT]iB \(([\d.]+) BPW",
    "layers": rf"{_INFO}repeating layers\s*=\s*[\d.]+ [KMGT]iB \(([\d.]+) BPW",
    "name": rf"{_INFO}general\.name\s*=\s*([^\n]+)",
    "vocabulary": rf"{_INFO}n_vocab\s*=\s*(\d+)",
    "context": r"(?:perplexity|kl_divergence): c\w+ [^\n]{0,40}over \d+ chunks, n_ctx=(\d+)",
    "chunks": r"(?:perplexity|kl_divergence): c\w+ [^\n]{0,40}over (\d+) chunks",
}
PPL = re.compile(rf"Final estimate: PPL = {_ERROR}")
BLOCK = {
    "ppl_q": re.compile(rf"Mean PPL\(Q\)\s*:\s*{_ERROR}"),
    "ppl_base": re.compile(rf"Mean PPL\(base\)\s*:\s*{_ERROR}"),
    "qid": re.compile(rf"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:\s*{_ERROR}"),
    "kl": re.compile(rf"Mean\s+KLD\s*:\s*{_ERROR}"),
}
CHUNK = re.compile(r"\[(\d{1,7})\](\d+\.\d+),")
IMATRIX = "quantize.imatrix."
BASELINES = ("F32", "F16", "BF16")
SIZES = {"Small": "_S", "Medium": "_M", "Large": "_L"}
# Bits per weight of the block layouts in ggml-common.h, and of a whole LLaMA-2-7B file for the mixes that llama.cpp's
# README lists. They stand in for the log's own BPW line where that is lost; a mix has other bits in another model
TYPE_BITS = {
    "Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5,
    "Q5_K": 5.5, "Q6_K": 6.5625, "IQ1_S": 1.5625, "IQ1_M": 1.75, "IQ2_XXS": 2.0625, "IQ2_XS": 2.3125, "IQ2_S": 2.5625,
    "IQ3_XXS": 3.0625, "IQ3_S": 3.4375, "IQ4_XS": 4.25, "IQ4_NL": 4.5,
    "Q3_K_S": 3.50, "Q3_K_M": 3.91, "Q3_K_L": 4.27, "Q4_K_S": 4.58, "Q4_K_M": 4.84, "Q5_K_S": 5.52, "Q5_K_M": 5.68,
}  # fmt: skip


@dataclass(frozen=True)
class Log:
    """A log's text, what `FIELDS` found in it, and the type of its weights, e.g. Q4_K_M or F16."""

    file: Path
    text: str
    said: dict[str, str]
    type: str


def recognises(path: Path) -> bool:
    """Whether a file is a log with perplexities."""
    if not path.is_file() or path.stat().st_size > formats.MOST_TEXT:
        return False
    text = formats.text_of(path)
    return PPL.search(text) is not None or BLOCK["qid"].search(text) is not None


def read(paths: list[Path], given: Given) -> Found:
    """One row per log of a quantized model.

    With --kl-divergence the log itself has QiD = mean ln(PPL(Q)/PPL(base)) and its error, taken over tokens. A plain
    log is paired with that of the unquantized model by chunks of equal length. `BadInput` where that cannot be done.
    """
    logs = [_log(path) for path in paths]
    plain = [log for log in logs if BLOCK["qid"].search(log.text) is None]
    bases = [_log(given.baseline)] if given.baseline else [log for log in plain if log.type in BASELINES]
    rows, left_out, notes, used = [], [], [], []
    formats.of_one(given, sum(log not in bases for log in logs))
    for log in logs:
        used.append(log.file)
        if log in bases:
            continue
        if not log.type:
            raise BadInput(f"{log.file.name} lost the line with the file type (print_info): keep the whole log.")
        facts = formats.identify(given, _name(log))
        if facts.get("vocab_size") in (None, "") or facts["vocab_size"] != facts["vocab_size"]:
            facts["vocab_size"] = log.said.get("vocabulary")
        loss, why = _against_logits(log) if log not in plain else _by_chunks(log, bases)
        if why:
            left_out.append((why, str(facts["family"])))
            continue
        notes.append(f"{log.file.name}: {loss.pop('note')}")
        text = "wikitext2 raw" if "wiki.test.raw" in log.text else ""
        rows.append({**facts, **_bits(log), **loss,
                     **formats.protocol(given, "llama.cpp", text, log.said.get("context"))})  # fmt: skip
    if not rows and not left_out:
        raise BadInput("Only logs of unquantized models were given: name the log of a quantized model as well.")
    return Found(rows, left_out, notes, used)


def _log(path: Path) -> Log:
    text = re.sub(r"\x1b\[[0-9;]{0,8}m", "", formats.text_of(path))
    runs = len(PPL.findall(text)) + len(BLOCK["qid"].findall(text))
    if runs != 1:
        hint = "was it cut off?" if runs == 0 else "keep one log per run."
        raise BadInput(f"{path.name} has {runs} final results of llama-perplexity, not one: {hint}")
    said = {what: match[1].strip() for what, where in FIELDS.items() if (match := re.search(where, text))}
    return Log(path, text, said, _type(said.get("type", "")))


def _type(printed: str) -> str:
    """Q4_K_M of "Q4_K - Medium", IQ2_XS of "IQ2_XS - 2.3125 bpw", F32 of "all F32"."""
    plain = printed.removeprefix("(guessed)").strip().removeprefix("all ").removeprefix("mostly ").split("(")[0].strip()
    if plain.startswith("IQ3_S mix"):
        return "IQ3_M"
    stem, _, rest = plain.partition(" - ")
    suffix = SIZES.get(rest.strip(), "")
    return stem.strip() + ("" if stem == "Q2_K" and suffix == "_M" else suffix)


def _name(log: Log) -> str:
    return log.said.get("name", log.file.stem).replace(" ", "-")


def _bits(log: Log) -> dict[str, Any]:
    """Method, nominal bits and effective bits: of the repeating layers, of the whole file, or of the type."""
    digits = re.search(r"\d", log.type)
    if digits is None:
        raise BadInput(f"{log.file.name} is of the type {log.type!r}, whose bits are not known: import it as a table.")
    known = log.said.get("layers") or log.said.get("bits") or TYPE_BITS.get(log.type)
    weighted = "+imatrix" if IMATRIX in log.text else ""
    return {"method": f"llama.cpp:{log.type}{weighted}", "bits": int(digits[0]),
            "effective_bits": number(known, f"{log.file.name}: BPW") if known else None}  # fmt: skip


def _scope(log: Log) -> str:
    return ("bits of the repeating layers" if "layers" in log.said else "bits of the whole file" if "bits" in log.said
            else "bits of the type in LLaMA-2-7B" if log.type in TYPE_BITS else "nominal bits")  # fmt: skip


def _against_logits(log: Log) -> tuple[dict[str, Any], str]:
    found = {name: match.groups() for name, where in BLOCK.items() if (match := where.search(log.text))}
    qid, error = (float(part.partition("(")[0]) for part in found["qid"])
    if not (math.isfinite(qid) and math.isfinite(error)):
        return {}, "llama.cpp's error of QiD is not a number, as where nothing changed"
    if "ppl_base" in found:
        before = number(found["ppl_base"][0], f"{log.file.name}: Mean PPL(base)")
    elif "ppl_q" in found:
        before = number(found["ppl_q"][0], f"{log.file.name}: Mean PPL(Q)") / math.exp(qid)
    else:
        raise BadInput(f"{log.file.name} lost Mean PPL(Q) and Mean PPL(base): keep the whole log.")
    kl = f", KL {' +/- '.join(found['kl'])} nats" if "kl" in found else ""
    return {"qid": qid, "qid_se": math.hypot(error, cells.NOISE_FLOOR), "ppl_fp": before,
            "note": f"paired token by token by llama.cpp{kl}; {_scope(log)}"}, ""  # fmt: skip


def _by_chunks(log: Log, bases: list[Log]) -> tuple[dict[str, Any], str]:
    """QiD and its error from the running perplexities of two logs.

    After i chunks of equal length a log prints m_i, so chunk i has i ln m_i - (i - 1) ln m_(i-1) nats per token.
    """
    if len(bases) != 1:
        raise BadInput(f"{log.file.name} has no base logits, and there are {len(bases)} logs of unquantized models: "
                       "name that of its baseline with --baseline.")  # fmt: skip
    (base,) = bases
    for what in ("context", "chunks", "vocabulary"):
        if base.said.get(what) != log.said.get(what):
            raise BadInput(f"The {what} of {base.file.name} and {log.file.name} differ ({base.said.get(what)} and "
                           f"{log.said.get(what)}): run both alike.")  # fmt: skip
    before, after = (_chunks(one) for one in (base, log))
    if before.shape != after.shape:
        raise BadInput(f"{base.file.name} has {before.size} chunks, {log.file.name} {after.size}: run both alike.")
    if before.size < 2:
        return {}, "fewer than two chunks, so no error"
    if not np.isfinite(after).all():
        return {}, "a loss that is not finite"
    tokens = xr.DataArray(np.ones(before.size), dims="document")
    change = xr.DataArray(after - before, dims="document")
    error = math.hypot(float(measurements.ratio_se(change, tokens)), cells.NOISE_FLOOR)
    return {"qid": float(change.mean()), "qid_se": error, "ppl_fp": math.exp(before.mean()),
            "note": f"paired by {before.size} chunks with {base.file.name}; {_scope(log)}"}, ""  # fmt: skip


def _chunks(log: Log) -> np.ndarray:
    """Nats per token of each chunk; `BadInput` where the log lost some."""
    found = CHUNK.findall(log.text)
    if [int(place) for place, _ in found] != list(range(1, len(found) + 1)) or not found:
        raise BadInput(f"{log.file.name} lost running perplexities ([1]9.6667,[2]11.4286,...): keep the whole log.")
    running = np.array([float(value) for _, value in found])
    if not (running > 0).all():
        raise BadInput(f"{log.file.name} has a running perplexity of 0: is it of llama-perplexity?")
    total = np.arange(1, running.size + 1) * np.log(running)
    return np.diff(total, prepend=0.0)
