"""Error of the nine-node marginal likelihood at the draws of a fitted posterior, against dense quadrature.

    python benchmarks/likelihood_error.py POSTERIOR.nc [DRAWS]

Prints the worst error of one cell, the worst summed error of one draw, and the spread of the summed error between
draws: a constant error moves no posterior, only its variation does.
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


def errors(posterior: draws.Posterior, count: int = 20) -> np.ndarray:
    """Nine-node minus dense log density of every measured cell, shape (draw, cell)."""
    cells = posterior.cells
    keep = ~cells["censored"].to_numpy().astype(bool)
    y, s, headroom = (cells[name].to_numpy()[keep] for name in ("qid", "qid_se", "headroom"))
    anchor, precision = likelihood.anchors(y, s, headroom)
    out = []
    for number in np.linspace(0, posterior.size - 1, count).round().astype(int):
        eta = eta_of(posterior, number)[keep]
        tau = posterior.sample["tau"].isel(draw=number).sel(generation=cells["generation"].to_numpy()[keep].astype(str))
        tau = tau.to_numpy()
        fast = likelihood.marginal(y, s, headroom, anchor, precision, eta, tau)[0]
        out.append(fast - dense(y, s, headroom, eta, tau))
    return np.array(out)


def main() -> None:
    posterior = draws.read(sys.argv[1])
    found = errors(posterior, int(sys.argv[2]) if len(sys.argv) > 2 else 20)
    summed = found.sum(axis=1)
    print(f"{posterior.path}: {found.shape[0]} draws of {found.shape[1]} measured cells")
    print(f"worst error of one cell: {np.abs(found).max():.2g} (median {np.median(np.abs(found)):.2g})")
    print(f"worst summed error of one draw: {np.abs(summed).max():.2g}")
    print(f"standard deviation of the summed error between draws: {summed.std():.2g}")


if __name__ == "__main__":
    main()
