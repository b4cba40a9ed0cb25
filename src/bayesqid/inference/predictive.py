"""Posterior predictive checks: do the fitted cells look like draws from the fitted model, group by group?

Everything rests on one number per cell and draw, the predictive distribution function at the observed value. Given
the coefficients, v = eta + tau e with e the scatter and y ~ Normal(saturate(e^v, L), s), so

    F(y | eta, tau) = E_u[G((ln unsaturate(y - s u, L) - eta) / tau)]     u ~ Normal(0, 1)
                    = E_e[Phi((y - saturate(exp(eta + tau e), L)) / s)]   e ~ G

with G the distribution function of the scatter. The first form is smooth in u where evaluation error is small beside
the scatter, the second where it is not; each cell takes the one that is smooth for it.
"""

from functools import lru_cache

import numpy as np
import xarray as xr
from scipy.special import bdtr, chdtrc, ndtr, ndtri

from bayesqid import laws, likelihood
from bayesqid.inference.problem import Problem

DRAWS = 1000
SEED = 20261
GROUPS = {"bits": "bits", "family": "family", "generation": "generation"}
# a two-sided tail area of 1 % in each of the two tests of a group
SURPRISING = 0.005
SIMULATIONS = 2000
# normal scores of a distribution function that is 0 or 1 in double precision
# nats: spread of a cell's log density over draws below which all draws say the same of it
SAME = 1e-4
EDGE = 1e-15


def thin(sample: xr.Dataset, draws: int) -> xr.Dataset:
    """At most `draws` evenly spaced draws under one dim `draw`, whatever chains there were."""
    flat = sample.stack(all=("chain", "draw")).drop_vars(["all", "chain", "draw"]).rename(all="draw")
    total = flat.sizes["draw"]
    pick = np.linspace(0, total - 1, min(draws, total)).round().astype(int)
    return flat.isel(draw=pick).transpose("draw", ...)


def eta(problem: Problem, sample: xr.Dataset) -> np.ndarray:
    """ln QiD of the law with all effects for every fitted cell, (draw, cell), from the named draws of a posterior."""
    cells, law = problem.cells, problem.law
    columns = {name: cells[name].to_numpy() for name in (*cells.coords, *cells.data_vars)}
    columns |= laws.crossed(columns)
    lam = sample["lam"].to_numpy().astype(float)[:, None]
    if "undisclosed_tokens" in sample:
        drawn = sample["undisclosed_tokens"].transpose("draw", "undisclosed").to_numpy()
        latent, checkpoint = sample["undisclosed"].to_numpy().astype(str), columns["checkpoint"].astype(str)
        number = np.searchsorted(latent, checkpoint).clip(max=latent.size - 1)
        columns["train_tokens"] = np.where(latent[number] == checkpoint, drawn[:, number], columns["train_tokens"])
    out = np.zeros((lam.size, cells.sizes["cell"]))

    def levels(values: xr.DataArray, by: str) -> np.ndarray:
        order = values[by].to_numpy().astype(str)
        place = np.argsort(order)[np.searchsorted(np.sort(order), columns[by].astype(str))]
        return values.transpose("draw", by).to_numpy().astype(float)[:, place]

    for term in law.terms:
        own = levels(sample["theta"].sel(term=term.name), "family")
        out += own * laws.factor(term.factor, columns, lam)  # type: ignore[arg-type]
    for covariate in law.covariates:
        value = sample["covariate"].sel(covariate_name=covariate.name).to_numpy().astype(float)[:, None]
        out += value * laws.factor(covariate.factor, columns, lam)  # type: ignore[arg-type]
    for effect in law.effects:
        out += levels(sample[effect.name], effect.by) * laws.factor(effect.factor, columns, lam)  # type: ignore[arg-type]
    return out


def nodes(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (summing to one) of E[f(u)], u standard normal, for a bounded f: Gauss-Legendre in Phi(u)."""
    point, weight = np.polynomial.legendre.leggauss(count)
    return ndtri((point + 1) / 2), weight / 2


def scatter_cdf(x: np.ndarray, tails: str) -> np.ndarray:
    """Distribution function of the scatter at x, a mixture of normals."""
    out = np.zeros_like(x)
    for scale, weight in zip(*likelihood.TAILS[tails], strict=True):
        out += weight * ndtr(x / scale)
    return out


def cdf(y, s, headroom, eta, tau, tails: str = "normal") -> np.ndarray:
    """P(replicated QiD <= y | draw); y, s, headroom (cell,), eta, tau (draw, cell), nats per token."""
    typical = np.median(eta, axis=0)
    raw = np.exp(np.minimum(typical, likelihood.HIGHEST))
    sharp = s < raw * np.exp(-raw / headroom) * np.median(tau, axis=0)
    out = np.zeros_like(eta)
    a, b = np.flatnonzero(sharp), np.flatnonzero(~sharp)
    for u, weight in zip(*nodes(), strict=True):
        shifted = y[a] - s[a] * u
        inside = (shifted > 0) & (shifted < headroom[a])
        v = np.where(shifted > 0, np.inf, -np.inf)
        v[inside] = np.log(likelihood.unsaturate(shifted[inside], headroom[a][inside]))
        out[:, a] += weight * scatter_cdf((v - eta[:, a]) / tau[:, a], tails)
        for scale, share in zip(*likelihood.TAILS[tails], strict=True):
            v = np.minimum(eta[:, b] + tau[:, b] * scale * u, likelihood.HIGHEST)
            out[:, b] += weight * share * ndtr((y[b] - likelihood.saturate(np.exp(v), headroom[b])) / s[b])
    return out


def pit(problem: Problem, sample: xr.Dataset, seed: int = SEED) -> np.ndarray:
    """F(observed | draw) of every cell, (draw, cell).

    A diverged cell is known only to lie above its censoring point: it gets a point drawn uniformly from that tail,
    the same in all draws. To leave such cells out would cut the upper tail off.
    """
    cells, tails = problem.cells, problem.law.tails
    where = eta(problem, sample)
    generation = np.argsort(order := sample["generation"].to_numpy().astype(str))
    place = generation[np.searchsorted(np.sort(order), cells["generation"].to_numpy().astype(str))]
    tau = sample["tau"].transpose("draw", "generation").to_numpy().astype(float)[:, place]
    y, s, headroom = (cells[name].to_numpy().astype(float) for name in ("qid", "qid_se", "headroom"))
    gone = cells["censored"].to_numpy().astype(bool)
    out = np.empty_like(where)
    seen = ~gone
    out[:, seen] = cdf(y[seen], s[seen], headroom[seen], where[:, seen], tau[:, seen], tails)
    below = scatter_cdf((likelihood.censoring_point(headroom[gone]) - where[:, gone]) / tau[:, gone], tails)
    out[:, gone] = below + np.random.default_rng(seed).uniform(size=gone.sum()) * (1 - below)
    return np.clip(out, EDGE, 1 - 1e-15)


def loo_weights(log_likelihood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed leave-one-out weights (draw, cell), summing to one over draws, and Pareto k (cell,).

    `log_likelihood` (draw, cell) has the scatter integrated out: given v the weights would be useless.
    """
    from arviz_stats.base.array import array_stats

    values = log_likelihood.T.astype(float)
    log_weights, k = -values, np.zeros(len(values))
    for cell in np.flatnonzero(np.ptp(values, axis=1) > SAME):
        try:
            log_weights[cell], k[cell] = array_stats.psislw(values[cell], r_eff=1, axis=-1)
        except ValueError:
            k[cell] = np.nan
    # copies of one draw fill the tail, where the draws came by importance sampling: not to be trusted
    k[np.isnan(k)] = np.inf
    weights = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True)).T
    return weights / weights.sum(axis=0), k


def k_limit(draws: int) -> float:
    """Pareto k above which weighted means of so many draws are not to be trusted, min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / np.log10(draws), 0.7)


@lru_cache(maxsize=64)
def _band(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points z, two-sided tail areas (count, point) of Binomial(n, z), and the sorted statistic of uniform samples."""
    cells = min(n, 100)
    z = np.arange(1, cells) / cells
    below = bdtr(np.arange(n + 1)[:, None], n, z)
    above = 1 - np.vstack([np.zeros((1, z.size)), below[:-1]])
    areas = np.minimum(below, above)
    uniform = np.random.default_rng(seed).multinomial(n, np.full(cells, 1 / cells), size=SIMULATIONS)
    counts = np.cumsum(uniform, axis=1)[:, :-1]
    return z, areas, np.sort(areas[counts, np.arange(z.size)].min(axis=1))


def uniformity(values: np.ndarray, seed: int = SEED) -> float | None:
    """p-value of uniformity of independent PITs by the simultaneous ECDF band, Säilynoja, Bürkner and Vehtari 2022.

    At K = min(n, 100) evenly spaced points z the count of values below z is Binomial(n, z); the statistic is the
    smallest two-sided tail area over the points, its distribution is simulated from uniform counts. The ECDF leaves
    the simultaneous band of level 1 - p exactly where this is below p. None for a single value.
    """
    if values.size < 2:
        return None
    z, areas, null = _band(values.size, seed)
    counts = np.searchsorted(np.sort(values), z, side="right")
    observed = areas[counts, np.arange(z.size)].min()
    # ties are exact: both sides read the same table
    return float((1 + np.searchsorted(null, observed, side="right")) / (1 + SIMULATIONS))


def tail_areas(scores: np.ndarray) -> tuple[float, float | None]:
    """Posterior predictive p-values of the mean and of the sd of a group's normal scores (draw, cell).

    Given the draw the scores of a replicate are independent standard normal, so P(replicate >= observed) is
    1 - Phi(sqrt(n) mean) and the upper tail of chi squared with n - 1 degrees of freedom at sum (z - mean)^2; both are
    averaged over draws. Small: the cells lie higher, or scatter more, than replicates do; near one: lower, or less.
    """
    n = scores.shape[1]
    mean = scores.mean(axis=1)
    high = float(ndtr(-np.sqrt(n) * mean).mean())
    if n < 2:
        return high, None
    return high, float(chdtrc(n - 1, ((scores - mean[:, None]) ** 2).sum(axis=1)).mean())


def inside(values: np.ndarray, mass: float) -> float:
    """Share of PITs within the central (equal-tailed) interval of that mass."""
    return float((np.abs(values - 0.5) <= mass / 2).mean())


def group(own: np.ndarray, loo: np.ndarray | None) -> dict:
    """Numbers of one group of cells from F(observed | draw), (draw, cell), and its leave-one-out PITs (cell,)."""
    marginal = own.mean(axis=0)
    score = ndtri(np.clip(marginal, EDGE, 1 - 1e-15))
    p_mean, p_sd = tail_areas(ndtri(own))
    row = {
        "coverage50": inside(marginal, 0.5), "coverage90": inside(marginal, 0.9), "mean_z": float(score.mean()),
        "sd_z": float(score.std(ddof=1)) if score.size > 1 else None, "max_abs_z": float(np.abs(score).max()),
        "p_mean": p_mean, "p_sd": p_sd,
    }  # fmt: skip
    if loo is not None:
        row |= {"loo_coverage50": inside(loo, 0.5), "loo_coverage90": inside(loo, 0.9), "p_loo_pit": uniformity(loo)}
    return row | {"says": reads(p_mean, p_sd)}


def reads(p_mean: float, p_sd: float | None) -> str:
    """What the two tail areas of a group say, in words; empty where neither is surprising."""
    said = []
    if min(p_mean, 1 - p_mean) < SURPRISING:
        said.append("higher than predicted" if p_mean < 0.5 else "lower than predicted")
    if p_sd is not None and min(p_sd, 1 - p_sd) < SURPRISING:
        said.append("more scattered than predicted" if p_sd < 0.5 else "less scattered than predicted")
    return ", ".join(said)


def check(problem: Problem, tree: xr.DataTree, draws: int = DRAWS) -> dict:
    """The predictive checks of a fit: all cells, then by bits, by family and by generation, as a JSON-able dict.

    Without the group log_likelihood the leave-one-out parts are None.
    """
    values = pit(problem, thin(tree["posterior"].to_dataset(), draws))
    loo, about = None, None
    if "log_likelihood" in tree.children:
        density = thin(tree["log_likelihood"].to_dataset(), draws)["qid"].transpose("draw", "cell").to_numpy()
        weights, k = loo_weights(density)
        loo = (weights * values).sum(axis=0)
        limit = k_limit(len(density))
        about = {"pareto_k_max": float(k.max()), "pareto_k_limit": limit, "cells_above_limit": int((k > limit).sum())}
    gone = problem.cells["censored"].to_numpy().astype(bool)
    rows = []
    for by, level, members in _groups(problem.cells):
        row = {"by": by, "level": level, "cells": int(members.sum()), "diverged": int(gone[members].sum())}
        rows.append(row | group(values[:, members], None if loo is None else loo[members]))
    return {"draws": len(values), "interval": "equal-tailed", "loo": about, "groups": rows}


def _groups(cells: xr.Dataset):
    """(by, level, members) of every group: all cells first."""
    yield "all", "all cells", np.ones(cells.sizes["cell"], dtype=bool)
    for by, column in GROUPS.items():
        values = cells[column].to_numpy()
        for level in np.unique(values):
            yield by, f"{level:g}" if by == "bits" else str(level), values == level
