"""What QiDs of one checkpoint say of its tokens D and of its QiD elsewhere, by convolutions on a grid of the shift.

In a draw of the posterior the latent ln QiD of recipe i, measured in source m, of a checkpoint whose D is unknown is

    v_i = eta_i + z_m + tau_i e_i,   z_m = s + w_m,   s = t(D) + u,   u ~ N(0, sd_u),  w_m ~ N(0, sd_w)

with eta_i the law at D_0, t its change up to D (of degree at most 2 in ln D), u the deviation of the checkpoint and w_m
that of the source. D -> s -> z_m -> data is a tree, so every marginal is a chain of products and convolutions:

    G_m(z) = prod over QiDs i of m of p(y_i | eta_i + z, tau_i)                  (`likelihood.marginal`)
    p(data | D) = (prod_m up_m) * N(sd_u) at t(D),   up_m = G_m * N(sd_w)
    p(v_i, other data) = [((p_t * N(sd_u)) prod_{m' != m} up_m') * N(sd_w) G_m without i] * N(tau_i) at v_i - eta_i

All on one grid of shifts, exact to its spacing; a rule with few fixed nodes would leave gaps between them where tau is
smaller than sd_u. Where D moves one recipe unlike another (law `per-bit`), values of D are conditioned on one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bayesqid import likelihood, methods
from bayesqid.answers import draws
from bayesqid.answers.draws import Posterior, Target
from bayesqid.answers.observed import Observed, is_censored

# points of the shift grid per standard deviation of what the data say about the shift: of a normal density sampled at
# one, sums are right to 1e-8
POINTS_PER_SD = 1.5
FEWEST_POINTS, MOST_POINTS = 65, 641
# numbers worked on at a time, so that they stay in the processor's cache
BLOCK = 2**15
# standard deviations at which the normal density of a shared deviation is cut off
REACH = 5.0
# stands for a likelihood of zero where its logarithm is taken
SMALLEST = 1e-290
LOWEST = math.log(SMALLEST) + 1
# values of D that are conditioned on where one shift does not do for all recipes
COARSE = 49


@dataclass(frozen=True)
class Question:
    """What every draw says of the recipes, observed ones first.

    `terms` (3, draw, target): coefficients of ln QiD in powers of ln(D / D_0); `tau` and `source_sd` (draw, target);
    `checkpoint_sd` (draw,); `source` (target,): number of the source; `headroom`: of the model, nats; `tails`: name.
    """

    terms: np.ndarray
    tau: np.ndarray
    checkpoint_sd: np.ndarray
    source_sd: np.ndarray
    source: tuple[int, ...]
    headroom: tuple[float, ...]
    tails: str


@dataclass(frozen=True)
class Beliefs:
    """Messages of the tree on the grid low + step k of each draw; `logs` by QiD and `up` by source, (draw, point).

    `top` (draw,) by source: log of the factor that was taken out of `up`.
    """

    eta: np.ndarray
    shift: np.ndarray
    low: np.ndarray
    step: np.ndarray
    logs: list[np.ndarray]
    up: dict[int, np.ndarray]
    top: dict[int, np.ndarray]


def pose(posterior: Posterior, targets: Sequence[Target], origin: float, seed: int) -> Question:
    """The question about targets of one checkpoint, with D_0 = `origin`; it is new whatever its name.

    A source that was fitted keeps its own deviation; targets without a source share a new one by method.
    """
    rng = np.random.default_rng(seed)
    places = [replace(t, tokens=origin * math.exp(off)) for off in (-1, 0, 1) for t in targets]
    shape = (posterior.size, 3, len(targets))
    before, here, after = draws.log_law(posterior, places, rng).reshape(shape).swapaxes(0, 1)
    generations = [methods.generation(t.method) for t in targets]
    scatters = {name: draws.scatter(posterior, name, rng) for name in dict.fromkeys(generations)}
    keys = [t.source_method or f"new | {t.method}" for t in targets]
    by = "source_method"
    fitted = {key: draws.deviations(posterior, by, key, rng).get("1", 0.0) for key in dict.fromkeys(keys)
              if by in posterior.sample.coords and key in posterior.sample[by].values}  # fmt: skip
    known = np.array([key in fitted for key in keys])
    own = np.stack([np.broadcast_to(fitted.get(key, 0.0), (posterior.size,)) for key in keys], axis=1)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    headroom = {t.params: draws.nearest_headroom(posterior, t.params) for t in targets if t.headroom is None}
    return Question(
        terms=np.stack([here + own, (after - before) / 2, (after + before) / 2 - here]),
        tau=np.stack([scatters[name] for name in generations], axis=1),
        checkpoint_sd=draws.spread_of(posterior, "checkpoint"),
        source_sd=np.where(known, 0.0, draws.spread_of(posterior, by)[:, None]),
        source=tuple(numbers[key] for key in keys),
        headroom=tuple(headroom[t.params] if t.headroom is None else t.headroom for t in targets),
        tails=posterior.law.tails,
    )


def branches(question: Question, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Law values (draw, target) and shifts (draw, value of D) at x = ln(D / D_0): one pair for all D, or one for each.

    One does where D moves all targets alike.
    """
    constant, slope, bend = question.terms
    if max(np.ptp(slope, axis=1).max(), np.ptp(bend, axis=1).max()) < 1e-9:
        return [(constant, slope[:, :1] * x + bend[:, :1] * x**2)]
    return [(constant + slope * one + bend * one**2, np.zeros((len(constant), 1))) for one in x]


def smooth(values: np.ndarray, step: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Rows (draw, point), spaced `step` (draw,) apart, each convolved with Normal(0, sd) (draw,).

    Term by term: a transform would drown in its rounding what two sources that contradict each other have in common.
    """
    out = np.empty_like(values)
    order = np.argsort(sd / step)
    # rows of like width together: a wide one costs no narrow one
    for rows in np.array_split(order, math.ceil(values.size / BLOCK)):
        out[rows] = _smooth(values[rows], step[rows], sd[rows])
    return out


def _smooth(values: np.ndarray, step: np.ndarray, sd: np.ndarray) -> np.ndarray:
    reach = min(math.ceil(REACH * np.max(sd / step)), values.shape[1] - 1)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets * (step / np.maximum(sd, 1e-9))[:, None]) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    padded = np.pad(values, ((0, 0), (reach, reach)), mode="edge")
    out = np.zeros_like(values)
    for number in range(offsets.size):
        out += weights[:, number, None] * padded[:, number : number + values.shape[1]]
    return out


def read(values: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Log of rows (draw, point) at fractional positions (draw, any), cubic in the log: exact for a normal density."""
    return read_log(np.log(np.maximum(values, SMALLEST)), position)


def read_log(logs: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Rows (draw, point) at fractional positions (draw, any), cubic."""
    left = np.clip(position.astype(int), 1, logs.shape[1] - 3)
    x, flat = position - left, left + logs.shape[1] * np.arange(len(logs))[:, None]
    before, here, after, later = (logs.ravel().take(flat + shift) for shift in (-1, 0, 1, 2))
    return (
        -x * (x - 1) * (x - 2) / 6 * before + (x + 1) * (x - 1) * (x - 2) / 2 * here
        - (x + 1) * x * (x - 2) / 2 * after + (x + 1) * x * (x - 1) / 6 * later
    )  # fmt: skip


def deposit(position: np.ndarray, mass: np.ndarray, points: int) -> np.ndarray:
    """Masses (value,) at fractional positions (draw, value) as rows (draw, point): total and mean are kept."""
    left = np.clip(position.astype(int), 0, points - 2)
    share = position - left
    flat = (left + points * np.arange(len(position))[:, None]).ravel()
    out = np.zeros(len(position) * points)
    for place, weight in ((flat, mass * (1 - share)), (flat + 1, mass * share)):
        out += np.bincount(place, weight.ravel(), minlength=out.size)
    return out.reshape(-1, points)


def log_density(one: Observed, eta: np.ndarray, tau: np.ndarray, headroom: float, tails: str) -> np.ndarray:
    """Log density of one QiD at law values `eta` (draw, point) with scatter `tau` (draw,), scatter integrated out."""
    scales, shares = likelihood.TAILS[tails]
    parts = [np.log(share) + _normal_density(one, eta, scale * tau[:, None], headroom)
             for scale, share in zip(scales, shares, strict=True)]  # fmt: skip
    return parts[0] if len(parts) == 1 else np.logaddexp.reduce(parts, axis=0)


def _normal_density(one: Observed, eta: np.ndarray, tau: np.ndarray, headroom: float) -> np.ndarray:
    if one.censored or is_censored(one.qid, headroom):
        z = (eta - likelihood.censoring_point(headroom)) / tau
        # log Phi is a loop over scalars, and its second derivative lies between -1 and 0: read it off knots instead
        knots = np.linspace(z.min(), z.max(), 4001)
        return np.interp(z, knots, likelihood.log_normal_cdf(knots))
    data = likelihood.prepare(*(np.array([value]) for value in (one.qid, one.se, headroom, False)))
    parts = zip(*(np.array_split(x, math.ceil(eta.size / BLOCK)) for x in (eta, np.broadcast_to(tau, eta.shape))),
                strict=True)  # fmt: skip
    if data.sharp.size:
        own = data.mean, data.variance, data.skew, data.log_mass
        return np.concatenate([likelihood.closed(*own, *part)[0] for part in parts])
    own = one.qid, one.se, headroom, data.anchor, data.anchor_precision
    return np.concatenate([likelihood.marginal(*own, *part)[0] for part in parts])


def own_error(one: Observed, headroom: float) -> float:
    """Standard error of ln QiD by evaluation alone; 0 of a diverged one, which is as sharp as its scatter."""
    if one.censored or is_censored(one.qid, headroom):
        return 0.0
    return float(likelihood.anchors(one.qid, one.se, headroom)[1] ** -0.5)


def believe(question: Question, qids: Sequence[Observed], eta: np.ndarray, shift: np.ndarray) -> Beliefs:
    """The messages of all QiDs, for one branch."""
    n = len(qids)
    errors = [own_error(one, headroom) for one, headroom in zip(qids, question.headroom, strict=False)]
    width = np.hypot(question.tau[:, :n], errors).min(axis=1)
    # and a width more, so that a draw in which D moves little has no needlessly fine grid
    margin = REACH * (question.checkpoint_sd + question.source_sd.max(axis=1)) + width
    low = shift.min(axis=1) - margin
    span = shift.max(axis=1) + margin - low
    wanted = POINTS_PER_SD * math.sqrt(n) * np.median(span / width)
    points = int(np.clip(math.ceil(wanted), FEWEST_POINTS, MOST_POINTS))
    step = span / (points - 1)
    grid = low[:, None] + step[:, None] * np.arange(points)
    logs = [log_density(one, eta[:, i, None] + grid, question.tau[:, i], question.headroom[i], question.tails)
            for i, one in enumerate(qids)]  # fmt: skip
    up, top = {}, {}
    for source in dict.fromkeys(question.source[:n]):
        own = [i for i in range(n) if question.source[i] == source]
        message, top[source] = scaled([logs[i] for i in own])
        up[source] = smooth(message, step, question.source_sd[:, own[0]])
    return Beliefs(eta, shift, low, step, logs, up, top)


def scaled(logs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """exp of a sum of logs, with its largest value in each row at one, and the log of the factor taken out."""
    total = np.sum(logs, axis=0)
    top = total.max(axis=1)
    return np.exp(total - top[:, None]), top


def log_likelihood(question: Question, beliefs: Beliefs) -> np.ndarray:
    """Log likelihood of every draw at every value of D of a branch, (draw, value); -inf where it underflows."""
    together = smooth(np.prod(list(beliefs.up.values()), axis=0), beliefs.step, question.checkpoint_sd)
    position = (beliefs.shift - beliefs.low[:, None]) / beliefs.step[:, None]
    logs = read(together, position)
    return np.where(logs > LOWEST, logs, -np.inf) + np.sum(list(beliefs.top.values()), axis=0)[:, None]


def shifts(question: Question, beliefs: Beliefs, prior: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Masses (draw, point) of the shift z of a target under prior masses (value,) of D and the QiDs of other sources.

    And the log (draw,) of the factor that was taken out of each row.
    """
    others = [source for source in beliefs.up if source != question.source[target]]
    position = (beliefs.shift - beliefs.low[:, None]) / beliefs.step[:, None]
    mass = deposit(position, prior, beliefs.logs[0].shape[1])
    mass = smooth(mass, beliefs.step, question.checkpoint_sd)
    mass = np.prod([mass, *(beliefs.up[source] for source in others)], axis=0)
    top = np.sum([np.zeros(len(mass)), *(beliefs.top[source] for source in others)], axis=0)
    return smooth(mass, beliefs.step, question.source_sd[:, target]), top
