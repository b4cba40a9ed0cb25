"""Figures of answers: tokens to a threshold, recipes by size, and where the width of a band comes from."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesqid.answers import candidates, shares
from bayesqid.report import drawing
from bayesqid.report.blocks import Figure, number, rounded, share, span
from bayesqid.report.drawing import BLUE, BY_BITS, DARK, GREEN, GREY, ORANGE, PURPLE, RED, SAND, SKY, YELLOW
from bayesqid.report.tables import COUNTED

PARTS = dict(zip(shares.PARTS, (BLUE, ORANGE, YELLOW, GREEN, SKY, PURPLE, GREY), strict=True))
FLOOR = 1e-5


def thresholds(rows: list[dict], fitted: tuple[float, float], limits: dict[str, float], whose: str) -> Figure:
    """Tokens at which QiD reaches each threshold, one panel each, with the printed ones of Table 1."""
    panels = list(dict.fromkeys(row["threshold"] for row in rows))
    labels = list(dict.fromkeys((row["params"], row["bits"]) for row in rows))
    place = {label: -i for i, label in enumerate(labels)}
    shown = [row[name] for row in rows for name in ("lower90", "median", "printed") if row[name]]
    ends = max(min([*shown, fitted[0]]) / 3, 1e6), min(max([*shown, fitted[1]]) * 30, limits["upper"])
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 0.21 * len(labels) * -(-len(panels) // 2) + 1.9)
        grid = canvas.subplots(-(-len(panels) // 2), min(len(panels), 2), sharex=True, sharey=True, squeeze=False)
        axes = iter(grid.flat)
        for threshold, axis in zip(panels, axes, strict=False):
            for row in (row for row in rows if row["threshold"] == threshold):
                _reached(axis, row, place[row["params"], row["bits"]], ends[1])
            axis.axvspan(*fitted, color=SAND, zorder=0, linewidth=0)
            axis.set(xscale="log", xlim=ends, ylim=(-len(labels) + 0.4, 0.6))
            drawing.plain_log(axis, "x", COUNTED)
            axis.set_title(f"QiD of {threshold:g}", loc="left", fontweight="bold")
            axis.tick_params(axis="y", length=0)
            axis.set_yticks(list(place.values()), [f"{COUNTED(n)}, {bits:g} bits" for n, bits in labels])
        for axis in axes:
            axis.set_visible(False)
        for axis in grid[-1]:
            axis.set_xlabel("training tokens D")
        canvas.legend(handles=[
            *(Line2D([], [], color=BY_BITS.get(round(bits), GREY), marker="o", markersize=4, linewidth=2.4,
                     label=f"{bits:g} bits: median, 50 % and 90 % interval")
              for bits in dict.fromkeys(bits for _, bits in labels)),
            Line2D([], [], color=ORANGE, marker="D", markeredgecolor="#333333", linestyle="none", markersize=5,
                   label="Ouyang et al., Table 1"),
            Patch(facecolor=SAND, edgecolor="#d8d0b8", label="tokens of the data"),
        ], loc="outside lower center", ncols=3)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    last = [row for row in rows if row["threshold"] == panels[0]]
    words = "; ".join(f"{COUNTED(row['params'])} at {row['bits']:g} bits {_reads(row['median'], limits)}"
                      for row in last)  # fmt: skip
    caption = (
        f"Training tokens at which QiD of {whose} reaches a threshold. Dot: median; thick and thin bar: 50 % and 90 % "
        "equal-tailed interval, to the edge where it is not finite. Diamonds: what Ouyang et al. print in Table 1, "
        f"point values. Sand: tokens of the data, {COUNTED(fitted[0])} to {COUNTED(fitted[1])}."
    )
    alt = f"Intervals on a logarithmic axis of tokens. Median tokens to a QiD of {panels[0]:g}: {words}."
    return Figure("thresholds", "Tokens to a threshold, beside Table 1", alt, caption, svg, png, rounded(rows))


def _reads(value: float | None, limits: dict[str, float]) -> str:
    if value is None:
        return "not reached"
    return COUNTED(value) if value > limits["lower"] else f"at most {COUNTED(value)}"


def _reached(axis, row: dict, y: float, edge: float) -> None:
    color = BY_BITS.get(round(row["bits"]), GREY)
    for mass, width in ((90, 1.2), (50, 3.2)):
        low, high = row[f"lower{mass}"], row[f"upper{mass}"]
        if low is not None:
            axis.plot([low, edge * 10 if high is None else high], [y, y], color=color, linewidth=width, zorder=3,
                      solid_capstyle="butt")  # fmt: skip
    if row["median"] is not None:
        axis.plot(row["median"], y, marker="o", markersize=4.5, color=color, zorder=4)
    if row["printed"] is not None:
        axis.plot(row["printed"], y, marker="D", markersize=4.2, color=ORANGE, markeredgecolor="#333333",
                  markeredgewidth=0.5, zorder=5)  # fmt: skip


def choice(rows: list[dict], told: dict) -> Figure:
    """QiD of the recipes and the probability to stay within the tolerance, against the size of the weights."""
    size = np.array([row["bytes"] for row in rows]) / 1e9
    value = {name: np.maximum([row[name] for row in rows], FLOOR) for name in
             ("lower90", "lower50", "median", "upper50", "upper90", "p_under")}  # fmt: skip
    colors = [RED if row["chosen"] else BLUE for row in rows]
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 3.9)
        left, right = canvas.subplots(1, 2)
        left.vlines(size, value["lower90"], value["upper90"], color=colors, linewidth=1.2)
        left.vlines(size, value["lower50"], value["upper50"], color=colors, linewidth=3.2)
        left.scatter(size, value["median"], color=colors, s=18, zorder=3)
        left.axhline(told["tolerance"], color=DARK, linewidth=0.9, linestyle="--")
        left.set(yscale="log", ylabel="QiD (nats per token)")
        drawing.plain_log(left, "y", "{:g}".format)
        left.set_title("What a recipe costs", loc="left", fontweight="bold")
        right.plot(size, value["p_under"], color=SKY, linewidth=1, zorder=1)
        right.scatter(size, value["p_under"], color=colors, s=18, zorder=3)
        right.axhline(told["confidence"], color=DARK, linewidth=0.9, linestyle="--")
        right.set(ylim=(-0.03, 1.03), ylabel=f"probability that QiD stays within {told['tolerance']:g}")
        right.set_title("How sure that is", loc="left", fontweight="bold")
        for axis in (left, right):
            axis.set_xlabel("size of the weights (GB)")
        for row, x in zip(rows, size, strict=True):
            if row["chosen"]:
                right.annotate(row["recipe"], (x, row["p_under"]), xytext=(8, -4), textcoords="offset points",
                               fontsize=8, color=RED)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    ends = [rows[0], rows[-1]]
    words = "; ".join(f"{row['recipe']} at {candidates.size_text(row['bytes'])} GB: median {number(row['median'])}, "
                      f"90 % equal-tailed {span(row['lower90'], row['upper90'])}" for row in ends)  # fmt: skip
    caption = (
        "Recipes that are likelier and of lower median than all that cost no more. Left: median with 50 % and 90 % "
        f"equal-tailed intervals; dashed: the tolerance of {told['tolerance']:g} nats. Right: the probability to stay "
        f"within it; dashed: the confidence of {told['confidence']:g}. "
        + ("Red: the chosen recipe." if told["choice"] else "No recipe reaches the confidence.")
    )
    alt = (f"{len(rows)} recipes by size of the weights. {words}. "
           + (f"Chosen: {told['choice']}." if told["choice"] else "None is chosen."))  # fmt: skip
    asked = {name: told[name] for name in ("tolerance", "confidence")}
    return Figure("choice", "Choosing bits", alt, caption, svg, png, rounded([row | asked for row in rows]))


def variance(rows: list[dict]) -> Figure:
    """Shares of the variance of ln QiD by part, one stacked bar per target; `shares` of `project.rows` as rows."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 0.34 * len(labels) + 1.3)
        axis = canvas.subplots()
        right, left = dict.fromkeys(labels, 0.0), dict.fromkeys(labels, 0.0)
        for row in rows:
            side = right if row["share"] >= 0 else left
            axis.barh(-labels.index(row["label"]), row["share"], left=side[row["label"]], height=0.72,
                      color=PARTS[row["part"]], edgecolor="white", linewidth=0.8)  # fmt: skip
            side[row["label"]] += row["share"]
        axis.set_yticks([-i for i in range(len(labels))], labels)
        axis.tick_params(axis="y", length=0)
        axis.set(xlim=(min(0.0, *left.values()), max(1.0, *right.values())), ylim=(-len(labels) + 0.4, 0.6),
                 xlabel="share of the variance of ln QiD")  # fmt: skip
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        present = [part for part in PARTS if any(row["part"] == part and row["share"] for row in rows)]
        canvas.legend(handles=[Patch(facecolor=PARTS[part], label=part) for part in present],
                      loc="outside lower center", ncols=len(present) or 1)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    words = "; ".join(
        f"{label}: " + ", ".join(f"{row['part']} {share(row['share'])}" for row in rows
                                 if row["label"] == label and abs(row["share"]) >= 0.05)
        for label in labels
    )  # fmt: skip
    caption = (
        "Where the width of the band comes from: shares of the variance of ln QiD, before its ceiling. "
        + "; ".join(f"{part}: {shares.PARTS[part]}" for part in present)
        + ". A part that offsets another can have a share below zero."
    )
    return Figure("variance", "Where the uncertainty comes from", f"Stacked bars. {words}.", caption, svg, png,
                  rounded(rows))  # fmt: skip


def variance_rows(found: list[dict]) -> list[dict]:
    """One row per target and part from `project.rows`, the part of most variance first in the words of the page."""
    several = {name: len({row[name] for row in found}) > 1 for name in ("family", "tokens", "method")}
    out = []
    for row in found:
        label = ", ".join([
            *([row["family"]] if several["family"] else []), COUNTED(row["params"]),
            *([f"{COUNTED(row['tokens'])} tokens"] if several["tokens"] else []),
            *([row["method"]] if several["method"] else []), f"{row['bits']:g} bits",
        ])  # fmt: skip
        same = {name: row[name] for name in ("family", "params", "tokens", "bits", "method")}
        out += [{"label": label, "part": part, "share": value} | same for part, value in row["shares"].items()]
    return out
