"""Two posteriors, A and B, laid side by side: rows of what differs in their making, data, answers and parameters."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from bayesqid.answers import asking, project
from bayesqid.answers.draws import Posterior
from bayesqid.errors import BadInput
from bayesqid.report import asked, records, tables, words
from bayesqid.report.tables import COUNTED, DESTROYED

# what makes two cells the same measurement, its value aside
CONFIGURATION = ("family", "checkpoint", "method", "variant", "bits", "effective_bits", "group_size", "eval_dataset",
                 "ctx_len", "source", "n_params_nonembedding", "train_tokens")  # fmt: skip
DIGITS = 9
NOISE = 2.0


@dataclass(frozen=True)
class Side:
    """One of the two: its letter, the file's name, its draws and its projection to the common targets."""

    name: str
    file: str
    posterior: Posterior
    projection: xr.Dataset


def sides(a: Posterior, b: Posterior, tokens: float | None, family: str | None, band: str) -> tuple[Side, Side]:
    """Both projected to the same targets: the default sizes and bits at these tokens.

    Of a family that only one knows the other projects a new one. `BadInput` where neither knows it.
    """
    if family is not None and not any(knows(p, family) for p in (a, b)):
        known = ", ".join(sorted({*a.families, *b.families}))
        raise BadInput(f"Family {family!r} is in neither posterior: fitted are {known}.")
    names = [p.path.replace("\\", "/").split("/")[-1] for p in (a, b)]
    if names[0] == names[1]:
        names = ["/".join(p.path.replace("\\", "/").split("/")[-2:]) for p in (a, b)]
    targets = [asking.targets(p, tokens, family=family if family and knows(p, family) else None) for p in (a, b)]
    left, right = (Side(letter, name, p, project.project(p, own, band))
                   for letter, name, p, own in zip("AB", names, (a, b), targets, strict=True))  # fmt: skip
    return left, right


def knows(posterior: Posterior, family: str) -> bool:
    """Whether a family was fitted, whatever its case."""
    return family.casefold() in {name.casefold() for name in posterior.families}


def merged(rows_a: Sequence[dict], rows_b: Sequence[dict], keys: Sequence[str]) -> list[dict]:
    """Rows of both under common keys, the values as `a_NAME` and `b_NAME`, None where one has no such row."""
    by_key = [{tuple(row[key] for key in keys): row for row in rows} for rows in (rows_a, rows_b)]
    names = [name for name in dict.fromkeys(n for row in (*rows_a, *rows_b) for n in row) if name not in keys]
    out = []
    for key in _interleaved(list(by_key[0]), list(by_key[1])):
        row = dict(zip(keys, key, strict=True))
        for letter, found in zip("ab", by_key, strict=True):
            row |= {f"{letter}_{name}": found.get(key, {}).get(name) for name in names}
        out.append(row)
    return out


def _interleaved(first: list[tuple], second: list[tuple]) -> list[tuple]:
    """All keys of both: what only the second has stands after what it follows there."""
    out = list(first)
    for number, key in enumerate(second):
        if key not in out:
            before = next((k for k in reversed(second[:number]) if k in out), None)
            out.insert(0 if before is None else out.index(before) + 1, key)
    return out


def answers(left: Side, right: Side) -> list[dict]:
    """The same targets answered by both, with differences, ratios and whether equal-tailed intervals overlap.

    `difference` = B - A and `ratio` = B / A of the medians; `width_ratio` that of ln(upper90 / lower90), None where
    a lower limit is not positive. `noise` is twice the Monte Carlo standard error of ln `ratio`, for which draws count
    as independent: with the quarter points u and l of S draws, that of a log median is about ln(u / l) / sqrt(S).
    Where either loses more than a uniform guess with a probability above one half, all of these are None.
    """
    keep = (*project.quantile_names(""), "p_gt_0.2", "p_saturated", "n_ratio", "d_ratio", "p_outside", "family")
    out = []
    rows = [[row | row["extrapolation"] for row in project.rows(side.projection)] for side in (left, right)]
    sizes = [side.posterior.size for side in (left, right)]
    for pair in zip(*rows, strict=True):
        first = pair[0]
        row = {key: first[key] for key in ("params", "tokens", "bits", "effective_bits", "method", "lr_phase")}
        for letter, own in zip("ab", pair, strict=True):
            row |= {f"{letter}_{name}": own[name] for name in keep}
        out.append(row | _compared(pair[0], pair[1], sizes))
    return out


def _compared(a: dict, b: dict, sizes: Sequence[int]) -> dict:
    names = ("difference", "ratio", "noise", "width_ratio", "overlap50", "overlap90")
    if max(a["p_saturated"], b["p_saturated"]) > DESTROYED:
        return dict.fromkeys(names)
    positive = min(a["lower90"], b["lower90"]) > 0
    errors = [math.log(row["upper50"] / row["lower50"]) / math.sqrt(size) if row["lower50"] > 0 else math.inf
              for row, size in zip((a, b), sizes, strict=True)]  # fmt: skip
    widths = [math.log(row["upper90"] / row["lower90"]) for row in (a, b)] if positive else [0.0, 0.0]
    values = (
        b["median"] - a["median"], b["median"] / a["median"] if a["median"] > 0 else None, NOISE * math.hypot(*errors),
        widths[1] / widths[0] if widths[0] > 0 else None,
        *(a[f"lower{mass}"] <= b[f"upper{mass}"] and b[f"lower{mass}"] <= a[f"upper{mass}"] for mass in (50, 90)),
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


def cells(left: Side, right: Side) -> list[dict]:
    """By family and in all: cells of A, of B, in both with the same QiD, and in both with another QiD."""
    counts = {}
    for digits in (DIGITS, None):
        found = [_configurations(side.posterior, digits) for side in (left, right)]
        counts[digits] = found[0] & found[1]
    whole = [_configurations(side.posterior, DIGITS) for side in (left, right)]
    families = sorted({key[0] for held in whole for key in held})
    rows = []
    for family in [*families, None]:
        a, b, same, alike = (sum(n for key, n in held.items() if family in (None, key[0]))
                             for held in (*whole, counts[DIGITS], counts[None]))  # fmt: skip
        rows.append({"family": family or "all", "a_cells": a, "b_cells": b, "shared": same, "changed": alike - same,
                     "only_a": a - alike, "only_b": b - alike})  # fmt: skip
    return rows


def _configurations(posterior: Posterior, digits: int | None) -> Counter:
    found = posterior.cells
    columns = [found[name].to_numpy() for name in CONFIGURATION]
    texts = [[str(value) if column.dtype.kind in "OUS" else f"{value:.12g}" for value in column] for column in columns]
    if digits is not None:
        texts.append([f"{value:.{digits}g}" for value in found["qid"].to_numpy()])
    return Counter(zip(*texts, strict=True))


def families(left: Side, right: Side) -> list[dict]:
    """Every family that either knows at the headline target, whose size, bits and tokens every row has."""
    head = asked.headline(project.rows(left.projection))
    at = {name: head[name] for name in ("params", "tokens", "bits")}
    known = [*_interleaved([(f,) for f in left.posterior.families], [(f,) for f in right.posterior.families]), (None,)]
    rows = []
    for side in (left, right):
        own = [name for (name,) in known if name is None or name in side.posterior.families]
        targets = [t for name in own for t in asking.targets(side.posterior, at["tokens"], at["params"],
                                                             bits=at["bits"], family=name)]  # fmt: skip
        answer = project.rows(project.project(side.posterior, targets, side.projection.attrs["band"]))
        rows.append([row | row["extrapolation"] for row in answer])
    keep = (*project.quantile_names(""), "p_saturated", "n_ratio", "d_ratio", "p_outside")
    a, b = ([{"family": row["family"]} | {n: row[n] for n in keep} for row in found] for found in rows)
    both = merged(a, b, ("family",))
    return [row | at for row in both]


def parameters(left: Side, right: Side) -> list[dict]:
    """Population means, spreads and families of every term that either law has."""
    a, b = (tables.parameters(side.posterior).rows for side in (left, right))
    return merged(a, b, ("term", "scope", "family"))


def effects(left: Side, right: Side) -> list[dict]:
    """Covariates, spreads, generations, scatter and lam of both."""
    a, b = (tables.effects(side.posterior).rows for side in (left, right))
    return merged(a, b, ("kind", "name"))


def checks(left: Side, right: Side) -> list[dict]:
    """The sampler's own checks of both."""
    keep = ("check", "value", "limit", "passed")
    a, b = ([{n: row[n] for n in keep} for row in records.checks(side.posterior).rows] for side in (left, right))
    return merged(a, b, ("check",))


def ranged(posterior: Posterior, column: str) -> str:
    """Smallest and largest count among the fitted cells."""
    values = posterior.cells[column].to_numpy()
    return f"{COUNTED(float(np.nanmin(values)))} to {COUNTED(float(np.nanmax(values)))}"


def _loads(attrs, name: str, instead):
    return json.loads(attrs.get(name) or json.dumps(instead))


def _engine(posterior: Posterior) -> str:
    engine = _loads(posterior.tree.attrs, "engine", {})
    tries = engine.get("tries") or [{}]
    parts = [str(engine.get("engine", "not recorded")), engine.get("backend")]
    if "draws" in tries[-1]:
        parts += [f"{tries[-1]['draws']:,} draws a chain", f"target acceptance {tries[-1]['target_accept']:g}"]
    return ", ".join(str(part) for part in parts if part)


def _source(source: dict) -> str:
    return f"{source.get('name', 'unnamed')}" + (f" ({source['sha256'][:12]})" if "sha256" in source else "")


def _left_out(posterior: Posterior) -> int:
    return sum(sum(by.values()) for by in _loads(posterior.cells.attrs, "excluded", {}).values())


def _priors(posterior: Posterior) -> str:
    given = _loads(posterior.tree.attrs, "priors", {})
    own = {item.name: {key: getattr(item, key) for key in ("mean", "sd", "spread") if hasattr(item, key)}
           for item in (*posterior.law.terms, *posterior.law.covariates, *posterior.law.effects)}  # fmt: skip
    own["scatter"] = {"spread": posterior.law.scatter}
    changed = [f"{name}: {words.spelt(given[name])}" for name in own if given.get(name, own[name]) != own[name]]
    return "; ".join(changed) or "the law's own"


# what is laid side by side, in this order
FACTS: dict[str, Callable[[Posterior], str]] = {
    "SHA-256": lambda p: p.sha256,
    "command": lambda p: str(p.tree.attrs.get("command", "not recorded")),
    "drawn at": lambda p: str(p.tree.attrs.get("created_at", "not recorded")),
    "law": lambda p: f"{p.tree.attrs['law']}: {p.law.formula}",
    "drivers": lambda p: str(p.tree.attrs.get("drivers", "both")),
    "further assumptions": lambda p: p.tree.attrs.get("extras") or "none",
    "model": lambda p: str(p.tree.attrs["model"]),
    "priors": _priors,
    "engine": _engine,
    "seed": lambda p: str(p.tree.attrs.get("seed", "not recorded")),
    "draws read here": lambda p: f"{p.size:,}",
    "versions": lambda p: ", ".join(f"{k} {v}" for k, v in _loads(p.tree.attrs, "versions", {}).items()),
    "cells": lambda p: f"{p.cells.sizes['cell']:,}",
    "of these diverged": lambda p: f"{int(p.cells['censored'].sum()):,}",
    "families": lambda p: ", ".join(p.families),
    "parameters": lambda p: ranged(p, "n_params_nonembedding"),
    "training tokens": lambda p: ranged(p, "train_tokens"),
    "data (SHA-256)": lambda p: ", ".join(map(_source, _loads(p.cells.attrs, "sources", []))) or "not recorded",
    "rows left out before": lambda p: f"{_left_out(p):,}",
}  # fmt: skip


def facts(left: Side, right: Side) -> list[dict]:
    """How each was made, fact by fact, and whether they are the same."""
    rows = [{"fact": "file", "a": left.file, "b": right.file}]
    rows += [{"fact": name, "a": show(left.posterior), "b": show(right.posterior)} for name, show in FACTS.items()]
    return [row | {"same": row["a"] == row["b"]} for row in rows]


