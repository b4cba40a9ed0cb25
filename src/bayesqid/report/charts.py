"""Interactive charts: Vega-Lite specifications made from the rows of figures, checked when they are made.

Colours, fonts and line widths are no part of a specification: marks carry a style name, and the page hands over the
values of its light or dark theme. What a reader can switch is a checkbox or a list, which the keyboard reaches.
`usermeta` tells the page how many panels stand side by side, how wide one must be, and what to say below them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import altair as alt

from bayesqid.report import answer_charts, marks, vega
from bayesqid.report.marks import bits_label
from bayesqid.report.tables import COUNTED
from bayesqid.report.vega import (
    DASHED,
    DOT,
    FULL_HEIGHT,
    FULL_WIDTH,
    HALF,
    MOST,
    QID,
    by_bits,
    layer,
    shape_by_bits,
    tip,
)

FLOOR = 1e-3

def fan(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """QiD against tokens, one panel per size with the bands of every bit width; fitted cells are points."""
    widths, sizes = (sorted({row[name] for row in rows}) for name in ("bits", "params"))
    names, panels = list(map(bits_label, widths)), list(map(COUNTED, sizes))
    bottom = max(FLOOR, min(0.05, 0.7 * min(row["lower90"] for row in rows)))
    top = 1.8 * max(row["headroom"] for row in rows)
    x = partial(vega.log_axis, alt.X, title="training tokens D", domain=vega.span_of(rows, "tokens"), label=vega.COUNT)
    y = partial(vega.log_axis, alt.Y, title=QID, domain=[bottom, top], label=vega.PLAIN)
    color = by_bits(names)
    areas = [
        layer(f"band {where}").mark_area(clip=True, opacity=strength, aria=False).encode(
            x=x("tokens"), y=y(f"lower{mass}"), y2=f"upper{mass}:Q", color=color, detail="run:N")
        for where, mass, strength in (("inside", 90, 0.24), ("inside", 50, 0.38), ("outside", 90, 0.1),
                                      ("outside", 50, 0.16))
    ]  # fmt: skip
    edges = [
        layer("band outside").mark_line(clip=True, strokeWidth=1, strokeDash=[3, 3], aria=False).encode(
            x=x("tokens"), y=y(name), color=color, detail="run:N")
        for name in ("lower90", "upper90")
    ]  # fmt: skip
    cells = layer("cell", "cells").mark_point(filled=True, size=16, clip=True, aria=False).encode(
        x=x("tokens"), y=y("qid"), color=color, opacity=alt.condition("datum.alike", alt.value(0.8), alt.value(0.25)),
        tooltip=[tip("checkpoint", "title"), tip("of", "family"), tip("quantizer"), tip("effective_bits"),
                 tip("counts", "trained"), tip("says", "measured QiD")],
    )  # fmt: skip
    layers = [
        layer("frame").mark_rect(style="fitted", aria=False).encode(x=x("left"), x2="right:Q", **FULL_HEIGHT),
        layer("destroyed").mark_rect(style="destroyed", opacity=0.35, aria=False).encode(
            x=x("left"), x2="right:Q", **FULL_HEIGHT),
        *areas, *edges,
        layer("line", "published").mark_line(style="published", clip=True, aria=False, **DASHED).encode(
            x=x("tokens"), y=y("ouyang"), detail="bits:N"),
        layer("line").mark_line(clip=True, strokeWidth=2.4, aria=False).encode(
            x=x("tokens"), y=y("median"), color=color, detail="bits:N"),
        layer("frame").mark_rule(style="limit", strokeDash=[8, 3, 2, 3], aria=False).encode(
            y=y("headroom"), **FULL_WIDTH),
        layer("frame").mark_text(style="note", align="left", dx=4, dy=-7, aria=False).encode(
            y=y("headroom"), x=alt.value(0), text=alt.value("uniform guess")),
        layer("frame").mark_text(style="note", align="left", dx=4, dy=-8, aria=False).encode(
            x=x("left"), y=alt.value("height"), text="range:N"),
        layer("destroyed").mark_text(style="note", dx=0, dy=-6, angle=270, align="left", aria=False).encode(
            x=x("right"), y=alt.value("height"), text="says:N"),
        layer("asked").mark_rule(style="limit", strokeDash=[2, 3], aria=False).encode(x=x("tokens"), **FULL_HEIGHT),
        layer("asked").mark_text(style="note", align="right", dx=-4, dy=9, aria=False).encode(
            x=x("tokens"), y=alt.value(0), text="says:N"),
        layer("hover").mark_rect(opacity=0, aria=False).encode(
            x=x("left"), x2="right:Q", **FULL_HEIGHT,
            tooltip=[tip("at", "title"), *(tip(f"b{i}", name) for i, name in enumerate(names))]),
        *([cells] if points else []),
    ]  # fmt: skip
    shown = alt.layer(*layers).properties(width=420, height=340).facet(
        alt.Facet("panel:N", title=None, sort=panels), columns=2, data=vega.ROWS
    )  # fmt: skip
    families = sorted({row["family"] for row in rows})
    switches = [
        *vega.boxes("bits", names), *vega.menu("panel", "Parameters", panels), *vega.one("family", "Family", families),
        *([vega.box("cells", "fitted cells")] if points else []), vega.box("published", "Ouyang et al., published"),
    ]  # fmt: skip
    note = "Paler with a dashed edge: outside the data. Long dashes: Ouyang et al., as published."
    if points:
        note += " Points: fitted cells, strong under quantizers of the same generation."
    return vega.spec(shown, marks.fan(rows, points, bottom / 10), switches, len(sizes), 360, 48, note)


def forest(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """Exponents by family with their priors; the published values are dashed lines."""
    terms = [term for term in marks.TERMS if any(row["term"] == term for row in rows)]
    labels = list(dict.fromkeys(row["family"] or row["scope"] for row in rows))
    made = marks.forest(rows, points)
    colors = [marks.POSTERIOR, marks.PRIOR, *dict.fromkeys(marks.law_label(row["law"]) for row in points)]
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(grid=False, ticks=False))
    color = vega.color("reads", colors, [name for name in colors if any(row["reads"] == name for row in made)],
                       "circle", "O")  # fmt: skip
    tips = [tip("label", "title"), tip("said", "posterior mean"), tip("half", HALF), tip("most", MOST),
            tip("prior", "prior, " + MOST), tip("contraction"), tip("reads", "shown as")]  # fmt: skip

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title="exponent", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))

    value = layer("value")
    published = layer("law", "published").mark_rule(strokeDash=[5, 3], strokeWidth=1.6).encode(
        x=x("value"), color=color, tooltip=[tip("reads", "title"), tip("said", "value"), tip("citation", "source")]
    )  # fmt: skip
    layers = [
        layer("value", "priors").mark_rule(style="prior", strokeWidth=12).encode(
            y=y, x=x("prior_lower90"), x2="prior_upper90:Q", tooltip=tips),
        *([published] if points else []),
        value.mark_rule(strokeWidth=1.6).encode(y=y, x=x("lower90"), x2="upper90:Q", color=color, tooltip=tips),
        value.mark_rule(strokeWidth=5).encode(y=y, x=x("lower50"), x2="upper50:Q", color=color, tooltip=tips),
        value.mark_point(style="hollow", size=75, strokeWidth=2, opacity=1).encode(
            y=y, x=x("mean"), color=color, tooltip=tips),
        layer("value", f"datum.reads === '{marks.POSTERIOR}'").mark_point(**DOT).encode(
            y=y, x=x("mean"), color=color, tooltip=tips),
    ]  # fmt: skip
    shown = alt.layer(*layers).properties(width=250, height=alt.Step(28)).facet(
        alt.Facet("panel:N", title=None, sort=[marks.TERMS[term] for term in terms]), columns=3, data=vega.ROWS
    ).resolve_scale(x="independent")  # fmt: skip
    switches = [vega.box("priors", "prior"), *([vega.box("published", "published values")] if points else [])]
    note = f"Dot: posterior mean; bars: 50 % and {MOST}s; wide: the prior's."
    return vega.spec(shown, made, switches, len(terms), 270, 76, note, 215)


def predictive(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """Measured against predicted QiD, and where measurements fall in their predictions; both follow the switches."""
    data = marks.predictive(rows, FLOOR)
    names = [name for name in (*marks.WIDTHS, marks.OTHER) if any(row["bits"] == name for row in data)]
    families = sorted({row["family"] for row in data})
    ends = [FLOOR, 12.0]
    x = vega.log_axis(alt.X, "median", "predicted QiD, median (nats per token)", ends, vega.PLAIN)
    y = vega.log_axis(alt.Y, "qid", f"measured {QID}", ends, vega.PLAIN)
    cells = alt.Chart().mark_point(filled=True, size=26, opacity=0.55, aria=False).encode(
        x=x, y=y, color=by_bits(names), shape=shape_by_bits(names),
        tooltip=[tip("checkpoint", "title"), tip("family"), tip("quantizer"), tip("effective_bits"),
                 tip("measured", "measured QiD"), tip("says", f"predicted, {MOST}"),
                 tip("pit", "share of draws below")],
    )  # fmt: skip
    diagonal = alt.Chart(alt.Data(values=[{"median": end, "qid": end} for end in ends]))
    left = alt.layer(diagonal.mark_line(style="limit", aria=False).encode(x=x, y=y), cells)
    width = 1 / marks.PIT_CLASSES
    classes = (
        alt.Chart().transform_joinaggregate(all="count()")
        .transform_bin("low", "pit", bin=alt.Bin(step=width, extent=[0, 1]))
        .transform_aggregate(count="count()", all="max(all)", groupby=["low", "low_end"])
        .transform_calculate(density=f"datum.count / datum.all / {width}",
                             at="format(datum.low, '.2f') + ' to ' + format(datum.low_end, '.2f')")
    )  # fmt: skip
    density = alt.Y("density:Q", title="density")
    right = alt.layer(
        classes.mark_bar(style="bar").encode(
            x=alt.X("low:Q", bin="binned", title="share of draws below the measurement",
                    scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=5)),
            x2="low_end:Q", y=density, tooltip=[tip("at", "title"), tip("count", "measurements"),
                                                alt.Tooltip("density:Q", format=".2f")]),
        alt.Chart(alt.Data(values=[{"density": 1}])).mark_rule(
            style="published", aria=False, **DASHED).encode(y=density),
    )  # fmt: skip
    shown = alt.concat(
        left.properties(title="Measured against predicted", width=420, height=340),
        right.properties(title="Where measurements fall in their prediction", width=420, height=340),
        columns=2, data=vega.ROWS,
    )  # fmt: skip
    switches = [*vega.boxes("bits", names), *vega.menu("family", "Family", families)]
    return vega.spec(shown, data, switches, 2, 360, 80, "Both panels follow the switches.")


# a figure without a row here stays a picture
CHARTS: dict[str, Callable[[list[dict], Sequence[dict]], dict]] = {
    "fan": fan, "forest": forest, "predictive": predictive,
    "choice": answer_charts.choice, "thresholds": answer_charts.thresholds, "variance": answer_charts.variance,
    "levels": answer_charts.levels, "calibration": answer_charts.calibration, "pit": answer_charts.pit,
}  # fmt: skip
