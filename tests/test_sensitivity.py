"""Reweighting for other priors against ArviZ, closed forms and a refit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import posteriors
from bayesqid import laws
from bayesqid.answers import asking, draws, identification, project, reweighting, sensitivity, standing
from bayesqid.errors import BadInput

TARGET = {"params": 7e10, "tokens": 1e14}


def target(family=None):
    return asking.target_of(None, 4.0, "gptq", family=family, **TARGET)


def made(model="hierarchical", **wanted):
    tree = posteriors.tree(**wanted)
    tree.attrs["model"] = model
    return draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "made.nc", "0" * 64, "file")


@pytest.mark.parametrize("sd", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("size", [200, 2000])
def test_smoothed_weights_and_k_are_those_of_arviz(sd, size):
    from arviz_stats.base import array_stats

    log_weights = sd * np.random.default_rng(1).normal(size=size)
    want, k = array_stats.psislw(-log_weights, r_eff=1.0)
    got, own = reweighting.smoothed(log_weights)
    np.testing.assert_allclose(got, np.exp(want), rtol=1e-6)
    assert own == pytest.approx(float(k), abs=1e-8)


def test_equal_weights_stay_equal():
    weights, k = reweighting.smoothed(np.zeros(500))
    np.testing.assert_allclose(weights, 1 / 500)
    assert k == -np.inf


def test_weighted_quantiles_of_equal_weights_are_the_usual_ones():
    values = np.random.default_rng(0).normal(size=4001)
    for q in (0.05, 0.5, 0.95):
        want = np.quantile(values, q, method="hazen")
        assert reweighting.weighted_quantile(values, np.full(4001, 1 / 4001), q) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_normal_posterior_under_another_normal_prior_is_the_closed_form(factor):
    posterior = made("pooled", beta_sd=0.15, size=20_000)
    mu = posterior.sample["mu"].sel(term="beta").to_numpy()
    weights, k = reweighting.smoothed(sensitivity.log_ratio(posterior, "beta", factor))
    # posterior Normal(0.5, 0.15) under the prior Normal(0.4, 0.25): take that prior out and put the new one in
    old, new = 0.25**-2, (factor * 0.25) ** -2
    precision = 0.15**-2 - old + new
    mean = (0.5 * 0.15**-2 + 0.4 * (new - old)) / precision
    effective = 1 / (weights**2).sum()
    assert k < reweighting.k_limit(mu.size)
    assert (weights * mu).sum() == pytest.approx(mean, abs=4 / np.sqrt(precision * effective))
    assert (weights * (mu - mean) ** 2).sum() == pytest.approx(1 / precision, rel=4 * np.sqrt(2 / effective))


def test_the_ratio_is_that_of_the_densities_of_each_model():
    from scipy.stats import halfnorm, norm

    posterior = made()
    mu, sd = (posterior.sample[name].sel(term="beta").to_numpy() for name in ("mu", "sd"))
    want = norm.logpdf(mu, 0.4, 0.5) - norm.logpdf(mu, 0.4, 0.25) + halfnorm.logpdf(sd, scale=0.3) - halfnorm.logpdf(
        sd, scale=0.15)  # fmt: skip
    np.testing.assert_allclose(sensitivity.log_ratio(posterior, "beta", 2.0), want, atol=1e-9)
    scale = np.hypot(0.25, 0.15)
    theta = posterior.sample["theta"].sel(term="beta").transpose("draw", "family").to_numpy()
    want = (norm.logpdf(theta, 0.4, 2 * scale) - norm.logpdf(theta, 0.4, scale)).sum(axis=1)
    np.testing.assert_allclose(sensitivity.log_ratio(made("independent"), "beta", 2.0), want, atol=1e-9)


@pytest.mark.parametrize("name", ["boxcox", "curved"])
def test_priors_are_taken_where_they_hold(name):
    """Bends turn about the centre of the data: what the file tells at the pivot is carried back before it is judged."""
    from bayesqid.inference import hyper, problem, simulate
    from bayesqid.inference import posterior as groups

    p = problem.build(simulate.grid(families=3, tokens=3), laws.get(name), "hierarchical")
    rng = np.random.default_rng(0)
    b, phi = hyper.draw_prior(p, 300, rng)
    tree = groups.assemble(p, b[None], hyper.unpack(p, phi[None]), xr.Dataset(), 0, {"checks": "{}"})
    posterior = draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "x", "0", "file")
    found = sensitivity.at_centre(posterior)
    for term in p.law.term_names:
        np.testing.assert_allclose(found["mu"].sel(term=term), b[:, p.block(f"mu {term}").start], atol=1e-9)
    for covariate in p.law.covariates:
        value = found["covariate"].sel(covariate_name=covariate.name)
        np.testing.assert_allclose(value, b[:, p.block(covariate.name).start], atol=1e-9)


def test_under_independent_families_a_new_one_follows_the_new_prior():
    posterior = made("independent", size=4000)
    posterior.sample["sd"][:] = np.hypot([1.5, 0.2, 0.25, 2.0], [0.7, 0.15, 0.15, 1.0])
    # the weights would be those of fitted families: here they carry nothing
    posterior.sample["theta"][:] = 0.4
    rows = sensitivity.prior_scale(posterior, [target()], "beta", (2.0,), "mean")
    one, two = (np.log(row["median"] / row["lower90"]) for row in rows)
    # the target is at e^6.9 times the pivot's tokens: beta's share of the spread doubles
    assert two > 1.3 * one


def test_copies_of_a_draw_count_as_one():
    posterior = made(size=300)
    twice = replace(posterior, sample=xr.concat([posterior.sample, posterior.sample], dim="draw"))
    ratio = sensitivity.log_ratio(posterior, "beta", 0.5)
    weights, effective, k = sensitivity.reweighted(posterior, ratio)
    both, same, alike = sensitivity.reweighted(twice, np.concatenate([ratio, ratio]))
    np.testing.assert_allclose(both, np.concatenate([weights, weights]) / 2)
    assert (same, alike) == pytest.approx((effective, k))
    assert sensitivity.reweighted(twice, np.zeros(600))[1] == pytest.approx(300)


def test_the_reached_prior_is_told_and_one_out_of_reach_is_null():
    posterior = made(size=2000)
    rows = sensitivity.prior_scale(posterior, [target(), target("crossed")], "beta", (0.5, 0.01))
    assert [(row["family"], row["factor"]) for row in rows] == [
        (family, factor) for factor in (1.0, 0.5, 0.01) for family in ("new", "crossed")]  # fmt: skip
    assert rows[0]["effective"] == pytest.approx(2000)
    assert all(row["lower90"] < row["median"] < row["upper90"] for row in rows[:4])
    assert all(row["median"] is None for row in rows[4:])
    found = sensitivity.answer(posterior, [target()])
    found["prior_scale"] = rows
    assert "too few draws" in sensitivity.as_text(found)
    fitted = project.project(posterior, [target()])
    assert rows[0]["upper90"] == pytest.approx(float(fitted["upper90"][0]), rel=0.02)


def test_cjs_is_that_of_arviz_and_zero_without_weights():
    from arviz_stats.base.diagnostics import _DiagnosticsBase

    rng = np.random.default_rng(2)
    values, weights = rng.gamma(2.0, size=500), rng.gamma(3.0, size=500)
    want = max(_DiagnosticsBase._cjs_dist(values, weights), _DiagnosticsBase._cjs_dist(-values, weights))
    assert reweighting.cjs(values, weights) == pytest.approx(want, rel=1e-3)
    assert reweighting.cjs(values, np.ones(500)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("rounding", [0.0, 1e-15])
def test_draws_that_all_stand_at_the_ceiling_move_with_nothing(rounding):
    rng = np.random.default_rng(0)
    values = 1.22 * (1 + rounding * rng.normal(size=300))
    assert reweighting.power_slope(values, rng.normal(size=300)) == 0


def test_power_scaling_of_a_parameter_is_that_of_psense():
    import arviz_stats

    posterior = made(size=1000)
    beta = posterior.sample["mu"].sel(term="beta").to_numpy()
    density = sensitivity.log_hyper_prior(posterior) - 40 * (beta - 0.5)
    tree = xr.DataTree.from_dict({
        "posterior": xr.Dataset({"beta": (("chain", "draw"), beta[None])}),
        "log_prior": xr.Dataset({"all": (("chain", "draw"), density[None])}),
    })  # fmt: skip
    want = float(arviz_stats.psense(tree, group="prior")["beta"])
    # psense smooths the tails of its weights, which at alpha = 0.99 and 1.01 moves them little
    assert reweighting.power_slope(beta, density) == pytest.approx(want, rel=0.03)


def test_the_density_of_the_priors_is_that_of_scipy():
    from scipy.stats import halfnorm, norm

    posterior, law = made(), laws.get("boxcox")
    sample = posterior.sample
    want = np.zeros(posterior.size)
    for term in law.terms:
        want += norm.logpdf(sample["mu"].sel(term=term.name), term.mean, term.sd)
        want += halfnorm.logpdf(sample["sd"].sel(term=term.name), scale=term.spread)
    for covariate in law.covariates:
        want += norm.logpdf(sample["covariate"].sel(covariate_name=covariate.name), covariate.mean, covariate.sd)
    for effect in law.effects:
        want += halfnorm.logpdf(sample["spread"].sel(effect=effect.name), scale=effect.spread)
    want += halfnorm.logpdf(sample["tau"].transpose("draw", "generation"), scale=0.4).sum(axis=1)
    want += norm.logpdf(sample["lam"], 0.5, 0.3)
    gap = sensitivity.log_hyper_prior(posterior) - want
    np.testing.assert_allclose(gap, gap[0], atol=1e-8)


def test_a_part_that_moves_the_target_is_flagged_and_one_that_does_not_is_not():
    posterior = made(size=1000)
    assert sensitivity.power_scaling(posterior, [target()])[0]["likelihood"] is None
    value = np.log(project.qid_draws(posterior, [target()], "new")[0][:, 0])
    for slope, flagged in ((5.0, True), (0.0, False)):
        noise = np.random.default_rng(3).normal(size=value.size)
        density = (slope * value + noise)[None, :, None]
        posterior.tree["log_likelihood"] = xr.DataTree(xr.Dataset({"qid": (("chain", "draw", "cell"), density)}))
        row = sensitivity.power_scaling(posterior, [target()])[0]
        assert row["likelihood_sensitive"] is flagged
        assert row["likelihood_noise"] < 0.05
    assert sensitivity.answer(posterior, [target()])["likelihood"] == "in this file"


def test_what_cannot_be_told_is_refused():
    with pytest.raises(BadInput, match="bands mean and new"):
        sensitivity.power_scaling(made(), [target()], "observed")
    posterior = made()
    del posterior.tree.attrs["priors"]
    with pytest.raises(BadInput, match="which priors"):
        sensitivity.answer(posterior, [target()])


def test_a_law_without_tokens_has_no_prior_of_theirs_to_change(monkeypatch):
    posterior = made()
    law = laws.get("boxcox")
    terms = tuple(term for term in law.terms if term.factor != "x_D")
    monkeypatch.setitem(laws.LAWS, "boxcox", replace(law, terms=terms))
    names = [term.name for term in terms]
    posterior = replace(posterior, sample=posterior.sample.sel(term=names))
    assert identification.tokens_term(posterior) is None
    assert identification.families(posterior) == []
    assert "no term of tokens" in identification.sentences(posterior)[0]


def test_everything_a_posterior_rests_on_is_one_plain_object_and_fits_eighty_columns():
    posterior = made(checks={"rhat": False})
    found = standing.of(posterior, **TARGET, bits=4.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = standing.as_text(found)
    assert text.startswith("Checks failed: rhat.")
    assert "not in this file" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_stored_diagnosis_is_shown_by_groups():
    rows = [{"by": "bits", "level": "2", "cells": 9, "diverged": 1, "coverage50": 0.5, "coverage90": 0.9, "mean_z": 0.1,
             "sd_z": None, "max_abs_z": 2.0, "p_mean": 0.0001, "p_sd": None, "p_loo_pit": 0.5,
             "says": "higher than predicted"}]  # fmt: skip
    about = {"pareto_k_max": 0.9, "pareto_k_limit": 0.7, "cells_above_limit": 3}
    text = standing.diagnosis_text({"draws": 10, "loo": about, "groups": rows})
    assert "Surprising: 2 bits: higher than predicted." in text
    assert "<.001" in text
    assert "3 cells have a Pareto k" in text
    rows[0].pop("p_loo_pit")
    assert "leave-one-out" not in standing.diagnosis_text({"draws": 10, "loo": None, "groups": rows})


@pytest.mark.slow
def test_halved_and_doubled_priors_give_what_a_refit_gives():
    from bayesqid.inference import sample, simulate

    law = laws.get("boxcox")
    p, _, _ = simulate.study(law, "hierarchical", 5, simulate.grid(families=4, tokens=3, sizes=2))

    def fit(factor, seed):
        beta = next(term for term in law.terms if term.name == "beta")
        chosen = laws.with_priors(law, {"beta": {"sd": factor * beta.sd, "spread": factor * beta.spread}})
        tree = sample.sample(p.cells, chosen, engine="laplace", seed=seed, chains=1, draws=2000)
        effective = json.loads(tree.attrs["engine"])["importance_ess"]
        return draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "x", "0", "file"), effective

    base, base_effective = fit(1.0, 1)
    targets = [asking.target_of(None, 4.0, "gptq", family=f, **TARGET) for f in (None, "F0")]
    rows = sensitivity.prior_scale(base, targets, "beta", band="mean")
    for factor in (0.5, 2.0):
        other, effective = fit(factor, 2)
        value = np.log(project.qid_draws(other, targets, "mean")[0])
        for number, row in enumerate(r for r in rows if r["factor"] == factor):
            fewest = 1 / (1 / effective + 1 / min(row["effective"], base_effective))
            for name, q in (("lower90", 0.05), ("median", 0.5), ("upper90", 0.95)):
                share = (value[:, number] < np.log(row[name])).mean()
                assert abs(share - q) < 4 * np.sqrt(q * (1 - q) / fewest), (factor, row["family"], name, share, fewest)
