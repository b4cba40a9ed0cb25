"""Figures of a report as SVG and PNG bytes with the rows that they draw."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesqid import methods
from bayesqid.answers import curves, draws
from bayesqid.answers.draws import Posterior, Target
from bayesqid.report import drawing
from bayesqid.report.blocks import Figure, rounded, share
from bayesqid.report.drawing import BLUE, DARK, GREEN, GREY, ORANGE, PALE, RED, SAND, SKY
from bayesqid.report.tables import COUNTED, DESTROYED

TITLES = {"alpha": "alpha: parameters", "beta": "beta: tokens", "gamma": "gamma: bits, at 3 bits"}
BY_BITS = {2: RED, 3: BLUE, 4: GREEN}
FLOOR = 1e-3


def fan(
    posterior: Posterior, targets: Sequence[Target], tokens: np.ndarray, asked: Sequence[float], band: str
) -> Figure:
    """QiD against tokens, one panel per size and bit width."""
    found = curves.bands(posterior, targets, tokens, band)
    sizes = list(dict.fromkeys(t.params for t in targets))
    widths = list(dict.fromkeys(float(t.bits or t.effective_bits) for t in targets))
    low, high = curves.tokens_range(posterior, targets[0].family)
    rows = fan_rows(found)
    with drawing.style():
        canvas = drawing.canvas_of(3.3 * len(widths) + 0.4, 2.8 * len(sizes) + 0.75)
        axes = canvas.subplots(len(sizes), len(widths), sharex=True, sharey=True, squeeze=False)
        ceiling = max(draws.nearest_headroom(posterior, size) for size in sizes)
        bottom = max(FLOOR, min(0.05, float(found["lower90"].min()) * 0.7))
        for number, target in enumerate(targets):
            row, column = sizes.index(target.params), widths.index(float(target.bits or target.effective_bits))
            axis = axes[row, column]
            _panel(axis, posterior, found.isel(panel=number), target, (low, high), bottom, ceiling)
            for count in asked:
                axis.axvline(count, color=DARK, linewidth=0.8, linestyle=":")
            axis.set_title(f"{COUNTED(target.params)}, {widths[column]:g} bits", loc="left", fontweight="bold")
            if column == 0:
                axis.set_ylabel("QiD (nats per token)")
            if row == len(sizes) - 1:
                axis.set_xlabel("training tokens D")
        for axis in axes.flat:
            if not axis.has_data():
                axis.set_visible(False)
        points = any(curves.near(posterior, target).sizes["cell"] for target in targets)
        _fan_legend(canvas, found, asked, points)
        svg, png = drawing.rendered(canvas)
    caption = fan_caption(found, targets, (low, high), points)
    return Figure("fan", "QiD against training tokens", fan_alt(found, targets), caption, svg, png, rounded(rows))


def fan_rows(found: xr.Dataset) -> list[dict]:
    """The curves as rows, the published line beside them."""
    rows = []
    for panel in range(found.sizes["panel"]):
        one = found.isel(panel=panel)
        line = curves.published_qid("ouyang", float(one["params"]), found["tokens"].to_numpy(), float(one["bits"]))
        for j in range(found.sizes["tokens"]):
            row = {name: one[name].item() for name in ("family", "params", "bits", "effective_bits", "method")}
            row |= {"tokens": float(found["tokens"][j])}
            row |= {name: float(one[name][j]) for name in
                    ("lower90", "lower50", "median", "upper50", "upper90", "p_saturated")}  # fmt: skip
            rows.append(row | {"outside": bool(one["outside"][j]), "ouyang_published": float(line[j])})
    return rows


def _panel(axis, posterior: Posterior, one: xr.Dataset, target: Target, fitted: tuple[float, float], bottom: float,
           ceiling: float) -> None:  # fmt: skip
    tokens = one["tokens"].to_numpy()
    value = {name: np.maximum(one[name].to_numpy(), bottom / 10) for name in
             ("lower90", "lower50", "median", "upper50", "upper90")}  # fmt: skip
    color = BY_BITS.get(round(float(one["bits"])), GREY)
    axis.set(xscale="log", yscale="log", xlim=(tokens[0], tokens[-1]), ylim=(bottom, ceiling * 1.8))
    drawing.plain_log(axis, "x", COUNTED)
    drawing.plain_log(axis, "y", "{:g}".format)
    axis.axvspan(*_widened(fitted), color=SAND, zorder=0, linewidth=0)
    alive = one["p_saturated"].to_numpy() <= DESTROYED
    if not alive.all():
        first, last = tokens[~alive][[0, -1]]
        axis.axvspan(first, last, color="#d9d9d9", linewidth=0, zorder=0)
        middle = np.sqrt(first * last)
        axis.text(middle, bottom * 1.3, "loss destroyed", ha="center", va="bottom", rotation=90, fontsize=8)
    for mass, strength in ((90, 0.25), (50, 0.5)):
        axis.fill_between(tokens, value[f"lower{mass}"], value[f"upper{mass}"], color=drawing.tint(color, strength),
                          linewidth=0, zorder=1 + strength)  # fmt: skip
    outside = one["outside"].to_numpy()
    if outside.any():
        axis.fill_between(tokens, value["lower90"], value["upper90"], where=_grown(outside), facecolor="none",
                          edgecolor=color, alpha=0.6, hatch="////", linewidth=0, zorder=1.6)  # fmt: skip
    axis.plot(tokens, np.where(_grown(alive), value["median"], np.nan), color=color, linewidth=2, zorder=3)
    axis.axhline(draws.nearest_headroom(posterior, target.params), color=DARK, linewidth=0.8, linestyle="-.")
    cells = curves.near(posterior, target)
    alike = cells["generation"].to_numpy() == methods.generation(target.method)
    for own, shade in ((~alike, PALE), (alike, DARK)):
        axis.plot(cells["train_tokens"][own], cells["qid"][own], linestyle="none", marker="o", markersize=2.4,
                  alpha=0.6, color=shade, markeredgewidth=0, rasterized=True, zorder=2)  # fmt: skip
    line = curves.published_qid("ouyang", target.params, tokens, float(one["bits"]))
    axis.plot(tokens, line, color=DARK, linewidth=1.2, linestyle="--", zorder=2.5)


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
    """A range of one value gets a width that can be seen."""
    low, high = limits
    return (low / 1.08, high * 1.08) if high / low < 1.1 else (low, high)


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask with one more point at each end of every run, so that areas meet."""
    grown = mask.copy()
    grown[:-1] |= mask[1:]
    grown[1:] |= mask[:-1]
    return grown


def _fan_legend(canvas: Canvas, found: xr.Dataset, asked: Sequence[float], points: bool) -> None:
    handles: list = [
        Line2D([], [], color=GREY, linewidth=1.8, label="median"),
        Patch(facecolor=drawing.tint(GREY, 0.5), label="50 % interval"),
        Patch(facecolor=drawing.tint(GREY, 0.25), label="90 % interval"),
    ]
    if found["outside"].any():
        handles.append(Patch(facecolor="none", edgecolor=GREY, hatch="////", label="outside the data"))
    handles.append(Patch(facecolor=SAND, edgecolor="#d8d0b8", label="tokens of the data"))
    if points:
        for shade, label in ((DARK, "fitted, quantizers of this kind"), (PALE, "fitted, other quantizers")):
            handles.append(Line2D([], [], color=shade, marker="o", markersize=3, linestyle="none", label=label))
    handles += [
        Line2D([], [], color=DARK, linestyle="--", label="Ouyang et al., published"),
        Line2D([], [], color=DARK, linewidth=0.8, linestyle="-.", label="uniform guess"),
        Line2D([], [], color=DARK, linewidth=0.8, linestyle=":", label=f"asked: {', '.join(map(COUNTED, asked))}"),
    ]
    columns = {1: 2, 2: 3}.get(found["bits"].to_series().nunique(), 5)
    canvas.legend(handles=handles, loc="outside lower center", ncols=columns)


def fan_alt(found: xr.Dataset, targets: Sequence[Target]) -> str:
    """The fan chart in words: where each median starts and ends."""
    parts = []
    for number, target in enumerate(targets):
        one = found.isel(panel=number)
        ends = [_word(one, j) for j in (0, -1)]
        parts.append(f"{COUNTED(target.params)} at {float(one['bits']):g} bits from {ends[0]} to {ends[1]}")
    low, high = (COUNTED(float(found["tokens"][j])) for j in (0, -1))
    return (
        f"QiD against tokens on logarithmic axes, from {low} to {high} tokens. Median in nats per token: "
        f"{'; '.join(parts)}."
    )


def _word(one: xr.Dataset, j: int) -> str:
    return "loss destroyed" if float(one["p_saturated"][j]) > DESTROYED else f"{float(one['median'][j]):.2g}"


def fan_caption(found: xr.Dataset, targets: Sequence[Target], fitted: tuple[float, float], points: bool) -> str:
    """What the fan chart shows."""
    family = targets[0].family or "a new family"
    text = (
        f"QiD of {family} under {', '.join(dict.fromkeys(t.method for t in targets))} against training tokens, band "
        f"“{found.attrs['band']}”. Line: median; dark and light: 50 % and 90 % equal-tailed intervals. Shaded in sand: "
        f"tokens of the data, {COUNTED(fitted[0])} to {COUNTED(fitted[1])}."
    )
    if found["outside"].any():
        text += " Hatched: parameters, tokens or bits outside the data."
    near = f"within {curves.NEAR_BITS:g} effective bits and a factor of {curves.NEAR_PARAMS:g} in parameters"
    if points:
        text += f" Points: fitted cells of any family, dark under quantizers of the same generation, {near}."
    else:
        text += f" No fitted cell lies {near}."
    text += (
        " Dashed: the law that Ouyang et al. published, a point estimate at the nominal bits, without a ceiling. "
        "Dash-dotted: loss of a uniform guess."
    )
    if (found["p_saturated"] > DESTROYED).any():
        text += " Grey: loss destroyed, the law passes that of a uniform guess with a probability above 50 %."
    return text


def forest(posterior: Posterior, table: list[dict], printed: list[dict]) -> Figure:
    """Population and family values of alpha, beta and gamma with their priors and the published ones."""
    terms = [name for name in TITLES if name in posterior.law.term_names]
    rows = [row for row in table if row["term"] in terms and row["scope"] != "spread between families"]
    labels = list(dict.fromkeys(row["family"] or row["scope"] for row in rows))
    place = {label: -i for i, label in enumerate(labels)}
    marks = {"ouyang": ("D", ORANGE), "kumar": ("s", SKY)}
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 0.33 * len(labels) + 1.75)
        axes = canvas.subplots(1, len(terms), sharey=True, squeeze=False)[0]
        for axis, term in zip(axes, terms, strict=True):
            for row in (row for row in rows if row["term"] == term):
                y = place[row["family"] or row["scope"]]
                told = row["informed"] == "data"
                color = BLUE if told else GREY
                axis.plot([row["prior_lower90"], row["prior_upper90"]], [y, y], color="#dcdcdc", linewidth=7,
                          solid_capstyle="butt", zorder=1)  # fmt: skip
                axis.plot([row["lower90"], row["upper90"]], [y, y], color=color, linewidth=1.2, zorder=3)
                axis.plot([row["lower50"], row["upper50"]], [y, y], color=color, linewidth=3.2, zorder=3)
                axis.plot(row["mean"], y, marker="o", markersize=6, color=color, zorder=4,
                          markerfacecolor=color if told else "white")  # fmt: skip
            for mark in printed:
                if mark["law"] in marks and mark[term] is not None:
                    shape, color = marks[mark["law"]]
                    axis.axvline(mark[term], color=color, linewidth=1.1, linestyle="--", zorder=2)
                    axis.plot(mark[term], 0.75, marker=shape, color=color, markeredgecolor="#333333",
                              markeredgewidth=0.5, markersize=6, clip_on=False)  # fmt: skip
            axis.set_title(TITLES[term], loc="left", fontweight="bold")
            axis.set_xlabel(f"exponent {term}")
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(-len(labels) + 0.4, 0.9)
        axes[0].set_yticks([place[label] for label in labels], labels)
        canvas.legend(handles=[
            Line2D([], [], color="#dcdcdc", linewidth=7, label="prior, 90 % interval"),
            Line2D([], [], color=BLUE, marker="o", linewidth=1.2, label="posterior mean, 50 % and 90 % interval"),
            Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linewidth=1.2,
                   label="the same, contraction below 0.2"),
            Line2D([], [], color=ORANGE, marker="D", linestyle="--", label="Ouyang et al., published"),
            Line2D([], [], color=SKY, marker="s", linestyle="--", label="Kumar et al., published"),
        ], loc="outside lower center", ncols=3)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    words = "; ".join(f"{term}: " + ", ".join(f"{row['family'] or row['scope']} {row['mean']:.2f}" for row in rows
                                              if row["term"] == term) for term in terms)  # fmt: skip
    caption = (
        "Exponents of every family and of the population. Dot: posterior mean; thick and thin bar: 50 % and 90 % "
        "equal-tailed interval; grey band: 90 % equal-tailed interval of the prior; hollow: contraction below 0.2, the "
        "value is the prior's. Dashed: published point estimates."
    )
    return Figure("forest", "Exponents by family", f"Forest plot of posterior means, {words}.", caption, svg, png,
                  rounded(rows))  # fmt: skip


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
