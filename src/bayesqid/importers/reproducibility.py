"""How far two sources that measured the same thing differ: standard deviations of ln QiD between sources.

    y_cs = mu_c + u_s + e_cs + r_cs,    u_s ~ Normal(0, shared^2),  e_cs ~ Normal(0, own^2),  r_cs ~ Normal(0, s_cs^2)

y_cs is ln QiD of configuration c (model, quantizer, bits, group, text, context) in source s. u is what one method in
one source shares over its configurations, which is the effect `source_level` of the laws; e is what a configuration
has for itself, and s the known rounding of what was printed. mu has a flat prior and is integrated out: only contrasts
between sources of one configuration speak, so that no law is needed (restricted likelihood, Patterson and Thompson
1971). The two standard deviations have HalfNormal(1) priors, wide beside anything plausible, integrated on a grid.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# a DataFrame: pandas' own hints cannot tell one column of a table from several
Table = Any

MASS = 0.9
PRIOR_SCALE = 1.0
# standard deviations of ln QiD that are tried: fine near zero, up to a factor of e^2
GRID = np.linspace(0, 1, 61) ** 2 * 2.0
# sources whose baselines differ by more than this share of the perplexity share the text's name only
SAME_BASELINE = 0.01
# a loss of which more than this is rounding says nothing of its source
MOST_ROUNDING = 0.25
# why a row may stay out of inference and still be an independent measurement of its configuration
ADMITTED = ("", "training tokens not disclosed", "repeats another row")
CONFIGURATION = ("model", "quantizer", "type", "bits", "group", "effective", "eval_dataset", "ctx_len", "kind")
# one generation of quantizers after the other, and all of them; a class needs this many configurations
CLASSES = ("rtn", "calibrated", "optimised", "vector")
FEWEST = 2


@dataclass(frozen=True)
class Spread:
    """Median and equal-tailed interval of mass `MASS` of a standard deviation of ln QiD."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Reproducibility:
    """What sources that measured one configuration differ by; `both` is the root of the sum of squares of the two.

    `robust` is 1.4826 / sqrt 2 times the median absolute difference of two sources: what a few broken runs cannot move,
    rounding included.
    """

    configurations: int
    rows: int
    sources: int
    shared: Spread
    own: Spread
    both: Spread
    robust: float


def repeated(table: Table, merged: bool = False) -> Table:
    """Rows of a derived table whose configuration stands in several sources, one per source.

    A configuration has one printed name of its quantizer; `merged`: one effect of the laws, which takes tuned and
    untuned, symmetric and asymmetric versions together. Adds `configuration` (a number), `quantizer`, `log_qid` and
    `error` (sd of its rounding). Left out are quoted values, diverged and suspect rows, rows where rounding is more
    than `MOST_ROUNDING` of the loss, groups that are unknown, and baselines further than `SAME_BASELINE` from the
    median of their configuration. Where a source has several values of a configuration its first one counts.
    """
    from bayesqid import methods

    rows = table.copy()
    for column in ("default_reason", "duplicate_kind", "flags"):
        rows[column] = rows[column].fillna("")
    rows["quantizer"] = [methods.effect_key(*pair) for pair in zip(rows["method"], rows["variant"].fillna(""),
                                                                   strict=True)]  # fmt: skip
    printed = rows["method_printed"].str.casefold()
    # the laws merge the types of llama.cpp too, but these differ in their bits as well
    rows["type"] = printed.where(rows["method"].str.startswith("llamacpp"), "") if merged else printed
    rows["group"] = rows["group_size"].fillna(0)
    rows["effective"] = rows["effective_bits"].fillna(rows["bits"]).round(1)
    step = 10.0 ** -rows["ppl_q_decimals"]
    # the baseline's own rounding is common to all sources that print the same baseline, and cancels
    rows["error"] = step / rows["ppl_q"] / np.sqrt(12) / rows["qid"]
    flags = rows["flags"].str.split(";")
    good = (
        rows["default_reason"].isin(ADMITTED) & ~rows["censored"].astype(bool) & rows["ppl_q"].notna()
        & (rows["qid"] > 0) & (rows["error"] < MOST_ROUNDING)
        & ~rows["duplicate_kind"].str.contains("repeat: quoted") & ~rows["notes"].fillna("").str.contains("quoted")
        & np.array([not {"suspect", "group_unknown"} & set(held) for held in flags], dtype=bool)
    )  # fmt: skip
    rows = rows[good].drop_duplicates([*CONFIGURATION, "source"])
    baseline = np.log(rows["ppl_fp"].to_numpy(dtype=float))
    middle = np.log(rows.groupby(list(CONFIGURATION))["ppl_fp"].transform("median").to_numpy(dtype=float))
    rows = rows[np.abs(baseline - middle) < SAME_BASELINE].copy()
    rows["configuration"] = rows.groupby(list(CONFIGURATION)).ngroup()
    rows = rows[rows.groupby("configuration")["source"].transform("size") > 1].copy()
    rows["log_qid"] = np.log(rows["qid"].to_numpy(dtype=float))
    return rows


def contrasts(configuration: np.ndarray) -> np.ndarray:
    """Orthonormal columns that sum to zero within each configuration, shape (rows, rows - configurations)."""
    of = np.unique(configuration, return_inverse=True)[1]
    member = np.eye(of.max() + 1)[of]
    # what is left of the unit vectors without the means of the configurations
    left, size, _ = np.linalg.svd(np.eye(of.size) - member / member.sum(0) @ member.T)
    return left[:, size > 0.5]


def log_likelihood(
    y: np.ndarray, error: np.ndarray, configuration: np.ndarray, cluster: np.ndarray, grid: np.ndarray = GRID
) -> np.ndarray:
    """Restricted log likelihood of (shared, own) on grid x grid up to a constant; arguments of shape (rows,).

    ln L = -(ln |V| + z' V^-1 z) / 2 of the contrasts z = K'y, V = K' (shared^2 ZZ' + own^2 I + diag(s^2)) K.
    """
    k = contrasts(configuration)
    z = k.T @ y
    of = np.unique(cluster, return_inverse=True)[1]
    members = k.T @ np.eye(of.max() + 1)[of]
    fixed = k.T @ (error[:, None] ** 2 * k)
    made = np.empty((grid.size, grid.size))
    for i, shared in enumerate(grid):
        # rounding alone may be next to nothing: a trace of variance keeps V positive
        base = shared**2 * members @ members.T + fixed + 1e-10 * np.eye(z.size)
        values, vectors = np.linalg.eigh(base)
        variance = values + grid[:, None] ** 2
        made[i] = -0.5 * (np.log(variance) + (vectors.T @ z) ** 2 / variance).sum(1)
    return made


def estimate(rows: Table) -> Reproducibility:
    """Standard deviations between sources from the rows of `repeated`."""
    log_density = np.zeros((GRID.size, GRID.size))
    # neither configurations nor what sources share reach over quantizers
    for _, part in rows.groupby("quantizer"):
        y, error, configuration = (part[name].to_numpy() for name in ("log_qid", "error", "configuration"))
        log_density += log_likelihood(y, error, configuration, part["source"].to_numpy(dtype=str))
    pairs = rows.merge(rows, on="configuration", suffixes=("", "_other"))
    pairs = pairs[pairs["source"] < pairs["source_other"]]
    middle = float((pairs["log_qid"] - pairs["log_qid_other"]).abs().median())
    return Reproducibility(rows["configuration"].nunique(), len(rows), rows["source"].nunique(), *spreads(log_density),
                           1.4826 * middle / np.sqrt(2))  # fmt: skip


def spreads(log_density: np.ndarray, grid: np.ndarray = GRID) -> tuple[Spread, Spread, Spread]:
    """Posterior of shared, own and the root of the sum of their squares from the log likelihood on the grid."""
    prior = -0.5 * (grid / PRIOR_SCALE) ** 2 + np.log(np.gradient(grid))
    log_weight = log_density + prior[:, None] + prior
    weight = np.exp(log_weight - log_weight.max())
    square = grid[:, None] ** 2 + grid**2
    return (_quantiles(grid, weight.sum(1)), _quantiles(grid, weight.sum(0)),
            _quantiles(np.sqrt(square).ravel(), weight.ravel()))  # fmt: skip


def by_class(table: Table, merged: bool = False) -> dict[str, Reproducibility]:
    """Estimates by generation of the quantizer where it has `FEWEST` configurations, and of all of them under "all"."""
    rows = repeated(table, merged)
    parts = {name: rows[rows["generation"] == name] for name in CLASSES} | {"all": rows}
    return {name: estimate(part) for name, part in parts.items() if part["configuration"].nunique() >= FEWEST}


def as_rows(found: dict[str, Reproducibility]) -> list[dict]:
    """The same as plain rows, one per class."""
    return [{"class": name} | asdict(one) for name, one in found.items()]


def _quantiles(value: np.ndarray, weight: np.ndarray) -> Spread:
    order = np.argsort(value, kind="stable")
    value, weight = value[order], weight[order]
    below = (np.cumsum(weight) - 0.5 * weight) / weight.sum()
    low, middle, high = np.interp([0.5 - MASS / 2, 0.5, 0.5 + MASS / 2], below, value)
    return Spread(float(middle), float(low), float(high))
