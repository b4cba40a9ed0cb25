"""What a report is made of: sections of text, tables and figures, the same for HTML and Markdown."""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

DIGITS = 6


@dataclass(frozen=True)
class Column:
    """A column that readers see: its heading, how a row is shown in it, set right as a number or kept on one line."""

    label: str
    show: Callable[[dict], str]
    number: bool = True
    one_line: bool = False


@dataclass(frozen=True)
class Table:
    """Rows with what readers see of them; the twins in data/ hold every key of every row, unrounded.

    `grouped`: the first column names groups of rows, which are set apart.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[dict]
    note: str = ""
    grouped: bool = False
    kind: str = "table"

    @property
    def cells(self) -> list[list[str]]:
        """Shown text, one list per row."""
        return [[column.show(row) for column in self.columns] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A picture as SVG and PNG bytes, with alternative text, a caption and the rows that it draws.

    `points`: measurements drawn beside the rows, with twins of their own (NAME-points). `spec`: the Vega-Lite
    specification of the same figure (`charts.attached`), None where the static picture is all there is.
    """

    name: str
    title: str
    alt: str
    caption: str
    svg: bytes
    png: bytes
    rows: list[dict]
    points: list[dict] = field(default_factory=list)
    spec: dict | None = None
    kind: str = "figure"


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    paragraphs: tuple[str, ...]
    kind: str = "text"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: tuple[str, ...]
    kind: str = "items"


@dataclass(frozen=True)
class Code:
    """Lines to type."""

    lines: tuple[str, ...]
    kind: str = "code"


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    name: str
    title: str
    blocks: tuple[Table | Figure | Text | Items | Code, ...] = field(default_factory=tuple)


def number(value: float | None) -> str:
    """Three significant digits, without exponent between 1e-4 and 1e6; an empty value is a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    value = float(f"{value:.3g}")
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}".replace("-", "−")


def share(value: float | None) -> str:
    """A counted share in per cent; never 0 % or 100 % for what is only close to it."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < value <= 0.005:
        return "<1 %"
    if 0.995 <= value < 1:
        return ">99 %"
    return f"{value:.0%}".replace("%", " %").replace("-", "−")


def chance(value: float) -> str:
    """A probability estimated from draws, which can prove neither 0 nor 1."""
    return "<1 %" if value <= 0.005 else ">99 %" if value >= 0.995 else share(value)


def span(low: float, high: float) -> str:
    """An interval whose kind and mass the heading states."""
    return f"{number(low)} to {number(high)}"


def plain(value):
    """A value as JSON and CSV can hold it: numpy scalars unpacked, what is not finite None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def rounded(rows: list[dict]) -> list[dict]:
    """Rows with floats cut to six significant digits: a picture holds no more."""
    return [{key: float(f"{value:.{DIGITS}g}") if isinstance(value := plain(old), float) else value
             for key, old in row.items()} for row in rows]  # fmt: skip


def as_json(title: str, rows: list[dict]) -> str:
    """Rows as one JSON object, one row a line."""
    lines = ",\n".join("  " + json.dumps({k: plain(v) for k, v in row.items()}, ensure_ascii=False) for row in rows)
    return f'{{"title": {json.dumps(title, ensure_ascii=False)},\n "rows": [\n{lines}\n]}}\n'


def as_csv(rows: list[dict]) -> str:
    """The same rows as CSV: every float as Python prints it, true and false, nothing for what is missing."""
    stream = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [plain(row.get(name)) for name in names]
        writer.writerow(["" if v is None else str(v).lower() if isinstance(v, bool) else v for v in values])
    return stream.getvalue()
