"""Rows of figures as the rows that charts draw: one list for all layers, told apart by `kind`; texts ready to show."""

from collections.abc import Sequence
from itertools import groupby, pairwise

from bayesqid.report.blocks import chance, number, share, span
from bayesqid.report.tables import COUNTED, DESTROYED

SOURCES = {"ouyang": "Ouyang et al., published", "kumar": "Kumar et al., published"}
TERMS = {"alpha": "alpha: parameters", "beta": "beta: tokens", "gamma": "gamma: bits, at 3 bits"}
POSTERIOR, PRIOR = "posterior", "the same, contraction below 0.2"
# these three are the first colours of the theme, so that a width keeps its colour from figure to figure
WIDTHS = ("2 bits", "3 bits", "4 bits")
OTHER = "other bits"
CHOSEN, PASSED = "chosen", "not chosen"
COVERAGE = {"coverage": "fitted", "loo_coverage": "left out"}
QUANTILES = ("lower90", "lower50", "median", "upper50", "upper90")
PIT_CLASSES = 20


def bits_label(bits: float) -> str:
    """A bit width as the legend has it."""
    return f"{bits:g} bits"


def law_label(law: str) -> str:
    """Whose published exponents."""
    return SOURCES.get(law, f"{law}, published")


def intervals(row: dict) -> dict[str, str]:
    """The intervals of a row as texts: `half` and `most`, 50 % and 90 %."""
    return {"half": span(row["lower50"], row["upper50"]), "most": span(row["lower90"], row["upper90"])}


def fan(rows: list[dict], points: Sequence[dict], bottom: float) -> list[dict]:
    """Everything that the fan chart draws; what lies below `bottom` is drawn there, a logarithmic axis has no zero."""
    bits = sorted({row["bits"] for row in rows})
    curves = [sorted(group, key=lambda row: row["tokens"]) for _, group in groupby(
        sorted(rows, key=_curve), key=_curve)]  # fmt: skip
    return [
        *_frames(rows),
        *(made for curve in curves for made in (*_bands(curve, bottom), *_lines(curve), *_destroyed(curve))),
        *_hovers(curves, bits),
        *(_cell(row, bottom) for row in points),
    ]


def _curve(row: dict) -> tuple:
    return row["family"], row["params"], row["bits"]


def _panel(row: dict) -> dict:
    return {"panel": COUNTED(row["params"]), "family": row["family"]}


def _frames(rows: list[dict]) -> list[dict]:
    """What a panel has once: the range of the data, the loss of a uniform guess, the tokens asked for."""
    made, tokens = [], [row["tokens"] for row in rows]
    for row in {(row["family"], row["params"]): row for row in rows}.values():
        low, high = row["fitted_low"], row["fitted_high"]
        left, right = (low / 1.08, high * 1.08) if high < 1.1 * low else (low, high)
        words = f"data: {COUNTED(low)} to {COUNTED(high)}" if high > low else f"data: {COUNTED(low)}"
        made.append(_panel(row) | {"kind": "frame", "left": max(left, min(tokens)), "right": min(right, max(tokens)),
                                   "range": words, "headroom": row["headroom"]})  # fmt: skip
        made += [_panel(row) | {"kind": "asked", "tokens": count, "says": f"asked: {COUNTED(count)}"}
                 for count in sorted({row["tokens"] for row in rows if row["asked"]})]  # fmt: skip
    return made


def _bands(curve: list[dict], bottom: float) -> list[dict]:
    """The bands in runs inside and outside the data; a run outside begins and ends where its neighbours do."""
    made, start = [], 0
    runs = [(outside, list(run)) for outside, run in groupby(curve, key=lambda row: row["outside"])]
    for number_, (outside, run) in enumerate(runs):
        first, last = start, start + len(run)
        start = last
        if outside:
            first, last = max(first - 1, 0), min(last + 1, len(curve))
        for row in curve[first:last]:
            made.append(_panel(row) | {
                "kind": "band outside" if outside else "band inside", "bits": bits_label(row["bits"]), "run": number_,
                "tokens": row["tokens"], **{name: max(row[name], bottom) for name in QUANTILES if name != "median"},
            })  # fmt: skip
    return made


def _lines(curve: list[dict]) -> list[dict]:
    """Median, up to where the loss is destroyed, and the published law."""
    beyond = [row["p_saturated"] > DESTROYED for row in curve]
    # one point more than stays below, so that the line meets the area
    met = [over and not (i and beyond[i - 1]) for i, over in enumerate(beyond)]
    return [
        _panel(row) | {"kind": "line", "bits": bits_label(row["bits"]), "tokens": row["tokens"],
                       "median": row["median"] if not over or first else None, "ouyang": row["ouyang_published"]}
        for row, over, first in zip(curve, beyond, met, strict=True)
    ]  # fmt: skip


def _destroyed(curve: list[dict]) -> list[dict]:
    beyond = [row for row in curve if row["p_saturated"] > DESTROYED]
    if not beyond:
        return []
    label = bits_label(curve[0]["bits"])
    return [_panel(curve[0]) | {"kind": "destroyed", "bits": label, "left": beyond[0]["tokens"],
                                "right": beyond[-1]["tokens"], "says": f"loss destroyed at {label}"}]  # fmt: skip


def _hovers(curves: list[list[dict]], bits: list[float]) -> list[dict]:
    """One strip per count of tokens, as wide as to its neighbours, with what every bit width says there."""
    made = []
    for _, group in groupby(curves, key=lambda curve: (curve[0]["family"], curve[0]["params"])):
        same = list(group)
        tokens = [row["tokens"] for row in same[0]]
        edges = [tokens[0], *((a * b) ** 0.5 for a, b in pairwise(tokens)), tokens[-1]]
        for j, count in enumerate(tokens):
            says = {f"b{bits.index(curve[j]['bits'])}": _said(curve[j]) for curve in same}
            made.append(_panel(same[0][j]) | {"kind": "hover", "left": edges[j], "right": edges[j + 1], **says,
                        "at": f"{COUNTED(same[0][j]['params'])} parameters, {COUNTED(count)} tokens"})  # fmt: skip
    return made


def _said(row: dict) -> str:
    if row["p_saturated"] > DESTROYED:
        return f"loss destroyed with probability {chance(row['p_saturated'])}"
    return f"{number(row['median'])} (90 %: {span(row['lower90'], row['upper90'])})" + (
        ", outside the data" if row["outside"] else "")  # fmt: skip


def _cell(row: dict, bottom: float) -> dict:
    shown = {name: row[name] for name in ("checkpoint", "quantizer", "effective_bits", "alike")}
    return shown | {
        "kind": "cell", "panel": COUNTED(row["panel_params"]), "bits": bits_label(row["panel_bits"]),
        "tokens": row["train_tokens"], "qid": max(row["qid"], bottom), "of": row["family"], "says": number(row["qid"]),
        "counts": f"{COUNTED(row['n_params_nonembedding'])} parameters, {COUNTED(row['train_tokens'])} tokens",
    }  # fmt: skip


def forest(rows: list[dict], points: Sequence[dict]) -> list[dict]:
    """Family values and published ones; `reads` names the colour."""
    limits = ("mean", "lower90", "lower50", "upper50", "upper90", "prior_lower90", "prior_upper90")
    return [
        {"kind": "value", "panel": TERMS[row["term"]], "label": row["family"] or row["scope"],
         **{name: row[name] for name in limits}, **intervals(row), "said": number(row["mean"]),
         "prior": span(row["prior_lower90"], row["prior_upper90"]), "contraction": number(row["contraction"]),
         "reads": POSTERIOR if row["informed"] == "data" else PRIOR}
        for row in rows if row["term"] in TERMS
    ] + [
        {"kind": "law", "panel": TERMS[row["term"]], "reads": law_label(row["law"]), "value": row["value"],
         "said": number(row["value"]), "citation": row["citation"]}
        for row in points if row["term"] in TERMS
    ]  # fmt: skip


def predictive(rows: list[dict], floor: float) -> list[dict]:
    """Measured cells, those below `floor` at it; classes of bits as the static figure has them."""
    made = []
    for row in (row for row in rows if not row["diverged"]):
        label = bits_label(round(row["effective_bits"]))
        made.append({
            **{name: row[name] for name in ("family", "checkpoint", "quantizer", "effective_bits", "pit")},
            "bits": label if label in WIDTHS else OTHER, "qid": max(row["qid"], floor),
            "median": max(row["median"], floor), "measured": number(row["qid"]),
            "says": f"{number(row['median'])} ({span(row['lower90'], row['upper90'])})",
        })  # fmt: skip
    return made


def choice(rows: list[dict], floor: float) -> list[dict]:
    """Recipes in the order of their size, with the texts of the tooltip; the chosen one is named."""
    return [
        {"recipe": row["recipe"], "gigabytes": row["bytes"] / 1e9, "p_under": row["p_under"],
         **{name: max(row[name], floor) for name in QUANTILES}, **intervals(row), "says": number(row["median"]),
         "effective_bits": number(row["effective_bits"]), "size": f"{number(row['bytes'] / 1e9)} GB",
         "under": chance(row["p_under"]), "role": CHOSEN if row.get("chosen") else PASSED,
         "named": row["recipe"] if row.get("chosen") else None,
         **{name: row.get(name) for name in ("tolerance", "confidence")}}
        for row in sorted(rows, key=lambda row: row["bytes"])
    ]  # fmt: skip


def thresholds(rows: list[dict], edge: float) -> list[dict]:
    """Tokens to a threshold; a limit that is not reached (None) is drawn beyond `edge`."""
    made = []
    for row in rows:
        shown = {name: row[name] for name in ("median", "printed")}
        for mass in (90, 50):
            low, high = row[f"lower{mass}"], row[f"upper{mass}"]
            shown |= {f"lower{mass}": low, f"upper{mass}": 10 * edge if low is not None and high is None else high}
        made.append(shown | {
            "label": f"{COUNTED(row['params'])}, {bits_label(row['bits'])}", "bits": bits_label(row["bits"]),
            "threshold": f"{row['threshold']:g}", "says": _count(row["median"]),
            "half": f"{_count(row['lower50'])} to {_count(row['upper50'])}",
            "most": f"{_count(row['lower90'])} to {_count(row['upper90'])}",
            "paper": "–" if row["printed"] is None else COUNTED(row["printed"]),
        })  # fmt: skip
    return made


def _count(value: float | None) -> str:
    return "not reached" if value is None else COUNTED(value)


def shares(rows: list[dict], parts: list[str]) -> list[dict]:
    """Shares of a whole with their text and their place in the bar; parts left out have none."""
    return [{name: row[name] for name in ("label", "part", "share")}
            | {"says": share(row["share"]), "place": parts.index(row["part"])}
            for row in rows if row["part"] in parts]  # fmt: skip


def levels(rows: list[dict]) -> list[dict]:
    """Densities, and the disclosed tokens once a checkpoint."""
    made = [{"kind": "density", **{name: row[name] for name in ("checkpoint", "label", "tokens", "density")}}
            | {"says": COUNTED(row["disclosed"])} for row in rows]  # fmt: skip
    known = {row["checkpoint"]: row["disclosed"] for row in rows}
    return made + [{"kind": "disclosed", "checkpoint": name, "disclosed": count} for name, count in known.items()]


def coverage(rows: list[dict]) -> list[dict]:
    """Coverage of both intervals, fitted and left out, the range of chance behind them, the nominal shares."""
    made: list[dict] = [{"kind": "nominal", "at": mass / 100} for mass in (50, 90)]
    for row in rows:
        same = {"label": f"{row['group']} ({row['cells']:,})"}
        for mass in (50, 90):
            least, most = row[f"least{mass}"], row[f"most{mass}"]
            said = {"mass": f"{mass} % equal-tailed", "chance": f"{share(least)} to {share(most)}"}
            values = {name: row[f"{key}{mass}"] for key, name in COVERAGE.items()}
            made.append(same | {"kind": "chance", "least": least, "most": most})
            made += [same | said | {"kind": "share", "cells": name, "share": value, "says": share(value)}
                     for name, value in values.items() if value is not None]  # fmt: skip
    return made


def transforms(rows: list[dict]) -> list[dict]:
    """Curves, and their band once."""
    first = rows[0]["cells"]
    return [{"kind": "band", **{name: row[name] for name in ("z", "lower", "upper")}} for row in rows
            if row["cells"] == first] + [
        {"kind": "curve", **{name: row[name] for name in ("cells", "z", "difference")}} for row in rows
    ]  # fmt: skip
