"""Figures at the widths of a journal's columns, and the projection as a LaTeX table.

Text is set in 8 points, figures carry no title, and everything can be told apart without colour: by fill, by line
style or by a label on the line.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesqid import files
from bayesqid.answers import asking, curves, draws, project
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput
from bayesqid.report import asked as question
from bayesqid.report import drawing, latex, tables
from bayesqid.report.blocks import as_csv, rounded
from bayesqid.report.drawing import BLUE, DARK, GREY
from bayesqid.report.tables import COUNTED, DESTROYED

SINGLE, DOUBLE = 3.25, 6.75
STYLE: dict[Any, Any] = {
    "font.family": ["STIXGeneral", "DejaVu Sans"], "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "hatch.linewidth": 0.4,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4,
    # TrueType, which journals ask for; outlines in SVG, which need no font at all
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "bayesqid",
    # a family may be called what TeX would read as a formula
    "text.parse_math": False,
}  # fmt: skip
EXPONENTS = {"alpha": "α, parameters", "beta": "β, tokens", "gamma": "γ, bits (at 3)"}
MARKS: dict[str, Any] = {"ouyang": ("D", "--", "Ouyang et al., printed"), "kumar": ("s", ":", "Kumar et al., printed")}
BITS = (2.0, 3.0, 4.0, 5.0, 6.0)
TOLERANCES = np.geomspace(3e-3, 3.0, 121)
ENOUGH = 0.9
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2.5, 1.5)))
PLATE = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
SHADES = ("#D55E00", "#0072B2", "#009E73", "#7a4a9e", "#222222")


def write(posterior: Posterior, projection: xr.Dataset, directory: Path) -> Path:
    """Write DIRECTORY/paper: fan, forest and choose as PDF and SVG, choose.csv and projection.tex; returns it.

    The rows of the other two stand in the report's data/. A name ends in the width that the picture has: single is 3.25
    inches, double 6.75. The same input gives the same bytes. `BadInput` if the folder cannot be written.
    """
    folder = Path(directory) / "paper"
    targets = question.panels(projection)
    band, asked = projection.attrs["band"], sorted({float(value) for value in projection["tokens"].values})
    found = curves.bands(posterior, targets, curves.grid(posterior, asked), band)
    exponents = [row for row in tables.parameters(posterior).rows if row["term"] in EXPONENTS]
    chances = choices(posterior, projection)
    try:
        with matplotlib.rc_context(STYLE):
            save(fan(posterior, found, targets, asked, SINGLE), folder / "fan-single")
            save(fan(posterior, found, targets, asked, DOUBLE), folder / "fan-double")
            save(forest(exponents, SINGLE), folder / "forest-single")
            save(forest(exponents, DOUBLE), folder / "forest-double")
            save(choose(chances, SINGLE), folder / "choose-single")
            save(choose(chances, DOUBLE), folder / "choose-double")
        files.write_text(folder / "choose.csv", as_csv(rounded(chances)))
        return files.write_text(folder / "projection.tex", latex.table(projection)).parent
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadInput(f"{folder} cannot be written ({reason}): name another folder.") from error


def save(canvas: Canvas, path: Path) -> None:
    """PATH.pdf and PATH.svg of a canvas, without dates."""
    for kind, nothing in (("pdf", ("CreationDate", "Creator", "Producer")), ("svg", ("Date", "Creator"))):
        content = io.BytesIO()
        with warnings.catch_warnings():
            # a name in letters that no font at hand has is drawn as boxes
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas.savefig(content, format=kind, metadata=dict.fromkeys(nothing))
        canvas.set_layout_engine("none")
        files.write_aside(path.with_suffix(f".{kind}"), lambda aside, held=content: aside.write_bytes(held.getvalue()))


def fan(
    posterior: Posterior, found: xr.Dataset, targets: Sequence[Target], asked: Sequence[float], width: float
) -> Canvas:
    """QiD against tokens: sizes by bit widths over two columns, the bit widths of one size in one."""
    sizes = list(dict.fromkeys(t.params for t in targets))
    widths = list(dict.fromkeys(float(t.bits or t.effective_bits) for t in targets))
    if width == SINGLE:
        sizes = sizes[:1]
        places = {(sizes[0], bits): (row, 0) for row, bits in enumerate(widths)}
        shape, height = (len(widths), 1), 1.2 * len(widths) + 1.3
    else:
        places = {(size, bits): (row, column) for row, size in enumerate(sizes) for column, bits in enumerate(widths)}
        shape, height = (len(sizes), len(widths)), 1.65 * len(sizes) + 0.95
    canvas = drawing.canvas_of(width, height)
    axes = canvas.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    bottom = max(1e-3, min(0.05, float(found["lower90"].min()) * 0.7))
    top = 1.8 * max(draws.nearest_headroom(posterior, size) for size in sizes)
    for number, target in enumerate(targets):
        bits = float(target.bits or target.effective_bits)
        if (target.params, bits) in places:
            axis = axes[places[target.params, bits]]
            _panel(axis, posterior, found.isel(panel=number), target, (bottom, top))
            for count in asked if len(asked) == 1 else ():
                axis.axvline(count, color=DARK, linewidth=0.6, linestyle=":")
            axis.annotate(f"{COUNTED(target.params)}, {bits:g} bits", (0.98, 0.05), xycoords="axes fraction",
                          va="bottom", ha="right", zorder=6, bbox=PLATE)  # fmt: skip
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    for axis in axes[-1]:
        axis.set_xlabel("Training tokens D")
    for axis in axes[:, 0]:
        axis.set_ylabel("QiD (nats/token)")
    canvas.legend(handles=_fan_handles(found, asked), loc="outside lower center", ncols=2 if width == SINGLE else 5,
                  handlelength=1.8, columnspacing=1.2, borderpad=0.1)  # fmt: skip
    return canvas


def _panel(axis, posterior: Posterior, one: xr.Dataset, target: Target, limits: tuple[float, float]) -> None:
    tokens = one["tokens"].to_numpy()
    value = {name: np.maximum(one[name].to_numpy(), limits[0] / 10) for name in project.quantile_names("")}
    axis.set(xscale="log", yscale="log", xlim=(tokens[0], tokens[-1]), ylim=limits)
    drawing.plain_log(axis, "x", COUNTED)
    drawing.plain_log(axis, "y", "{:g}".format)
    alive = one["p_saturated"].to_numpy() <= DESTROYED
    for mass, strength in ((90, 0.22), (50, 0.5)):
        axis.fill_between(tokens, value[f"lower{mass}"], value[f"upper{mass}"], color=drawing.tint(BLUE, strength),
                          linewidth=0, zorder=1 + strength)  # fmt: skip
    outside = one["outside"].to_numpy()
    if outside.any():
        axis.fill_between(tokens, value["lower90"], value["upper90"], where=outside, facecolor="none",
                          edgecolor=BLUE, hatch="////", linewidth=0, zorder=1.6)  # fmt: skip
    axis.plot(tokens, np.where(alive, value["median"], np.nan), color="black", linewidth=1.3, zorder=4)
    if alive.any() and not alive.all():
        last = np.flatnonzero(alive)[-1]
        axis.plot(tokens[last], value["median"][last], color="black", marker="X", markersize=5, zorder=5)
    axis.axhline(draws.nearest_headroom(posterior, target.params), color=DARK, linewidth=0.6, linestyle="-.")
    line = curves.published_qid("ouyang", target.params, tokens, float(one["bits"]))
    axis.plot(tokens, line, color=DARK, linewidth=0.9, linestyle="--", zorder=3)
    low, high = curves.tokens_range(posterior, target.family)
    # along the axis, where it hides nothing and needs no shade of grey
    axis.plot([low / 1.06, high * 1.06], [limits[0]] * 2, color="black", linewidth=3, solid_capstyle="butt",
              clip_on=False, zorder=5)  # fmt: skip


def _fan_handles(found: xr.Dataset, asked: Sequence[float]) -> list:
    handles = [
        Line2D([], [], color="black", linewidth=1.3, label="median"),
        Patch(facecolor=drawing.tint(BLUE, 0.5), label="50 % interval"),
        Patch(facecolor=drawing.tint(BLUE, 0.22), label="90 % interval"),
    ]
    if found["outside"].any():
        handles.append(Patch(facecolor="none", edgecolor=BLUE, linewidth=0, hatch="////", label="outside the data"))
    if (found["p_saturated"] > DESTROYED).any():
        handles.append(Line2D([], [], color="black", marker="X", linewidth=0, label="loss destroyed beyond"))
    handles += [
        Line2D([], [], color="black", linewidth=3, label="tokens of the data"),
        Line2D([], [], color=DARK, linewidth=0.9, linestyle="--", label="Ouyang et al., printed"),
        Line2D([], [], color=DARK, linewidth=0.6, linestyle="-.", label="uniform guess"),
    ]
    if len(asked) == 1:
        handles.append(Line2D([], [], color=DARK, linewidth=0.6, linestyle=":", label=f"{COUNTED(asked[0])} tokens"))
    return handles


def forest(rows: list[dict], width: float) -> Canvas:
    """Exponents of every family and of the population, side by side over two columns, one above the other in one."""
    rows = [row for row in rows if row["scope"] != "spread between families"]
    terms = [term for term in EXPONENTS if any(row["term"] == term for row in rows)]
    labels = list(dict.fromkeys(row["family"] or row["scope"] for row in rows))
    tall = 0.15 * len(labels) + 0.55
    stacked = width == SINGLE
    canvas = drawing.canvas_of(width, (tall * len(terms) if stacked else tall) + (0.7 if stacked else 0.55))
    axes = canvas.subplots(*((len(terms), 1) if stacked else (1, len(terms))), sharey=True, squeeze=False).flat
    for axis, term in zip(axes, terms, strict=True):
        for row in (row for row in rows if row["term"] == term):
            y, told = -labels.index(row["family"] or row["scope"]), row["informed"] == "data"
            axis.plot([row["prior_lower90"], row["prior_upper90"]], [y, y], color="#d9d9d9", linewidth=5,
                      solid_capstyle="butt", zorder=1)  # fmt: skip
            for mass, thick in ((90, 0.9), (50, 2.4)):
                axis.plot([row[f"lower{mass}"], row[f"upper{mass}"]], [y, y], color=BLUE, linewidth=thick, zorder=3,
                          solid_capstyle="butt")  # fmt: skip
            axis.plot(row["mean"], y, marker="o", markersize=3.8, markeredgewidth=0.9, color=BLUE, zorder=4,
                      markerfacecolor=BLUE if told else "white")  # fmt: skip
        for mark in curves.published_slopes():
            if mark["law"] in MARKS and mark[term] is not None:
                axis.axvline(mark[term], color=DARK, linewidth=0.8, linestyle=MARKS[mark["law"]][1], zorder=2)
        axis.set_xlabel(f"Exponent {EXPONENTS[term]}")
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(-len(labels) + 0.4, 0.6)
        axis.set_yticks([-i for i in range(len(labels))], labels)
    canvas.legend(handles=[
        Line2D([], [], color=BLUE, marker="o", markersize=3.8, linewidth=0.9, label="mean, 50 % and 90 %"),
        Line2D([], [], color=BLUE, marker="o", markersize=3.8, linewidth=0.9, markerfacecolor="white",
               label="contraction below 0.2"),
        Line2D([], [], color="#d9d9d9", linewidth=5, label="prior, 90 %"),
        *(Line2D([], [], color=DARK, linewidth=0.8, linestyle=line, label=name) for _, line, name in MARKS.values()),
    ], loc="outside lower center", ncols=2 if stacked else 3, handlelength=1.8, columnspacing=1.0,
       borderpad=0.1)  # fmt: skip
    return canvas


def choices(posterior: Posterior, projection: xr.Dataset) -> list[dict]:
    """P(QiD <= tolerance) of every whole bit width from 2 to 6 for the sizes of the fan, at the most tokens asked."""
    first = question.panels(projection)[0]
    tokens = float(projection["tokens"].max())
    sizes = list(dict.fromkeys(t.params for t in question.panels(projection)))
    targets = [replace(asking.target_of(None, bits, first.method, params=size, tokens=tokens, family=first.family,
                                        lr_phase=first.lr_phase, population=first.population), context=first.context,
                       eval_dataset=first.eval_dataset)
               for size in sizes for bits in BITS]  # fmt: skip
    qid, _ = project.qid_draws(posterior, targets, projection.attrs["band"])
    return [
        {"params": t.params, "tokens": tokens, "bits": float(t.bits or 0), "method": t.method,
         "tolerance": float(limit), "p_under": float((qid[:, number] <= limit).mean())}
        for number, t in enumerate(targets) for limit in TOLERANCES
    ]  # fmt: skip


def choose(rows: list[dict], width: float) -> Canvas:
    """The chance that QiD stays within a tolerance, one line per bit width, each labelled where it crosses one half."""
    sizes = list(dict.fromkeys(row["params"] for row in rows))[: 1 if width == SINGLE else None]
    canvas = drawing.canvas_of(width, 2.3)
    axes = canvas.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axis, size in zip(axes, sizes, strict=True):
        for number, bits in enumerate(BITS):
            p = np.array([row["p_under"] for row in rows if (row["params"], row["bits"]) == (size, bits)])
            axis.plot(TOLERANCES, p, color=SHADES[number], linestyle=DASHES[number], linewidth=1.3)
            middle = int(np.argmin(np.abs(p - 0.5)))
            axis.annotate(f"{bits:g} bits", (TOLERANCES[middle], p[middle]), va="center", bbox=PLATE,
                          ha="right" if middle == TOLERANCES.size - 1 else "center")  # fmt: skip
        axis.axhline(ENOUGH, color=GREY, linewidth=0.6, linestyle=":")
        axis.set(xscale="log", xlim=(TOLERANCES[0], TOLERANCES[-1]), ylim=(0, 1.02))
        drawing.plain_log(axis, "x", "{:g}".format)
        axis.set_xlabel("Tolerance (nats per token)")
        axis.annotate(f"{COUNTED(size)}, {COUNTED(rows[0]['tokens'])} tokens", (0.03, 1.01),
                      xycoords="axes fraction", va="bottom", ha="left")  # fmt: skip
    axes[0].set_ylabel("P(QiD within tolerance)")
    return canvas
