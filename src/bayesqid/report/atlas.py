"""QiD of the atlas against N, D or P: one picture, every row a point, coloured by family or method."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from bayesqid.answers.wording import count_text
from bayesqid.cells import LN10
from bayesqid.report import drawing

AXES = {
    "params": ("parameters N (non-embedding)", count_text),
    "tokens": ("training tokens D", count_text),
    "bits": ("effective bits per weight P", "{:g}".format),
}
COLORS = (
    drawing.BLUE, drawing.RED, drawing.GREEN, drawing.ORANGE, drawing.SKY, drawing.PURPLE, drawing.YELLOW, drawing.DARK,
)  # fmt: skip
SHAPES = "osD^vPXh"
OTHER = "other"
# shaft and head of an arrow upwards, in the units of markers
ARROW = np.array([(0, -1), (0, 1), (-0.45, 0.35), (0, 1), (0.45, 0.35)])
# share of the axis by which rows are set off sideways, or one model's rows would be one line
ASIDE = 0.012
FLOOR = 1e-3
BIT_TICKS = (2, 3, 4, 5, 6, 8)


def draw(points: Mapping[str, Sequence], x: str = "bits") -> tuple[bytes, bytes]:
    """SVG and PNG; `points` holds columns params, tokens, bits, qid, beyond (diverged) and name (what colours).

    Diverged rows are arrows upwards at ln 10, rows under 0.001 nats arrows downwards there; rows without the quantity
    on the horizontal axis are counted in the note. The eight commonest names have a colour, the others share one.
    """
    from matplotlib.path import Path
    from matplotlib.ticker import FixedLocator, LogLocator

    label, show = AXES[x]
    across, qid = np.array(points[x], float), np.array(points["qid"], float)
    beyond, name = np.array(points["beyond"], bool), np.array(points["name"], str)
    there = np.isfinite(across)
    common = [held for held, _ in Counter(name[there].tolist()).most_common(len(COLORS))]
    low = ~beyond & (qid < FLOOR)
    across = _aside(across)
    arrows = Path(ARROW, [1, 2, 1, 2, 2]), Path(-ARROW, [1, 2, 1, 2, 2])
    with drawing.style():
        canvas = drawing.canvas_of(8, 4.6)
        axis = canvas.subplots()
        axis.set(xscale="log", yscale="log", ylim=(FLOOR * 0.75, LN10 * 1.9))
        axis.axhline(LN10, color=drawing.GREY, linewidth=0.8, linestyle="--")
        # the commonest below, or they would hide the rest
        for number, held in enumerate([*common, OTHER]):
            rows = there & (name == held if held != OTHER else ~np.isin(name, common))
            if not rows.any():
                continue
            color = COLORS[number] if held != OTHER else drawing.PALE
            shape = SHAPES[number] if held != OTHER else "."
            inside = rows & ~beyond & ~low
            axis.plot(across[inside], qid[inside], shape, color=color, markersize=3.6, alpha=0.6, markeredgewidth=0,
                      zorder=2 + number)  # fmt: skip
            for part, arrow, height in ((rows & beyond, arrows[0], LN10 * 1.35), (rows & low, arrows[1], FLOOR)):
                axis.plot(across[part], np.full(part.sum(), height), linestyle="none", marker=arrow, color=color,
                          fillstyle="none", markersize=7, markeredgewidth=1, alpha=0.7, zorder=2 + number)  # fmt: skip
            axis.plot([], [], shape, color=color, markersize=6, markeredgewidth=0, label=f"{held} ({rows.sum()})")
        drawing.plain_log(axis, "x", show)
        drawing.plain_log(axis, "y", "{:g}".format)
        # one decade may be all there is: thirds of it are ticks too
        axis.xaxis.set_major_locator(FixedLocator(list(BIT_TICKS)) if x == "bits" else LogLocator(subs=(1, 3)))
        axis.set_xlabel(f"{label}\n{_note(there, beyond, low)}")
        axis.set_ylabel("QiD (nats per token)")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        axis.grid(color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
        return drawing.rendered(canvas)


def _aside(across: np.ndarray) -> np.ndarray:
    """The values set off sideways, evenly within `ASIDE` of their logarithmic range to either side."""
    held = across[np.isfinite(across)]
    reach = np.log(held.max() / held.min()) if held.size and held.max() > held.min() else 1.0
    even = np.arange(across.size) * (np.sqrt(5) - 1) / 2 % 1
    return across * np.exp(ASIDE * reach * (2 * even - 1))


def _note(there: np.ndarray, beyond: np.ndarray, low: np.ndarray) -> str:
    parts = [f"{there.sum()} published rows"]
    counts = {"arrows up: diverged, only QiD > ln 10 is known": (there & beyond).sum(),
              "arrows down: below 0.001": (there & low).sum(),
              "not shown, value undisclosed": (~there).sum()}  # fmt: skip
    parts += [f"{words} ({count})" for words, count in counts.items() if count]
    return textwrap.fill("; ".join([*parts, "set off sideways to be seen"]), 100)
