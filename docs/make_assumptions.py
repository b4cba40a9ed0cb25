"""Draw docs/headline.svg: the answer at 100T tokens under every assumption, from benchmarks/results/headline.jsonl.

python docs/make_assumptions.py      seconds; nothing is sampled
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))
import headline  # noqa: E402

from bayesqid import files  # noqa: E402
from bayesqid.answers import asking, curves, wording  # noqa: E402
from bayesqid.report import drawing  # noqa: E402

BITS = 4
COLORS = {"atlas": drawing.BLUE, "atlas + ladder": drawing.ORANGE}


def named_rows(lines: list[dict]) -> list[tuple[str, dict, str]]:
    """(what it says, fit, phase) from the top down: laws, then priors, then the phase."""
    out = [(line["law"], line, "annealed") for line in lines if not line["prior"]]
    out += [(line["prior"], line, "annealed") for line in lines if line["prior"]]
    out += [("constant rate, not annealed", line, "constant") for line in lines
            if (line["law"], line["prior"]) == ("boxcox", "")]  # fmt: skip
    return out


def draw(lines: list[dict]) -> bytes:
    """A panel per size: median, 50 and 90 % interval of QiD under each assumption; the published law dashed."""
    rows = named_rows(lines)
    names = list(dict.fromkeys(name for name, _, _ in rows))
    with drawing.style():
        canvas = drawing.canvas_of(10, 0.42 * len(names) + 1.5)
        for axis, params in zip(canvas.subplots(1, len(asking.DEFAULT_PARAMS), sharey=True),
                                asking.DEFAULT_PARAMS, strict=True):  # fmt: skip
            for name, line, phase in rows:
                q, color = headline.value(line, phase, params, BITS), COLORS[line["data"]]
                y = names.index(name) + (0.16 if line["data"] == "atlas + ladder" else -0.16)
                axis.plot([q[0], q[4]], [y, y], color=color, linewidth=1.2)
                axis.plot([q[1], q[3]], [y, y], color=color, linewidth=4, solid_capstyle="butt")
                axis.plot(q[2], y, "o", color="white", markeredgecolor=color, markersize=4.5)
            published = float(curves.published_qid("ouyang", params, np.array([headline.TOKENS]), BITS)[0])
            axis.axvline(published, color=drawing.DARK, linestyle="--", linewidth=1)
            axis.set(xscale="log", xlim=(4e-3, 9), ylim=(len(names) - 0.5, -0.6))
            drawing.plain_log(axis, "x", "{:g}".format)
            axis.set_yticks(range(len(names)), names)
            axis.set_title(f"{wording.count_text(params)} parameters", loc="left", fontweight="bold")
            axis.set_xlabel("QiD, nats per token")
        for data, color in COLORS.items():
            axis.plot([], [], color=color, linewidth=4, label=data)
        axis.plot([], [], color=drawing.DARK, linestyle="--", linewidth=1, label="published law, as printed")
        canvas.legend(loc="outside upper center", ncols=3)
        return drawing.rendered(canvas)[0]


def main() -> None:
    picture = draw(headline.found())
    files.write_aside(HERE / "headline.svg", lambda aside: aside.write_bytes(picture))


if __name__ == "__main__":
    main()
