"""Draw docs/mixed.svg: how much of a model may be quantized, and what a block costs, from stored fits.

python docs/make_mixed.py      seconds; reads benchmarks/results/mixed.json and samples nothing; same file, same bytes
"""

import json
from pathlib import Path

import numpy as np

from bayesqid.answers import mixing, wording
from bayesqid.report import drawing

ROOT = Path(__file__).resolve().parents[1]
RISES = {5.0: drawing.BLUE, 10.0: drawing.ORANGE, 20.0: drawing.GREEN}
MODEL = "Qwen-1.5-7B"


def share_panel(axis, found: dict, granularity: str, rise: float, title: str) -> None:
    """Median and 50 % and 90 % bands of the largest share against N, Law 1 beside, beyond the data hatched."""
    rows = [row for row in found["rows"] if row["granularity"] == granularity and row["increase"] == rise]
    size = np.array([row["params"] for row in rows])
    band = {name: np.array([row[name] for row in rows])
            for name in ("lower90", "lower50", "median", "upper50", "upper90")}  # fmt: skip
    low, high = found["fitted"]
    color = RISES[rise]
    axis.axvspan(low, high, color=drawing.SAND, zorder=0)
    axis.fill_between(size, band["lower90"], band["upper90"], color=drawing.tint(color, 0.25), linewidth=0)
    axis.fill_between(size, band["lower50"], band["upper50"], color=drawing.tint(color, 0.5), linewidth=0)
    for part in (size <= low, size >= high):
        axis.fill_between(size, band["lower90"], band["upper90"], where=part, facecolor="none", edgecolor=color,
                          hatch="///", linewidth=0, alpha=0.6)  # fmt: skip
    axis.plot(size, band["median"], color=color, linewidth=2)
    if granularity == "matmul":
        table = mixing.published()["law1"]["rows"]
        axis.plot(size, [mixing.by_law_1(n, rise / 100, table) for n in size], color=drawing.DARK, linewidth=1.2,
                  linestyle="--")  # fmt: skip
    axis.set(xscale="log", xlim=(size[0], size[-1]), ylim=(0.2, 1.02))
    drawing.plain_log(axis, "x", wording.count_text)
    axis.set_title(title, loc="left")


def block_panel(axis, rows: list[dict]) -> None:
    """Rise of perplexity against the block of one model at three shares, Law 2 dashed."""
    for color, share in zip((drawing.BLUE, drawing.ORANGE, drawing.GREEN), (0.5, 0.9, 0.95), strict=True):
        own = [row for row in rows if row["model"] == MODEL and row["q_r"] == share]
        block = [row["block"] for row in own]
        axis.fill_between(block, [row["lower90"] for row in own], [row["upper90"] for row in own],
                          color=color, alpha=0.18, linewidth=0)  # fmt: skip
        axis.plot(block, [row["median"] for row in own], color=color, linewidth=2, label=f"Qr {share:g}")
        axis.plot(block, [row["law_2"] for row in own], color=color, linewidth=1.2, linestyle="--")
    axis.axvline(32, color=drawing.GREY, linewidth=0.8, linestyle=":")
    axis.set(xscale="log", yscale="log", xlim=(16, 512), ylim=(0.4, 300), xlabel="weights that share a scale")
    axis.set_xticks([16, 32, 64, 128, 256, 512], labels=["16", "32", "64", "128", "256", "512"])
    axis.minorticks_off()
    axis.set_yticks([1, 10, 100], labels=["1 %", "10 %", "100 %"])
    axis.set_title(f"Blocks: {MODEL}, 90 % band, Law 2 dashed", loc="left")
    axis.set_ylabel("rise of perplexity")
    axis.legend(loc="upper left")


def draw(found: dict) -> bytes:
    """Six panels of shares, two fits by three rises, a row of layers against matrices, and the blocks, as SVG."""
    new, own = found["largest"]
    with drawing.style():
        canvas = drawing.canvas_of(10, 9.5)
        grid = canvas.add_gridspec(3, 3)
        for row, (one, kind, whose) in enumerate(((own, "matmul", own["family"]), (new, "matmul", "a new family"))):
            for column, rise in enumerate(RISES):
                axis = canvas.add_subplot(grid[row, column])
                share_panel(axis, one, kind, rise, f"{whose}, rise of {rise:g} %")
                if column == 0:
                    axis.set_ylabel("largest share Qr, single matrices")
                if row == 1:
                    axis.set_xlabel("non-embedding parameters")
        axis = canvas.add_subplot(grid[2, 0])
        share_panel(axis, own, "layer", 5.0, f"{own['family']}, rise of 5 %")
        axis.set(xlabel="non-embedding parameters", ylabel="largest share Qr, whole layers")
        block_panel(canvas.add_subplot(grid[2, 1:]), found["blocks"])
        canvas.get_layout_engine().set(h_pad=0.08, w_pad=0.06)  # type: ignore[union-attr]
        return drawing.rendered(canvas)[0]


def main() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "mixed.json").read_text(encoding="utf-8"))
    (ROOT / "docs" / "mixed.svg").write_bytes(draw(found))


if __name__ == "__main__":
    main()
