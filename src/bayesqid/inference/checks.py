"""Named checks of a run: what must hold before its draws are believed."""

import warnings

import numpy as np
import xarray as xr

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
