"""Draws of one distribution weighted to stand for another: Pareto-smoothed weights, quantiles, distance."""

import numpy as np

ALPHAS = (0.99, 1.01)
SMALLEST_TAIL = 5


def pareto_fit(excess: np.ndarray) -> tuple[float, float]:
    """Shape k and scale of a generalized Pareto distribution from sorted positive excesses, Zhang and Stephens 2009.

    k is pulled towards 0.5 with the weight of ten excesses, as Pareto-smoothed importance sampling does
    (Vehtari et al. 2024).
    """
    n = excess.size
    grid = 30 + int(np.sqrt(n))
    theta = 1 / excess[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * excess[int(n / 4 + 0.5) - 1])
    shape = np.log1p(-theta[:, None] * excess).mean(axis=1)
    profile = n * (np.log(-theta / shape) - shape - 1)
    weight = 1 / np.exp(profile - profile[:, None]).sum(axis=1)
    best = float((theta * weight).sum() / weight.sum())
    k = float(np.log1p(-best * excess).mean())
    return (k * n + 0.5 * 10) / (n + 10), -k / best


def smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Normalised importance weights (draw,) with their largest ones Pareto-smoothed, and the Pareto k of that tail.

    The tail is the min(S / 5, 3 sqrt(S)) largest of S weights; k is minus infinity where they are all alike.
    """
    size = log_weights.size
    tail = int(min(size / 5, 3 * np.sqrt(size)))
    log_weights = log_weights - log_weights.max()
    order = np.argsort(log_weights, kind="stable")
    largest, cut = order[-tail:], log_weights[order[-tail - 1]]
    weights = np.exp(log_weights)
    excess = weights[largest] - np.exp(cut)
    if tail < SMALLEST_TAIL or excess[int(tail / 4 + 0.5) - 1] <= 0:
        return weights / weights.sum(), -np.inf
    k, scale = pareto_fit(excess)
    upper = (np.arange(tail) + 0.5) / tail
    expected = -scale * np.log1p(-upper) if abs(k) < 1e-9 else scale * np.expm1(-k * np.log1p(-upper)) / k
    weights[largest] = np.minimum(expected + np.exp(cut), 1.0)
    return weights / weights.sum(), k


def k_limit(size: int) -> float:
    """Pareto k above which so many weighted draws are not to be trusted: min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / np.log10(size), 0.7)


def weighted_quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    """Quantile q of weighted draws, linear between the middles of the steps of their distribution function."""
    order = np.argsort(values)
    ordered = weights[order]
    return float(np.interp(q, np.cumsum(ordered) - ordered / 2, values[order]))


def cjs(values: np.ndarray, weights: np.ndarray) -> float:
    """Cumulative Jensen-Shannon distance between draws and the same draws weighted, between 0 and 1.

    With P and Q the two distribution functions, over the range of the draws,
    CJS(P, Q)^2 = [int P log2(2 P / (P + Q)) + int Q log2(2 Q / (P + Q))] / int (P + Q); the larger of the values
    for x and for -x (Nguyen and Vreeken 2015; Kallioinen et al. 2024). Draws that differ by rounding only, all of them
    at a model's headroom say, lie at no distance.
    """
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        return 0.0
    order = np.argsort(values)
    width = np.diff(values[order])
    p = np.arange(1, values.size) / values.size
    q = np.clip(np.cumsum(weights[order] / weights.sum())[:-1], 1e-300, 1.0)

    def one_way(p, q, width) -> float:
        middle = (p + q) / 2
        area = (width * (p * np.log2(p / middle) + q * np.log2(q / middle))).sum()
        return float(np.sqrt(max(area, 0.0) / (width * (p + q)).sum()))

    turned = np.clip(1 - q[::-1], 1e-300, 1.0)
    return max(one_way(p, q, width), one_way(p, turned, width[::-1]))


def power_slope(values: np.ndarray, log_density: np.ndarray) -> float:
    """Slope of `cjs` in log2 alpha when a density is raised to the power alpha, by the two sides of alpha = 1."""
    sides = []
    for alpha in ALPHAS:
        weights = np.exp((alpha - 1) * (log_density - log_density.mean()))
        sides.append(cjs(values, weights) / abs(np.log2(alpha)))
    return float(np.mean(sides))
