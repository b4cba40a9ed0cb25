"""Figures of the fit: posterior predictive check, coverage by groups, probability integral transforms."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesqid.report import drawing
from bayesqid.report.blocks import Figure, rounded, share
from bayesqid.report.drawing import BLUE, DARK, GREEN, GREY, ORANGE, RED, SKY

FLOOR = 1e-3
COLORS = {"fitted": BLUE, "left out": ORANGE}


def predictive(rows: list[dict]) -> Figure:
    """Measured against predicted QiD, and the histogram of the probability integral transform."""
    measured = [row for row in rows if not row["diverged"]]
    qid, median = (np.array([row[name] for row in measured]) for name in ("qid", "median"))
    pit = np.array([row["pit"] for row in measured])
    width = np.array([round(row["effective_bits"]) for row in measured])
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 4.2)
        left, right = canvas.subplots(1, 2)
        limits = (FLOOR, 12.0)
        left.plot(limits, limits, color=DARK, linewidth=0.8)
        for bits, color, marker in ((2, RED, "o"), (3, BLUE, "s"), (4, GREEN, "^"), (0, GREY, "D")):
            own = width == bits if bits else ~np.isin(width, (2, 3, 4))
            if own.any():
                left.plot(np.maximum(median[own], FLOOR), np.maximum(qid[own], FLOOR), linestyle="none", marker=marker,
                          markersize=3.2, markeredgewidth=0, alpha=0.5, color=color, rasterized=True,
                          label=f"{bits} bits" if bits else "other bits")  # fmt: skip
        left.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
        drawing.plain_log(left, "x", "{:g}".format)
        drawing.plain_log(left, "y", "{:g}".format)
        left.set(xlabel="predicted QiD, median (nats per token)", ylabel="measured QiD (nats per token)")
        left.set_title("Measured against predicted", loc="left", fontweight="bold")
        left.legend(loc="upper left", markerscale=1.6)
        counts, edges = np.histogram(pit, bins=20, range=(0, 1), density=True)
        right.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=SKY, edgecolor="white")
        right.axhline(1.0, color=DARK, linewidth=0.8, linestyle="--")
        right.set(xlim=(0, 1), xlabel="share of predictive draws below the measurement", ylabel="density")
        right.set_title("Where measurements fall in their prediction", loc="left", fontweight="bold")
        svg, png = drawing.rendered(canvas)
    inside = float(np.mean((pit > 0.25) & (pit < 0.75)))
    alt = (
        f"Left: {len(measured):,} measured QiD against their predicted medians on logarithmic axes, around the "
        f"diagonal. Right: histogram over 20 classes, {share(inside)} of the measurements in the middle half."
    )
    caption = (
        "Left: every measured cell against the median of its posterior predictive distribution; values below 0.001 "
        "are drawn at 0.001. Right: where each measurement falls in that distribution; flat (dashed) would be exact, "
        "a hump in the middle means intervals wider than needed, a bowl ones too narrow."
    )
    return Figure("predictive", "Posterior predictive check", alt, caption, svg, png, rounded(rows))


def coverage(rows: list[dict]) -> Figure:
    """Share of cells inside their 50 % and 90 % intervals by group (`calibration.groups`), fitted and left out."""
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 0.27 * len(rows) + 1.4)
        axis = canvas.subplots()
        for number, row in enumerate(rows):
            for mass in (50, 90):
                axis.barh(-number, row[f"most{mass}"] - row[f"least{mass}"], left=row[f"least{mass}"], height=0.62,
                          color="#dcdcdc", zorder=1)  # fmt: skip
                axis.plot(row[f"coverage{mass}"], -number, marker="o", markersize=6.5, color=COLORS["fitted"],
                          markerfacecolor="none", zorder=5)  # fmt: skip
                if row[f"loo_coverage{mass}"] is not None:
                    axis.plot(row[f"loo_coverage{mass}"], -number, marker="o", markersize=5, color=COLORS["left out"],
                              zorder=4)  # fmt: skip
            if number and row["by"] != rows[number - 1]["by"]:
                axis.axhline(0.5 - number, color="#cccccc", linewidth=0.8, zorder=0)
        for mass in (0.5, 0.9):
            axis.axvline(mass, color=DARK, linewidth=0.9, linestyle="--", zorder=2)
        axis.set_yticks([-i for i in range(len(rows))], [f"{row['group']} ({row['cells']:,})" for row in rows])
        axis.set(xlim=(0, 1.01), ylim=(-len(rows) + 0.4, 0.6), xlabel="share of cells inside")
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axis.tick_params(axis="y", length=0)
        canvas.legend(handles=[
            Line2D([], [], color=COLORS["fitted"], marker="o", markerfacecolor="white", linestyle="none",
                   label="fitted"),
            Line2D([], [], color=COLORS["left out"], marker="o", linestyle="none", label="left out"),
            Patch(facecolor="#dcdcdc", label="exact intervals, 90 % range of chance"),
            Line2D([], [], color=DARK, linewidth=0.9, linestyle="--", label="50 % and 90 %"),
        ], loc="outside lower center", ncols=4)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    words = "; ".join(f"{row['group']} {share(_best(row, 50))} and {share(_best(row, 90))}" for row in rows)
    caption = (
        "Share of cells inside their 50 % and 90 % equal-tailed intervals, by group (number of cells). Hollow: the "
        "cell was fitted; filled: predicted from all others by importance sampling. Grey: where 90 % of shares would "
        "lie if intervals were exact and cells independent."
    )
    return Figure("calibration", "Coverage by groups", f"Coverage of 50 % and 90 % intervals: {words}.", caption, svg,
                  png, rounded(rows))  # fmt: skip


def _best(row: dict, mass: int) -> float:
    left_out = row[f"loo_coverage{mass}"]
    return row[f"coverage{mass}"] if left_out is None else left_out


def transforms(curves: dict[str, list[dict]]) -> Figure:
    """Distribution functions of the transforms less the uniform one (`calibration.ecdf` by name), with their band."""
    any_curve = next(iter(curves.values()))
    z = [row["z"] for row in any_curve]
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 3.4)
        axis = canvas.subplots()
        axis.fill_between(z, [row["lower"] for row in any_curve], [row["upper"] for row in any_curve], color="#dcdcdc",
                          linewidth=0)  # fmt: skip
        axis.axhline(0, color=DARK, linewidth=0.8)
        for name, rows in curves.items():
            axis.plot(z, [row["difference"] for row in rows], color=COLORS[name], linewidth=1.8)
        axis.set(xlim=(0, 1), xlabel="probability integral transform", ylabel="ECDF less uniform")
        canvas.legend(handles=[
            *(Line2D([], [], color=COLORS[name], linewidth=1.8, label=f"cells {name}") for name in curves),
            Patch(facecolor="#dcdcdc", label="uniform, simultaneous 90 % band"),
        ], loc="outside lower center", ncols=3)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    words = "; ".join(f"cells {name} {_leaves(rows)}, largest difference {_largest(rows):+.3f}"
                      for name, rows in curves.items())  # fmt: skip
    caption = (
        "Where cells fall in their predictive distributions: the empirical distribution function of the transform less "
        "that of a uniform one. Inside the grey band (simultaneous, 90 % of uniform samples stay in it) nothing speaks "
        "against exact calibration; below zero on the left and above it on the right: intervals wider than needed."
    )
    if "left out" not in curves:
        caption += " The file does not hold the likelihood of its draws, so that only fitted cells are drawn."
    rows = [{"cells": name} | row for name, own in curves.items() for row in own]
    return Figure("pit", "Probability integral transforms", f"Curves around zero: {words}.", caption, svg, png,
                  rounded(rows))  # fmt: skip


def _leaves(rows: list[dict]) -> str:
    outside = any(not row["lower"] <= row["difference"] <= row["upper"] for row in rows)
    return "leave the band" if outside else "stay inside the band"


def _largest(rows: list[dict]) -> float:
    return max((row["difference"] for row in rows), key=abs)
