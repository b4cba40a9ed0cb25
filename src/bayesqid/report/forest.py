"""The forest plot: exponents by family beside their priors and the published values."""

from matplotlib.lines import Line2D

from bayesqid.answers.draws import Posterior
from bayesqid.report import drawing
from bayesqid.report.blocks import Figure, rounded
from bayesqid.report.drawing import BLUE, GREY, ORANGE, SKY

TITLES = {"alpha": "alpha: parameters", "beta": "beta: tokens", "gamma": "gamma: bits, at 3 bits"}
MARKS = {"ouyang": ("D", ORANGE, "Ouyang et al., published"), "kumar": ("s", SKY, "Kumar et al., published")}
PRIOR = "#dcdcdc"


def forest(posterior: Posterior, table: list[dict], printed: list[dict]) -> Figure:
    """Population and family values of alpha, beta and gamma with their priors and the published ones."""
    terms = [name for name in TITLES if name in posterior.law.term_names]
    rows = [row for row in table if row["term"] in terms and row["scope"] != "spread between families"]
    lines = [{"law": mark["law"], "term": term, "value": mark[term], "citation": mark["citation"]}
             for mark in printed if mark["law"] in MARKS for term in terms if mark[term] is not None]  # fmt: skip
    labels = list(dict.fromkeys(row["family"] or row["scope"] for row in rows))
    place = {label: -i for i, label in enumerate(labels)}
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 0.33 * len(labels) + 1.75)
        axes = canvas.subplots(1, len(terms), sharey=True, squeeze=False)[0]
        for axis, term in zip(axes, terms, strict=True):
            _panel(axis, term, [row for row in rows if row["term"] == term], lines, place)
        axes[0].set_yticks([place[label] for label in labels], labels)
        canvas.legend(handles=_legend(), loc="outside lower center", ncols=3)
        svg, png = drawing.rendered(canvas)
    words = "; ".join(f"{term}: " + ", ".join(f"{row['family'] or row['scope']} {_value(row)}" for row in rows
                                              if row["term"] == term) for term in terms)  # fmt: skip
    caption = (
        "Exponents of every family and of the population. Dot: posterior mean; thick and thin bar: 50 % and 90 % "
        "equal-tailed interval; grey band: 90 % equal-tailed interval of the prior. To the right the contraction from "
        "prior to posterior; “prior” and a hollow dot: below 0.2, the data did not speak and the value is the prior's. "
        "Dashed: published point estimates."
    )
    return Figure("forest", "Exponents by family", f"Forest plot of posterior means, {words}.", caption, svg, png,
                  rounded(rows), rounded(lines))  # fmt: skip


def _value(row: dict) -> str:
    return f"{row['mean']:.2f}" + ("" if row["informed"] == "data" else f" ({row['informed']})")


def _panel(axis, term: str, rows: list[dict], lines: list[dict], place: dict[str, int]) -> None:
    for row in rows:
        y, told = place[row["family"] or row["scope"]], row["informed"] == "data"
        color = BLUE if told else GREY
        axis.plot([row["prior_lower90"], row["prior_upper90"]], [y, y], color=PRIOR, linewidth=7,
                  solid_capstyle="butt", zorder=1)  # fmt: skip
        axis.plot([row["lower90"], row["upper90"]], [y, y], color=color, linewidth=1.2, zorder=3)
        axis.plot([row["lower50"], row["upper50"]], [y, y], color=color, linewidth=3.2, zorder=3)
        axis.plot(row["mean"], y, marker="o", markersize=6, color=color, zorder=4,
                  markerfacecolor=color if told else "white")  # fmt: skip
        says = f"{row['contraction']:.2f}" if told else row["informed"]
        axis.annotate(says, (1, y), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=7.5, color=color)  # fmt: skip
    for line in (line for line in lines if line["term"] == term):
        shape, color, _ = MARKS[line["law"]]
        axis.axvline(line["value"], color=color, linewidth=1.1, linestyle="--", zorder=2)
        axis.plot(line["value"], 0.75, marker=shape, color=color, markeredgecolor="#333333", markeredgewidth=0.5,
                  markersize=6, clip_on=False)  # fmt: skip
    axis.set_title(TITLES[term], loc="left", fontweight="bold")
    axis.set_xlabel(f"exponent {term}")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-len(place) + 0.4, 0.9)


def _legend() -> list[Line2D]:
    return [
        Line2D([], [], color=PRIOR, linewidth=7, label="prior, 90 % interval"),
        Line2D([], [], color=BLUE, marker="o", linewidth=1.2, label="posterior mean, 50 % and 90 % interval"),
        Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linewidth=1.2,
               label="the same, contraction below 0.2"),
        *(Line2D([], [], color=color, marker=shape, linestyle="--", label=label)
          for shape, color, label in MARKS.values()),
    ]  # fmt: skip
