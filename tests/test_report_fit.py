"""Calibration of a report against closed forms: left-out transforms, bands, ranges of chance."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binom, kstest, norm

import posteriors
from bayesqid.answers import draws, level, observed
from bayesqid.report import calibration, fits, levels, pages, words


def normal_model(n=6, size=80_000, keep_likelihood=True):
    """Cells y ~ N(mu, 1), mu flat: mu | y ~ N(mean, 1 / n), a y left out ~ N(mean of the others, n / (n - 1))."""
    rng = np.random.default_rng(3)
    y = rng.normal(size=n)
    mu = y.mean() + rng.normal(size=size) / np.sqrt(n)
    drawn = mu[:: 4, None] + rng.normal(size=(size // 4, n))
    groups = {"posterior_predictive": xr.Dataset({"qid": (("chain", "draw", "cell"), drawn[None])})}
    if keep_likelihood:
        density = norm.logpdf(y, mu[:, None], 1)
        groups["log_likelihood"] = xr.Dataset({"qid": (("chain", "draw", "cell"), density[None])})
    cells = xr.Dataset({"qid": ("cell", y), "censored": ("cell", np.zeros(n, dtype=bool))})
    return SimpleNamespace(tree=xr.DataTree.from_dict(groups), cells=cells), y


def test_left_out_transforms_are_those_of_the_closed_form():
    posterior, y = normal_model()
    found = calibration.transforms(posterior)
    n = y.size
    others = (y.sum() - y) / (n - 1)
    exact = norm.cdf(y, others, np.sqrt(n / (n - 1)))
    np.testing.assert_allclose(found["left out"], exact, atol=0.015)
    np.testing.assert_allclose(found["fitted"], norm.cdf(y, y.mean(), np.sqrt(1 + 1 / n)), atol=0.015)
    assert np.abs(found["fitted"] - exact).max() > 0.03


def test_without_the_likelihood_nothing_is_said_of_cells_left_out():
    posterior, _ = normal_model(keep_likelihood=False)
    curves = {name: calibration.ecdf(values) for name, values in calibration.transforms(posterior).items()}
    assert list(curves) == ["fitted"]
    assert "does not hold the likelihood" in fits.transforms(curves).caption
    both = {name: calibration.ecdf(values) for name, values in calibration.transforms(normal_model()[0]).items()}
    assert "does not hold the likelihood" not in fits.transforms(both).caption


def test_diverged_cells_lie_in_the_upper_tail():
    posterior = posteriors.posterior(data=posteriors.cells())
    gone = posterior.cells["censored"].to_numpy()
    assert gone.any()
    found = calibration.transforms(posterior)["fitted"]
    assert ((found > 0) & (found < 1)).all()
    drawn = posterior.tree["posterior_predictive"]["qid"].to_numpy()[0]
    assert (found[gone] >= (drawn <= np.log(10)).mean(axis=0)[gone] - 0.02).all()


def test_nine_in_ten_uniform_samples_stay_inside_the_band():
    rng = np.random.default_rng(1)
    inside = [all(row["lower"] <= row["difference"] <= row["upper"] for row in calibration.ecdf(rng.uniform(size=150)))
              for _ in range(400)]  # fmt: skip
    assert 0.85 < np.mean(inside) < 0.96


def test_the_difference_is_that_of_the_empirical_distribution():
    values = np.random.default_rng(2).beta(2, 2, size=500)
    rows = calibration.ecdf(values)
    assert rows[24]["difference"] == pytest.approx((values <= 0.25).mean() - 0.25)
    largest = max(abs(row["difference"]) for row in rows)
    assert largest == pytest.approx(kstest(values, "uniform").statistic, abs=0.01)
    assert "leave the band" in fits.transforms({"fitted": rows}).alt
    assert "stay inside" in fits.transforms({"fitted": calibration.ecdf((np.arange(100) + 0.5) / 100)}).alt


@pytest.mark.parametrize("cells", [10, 37, 400])
def test_ranges_of_chance_are_binomial(cells):
    found = calibration.chances(cells)
    for mass in (50, 90):
        assert found[f"least{mass}"] * cells == pytest.approx(binom.ppf(0.05, cells, mass / 100))
        assert found[f"most{mass}"] * cells == pytest.approx(binom.ppf(0.95, cells, mass / 100))


def test_calibration_says_what_the_file_holds():
    bundled = draws.read(str(draws.bundled.data_dir() / draws.BUNDLED))
    told = words.calibration(bundled)
    rows = {row["group"]: row for row in calibration.groups(bundled)}
    assert f"{100 * rows['all cells']['loo_coverage90']:.0f} % inside their 90 %" in told[0]
    assert "OPT (more scattered than predicted)" in told[1]
    names = [block.name for block in pages._calibration(bundled) if hasattr(block, "name")]
    assert names == ["calibration", "pit", "diagnosis"]
    made = posteriors.posterior()
    assert words.calibration(made) == ["The predictive checks by groups are not in this file."]
    assert [block.name for block in pages._calibration(made) if hasattr(block, "name")] == ["pit"]


def test_levels_are_those_of_the_answer_for_the_cells_named():
    posterior = posteriors.posterior()
    found = levels.levels(posterior)
    assert {one.family for one in found} == {"fixed", "crossed", "lockstep"}
    one = next(one for one in found if one.family == "crossed")
    cells = next(cells for cells in levels.picked(posterior) if cells["family"].values[0] == "crossed")
    assert not cells["censored"].any()
    assert len(set(cells["effective_bits"].values)) == cells.sizes["cell"] <= levels.QIDS
    qids, facts = observed.from_cells(cells)
    # the fewest tokens of these cells are 20B
    assert levels.prior(posterior) == (2e8, 1e16)
    expected = level.level(posterior, facts["params"], qids, one.method, "crossed", (2e8, 1e16))
    shown = next(row for row in levels.table(found).rows if row["checkpoint"] == one.checkpoint
                 and row["asked"] == "its own family")  # fmt: skip
    assert shown["median"] == pytest.approx(float(expected["median"][0]), rel=0.02)
    assert shown["disclosed"] == facts["tokens"]
    curve = [row for row in levels.figure(found).rows
             if (row["checkpoint"], row["label"]) == (one.checkpoint, "its own family")]  # fmt: skip
    area = np.trapezoid([row["density"] for row in curve], np.log10([row["tokens"] for row in curve]))
    assert area == pytest.approx(1.0, abs=0.03)
