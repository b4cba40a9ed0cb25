"""Named checks of a run: what must hold before its draws are believed; and what more can be said of the fit."""

import json
import warnings
from typing import Any

import numpy as np
import xarray as xr

from bayesqid.inference.problem import Problem

LIMITS = {"divergences": 0, "rhat": 1.01, "ess_bulk": 400, "ess_tail": 400, "ebfmi": 0.3}
# effective importance draws, below which the fast engine's own check fails
FAST_LIMITS = {"importance_ess": 100}


def worst(free: xr.Dataset, stats: xr.Dataset) -> dict[str, float]:
    """The worst value of each diagnostic over every free parameter (`free`: dims chain, draw, ...)."""
    from arviz_stats.sampling_diagnostics import bfmi, ess, rhat

    def extreme(values: xr.Dataset, take) -> float:
        flat = np.concatenate([np.atleast_1d(v.to_numpy()).ravel() for v in values.data_vars.values()])
        return float(take(flat))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "divergences": float(stats["diverging"].sum()),
            "rhat": extreme(rhat(free), np.max),
            "ess_bulk": extreme(ess(free, method="bulk"), np.min),
            "ess_tail": extreme(ess(free, method="tail"), np.min),
            "ebfmi": float(np.min(bfmi(xr.DataTree.from_dict({"sample_stats": stats})).to_dataset()["energy"])),
        }


def passed(values: dict[str, float]) -> dict[str, bool]:
    """Which checks hold; a diagnostic that is not a number fails."""
    return {
        "divergences": values["divergences"] <= LIMITS["divergences"],
        "rhat": values["rhat"] < LIMITS["rhat"],
        "ess_bulk": values["ess_bulk"] > LIMITS["ess_bulk"],
        "ess_tail": values["ess_tail"] > LIMITS["ess_tail"],
        "ebfmi": values["ebfmi"] > LIMITS["ebfmi"],
    }


def diagnose(problem: Problem, tree: xr.DataTree) -> dict:
    """Posterior predictive checks by bits, family and generation of a posterior of `problem`, rounded, JSON-able.

    These describe the fit; unlike the named checks none of them fails a run.
    """
    from bayesqid.inference import predictive

    return rounded(predictive.check(problem, tree))


def rounded(value, digits: int = 4) -> Any:
    """The same nested lists and dicts with floats of so many significant digits and None for what is no number."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return value


def record(tree: xr.DataTree, sensitivity: dict | None = None) -> dict:
    """What stands in the checks file beside a posterior: one JSON-able object without NaN.

    Keys: schema, law, model, seed, created_at; checks and their limits; engine (diagnostics of every try); diagnosis
    (`diagnose`); sensitivity of the projection where the caller computed it.
    """
    attrs = tree.attrs
    decoded = {
        "checks": json.loads(attrs["checks"]), "limits": json.loads(attrs["check_limits"]),
        "engine": json.loads(attrs["engine"]), "diagnosis": json.loads(attrs.get("diagnosis", "null")),
    }  # fmt: skip
    plain = {name: attrs[name] for name in ("law", "model", "seed", "created_at", "warning") if name in attrs}
    whole = {"schema": "bayesqid-checks/1"} | plain | {"passed": all(decoded["checks"].values())} | decoded
    return rounded(whole | {"sensitivity": sensitivity}, 6)
