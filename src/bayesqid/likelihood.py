"""Marginal likelihood of one QiD: multiplicative scatter integrated out, loss saturating, divergence censored.

The model of one cell is

    v ~ Normal(eta, tau)                              log QiD of the law plus multiplicative scatter
    y ~ Normal(L (1 - exp(-exp(v) / L)), s)           measured QiD: s is its known standard error, L the headroom

and a diverged cell says only v > v_c. Everything is written in array expressions that numba compiles as they
stand, so that the sampler, the fast engine and the answers all run this one source.
"""

import math

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


def anchors(y, s, headroom):
    """What one datum says about v alone: its log law value and the precision of that, both used as a start.

    Data at or below zero, or at the ceiling, are pulled inside the range; this moves only the start of the
    search for the mode, never the likelihood.
    """
    inside = np.minimum(np.maximum(y, s), 0.98 * headroom)
    raw = unsaturate(inside, headroom)
    return np.log(raw), (raw * np.exp(-raw / headroom) / s) ** 2


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
