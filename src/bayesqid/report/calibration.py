"""How well the fit covers its own cells: predictive rows, coverage, probability integral transforms, left-out ones."""

import json
from functools import lru_cache

import numpy as np

from bayesqid.answers import draws, reweighting
from bayesqid.answers.draws import Posterior
from bayesqid.report.blocks import Column, Table, share
from bayesqid.report.tables import CENTRAL, FAMILY

SEED = 20260
DIVERGED = np.log(10.0)
SIMULATIONS = 2000
MASS = 0.9


def predictive(posterior: Posterior) -> list[dict]:
    """Every measured cell beside its posterior predictive distribution; `pit` is the share of draws below it."""
    cells = posterior.cells
    drawn = draws.flatten(posterior.tree["posterior_predictive"].to_dataset())["qid"].to_numpy()
    quantiles = CENTRAL | {"median": 0.5}
    limits = dict(zip(quantiles, np.quantile(drawn, list(quantiles.values()), axis=0), strict=True))
    qid = cells["qid"].to_numpy()
    columns = {name: cells[name].to_numpy().astype(str) for name in ("family", "checkpoint", "quantizer")}
    columns |= {name: cells[name].to_numpy() for name in ("bits", "effective_bits", "train_tokens")}
    columns |= {"params": cells["n_params_nonembedding"].to_numpy(), "qid": qid, **limits}
    columns |= {"pit": (drawn <= qid).mean(axis=0), "p_diverged": (drawn > DIVERGED).mean(axis=0),
                "diverged": cells["censored"].to_numpy().astype(bool)}  # fmt: skip
    plain = [values.tolist() for values in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*plain, strict=True)]


def coverage(rows: list[dict]) -> Table:
    """Share of measured cells inside their 50 % and 90 % posterior predictive intervals, by family and bits."""
    measured = [row for row in rows if not row["diverged"]]
    families = sorted({row["family"] for row in measured})
    widths = sorted({round(row["effective_bits"]) for row in measured})
    groups = [("all", None, None)]
    groups += [("bits", None, bits) for bits in widths]
    groups += [("family", family, None) for family in families]
    groups += [("family and bits", family, bits) for family in families for bits in widths]
    out = []
    for kind, family, bits in groups:
        own = [row for row in measured
               if family in (None, row["family"]) and bits in (None, round(row["effective_bits"]))]  # fmt: skip
        if own:
            inside = {
                f"coverage{mass}": float(
                    np.mean([row[f"lower{mass}"] <= row["qid"] <= row[f"upper{mass}"] for row in own])
                )
                for mass in (50, 90)
            }
            out.append({"group": kind, "family": family or "all", "bits": bits, "cells": len(own)} | inside)
    columns = (
        FAMILY,
        Column("bits, rounded", lambda row: "all" if row["bits"] is None else str(row["bits"])),
        Column("measured cells", lambda row: f"{row['cells']:,}"),
        Column("inside 50 % ETI", lambda row: share(row["coverage50"])),
        Column("inside 90 % ETI", lambda row: share(row["coverage90"])),
    )
    note = (
        "Intervals are equal-tailed posterior predictive ones, scatter and evaluation error included. The same cells "
        "were fitted, so this checks the shape of the model and not its predictions for new ones."
    )
    return Table("coverage", "Coverage of the measured cells", columns, out, note, grouped=True)


def transforms(posterior: Posterior) -> dict[str, np.ndarray]:
    """Probability integral transforms of all cells by posterior predictive draws, each (cell,).

    `fitted`: share of draws below the cell; `left out`: of draws weighted as if the cell had not been fitted
    (Pareto-smoothed), absent in a file without the likelihood of its draws. A diverged cell is known only to lie above
    ln 10 and gets a point drawn uniformly from the tail above it: to leave such cells out would cut that tail off.
    """
    tree, cells = posterior.tree, posterior.cells
    drawn = draws.flatten(tree["posterior_predictive"].to_dataset())["qid"].to_numpy()
    gone = cells["censored"].to_numpy().astype(bool)
    below = drawn <= np.where(gone, DIVERGED, cells["qid"].to_numpy())
    rng = np.random.default_rng(SEED)
    tail, step = rng.uniform(size=gone.size), rng.uniform(size=gone.size)
    # a point within the step of the ranks: ranks alone pile up
    same = np.full(drawn.shape, 1 / len(drawn))
    out = {"fitted": _placed(below, same, gone, tail, step)}
    weights = _left_out(posterior)
    return out if weights is None else out | {"left out": _placed(below, weights, gone, tail, step)}


def _placed(below: np.ndarray, weights: np.ndarray, gone: np.ndarray, tail: np.ndarray, step: np.ndarray) -> np.ndarray:
    size = 1 / (weights**2).sum(axis=0)
    value = ((weights * below).sum(axis=0) * size + step) / (size + 1)
    return np.where(gone, value + tail * (1 - value), value)


def _left_out(posterior: Posterior) -> np.ndarray | None:
    """Leave-one-out weights (draw, cell) of the posterior predictive draws; None where the file cannot tell them."""
    if "log_likelihood" not in posterior.tree.children:
        return None
    density = posterior.tree["log_likelihood"].to_dataset()["qid"].transpose("chain", "draw", "cell").to_numpy()
    wanted = posterior.tree["posterior_predictive"].sizes["draw"]
    # predictive draws are every so many of all: the only number of steps that leaves as many
    strides = [k for k in range(1, density.shape[1] + 1) if -(-density.shape[1] // k) == wanted]
    if len(strides) != 1:
        return None
    log = -density[:, :: strides[0]].reshape(-1, density.shape[2]).astype(float)
    return np.stack([reweighting.smoothed(log[:, cell])[0] for cell in range(log.shape[1])], axis=1)


def ecdf(values: np.ndarray) -> list[dict]:
    """Empirical distribution function less that of a uniform distribution, with its simultaneous 90 % band (`band`)."""
    n = values.size
    z, low, high = band(n)
    seen = np.searchsorted(np.sort(values), z, side="right")
    return [{"z": float(a), "difference": float(b / n - a), "lower": float(c / n - a), "upper": float(d / n - a)}
            for a, b, c, d in zip(z, seen, low, high, strict=True)]  # fmt: skip


@lru_cache(maxsize=8)
def band(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points z, and the fewest and most of n uniform values below each of them, simultaneously with 90 %.

    At points z the count of n uniform values below z is Binomial(n, z); the band is the pointwise central interval of
    the level at which 90 % of simulated uniform samples stay inside at all points (Säilynoja, Bürkner and Vehtari
    2022).
    """
    from scipy.special import bdtr

    points = min(n, 100)
    z = np.arange(1, points) / points
    rng = np.random.default_rng(SEED)
    counts = np.cumsum(rng.multinomial(n, np.full(points, 1 / points), size=SIMULATIONS), axis=1)[:, :-1]
    below = bdtr(np.arange(n + 1)[:, None], n, z)
    above = 1 - np.vstack([np.zeros((1, z.size)), below[:-1]])
    tails = np.minimum(below, above)
    inside = tails >= np.quantile(tails[counts, np.arange(z.size)].min(axis=1), 1 - MASS)
    return z, inside.argmax(axis=0), n - inside[::-1].argmax(axis=0)


def groups(posterior: Posterior) -> list[dict]:
    """Coverage of the groups of at least ten cells in the stored diagnosis, fitted and left out; may be empty."""
    found = json.loads(posterior.tree.attrs.get("diagnosis", "{}"))
    rows = []
    for row in found.get("groups", []):
        if row["by"] == "all" or row["cells"] >= 10:
            label = f"{row['level']} bits" if row["by"] == "bits" else row["level"]
            keep = {name: row.get(name) for name in ("coverage50", "coverage90", "loo_coverage50", "loo_coverage90")}
            rows.append({"by": row["by"], "group": label, "cells": row["cells"]} | keep | chances(row["cells"]))
    return rows


def chances(cells: int) -> dict[str, float]:
    """Central 90 % range of the share of cells inside their 50 % and 90 % intervals, were those exact (binomial)."""
    from scipy.special import bdtr

    count = np.arange(cells + 1)
    return {f"{name}{mass}": float(np.searchsorted(bdtr(count, cells, mass / 100), q) / cells)
            for mass in (50, 90) for name, q in (("least", 0.05), ("most", 0.95))}  # fmt: skip
