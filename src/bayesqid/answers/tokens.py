"""Tokens: after how many training tokens quantization costs a model a given QiD.

In each posterior draw ln QiD is a polynomial of degree two at most in x = ln(D / 1e11), whatever the law and the band,
because effects, deviations and scatter do not depend on D. So each draw is inverted in closed form:

    c_0 + c_1 x + c_2 x^2 = ln raw(T),   raw(T) = -L ln(1 - T / L)   (threshold T, headroom L, `likelihood.unsaturate`)
"""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid import laws, likelihood
from bayesqid.answers import asking, candidates, project, record, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

THRESHOLDS = (0.2, 0.3, 0.4, 0.5)
HIGHEST_THRESHOLD = 100.0
# Ouyang et al. 2024, arXiv 2411.17691, Table 1, GPTQ: {params: {threshold in nats: tokens / 1e12 at 2, 3 and 4 bits}}
PRINTED = {
    1e9: {0.2: (0.0011, 0.1089, 1.4424), 0.3: (0.0025, 0.1990, 2.6786),
          0.4: (0.0043, 0.3051, 4.1556), 0.5: (0.0066, 0.4251, 5.8422)},
    7e9: {0.2: (0.0026, 0.3038, 4.5066), 0.3: (0.0057, 0.5550, 8.3689),
          0.4: (0.0099, 0.8512, 12.9836), 0.5: (0.0152, 1.1860, 18.2531)},
    70e9: {0.2: (0.0071, 1.0228, 17.3499), 0.3: (0.0154, 1.8687, 32.2192),
           0.4: (0.0267, 2.8659, 49.9854), 0.5: (0.0409, 3.9932, 70.2723)},
    405e9: {0.2: (0.0151, 2.5807, 48.4861), 0.3: (0.0328, 4.7151, 90.0398),
            0.4: (0.0567, 7.2311, 139.6892), 0.5: (0.0868, 10.0754, 196.3829)},
}  # fmt: skip
PRINTED_BITS, PRINTED_METHOD = (2.0, 3.0, 4.0), "gptq"
# project's own sentences speak of a band of QiD
VERDICTS = wording.VERDICTS | {
    "extrapolation": "extrapolation: median tokens, model or bits lie outside the range of the data, believe the law "
    "before you believe the interval",
    "not identified": "not identified: the data do not inform the tokens exponent, the interval is the prior's",
}


def polynomial(
    posterior: Posterior, targets: Sequence[Target], band: str, seed: int = project.SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of ln QiD in x = ln(D / 1e11) and the additive error of the band, (3, draw, target), (draw, target).

    Unbounded law values, of which `project.qid_draws` takes the same draws wherever D stands: three tokens give the
    coefficients of a quadratic exactly. The targets need a `headroom`.
    """
    headroom = np.array([t.headroom for t in targets])
    values = []
    for x in (-1.0, 0.0, 1.0):
        there = [replace(t, tokens=laws.PIVOT_TOKENS * math.exp(x)) for t in targets]
        seen, fullness = project.qid_draws(posterior, there, band, seed)
        values.append(np.log(fullness * headroom))
    error = seen - likelihood.saturate(fullness * headroom, headroom)
    below, at, above = values
    return np.stack([at, (above - below) / 2, (above + below) / 2 - at]), error


def first_reached(coefficients: np.ndarray, level: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smallest x in [low, high] at which c_0 + c_1 x + c_2 x^2 >= level; infinity where there is none.

    With u = x - low the polynomial less its level is a + b u + c_2 u^2, and where a < 0 its smallest positive root is
    -2 a / (b + sqrt(b^2 - 4 a c_2)), the form that stays exact as c_2 goes to zero.
    """
    c0, c1, c2 = coefficients
    a, b = c0 + c1 * low + c2 * low**2 - level, c1 + 2 * c2 * low
    with np.errstate(divide="ignore", invalid="ignore"):
        divisor = b + np.sqrt(b**2 - 4 * a * c2)
        root = low - 2 * a / divisor
    within = (divisor > 0) & (root <= high)
    return np.where(a >= 0, low, np.where(within, root, np.inf))


def tokens_draws(
    posterior: Posterior, targets: Sequence[Target], thresholds: Sequence[float], band: str, seed: int = project.SEED
) -> np.ndarray:
    """Draws of the smallest D within `asking.LIMITS` at which QiD is at or above a threshold (draw, target, threshold).

    The lower limit where QiD is above it there already; infinity where it never is, so too for a threshold at or
    above the headroom.
    """
    targets = candidates.filled(posterior, targets)
    coefficients, error = polynomial(posterior, targets, band, seed)
    headroom = np.array([t.headroom for t in targets])[:, None]
    # the band `observed` adds its error to what is seen of the law, under the ceiling
    wanted = np.asarray(thresholds, dtype=float) - error[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log(likelihood.unsaturate(np.clip(wanted, 0.0, headroom), headroom))
    low, high = (math.log(limit / laws.PIVOT_TOKENS) for limit in asking.LIMITS["tokens"])
    x = first_reached(coefficients[..., None], level, low, high)
    return np.where(x == low, asking.LIMITS["tokens"][0], laws.PIVOT_TOKENS * np.exp(x))


def by_equation_8(params: float, bits: float, threshold: float) -> float:
    """Tokens at which Ouyang et al.'s Eq. 8 with its printed constants reaches a threshold; it knows no ceiling."""
    constants = laws.published_constants("ouyang")
    start = laws.log_qid(params, laws.PIVOT_TOKENS, bits, **constants)
    return float(laws.PIVOT_TOKENS * np.exp((math.log(threshold) - start) / constants["beta"]))


def printed(target: Target, threshold: float) -> float:
    """The tokens in Table 1 of Ouyang et al. for a size, bits and threshold that stand there under GPTQ; else NaN."""
    row = PRINTED.get(target.params, {}).get(threshold)
    if row is None or target.bits not in PRINTED_BITS or target.method != PRINTED_METHOD:
        return math.nan
    return row[PRINTED_BITS.index(target.bits)] * 1e12


def checked_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """The same thresholds, in nats per token, each once and rising; `BadInput` where one is not a QiD."""
    if not thresholds:
        raise BadInput("No threshold is given: give at least one, e.g. --threshold 0.2.")
    for value in thresholds:
        if not (math.isfinite(value) and 0 < value <= HIGHEST_THRESHOLD):
            raise BadInput(f"--threshold is {value:g}: give nats per token above 0 and up to {HIGHEST_THRESHOLD:g}.")
    return tuple(sorted({float(value) for value in thresholds}))


def tokens(
    posterior: Posterior,
    params: float | None = None,
    known: dict | None = None,
    bits: Sequence[float] | None = None,
    threshold: Sequence[float] | None = None,
    method: str = asking.DEFAULT_METHOD,
    family: str | None = None,
    new_family: bool = False,
    band: str = "new",
    lr_phase: str = "annealed",
    seed: int = project.SEED,
) -> xr.Dataset:
    """Training tokens at which QiD reaches each threshold, dim `target`: one for each size, bits and threshold.

    Defaults: 1B, 7B, 70B and 405B parameters, 2, 3 and 4 bits, QiD 0.2 to 0.5, a new family. `known` describes a
    named model (`bayesqid.importers.tables.lookup_model`). Quantiles are equal-tailed and count draws that never
    reach the threshold as infinite; one that falls among them is NaN. `p_never` and `p_always` are the shares of draws
    that never reach it and that are above it at the lower limit. `printed` and `printed_law`: Table 1 and Eq. 8 of
    Ouyang et al. 2024. `BadInput` for a law without tokens and for what is no size, bits, threshold, method or band.
    """
    if "beta" not in posterior.law.term_names:
        raise BadInput("This posterior's law has no effect of tokens (--drivers phase): sample one that has.")
    if band not in project.BANDS:
        raise BadInput(f"There is no band {band!r}: choose one of {', '.join(project.BANDS)}.")
    wanted = checked_thresholds(THRESHOLDS if threshold is None else threshold)
    widths = list(dict.fromkeys(asking.DEFAULT_BITS if bits is None else bits))
    if not widths:
        raise BadInput("No bits are given: give at least one number, e.g. --bits 4.")
    asked = [asking.targets(posterior, laws.PIVOT_TOKENS, params, known, width, None, method, family, new_family,
                            lr_phase) for width in widths]  # fmt: skip
    targets = [target for size in zip(*asked, strict=True) for target in size]
    low, high = asking.LIMITS["tokens"]
    reached = tokens_draws(posterior, targets, wanted, band, seed).reshape(posterior.size, -1)
    values = {name: np.quantile(reached, q, axis=0, method="inverted_cdf")
              for name, q in project.quantile_names("").items()}  # fmt: skip
    values = {name: np.where(np.isfinite(value), value, np.nan) for name, value in values.items()}
    values |= {"p_never": np.isinf(reached).mean(axis=0), "p_always": (reached == low).mean(axis=0)}
    pairs = [(t, limit) for t in targets for limit in wanted]
    values["printed"] = np.array([printed(t, limit) for t, limit in pairs])
    values["printed_law"] = np.array([by_equation_8(t.params, float(t.bits or 0), limit) for t, limit in pairs])
    values |= _beyond(posterior, targets, values["median"].reshape(len(targets), -1))
    outside = (values["n_ratio"] > 1) | ~(values["d_ratio"] <= 1) | values["p_outside"]
    told = project.verdict(posterior, [targets[0].family], bool(outside.any()))
    attrs = record.attrs(posterior, told, project.assumptions(targets)) | {
        "band": band, "excluded": posterior.cells.attrs["excluded"], "limits": json.dumps({"lower": low, "upper": high})
    }  # fmt: skip
    coords = {
        "family": [t.of for t, _ in pairs], "params": [t.params for t, _ in pairs],
        "bits": [float(t.bits or t.effective_bits) for t, _ in pairs],
        "effective_bits": [t.effective_bits for t, _ in pairs], "method": [t.method for t, _ in pairs],
        "threshold": [limit for _, limit in pairs],
    }  # fmt: skip
    return xr.Dataset({name: ("target", value) for name, value in values.items()},
                      {name: ("target", value) for name, value in coords.items()}, attrs)  # fmt: skip


def _beyond(posterior: Posterior, targets: Sequence[Target], median: np.ndarray) -> dict[str, np.ndarray]:
    """How far outside the data each target lies at its median tokens, (target * threshold,); NaN without a median."""
    there = [replace(t, tokens=value) for t, values in zip(targets, median, strict=True) for value in values]
    return project.beyond(posterior, there)


def rows(answer: xr.Dataset) -> list[dict]:
    """The answer as plain rows, one per size, bits and threshold, None where there is no number."""
    plain = {name: answer[name].values.tolist() for name in (*answer.coords, *answer.data_vars)}
    table = [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]
    table = [{name: None if value != value else value for name, value in row.items()} for row in table]
    beyond = ("n_ratio", "d_ratio", "p_outside")
    return [{name: value for name, value in row.items() if name not in beyond}
            | {"extrapolation": {name: row[name] for name in beyond}} for row in table]  # fmt: skip


def as_json(answer: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract."""
    told = record.decoded(answer.attrs)
    return told | {"limits": json.loads(told["limits"]), "rows": rows(answer)}


def _count(value: float | None, limits: dict[str, float]) -> str:
    if value is None:
        return f">{limits['upper']:.0e}".replace("+", "")
    return wording.count_text(value) if value > limits["lower"] else f"<={wording.count_text(value)}"


def as_text(answer: xr.Dataset) -> str:
    """The answer as a table for a terminal of 80 columns, verdict first."""
    told = as_json(answer)
    takes, limits = told["assumptions"], told["limits"]
    table = told["rows"]
    family = "a new family" if table[0]["family"] == "new" else f"family {table[0]['family']}"
    lines = [
        *wording.opening(told, VERDICTS),
        *textwrap.wrap(
            f"Training tokens at which QiD (nats per token) reaches a threshold; {family}, {table[0]['method']}; band "
            f"{told['band']!r}, equal-tailed 90 % interval; law {told['law']}, model {told['model']}; learning rate "
            f"{takes['lr_phase']}; {takes['text']}.", 80),
        "",
        f"{'params':>7}{'bits':>5}{'QiD':>6} {'median':>8} {'90 % interval':>18}{'never':>6}{'printed':>9}{'Eq. 8':>8}"
        f"{'beyond':>9}",
    ]  # fmt: skip
    for number, row in enumerate(table):
        if number and row["params"] != table[number - 1]["params"]:
            lines.append("")
        interval = f"{_count(row['lower90'], limits)} - {_count(row['upper90'], limits)}"
        shown = "-" if row["printed"] is None else wording.count_text(row["printed"])
        ratio, law = row["extrapolation"]["d_ratio"], row["printed_law"]
        beyond = "-" if ratio is None else f"{wording.short(ratio)}x"
        lines.append(
            f"{wording.count_text(row['params']):>7}{row['bits']:>5.3g}{row['threshold']:>6.3g} "
            f"{_count(row['median'], limits):>8} {interval:>18}{row['p_never']:>6.0%}{shown:>9}"
            f"{wording.count_text(law) if law >= 1e3 else wording.short(law):>8}{beyond:>9}"
        )
    lines += ["", *textwrap.wrap(_footnote(table, limits), 80)]
    return "\n".join(lines)


def _footnote(table: list[dict], limits: dict[str, float]) -> str:
    """What the columns mean, and what share of draws has no tokens to tell."""
    most = max(row["p_always"] for row in table)
    above = f" In up to {most:.0%} of the draws QiD is above it at {limits['lower']:g} tokens already; they count as "\
            "that." if most >= 0.005 else ""  # fmt: skip
    return (
        f"never: share of the draws that stay below the threshold up to {limits['upper']:.0e} tokens; quantiles among "
        f"them are not finite.{above} printed, Eq. 8: Table 1 of Ouyang et al. 2024 (GPTQ) and its law with the "
        "printed constants. beyond: how many times the median tokens lie outside the range of the data."
    )
