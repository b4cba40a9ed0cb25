"""Draw the figure at the head of README.md, for light and for dark pages, from the bundled posterior.

python docs/make_headline.py      seconds; nothing is sampled, the same posterior gives the same bytes
"""

from pathlib import Path

import matplotlib
import numpy as np

from bayesqid import bundled, files
from bayesqid.answers import asking, curves, draws, wording
from bayesqid.answers.draws import Posterior
from bayesqid.report import drawing

SIZES, BITS, ASKED = (7e9, 70e9), 4.0, 1e14
# ink, what steps back, the line, its 50 % and 90 % bands: each readable on the page that it is meant for
THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "line": "#0b4f8a", "inner": "#7db4dc", "outer": "#c9e1f3"},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "line": "#a8d4ff", "inner": "#2f6fa6", "outer": "#1c3f61"},
}


def draw(posterior: Posterior, colors: dict[str, str]) -> bytes:
    """The fan chart at four bits as SVG on a transparent ground."""
    targets = [asking.targets(posterior, ASKED, size, bits=BITS)[0] for size in SIZES]
    found = curves.bands(posterior, targets, curves.grid(posterior, [ASKED]))
    tokens = found["tokens"].to_numpy()
    low, high = curves.tokens_range(posterior, None)
    with drawing.style(), matplotlib.rc_context({"font.size": 10.5, "axes.labelsize": 10.5, "hatch.linewidth": 0.6}):
        canvas = drawing.canvas_of(9, 3.7)
        canvas.patch.set_alpha(0)
        for number, axis in enumerate(canvas.subplots(1, 2, sharey=True)):
            one = found.isel(panel=number)
            band = {name: one[name].to_numpy() for name in ("lower90", "lower50", "median", "upper50", "upper90")}
            axis.patch.set_alpha(0)
            axis.set(xscale="log", yscale="log", xlim=(tokens[0], tokens[-1]), ylim=(1e-3, 12))
            drawing.plain_log(axis, "x", wording.count_text)
            drawing.plain_log(axis, "y", "{:g}".format)
            axis.fill_between(tokens, band["lower90"], band["upper90"], color=colors["outer"], linewidth=0)
            axis.fill_between(tokens, band["lower50"], band["upper50"], color=colors["inner"], linewidth=0)
            axis.fill_between(tokens, band["lower90"], band["upper90"], where=tokens >= high, facecolor="none",
                              edgecolor=colors["line"], hatch="///", linewidth=0, alpha=0.55)  # fmt: skip
            axis.plot(tokens, band["median"], color=colors["line"], linewidth=2.4)
            line = curves.published_qid("ouyang", SIZES[number], tokens, BITS)
            axis.plot(tokens, line, color=colors["ink"], linewidth=1.3, linestyle="--")
            axis.plot([low, high], [1.05e-3] * 2, color=colors["soft"], linewidth=5, solid_capstyle="butt")
            axis.axvline(ASKED, color=colors["soft"], linewidth=0.9, linestyle=":")
            at = int(np.argmin(np.abs(tokens - ASKED)))
            axis.plot(ASKED, band["median"][at], marker="o", markersize=7, color=colors["line"])
            axis.annotate(f"{band['median'][at]:.2g}", (ASKED, band["median"][at]), (-7, 7), ha="right",
                          textcoords="offset points", color=colors["ink"], fontweight="bold")  # fmt: skip
            axis.set_title(f"{wording.count_text(SIZES[number])} parameters, 4 bits", loc="left", color=colors["ink"],
                           fontweight="bold", fontsize=11)  # fmt: skip
            axis.set_xlabel("training tokens", color=colors["ink"])
            axis.tick_params(which="both", colors=colors["soft"], labelcolor=colors["ink"])
            for spine in axis.spines.values():
                spine.set_color(colors["soft"])
            middle = tokens.size // 3
            axis.annotate("published line", (tokens[middle], line[middle]), (-36, 42), textcoords="offset points",
                          ha="center", fontsize=9.5, color=colors["ink"],
                          arrowprops={"arrowstyle": "-", "color": colors["soft"], "linewidth": 0.8})  # fmt: skip
            for text, where, at_y, side in (
                ("tokens of the data", np.sqrt(low * high), 1.3e-3, "center"),
                ("100T", ASKED * 0.9, 8, "right"),
            ):  # fmt: skip
                axis.text(where, at_y, text, ha=side, va="bottom", fontsize=9.5, color=colors["ink"])
        canvas.axes[0].set_ylabel("loss added by quantization\n(nats per token)", color=colors["ink"])
        return drawing.rendered(canvas)[0]


def main() -> None:
    posterior = draws.read(str(bundled.data_dir() / draws.BUNDLED), brief=True)
    for name, colors in THEMES.items():
        files.write_aside(Path(__file__).with_name(f"headline-{name}.svg"),
                          lambda aside, colors=colors: aside.write_bytes(draw(posterior, colors)))  # fmt: skip


if __name__ == "__main__":
    main()
