"""Marginal likelihood of one QiD: multiplicative scatter integrated out, loss saturating, divergence censored.

The model of one cell is

    v = eta + tau e, e ~ scatter                      log QiD of the law plus multiplicative scatter
    y ~ Normal(L (1 - exp(-exp(v) / L)), s)           measured QiD: s is its known standard error, L the headroom

and a diverged cell says only v > v_c. The scatter is standard normal or Student-t, the latter as a mixture of normals
(`TAILS`), so that every density below is one of normals. Everything is written in array expressions that numba compiles
as they stand, so that the sampler, the fast engine and the answers all run this one source.
"""

import math
from typing import NamedTuple

import numpy as np

# Nine nodes and two Newton steps: more of either changes the log density of no fitted cell by more than the
# error stated in docs/inference-likelihood.md, fewer nodes do
NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
# the rule multiplies by exp(t^2/2) because the nodes are used as an importance-weighted Gaussian proposal
LOG_WEIGHTS = np.log(_WEIGHTS) + 0.5 * NODES**2
NEWTON_STEPS = 2
# ln of a law value far past any ceiling: beyond it exp overflows and nothing changes
HIGHEST = 40.0
LN10 = math.log(10.0)
_LOG_2PI = math.log(2 * math.pi)
# relative error of a datum up to which what it says of v is close enough to normal for a closed form, and the
# distance from zero and from the ceiling that this takes, in standard errors
SHARP, INSIDE = 0.04, 8.0
# name -> scales and weights of the normals that make up the scatter. Student-t with 5 degrees of freedom: log density
# within 0.014 up to 10 scales, variance 1.65 of 1.67
TAILS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "normal": (np.ones(1), np.ones(1)),
    "student-t": (np.array([0.83269, 1.35915, 2.23946, 4.06044]), np.array([0.503394, 0.404642, 0.083569, 0.008395])),
}


class Data(NamedTuple):
    """What the density needs of n cells; the index arrays part them into sharp, blunt and diverged ones.

    Of sharp cells: mean, variance, third central moment and log mass of the likelihood as a density of v. Of blunt
    ones: y, s, L and the start of the search for the mode (`anchors`). Of diverged ones: v_c. `back` brings what was
    computed part by part into the order of the cells.
    """

    sharp: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    skew: np.ndarray
    log_mass: np.ndarray
    blunt: np.ndarray
    y: np.ndarray
    s: np.ndarray
    headroom: np.ndarray
    anchor: np.ndarray
    anchor_precision: np.ndarray
    diverged: np.ndarray
    point: np.ndarray
    back: np.ndarray


def saturate(raw, headroom):
    """QiD that can be seen of an unbounded law value: L (1 - exp(-raw / L)); raw and L in nats per token."""
    return -headroom * np.expm1(-raw / headroom)


def unsaturate(seen, headroom):
    """Inverse of `saturate` for 0 <= seen < L."""
    return -headroom * np.log1p(-seen / headroom)


def censoring_point(headroom, threshold=LN10):
    """Log law value v_c above which a cell counts as diverged, i.e. its QiD passes ten-fold perplexity.

    Where the headroom is hardly above the threshold the point is taken at 95 % of the headroom: a diverged
    model can be worse than a uniform guess, so the ceiling must not make divergence impossible.
    """
    return np.log(unsaturate(np.minimum(threshold, 0.95 * headroom), headroom))


def draw_scatter(rng: np.random.Generator, tau, tails: str = "normal"):
    """Draws of tau e, one for each element of `tau`, e from the scatter of that name."""
    scales, weights = TAILS[tails]
    if scales.size == 1:
        return tau * rng.normal(size=np.shape(tau))
    return tau * rng.choice(scales, size=np.shape(tau), p=weights) * rng.normal(size=np.shape(tau))


def anchors(y, s, headroom):
    """What one datum says about v alone: its log law value and the precision of that, both used as a start.

    Data at or below zero, or at the ceiling, are pulled inside the range; this moves only the start of the
    search for the mode, never the likelihood.
    """
    inside = np.minimum(np.maximum(y, s), 0.98 * headroom)
    raw = unsaturate(inside, headroom)
    return np.log(raw), (raw * np.exp(-raw / headroom) / s) ** 2


def moments(y, s, headroom):
    """Mean, variance, third central moment and log mass of N(y; saturate(e^v, L), s) as a density of v.

    Only of cells well inside (0, L): elsewhere it has no mass. By 21 Gauss-Hermite nodes that are moved onto the
    moments until these stand.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    mean, precision = anchors(y, s, headroom)
    variance = 1 / precision
    for _ in range(4):
        v = mean[:, None] + np.sqrt(variance)[:, None] * nodes
        residual = (y[:, None] - saturate(np.exp(v), headroom[:, None])) / s[:, None]
        term = np.exp(-0.5 * residual**2 + 0.5 * nodes**2) * weights
        total = term.sum(axis=1)
        log_mass = np.log(total) + 0.5 * np.log(variance) - np.log(s) - 0.5 * _LOG_2PI
        mean = (term * v).sum(axis=1) / total
        off = v - mean[:, None]
        variance, skew = ((term * off**power).sum(axis=1) / total for power in (2, 3))
    return mean, variance, skew, log_mass


def prepare(y, s, headroom, censored) -> Data:
    """Cells parted into sharp, blunt and diverged ones; all arguments (n,), `censored` boolean."""
    raw_error = 1 / np.sqrt(anchors(y, s, headroom)[1])
    inside = (y > INSIDE * s) & (headroom - y > INSIDE * s)
    sharp = np.flatnonzero(~censored & inside & (raw_error < SHARP))
    blunt = np.setdiff1d(np.flatnonzero(~censored), sharp)
    diverged = np.flatnonzero(censored)
    own = y[blunt], s[blunt], headroom[blunt]
    return Data(sharp, *moments(y[sharp], s[sharp], headroom[sharp]), blunt, *own, *anchors(*own),
                diverged, censoring_point(headroom[diverged]),
                np.argsort(np.concatenate([sharp, blunt, diverged])))  # fmt: skip


def closed(mean, variance, skew, log_mass, eta, tau):
    """Log density of each sharp QiD and its derivatives; return values as of `marginal`.

    With T^2 = tau^2 + variance and x = (mean - eta) / T it is log_mass + ln N(x; 0, 1) - ln T + skew h(x) / (6 T^3).
    With h = x^3 - 3 x these are the first terms of the Edgeworth series of the sum of scatter and error. They hold near
    the data; so that the last one stays small beside x^2 / 2 far from there, h is divided by 1 + (x / 8)^4.
    """
    width = np.sqrt(tau**2 + variance)
    x = (mean - eta) / width
    bend = skew / (6.0 * width**3)
    fade = 1.0 + x**4 / 4096.0
    h = (x**3 - 3.0 * x) / fade
    h_first = (3.0 * x**2 - 3.0 - h * x**3 / 1024.0) / fade
    h_second = (6.0 * x - h_first * x**3 / 512.0 - h * 3.0 * x**2 / 1024.0) / fade
    value = log_mass - 0.5 * x**2 - np.log(width) - 0.5 * _LOG_2PI + bend * h
    scatter = (x**2 - 1.0 - bend * (x * h_first + 3.0 * h)) / width**2 * tau
    return value, (x - bend * h_first) / width, (bend * h_second - 1.0) / width**2, scatter


def marginal(y, s, headroom, anchor, anchor_precision, eta, tau):
    """Log density of each measured QiD with its derivatives, by Gauss-Hermite around the conditional mode of v.

    All arguments are 1-d arrays of equal length in nats (`anchor`, `anchor_precision` from `anchors`).
    Returns log density, d/d eta, d2/d eta2 and d/d tau. The derivatives are Fisher's identities
    E[v - eta] / tau^2, Var[v - eta] / tau^4 - 1 / tau^2 and (E[(v - eta)^2] / tau^2 - 1) / tau, with the
    expectations over p(v | y) by the same nodes.
    """
    prior = 1.0 / tau**2
    data = 1.0 / s**2
    v = np.minimum((eta * prior + anchor * anchor_precision) / (prior + anchor_precision), HIGHEST)
    for _ in range(NEWTON_STEPS):
        raw = np.exp(v)
        decay = np.exp(-raw / headroom)
        slope = raw * decay
        gradient = (eta - v) * prior + (y - headroom * (1.0 - decay)) * slope * data
        v = np.minimum(v + np.minimum(np.maximum(gradient / (prior + slope**2 * data), -1.0), 1.0), HIGHEST)
    raw = np.exp(v)
    decay = np.exp(-raw / headroom)
    residual = y - headroom * (1.0 - decay)
    width = 1.0 / np.sqrt(prior + (raw * decay) ** 2 * data)
    centre = -0.5 * residual**2 * data - 0.5 * (v - eta) ** 2 * prior
    total = np.zeros_like(eta)
    first = np.zeros_like(eta)
    second = np.zeros_like(eta)
    for k in range(NODES.size):
        node = v + width * NODES[k]
        residual = y - headroom * (1.0 - np.exp(-np.exp(node) / headroom))
        step = node - eta
        log_term = -0.5 * residual**2 * data - 0.5 * step**2 * prior - centre + LOG_WEIGHTS[k]
        term = np.exp(np.minimum(log_term, 600.0))
        total = total + term
        first = first + term * step
        second = second + term * step**2
    first = first / total
    second = second / total
    log_density = np.log(total) + centre + np.log(width / (s * tau)) - _LOG_2PI
    curvature = (second - first**2) * prior**2 - prior
    return log_density, first * prior, curvature, (second * prior - 1.0) / tau


def log_normal_cdf(z):
    """log Phi(z), Phi the standard normal distribution function, for a 1-d array; exact far into the lower tail."""
    out = np.empty_like(z)
    for i in range(z.size):
        x = z[i]
        if x > -10.0:
            out[i] = math.log(0.5 * math.erfc(-x / math.sqrt(2.0)))
        else:
            # asymptotic series of the Mills ratio; at x = -10 the first term left out is 1e-7 of the sum
            r = 1.0 / (x * x)
            series = 1.0 - r * (1.0 - 3.0 * r * (1.0 - 5.0 * r * (1.0 - 7.0 * r)))
            out[i] = -0.5 * x * x - 0.5 * _LOG_2PI - math.log(-x) + math.log(series)
    return out


def censored(point, eta, tau):
    """Log probability that a cell diverges, P(v > v_c) = Phi((eta - v_c) / tau), with its derivatives.

    Same return values as `marginal`. The evaluation error is left out: at ten-fold perplexity it is negligible
    beside the scatter.
    """
    z = (eta - point) / tau
    log_p = log_normal_cdf(z)
    mills = np.exp(-0.5 * z**2 - 0.5 * _LOG_2PI - log_p)
    return log_p, mills / tau, -mills * (z + mills) / tau**2, -mills * z / tau


def _component(data: Data, eta, tau):
    """Log density of all n cells under normal scatter and its derivatives, four of (n,)."""
    a = closed(data.mean, data.variance, data.skew, data.log_mass, eta[data.sharp], tau[data.sharp])
    b = marginal(data.y, data.s, data.headroom, data.anchor, data.anchor_precision, eta[data.blunt], tau[data.blunt])
    c = censored(data.point, eta[data.diverged], tau[data.diverged])
    return (
        np.concatenate((a[0], b[0], c[0]))[data.back],
        np.concatenate((a[1], b[1], c[1]))[data.back],
        np.concatenate((a[2], b[2], c[2]))[data.back],
        np.concatenate((a[3], b[3], c[3]))[data.back],
    )


def density(data: Data, eta, tau, scales, weights):
    """Log density of all n cells with d/d eta, d2/d eta2 and d/d tau, four of (n,).

    `scales` and `weights` are those of `TAILS`: ln p = ln sum_k w_k p_k, with p_k under normal scatter c_k tau.
    """
    highest, d_eta, curvature, d_tau = _component(data, eta, scales[0] * tau)
    if scales.size == 1:
        return highest, d_eta, curvature, d_tau
    highest = highest + np.log(weights[0])
    total = np.ones_like(eta)
    first, second, scatter = d_eta, curvature + d_eta**2, scales[0] * d_tau
    for k in range(1, scales.size):
        value, d_eta, curvature, d_tau = _component(data, eta, scales[k] * tau)
        value = value + np.log(weights[k])
        before, highest = highest, np.maximum(highest, value)
        keep, share = np.exp(before - highest), np.exp(value - highest)
        total = total * keep + share
        first = first * keep + share * d_eta
        second = second * keep + share * (curvature + d_eta**2)
        scatter = scatter * keep + share * scales[k] * d_tau
    first = first / total
    return highest + np.log(total), first, second / total - first**2, scatter / total
