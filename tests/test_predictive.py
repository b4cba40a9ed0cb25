"""Predictive checks against quadrature, closed forms, ArviZ and cells simulated from the model itself."""

import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.special import ndtr, ndtri

from bayesqid import laws, likelihood
from bayesqid.inference import checks, hyper, posterior, predictive, problem, simulate

BOXCOX = laws.get("boxcox")


def true_draws(p, b, phi, copies=2):
    """A posterior that knows the truth: the same draw a few times."""
    rows = np.repeat(phi[None, None], copies, axis=1)
    return posterior.named(p, np.repeat(b[None, None], copies, axis=1), hyper.unpack(p, rows))


@pytest.mark.parametrize("law", laws.LAWS.values(), ids=lambda law: law.name)
def test_eta_of_the_named_draws_is_that_of_the_fit(law):
    p = problem.build(simulate.grid(families=3, tokens=3), law, "hierarchical")
    b, phi = hyper.draw_prior(p, 5, np.random.default_rng(2))
    natural = hyper.unpack(p, phi[None])
    want = posterior.pointwise(p, b[None], natural)[1][0]
    got = predictive.eta(p, predictive.thin(posterior.named(p, b[None], natural), 5))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_eta_knows_drawn_tokens_and_laws_without_tokens():
    cells = simulate.grid(families=3, tokens=3)
    unknown = cells["checkpoint"] == cells["checkpoint"][0]
    hidden = cells.assign_coords(train_tokens=cells["train_tokens"].where(~unknown))
    drawn, without = laws.variant("boxcox", extras=["latent-tokens"]), laws.variant("boxcox", "phase")
    for law, data in ((drawn, hidden), (without, cells)):
        p = problem.build(data, law, "hierarchical")
        b, phi = hyper.draw_prior(p, 5, np.random.default_rng(2))
        natural = hyper.unpack(p, phi[None])
        want = posterior.pointwise(p, b[None], natural)[1][0]
        got = predictive.eta(p, predictive.thin(posterior.named(p, b[None], natural), 5))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tails", likelihood.TAILS)
def test_the_predictive_distribution_function_is_that_of_fine_quadrature(tails):
    rng, n, headroom = np.random.default_rng(0), 150, 8.0
    eta, tau, s = rng.uniform(-8, 2.5, n), rng.uniform(0.05, 1, n), 10 ** rng.uniform(-4, -1, n)
    raw = np.exp(eta + likelihood.draw_scatter(rng, tau, tails))
    y = likelihood.saturate(raw, headroom) + s * rng.normal(size=n)
    grid = np.linspace(-9, 9, 10_001)
    weight = np.exp(-0.5 * grid**2) / np.exp(-0.5 * grid**2).sum()
    scales, shares = likelihood.TAILS[tails]
    mixture = list(zip(scales, shares / shares.sum(), strict=True))

    def brute(i):
        seen = [likelihood.saturate(np.exp(eta[i] + tau[i] * scale * grid), headroom) for scale, _ in mixture]
        return sum(share * weight @ ndtr((y[i] - x) / s[i]) for x, (_, share) in zip(seen, mixture, strict=True))

    want = [brute(i) for i in range(n)]
    got = predictive.cdf(y, s, np.full(n, headroom), eta[None], tau[None], tails)[0]
    # 40 nodes where the grid takes 10 001
    np.testing.assert_allclose(got, want, atol=3e-4)


def test_under_the_true_parameters_pits_are_uniform_diverged_cells_included():
    values = []
    for seed in range(6):
        p, b, phi = simulate.study(BOXCOX, "hierarchical", seed)
        values.append(predictive.pit(p, predictive.thin(true_draws(p, b, phi), 2))[0])
        assert p.cells["censored"].any()
    pooled = np.concatenate(values)
    assert stats.kstest(pooled, "uniform").pvalue > 0.01
    p_value = predictive.uniformity(pooled)
    assert p_value is not None
    assert p_value > 0.01
    assert predictive.uniformity(pooled[:1]) is None


def test_a_misfit_is_seen_in_its_own_group_and_named():
    p, b, phi = simulate.study(BOXCOX, "hierarchical", 3)
    sample = true_draws(p, b, phi)
    tree = xr.DataTree.from_dict({"posterior": sample})
    rows = {(row["by"], row["level"]): row for row in predictive.check(p, tree)["groups"]}
    assert [key for key, row in rows.items() if row["says"]] == []
    assert ("bits", "3") in rows
    assert ("family", "F2") in rows
    assert sum(row["cells"] for (by, _), row in rows.items() if by == "generation") == 300

    narrow = sample.copy(deep=True)
    narrow["tau"] = narrow["tau"] / 2
    found = predictive.check(p, xr.DataTree.from_dict({"posterior": narrow}))["groups"][0]
    assert "more scattered" in found["says"]
    assert found["coverage90"] < 0.8

    moved = sample.copy(deep=True)
    moved["theta"].loc[{"term": "log_k", "family": "F2"}] += 1.0
    found = predictive.check(p, xr.DataTree.from_dict({"posterior": moved}))["groups"]
    rows = {row["level"]: row["says"] for row in found}
    assert "lower than predicted" in rows["F2"]
    assert rows["F1"] == ""


def test_tail_areas_are_those_of_the_normal_and_of_chi_squared():
    scores = np.random.default_rng(1).normal(0.3, 1.4, size=(1, 25))
    high, wide = predictive.tail_areas(scores)
    assert high == pytest.approx(stats.norm.sf(scores.mean() * 5))
    assert wide == pytest.approx(stats.chi2.sf(24 * scores.var(ddof=1), 24))
    assert predictive.tail_areas(scores[:, :1])[1] is None
    rng = np.random.default_rng(2)
    areas = np.array([predictive.tail_areas(rng.normal(size=(1, 8))) for _ in range(500)])
    assert stats.kstest(areas[:, 0], "uniform").pvalue > 0.01
    assert stats.kstest(areas[:, 1], "uniform").pvalue > 0.01


def test_the_band_rejects_as_often_as_it_says():
    rng = np.random.default_rng(4)
    p = np.array([predictive.uniformity(rng.uniform(size=60)) for _ in range(300)])
    # 300 trials: four standard errors of a share of 0.1
    assert abs((p < 0.1).mean() - 0.1) < 4 * np.sqrt(0.09 / 300)


@pytest.mark.parametrize(("shape", "uniform"), [((1, 1), True), ((3, 3), False), ((1, 2), False), ((0.5, 0.5), False)])
def test_the_band_agrees_with_that_of_arviz(shape, uniform):
    from arviz_stats.ecdf_utils import ecdf_pit

    values = np.random.default_rng(5).beta(*shape, size=100)
    _, ecdf, lower, upper = ecdf_pit(values, 0.95, 1000)
    assert bool(np.all((lower <= ecdf) & (ecdf <= upper))) == uniform
    assert (predictive.uniformity(values) >= 0.05) == uniform


def test_leave_one_out_pits_are_those_of_refits():
    """Normal data with known variance and a flat mean: leaving one out is a closed form."""
    rng, n, draws = np.random.default_rng(6), 20, 8000
    y = rng.normal(size=n)
    mean = y.mean() + rng.normal(size=(draws, 1)) / np.sqrt(n)
    weights, k = predictive.loo_weights(stats.norm.logpdf(y, mean, 1.0))
    got = (weights * ndtr(y - mean)).sum(axis=0)
    others = (y.sum() - y) / (n - 1)
    np.testing.assert_allclose(got, ndtr((y - others) / np.sqrt(1 + 1 / (n - 1))), atol=0.02)
    assert k.max() < predictive.k_limit(draws)
    np.testing.assert_allclose(weights.sum(axis=0), 1)


def test_a_diagnosis_is_small_plain_json_with_and_without_the_likelihood():
    p, b, phi = simulate.study(BOXCOX, "hierarchical", 1, simulate.grid(families=20, tokens=2, sizes=1))
    sample = true_draws(p, b, phi, 200)
    without = checks.diagnose(p, xr.DataTree.from_dict({"posterior": sample}))
    assert without["loo"] is None
    assert "p_loo_pit" not in without["groups"][0]
    density = np.random.default_rng(0).normal(size=(1, 200, p.cells.sizes["cell"]))
    likelihoods = xr.Dataset({"qid": (("chain", "draw", "cell"), density)})
    tree = xr.DataTree.from_dict({"posterior": sample, "log_likelihood": likelihoods})
    found = checks.diagnose(p, tree)
    assert found["loo"]["cells_above_limit"] >= 0
    assert len(json.dumps(found, allow_nan=False)) < 30_000
    assert [row["by"] for row in found["groups"]].count("family") == 20


def test_normal_scores_never_overflow():
    assert np.isfinite(ndtri(predictive.EDGE))
    assert np.isfinite(ndtri(1 - 1e-15))


def test_copies_of_few_draws_are_not_trusted_and_do_not_stop_the_check():
    """Importance sampling that broke down leaves one draw a thousand times: its tail has no shape to fit."""
    rng = np.random.default_rng(0)
    density = np.repeat(rng.normal(size=(3, 4)), [500, 490, 10], axis=0)
    weights, k = predictive.loo_weights(density)
    assert np.isinf(k).any()
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    assert np.isfinite(weights).all()


def test_a_cell_that_all_draws_explain_alike_keeps_all_draws():
    weights, k = predictive.loo_weights(np.full((200, 1), -0.3))
    np.testing.assert_allclose(weights, 1 / 200)
    assert k[0] == 0
