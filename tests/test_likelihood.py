"""Truth: dense quadrature over the scatter, with the model written out anew, and scipy's normal distribution."""

import math

import numba
import numpy as np
import pytest
from scipy.special import log_ndtr, logsumexp
from scipy.stats import norm
from scipy.stats import t as student

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


def sharp_cells(tau, far, size=16, seed=3):
    """Cells of small relative error (0.3 to 3.5 %) that lie `far` widths from what the law expects, either side."""
    rng = np.random.default_rng(seed)
    headroom, v = rng.uniform(2, 11, size), rng.uniform(-5, -0.5, size)
    seen = headroom * (1 - np.exp(-np.exp(v) / headroom))
    s = np.exp(rng.uniform(math.log(0.003), math.log(0.035), size)) * seen
    y = seen + s * rng.normal(size=size)
    either = np.where(np.arange(size) % 2, 1, -1)
    eta = np.log(likelihood.unsaturate(y, headroom)) + far * math.hypot(tau, 0.035) * either
    return y, s, headroom, eta, np.full(size, tau)


def mixed(y, s, headroom, eta, tau, tails):
    """Log density under a mixture of normal scatters by dense quadrature, shape (n,)."""
    parts = zip(*likelihood.TAILS[tails], strict=True)
    each = [[math.log(w) + dense(*cell[:4], c * cell[4]) for cell in zip(y, s, headroom, eta, tau, strict=True)]
            for c, w in parts]  # fmt: skip
    return logsumexp(each, axis=0)


# tails, tau, widths from the data, worst error of the log density: fourth moments and the square of the skewness are
# left out, which matter where tau is as small as the relative error and the datum far out
SHARP = [
    ("normal", 0.05, 0, 2e-3), ("normal", 0.05, 2, 0.03), ("normal", 0.05, 3, 0.2), ("normal", 0.1, 2, 5e-3),
    ("normal", 0.2, 2, 6e-4), ("normal", 0.2, 3, 5e-3), ("normal", 0.2, 10, 0.2), ("normal", 0.5, 3, 3e-4),
    ("normal", 1.0, 10, 2e-3), ("student-t", 0.05, 3, 0.05), ("student-t", 0.05, 10, 0.02),
    ("student-t", 0.2, 10, 1e-4), ("student-t", 0.5, 3, 3e-5),
]  # fmt: skip


@pytest.mark.parametrize(("tails", "tau", "far", "error"), SHARP)
def test_the_closed_form_of_sharp_cells_equals_dense_quadrature(tails, tau, far, error):
    y, s, headroom, eta, taus = sharp_cells(tau, far)
    data = likelihood.prepare(y, s, headroom, np.zeros(y.size, dtype=bool))
    assert data.sharp.size == y.size
    got = likelihood.density(data, eta, taus, *likelihood.TAILS[tails])[0]
    np.testing.assert_allclose(got, mixed(y, s, headroom, eta, taus, tails), rtol=0, atol=error)


@pytest.mark.parametrize("tails", likelihood.TAILS)
def test_density_of_all_kinds_of_cells_equals_dense_quadrature_in_the_cells_order(tails):
    columns = [np.array(column) for column in zip(*typical(60, seed=5), strict=True)]
    y, s, headroom, eta, tau = columns
    tau = np.maximum(tau, 0.15)
    censored = np.arange(60) % 7 == 0
    data = likelihood.prepare(y, s, headroom, censored)
    assert min(data.sharp.size, data.blunt.size, data.diverged.size) > 5
    got = likelihood.density(data, eta, tau, *likelihood.TAILS[tails])[0]
    keep = ~censored
    want = mixed(y[keep], s[keep], headroom[keep], eta[keep], tau[keep], tails)
    np.testing.assert_allclose(got[keep], want, rtol=0, atol=0.02)
    scales, weights = likelihood.TAILS[tails]
    z = (eta[censored] - likelihood.censoring_point(headroom[censored])) / tau[censored]
    want = logsumexp(norm.logcdf(z[:, None] / scales), b=weights, axis=1)
    np.testing.assert_allclose(got[censored], want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("tails", likelihood.TAILS)
@pytest.mark.parametrize("far", [0.5, 4.0])
def test_derivatives_of_sharp_and_diverged_cells_are_those_of_the_value_itself(tails, far):
    """The closed forms are differentiated as they stand, so differences of the value meet them to rounding."""
    y, s, headroom, eta, tau = sharp_cells(0.2, far, size=40)
    data = likelihood.prepare(y, s, headroom, np.arange(40) % 4 == 0)
    assert data.blunt.size == 0

    def value(e=0.0, t=0.0):
        return likelihood.density(data, eta + e, tau + t, *likelihood.TAILS[tails])

    _, first, second, in_tau = value()
    h = 1e-5
    np.testing.assert_allclose(first, (value(h)[0] - value(-h)[0]) / (2 * h), rtol=1e-6, atol=1e-6)
    # ten widths below the point of divergence 1e-7 of the tail's series are left out, and z^2 times that here
    np.testing.assert_allclose(second, (value(h)[1] - value(-h)[1]) / (2 * h), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(in_tau, (value(t=h)[0] - value(t=-h)[0]) / (2 * h), rtol=1e-6, atol=1e-6)


def test_moments_of_a_datum_are_those_of_its_likelihood_in_log_units():
    y, s, headroom, *_ = sharp_cells(0.2, 0)
    got = np.array(likelihood.moments(y, s, headroom))
    for i in range(y.size):
        mode, precision = likelihood.anchors(y[i], s[i], headroom[i])
        v = mode + np.linspace(-12, 12, POINTS) / math.sqrt(precision)
        weight = norm.pdf(y[i], headroom[i] * (1 - np.exp(-np.exp(v) / headroom[i])), s[i])
        mass = np.trapezoid(weight, v)
        mean = np.trapezoid(weight * v, v) / mass
        variance, skew = (np.trapezoid(weight * (v - mean) ** k, v) / mass for k in (2, 3))
        np.testing.assert_allclose(got[[0, 1, 3], i], [mean, variance, math.log(mass)], rtol=1e-6)
        assert got[2, i] == pytest.approx(skew, rel=1e-3, abs=1e-4 * variance**1.5)


def test_student_t_tails_are_student_t():
    """Log density of the mixture of normals within 0.014 up to 10 scales, which 99.98 % of the scatter are."""
    scales, weights = likelihood.TAILS["student-t"]
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    x = np.linspace(-10, 10, 4001)
    got = np.log(norm.pdf(x[:, None] / scales) / scales @ weights)
    assert np.abs(got - student.logpdf(x, 5)).max() < 0.014
    assert weights @ scales**2 == pytest.approx(5 / 3, abs=0.015)


@pytest.mark.parametrize(
    ("tails", "variance", "beyond"), [("normal", 1.0, norm.sf(3)), ("student-t", 1.654, student.sf(3, 5))]
)
def test_drawn_scatter_has_the_variance_and_tails_of_its_name(tails, variance, beyond):
    many, tau = 200_000, np.array([0.3, 2.0])
    draws = likelihood.draw_scatter(np.random.default_rng(0), np.broadcast_to(tau, (many, 2)), tails) / tau
    assert draws.shape == (many, 2)
    # four standard errors; the mixture's kurtosis is 7
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=4 * math.sqrt(6 / many))
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=4 * math.sqrt(variance / many))
    np.testing.assert_allclose((draws > 3).mean(axis=0), beyond, atol=4 * math.sqrt(beyond / many) + 2e-4)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 4 / math.sqrt(many)
