"""Draw docs/tokens-or-decay.svg: checkpoints of the controlled ladder with and without decay, and their ratios.

python docs/make_tokens_or_decay.py      seconds; data/ladder.nc and benchmarks/results/phase_pairs.json, no sampling
"""

import json
import sys
from pathlib import Path

import numpy as np
import xarray as xr

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))
import phase_pairs  # noqa: E402

from bayesqid import files  # noqa: E402
from bayesqid.answers import pairs, separation, wording  # noqa: E402
from bayesqid.report import drawing  # noqa: E402

COLORS = (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.RED, drawing.PURPLE, drawing.SKY)
# nats: smaller QiDs of young models are within noise of zero, or below it
LEAST = 2e-3
RATIOS = (0.6, 0.8, 1, 1.25, 1.6)


def colors_of(params: np.ndarray) -> dict[float, str]:
    """A colour for every size, from the smallest up."""
    return {size: COLORS[number % len(COLORS)] for number, size in enumerate(sorted(set(params.tolist())))}


def shown(cells: xr.Dataset) -> xr.Dataset:
    """RTN at 3 bits, symmetric and per channel."""
    per_channel = cells["per_channel"].to_numpy().astype(bool)
    plain = (cells["quantizer"].to_numpy() == "rtn") & (cells["bits"].to_numpy() == 3.0) & per_channel
    bits = cells["effective_bits"].to_numpy()
    least = {name: bits[plain & (cells["checkpoint"].to_numpy() == name)].min(initial=np.inf)
             for name in set(cells["checkpoint"].values)}  # fmt: skip
    # asymmetric scales store a zero point besides
    symmetric = bits == np.array([least[name] for name in cells["checkpoint"].values])
    return cells.isel(cell=np.flatnonzero(plain & symmetric))


def by_tokens(axis, cells: xr.Dataset, colors: dict[float, str]) -> None:
    """QiD against tokens: undecayed checkpoints of a run joined, each cooled one joined to its partner."""
    model, tokens, qid = (cells[name].to_numpy() for name in ("model", "train_tokens", "qid"))
    params = cells["n_params_nonembedding"].to_numpy()
    rate = separation.rate_left(cells["lr_phase"].to_numpy().astype(str), cells["lr_fraction"].to_numpy())
    for run in sorted(set(model)):
        full = np.flatnonzero((model == run) & (rate >= separation.FULL) & (qid > LEAST))
        full = full[np.argsort(tokens[full])]
        cooled = np.flatnonzero((model == run) & (rate == 0) & (qid > LEAST))
        partners = [(i, j) for i in cooled for j in full if abs(np.log(tokens[i] / tokens[j])) < np.log(pairs.SAME)]
        if not partners:
            continue
        color = colors[float(params[full[0]])]
        axis.plot(tokens[full], qid[full], "o-", color=color, linewidth=1, markersize=3.5)
        for i, j in partners:
            axis.plot(tokens[[j, i]], qid[[j, i]], color=color, linewidth=2.2, alpha=0.45)
            axis.plot(tokens[i], qid[i], "o", color="white", markeredgecolor=color, markersize=5, zorder=3)
    for size, color in colors.items():
        axis.plot([], [], "o-", color=color, linewidth=1, markersize=3.5, label=f"N = {wording.count_text(size)}")
    axis.plot([], [], "o", color="white", markeredgecolor=drawing.DARK, markersize=5, label="after decay")
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="QiD at 3 bits (RTN), nats per token")
    drawing.plain_log(axis, "x", wording.count_text)
    drawing.plain_log(axis, "y", "{:g}".format)
    axis.set_title("Constant learning rate, and decayed from it", loc="left")
    axis.legend(loc="lower right")


def by_ratio(axis, found: dict, colors: dict[float, str]) -> None:
    """Ratio of every pair with its 90 % interval, and the fitted line with its 50 and 90 % bands."""
    line = {name: np.array([row[name] for row in found["line"]]) for name in found["line"][0]}
    axis.fill_between(line["tokens"], line["lower90"], line["upper90"], color=drawing.tint(drawing.GREY, 0.2), lw=0)
    axis.fill_between(line["tokens"], line["lower50"], line["upper50"], color=drawing.tint(drawing.GREY, 0.4), lw=0)
    axis.plot(line["tokens"], line["median"], color=drawing.DARK, linewidth=1.6)
    axis.axhline(1, color=drawing.DARK, linewidth=0.9, linestyle="--")
    runs = sorted({row["model"] for row in found["each"]}, key=lambda run: (
        next(row["params"] for row in found["each"] if row["model"] == run), run))  # fmt: skip
    for row in found["each"]:
        # pairs of several runs at one count stand side by side
        at = row["tokens"] * 1.05 ** (runs.index(row["model"]) - (len(runs) - 1) / 2)
        color, q = colors[row["params"]], row["ratio"]
        axis.plot([at, at], [q["lower90"], q["upper90"]], color=color, linewidth=1.2)
        axis.plot(at, q["median"], "o", color="white", markeredgecolor=color, markersize=2.5 + 0.25 * row["recipes"])
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="QiD after decay / QiD at the same tokens before")
    drawing.plain_log(axis, "x", wording.count_text)
    axis.set_yticks(RATIOS, [f"{value:g}" for value in RATIOS])
    axis.minorticks_off()
    axis.set_title("Pairs at equal tokens, 90 % (larger: more recipes)", loc="left")


def draw(cells: xr.Dataset, found: dict) -> bytes:
    """Both panels as SVG."""
    colors = colors_of(np.array([row["params"] for row in found["each"]]))
    with drawing.style():
        canvas = drawing.canvas_of(10, 4.4)
        left, right = canvas.subplots(1, 2)
        by_tokens(left, shown(cells), colors)
        by_ratio(right, found, colors)
        picture, png = drawing.rendered(canvas)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_bytes(png)
    return picture


def main() -> None:
    found = json.loads(phase_pairs.STORED.read_text(encoding="utf-8"))["pairs"]
    picture = draw(phase_pairs.read(), found)
    files.write_aside(HERE / "tokens-or-decay.svg", lambda aside: aside.write_bytes(picture))


if __name__ == "__main__":
    main()
