"""Error of the likelihood, closed form and nine nodes, at the draws of a fitted posterior, against dense quadrature.

    python benchmarks/likelihood_error.py [POSTERIOR.nc] [DRAWS]

Without a file the bundled posterior. Prints, for sharp cells (closed form), blunt ones (nine nodes) and both, the worst
error of one cell, the worst summed error of one draw, and the spread of the summed error between draws: a constant
error moves no posterior, only its variation does. Both kinds of scatter are put to the same draws.
"""

import sys

import numpy as np

from bayesqid import laws, likelihood
from bayesqid.answers import draws

POINTS, ROUNDS = 4001, 3


def eta_of(posterior: draws.Posterior, number: int) -> np.ndarray:
    """ln QiD of the law with all effects at every fitted cell for one draw, from the named variables alone."""
    one, cells, law = posterior.sample.isel(draw=number), posterior.cells, posterior.law
    data = {name: cells[name].to_numpy() for name in (*cells.coords, *cells.data_vars)}
    data |= laws.crossed(data)
    lam = float(one["lam"])
    theta = one["theta"].sel(family=data["family"].astype(str)).transpose("term", "family").to_numpy()
    eta = sum(laws.factor(t.factor, data, lam) * theta[i] for i, t in enumerate(law.terms))
    for covariate in law.covariates:
        value = float(one["covariate"].sel(covariate_name=covariate.name))
        eta = eta + laws.factor(covariate.factor, data, lam) * value
    for effect in law.effects:
        levels = one[effect.name].sel({effect.by: data[effect.by].astype(str)}).to_numpy()
        eta = eta + laws.factor(effect.factor, data, lam) * levels
    return np.asarray(eta)


def dense(y, s, headroom, eta, tau) -> np.ndarray:
    """Log density of each cell, shape (cell,): trapezoid rule on 4001 points of v, zoomed in on the integrand."""

    def log_terms(v):
        with np.errstate(over="ignore"):
            seen = headroom * (1 - np.exp(-np.exp(v) / headroom))
        return -0.5 * ((y - seen) / s) ** 2 - 0.5 * ((v - eta) / tau) ** 2

    unit = np.linspace(0, 1, POINTS)[:, None]
    low, high = eta - 40 * tau - 5, eta + 40 * tau + 5
    for _ in range(ROUNDS):
        v = low + unit * (high - low)
        logs = log_terms(v)
        inside = logs > logs.max(axis=0) - 50
        first, last = inside.argmax(axis=0), POINTS - 1 - inside[::-1].argmax(axis=0)
        cell = np.arange(len(eta))
        low, high = v[np.maximum(first - 1, 0), cell], v[np.minimum(last + 1, POINTS - 1), cell]
    logs = log_terms(low + unit * (high - low))
    top = logs.max(axis=0)
    total = np.exp(logs - top).sum(axis=0) * (high - low) / (POINTS - 1)
    return np.log(total) + top - np.log(2 * np.pi * s * tau)


def errors(posterior: draws.Posterior, tails: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Log density minus the dense one of every measured cell, shape (draw, cell), and which cells are sharp."""
    cells = posterior.cells
    cells = cells.isel(cell=np.flatnonzero(~cells["censored"].to_numpy().astype(bool)))
    keep = ~posterior.cells["censored"].to_numpy().astype(bool)
    y, s, headroom = (cells[name].to_numpy() for name in ("qid", "qid_se", "headroom"))
    data = likelihood.prepare(y, s, headroom, np.zeros(y.size, dtype=bool))
    scales, weights = likelihood.TAILS[tails]
    out = []
    for number in np.linspace(0, posterior.size - 1, count).round().astype(int):
        eta = eta_of(posterior, number)[keep]
        tau = posterior.sample["tau"].isel(draw=number).sel(generation=cells["generation"].to_numpy().astype(str))
        tau = tau.to_numpy()
        parts = [np.log(w) + dense(y, s, headroom, eta, c * tau) for c, w in zip(scales, weights, strict=True)]
        out.append(likelihood.density(data, eta, tau, scales, weights)[0] - np.logaddexp.reduce(parts, axis=0))
    return np.array(out), np.isin(np.arange(y.size), data.sharp)


def main() -> None:
    posterior = draws.read(sys.argv[1] if len(sys.argv) > 1 else None)
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    print(f"{posterior.path}: {count} draws")
    heads = ("scatter", "cells", "number", "worst cell", "median cell", "worst sum of a draw",
             "sd of that sum between draws")  # fmt: skip
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    for tails in likelihood.TAILS:
        found, sharp = errors(posterior, tails, count)
        for name, which in (("sharp", sharp), ("blunt", ~sharp), ("all", sharp | True)):
            some = found[:, which]
            total = some.sum(axis=1)
            print(f"| {tails} | {name} | {which.sum()} | {np.abs(some).max():.2g} | {np.median(np.abs(some)):.1g} | "
                  f"{np.abs(total).max():.2g} | {total.std():.2g} |")  # fmt: skip


if __name__ == "__main__":
    main()
