"""A set of cells and a law turned into arrays: one sparse linear block, its hyper-parameters and the data.

Every coefficient stands in one vector b (mu, covariates, family deviations, effects). Each cell touches R of them,
so ln QiD is eta = sum_r (plain[:, r] - x_P(lam) slope[:, r]) b[index[:, r]]. Both engines read nothing else.

Family deviations of alpha and beta are counted from the centre of the family's own data, not from the global
pivot: a family seen only at 1e5 parameters says nothing about its level at 1e9, and a deviation in slope must not
be paid for by an absurd deviation in level there.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from bayesqid import laws, likelihood
from bayesqid.errors import BadInput

MODELS = ("hierarchical", "pooled", "independent")
CENTRED_FACTORS = ("-x_N", "x_D")


@dataclass(frozen=True)
class Block:
    """Coefficients of one kind: a slice of b, its levels, prior mean, and a fixed sd or the number of a free one.

    A block whose levels sum to zero has one coefficient less than levels: level effects are `contrasts @ b`. Without
    that, few levels with a wide spread and the population mean would share one unidentified direction.
    """

    name: str
    by: str | None
    factor: str
    levels: tuple[str, ...]
    start: int
    mean: float
    sd: float | None
    hyper: int | None
    zero_sum: bool = False

    @property
    def count(self) -> int:
        """Number of coefficients."""
        return len(self.levels) - (self.zero_sum and len(self.levels) > 1)

    @property
    def where(self) -> slice:
        """Where the block stands in b."""
        return slice(self.start, self.start + self.count)

    @property
    def contrasts(self) -> np.ndarray:
        """Orthonormal contrasts (level, coefficient); the identity for a block without a constraint."""
        levels = len(self.levels)
        if self.count == levels:
            return np.eye(levels)
        # Helmert contrasts: orthonormal columns that each sum to zero
        basis = np.vstack([np.where(np.arange(levels) <= j, 1.0, np.where(np.arange(levels) == j + 1, -(j + 1.0), 0.0))
                           for j in range(levels - 1)]).T  # fmt: skip
        return basis / np.linalg.norm(basis, axis=0)


@dataclass(frozen=True)
class Problem:
    """Everything inference needs, as arrays; sizes: n cells, p coefficients, R coefficients per cell."""

    law: laws.Law
    model: str
    cells: xr.Dataset
    blocks: tuple[Block, ...]
    index: np.ndarray
    plain: np.ndarray
    slope: np.ndarray
    spread_names: tuple[str, ...]
    spread_scales: np.ndarray
    generations: tuple[str, ...]
    generation_of: np.ndarray
    centers: dict[str, np.ndarray]
    measured: np.ndarray
    diverged: np.ndarray
    anchor: np.ndarray
    anchor_precision: np.ndarray
    point: np.ndarray

    @property
    def size(self) -> int:
        """Number of coefficients p."""
        return self.blocks[-1].where.stop

    @property
    def free_lam(self) -> bool:
        """Whether the exponent of the bit scale is inferred."""
        return isinstance(self.law.lam, tuple)

    def block(self, name: str) -> Block | None:
        """The block of that name, None if the model leaves it out."""
        return next((block for block in self.blocks if block.name == name), None)

    def prior_mean(self) -> np.ndarray:
        """Prior means of b, shape (p,)."""
        return np.concatenate([np.full(block.count, block.mean) for block in self.blocks])

    def bit_scale(self, lam):
        """x_P of every cell, shape (n,)."""
        return laws.bit_scale(self.cells["effective_bits"].to_numpy(), lam)

    def weights(self, lam: float) -> np.ndarray:
        """Values that multiply b[index], shape (n, R)."""
        return self.plain - self.bit_scale(lam)[:, None] * self.slope

    def log_likelihood(self, eta: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, ...]:
        """Pointwise log density with d/d eta, d2/d eta2, d/d tau; `tau` has one value per generation."""
        scatter = tau[self.generation_of]
        out = tuple(np.empty(eta.size) for _ in range(4))
        m, d = self.measured, self.diverged
        qid, error = self.cells["qid"].to_numpy(), self.cells["qid_se"].to_numpy()
        headroom = self.cells["headroom"].to_numpy()
        inside = likelihood.marginal(
            qid[m], error[m], headroom[m], self.anchor, self.anchor_precision, eta[m], scatter[m]
        )
        beyond = likelihood.censored(self.point, eta[d], scatter[d])
        for target, seen, unseen in zip(out, inside, beyond, strict=True):
            target[m], target[d] = seen, unseen
        return out


def family_centers(cells: xr.Dataset) -> dict[str, np.ndarray]:
    """Mean of x_N and of x_D over the checkpoints of each family, families in sorted order."""
    keys = np.array([f"{f}\n{c}" for f, c in zip(cells["family"].values, cells["checkpoint"].values, strict=True)])
    _, first = np.unique(keys, return_index=True)
    family = cells["family"].to_numpy()[first]
    x_params = np.log(cells["n_params_nonembedding"].to_numpy()[first] / laws.PIVOT_PARAMS)
    x_tokens = np.log(cells["train_tokens"].to_numpy()[first] / laws.PIVOT_TOKENS)
    names = np.unique(cells["family"].to_numpy().astype(str))
    return {
        "family": names,
        "x_N": np.array([x_params[family == name].mean() for name in names]),
        "x_D": np.array([x_tokens[family == name].mean() for name in names]),
    }


def _canonical(level: np.ndarray) -> np.ndarray:
    """Levels renumbered in the order of their first cell, so that equal partitions get equal numbers."""
    _, first, inverse = np.unique(level, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _touched(block: Block, columns, centers, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients of a block that each cell touches, with their plain and x_P values, each (n, number touched)."""
    rows = len(columns["qid"])
    level = np.zeros(rows, dtype=np.int64)
    if block.by is not None:
        level = np.searchsorted(block.levels, columns[block.by].astype(str))
    if block.count < len(block.levels):
        index = np.broadcast_to(block.start + np.arange(block.count), (rows, block.count))
        value = block.contrasts[level]
    else:
        index, value = (block.start + level)[:, None], np.ones((rows, 1))
    if block.factor == "-x_P":
        return index, np.zeros_like(value), value
    factor = laws.factor(block.factor, columns, 0.0)
    if block.by == "family" and model == "hierarchical" and block.factor in CENTRED_FACTORS:
        center = centers[block.factor.lstrip("-")][level]
        factor = factor + center if block.factor.startswith("-") else factor - center
    return index, value * factor[:, None], np.zeros_like(value)


def build(cells: xr.Dataset, law: laws.Law, model: str) -> Problem:
    """Lay out blocks, hyper-parameters and arrays for `model`: hierarchical, pooled or independent families."""
    if model not in MODELS:
        raise BadInput(f"There is no model {model!r}: choose one of {', '.join(MODELS)}.")
    columns = {name: cells[name].to_numpy() for name in (*cells.coords, *cells.data_vars)}
    families = tuple(str(name) for name in np.unique(columns["family"].astype(str)))
    blocks: list[Block] = []
    spreads: list[tuple[str, float]] = []

    def add(name, by, factor, levels, mean, sd, spread=None, zero_sum=False):
        start = blocks[-1].where.stop if blocks else 0
        hyper = None if spread is None else len(spreads)
        if spread is not None:
            spreads.append((name, spread))
        blocks.append(Block(name, by, factor, tuple(map(str, levels)), start, mean, sd, hyper, zero_sum))

    for term in law.terms:
        # independent families share no mean: it stays at the prior's, with no room to move
        if model != "independent":
            add(f"mu {term.name}", None, term.factor, ("",), term.mean, term.sd)
    for covariate in law.covariates:
        add(covariate.name, None, covariate.factor, ("",), covariate.mean, covariate.sd)
    for term in law.terms:
        if model == "hierarchical":
            add(f"family {term.name}", "family", term.factor, families, 0.0, None, term.spread)
        elif model == "independent":
            sd = float(np.hypot(term.sd, term.spread))
            add(f"family {term.name}", "family", term.factor, families, term.mean, sd)
    told_apart: set[tuple[str, bytes]] = set()
    for effect in law.effects:
        levels, level = np.unique(columns[effect.by].astype(str), return_inverse=True)
        # an effect whose levels split the cells just as an earlier one's cannot be told from it: the earlier one
        # takes both, and the spread of this one stays its prior's
        partition = (effect.factor, _canonical(level).tobytes())
        if partition in told_apart:
            continue
        told_apart.add(partition)
        add(effect.name, effect.by, effect.factor, levels, 0.0, None, effect.spread, effect.zero_sum)

    centers = family_centers(cells)
    parts = [_touched(block, columns, centers, model) for block in blocks]
    index, plain, slope = (np.concatenate(columns_of, axis=1) for columns_of in zip(*parts, strict=True))
    generations = tuple(str(name) for name in np.unique(columns["generation"].astype(str)))
    diverged = columns["censored"].astype(bool)
    measured = ~diverged
    anchor, precision = likelihood.anchors(*(columns[k][measured] for k in ("qid", "qid_se", "headroom")))
    return Problem(
        law, model, cells, tuple(blocks), index, plain, slope,
        tuple(name for name, _ in spreads), np.array([scale for _, scale in spreads]),
        generations, np.searchsorted(generations, columns["generation"].astype(str)), centers,
        measured, diverged, anchor, precision, likelihood.censoring_point(columns["headroom"][diverged]),
    )  # fmt: skip
