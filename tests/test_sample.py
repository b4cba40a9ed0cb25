"""What `sample` promises: the fitted model, named checks, one file with everything."""

import json

import numpy as np
import pytest
import xarray as xr

from bayesqid import files, laws
from bayesqid.inference import checks, hyper, laplace, posterior, sample, simulate

GROUPS = {"posterior", "sample_stats", "log_likelihood", "log_prior", "prior", "posterior_predictive",
          "observed_data", "constant_data", "cells"}  # fmt: skip


@pytest.fixture(scope="module")
def tree():
    p, _, _ = simulate.study(laws.get("boxcox"), "hierarchical", 8, simulate.grid(families=3, tokens=3, sizes=2))
    return sample.sample(p.cells, laws.get("boxcox"), engine="laplace", seed=1, chains=2, draws=100)


def test_the_tree_has_every_group_and_attribute_of_the_contract(tree):
    assert set(tree.children) == GROUPS
    assert tree.attrs["schema"] == "bayesqid-posterior/1"
    for name in ("law", "model", "seed", "versions", "checks", "check_limits"):
        assert name in tree.attrs
    for name in ("mu", "sd", "theta", "log_k", "alpha", "beta", "gamma", "tau", "lam", "checkpoint_level"):
        assert name in tree["posterior"]
        assert name in tree["prior"]


def test_the_tree_survives_the_disk(tree, tmp_path):
    files.write_netcdf(tree, tmp_path / "p.nc")
    back = files.open_tree(tmp_path / "p.nc")
    for name in GROUPS:
        xr.testing.assert_identical(tree[name].to_dataset(), back[name].to_dataset())
    assert {k: str(v) for k, v in tree.attrs.items()} == {k: str(v) for k, v in back.attrs.items()}


def test_named_views_are_the_rows_of_theta(tree):
    for term in ("log_k", "alpha", "beta", "gamma"):
        np.testing.assert_array_equal(tree["posterior"][term], tree["posterior"]["theta"].sel(term=term))


def test_one_family_is_fitted_as_pooled_with_a_warning():
    cells = simulate.grid(families=1)
    model, warning = sample.choose_model(cells, "hierarchical")
    assert model == "pooled"
    assert "one family (F0)" in warning
    assert sample.choose_model(simulate.grid(families=2), "hierarchical") == ("hierarchical", None)


def test_the_same_seed_gives_the_same_posterior(tree):
    again = sample.sample(tree["cells"].to_dataset(), laws.get("boxcox"), engine="laplace", seed=1, chains=2, draws=100)
    np.testing.assert_array_equal(again["posterior"]["theta"], tree["posterior"]["theta"])


@pytest.mark.parametrize(
    ("name", "bad"), [("divergences", 1.0), ("rhat", 1.02), ("ess_bulk", 300.0), ("ess_tail", np.nan), ("ebfmi", 0.2)]
)
def test_each_check_fails_alone_on_a_bad_value(name, bad):
    good = {"divergences": 0.0, "rhat": 1.001, "ess_bulk": 900.0, "ess_tail": 900.0, "ebfmi": 0.8}
    assert all(checks.passed(good).values())
    result = checks.passed(good | {name: bad})
    assert [key for key, passed in result.items() if not passed] == [name]


def test_diagnostics_see_a_stuck_chain_and_count_divergences():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 500))
    free = xr.Dataset({"x": (("chain", "draw"), values), "y": (("chain", "draw", "k"), rng.normal(size=(4, 500, 3)))})
    stats = xr.Dataset({"diverging": (("chain", "draw"), np.zeros((4, 500))),
                        "energy": (("chain", "draw"), rng.normal(size=(4, 500)))})  # fmt: skip
    assert all(checks.passed(checks.worst(free, stats)).values())
    values[0] += 3
    stats["diverging"][0, 7] = 1
    stuck = checks.worst(free, stats)
    assert stuck["rhat"] > 1.2
    assert stuck["divergences"] == 1


def test_thinned_keeps_means_within_monte_carlo_error(tree):
    from bayesqid.inference.posterior import thinned

    small = thinned(tree, 50)
    assert small["posterior"].sizes == {"chain": 1, "draw": 50, **{
        k: v for k, v in tree["posterior"].sizes.items() if k not in ("chain", "draw")}}  # fmt: skip
    beta = tree["posterior"]["mu"].sel(term="beta")
    assert abs(float(small["posterior"]["mu"].sel(term="beta").mean() - beta.mean())) < 4 * float(beta.std()) / 50**0.5
    assert json.loads(small.attrs["checks"]) == json.loads(tree.attrs["checks"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tails", ["normal", "student-t"])
def test_nuts_and_the_fast_engine_agree_within_monte_carlo_error(tails):
    """Importance weights of a few hundred draws miss some of the tails, where NUTS does not: here there are more."""
    law = laws.variant("boxcox", extras=("student-t",) if tails == "student-t" else ())
    p, _, _ = simulate.study(law, "hierarchical", 21, simulate.grid(families=3, tokens=3, sizes=2))
    run = sample.nuts(p, 3, chains=2, draws=1500, tune=500)
    # after the retry that a stray divergence brings about
    assert run.checks["divergences"], run.record
    one = posterior.named(p, run.b, run.natural)
    found = laplace.fit(p, 6000, 4, proposals=300, rounds=12)
    other = posterior.named(p, found.b[None], hyper.unpack(p, found.phi[None]))
    from arviz_stats import ess

    over = ("chain", "draw")
    for name in ("mu", "theta", "tau", "lam"):
        a, b = one[name], other[name]
        neff = ess(xr.Dataset({name: a}), method="bulk")[name].to_numpy()
        of_squares = ess(xr.Dataset({name: (a - a.mean(over)) ** 2}), method="mean")[name].to_numpy()
        sd = a.std(over).to_numpy()
        gap = np.abs((a.mean(over) - b.mean(over)).to_numpy())
        # four standard errors of the difference, over some thirty parameters
        assert np.all(gap < 4 * sd * np.sqrt(1 / neff + 1 / found.ess)), name
        # var(log sd) = (kurtosis - 1) / 4 n; means of few families have tails, kurtosis 3 to 12
        kurtosis = ((a - a.mean(over)) ** 4).mean(over).to_numpy() / sd**4
        ratio = (b.std(over) / a.std(over)).to_numpy()
        error = np.sqrt((kurtosis - 1) / 4 * (1 / of_squares + 1 / found.ess))
        assert np.all(np.abs(np.log(ratio)) < 4 * error), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_numpyro_samples_what_the_fast_engine_does(monkeypatch):
    pytest.importorskip("numpyro", reason="NumPyro is not installed: pip install 'bayesqid[numpyro]'")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # few draws need not pass the checks
    monkeypatch.setattr(sample, "TARGETS", sample.TARGETS[:1])
    p, _, _ = simulate.study(laws.get("boxcox"), "hierarchical", 21, simulate.grid(families=2, tokens=2, sizes=2))
    run = sample.nuts(p, 3, chains=1, draws=200, tune=200, backend="numpyro")
    found = laplace.fit(p, 2000, 4)
    for name in ("sd", "tau", "lam"):
        one, other = np.log(getattr(run.natural, name)[0]), np.log(getattr(hyper.unpack(p, found.phi), name))
        # four standard errors, a chain's draws of a spread being worth a quarter of as many
        error = one.std(axis=0) * np.sqrt(4 / 200 + 1 / found.ess)
        assert np.all(np.abs(one.mean(axis=0) - other.mean(axis=0)) < 4 * error), name


@pytest.mark.slow
def test_the_fast_engine_agrees_with_the_bundled_nuts_posterior_of_the_atlas():
    from bayesqid import bundled
    from bayesqid.importers import sources

    nuts = files.open_tree(bundled.data_dir() / "posterior.nc")
    assert all(json.loads(nuts.attrs["checks"]).values())
    cells = sources.read_cells("atlas")
    fast = sample.sample(cells, laws.get("boxcox"), engine="laplace", seed=7, chains=4, draws=500)
    effective = min(json.loads(fast.attrs["engine"])["importance_ess"], 400)
    for name in ("mu", "theta", "tau", "lam", "covariate"):
        a, b = nuts["posterior"][name], fast["posterior"][name]
        sd = a.std(("chain", "draw")).to_numpy()
        gap = np.abs((a.mean(("chain", "draw")) - b.mean(("chain", "draw"))).to_numpy())
        # the thinned draws are nearly independent; four standard errors over some fifty parameters
        assert np.all(gap < 4 * sd * np.sqrt(1 / 400 + 1 / effective)), name
