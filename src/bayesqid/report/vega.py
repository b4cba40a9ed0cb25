"""Parts that the charts share: axes, layers, tooltips, and the switches that readers set."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from bayesqid.report.blocks import rounded
from bayesqid.report.marks import WIDTHS

QID = "QiD (nats per token)"
# counts are said in thousands of millions and of those, not in giga and peta
COUNT = "datum.value < 1e12 ? replace(format(datum.value, '~s'), 'G', 'B') : format(datum.value / 1e12, ',~g') + 'T'"
PLAIN = "format(datum.value, '~g')"
FULL_HEIGHT: dict[str, Any] = {"y": alt.value(0), "y2": alt.value("height")}
FULL_WIDTH: dict[str, Any] = {"x": alt.value(0), "x2": alt.value("width")}
DASHED: dict[str, Any] = {"strokeDash": [6, 4], "strokeWidth": 1.4}
DOT: dict[str, Any] = {"filled": True, "size": 75, "opacity": 1}
HALF, MOST = "50 % equal-tailed interval", "90 % equal-tailed interval"


@dataclass(frozen=True)
class Switch:
    """Form fields above a chart, and which rows stay for what they say; an empty `keeps` leaves the rows alone."""

    params: tuple[alt.Parameter, ...]
    keeps: str = ""


def box(name: str, label: str) -> Switch:
    """One checkbox, on at first; layers ask for it by name."""
    return Switch((alt.param(name=name, value=True, bind=alt.binding_checkbox(name=label)),))


def boxes(field: str, values: Sequence[str]) -> list[Switch]:
    """A checkbox for each value of a field; none where there is nothing to choose."""
    if len(values) < 2:
        return []
    made = [box(f"{field}_{i}", value) for i, value in enumerate(values)]
    chosen = " || ".join(f"(datum.{field} === {json.dumps(value)} && {field}_{i})" for i, value in enumerate(values))
    return [Switch(tuple(param for one in made for param in one.params), f"!isValid(datum.{field}) || {chosen}")]


def menu(field: str, label: str, values: Sequence[str], every: str = "all") -> list[Switch]:
    """A list of the values of a field, all of them at first; none where there is nothing to choose."""
    if len(values) < 2:
        return []
    name = f"{field}_chosen"
    bind = alt.binding_select(options=[None, *values], labels=[every, *values], name=label)
    keeps = f"!isValid(datum.{field}) || !isValid({name}) || datum.{field} === {name}"
    return [Switch((alt.param(name=name, value=None, bind=bind),), keeps)]


def one(field: str, label: str, values: Sequence[str]) -> list[Switch]:
    """A list of the values of a field, one at a time: for what would lie on each other."""
    if len(values) < 2:
        return []
    name = f"{field}_chosen"
    bind = alt.binding_select(options=list(values), name=label)
    keeps = f"!isValid(datum.{field}) || datum.{field} === {name}"
    return [Switch((alt.param(name=name, value=values[0], bind=bind),), keeps)]


def layer(kind: str, *when: str) -> alt.Chart:
    """The rows of one kind, shown while every condition holds."""
    return alt.Chart().transform_filter(" && ".join([f"datum.kind === {json.dumps(kind)}", *when]))


def log_axis[Axis: (alt.X, alt.Y)](
    channel: type[Axis], field: str, title: str, domain: Sequence[float], label: str
) -> Axis:
    """A logarithmic axis with a label at every power of ten."""
    low, high = (math.log10(end) for end in domain)
    ticks = [float(f"1e{power}") for power in range(math.floor(low), math.ceil(high) + 1)]
    ticks = [tick for tick in ticks if domain[0] <= tick <= domain[1]]
    return channel(
        f"{field}:Q", title=title, scale=alt.Scale(type="log", domain=list(domain), nice=False),
        axis=alt.Axis(values=ticks, labelExpr=label, labelOverlap="parity"),
    )  # fmt: skip


def span_of(rows: Iterable[dict], *fields: str, margin: float = 1.0, floor: float = 0.0) -> list[float]:
    """Smallest and largest positive value of fields, widened by a factor; [1, 10] where there is none."""
    values = [row[field] for row in rows for field in fields if row[field] is not None and row[field] > 0]
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    return [max(low / margin, floor), high * margin] if high > low else [low / 2, high * 2]


def color(
    field: str, domain: Sequence[str], names: Sequence[str], symbol: str = "square", kind: str = "N"
) -> alt.Color:
    """Colours by place in a domain; the names that are there stand in a legend if there are several.

    `kind`: N takes the theme's categories, O its parts of a forest plot.
    """
    return _named(alt.Color, f"{field}:{kind}", domain, names, {"symbolType": symbol})


def by_bits(names: Sequence[str]) -> alt.Color:
    """Colours of bit widths: two, three and four bits keep theirs from figure to figure."""
    return color("bits", _widths(names), names)


def shape_by_bits(names: Sequence[str]) -> alt.Shape:
    """Shapes of the same, in the same legend."""
    return _named(alt.Shape, "bits:N", _widths(names), names, {})


def _widths(names: Sequence[str]) -> list[str]:
    return [*WIDTHS, *(name for name in names if name not in WIDTHS)]


def _named[Channel: (alt.Color, alt.Shape)](
    channel: type[Channel], field: str, domain: Sequence[str], names: Sequence[str], mark: dict[str, Any]
) -> Channel:
    legend = alt.Legend(title=None, orient="top", symbolOpacity=1, values=list(names), **mark)
    return channel(field, scale=alt.Scale(domain=list(domain)), sort=list(domain),
                   legend=legend if len(names) > 1 else None)  # fmt: skip


def tip(field: str, title: str | None = None, text: str = "N") -> alt.Tooltip:
    """One line of a tooltip; the line called `title` is its heading."""
    return alt.Tooltip(f"{field}:{text}", title=title or field.replace("_", " "))


# rows come in only after the check, which would look at every single one
ROWS = alt.NamedData("rows")


def spec(
    chart: alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart, rows: Sequence[dict],
    switches: Sequence[Switch] = (), panels: int = 1, least: int = 0, beside: int = 86, note: str = "",
    entry: int = 110,
) -> dict:  # fmt: skip
    """The checked specification of a chart of ROWS with its rows, without the theme, which the page brings.

    `panels` of at least `least` pixels stand side by side where there is room, and legend entries of `entry` pixels.
    `beside`: what axes and gaps take beside each of them, a first guess that spares drawing twice where it is right.
    Raises altair's SchemaValidationError for what Vega-Lite does not know.
    """
    for switch in switches:
        chart = chart.transform_filter(switch.keeps) if switch.keeps else chart
    chart = chart.add_params(*(param for switch in switches for param in switch.params))
    found = {key: value for key, value in chart.to_dict().items() if key not in ("$schema", "config")}
    held = [{key: value for key, value in row.items() if value is not None} for row in rounded(list(rows))]
    return found | {
        "datasets": found.get("datasets", {}) | {"rows": held},
        "usermeta": {"panels": panels, "least": least, "beside": beside, "entry": entry, "note": note},
    }
