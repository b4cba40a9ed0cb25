"""The fan chart: QiD against training tokens, with the fitted cells and the published law."""

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
from bayesqid.report.blocks import Figure, plain, rounded
from bayesqid.report.drawing import BY_BITS, DARK, GREY, PALE, SAND
from bayesqid.report.tables import COUNTED, DESTROYED

FLOOR = 1e-3
POINT = ("family", "checkpoint", "quantizer", "generation", "effective_bits", "n_params_nonembedding", "train_tokens",
         "qid")  # fmt: skip


def fan(
    posterior: Posterior, targets: Sequence[Target], tokens: np.ndarray, asked: Sequence[float], band: str
) -> Figure:
    """QiD against tokens, one panel per size and bit width."""
    found = curves.bands(posterior, targets, tokens, band)
    sizes = list(dict.fromkeys(t.params for t in targets))
    widths = list(dict.fromkeys(float(t.bits or t.effective_bits) for t in targets))
    low, high = curves.tokens_range(posterior, targets[0].family)
    rows = fan_rows(posterior, found, asked, (low, high))
    fitted_cells = fan_points(posterior, found, targets)
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
        points = bool(fitted_cells)
        _fan_legend(canvas, found, asked, points)
        svg, png = drawing.rendered(canvas)
    caption = fan_caption(found, targets, (low, high), points)
    return Figure("fan", "QiD against training tokens", fan_alt(found, targets), caption, svg, png, rounded(rows),
                  rounded(fitted_cells))  # fmt: skip


def fan_rows(
    posterior: Posterior, found: xr.Dataset, asked: Sequence[float], fitted: tuple[float, float]
) -> list[dict]:
    """The curves as rows; beside them the published line, the range of the data and the loss of a uniform guess."""
    rows, tokens = [], found["tokens"].to_numpy()
    curve = ("lower90", "lower50", "median", "upper50", "upper90", "p_saturated", "outside")
    for panel in range(found.sizes["panel"]):
        one = found.isel(panel=panel)
        name = {key: one[key].item() for key in ("family", "params", "bits", "effective_bits", "method")}
        line = curves.published_qid("ouyang", name["params"], tokens, name["bits"])
        same = {"fitted_low": fitted[0], "fitted_high": fitted[1],
                "headroom": float(draws.nearest_headroom(posterior, name["params"]))}  # fmt: skip
        columns = [tokens, *(one[key].to_numpy() for key in curve), line, np.isin(tokens, asked)]
        for values in zip(*(column.tolist() for column in columns), strict=True):
            rows.append(name | dict(zip(("tokens", *curve, "ouyang_published", "asked"), values, strict=True)) | same)
    return rows


def fan_points(posterior: Posterior, found: xr.Dataset, targets: Sequence[Target]) -> list[dict]:
    """The fitted cells near each panel; `alike`: under a quantizer of the panel's generation."""
    rows = []
    for number, target in enumerate(targets):
        panel = {name: found[name].values[number].item() for name in ("params", "bits")}
        cells = curves.near(posterior, target)
        columns = {name: cells[name].to_numpy() for name in POINT}
        for i in range(cells.sizes["cell"]):
            one = {name: plain(column[i]) for name, column in columns.items()}
            alike = one["generation"] == methods.generation(target.method)
            rows.append({f"panel_{name}": value for name, value in panel.items()} | one | {"alike": alike})
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
