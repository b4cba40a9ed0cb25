"""Scores of folds made comparable: totals, differences with their errors, stacking weights."""

import json
import textwrap

import numpy as np
import xarray as xr

from bayesqid.inference import checks
from bayesqid.inference.splits import SPLITS

SCHEMA = "bayesqid-comparison/1"
# below this many folds a standard error over folds is itself hardly known
FEW_FOLDS = 5
STACK_STEPS = 200_000
STACK_GAP = 1e-6


def stack(lpd: np.ndarray) -> np.ndarray:
    """Stacking weights w, shape (candidate,), of log predictive densities (candidate, fold).

    They maximise sum_f log sum_k w_k exp(lpd_kf) over the simplex (Yao et al. 2018, Bayesian Analysis 13). The
    objective is concave; expectation maximisation raises it at every step, and stops where the mean over folds lies
    within `STACK_GAP` of the maximum: with g_k the mean of exp(lpd_kf) / sum_j w_j exp(lpd_jf) the maximum is at most
    max_k g_k - 1 away.
    """
    density = np.exp(lpd - lpd.max(axis=0))
    weights = np.full(len(lpd), 1 / len(lpd))
    for _ in range(STACK_STEPS):
        gain = (density / (weights @ density)).mean(axis=1)
        if gain.max() - 1 < STACK_GAP:
            break
        weights = weights * gain
    return weights / weights.sum()


def difference(lpd: np.ndarray, best: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum over folds of lpd minus that of candidate `best`, and its standard error sqrt(F) sd over the F folds."""
    gap = lpd - lpd[best]
    folds = gap.shape[1]
    return gap.sum(axis=1), np.sqrt(folds) * gap.std(axis=1, ddof=1)


def summarise(folds: xr.Dataset, total_error: xr.DataArray) -> xr.Dataset:
    """The scores with dim `split` added: total, difference to the best, its standard and Monte Carlo error, weight.

    `folds` has lpd over (candidate, fold) and the coordinate split over fold; `total_error` the Monte Carlo standard
    error of the totals over (candidate, split).
    """
    names = [str(name) for name in total_error["split"].values]
    columns: dict[str, list] = {"total": [], "difference": [], "difference_se": [], "difference_error": [],
                                "weight": []}  # fmt: skip
    for name in names:
        lpd = folds["lpd"].to_numpy()[:, folds["fold_split"].to_numpy() == name]
        total, error = lpd.sum(axis=1), total_error.sel(split=name).to_numpy()
        best = int(np.argmax(total))
        gap, se = difference(lpd, best)
        # the best one's difference to itself is exactly zero
        monte_carlo = np.where(np.arange(len(total)) == best, 0.0, np.hypot(error, error[best]))
        for key, value in zip(columns, (total, gap, se, monte_carlo, stack(lpd)), strict=True):
            columns[key].append(value)
    added = {key: (("split", "candidate"), np.array(value)) for key, value in columns.items()}
    return folds.assign(added).assign(total_error=total_error).assign_coords(split=names)


def weights(scores: xr.Dataset) -> dict[str, dict[str, float]]:
    """Stacking weights of the candidates by split."""
    candidates = [str(name) for name in scores["candidate"].values]
    return {
        str(name): {label: float(scores["weight"].sel(split=name, candidate=label)) for label in candidates}
        for name in scores["split"].values
    }


def as_json(scores: xr.Dataset) -> dict:
    """The comparison as one object without NaN: by split its question, folds and candidates."""
    attrs = scores.attrs
    out = {name: json.loads(attrs[name]) for name in ("data", "candidates", "checks", "not_possible", "notes")}
    ess, limit = scores["ess"].to_numpy(), checks.FAST_LIMITS["importance_ess"]
    out["folds_of_few_draws"] = {"count": int((ess <= limit).sum()), "of": ess.size, "worst": float(ess.min()),
                                 "limit": limit}  # fmt: skip
    out |= {"seed": int(attrs["seed"]), "splits": {}}
    candidates = [str(name) for name in scores["candidate"].values]
    for name in map(str, scores["split"].values):
        one, folds = scores.sel(split=name), scores.isel(fold=scores["fold_split"].to_numpy() == name)
        entry: dict = {"title": SPLITS[name].title, "question": SPLITS[name].question, "folds": folds.sizes["fold"],
                       "held_cells": int(folds["cells"].sum()), "cut": json.loads(attrs["cuts"]).get(name)}  # fmt: skip
        entry["candidates"] = {
            label: {
                "lpd": float(one["total"].sel(candidate=label)),
                "lpd_monte_carlo_error": float(one["total_error"].sel(candidate=label)),
                "difference": float(one["difference"].sel(candidate=label)),
                "standard_error": float(one["difference_se"].sel(candidate=label)),
                "monte_carlo_error": float(one["difference_error"].sel(candidate=label)),
                "weight": float(one["weight"].sel(candidate=label)),
                "refitted_cells": int(folds["refitted"].sel(candidate=label).sum()),
            }
            for label in candidates
        }
        if name != "loo":
            entry["scores"] = [
                {"fold": str(fold["fold_name"].item()), "cells": int(fold["cells"]),
                 "lpd": {label: float(fold["lpd"].sel(candidate=label)) for label in candidates}}
                for fold in (folds.isel(fold=i) for i in range(folds.sizes["fold"]))
            ]  # fmt: skip
        out["splits"][name] = entry
    return out


def split_lines(name: str, entry: dict) -> list[str]:
    """One split for a terminal of 80 columns: its question, then a row per candidate, best first."""
    kind = "cells" if name == "loo" else "folds"
    held = "" if name == "loo" else f", {entry['held_cells']} cells predicted"
    cut = "" if entry["cut"] is None else f" (from {entry['cut']:.4g})"
    lines = [*textwrap.wrap(f"{entry['title']}{cut}: {entry['question']}", 80), f"{entry['folds']} {kind}{held}."]
    if entry["folds"] < FEW_FOLDS:
        lines += textwrap.wrap(f"Fewer than {FEW_FOLDS} folds: the standard error is hardly known, and the weights "
                               "follow single folds.", 80)  # fmt: skip
    refitted = {label: one["refitted_cells"] for label, one in entry["candidates"].items() if one["refitted_cells"]}
    if refitted:
        told = ", ".join(f"{label} {count}" for label, count in refitted.items())
        lines += textwrap.wrap(f"Refitted without the cell, because Pareto k is above 0.7: {told}.", 80)
    lines.append(f"{'':<24}{'lpd':>11}{'difference':>12}{'s.e.':>9}{'MC error':>10}{'weight':>9}")
    for label, one in sorted(entry["candidates"].items(), key=lambda item: -item[1]["lpd"]):
        lines.append(
            f"{label[:23]:<24}{one['lpd']:>11.1f}{one['difference']:>12.1f}{one['standard_error']:>9.1f}"
            f"{one['monte_carlo_error']:>10.2f}{one['weight']:>9.2f}"
        )
    return lines


def as_text(scores: xr.Dataset) -> str:
    """The comparison for a terminal of 80 columns, failed checks first."""
    out = as_json(scores)
    failed = [name for name, good in out["checks"].items() if not good]
    lines = [f"Checks failed: {', '.join(failed)}."] if failed else ["All checks passed."]
    few = out["folds_of_few_draws"]
    if few["count"]:
        lines += textwrap.wrap(
            f"{few['count']} of {few['of']} scores of folds rest on fewer effective importance draws than "
            f"{few['limit']}, the worst on {few['worst']:.0f}: their own Monte Carlo errors are hardly known.",
            80,
        )
    for note in out["notes"]:
        lines += textwrap.wrap(note, 80)
    lines += textwrap.wrap(
        "lpd: joint log predictive density of the folds, summed, in nats; difference: to the best; s.e.: of the "
        "difference over folds; MC error: what the fits' own randomness adds; weight: stacking.", 80)  # fmt: skip
    for name, entry in out["splits"].items():
        lines += ["", *split_lines(name, entry)]
    for reason in out["not_possible"].values():
        lines += ["", *textwrap.wrap(reason, 80)]
    return "\n".join(lines)
