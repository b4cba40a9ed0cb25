"""A set of cells and a law turned into arrays: one sparse linear block, its hyper-parameters and the data.

Every coefficient stands in one vector b (mu, covariates, family deviations, effects). Each cell touches R of them,
so ln QiD is eta = sum_r (plain[:, r] - x_P(lam) slope[:, r]) b[index[:, r]]. Both engines read nothing else.

Family deviations of alpha and beta are counted from the centre of the family's own data, not from the global
pivot: a family seen only at 1e5 parameters says nothing about its level at 1e9, and a deviation in slope must not
be paid for by an absurd deviation in level there.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import xarray as xr

from bayesqid import laws, likelihood
from bayesqid.errors import BadInput
from bayesqid.inference import compiled

MODELS = ("hierarchical", "pooled", "independent")
# coordinate -> stage: what confounds with the levels of an earlier stage stands in a later one
STAGE = {"everything": 1, "family": 1, "generation": 1, "width": 1, "quantizer": 2, "family_generation": 2,
         "checkpoint": 3, "source": 3, "source_method": 3}  # fmt: skip


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
    """Everything inference needs, as arrays; sizes: n cells, p coefficients, R coefficients per cell.

    The last `apart` coefficients are the levels of one effect, of which every cell has one, in the last column: the
    posterior's precision is diagonal there, and its cost linear in their number. `index` rises along every row.
    `tokens` marks which coefficients multiply ln D; `latent_of` is the number of the checkpoint of undisclosed tokens
    that a cell belongs to, -1 for none. Both are empty where no tokens are latent.
    """

    law: laws.Law
    model: str
    cells: xr.Dataset
    blocks: tuple[Block, ...]
    apart: int
    index: np.ndarray
    plain: np.ndarray
    slope: np.ndarray
    tokens: np.ndarray
    latent_of: np.ndarray
    latent_names: tuple[str, ...]
    spread_names: tuple[str, ...]
    spread_scales: np.ndarray
    generations: tuple[str, ...]
    generation_of: np.ndarray
    centers: dict[str, np.ndarray]
    center: dict[str, float]
    data: likelihood.Data

    @property
    def size(self) -> int:
        """Number of coefficients p."""
        return self.blocks[-1].where.stop

    @property
    def dense(self) -> int:
        """Number of coefficients before those that stand apart."""
        return self.size - self.apart

    @property
    def free_lam(self) -> bool:
        """Whether the exponent of the bit scale is inferred."""
        return isinstance(self.law.lam, tuple)

    @property
    def tails(self) -> tuple[np.ndarray, np.ndarray]:
        """Scales and weights of the normals that make up the scatter."""
        return likelihood.TAILS[self.law.tails]

    def block(self, name: str) -> Block | None:
        """The block of that name, None if the model leaves it out."""
        return next((block for block in self.blocks if block.name == name), None)

    @cached_property
    def mean(self) -> np.ndarray:
        """Prior means of b, shape (p,)."""
        return np.concatenate([np.full(block.count, block.mean) for block in self.blocks])

    @cached_property
    def fixed_sd(self) -> np.ndarray:
        """Prior standard deviations of the blocks that have a fixed one."""
        return np.array([block.sd for block in self.blocks if block.hyper is None])

    @cached_property
    def spread_of(self) -> np.ndarray:
        """Where each coefficient's prior sd stands among the free spreads followed by `fixed_sd`, shape (p,)."""
        fixed = iter(range(len(self.spread_names), len(self.spread_names) + len(self.fixed_sd)))
        return np.concatenate([np.full(block.count, next(fixed) if block.hyper is None else block.hyper)
                               for block in self.blocks])  # fmt: skip

    @cached_property
    def bits(self) -> np.ndarray:
        """Effective bits of every cell, shape (n,)."""
        return self.cells["effective_bits"].to_numpy()

    def bit_scale(self, lam):
        """x_P of every cell, shape (n,)."""
        return laws.bit_scale(self.bits, lam)

    def weights(self, lam: float, latent: np.ndarray | None = None) -> np.ndarray:
        """Values that multiply b[index], shape (n, R); `latent` shifts ln D of the checkpoints in `latent_names`."""
        known = self.plain - self.bit_scale(lam)[:, None] * self.slope
        if latent is None or not self.latent_names:
            return known
        return known + np.where(self.latent_of < 0, 0.0, latent[self.latent_of])[:, None] * self.tokens

    def log_likelihood(self, eta: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, ...]:
        """Pointwise log density with d/d eta, d2/d eta2, d/d tau; `tau` has one value per generation."""
        return compiled.density(self.data, eta, tau[self.generation_of], *self.tails)


def prepare(cells: xr.Dataset) -> likelihood.Data:
    """The density's data of cells."""
    return likelihood.prepare(*(cells[name].to_numpy() for name in ("qid", "qid_se", "headroom", "censored")))


def part(problem: Problem, keep: np.ndarray) -> Problem:
    """The same model, with every level, centre and hyper-parameter, of the cells in the boolean mask `keep` alone.

    Levels without a cell keep their priors, so that the cells left out are predicted as new ones would be.
    """
    cells = problem.cells.isel(cell=np.flatnonzero(keep))
    rows = {name: getattr(problem, name)[keep] for name in ("index", "plain", "slope", "generation_of")}
    if problem.latent_names:
        rows |= {name: getattr(problem, name)[keep] for name in ("tokens", "latent_of")}
    return replace(problem, cells=cells, data=prepare(cells), **rows)


def family_centers(cells: xr.Dataset) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Mean of x_N and of x_D over the checkpoints of each family, families in sorted order, and over all of them."""
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
    }, {"x_N": float(x_params.mean()), "x_D": float(x_tokens.mean())}


def _canonical(level: np.ndarray) -> np.ndarray:
    """Levels renumbered in the order of their first cell, so that equal partitions get equal numbers."""
    _, first, inverse = np.unique(level, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _touched(block: Block, columns, centers, center, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    # covariates and effects that bend or tilt the law turn about the centre of all data, families about their own:
    # far from there a deviation in slope would have to be paid for by an absurd one in level
    x_params, x_tokens = center["x_N"], center["x_D"]
    if block.by == "family":
        own = model == "hierarchical"
        x_params, x_tokens = (centers[name][level] if own else 0.0 for name in ("x_N", "x_D"))
    elif block.name.startswith("mu "):
        x_params, x_tokens = 0.0, 0.0
    moved = columns | {
        "n_params_nonembedding": columns["n_params_nonembedding"] * np.exp(-x_params),
        "train_tokens": columns["train_tokens"] * np.exp(-x_tokens),
    }
    return index, value * laws.factor(block.factor, moved, 0.0)[:, None], np.zeros_like(value)


def build(cells: xr.Dataset, law: laws.Law, model: str) -> Problem:
    """Lay out blocks, hyper-parameters and arrays for `model`: hierarchical, pooled or independent families."""
    if model not in MODELS:
        raise BadInput(f"There is no model {model!r}: choose one of {', '.join(MODELS)}.")
    cells, latent_names, latent_of = _latent(cells, law)
    columns = {str(name): cells[name].to_numpy() for name in (*cells.coords, *cells.data_vars)}
    laws.require_features(law, {str(name): values for name, values in columns.items()})
    columns |= laws.crossed(columns)
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
    # nor can an effect of one level be told from the population's mean
    constant = _canonical(np.zeros(len(columns["qid"]), dtype=np.int64)).tobytes()
    told_apart = {(term.factor, constant) for term in law.terms}
    kept: list[tuple[laws.Effect, np.ndarray]] = []
    for effect in law.effects:
        levels, level = np.unique(columns[effect.by].astype(str), return_inverse=True)
        # an effect whose levels split the cells just as an earlier one's cannot be told from it: the earlier one
        # takes both, and the spread of this one stays its prior's
        partition = (effect.factor, _canonical(level).tobytes())
        if partition not in told_apart:
            told_apart.add(partition)
            kept.append((effect, levels))
    # given all others the levels of one effect are independent: the effect with most of them stands last and apart
    alone = [len(levels) if effect.factor == "1" and not effect.zero_sum else 0 for effect, levels in kept]
    own = kept[int(np.argmax(alone))] if any(alone) else None
    for effect, levels in sorted(kept, key=lambda one: 9 if one is own else STAGE[one[0].by]):
        add(effect.name, effect.by, effect.factor, levels, 0.0, None, effect.spread, effect.zero_sum)

    centers, center = family_centers(cells)
    parts = [_touched(block, columns, centers, center, model) for block in blocks]
    index, plain, slope = (np.concatenate(columns_of, axis=1) for columns_of in zip(*parts, strict=True))
    # what one more unit of ln D adds to the weights
    further = cells.assign_coords(train_tokens=cells["train_tokens"] * np.e)["train_tokens"].to_numpy()
    shifted = [_touched(block, columns | {"train_tokens": further}, centers, center, model)[1] for block in blocks]
    tokens = np.concatenate(shifted, axis=1) - plain if latent_names else np.empty((0, 0))
    generations = tuple(str(name) for name in np.unique(columns["generation"].astype(str)))
    return Problem(
        law, model, cells, tuple(blocks), len(own[1]) if own else 0, index, plain, slope, tokens, latent_of,
        latent_names, tuple(name for name, _ in spreads), np.array([scale for _, scale in spreads]),
        generations, np.searchsorted(generations, columns["generation"].astype(str)), centers, center, prepare(cells),
    )  # fmt: skip


def _latent(cells: xr.Dataset, law: laws.Law) -> tuple[xr.Dataset, tuple[str, ...], np.ndarray]:
    """Cells with undisclosed tokens at the prior's median, the checkpoints they belong to, and each cell's number."""
    unknown = np.isnan(cells["train_tokens"].to_numpy())
    if law.latent_tokens is None or not unknown.any():
        return cells, (), np.empty(0, dtype=np.int64)
    names = np.unique(cells["checkpoint"].to_numpy()[unknown].astype(str))
    number = np.where(unknown, np.searchsorted(names, cells["checkpoint"].to_numpy().astype(str)), -1)
    filled = np.where(unknown, np.exp(law.latent_tokens[0]), cells["train_tokens"].to_numpy())
    return cells.assign_coords(train_tokens=("cell", filled)), tuple(map(str, names)), number
