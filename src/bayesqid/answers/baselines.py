"""What a posterior has to beat: two published laws, least squares, and the population without its uncertainty.

A baseline maps targets to quantiles of ln QiD, shape (target, quantile), evenly spaced in probability; a law that
states no spread has one quantile. `bayesqid.answers.score` scores them as it scores draws.
"""

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from scipy.special import ndtr, ndtri

from bayesqid import laws, likelihood, methods
from bayesqid.answers import draws
from bayesqid.answers.draws import Posterior, Target

# odd, so that one of them is the median
QUANTILES = 399
PROBABILITIES = (np.arange(QUANTILES) + 0.5) / QUANTILES
# standard errors above zero from which the logarithm of a QiD is a number worth fitting or scoring
SIGNIFICANT = 3.0


def seen(log_raw: np.ndarray, headroom: np.ndarray) -> np.ndarray:
    """Quantiles of ln QiD as it can be seen of those of the unbounded law; monotone, so quantiles stay quantiles."""
    raw = np.exp(np.minimum(log_raw, likelihood.HIGHEST))
    return np.log(likelihood.saturate(raw, headroom[:, None]))


def scatter_quantiles(tails: str) -> np.ndarray:
    """Quantiles at `PROBABILITIES` of the scatter of that name with tau = 1, a mixture of normals, by a grid."""
    scales, weights = likelihood.TAILS[tails]
    grid = np.linspace(-8.0, 8.0, 16001) * scales.max()
    return np.interp(PROBABILITIES, ndtr(grid[:, None] / scales) @ weights, grid)


def on_log_scale(cells: xr.Dataset) -> np.ndarray:
    """Which cells have a QiD whose logarithm is known: above `SIGNIFICANT` standard errors and not diverged."""
    qid = cells["qid"].to_numpy()
    return (qid > SIGNIFICANT * cells["qid_se"].to_numpy()) & ~cells["censored"].to_numpy()


def published(name: str, targets: Sequence[Target], headroom: np.ndarray) -> np.ndarray:
    """A published law with its printed constants, saturated like ours: one quantile per target."""
    n, d, p = (np.array([getattr(t, key) for t in targets]) for key in ("params", "tokens", "effective_bits"))
    return seen(laws.log_qid(n, d, p, **laws.published_constants(name))[:, None], headroom)


def ols(posterior: Posterior, targets: Sequence[Target], headroom: np.ndarray) -> np.ndarray:
    """Pooled least squares of ln QiD on ln N, ln D and ln P over the posterior's own cells, normal residuals.

    The residual standard deviation has four degrees of freedom taken off; NaN where that leaves none. Cells that
    diverged or lie within three standard errors of zero are left out, as least squares cannot take them.
    """

    def design(n, d, p) -> np.ndarray:
        return np.stack([np.ones(len(n)), np.log(n / laws.PIVOT_PARAMS), np.log(d / laws.PIVOT_TOKENS),
                         np.log(p / laws.PIVOT_BITS)], axis=1)  # fmt: skip

    disclosed = np.isfinite(posterior.cells["train_tokens"].to_numpy())
    fitted = posterior.cells.isel(cell=on_log_scale(posterior.cells) & disclosed)
    known = design(*(fitted[name].to_numpy() for name in ("n_params_nonembedding", "train_tokens", "effective_bits")))
    answer = np.log(fitted["qid"].to_numpy())
    asked = design(*(np.array([getattr(t, key) for t in targets]) for key in ("params", "tokens", "effective_bits")))
    freedom = answer.size - known.shape[1]
    if freedom <= 0:
        return np.full((len(targets), QUANTILES), np.nan)
    slopes = np.linalg.lstsq(known, answer, rcond=None)[0]
    sd = np.sqrt(((answer - known @ slopes) ** 2).sum() / freedom)
    return (asked @ slopes)[:, None] + sd * ndtri(PROBABILITIES)


def hyper_mean(posterior: Posterior, targets: Sequence[Target], headroom: np.ndarray) -> np.ndarray:
    """The population's posterior means as if they were known, with residual scatter tau as the only spread.

    Every family is the mean family and every checkpoint and source the mean one; effects of fitted quantizers,
    generations and bit widths stand at their means, of others at zero. A generation not fitted has the mean tau.
    """
    mean, law = posterior.sample.mean("draw"), posterior.law
    data, lam = draws.columns(posterior, targets), float(mean["lam"])
    eta = np.zeros(len(targets))
    for term in law.terms:
        eta = eta + float(mean["mu"].sel(term=term.name)) * laws.factor(term.factor, data, lam)
    for covariate in law.covariates:
        beta = float(mean["covariate"].sel(covariate_name=covariate.name))
        eta = eta + beta * laws.factor(covariate.factor, data, lam)
    generation = [methods.generation(t.method) for t in targets]
    levels = {"generation": generation, "quantizer": [t.method for t in targets],
              "width": laws.width(data["effective_bits"]), "everything": [laws.EVERYTHING] * len(targets)}  # fmt: skip
    for effect in (e for e in law.effects if e.by in levels):
        known = _levels(mean[effect.name], effect.by)
        own = np.array([known.get(level, 0.0) for level in levels[effect.by]])
        eta = eta + own * laws.factor(effect.factor, data, lam)
    taus = _levels(mean["tau"], "generation")
    tau = np.array([taus.get(level, float(mean["tau"].mean())) for level in generation])
    return seen(eta[:, None] + tau[:, None] * scatter_quantiles(law.tails), headroom)


def _levels(values: xr.DataArray, by: str) -> dict[str, float]:
    return {str(level): float(value) for level, value in zip(values[by].to_numpy(), values.to_numpy(), strict=True)}


Baseline = Callable[[Posterior, Sequence[Target], np.ndarray], np.ndarray]
BASELINES: dict[str, Baseline] = {
    "ouyang": lambda posterior, targets, headroom: published("ouyang", targets, headroom),
    "kumar": lambda posterior, targets, headroom: published("kumar", targets, headroom),
    "ols": ols,
    "hyper_mean": hyper_mean,
}
