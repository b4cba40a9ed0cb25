"""Ranks and ECDF bands against direct simulation and against posteriors that are right or wrong by construction."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from bayesqid.inference import sbc


def uniform(rng, n, size=None, levels=sbc.LEVELS):
    return rng.integers(0, levels + 1, size=n if size is None else (size, n))


def normal_fits(n, seed, shift=0.0, stretch=1.0):
    """Ranks of the mean of a normal with known variance; its posterior is shifted by sds and stretched."""
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=n)
    y = mu + rng.normal(size=n)
    # prior Normal(0, 1), one datum with variance 1: posterior Normal(y / 2, 1 / 2)
    posterior = y / 2 + np.sqrt(0.5) * (shift + stretch * rng.normal(size=(1000, n)))
    return sbc.ranks(posterior, mu, rng)


def test_a_rank_counts_the_draws_below_the_truth():
    rng = np.random.default_rng(0)
    draws = np.arange(9.0)[:, None] + np.zeros(3)
    np.testing.assert_array_equal(sbc.ranks(draws, np.array([-1.0, 3.5, 10.0]), rng, levels=9), [0, 4, 9])


def test_ties_are_broken_evenly_over_the_ranks_they_allow():
    rng = np.random.default_rng(1)
    found = sbc.ranks(np.zeros((9, 20_000)), np.zeros(20_000), rng, levels=9)
    shares = np.bincount(found, minlength=10) / 20_000
    np.testing.assert_allclose(shares, 0.1, atol=4 * np.sqrt(0.09 / 20_000))


def test_thinning_takes_draws_as_often_as_they_weigh():
    rng = np.random.default_rng(2)
    weights = np.array([0.5, 0.25, 0.0, 0.25])
    for _ in range(20):
        assert np.bincount(sbc.thin(4, 8, rng, weights), minlength=4).tolist() == [4, 2, 0, 2]
    assert np.diff(sbc.thin(1000, 100, rng)).tolist() == [10] * 99
    with pytest.raises(ValueError, match="cannot be thinned"):
        sbc.thin(5, 9, rng)


def test_weighted_draws_of_a_wrong_proposal_give_the_ranks_of_the_right_posterior():
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        truth = rng.normal()
        proposal = 2.0 * rng.normal(size=2000)
        weights = np.exp(norm.logpdf(proposal) - norm.logpdf(proposal, scale=2.0))
        found.append(int(sbc.ranks(proposal, truth, rng, weights=weights)))
    assert sbc.p_value(np.array(found)) > 0.01


@pytest.mark.parametrize(("n", "levels"), [(20, 9), (60, 19), (200, 99)])
def test_coverage_of_a_band_agrees_with_direct_simulation(n, levels):
    low, high = sbc.ecdf_band(n, levels, 0.9)
    inside = (np.arange(n + 1) >= low[:, None]) & (np.arange(n + 1) <= high[:, None])
    rng, kept, size = np.random.default_rng(4), 0, 4000
    for ranks in uniform(rng, n, size, levels):
        count = sbc.counts(ranks, levels)
        kept += bool(((low <= count) & (count <= high)).all())
    exact = sbc.coverage(inside)
    assert exact >= 0.9
    assert abs(kept / size - exact) < 4 * np.sqrt(exact * (1 - exact) / size)


def test_a_band_at_one_step_is_the_binomial_interval():
    """With one draw per fit the only step is the median: the band is a binomial interval of equal tails."""
    low, high = sbc.ecdf_band(50, 1, 0.95)
    assert binom.cdf(high[0], 50, 0.5) - binom.cdf(low[0] - 1, 50, 0.5) >= 0.95
    assert binom.cdf(high[0] - 1, 50, 0.5) - binom.cdf(low[0], 50, 0.5) < 0.95


def test_few_fits_leave_the_whole_range_open_at_a_high_level():
    low, high = sbc.ecdf_band(1, 99, 0.9999)
    assert (low.min(), high.max()) == (0, 1)
    assert sbc.coverage(np.ones((99, 2), dtype=bool)) == pytest.approx(1.0)


def test_p_values_of_uniform_ranks_fall_below_a_level_at_most_that_often():
    rng = np.random.default_rng(5)
    p = np.array([sbc.p_value(ranks, 19) for ranks in uniform(rng, 50, 800, 19)])
    for level in (0.05, 0.2, 0.5):
        share = (p <= level).mean()
        assert share < level + 4 * np.sqrt(level * (1 - level) / p.size)
        # steps of a discrete test: not much below either
        assert share > 0.8 * level - 4 * np.sqrt(level * (1 - level) / p.size)


def test_a_curve_leaves_its_band_exactly_when_its_p_value_is_at_the_limit():
    rng = np.random.default_rng(6)
    low, high = sbc.ecdf_band(40, 19, 0.8)
    sides = set()
    for ranks in uniform(rng, 40, 150, 19):
        count = sbc.counts(ranks, 19)
        left = bool(((count < low) | (count > high)).any())
        sides.add(left)
        assert left == (sbc.p_value(ranks, 19) <= 0.2)
    assert sides == {True, False}


def test_families_of_right_quantities_pass_at_the_stated_rate():
    rng, size, kept = np.random.default_rng(7), 250, 0
    for _ in range(size):
        found = {str(k): uniform(rng, 50, levels=19) for k in range(5)}
        limit = 0.2 / 5
        kept += all(sbc.p_value(r, 19) > limit for r in found.values())
    assert kept / size > 0.8 - 4 * np.sqrt(0.16 / size)


def test_a_right_posterior_passes():
    rows = sbc.verdict({"mean": normal_fits(300, 8)})
    assert not rows[0].outside
    assert abs(rows[0].cover90 - 0.9) < 4 * np.sqrt(0.09 / 300)
    assert abs(rows[0].cover50 - 0.5) < 4 * np.sqrt(0.25 / 300)


@pytest.mark.parametrize(("shift", "stretch"), [(0.5, 1.0), (-0.5, 1.0), (0.0, 2.0), (0.0, 0.6)],
                         ids=["shifted up", "shifted down", "too wide", "too narrow"])  # fmt: skip
def test_a_wrong_posterior_fails(shift, stretch):
    found = {"right": normal_fits(200, 9), "wrong": normal_fits(200, 10, shift, stretch)}
    assert [row.outside for row in sbc.verdict(found)] == [False, True]


def test_coverage_needs_whole_ranks():
    assert sbc.covered(np.array([4, 5, 94, 95]), 0.9) == 0.5
    with pytest.raises(ValueError, match="whole number"):
        sbc.covered(np.array([1]), 0.9, levels=50)
