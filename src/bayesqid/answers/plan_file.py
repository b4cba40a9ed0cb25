"""A chosen set of checkpoints as a suite of its own, in the files that `bayesqid measure` reads."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from bayesqid.suite import Checkpoint, Suite


def quoted(value) -> str:
    """A value in TOML: JSON's strings, numbers and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=False)


def table(head: str, values: dict) -> str:
    """One table of a TOML file; None is left out."""
    lines = [f"{key} = {value if key == 'steps' else quoted(value)}" for key, value in values.items()
             if value is not None]  # fmt: skip
    return "\n".join([head, *lines, ""])


def schedule(c: Checkpoint) -> dict:
    """A schedule, counted in tokens, that puts this checkpoint into its phase with its learning rate over the peak."""
    at, rate = c.train_tokens, c.lr_fraction
    if c.lr_phase == "constant":
        return {"kind": "constant"}
    if c.lr_phase == "unknown":
        return {"kind": "constant", "warmup": at / rate}
    if c.lr_phase == "annealed":
        return {"kind": "linear", "decay_start": 0, "floor": rate, "end": at}
    # one half of the decay, down to a floor that may well lie below zero, which no step reaches
    return {"kind": "linear", "decay_start": 0, "floor": 2 * rate - 1, "end": 2 * at}


def plain(text: str) -> str:
    """A text in which `str.format` changes nothing."""
    return text.replace("{", "{{").replace("}", "}}")


def generated(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Tables of checkpoints on the hub: a schedule and a run for each, a model for each hub id."""
    out = []
    for number, c in enumerate(checkpoints, 1):
        out.append(table(f"[schedule.s{number}]", {**schedule(c), "unit": "token", "status": "as of the suite"}))
        seeds = None if c.seed is None else [c.seed]
        out.append(table("[[run]]", {
            "family": c.family, "revision": plain(c.revision), "schedule": f"s{number}", "models": [c.model],
            "seeds": seeds, "steps": f"{{ list = [{c.train_tokens}] }}"}))  # fmt: skip
    for c in {c.hub: c for c in checkpoints}.values():
        out.append(table("[[model]]", {
            "hub": c.hub, "n_params": c.n_params, "n_params_nonembedding": c.n_params_nonembedding,
            "vocab_size": c.vocab_size, "tokens_per_step": 1, "status": c.status or "as of the suite"}))  # fmt: skip
    return out


def listed(checkpoints: Sequence[Checkpoint]) -> str:
    """The table of checkpoints in folders, JSON."""
    names = {field.name for field in fields(Checkpoint)} - {"hub", "excluded", "status"}
    rows = [{key: value for key, value in asdict(c).items() if key in names} | {"path": c.hub} for c in checkpoints]
    return json.dumps(rows, indent=1)


def texts(suite: Suite, checkpoints: Sequence[Checkpoint], recipes: Sequence[str], path: Path) -> dict[Path, str]:
    """{file: text}: the suite's TOML at `path` and, for checkpoints in folders, their table beside it.

    It keeps the name of the suite, so that its measurements count as of one source; every recipe is measured at every
    checkpoint, because a suite has one list of them.
    """
    text = {key: value for key, value in asdict(suite.text).items() if value is not None}
    own = {key: os.path.abspath(value) if key in ("evaluation", "calibration", "tokenizer") else value
           for key, value in text.items()}  # fmt: skip
    local = [c for c in checkpoints if os.path.isabs(c.hub)]
    beside = path.with_suffix(".json")
    head = table("", {
        "name": suite.name, "title": f"{len(checkpoints)} checkpoints of {suite.name} chosen by bayesqid next",
        "recipes": list(recipes), "checkpoints": beside.name if local else None}).lstrip()  # fmt: skip
    hub = [replace(c, excluded=None) for c in checkpoints if c not in local]
    files = {path: "\n".join([head, table("[text]", own), *generated(hub)])}
    return files | ({beside: listed(local)} if local else {})
