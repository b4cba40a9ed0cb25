"""Which measurements narrow a target most: Gaussian conditioning on a pool of candidates, picked one after another.

Let t be ln QiD of the law at the target and f_cr that of candidate checkpoint c under recipe r. With their covariances
over the posterior, a measurement y_cr = f_cr + u_c + e_cr, u_c ~ (0, U) shared by all recipes of one checkpoint and
e_cr ~ (0, r_cr), leaves

    var(t | y) = var(t) - cov(t, y) var(y)^-1 cov(y, t)

which is exact for Gaussian draws and needs no value of y. Covariances of all candidates are downdated after each pick.
A pick is a checkpoint with a bundle of recipes: the cost of loading it falls once and u_c stays, whatever is added.
"""

from dataclasses import dataclass

import numpy as np

# under this share of the variance a gain is rounding
NOTHING = 1e-12


@dataclass(frozen=True)
class Pool:
    """Candidates: a row stands for checkpoints that the law cannot tell apart, one of each run in `runs`.

    In every draw ln QiD of row c under recipe r is sum_k weights[c, k] nodes[:, group[c], r, k] plus independent parts
    features[c, r, j] of variance v_j that also move the target by target_features[j]. Each scenario has its own v.
    `hours` is the cost of a recipe at a loaded checkpoint, `first` what loading adds.
    """

    nodes: np.ndarray  # (draw, group, recipe, node)
    group: np.ndarray  # (row,)
    weights: np.ndarray  # (row, node)
    features: np.ndarray  # (row, recipe, feature)
    runs: np.ndarray  # (row, run), boolean
    place: np.ndarray  # (row,), ln D
    target: np.ndarray  # (draw,)
    target_features: np.ndarray  # (feature,)
    variances: np.ndarray  # (scenario, feature)
    shared: float
    noise: np.ndarray  # (row, recipe)
    first: np.ndarray  # (row,)
    hours: np.ndarray  # (row, recipe)


@dataclass(frozen=True)
class Pick:
    """The checkpoint of one run in a row with its recipes, their cost, the target's variance after it by scenario."""

    row: int
    run: int
    recipes: tuple[int, ...]
    hours: float
    variance: tuple[float, ...]


@dataclass
class State:
    """What is still unknown in one scenario: covariances of a row's recipes, with the target, variance of the target.

    `seen` (row, recipe, measurement) holds L of the covariances that the picks so far took away, L L'.
    """

    rows: np.ndarray  # (row, recipe, recipe)
    cross: np.ndarray  # (row, recipe)
    variance: float
    seen: np.ndarray


def means(pool: Pool) -> np.ndarray:
    """Posterior mean of ln QiD of every row and recipe, shape (row, recipe)."""
    return np.einsum("ck,crk->cr", pool.weights, pool.nodes.mean(axis=0)[pool.group])


def start(pool: Pool, scenario: int) -> State:
    """Covariances before any pick."""
    draws, groups, recipes, nodes = pool.nodes.shape
    centred = (pool.nodes - pool.nodes.mean(axis=0)).transpose(1, 2, 3, 0).reshape(groups, recipes * nodes, draws)
    target = pool.target - pool.target.mean()
    within = (centred @ centred.transpose(0, 2, 1) / (draws - 1)).reshape(groups, recipes, nodes, recipes, nodes)
    within = within.transpose(0, 2, 4, 1, 3).reshape(groups, nodes * nodes, recipes * recipes)
    pairs = (pool.weights[:, :, None] * pool.weights[:, None, :]).reshape(len(pool.group), 1, nodes * nodes)
    rows = np.empty((len(pool.group), recipes, recipes))
    for number in range(groups):
        own = pool.group == number
        rows[own] = (pairs[own, 0] @ within[number]).reshape(-1, recipes, recipes)
    along = (centred @ target / (draws - 1)).reshape(groups, recipes, nodes)
    scaled = pool.features * pool.variances[scenario]
    rows += scaled @ pool.features.transpose(0, 2, 1)
    cross = np.einsum("ck,crk->cr", pool.weights, along[pool.group]) + scaled @ pool.target_features
    variance = float(target @ target / (draws - 1) + pool.variances[scenario] @ pool.target_features**2)
    return State(rows, cross, variance, np.empty((*cross.shape, 0)))


def covariance_with(pool: Pool, scenario: int, row: int, recipes: tuple[int, ...]) -> np.ndarray:
    """Covariances of all rows with some recipes of one row, before any pick, shape (row, recipe, picked)."""
    draws = len(pool.nodes)
    own = pool.nodes[:, pool.group[row], list(recipes), :] @ pool.weights[row]
    flat = pool.nodes.reshape(draws, -1)
    shape = (*pool.nodes.shape[1:], len(recipes))
    # the mean of one factor is enough to centre a product
    nodes = (flat.T @ (own - own.mean(axis=0)) / (draws - 1)).reshape(shape)
    by_draws = np.einsum("ck,crkm->crm", pool.weights, nodes[pool.group])
    return by_draws + (pool.features * pool.variances[scenario]) @ pool.features[row, list(recipes)].T


def measured(pool: Pool, state: State, row: int, recipes: tuple[int, ...]) -> np.ndarray:
    """Covariance of what measuring some recipes of one row shows, shape (picked, picked)."""
    own = state.rows[row][np.ix_(recipes, recipes)] + pool.shared
    return own + np.diag(pool.noise[row, list(recipes)])


def condition(pool: Pool, state: State, scenario: int, row: int, recipes: tuple[int, ...]) -> State:
    """The state after measuring some recipes of one checkpoint of a row."""
    before = state.seen[row, list(recipes)]
    cross = covariance_with(pool, scenario, row, recipes) - state.seen @ before.T
    root = np.linalg.inv(np.linalg.cholesky(measured(pool, state, row, recipes))).T
    further, of_target = cross @ root, state.cross[row, list(recipes)] @ root
    return State(
        state.rows - further @ further.transpose(0, 2, 1), state.cross - further @ of_target,
        state.variance - float(of_target @ of_target), np.concatenate([state.seen, further], axis=2),
    )  # fmt: skip


def bundles(
    pool: Pool, states: list[State], weights: np.ndarray, per_hour: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every row its recipes in the order in which they pay: (order, gain, hours), each (row, step).

    The gain is the fall of ln var(t) of all recipes up to a step, summed over the states with `weights`, their cost
    `hours`. Each step takes the recipe that brings the most, per hour spent on the row if `per_hour`.
    """
    count, recipes = pool.noise.shape
    all_rows = np.arange(count)
    rows = [state.rows + pool.shared + np.eye(recipes) * pool.noise[:, None, :] for state in states]
    cross = [state.cross.copy() for state in states]
    taken = [np.zeros(count) for _ in states]
    free, spent = np.ones((count, recipes), dtype=bool), pool.first.copy()
    order = np.empty((count, recipes), dtype=int)
    gains, hours = np.empty((count, recipes)), np.empty((count, recipes))
    for step in range(recipes):
        gain = np.zeros((count, recipes))
        for weight, state, own, along, before in zip(weights, states, rows, cross, taken, strict=True):
            # nothing is left of a recipe that is taken
            left = np.maximum(np.diagonal(own, axis1=1, axis2=2), NOTHING)
            share = (before[:, None] + along**2 / left) / state.variance
            gain -= weight * np.log1p(-np.minimum(share, 1 - NOTHING))
        worth = gain / (spent[:, None] + pool.hours) if per_hour else gain
        best = np.where(free, worth, -np.inf).argmax(axis=1)
        order[:, step], gains[:, step] = best, gain[all_rows, best]
        spent = spent + pool.hours[all_rows, best]
        hours[:, step] = spent
        free[all_rows, best] = False
        for number, (own, along) in enumerate(zip(rows, cross, strict=True)):
            column, pivot = own[all_rows, :, best], own[all_rows, best, best]
            slope = along[all_rows, best] / pivot
            taken[number] = taken[number] + slope**2 * pivot
            cross[number] = along - column * slope[:, None]
            rows[number] = own - column[:, :, None] * (column / pivot[:, None])[:, None, :]
    return order, gains, hours


def greedy(
    pool: Pool, weights: dict[int, float], most: int, hours: float, per_hour: bool, apart: float
) -> list[Pick]:
    """Picks for some scenarios with their weights, see `choose`; `variance` of a pick is in their order."""
    states, scales = {number: start(pool, number) for number in weights}, np.array(list(weights.values()))
    free, picks = pool.runs.copy(), []
    while len(picks) < most:
        order, gain, cost = bundles(pool, list(states.values()), scales, per_hour)
        worth = np.where(free.any(axis=1)[:, None] & (cost <= hours) & (gain > NOTHING), gain, -np.inf)
        row, last = map(int, np.unravel_index(int((worth / cost if per_hour else worth).argmax()), worth.shape))
        if not np.isfinite(worth[row, last]):
            break
        recipes = tuple(int(r) for r in np.sort(order[row, : last + 1]))
        states = {number: condition(pool, state, number, row, recipes) for number, state in states.items()}
        run = int(free[row].argmax())
        free[np.abs(pool.place - pool.place[row]) <= apart, run] = False
        hours -= cost[row, last]
        picks.append(Pick(row, run, recipes, float(cost[row, last]), tuple(s.variance for s in states.values())))
    return picks


def choose(pool: Pool, most: int, hours: float = np.inf, per_hour: bool = True, apart: float = 0.0) -> list[Pick]:
    """Picks in order: at most `most` checkpoints and `hours` in all.

    Each time the checkpoint and bundle with the largest gain, per hour if `per_hour`; greedy, so later picks know the
    earlier ones. The gain is the mean over the scenarios of the fall of ln var(t) as a share of the fall that picks for
    that scenario alone reach (a compound design: neither scenario is given up for the other). No checkpoint is picked
    twice, nor two of one run whose ln D are `apart` or less from each other.
    """
    weights = {0: 1.0}
    if len(pool.variances) > 1:
        for number in range(len(pool.variances)):
            alone = greedy(pool, {number: 1.0}, most, hours, per_hour, apart)
            fall = np.log(start(pool, number).variance / alone[-1].variance[0]) if alone else 1.0
            weights[number] = 1 / (fall * len(pool.variances))
    return greedy(pool, weights, most, hours, per_hour, apart)


def after(pool: Pool, chosen: list[tuple[int, tuple[int, ...]]], scenario: int = 0) -> float:
    """Variance of the target after measuring (row, recipes), each entry at a checkpoint of its own."""
    state = start(pool, scenario)
    for row, recipes in chosen:
        state = condition(pool, state, scenario, row, recipes)
    return state.variance
