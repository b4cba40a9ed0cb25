"""Replications: what four papers print, what follows from their own constants, and what the posterior says of it."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import xarray as xr

from bayesqid.answers import (
    project,
    record,
    replicate_cao,
    replicate_kumar,
    replicate_ouyang,
    replicate_rows,
    replicate_xu,
    wording,
)
from bayesqid.answers.draws import Posterior
from bayesqid.answers.replicate_rows import Row
from bayesqid.errors import BadInput

# paper -> its rows, notes and whether they leave the range of the data, from a posterior
PAPERS = {"ouyang": replicate_ouyang.rows, "kumar": replicate_kumar.rows, "cao": replicate_cao.rows,
          "xu": replicate_xu.rows}  # fmt: skip
VERDICTS = wording.VERDICTS | {
    "ok": "ok: nothing asked lies outside the range of the data",
    "extrapolation": "extrapolation: some of what the paper prints lies outside the range of the data, believe the law "
    "before you believe the interval",
    "not identified": "not identified: the data do not inform the tokens exponent, such intervals are the prior's",
}
# what yes and no say where it is not that a number follows from constants
SAID = {"cao": "laws, and law and figure, agree", "xu": "the direction is reproduced on the tiny ladder, ? unclear"}
SHORT = {replicate_rows.UNANSWERABLE: "no answer"}
MARKS = {replicate_rows.REPRODUCED: "yes", replicate_rows.NOT_REPRODUCED: "no", replicate_rows.UNCLEAR: "?", "": ""}


def replicate(posterior: Posterior, paper: str) -> xr.Dataset:
    """Claims of a paper (`PAPERS`), dim `claim`, one each with the fields of `replicate_rows.Row`.

    `difference` is recomputed / printed - 1. Intervals are equal-tailed 90 %; a printed value is excluded where its
    two-sided tail area is under 0.1, a direction where its probability is under 0.05. `comparisons` counts the values
    held against the posterior: how many are excluded, how many would be on average if each were one of its draws, the
    smallest tail area, and that times their number (Bonferroni). `BadInput` for a paper that is not known.
    """
    if paper not in PAPERS:
        raise BadInput(f"There is no paper {paper!r} to replicate: choose one of {', '.join(PAPERS)}.")
    found, notes, outside = PAPERS[paper](posterior)
    source = replicate_rows.stored(paper)
    told = project.verdict(posterior, [None], outside)
    takes = {"citation": source["citation"], "setting": source["setting"], "quantity": source["quantity"]}
    attrs = record.attrs(posterior, told, takes) | {
        "paper": paper, "mass": 0.9, "draws": posterior.size, "notes": json.dumps(notes),
        "comparisons": json.dumps(comparisons(found, posterior.size)),
    }  # fmt: skip
    data = {field.name: ("claim", _column([getattr(row, field.name) for row in found]))
            for field in fields(Row) if field.name != "claim"}  # fmt: skip
    printed, recomputed = data["printed"][1], data["recomputed"][1]
    with np.errstate(invalid="ignore", divide="ignore"):
        data["difference"] = ("claim", recomputed / printed - 1)
    return xr.Dataset(data, {"claim": np.array([row.claim for row in found], dtype=object)}, attrs)


def _column(values: list) -> np.ndarray:
    return np.array(values, dtype=object if isinstance(values[0], str) else float)


def comparisons(rows: list[Row], draws: int) -> dict:
    """How many values and directions were held against the posterior, and what of it chance would leave."""
    tested = [row for row in rows if row.verdict in (replicate_rows.COMPATIBLE, replicate_rows.EXCLUDED)]
    values = [row.p for row in tested if row.p_of == "value"]
    # no draw beyond a value says no more than that its tail area is below 2 in the number of draws
    smallest = max(min(values), 2 / draws) if values else None
    return {
        "values": len(values), "directions": len(tested) - len(values),
        "excluded": sum(row.verdict == replicate_rows.EXCLUDED for row in tested),
        "expected": replicate_rows.EXCLUDING * len(values) + replicate_rows.EXCLUDING / 2 * (len(tested) - len(values)),
        "smallest": smallest, "adjusted": None if smallest is None else min(1.0, smallest * len(values)),
    }  # fmt: skip


def rows(answer: xr.Dataset) -> list[dict]:
    """The answer as plain rows, one per claim, None where there is no number and no word."""
    plain = {name: answer[name].values.tolist() for name in ("part", "claim", *answer.data_vars)}
    table = [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]
    return [{name: None if value != value or value == "" else value for name, value in row.items()} for row in table]


def as_json(answer: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract."""
    told = record.decoded(answer.attrs)
    return told | {"notes": json.loads(told["notes"]), "comparisons": json.loads(told["comparisons"]),
                   "rows": rows(answer)}  # fmt: skip


def _number(value: float | None, unit: str | None) -> str:
    if value is None:
        return ""
    return wording.count_text(value) if unit == "tokens" else wording.short(value)


def _interval(low: float | None, high: float | None, unit: str | None) -> str:
    if low is None and high is None:
        return ""
    # draws that never reach a threshold count as infinite
    return f"{_number(low, unit) or 'never'} - {_number(high, unit) or 'never'}"


def _probability(value: float | None, of: str | None, draws: int) -> str:
    if value is None:
        return ""
    if of == "stored":
        return f"{value:.2f}"
    least = max((2 if of == "value" else 1) / draws, 0.001)
    if of == "direction" and value == 1:
        return f">{1 - least:.3f}"
    return f"<{least:.1g}" if value < least else f"{value:.2g}"


def as_text(answer: xr.Dataset) -> str:
    """The answer as tables for a terminal of 80 columns, verdict first, one table for each part."""
    told = as_json(answer)
    takes, table = told["assumptions"], told["rows"]
    lines = [
        *wording.opening(told, VERDICTS),
        *textwrap.wrap(f"{takes['citation']}: {takes['setting']}. {_sentence(takes['quantity'])}. Beside law "
                       f"{told['law']}, model {told['model']}; equal-tailed 90 % intervals. yes or no: whether "
                       f"{SAID.get(told['paper'], 'the printed number follows from the printed constants')}.", 80),
    ]  # fmt: skip
    for part in dict.fromkeys(row["part"] for row in table):
        own = [row for row in table if row["part"] == part]
        stored = own[0]["p_of"] == "stored"
        bounds = any(row["low"] is not None for row in own) and not any(row["lower90"] is not None for row in own)
        lines += ["", _sentence(part), _header(stored, bounds)]
        lines += [_line(row, told["draws"]) for row in own]
    lines += ["", *textwrap.wrap(_compared(told["comparisons"], told["draws"]), 80)]
    for note in told["notes"]:
        lines += textwrap.wrap(note, 80, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _header(stored: bool, bounds: bool) -> str:
    interval = "90 % interval" if stored else "between" if bounds else "ours, 90 %"
    computed = "here" if stored else "computed"
    return f"{'claim':<24}{'printed':>8}{computed:>9} {'':<4}{interval:>16}{'P':>7} verdict"


def _line(row: Mapping, draws: int) -> str:
    """One claim: the printed number, what follows from the constants and whether it does, the interval, P, verdict."""
    ends = ("low", "high") if row["lower90"] is None and row["upper90"] is None and row["median"] is None else (
        "lower90", "upper90")  # fmt: skip
    verdict = SHORT.get(row["verdict"], row["verdict"]) or ""
    interval = _interval(row[ends[0]], row[ends[1]], row["unit"])
    printed, computed = (_number(row[name], row["unit"]) for name in ("printed", "recomputed"))
    return (f"{row['claim'][:24]:<24}{printed:>8}{computed:>9} {MARKS[row['follows'] or '']:<4}{interval:>16}"
            f" {_probability(row['p'], row['p_of'], draws):>6} {verdict}").rstrip()  # fmt: skip


def _compared(told: Mapping, draws: int) -> str:
    """How many values were compared, as sentences."""
    tested = told["values"] + told["directions"]
    if not tested:
        return "This posterior answers none of these claims."
    text = (f"P: two-sided tail area of the printed or computed value, or probability of a direction. Held against "
            f"this posterior: {tested}; excluded (P under 0.1, a direction under 0.05): {told['excluded']}, where "
            f"{told['expected']:.2g} would be if each were one of its draws")  # fmt: skip
    if told["smallest"] is None:
        return f"{text}."
    least = "under " if told["smallest"] <= 2 / draws else ""
    return (f"{text}; they are not independent. Smallest P {least}{told['smallest']:.2g}, times {told['values']} for "
            f"as many values {told['adjusted']:.2g}.")  # fmt: skip
