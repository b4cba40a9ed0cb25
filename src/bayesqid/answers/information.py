"""Where the information about a population mean comes from: contrasts within families or between them."""

import json

import numpy as np

from bayesqid import laws, likelihood
from bayesqid.answers.draws import Posterior

# factors whose family deviations are counted from the centre of the family's own data, as inference does
CENTRED = ("-x_N", "x_D")
# where the file keeps the mean of x_N and of x_D over all checkpoints
OVERALL = {"n_params_nonembedding": "overall_x_N", "train_tokens": "overall_x_D"}
NOTHING = 1e-9


def columns(posterior: Posterior) -> dict[str, np.ndarray]:
    """Columns of the measured (not diverged) cells of disclosed tokens, as `laws.factor` reads them."""
    cells = posterior.cells
    latent = posterior.sample["undisclosed"].values if "undisclosed" in posterior.sample.coords else []
    left_out = cells["censored"].to_numpy().astype(bool) | np.isin(cells["checkpoint"].to_numpy().astype(str), latent)
    own = cells.isel(cell=np.flatnonzero(~left_out))
    return table(own)


def table(cells) -> dict[str, np.ndarray]:
    """All columns of some cells, and the coordinates that follow from them."""
    out = {str(name): cells[name].to_numpy() for name in (*cells.coords, *cells.data_vars)}
    return out | laws.crossed(out)


def centred(posterior: Posterior, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same columns with N and D counted from the centre of all data, about which bends and tilts turn."""
    known = posterior.tree["constant_data"].to_dataset()
    moved = {column: data[column] * np.exp(-float(known[name])) for column, name in OVERALL.items() if name in known}
    return data | moved


def factor_values(posterior: Posterior, name: str, data: dict[str, np.ndarray]) -> np.ndarray:
    """A factor at the posterior median of lam for every cell, shape (cell,)."""
    return np.asarray(laws.factor(name, data, float(np.median(posterior.sample["lam"]))), dtype=float)


def weights(posterior: Posterior, data: dict[str, np.ndarray]) -> np.ndarray:
    """Precision of ln QiD of every cell: 1 / (tau^2 + evaluation variance in ln QiD), tau at its posterior median."""
    tau = posterior.sample["tau"].median("draw")
    scatter = tau.sel(generation=data["generation"]).to_numpy()
    precision = likelihood.anchors(data["qid"], data["qid_se"], data["headroom"])[1]
    return 1 / (scatter**2 + 1 / np.maximum(precision, NOTHING))


def centres(values: np.ndarray, data: dict[str, np.ndarray]) -> np.ndarray:
    """Mean of a factor over the checkpoints of each cell's family, shape (cell,); cells averaged per checkpoint."""
    out = np.empty_like(values)
    family, checkpoint = data["family"].astype(str), data["checkpoint"].astype(str)
    for name in np.unique(family):
        own = family == name
        out[own] = np.mean([values[own & (checkpoint == c)].mean() for c in np.unique(checkpoint[own])])
    return out


def nuisance(posterior: Posterior, data: dict, left_out: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns (cell, coefficient) and prior precisions of all coefficients but the population mean of one term.

    Standard deviations of families and effects stand at their posterior medians.
    """
    prior, hierarchical = json.loads(posterior.tree.attrs["priors"]), posterior.tree.attrs["model"] == "hierarchical"
    family = np.equal.outer(data["family"].astype(str), np.array(posterior.families)).astype(float)
    parts: list[tuple[np.ndarray, float]] = []
    for term in posterior.law.terms:
        value = factor_values(posterior, term.factor, data)
        if term.name != left_out:
            parts.append((value[:, None], prior[term.name]["sd"] ** -2))
        if hierarchical:
            own = value - centres(value, data) if term.factor in CENTRED else value
            sd = float(posterior.sample["sd"].sel(term=term.name).median())
            parts.append((own[:, None] * family, max(sd, NOTHING) ** -2))
    turning = centred(posterior, data)
    for covariate in posterior.law.covariates:
        value = factor_values(posterior, covariate.factor, turning)
        parts.append((value[:, None], prior[covariate.name]["sd"] ** -2))
    for effect in posterior.law.effects:
        # all zero where an earlier effect takes it
        if not posterior.sample[effect.name].any():
            continue
        level = np.equal.outer(data[effect.by].astype(str), np.unique(data[effect.by].astype(str))).astype(float)
        if effect.zero_sum:
            level = level - 1 / level.shape[1]
        sd = float(posterior.sample["spread"].sel(effect=effect.name).median())
        parts.append((level * factor_values(posterior, effect.factor, turning)[:, None], max(sd, NOTHING) ** -2))
    return np.hstack([part for part, _ in parts]), np.concatenate([np.full(p.shape[1], w) for p, w in parts])


def of_term(posterior: Posterior, name: str) -> dict:
    """Precision of the population mean mu of one term from within families, from between them, and the share.

    The term mu f is split into mu_W (f - f_F) + mu_B f_F, with f_F the mean of its factor over the checkpoints of the
    family (Mundlak 1978): mu_W is seen only in contrasts within families, mu_B only in those between their centres.
    ln QiD is taken as linear and Gaussian at the posterior medians of lam, spreads and scatters, with flat priors of
    mu_W and mu_B, and every other coefficient integrated out under its prior: with X the two columns, Z the
    others, W the precisions of the cells and P the prior ones,

        K = X'WX - X'WZ (Z'WZ + P)^-1 Z'WX       within = 1 / (K^-1)_WW     between = 1 / (K^-1)_BB

    share = within / (within + between). None for independent families, which share no mean.
    """
    if posterior.tree.attrs["model"] == "independent":
        return {"within": None, "between": None, "within_share": None}
    data = columns(posterior)
    factor = next(term.factor for term in posterior.law.terms if term.name == name)
    value = factor_values(posterior, factor, data)
    centre = centres(value, data)
    split = np.column_stack([value - centre, centre])
    others, prior = nuisance(posterior, data, name)
    weight = weights(posterior, data)[:, None]
    cross = split.T @ (weight * others)
    whole = split.T @ (weight * split)
    left = whole - cross @ np.linalg.solve(others.T @ (weight * others) + np.diag(prior), cross.T)
    within, between = (_alone(left, whole, first) for first in (0, 1))
    total = within + between
    return {"within": within, "between": between, "within_share": within / total if total > 0 else None}


def _alone(left: np.ndarray, whole: np.ndarray, first: int) -> float:
    """Precision of one of two coefficients with the other unknown; zero where only rounding is left of it."""
    other = 1 - first
    own = left[first, first]
    if left[other, other] > NOTHING * whole[other, other]:
        own = own - left[first, other] ** 2 / left[other, other]
    return float(own) if own > NOTHING * max(whole[first, first], NOTHING) else 0.0
