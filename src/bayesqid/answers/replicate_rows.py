"""What replications have in common: the stored tables of the papers, one row per claim, and its verdict."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np

from bayesqid import bundled
from bayesqid.answers import draws
from bayesqid.answers.draws import Posterior

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
COMPATIBLE, EXCLUDED, UNCLEAR = "compatible", "excluded", "unclear"
UNANSWERABLE = "not answerable from this posterior"
# a value outside the equal-tailed 90 % interval has a two-sided tail area below this
EXCLUDING = 0.1


@dataclass(frozen=True)
class Row:
    """One claim of a paper.

    `printed`: its number; `recomputed`: what follows from `constants`, `low` and `high` as far as their rounding leaves
    it open; `follows`: whether the printed number does (reproduced or not). `lower90`, `median`, `upper90` are
    quantiles of the posterior, `p` is, by `p_of`, the two-sided tail area of the claimed value ("value"), or the
    probability of the claimed direction under the posterior ("direction") or by stored results ("stored").
    """

    part: str
    claim: str
    unit: str = ""
    printed: float = math.nan
    recomputed: float = math.nan
    low: float = math.nan
    high: float = math.nan
    constants: str = ""
    follows: str = ""
    lower90: float = math.nan
    median: float = math.nan
    upper90: float = math.nan
    contraction: float = math.nan
    p: float = math.nan
    p_of: str = ""
    verdict: str = ""


def stored(name: str) -> dict:
    """A file of data/papers: a paper's numbers as printed, or `xu_here`."""
    return json.loads((bundled.data_dir() / "papers" / f"{name}.json").read_text(encoding="utf-8"))


def half(decimals: int) -> float:
    """Half a unit of the last printed decimal."""
    return 0.5 * 10.0**-decimals


def followed(row: Row, error: float) -> Row:
    """The row with `follows`: whether printed +- error, its rounding, meets [low, high]."""
    meets = row.low <= row.printed + error and row.printed - error <= row.high
    return replace(row, follows=REPRODUCED if meets else NOT_REPRODUCED)


def tail(values: np.ndarray, value: float) -> float:
    """Two-sided tail area of a value among draws, 2 min(P(draw <= value), P(draw >= value)), at most 1."""
    return min(1.0, 2 * float(min((values <= value).mean(), (values >= value).mean())))


def beside(row: Row, values: np.ndarray, value: float | tuple[float, float], informed: bool = True) -> Row:
    """The row with what draws say of a value, or of a range: of its value nearest the median.

    `informed`: whether data stand behind the draws; where they are the prior's the posterior has no answer. Draws may
    be infinite; a quantile among those is NaN.
    """
    found = np.quantile(values, [0.05, 0.5, 0.95], method="inverted_cdf")
    low, high = value if isinstance(value, tuple) else (value, value)
    p = tail(values, min(max(found[1], low), high))
    verdict = UNANSWERABLE if not informed else EXCLUDED if p < EXCLUDING else COMPATIBLE
    lower, median, upper = np.where(np.isfinite(found), found, math.nan)
    return replace(row, lower90=float(lower), median=float(median), upper90=float(upper), p=p, p_of="value",
                   verdict=verdict)  # fmt: skip


def toward(row: Row, values: np.ndarray, informed: bool = True) -> Row:
    """The row with the probability that a draw is above zero, the claimed direction."""
    p = float((values > 0).mean())
    lower, median, upper = np.quantile(values, [0.05, 0.5, 0.95])
    verdict = UNANSWERABLE if not informed else EXCLUDED if p < EXCLUDING / 2 else COMPATIBLE
    return replace(row, lower90=float(lower), median=float(median), upper90=float(upper), p=p, p_of="direction",
                   verdict=verdict)  # fmt: skip


def unanswered(row: Row) -> Row:
    """The row where the posterior's law has nothing to say."""
    return replace(row, verdict=UNANSWERABLE)


def term(posterior: Posterior, name: str, family: str | None = None) -> tuple[np.ndarray, float] | None:
    """Draws of a term and its contraction, of the population or of a fitted family; None where the law has none.

    Independent families have no population, which is None too.
    """
    if name not in posterior.law.term_names:
        return None
    if family is not None:
        return (posterior.sample["theta"].sel(term=name, family=family).to_numpy(),
                draws.contraction(posterior, "theta", name, family))  # fmt: skip
    if posterior.tree.attrs["model"] == "independent":
        return None
    return posterior.sample["mu"].sel(term=name).to_numpy(), draws.contraction(posterior, "mu", name)


def beside_term(row: Row, found: tuple[np.ndarray, float] | None, value: float) -> Row:
    """The row with what a term of the posterior (`term`) says of a value."""
    if found is None:
        return unanswered(row)
    values, contraction = found
    return replace(beside(row, values, value, contraction >= draws.IDENTIFIED), contraction=contraction)
