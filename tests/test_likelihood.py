"""Truth: dense quadrature over the scatter, with the model written out anew, and scipy's normal distribution."""

import math

import numba
import numpy as np
import pytest
from scipy.special import log_ndtr, logsumexp
from scipy.stats import norm

from bayesqid import likelihood

POINTS = 40_001


def dense(y, s, headroom, eta, tau):
    """Log density of one QiD: trapezoid rule over v where the integrand is above e^-50 of its top."""

    def log_terms(v):
        # far above the ceiling exp(v) overflows to what it stands for
        with np.errstate(over="ignore"):
            seen = headroom * (1 - np.exp(-np.exp(v) / headroom))
        return -0.5 * ((y - seen) / s) ** 2 - 0.5 * ((v - eta) / tau) ** 2

    v = np.linspace(eta - 40 * tau - 5, eta + 40 * tau + 5, POINTS)
    for _ in range(3):
        logs = log_terms(v)
        inside = np.flatnonzero(logs > logs.max() - 50)
        v = np.linspace(v[max(inside[0] - 1, 0)], v[min(inside[-1] + 1, POINTS - 1)], POINTS)
    return logsumexp(log_terms(v)) + math.log((v[1] - v[0]) / (2 * math.pi * s * tau))


def marginal(y, s, headroom, eta, tau):
    """The module's own answer at scalars."""
    y, s, headroom, eta, tau = (np.array([float(x)]) for x in (y, s, headroom, eta, tau))
    anchor, precision = likelihood.anchors(y, s, headroom)
    return [float(part[0]) for part in likelihood.marginal(y, s, headroom, anchor, precision, eta, tau)]


def typical(size=400, seed=0):
    """Cells as the model draws them: every combination of scatter, error and headroom that the data hold."""
    rng = np.random.default_rng(seed)
    eta = rng.uniform(-6, 1.5, size)
    tau = np.exp(rng.uniform(math.log(0.05), 0, size))
    s = np.exp(rng.uniform(math.log(5e-4), math.log(0.05), size))
    headroom = rng.uniform(2, 11, size)
    v = eta + tau * rng.normal(size=size)
    y = headroom * (1 - np.exp(-np.exp(v) / headroom)) + s * rng.normal(size=size)
    return list(zip(y, s, headroom, eta, tau, strict=True))


# below zero, at zero, at and above the ceiling, far from what the law expects
AWKWARD = [
    (-0.01, 0.01, 8.0, -4.0, 0.5), (-0.002, 0.002, 8.0, -7.0, 1.0), (0.0, 0.01, 8.0, -3.0, 0.3),
    (1.95, 0.02, 2.0, 1.5, 0.5), (1.999, 0.02, 2.0, 1.5, 1.0), (2.01, 0.02, 2.0, 2.5, 0.8),
    (0.3, 0.001, 8.0, -4.0, 0.5), (0.3, 0.001, 8.0, 1.0, 0.4), (0.001, 0.01, 8.0, -1.0, 0.3),
]  # fmt: skip


def test_log_density_equals_dense_quadrature_over_the_data_s_range():
    """Worst error 5e-3, 2e-2 in all over 400 cells; a posterior moves by the differences of the sum between draws."""
    cells = typical()
    errors = np.array([marginal(*cell)[0] - dense(*cell) for cell in cells])
    assert np.max(np.abs(errors)) < 5e-3
    assert abs(errors.sum()) < 2e-2


@pytest.mark.parametrize("cell", AWKWARD)
def test_log_density_at_awkward_data(cell):
    """At the ceiling the integrand is a plateau with a shoulder, which nine nodes meet to 4 %."""
    assert marginal(*cell)[0] == pytest.approx(dense(*cell), abs=0.04)


def test_more_scatter_than_the_law_can_explain_costs_more():
    """The density itself, not only its shape: with tiny error and no ceiling it is log-normal in y."""
    y, eta, tau = 0.3, -1.5, 0.4
    want = norm.logpdf(math.log(y), eta, tau) - math.log(y)
    assert marginal(y, 1e-5, 1e4, eta, tau)[0] == pytest.approx(want, abs=1e-4)


def test_density_integrates_to_one_over_all_data():
    for s, headroom, eta, tau in ((0.05, 8.0, -1.0, 0.3), (0.02, 2.5, 0.5, 0.5), (0.1, 8.0, -3.0, 0.8)):
        # steps fine against s, range past both ends of what can be seen
        y = np.arange(-8 * s, headroom + 8 * s, s / 10)
        anchor, precision = likelihood.anchors(y, np.full_like(y, s), np.full_like(y, headroom))
        same = np.ones_like(y)
        logs = likelihood.marginal(y, s * same, headroom * same, anchor, precision, eta * same, tau * same)[0]
        assert np.exp(logs).sum() * s / 10 == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize("cell", typical(25, seed=1) + AWKWARD[:5])
def test_derivatives_equal_differences_of_dense_quadrature(cell):
    y, s, headroom, eta, tau = cell
    _, first, second, in_tau = marginal(*cell)
    # at the ceiling nine nodes meet the integrand less well
    rough = 3 if y > 0.9 * headroom else 1

    def value(e=0.0, t=0.0):
        return dense(y, s, headroom, eta + e, tau + t)

    h = 1e-3 * tau
    assert first * tau == pytest.approx((value(h) - value(-h)) / (2 * h) * tau, abs=0.01 * rough)
    h = 0.02 * tau
    curvature = (value(h) - 2 * value() + value(-h)) / h**2
    assert second * tau**2 == pytest.approx(curvature * tau**2, abs=0.03 * rough)
    h = 1e-3 * tau
    assert in_tau * tau == pytest.approx((value(t=h) - value(t=-h)) / (2 * h) * tau, abs=0.02 * rough)


def test_compiled_equals_interpreted():
    columns = [np.array(column) for column in zip(*(typical(200) + AWKWARD), strict=True)]
    y, s, headroom, eta, tau = columns
    arguments = (y, s, headroom, *likelihood.anchors(y, s, headroom), eta, tau)
    compiled = numba.njit(likelihood.marginal)(*arguments)
    for got, want in zip(compiled, likelihood.marginal(*arguments), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    z = np.linspace(-30, 8, 100)
    np.testing.assert_allclose(numba.njit(likelihood.log_normal_cdf)(z), likelihood.log_normal_cdf(z), rtol=1e-12)


def test_log_normal_cdf_into_the_far_tail():
    z = np.concatenate([np.linspace(-1000, -10, 200), np.linspace(-10, 8, 500), [-10.0, -9.999999, -10.000001]])
    np.testing.assert_allclose(likelihood.log_normal_cdf(z), log_ndtr(z), rtol=2e-8, atol=1e-14)


def test_censored_cells_know_only_that_they_passed_the_point():
    eta = np.array([-40.0, -3.0, 0.0, 1.2, 5.0])
    tau, point = np.full(5, 0.4), 0.9
    value, first, second, in_tau = likelihood.censored(point, eta, tau)
    np.testing.assert_allclose(value, norm.logcdf((eta - point) / tau), rtol=1e-7, atol=1e-15)

    def at(e=0.0, t=0.0):
        return norm.logcdf((eta + e - point) / (tau + t))

    h = 1e-4
    np.testing.assert_allclose(first, (at(h) - at(-h)) / (2 * h), rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(second, (at(h) - 2 * at() + at(-h)) / h**2, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(in_tau, (at(t=h) - at(t=-h)) / (2 * h), rtol=1e-5, atol=1e-10)


def test_saturation_has_its_ceiling_its_slope_and_its_inverse():
    raw = np.array([0.0, 1e-12, 1e-3, 0.5, 3.0, 20.0])
    seen = likelihood.saturate(raw, 8.0)
    assert (np.diff(seen) > 0).all()
    assert seen[-1] < 8.0
    assert likelihood.saturate(1e6, 8.0) == 8.0
    assert seen[1] == pytest.approx(1e-12, rel=1e-9)
    # of 20 of 8 nats only 8 % of the headroom are left: digits go
    np.testing.assert_allclose(likelihood.unsaturate(seen, 8.0), raw, rtol=1e-12)


@pytest.mark.parametrize(("headroom", "seen"), [(8.0, math.log(10)), (2.4, 2.28), (1.0, 0.95)])
def test_the_censoring_point_is_tenfold_perplexity_or_just_under_the_ceiling(headroom, seen):
    point = float(likelihood.censoring_point(headroom))
    assert likelihood.saturate(math.exp(point), headroom) == pytest.approx(seen)


def test_anchors_stay_inside_the_range_whatever_the_data():
    y = np.array([-1.0, 0.0, 0.1, 8.0, 100.0])
    anchor, precision = likelihood.anchors(y, np.full(5, 0.01), np.full(5, 8.0))
    assert np.isfinite(anchor).all()
    assert (precision > 0).all()
    assert math.exp(anchor[2]) == pytest.approx(-8 * math.log(1 - 0.1 / 8))
    # the precision of v is that of y times the squared slope dy/dv
    h = 1e-6
    above, below = (likelihood.saturate(math.exp(anchor[2] + step), 8.0) for step in (h, -h))
    slope = (above - below) / (2 * h)
    assert precision[2] == pytest.approx((slope / 0.01) ** 2, rel=1e-6)
