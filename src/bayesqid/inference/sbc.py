"""Simulation-based calibration: ranks of true values among posterior draws, and exact tests of their uniformity.

Where parameters come from the prior and data from the parameters, the rank of a true value among L posterior draws
is uniform on 0..L if the posterior is right (Talts et al. 2018, arXiv 1804.06788). The empirical distribution of n
ranks is judged at every one of its L steps at once, with bands whose simultaneous coverage is computed, not
simulated (Säilynoja, Bürkner, Vehtari 2022, Statistics and Computing 32:32).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.linalg import toeplitz
from scipy.stats import binom, poisson

# so many draws make the central 50 % and 90 % of the ranks whole numbers of ranks: 50 and 90 of 100
LEVELS = 99
MASS = 0.95


@dataclass(frozen=True)
class Row:
    """What the ranks of one quantity say: `p` is exact for this quantity alone, `outside` holds family-wise."""

    name: str
    fits: int
    mean: float
    cover50: float
    cover90: float
    p: float
    outside: bool


def thin(size: int, levels: int, rng: np.random.Generator, weights: np.ndarray | None = None) -> np.ndarray:
    """Positions of `levels` of `size` draws by systematic resampling: evenly spaced where they weigh the same."""
    if levels > size and weights is None:
        raise ValueError(f"{levels} draws cannot be thinned out of {size}")
    mass = np.full(size, 1.0) if weights is None else np.asarray(weights, dtype=float)
    points = (np.arange(levels) + rng.random()) / levels * mass.sum()
    return np.searchsorted(np.cumsum(mass), points, side="right").clip(max=size - 1)


def ranks(
    draws: np.ndarray, truth: np.ndarray | float, rng: np.random.Generator, levels: int = LEVELS,
    weights: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Rank 0..levels of `truth`, shape (...), among thinned `draws`, shape (draw, ...), weighted (draw,) or not.

    The number of draws below the truth; draws equal to it fall on either side at random, so that ties (a value at a
    bound, a draw resampled twice) keep the ranks of a right posterior uniform.
    """
    chosen = np.asarray(draws)[thin(len(draws), levels, rng, weights)]
    below, equal = (chosen < truth).sum(axis=0), (chosen == truth).sum(axis=0)
    return below + rng.integers(0, equal + 1)


def counts(rank: np.ndarray, levels: int = LEVELS) -> np.ndarray:
    """How many ranks are at most 0, 1, ... levels - 1: n times their empirical distribution, shape (levels,)."""
    return np.cumsum(np.bincount(rank, minlength=levels + 1))[:-1]


def tails(n: int, levels: int = LEVELS) -> np.ndarray:
    """Two-sided binomial tail 2 min(P(C <= c), P(C >= c)) of each count c at each step, shape (levels, n + 1).

    C ~ Binomial(n, z) is the number of n uniform ranks up to a step with z = 1/(levels + 1), 2/(levels + 1), ...
    """
    z = (np.arange(levels)[:, None] + 1) / (levels + 1)
    c = np.arange(n + 1)
    return np.minimum(1.0, 2 * np.minimum(binom.cdf(c, n, z), binom.sf(c - 1, n, z)))


def coverage(inside: np.ndarray) -> float:
    """Probability that the counts of n uniform ranks stay where `inside`, shape (levels, n + 1), holds at every step.

    Exact: uniform ranks are independent Poisson counts given their total, so one step of the chain of cumulative
    counts is a convolution with a Poisson mass, cut to what is inside.
    """
    levels, n = inside.shape[0], inside.shape[1] - 1
    mass = poisson.pmf(np.arange(n + 1), n / (levels + 1))
    step = toeplitz(mass, np.zeros(n + 1))
    state = np.zeros(n + 1)
    state[0] = 1.0
    for row in inside:
        state = np.where(row, step @ state, 0.0)
    return float(state @ mass[::-1] / poisson.pmf(n, n))


def _inside(table: np.ndarray, gamma: float) -> np.ndarray:
    # equal tails on the two sides of 1/2 differ by rounding
    return table > gamma * (1 + 1e-9)


def p_value(rank: np.ndarray, levels: int = LEVELS) -> float:
    """Probability that uniform ranks leave the diagonal, at their worst step, at least as far as these do; exact."""
    table = tails(len(rank), levels)
    worst = table[np.arange(levels), counts(rank, levels)].min()
    return 1.0 - coverage(_inside(table, worst))


def ecdf_band(n: int, levels: int = LEVELS, mass: float = MASS) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest counts at every step, each (levels,), that n uniform ranks keep within with at least `mass`.

    The narrowest band of equal pointwise tails that does; an ECDF difference plot shows counts / n - z.
    """
    table = tails(n, levels)
    candidates = np.concatenate([[0.0], np.unique(table)])
    low, high = 0, candidates.size
    while high - low > 1:
        middle = (low + high) // 2
        enough = coverage(_inside(table, candidates[middle])) >= mass
        low, high = (middle, high) if enough else (low, middle)
    inside = _inside(table, candidates[low])
    return inside.argmax(axis=1), n - inside[:, ::-1].argmax(axis=1)


def covered(rank: np.ndarray, mass: float, levels: int = LEVELS) -> float:
    """Share of fits whose equal-tailed interval of `mass` held the truth, read from the ranks."""
    tail = (levels + 1) * (1 - mass) / 2
    if abs(tail - round(tail)) > 1e-9:
        raise ValueError(f"with {levels} draws no whole number of ranks holds {mass:g}")
    return float(((rank >= round(tail)) & (rank <= levels - round(tail))).mean())


def verdict(found: Mapping[str, np.ndarray], levels: int = LEVELS, mass: float = MASS) -> list[Row]:
    """A row per quantity; none is `outside` with probability at least `mass` where all posteriors are right.

    Family-wise by Bonferroni: each of K quantities is held to (1 - mass) / K. That is valid however the quantities of
    one fit depend on each other, and with the K in use hardly wider than their joint distribution would allow.
    """
    limit = (1 - mass) / max(len(found), 1)
    out = []
    for name, rank in found.items():
        p = p_value(rank, levels)
        cover50, cover90 = (covered(rank, share, levels) for share in (0.5, 0.9))
        out.append(Row(name, len(rank), float(rank.mean() / levels), cover50, cover90, p, p <= limit))
    return out
