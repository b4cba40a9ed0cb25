"""Which format for which layer: draws of equal cost, and the cheapest sum of measured QiDs under a budget of bits.

An item is a linear layer or a whole block; `costs[i, f]` are the bits it takes in format f, `values[i, f]` what that
alone does to the loss, and an assignment is one format's number per item, (items,).
"""

import numpy as np

from bayesqid.errors import BadInput


def cheapest(costs: np.ndarray) -> np.ndarray:
    """The assignment of fewest bits, (items,)."""
    return costs.argmin(1)


def cost(costs: np.ndarray, chosen: np.ndarray) -> int:
    """Bits of an assignment."""
    return int(costs[np.arange(len(costs)), chosen].sum())


def within(costs: np.ndarray, budget: float) -> None:
    """`BadInput` for a budget that not even the smallest formats keep, or that asks for no quantization at all."""
    least, most = cost(costs, cheapest(costs)), int(costs.max(1).sum())
    if budget < least:
        raise BadInput(f"The budget is {budget / least:.3g} of what the layers take in the smallest formats: raise it, "
                       "or give a smaller format with --formats.")  # fmt: skip
    if budget >= most:
        raise BadInput("The budget holds every layer in its largest format, so there is nothing to choose: lower it.")


def drawn(costs: np.ndarray, budget: float, rng: np.random.Generator) -> np.ndarray:
    """A random assignment that uses up the budget.

    From the smallest formats on, a random item among those that still can gets its next larger format, until no step
    fits any more.
    """
    ladder = costs.argsort(1, kind="stable")
    ordered = np.take_along_axis(costs, ladder, 1)
    level, left = np.zeros(len(costs), dtype=int), budget - ordered[:, 0].sum()
    rows = np.arange(len(costs))
    while True:
        above = np.minimum(level + 1, costs.shape[1] - 1)
        steps = ordered[rows, above] - ordered[rows, level]
        able = np.flatnonzero((above > level) & (steps <= left))
        if not able.size:
            return ladder[rows, level]
        one = rng.choice(able)
        level[one] += 1
        left -= steps[one]


def branched(
    costs: np.ndarray, depths: np.ndarray, budget: float, trials: int, rng: np.random.Generator
) -> np.ndarray:
    """Random assignments of which most share their first blocks with another, (trials, items); `depths` are blocks.

    One in ten, and the first, is drawn afresh (`drawn`). Any other takes a random earlier one up to a block, uniform
    from a third of the way to the last, and behind it permutes formats among items of equal cost at random: `drawn`
    treats these alike, so every trial by itself has the distribution of `drawn`, but trials of one trunk are alike.
    What was drawn before is drawn again from an earlier block on, and afresh in the end; few items may leave copies.
    """
    blocks = int(depths.max()) + 1
    _, alike = np.unique(costs, axis=0, return_inverse=True)
    first = max(1, -(-blocks // 3))
    made: list[np.ndarray] = []
    seen: set[bytes] = set()
    for number in range(trials):
        fresh = number % 10 == 0 or blocks < 2
        start = 0 if fresh else int(rng.integers(first, blocks))
        trunk = made[rng.integers(len(made))] if made else None
        for _ in range(20):
            if start == 0 or trunk is None:
                one = drawn(costs, budget, rng)
            else:
                one = _permuted(trunk, alike, depths >= start, rng)
            if one.tobytes() not in seen:
                break
            start = max(0, start - 1)
        seen.add(one.tobytes())
        made.append(one)
    return np.array(made)


def _permuted(chosen: np.ndarray, alike: np.ndarray, free: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The assignment with formats permuted at random among free items of the same kind."""
    changed = chosen.copy()
    for kind in np.unique(alike[free]):
        where = np.flatnonzero(free & (alike == kind))
        changed[where] = rng.permutation(chosen[where])
    return changed


def greedy(costs: np.ndarray, values: np.ndarray, budget: float) -> np.ndarray:
    """Assignment by steps of the largest fall of the sum of values per bit.

    From the smallest formats on, of all changes to a larger format that lower the sum and still fit the one that
    lowers it most per bit, until there is none.
    """
    rows, chosen = np.arange(len(costs)), cheapest(costs)
    left = budget - cost(costs, chosen)
    while True:
        more = costs - costs[rows, chosen][:, None]
        gain = values[rows, chosen][:, None] - values
        able = (more > 0) & (more <= left) & (gain > 0)
        if not able.any():
            return chosen
        rate = np.where(able, gain / np.where(more > 0, more, 1), -np.inf)
        item, form = np.unravel_index(rate.argmax(), rate.shape)
        left -= more[item, form]
        chosen[item] = form


def knapsack(costs: np.ndarray, values: np.ndarray, budget: float) -> np.ndarray:
    """Assignment of the least sum of values within the budget, exact: a multiple-choice knapsack, solved by HiGHS.

    min sum_if v_if x_if with sum_f x_if = 1 for every item, sum_if c_if x_if <= budget, x binary.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import eye_array, kron, vstack

    items, forms = costs.shape
    once = kron(eye_array(items), np.ones((1, forms)))
    # in the largest common unit the budget is a small whole number: tolerances of the solver are absolute
    unit = int(np.gcd.reduce(costs.ravel()))
    units, room = costs // unit, int(budget // unit)
    scale = np.abs(values).max() or 1.0
    rows = vstack([once, units.reshape(1, -1)]).tocsr()
    while True:
        rules = LinearConstraint(rows, np.append(np.ones(items), 0), np.append(np.ones(items), room))  # type: ignore[arg-type]
        found = milp(values.ravel() / scale, integrality=np.ones(items * forms), bounds=Bounds(0, 1),
                     constraints=rules, options={"mip_rel_gap": 0.0})  # fmt: skip
        chosen = found.x.reshape(items, forms).argmax(1)
        over = cost(units, chosen) - int(budget // unit)
        if over <= 0:
            return chosen
        room -= over
