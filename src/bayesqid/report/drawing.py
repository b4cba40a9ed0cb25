"""How figures look: colours, canvas, axes and files, the same for all of them."""

import io
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullLocator

# Okabe and Ito's palette, which survives every common kind of colour blindness
BLUE, ORANGE, GREEN, RED, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#6b6b6b"
PURPLE, YELLOW = "#CC79A7", "#F0E442"
BY_BITS = {2: RED, 3: BLUE, 4: GREEN}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#444444", "axes.linewidth": 0.8,
    "xtick.color": "#333333", "ytick.color": "#333333", "legend.frameon": False, "legend.fontsize": 8,
    "hatch.linewidth": 0.5, "svg.hashsalt": "bayesqid", "svg.fonttype": "path", "path.simplify": True,
    # names come from files: a dollar sign is no formula
    "text.parse_math": False,
}  # fmt: skip
DPI = 150
SAND = "#f3efe2"
DARK, PALE = "#222222", "#9a9a9a"


def style():
    """The context in which every figure is drawn."""
    return matplotlib.rc_context(_STYLE)


def rendered(canvas: Canvas) -> tuple[bytes, bytes]:
    """SVG and PNG of a canvas without dates, so that the same picture has the same bytes."""
    svg, png = io.BytesIO(), io.BytesIO()
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, dpi=DPI)
    # the layout stands: finding it again would take as long as drawing
    canvas.set_layout_engine("none")
    canvas.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def tint(color: str, strength: float) -> tuple[float, float, float]:
    """An opaque mixture of a colour with white: what lies behind does not shine through."""
    red, green, blue = (1 - strength * (1 - channel) for channel in to_rgb(color))
    return red, green, blue


def plain_log(axis, name: str, show) -> None:
    """Powers of ten on a logarithmic axis, labelled by `show`: faster than typesetting 10^n and read at a glance."""
    side = getattr(axis, f"{name}axis")
    side.set_major_formatter(FuncFormatter(lambda value, _: show(value).replace("e+", "e")))
    # ticks between the powers take a fifth of the time of a page
    side.set_minor_locator(NullLocator())


def canvas_of(width: float, height: float) -> Canvas:
    """An empty canvas, inches."""
    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas
