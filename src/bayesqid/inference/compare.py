"""Laws and models compared by how well they predict cells that they were not fitted to.

The score of a fold is its joint log predictive density

    log p(y_held | y_train) = log Z(train and held) - log Z(train),    Z the evidence of the same model of those cells

with everything shared integrated: both come from the fast engine, so each has a known Monte Carlo error.
"""

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bayesqid import cells as cells_module
from bayesqid import files, laws
from bayesqid.errors import BadInput
from bayesqid.inference import checks, hyper, laplace, posterior, sample, scores, splits
from bayesqid.inference.evidence import (
    MOST_FITS,
    Candidate,
    Ledger,
    evidence,
    fingerprint,
    keep,
    log_mean,
    read_ledger,
)
from bayesqid.inference.problem import MODELS, build, part
from bayesqid.inference.splits import Fold

DRAWS = 2000
PARETO_LIMIT = 0.7


def law_of(text: str) -> laws.Law:
    """The law of a text NAME[:DRIVERS][+EXTRA...], e.g. boxcox:phase+student-t; `BadInput` for an unknown part."""
    base, *extras = text.split("+")
    name, _, drivers = base.partition(":")
    return laws.variant(name, drivers or "both", extras)


def law_text(law: laws.Law) -> str:
    """The shortest text that `law_of` turns into this law."""
    return "+".join([law.name + ("" if law.drivers == "both" else f":{law.drivers}"), *law.extras])


def candidates_of(
    cells: xr.Dataset, wanted: Sequence[laws.Law], models: Sequence[str]
) -> tuple[list[Candidate], list[str]]:
    """Every law under every model, and notes on models that these data do not allow.

    Raises `BadInput` for an unknown model.
    """
    cells_module.check(cells)
    for model in models:
        if model not in MODELS:
            raise BadInput(f"There is no model {model!r}: choose one of {', '.join(MODELS)}.")
    fitted = [sample.choose_model(cells, model) for model in models]
    names = list(dict.fromkeys(model for model, _ in fitted))
    data, found = fingerprint(cells), []
    for name, law in {law_text(law): law for law in wanted}.items():
        for model in names:
            identity = json.dumps([data, repr(law), model, version("bayesqid")])
            label = name if len(names) == 1 else f"{name} {model}"
            key = hashlib.sha256(identity.encode()).hexdigest()
            found.append(Candidate(label, law, model, cells, build(cells, law, model), key))
    return found, [note for _, note in fitted if note]


def uses(folds: Sequence[Fold]) -> dict[bytes, int]:
    """How often each set of cells enters the sum of the folds' scores, either way."""
    counts: dict[bytes, int] = {}
    for mask in (mask for fold in folds for mask in (fold.train | fold.held, fold.train)):
        counts[mask.tobytes()] = counts.get(mask.tobytes(), 0) + 1
    return counts


def score(candidate: Candidate, folds: Sequence[Fold], seed: int, ledger: Ledger, bar: tqdm) -> tuple[dict, float]:
    """Joint log predictive density of every fold with its Monte Carlo error and effective draws, and the sum's error.

    A set of cells that several folds share has one error: it enters the sum's once, as often as the set is used.
    """
    counts = uses(folds)
    found: dict[bytes, tuple[float, float, float]] = {}
    net: dict[bytes, int] = {}
    columns: dict[str, list[float]] = {"lpd": [], "lpd_error": [], "ess": []}
    for fold in folds:
        for sign, mask in ((1, fold.train | fold.held), (-1, fold.train)):
            name = mask.tobytes()
            if name not in found:
                found[name] = evidence(candidate, mask, seed, counts[name], ledger, bar)
            net[name] = net.get(name, 0) + sign
        whole, part = found[(fold.train | fold.held).tobytes()], found[fold.train.tobytes()]
        columns["lpd"].append(whole[0] - part[0])
        columns["lpd_error"].append(math.hypot(whole[1], part[1]))
        columns["ess"].append(min(whole[2], part[2]))
    return columns, math.sqrt(sum((net[name] * found[name][1]) ** 2 for name in net))


def left_out(candidate: Candidate, cell: int, seed: int, ledger: Ledger) -> dict:
    """Log predictive density of one cell under the posterior of all others, averaged over its draws."""
    alone = np.arange(candidate.cells.sizes["cell"]) == cell
    key = hashlib.sha256(json.dumps([candidate.key, seed, DRAWS, "without", cell]).encode()).hexdigest()
    if key in ledger.known:
        return ledger.known[key]
    found = laplace.fit(part(candidate.problem, ~alone), DRAWS, seed)
    natural = hyper.unpack(candidate.problem, found.phi[None])
    density = posterior.pointwise(part(candidate.problem, alone), found.b[None], natural)[0].ravel()
    lpd, error = log_mean(density.astype(float), found.ess)
    return keep(ledger, key, {"candidate": candidate.label, "left_out": cell, "lpd": lpd, "lpd_error": error,
                              "ess": found.ess})  # fmt: skip


def refit(candidate: Candidate, cell: int, seed: int, ledger: Ledger) -> dict[str, float]:
    """`left_out` averaged over as many fits as its effective draws need to pass the limit of the checks."""
    rows: list[dict] = []
    while len(rows) < MOST_FITS and sum(row["ess"] for row in rows) <= checks.FAST_LIMITS["importance_ess"]:
        rows.append(left_out(candidate, cell, seed + len(rows), ledger))
    logs = np.array([row["lpd"] for row in rows])
    density = np.exp(logs - logs.max())
    error = density / density.sum() * [row["lpd_error"] for row in rows]
    return {"lpd": float(logs.max() + np.log(density.mean())), "lpd_error": float(np.sqrt((error**2).sum())),
            "ess": float(sum(row["ess"] for row in rows))}  # fmt: skip


def loo(candidate: Candidate, tree: xr.DataTree, seed: int, ledger: Ledger, bar: tqdm) -> tuple[dict, float]:
    """Leave-one-cell-out by PSIS on the marginal log likelihood; cells of Pareto k above the limit are refitted."""
    from arviz_stats.loo import loo as psis

    ess = float(json.loads(tree.attrs["engine"])["importance_ess"])
    density = tree["log_likelihood"].to_dataset()["qid"].astype(float)
    size = density.sizes["chain"] * density.sizes["draw"]
    with warnings.catch_warnings():
        # of cells with a high Pareto k, which are dealt with here
        warnings.simplefilter("ignore", UserWarning)
        found: Any = psis(tree, pointwise=True, var_name="qid", reff=min(1.0, ess / size))
    k = np.asarray(found.pareto_k, dtype=float)
    logs = density.to_numpy().reshape(size, -1)
    columns = {"lpd": np.asarray(found.elpd_i, dtype=float).copy(), "pareto_k": k,
               "lpd_error": np.array([log_mean(-column, ess)[1] for column in logs.T]),
               "ess": np.full(k.size, ess), "refitted": ~(k <= PARETO_LIMIT)}  # fmt: skip
    again = np.flatnonzero(columns["refitted"])
    bar.total += again.size
    for cell in again:
        row = refit(candidate, int(cell), seed, ledger)
        for name in ("lpd", "lpd_error", "ess"):
            columns[name][cell] = row[name]
        bar.update()
    return columns, float(np.sqrt(np.sum(columns["lpd_error"] ** 2)))


def component(candidate: Candidate, seed: int, folder: Path | None) -> xr.DataTree:
    """The fast engine's posterior of all cells; one that an earlier run wrote into the folder is read."""
    path = None if folder is None else folder / f"{candidate.label.replace(' ', '-').replace(':', '-')}.nc"
    key = hashlib.sha256(json.dumps([candidate.key, seed, DRAWS]).encode()).hexdigest()
    if path is not None and path.is_file():
        tree = files.open_tree(path)
        if tree.attrs.get("comparison_key") == key:
            return tree
    tree = sample.sample(candidate.cells, candidate.law, candidate.model, "laplace", seed, 1, DRAWS)
    tree.attrs["comparison_key"] = key
    if path is not None:
        files.write_netcdf(tree, path)
    return tree


def plan(
    cells: xr.Dataset, names: Sequence[str] | None, cuts: Mapping[str, float]
) -> tuple[dict[str, list[Fold]], dict[str, str]]:
    """Folds by split, and why splits are not possible; `BadInput` where such a one was asked for by name."""
    found, refused = {}, {}
    for name in cuts:
        if names is not None and name not in names:
            raise BadInput(f"--{name}-from says where the split {name} is cut, which is not among --splits: add it.")
    for name in list(splits.SPLITS) if names is None else splits.require(list(names)):
        try:
            found[name] = splits.folds_of(cells, name, cuts)
        except BadInput as why:
            if names is not None or name in cuts:
                raise
            refused[name] = str(why)
    return found, refused


def assemble(
    cells: xr.Dataset, candidates: Sequence[Candidate], chosen: Mapping[str, list[Fold]],
    tables: Mapping[str, Mapping[str, tuple[dict, float]]],
) -> xr.Dataset:  # fmt: skip
    """The scores of all folds of all splits under their names, summarised by split."""
    labels = [one.label for one in candidates]
    size, text = cells.sizes["cell"], {name: cells[name].to_numpy().astype(str) for name in ("checkpoint", "quantizer")}
    bits = cells["bits"].to_numpy()
    of, names, counts = [], [], []
    for name, folds in chosen.items():
        rows = [(fold.name, int(fold.held.sum())) for fold in folds] or [
            (f"{text['checkpoint'][i]} {text['quantizer'][i]} {bits[i]:g}", 1) for i in range(size)
        ]
        of += [name] * len(rows)
        names += [row[0] for row in rows]
        counts += [row[1] for row in rows]

    def column(key: str, absent: float) -> tuple:
        values = [
            np.concatenate([np.asarray(tables[label][name][0].get(key, np.full(of.count(name), absent)), dtype=float)
                            for name in chosen])
            for label in labels
        ]  # fmt: skip
        return ("candidate", "fold"), np.array(values)

    data = {key: column(key, np.nan) for key in ("lpd", "lpd_error", "ess", "pareto_k")}
    data["refitted"] = (("candidate", "fold"), column("refitted", 0.0)[1].astype(bool))
    coords = {"candidate": np.array(labels, dtype=object), "fold_split": ("fold", np.array(of, dtype=object)),
              "fold_name": ("fold", np.array(names, dtype=object)), "cells": ("fold", np.array(counts))}  # fmt: skip
    error = xr.DataArray([[tables[label][name][1] for label in labels] for name in chosen],
                         {"split": list(chosen), "candidate": labels}, ("split", "candidate"))  # fmt: skip
    return scores.summarise(xr.Dataset(data, coords), error)


def cuts_of(cells: xr.Dataset, chosen: Mapping[str, list[Fold]], cuts: Mapping[str, float]) -> dict[str, float]:
    """The values from which `future` and `largest` predict: those asked for, else the least that is predicted."""
    found = {}
    for name, folds in chosen.items():
        column = splits.SPLITS[name].column
        if column is not None:
            held = np.any([fold.held for fold in folds], axis=0)
            found[name] = float(cuts.get(name, cells[column].to_numpy()[held].min()))
    return found


def compare(
    cells: xr.Dataset, wanted: Sequence[laws.Law], models: Sequence[str] = ("hierarchical",),
    names: Sequence[str] | None = None, cuts: Mapping[str, float] | None = None, seed: int = 0,
    folder: Path | None = None,
) -> tuple[xr.Dataset, dict[str, xr.DataTree]]:  # fmt: skip
    """Scores of every law under every model in every split, and the posterior of each from all cells.

    `names` are splits (None: all that these data allow), `cuts` the values from which `future` and `largest` predict.
    The Dataset has dims candidate, fold (folds of all splits, with coordinates fold_split, fold_name and cells) and
    split: lpd and lpd_error (nats), pareto_k, refitted, ess; total, difference, difference_se, weight and their Monte
    Carlo errors. With a `folder` every finished fit and posterior is kept there and found again by a later run of the
    same cells, law, model and seed. Raises `BadInput` for what cannot be compared.
    """
    cuts = cuts or {}
    candidates, notes = candidates_of(cells, wanted, models)
    chosen, refused = plan(cells, names, cuts)
    if not chosen:
        raise BadInput("No split is possible with these data: give more data.")
    ledger, count = read_ledger(folder), len(candidates)
    fits = sum(len(uses(folds)) for folds in chosen.values())
    tables: dict[str, dict[str, tuple[dict, float]]] = {}
    trees: dict[str, xr.DataTree] = {}
    pace = 0.5 if sys.stderr.isatty() else 30.0
    with threadpool_limits(1), tqdm(total=count * (fits + 1), desc="fits", mininterval=pace, file=sys.stderr) as bar:
        for one in candidates:
            trees[one.label] = component(one, seed, folder)
            bar.update()
            tables[one.label] = {
                name: score(one, folds, seed, ledger, bar) if folds else loo(one, trees[one.label], seed, ledger, bar)
                for name, folds in chosen.items()
            }
    found = assemble(cells, candidates, chosen, tables)
    posterior_checks = [all(json.loads(tree.attrs["checks"]).values()) for tree in trees.values()]
    enough = bool((found["ess"] > checks.FAST_LIMITS["importance_ess"]).all())
    found.attrs = {
        "schema": scores.SCHEMA, "seed": seed, "cuts": json.dumps(cuts_of(cells, chosen, cuts)),
        "checks": json.dumps({"importance_ess_of_folds": enough, "posteriors": all(posterior_checks)}),
        "candidates": json.dumps({c.label: {"law": c.law.name, "model": c.model} for c in candidates}),
        "data": json.dumps({"sha256": fingerprint(cells), "cells": cells.sizes["cell"]}),
        "not_possible": json.dumps(refused), "notes": json.dumps(notes), "version": version("bayesqid"),
    }  # fmt: skip
    return found, trees
