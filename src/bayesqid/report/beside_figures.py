"""Figures of two posteriors side by side: their bands over one another, their exponents in pairs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesqid.answers import curves, draws, project
from bayesqid.answers.draws import Target
from bayesqid.report import drawing
from bayesqid.report.beside import Side, knows
from bayesqid.report.blocks import Figure, number, rounded
from bayesqid.report.drawing import BLUE, DARK, GREY, RED
from bayesqid.report.tables import COUNTED, DESTROYED

FLOOR = 1e-3
TITLES = {"alpha": "alpha: parameters", "beta": "beta: tokens", "gamma": "gamma: bits, at 3 bits"}
COLORS = {"A": BLUE, "B": RED}


def as_known(side: Side, targets: Sequence[Target], family: str | None) -> list[Target]:
    """The targets as this side can answer them: of a family that it does not know, a new one."""
    known = draws.require_family(side.posterior, family) if family and knows(side.posterior, family) else None
    return [replace(target, family=known) for target in targets]


def grid(left: Side, right: Side, asked: Sequence[float]) -> np.ndarray:
    """Tokens that reach as far as either's own grid, the asked ones included."""
    own = [curves.grid(side.posterior, asked) for side in (left, right)]
    ends = min(tokens[0] for tokens in own), max(tokens[-1] for tokens in own)
    return np.unique(np.concatenate([np.geomspace(*ends, curves.POINTS), np.asarray(asked, dtype=float)]))


def fan(left: Side, right: Side, targets: Sequence[Target], family: str | None, asked: Sequence[float]) -> Figure:
    """QiD against tokens of both in one panel per size and bit width: A filled, B outlined and dashed."""
    tokens = grid(left, right, asked)
    found = {side.name: curves.bands(side.posterior, as_known(side, targets, family), tokens,
                                     side.projection.attrs["band"]) for side in (left, right)}  # fmt: skip
    sizes = list(dict.fromkeys(t.params for t in targets))
    widths = list(dict.fromkeys(float(t.bits or t.effective_bits) for t in targets))
    bottom = max(FLOOR, 0.7 * min(0.05, *(float(bands["lower90"].min()) for bands in found.values())))
    top = 1.8 * max(draws.nearest_headroom(side.posterior, size) for side in (left, right) for size in sizes)
    with drawing.style():
        canvas = drawing.canvas_of(3.3 * len(widths) + 0.4, 2.6 * len(sizes) + 0.8)
        axes = canvas.subplots(len(sizes), len(widths), sharex=True, sharey=True, squeeze=False)
        for number_, target in enumerate(targets):
            bits = float(target.bits or target.effective_bits)
            axis = axes[sizes.index(target.params), widths.index(bits)]
            axis.set(xscale="log", yscale="log", xlim=(tokens[0], tokens[-1]), ylim=(bottom, top))
            drawing.plain_log(axis, "x", COUNTED)
            drawing.plain_log(axis, "y", "{:g}".format)
            for side in (left, right):
                _band(axis, side, found[side.name].isel(panel=number_), target, bottom, top)
            for count in asked:
                axis.axvline(count, color=DARK, linewidth=0.8, linestyle=":")
            axis.set_title(f"{COUNTED(target.params)}, {bits:g} bits", loc="left", fontweight="bold")
        for axis in axes.flat:
            axis.set_visible(axis.has_data())
        for axis in axes[-1]:
            axis.set_xlabel("training tokens D")
        for axis in axes[:, 0]:
            axis.set_ylabel("QiD (nats per token)")
        canvas.legend(handles=[
            Line2D([], [], color=BLUE, linewidth=2, label="A, median"),
            Patch(facecolor=drawing.tint(BLUE, 0.28), label="A, 90 % interval"),
            Line2D([], [], color=BLUE, linewidth=4, label="A, tokens of the data"),
            Line2D([], [], color=RED, linewidth=2, linestyle="--", label="B, median"),
            Patch(facecolor="none", edgecolor=RED, hatch="\\\\\\", label="B, 90 % interval"),
            Line2D([], [], color=RED, linewidth=4, label="B, tokens of the data (above A's)"),
            Line2D([], [], color=GREY, marker="X", linewidth=0, label="loss destroyed beyond"),
            Line2D([], [], color=DARK, linewidth=0.8, linestyle=":", label=f"asked: {', '.join(map(COUNTED, asked))}"),
        ], loc="outside lower center", ncols=3)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    rows = [row for side in (left, right) for row in fan_rows(side, found[side.name])]
    return Figure("fan-both", "QiD against training tokens, A and B", _fan_alt(found, targets, asked), _CAPTION, svg,
                  png, rounded(rows))  # fmt: skip


_CAPTION = (
    "Filled with a solid line: A; hatched between dashed edges: B. Lines: medians; bands: 90 % equal-tailed intervals. "
    "Along the lower edge: the tokens of the data of each. A cross ends a median where the loss is destroyed, the law "
    "passes that of a uniform guess with a probability above 50 %. Dotted: the tokens asked about."
)


def _band(axis, side: Side, one: xr.Dataset, target: Target, bottom: float, top: float) -> None:
    tokens, color = one["tokens"].to_numpy(), COLORS[side.name]
    low, high, median = (np.maximum(one[name].to_numpy(), bottom / 10) for name in ("lower90", "upper90", "median"))
    alive = one["p_saturated"].to_numpy() <= DESTROYED
    line = np.where(alive, median, np.nan)
    first = side.name == "A"
    if first:
        axis.fill_between(tokens, low, high, color=drawing.tint(color, 0.28), linewidth=0, zorder=1)
    else:
        axis.fill_between(tokens, low, high, facecolor="none", edgecolor=color, hatch="\\\\\\", linewidth=0, alpha=0.5,
                          zorder=1.5)  # fmt: skip
        for edge in (low, high):
            axis.plot(tokens, edge, color=color, linewidth=0.9, linestyle="--", zorder=2)
    axis.plot(tokens, line, color=color, linewidth=2, linestyle="-" if first else "--", zorder=3)
    if alive.any() and not alive.all():
        last = np.flatnonzero(alive)[-1]
        axis.plot(tokens[last], line[last], marker="X", markersize=7, color=color, zorder=4)
    ends = curves.tokens_range(side.posterior, target.family if target.family in side.posterior.families else None)
    height = bottom * (top / bottom) ** (0.008 if first else 0.035)
    axis.plot([ends[0] / 1.05, ends[1] * 1.05], [height] * 2, color=color, linewidth=4, solid_capstyle="butt", zorder=3)


def fan_rows(side: Side, found: xr.Dataset) -> list[dict]:
    """The curves of one side as rows."""
    keep = (*project.quantile_names(""), "p_saturated", "outside")
    return [
        {"posterior": side.name, "family": str(one["family"].item()), "params": float(one["params"]),
         "bits": float(one["bits"]), "effective_bits": float(one["effective_bits"]),
         "method": str(one["method"].item()), "tokens": float(found["tokens"][j])}
        | {name: one[name].values[j].item() for name in keep}
        for one in (found.isel(panel=number_) for number_ in range(found.sizes["panel"]))
        for j in range(found.sizes["tokens"])
    ]  # fmt: skip


def _fan_alt(found: dict[str, xr.Dataset], targets: Sequence[Target], asked: Sequence[float]) -> str:
    parts = []
    for number_, target in enumerate(targets):
        said = []
        for name, bands in found.items():
            one = bands.isel(panel=number_).sel(tokens=asked[-1])
            dead = float(one["p_saturated"]) > DESTROYED
            said.append(f"{name} {'loss destroyed' if dead else number(float(one['median']))}")
        bits = float(target.bits or target.effective_bits)
        parts.append(f"{COUNTED(target.params)} at {bits:g} bits: {', '.join(said)}")
    return f"Bands of A and B against tokens. Median QiD at {COUNTED(asked[-1])} tokens, {'; '.join(parts)}."


def forest(rows: list[dict]) -> Figure:
    """Exponents of every family and of the population: A above B in each line."""
    rows = [row for row in rows if row["term"] in TITLES and row["scope"] != "spread between families"]
    terms = [term for term in TITLES if any(row["term"] == term for row in rows)]
    labels = list(dict.fromkeys(row["family"] or row["scope"] for row in rows))
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 0.42 * len(labels) + 1.5)
        axes = canvas.subplots(1, len(terms), sharey=True, squeeze=False)[0]
        for axis, term in zip(axes, terms, strict=True):
            for row in (row for row in rows if row["term"] == term):
                for side, up in (("A", 0.17), ("B", -0.17)):
                    _interval(axis, row, side, up - labels.index(row["family"] or row["scope"]))
            axis.set_title(TITLES[term], loc="left", fontweight="bold")
            axis.set_xlabel(f"exponent {term}")
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(-len(labels) + 0.4, 0.6)
        axes[0].set_yticks([-i for i in range(len(labels))], labels)
        canvas.legend(handles=[
            Line2D([], [], color=BLUE, marker="o", linewidth=1.2, label="A: mean, 50 % and 90 % interval"),
            Line2D([], [], color=RED, marker="s", linewidth=1.2, linestyle="--",
                   label="B: mean, 50 % and 90 % interval"),
            Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linewidth=1.2,
                   label="hollow: contraction below 0.2"),
        ], loc="outside lower center", ncols=3)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    caption = (
        "Each line holds A (solid, round) above B (dashed, square). Mark: posterior mean; thick and thin bar: 50 % and "
        "90 % equal-tailed interval; hollow: contraction below 0.2, the value is the prior's. A line with one mark: "
        "only that posterior knows the family."
    )
    said = "; ".join(f"{row['term']} {_pair(row)}" for row in rows if not row["family"])
    return Figure("forest-both", "Exponents by family, A and B", f"Forest plot of posterior means: {said}.", caption,
                  svg, png, rounded(rows))  # fmt: skip


def _interval(axis, row: dict, side: str, y: float) -> None:
    own = {name: row[f"{side.lower()}_{name}"] for name in
           ("mean", "lower90", "upper90", "lower50", "upper50", "informed")}  # fmt: skip
    if own["mean"] is None:
        return
    color = COLORS[side]
    axis.plot([own["lower90"], own["upper90"]], [y, y], color=color, linewidth=1.2, zorder=3,
              linestyle="-" if side == "A" else (0, (3, 1.2)))  # fmt: skip
    axis.plot([own["lower50"], own["upper50"]], [y, y], color=color, linewidth=3.2, solid_capstyle="butt", zorder=3)
    axis.plot(own["mean"], y, marker="o" if side == "A" else "s", markersize=5, color=color, zorder=4,
              markerfacecolor=color if own["informed"] == "data" else "white")  # fmt: skip


def _pair(row: dict) -> str:
    known = [f"{name} {row[f'{name.lower()}_mean']:.2f}" for name in "AB" if row[f"{name.lower()}_mean"] is not None]
    return " and ".join(known)
