"""Which share of the variance of ln QiD comes from where.

ln QiD (of the law, before its ceiling) is a sum of parts: of the family, the law's population terms, the learning-rate
phase, the quantizer, the checkpoint, the source, and residual scatter. In each draw of the posterior a part is a value
m_i that the fitted numbers determine plus, where something unseen is asked about, a deviation e_i drawn around zero.
Given the fitted numbers the deviations are independent, so the variance splits without a remainder:

    Var(ln QiD) = Var(sum_i m_i) + sum_i E[e_i^2]
    share_i = (Cov(m_i, sum_j m_j) + E[e_i^2]) / Var(ln QiD)

What is drawn contributes its variance. What was fitted together is correlated, and covariance is halved between two
parts: a part that offsets another can have a share below zero. The shares of a target sum to one. Their Monte Carlo
error is that of the variances: with 800 draws about 5 % of each.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from bayesqid.answers import wording

# name -> what it stands for
PARTS = {
    "family": "differences between families, or what is not known of a fitted one's terms",
    "law": "the population's terms, the scale of bits, covariates",
    "phase": "learning-rate decay",
    "quantizer": "its generation, the method, the bit width",
    "checkpoint": "deviation of the checkpoint",
    "source": "deviation of a method in a source",
    "scatter": "residual scatter of single quantizations",
}


def shares(fitted: Mapping[str, np.ndarray], drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    """Share of the variance by part and target, shape (part, target), in the order of `PARTS`.

    `fitted` holds the parts m of `project.band_parts` without deviations, `drawn` the parts m + e, each
    (draw, target); a part that the band does not have counts zero. Where nothing varies all shares are zero.
    """
    total = sum(fitted.values(), np.zeros(()))
    centred = total - total.mean(axis=0)
    nothing = np.zeros(centred.shape[1])
    each = np.stack([
        ((m - m.mean(axis=0)) * centred).mean(axis=0) + ((drawn[name] - m) ** 2).mean(axis=0)
        if (m := fitted.get(name)) is not None else nothing
        for name in PARTS
    ])  # fmt: skip
    variance = each.sum(axis=0)
    # below the rounding of the parts themselves nothing varies
    exact = variance <= 1e-24 * (1 + (total**2).mean(axis=0))
    return np.where(exact, 0.0, each / np.where(exact, 1.0, variance))


_HEADS = {"family": 7, "law": 5, "phase": 6, "quantizer": 6, "checkpoint": 6, "source": 7, "scatter": 8}
_SHORT = {"quantizer": "quant", "checkpoint": "ckpt"}


def as_text(rows: Sequence[Mapping]) -> list[str]:
    """Rows of `project.rows` as a table of 80 columns: how far beyond the data, and the shares in per cent."""
    lines = textwrap.wrap("Shares of the variance of ln QiD, before its ceiling, in per cent; N and D: how many times "
                          "beyond the data, '-' inside.", 80)  # fmt: skip
    heads = "".join(f"{_SHORT.get(name, name):>{width}}" for name, width in _HEADS.items())
    lines.append(f"{'family':<8}{'params':>6}{'tokens':>7}{'bits':>5}{'N':>4}{'D':>5}{heads}")
    for row in rows:
        each = "".join(f"{round(100 * row['shares'][name]):>{width}d}" for name, width in _HEADS.items())
        family = row["family"] if len(row["family"]) < 8 else f"{row['family'][:6]}."
        lines.append(
            f"{family:<8}{wording.count_text(row['params']):>6}{wording.count_text(row['tokens']):>7}"
            f"{row['bits']:>5.3g}{_times(row['extrapolation']['n_ratio'], 3):>4}"
            f"{_times(row['extrapolation']['d_ratio'], 4):>5}{each}"
        )
    return lines


def _times(ratio: float, width: int) -> str:
    """How many times beyond the data, in at most `width` characters; more than fits is shown as the most that does."""
    if ratio <= 1:
        return "-"
    text = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
    return text if len(text) <= width else ">" + "9" * (width - 1)
