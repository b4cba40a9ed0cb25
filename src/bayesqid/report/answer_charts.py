"""Interactive charts of answers and of calibration; `charts.CHARTS` lists them by figure."""

from collections.abc import Sequence
from functools import partial

import altair as alt

from bayesqid.report import marks, vega
from bayesqid.report.vega import DASHED, DOT, HALF, MOST, QID, by_bits, layer, tip

FLOOR = 1e-3
# in the order of the theme's first colours
CELLS = ("left out", "fitted")
# an interval that reaches below this many tokens says only that there is no lower end worth naming
FEWEST = 1e6


def choice(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """What recipes cost in QiD, and the probability to stay within the tolerance, against the size of the weights."""
    low, high = vega.span_of(rows, *marks.QUANTILES, margin=1.3)
    x = alt.X("gigabytes:Q", title="size of the weights (GB)", scale=alt.Scale(zero=False, nice=True))
    y = partial(vega.log_axis, alt.Y, title=QID, domain=[max(low, FLOOR), high], label=vega.PLAIN)
    tips = [tip("recipe", "title"), tip("effective_bits"), tip("size"), tip("says", "median QiD"), tip("half", HALF),
            tip("most", MOST), tip("under", "probability to stay within")]  # fmt: skip

    def sure(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title="probability to stay within the tolerance", scale=alt.Scale(domain=[0, 1]),
                     axis=alt.Axis(format="%", tickCount=5))  # fmt: skip

    color = vega.color("role", [marks.CHOSEN, marks.PASSED], [marks.CHOSEN, marks.PASSED], "circle")
    base = alt.Chart().encode(x=x, color=color, tooltip=tips)
    named = alt.Chart().transform_filter("isValid(datum.named)").mark_text(style="note", dx=8, align="left", aria=False)
    named = named.encode(x=x, text="named:N")
    limit = alt.Chart().mark_rule(style="limit", aria=False, strokeDash=[6, 4])
    told = "tolerance" in rows[0]
    left = alt.layer(
        *([limit.encode(y=y("tolerance"))] if told else []),
        base.mark_rule(strokeWidth=1.6, clip=True).encode(y=y("lower90"), y2="upper90:Q"),
        base.mark_rule(strokeWidth=5, clip=True).encode(y=y("lower50"), y2="upper50:Q"),
        base.mark_point(clip=True, **DOT).encode(y=y("median")),
        named.encode(y=y("median")),
    ).properties(title="What a recipe costs", width=420, height=320)  # fmt: skip
    right = alt.layer(
        *([limit.encode(y=sure("confidence"))] if told else []),
        alt.Chart().mark_line(style="limit", aria=False).encode(x=x, y=sure("p_under")),
        base.mark_point(**DOT).encode(y=sure("p_under")),
        named.encode(y=sure("p_under")),
    ).properties(title="How sure that is", width=420, height=320)  # fmt: skip
    shown = alt.concat(left, right, columns=2, data=vega.ROWS)
    return vega.spec(shown, marks.choice(rows, FLOOR / 10), (), 2, 360, 92, f"Dot: median; bars: 50 % and {MOST}s.")


def thresholds(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """Tokens at which QiD reaches a threshold, beside what the paper prints."""
    low, high = vega.span_of(rows, "lower90", "median", "printed", margin=30)
    domain = [max(low, FEWEST), high]
    data = marks.thresholds(rows, domain[1])
    labels, bits = (list(dict.fromkeys(row[name] for row in data)) for name in ("label", "bits"))
    x = partial(vega.log_axis, alt.X, title="training tokens D", domain=domain, label=vega.COUNT)
    tips = [tip("label", "title"), tip("threshold", QID), tip("says", "median"), tip("half", HALF), tip("most", MOST),
            tip("paper", "printed in Table 1")]  # fmt: skip
    base = alt.Chart().encode(y=alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(ticks=False)), tooltip=tips)
    color = by_bits(bits)
    layers = [
        base.mark_rule(strokeWidth=1.6, clip=True).encode(x=x("lower90"), x2="upper90:Q", color=color),
        base.mark_rule(strokeWidth=5, clip=True).encode(x=x("lower50"), x2="upper50:Q", color=color),
        base.mark_point(clip=True, **DOT).encode(x=x("median"), color=color),
        base.mark_point(style="printed", shape="diamond", clip=True, **DOT).encode(x=x("printed")),
    ]  # fmt: skip
    shown = alt.layer(*layers, data=vega.ROWS).properties(width=640, height=alt.Step(24))
    several = list(dict.fromkeys(row["threshold"] for row in data))
    switches = [*vega.one("threshold", f"Threshold, {QID}", several), *vega.boxes("bits", bits)]
    note = f"Dot: median; bars: 50 % and {MOST}s, to the edge where not finite; diamond: printed in Table 1."
    return vega.spec(shown, data, switches, note=note)


def variance(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """Shares of the variance as stacked bars; one below zero stands left of it."""
    parts = [part for part in dict.fromkeys(row["part"] for row in rows)
             if any(row["part"] == part and row["share"] for row in rows)]  # fmt: skip
    labels = list(dict.fromkeys(row["label"] for row in rows))
    bars = alt.Chart(vega.ROWS).mark_bar().encode(
        x=alt.X("share:Q", title="share of the variance of ln QiD", axis=alt.Axis(format="%", tickCount=6),
                scale=alt.Scale(nice=False)),
        y=alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(ticks=False, grid=False)),
        color=vega.color("part", parts, parts), order="place:Q",
        tooltip=[tip("label", "title"), tip("part"), tip("says", "share")],
    ).properties(width=640, height=alt.Step(28))  # fmt: skip
    return vega.spec(bars, marks.shares(rows, parts), beside=104, entry=150)


def levels(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """Densities of the training tokens, one panel per checkpoint; the disclosed ones are a dashed line."""
    names, labels = (list(dict.fromkeys(row[name] for row in rows)) for name in ("checkpoint", "label"))
    x = partial(vega.log_axis, alt.X, title="training tokens D", domain=vega.span_of(rows, "tokens"), label=vega.COUNT)
    density = layer("density").mark_area(opacity=0.25, line=True, aria=False).encode(
        x=x("tokens"), y=alt.Y("density:Q", title="density", axis=alt.Axis(labels=False, ticks=False), stack=None),
        color=vega.color("label", labels, labels), tooltip=[tip("checkpoint", "title"), tip("label", "asked as"),
                                                            tip("says", "disclosed")],
    )  # fmt: skip
    disclosed = layer("disclosed").mark_rule(style="published", aria=False, **DASHED).encode(x=x("disclosed"))
    shown = alt.layer(density, disclosed).properties(width=420, height=170).facet(
        alt.Facet("checkpoint:N", title=None, sort=names), columns=2, data=vega.ROWS)  # fmt: skip
    switches = [*vega.boxes("label", labels), *vega.menu("checkpoint", "Checkpoint", names)]
    return vega.spec(shown, marks.levels(rows), switches, 2, 320, 43, "Dashed: disclosed.", 150)


def calibration(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """Coverage of both intervals by group, fitted and left out, with the range of chance."""
    data = marks.coverage(rows)
    labels = list(dict.fromkeys(row["label"] for row in data if "label" in row))
    kinds = [name for name in marks.COVERAGE.values() if any(row.get("cells") == name for row in data)]
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(ticks=False, grid=False))
    x = partial(alt.X, title="share of cells inside", scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=6))  # fmt: skip
    color = vega.color("cells", CELLS, kinds, "circle")
    tips = [tip("label", "title"), tip("mass", "interval"), tip("cells"), tip("says", "inside"),
            tip("chance", "by chance")]  # fmt: skip
    layers = [
        layer("chance").mark_rule(style="prior", strokeWidth=13, aria=False).encode(
            y=y, x=x("least:Q"), x2="most:Q"),
        layer("nominal").mark_rule(style="published", aria=False, **DASHED).encode(x=x("at:Q")),
        layer("share", "datum.cells === 'fitted'").mark_point(size=110, strokeWidth=2, opacity=1).encode(
            y=y, x=x("share:Q"), color=color, tooltip=tips),
        layer("share", "datum.cells !== 'fitted'").mark_point(**DOT).encode(
            y=y, x=x("share:Q"), color=color, tooltip=tips),
    ]  # fmt: skip
    shown = alt.layer(*layers, data=vega.ROWS).properties(width=640, height=alt.Step(24))
    note = "Wide bars: where 90 % of shares would lie if intervals were exact."
    return vega.spec(shown, data, vega.boxes("cells", kinds), beside=128, note=note)


def pit(rows: list[dict], points: Sequence[dict] = ()) -> dict:
    """Distribution functions of the transforms less the uniform one, with their band."""
    names = list(dict.fromkeys(row["cells"] for row in rows))
    x = alt.X("z:Q", title="probability integral transform", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=5))
    y = partial(alt.Y, title="ECDF less uniform")
    own = layer("curve")
    layers = [
        layer("band").mark_area(style="prior", aria=False).encode(x=x, y=y("lower:Q"), y2="upper:Q"),
        own.mark_line(strokeWidth=2, aria=False).encode(
            x=x, y=y("difference:Q"), color=vega.color("cells", CELLS, names)),
        own.mark_point(size=60, opacity=0, filled=True, aria=False).encode(
            x=x, y=y("difference:Q"), tooltip=[tip("cells", "title"), tip("z", "transform"), tip("difference")]),
    ]  # fmt: skip
    shown = alt.layer(*layers, data=vega.ROWS).properties(width=640, height=260)
    return vega.spec(shown, marks.transforms(rows), vega.boxes("cells", names))
