"""Training level: the latent QiD of one checkpoint at a recipe, given all its QiDs, that of this recipe among them.

With z the recipe's shift (`level_likelihood`) and y_r its own QiD, if there is one,

    p(v, QiDs) = L(v) mean over draws of integral p(z, other QiDs) N(v - eta - z; 0, tau) dz
    L(v) = N(y_r; saturate(exp v), s), or 1{v > v_c} where that QiD only diverged, or 1 where there is none
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bayesqid import likelihood
from bayesqid.answers import asking, level_likelihood
from bayesqid.answers.draws import Target
from bayesqid.answers.level_likelihood import REACH, SMALLEST, Beliefs, Question
from bayesqid.answers.observed import Observed, is_censored, same_recipe

# widths and thresholds of arXiv 2411.17691, Table 1
BITS = (2, 3, 4)
THRESHOLDS = (0.2, 0.3, 0.4, 0.5)
# spacing and half width of the grid of a latent ln QiD, in its standard deviations; the most points
FINE, WIDE, MOST_NODES = 0.1, 8.0, 2001
# log law values below those of any QiD that tells
FAR = 20.0
# share of a row's largest value under which it is rounding: a cubic through its logarithm would overshoot
ROUNDING = 1e-12
# posterior mass that may be left out with the draws that hardly count
LEFT_OUT = 1e-6


@dataclass(frozen=True)
class Rows:
    """Densities of one latent v on grids low + step k, `mass` (row, point) without the factor exp(`log_weight`)."""

    low: np.ndarray
    step: np.ndarray
    mass: np.ndarray
    log_weight: np.ndarray


def asked_of(targets: Sequence[Target], method: str) -> list[Target]:
    """The recipes of the level: `method` at 2, 3, 4 bits in groups of 128, measured as the observations were."""
    first = next((t for t in targets if t.method == method), targets[0])
    return [
        replace(asking.target_of(None, bits, method, family=first.family, params=first.params, tokens=first.tokens),
                lr_phase=first.lr_phase, eval_dataset=first.eval_dataset, context=first.context,
                vocab_size=first.vocab_size, loss16=first.loss16, headroom=first.headroom,
                source_method=first.source_method if first.method == method else None)
        for bits in BITS
    ]  # fmt: skip


def own_of(targets: Sequence[Target], asked: Target) -> int | None:
    """Which of the observed targets has the very recipe asked for, in its source and text; None where none has."""

    def place(t: Target) -> tuple:
        return t.source_method, t.eval_dataset, t.context

    return next((i for i, t in enumerate(targets) if same_recipe(t, asked) and place(t) == place(asked)), None)


def scattered(mass: np.ndarray, step: np.ndarray, tau: np.ndarray, tails: str) -> tuple[np.ndarray, int]:
    """Rows convolved with the scatter tau e, on a grid longer by as many points on both sides; returns that number.

    By Fourier: tau may be many steps, and what is lost to rounding, 1e-16 of a row's largest value, does not count.
    """
    scales, shares = likelihood.TAILS[tails]
    extra = math.ceil(REACH * scales.max() * np.max(tau / step)) + 1
    padded = np.pad(mass, ((0, 0), (extra, extra)))
    points = padded.shape[1]
    length = 2 ** math.ceil(math.log2(points + extra))
    angle = 2 * np.pi * np.fft.rfftfreq(length) * (tau / step)[:, None]
    kernel = sum(share * np.exp(-0.5 * (scale * angle) ** 2) for scale, share in zip(scales, shares, strict=True))
    out = np.fft.irfft(np.fft.rfft(padded, length, axis=1) * kernel, length, axis=1)
    return np.maximum(out[:, :points], 0.0), extra


def predict(
    question: Question, beliefs: Beliefs, prior: np.ndarray, asked: Sequence[int], own: Sequence[int | None]
) -> list[Rows]:
    """The latent v of targets of one source, under the prior masses (value,) of D and all QiDs but each one's `own`."""
    mass, top = level_likelihood.shifts(question, beliefs, prior, asked[0])
    source = [i for i in range(len(beliefs.logs)) if question.source[i] == question.source[asked[0]]]
    known: dict[int | None, tuple[np.ndarray, np.ndarray, int]] = {}
    for leave in dict.fromkeys(own):
        logs = [beliefs.logs[i] for i in source if i != leave]
        message, more = level_likelihood.scaled(logs) if logs else (1.0, 0.0)
        wider, extra = scattered(mass * message, beliefs.step, question.tau[:, asked[0]], question.tails)
        known[leave] = wider, top + more, extra
    out = []
    for target, leave in zip(asked, own, strict=True):
        wider, weight, extra = known[leave]
        low = beliefs.eta[:, target] + beliefs.low - extra * beliefs.step
        out.append(Rows(low, beliefs.step, wider, weight))
    return out


def mix(parts: Sequence[Rows], own: Observed | None, headroom: float) -> tuple[np.ndarray, np.ndarray]:
    """Values v of a latent ln QiD and its distribution function there, over all draws, given its own QiD if there is.

    That QiD enters here as density N(y; saturate(exp v), s), or as v > v_c where it only diverged.
    """
    points = max(part.mass.shape[1] for part in parts)
    mass = np.concatenate([np.pad(part.mass, ((0, 0), (0, points - part.mass.shape[1]))) for part in parts])
    low, step, log_weight = (np.concatenate([getattr(part, name) for part in parts])
                             for name in ("low", "step", "log_weight"))  # fmt: skip
    mass = mass * np.exp(log_weight - log_weight.max())[:, None]
    total = mass.sum(axis=1)
    order = np.argsort(total)
    keep = order[np.cumsum(total[order]) > LEFT_OUT * total.sum()]
    mass, low, step, total = mass[keep], low[keep], step[keep], total[keep]
    grid = low[:, None] + step[:, None] * np.arange(points)
    mean = (mass * grid).sum(axis=1) / total
    each = np.sqrt((mass * (grid - mean[:, None]) ** 2).sum(axis=1) / total)
    middle = np.average(mean, weights=total)
    sd = math.sqrt(np.average(each**2 + (mean - middle) ** 2, weights=total))
    v = nodes(middle - WIDE * sd, middle + WIDE * sd, min(FINE * sd, 3 * FINE * float(np.median(each))), own, headroom)
    position = (v - low[:, None]) / step[:, None]
    inside = (position >= 0) & (position <= points - 1)
    height = np.maximum(mass, ROUNDING * mass.max(axis=1, keepdims=True)) / step[:, None]
    density = (np.exp(level_likelihood.read(height, np.clip(position, 0, points - 1))) * inside).sum(axis=0)
    density = np.maximum(density, SMALLEST)
    if own is not None and not (own.censored or is_censored(own.qid, headroom)):
        seen = likelihood.saturate(np.exp(np.minimum(v, likelihood.HIGHEST)), headroom)
        log = -0.5 * ((own.qid - seen) / own.se) ** 2
        density = density * np.exp(log - log.max())
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(v))])
    return v, below / below[-1]


def nodes(low: float, high: float, step: float, own: Observed | None, headroom: float) -> np.ndarray:
    """Values of v from `low` to `high`, fewer where the recipe's own QiD leaves but a part of that."""
    if own is not None and (own.censored or is_censored(own.qid, headroom)):
        low = float(likelihood.censoring_point(headroom))
        high = max(high, low + 1.0)
    elif own is not None:
        ends = own.qid + np.array([-1.0, 1.0]) * likelihood.INSIDE * own.se
        bottom = math.log(likelihood.unsaturate(ends[0], headroom)) if ends[0] > 0 else -math.inf
        roof = math.log(likelihood.unsaturate(ends[1], headroom)) if 0 < ends[1] < headroom else math.inf
        # where the QiD bears prediction out nowhere, it alone says where v lies
        both = max(low, bottom), min(high, roof)
        low, high = both if both[0] < both[1] else (max(bottom, roof - FAR), min(roof, bottom + FAR))
    count = int(np.clip(math.ceil((high - low) / step), 200, MOST_NODES))
    return np.linspace(low, high, count + 1)
