"""Truth here is the printed formulas, normal equations solved anew, and scipy's distributions."""

from functools import cache

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import posteriors
from bayesqid import likelihood
from bayesqid.answers import baselines
from bayesqid.answers.draws import Target

# nothing may change what it returns
fake = cache(posteriors.posterior)
MIDDLE = baselines.QUANTILES // 2
N, D, P = np.array([1e9, 7e9, 7e10]), np.array([2e12, 3e11, 3e13]), np.array([2.125, 3.0, 4.25])
HEADROOM = np.array([8.0, 9.0, 8.5])
HUGE = np.full(3, 1e9)


def targets(method: str = "gptq", **rest) -> list[Target]:
    return [Target("crossed", n, d, p, method, **rest) for n, d, p in zip(N, D, P, strict=True)]


def test_ouyang_is_the_printed_formula_under_the_ceiling_of_the_loss():
    raw = 0.017 * D**0.5251 / (N**0.2261 * P**5.4967)
    found = baselines.published("ouyang", targets(), HEADROOM)
    assert found.shape == (3, 1), "a law that states no spread has one quantile"
    np.testing.assert_allclose(np.exp(found[:, 0]), HEADROOM * (1 - np.exp(-raw / HEADROOM)), rtol=1e-9)


def test_kumar_is_the_printed_formula():
    raw = 0.0598 * D**0.5068 / N**0.3439 * np.exp(-P / 0.5907)
    found = baselines.published("kumar", targets(), HUGE)
    np.testing.assert_allclose(np.exp(found[:, 0]), raw, rtol=1e-6)


def noisy(seed: int = 3) -> xr.Dataset:
    cells = posteriors.cells()
    noise = np.exp(0.3 * np.random.default_rng(seed).normal(size=cells.sizes["cell"]))
    qid = cells["qid"].to_numpy() * noise
    return cells.assign(qid=("cell", qid), censored=("cell", qid > np.log(10)))


def test_least_squares_solves_the_normal_equations_of_the_cells_that_have_a_logarithm():
    cells = noisy()
    # one cell lost in its error, one of a model whose tokens nobody knows: neither may move the fit
    cells["qid_se"].values[0] = cells["qid"].values[0]
    cells["train_tokens"].values[-1] = np.nan
    used = cells.isel(cell=slice(1, -1))
    used = used.isel(cell=~used["censored"].to_numpy())
    x = np.stack([np.ones(used.sizes["cell"]), *(np.log(used[name].to_numpy()) for name in (
        "n_params_nonembedding", "train_tokens", "effective_bits"))])  # fmt: skip
    y = np.log(used["qid"].to_numpy())
    slopes = np.linalg.solve(x @ x.T, x @ y)
    sd = np.sqrt(((y - slopes @ x) ** 2).sum() / (y.size - 4))
    want = slopes @ np.stack([np.ones(3), np.log(N), np.log(D), np.log(P)])

    found = baselines.ols(posteriors.posterior(data=cells), targets(), HEADROOM)
    np.testing.assert_allclose(found[:, MIDDLE], want, rtol=1e-6)
    np.testing.assert_allclose(np.interp(0.9, baselines.PROBABILITIES, found[0]), want[0] + 1.2815516 * sd, rtol=1e-4)


def test_least_squares_says_nothing_from_four_cells():
    few = noisy().isel(cell=[0, 1, 2, 7])
    assert np.isnan(baselines.ols(posteriors.posterior(data=few), targets(), HEADROOM)).all()


def at_means(method: str, generation: str, effects: bool = True) -> tuple[np.ndarray, float]:
    """ln QiD and tau with every parameter at its mean over the draws, written out."""
    mean = fake().sample.mean("draw")
    mu, lam = mean["mu"], float(mean["lam"])
    x_p = ((P / 3) ** lam - 1) / lam
    eta = float(mu.sel(term="log_k")) - float(mu.sel(term="alpha")) * np.log(N / 1e9)
    eta = eta + float(mu.sel(term="beta")) * np.log(D / 1e11) - float(mu.sel(term="gamma")) * x_p
    eta = eta + float(mean["generation_level"].sel(generation=generation))
    eta = eta - float(mean["generation_slope"].sel(generation=generation)) * x_p
    if effects:
        eta = eta + float(mean["method_level"].sel(quantizer=method))
        eta = eta - float(mean["method_slope"].sel(quantizer=method)) * x_p
    return eta, float(mean["tau"].sel(generation=generation))


@pytest.mark.parametrize(("method", "generation"), [("gptq", "calibrated"), ("rtn", "rtn")])
def test_the_population_at_its_means_has_the_scatter_alone_as_its_spread(method, generation):
    eta, tau = at_means(method, generation)
    found = baselines.hyper_mean(fake(), targets(method), HUGE)
    np.testing.assert_allclose(found[:, MIDDLE], eta, atol=1e-6)
    np.testing.assert_allclose(np.interp(0.95, baselines.PROBABILITIES, found[1]), eta[1] + 1.6448536 * tau, atol=1e-3)


def test_a_quantizer_that_was_not_fitted_has_no_effect_but_its_generation_s():
    eta, _ = at_means("awq", "calibrated", effects=False)
    found = baselines.hyper_mean(fake(), targets("awq"), HUGE)
    np.testing.assert_allclose(found[:, MIDDLE], eta, atol=1e-6)


def test_a_covariate_at_its_mean_moves_the_population():
    posterior = fake()
    beta = float(posterior.sample["covariate"].sel(covariate_name="c4").mean("draw"))
    plain, c4 = (baselines.hyper_mean(posterior, targets(eval_dataset=text), HUGE)[:, MIDDLE]
                 for text in ("wikitext2", "c4"))  # fmt: skip
    np.testing.assert_allclose(c4 - plain, beta, atol=1e-6)


def test_the_loss_of_a_guess_is_a_ceiling_for_the_population_too():
    small = np.full(3, 0.05)
    assert (baselines.hyper_mean(fake(), targets(), small) <= np.log(0.05)).all()


def test_quantiles_of_the_scatter_are_those_of_its_distribution():
    p = baselines.PROBABILITIES
    np.testing.assert_allclose(baselines.scatter_quantiles("normal"), stats.norm.ppf(p), atol=1e-5)
    # the mixture that stands for it is close, not equal
    np.testing.assert_allclose(baselines.scatter_quantiles("student-t"), stats.t(5).ppf(p), atol=0.02, rtol=0.02)
    assert set(likelihood.TAILS) == {"normal", "student-t"}


def test_quantiles_of_what_is_seen_rise():
    for name, call in baselines.BASELINES.items():
        found = call(fake(), targets(), HEADROOM)
        assert np.isfinite(found).all(), name
        assert (np.diff(found, axis=1) >= 0).all(), name
