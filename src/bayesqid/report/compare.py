"""Two posteriors side by side as a report: what differs in making and data, what it does to answers and parameters."""

import shlex
from pathlib import Path

import numpy as np

from bayesqid.answers import wording
from bayesqid.answers.draws import Posterior
from bayesqid.report import asked, beside, beside_figures, beside_tables, pages, words
from bayesqid.report.beside import Side
from bayesqid.report.blocks import Code, Items, Section, Text, number, share
from bayesqid.report.tables import COUNTED

GRAVEST = ("checks failed", "not identified", "extrapolation", "ok")


def write(
    a: Posterior, b: Posterior, directory: Path, tokens: float | None = None, family: str | None = None,
    band: str = "new",
) -> Path:  # fmt: skip
    """Write index.html, report.md, figures/ and data/ of two posteriors side by side; returns index.html.

    A stands first: differences are B - A, ratios B / A. Both answer the same targets, the default sizes and bits at
    `tokens` (1e14); of a family that only one knows, the other projects a new one. `BadInput` where neither knows it,
    or if the folder cannot be written.
    """
    left, right = beside.sides(a, b, tokens, family, band)
    rows = beside.answers(left, right)
    content = sections(left, right, rows, family)
    return pages.save(heading(left, right, rows) | {"sections": content}, directory)


def sections(left: Side, right: Side, rows: list[dict], family: str | None = None) -> tuple[Section, ...]:
    """Everything below the verdict, in the order in which it is read; `rows`: `beside.answers`."""
    counts = sorted({row["tokens"] for row in rows})
    terms = beside.parameters(left, right)
    targets = asked.panels(left.projection)
    return (
        Section("answer", "The same targets answered by both", (
            beside_tables.answers(rows), Text((independence(left, right),)), beside_tables.families(left, right))),
        Section("curves", "QiD against training tokens",
                (beside_figures.fan(left, right, targets, family, counts),)),
        Section("differences", "What differs in their making", (beside_tables.facts(left, right),)),
        Section("data", "What differs in their data",
                (beside_tables.cells(left, right), Items(tuple(data_words(left, right))))),
        Section("parameters", "Parameters", (
            beside_figures.forest(terms), beside_tables.parameters(terms), beside_tables.effects(left, right))),
        Section("checks", "Checks", (beside_tables.checks(left, right),)),
        Section("reproduce", "How to reproduce", (
            Code(commands(left, right, family)),
            Items(tuple(f"SHA-256 of {side.name}: {side.posterior.sha256}." for side in (left, right))))),
    )  # fmt: skip


def heading(left: Side, right: Side, rows: list[dict]) -> dict:
    """What stands above the sections: alerts of both, the graver verdict, and the difference in words."""
    verdicts = {side.name: side.projection.attrs["verdict"] for side in (left, right)}
    said = [f"{name}: {wording.VERDICTS[verdict]}." for name, verdict in verdicts.items()]
    if len(set(verdicts.values())) == 1:
        said = [f"Both: {wording.VERDICTS[verdicts['A']]}."]
    return {
        "title": f"Two posteriors: A is {left.file}, B is {right.file}",
        "verdict": min(verdicts.values(), key=GRAVEST.index),
        "verdict_sentence": " ".join([moved(rows), *said]),
        "alerts": [f"{side.name}: {alert}" for side in (left, right)
                   for alert in words.alerts(side.posterior, side.projection)],
        "summary": summary(left, right),
    }  # fmt: skip


def moved(rows: list[dict]) -> str:
    """How B's medians and intervals stand to A's, over the targets that neither calls destroyed."""
    alive = [row for row in rows if row["ratio"] is not None]
    if not alive:
        return "No median can be compared: at every target at least one of the two says that the loss is destroyed."
    of = f"{len(alive)} targets"
    if len(alive) < len(rows):
        of = f"{len(alive)} of {len(rows)} targets (at the others at least one says that the loss is destroyed)"
    clear = sum(abs(np.log(row["ratio"])) > row["noise"] for row in alive)
    text = [f"B's medians are {extent([row['ratio'] for row in alive])} times A's at {of}."]
    if all(row["difference"] == 0 for row in alive):
        text = [f"A's and B's medians are the same at {of}."]
    elif clear == 0:
        text.append("No difference is beyond twice its Monte Carlo error.")
    else:
        text.append(f"At {'all' if clear == len(alive) else clear} of these the difference is beyond twice its Monte "
                    "Carlo error.")  # fmt: skip
    text.append(f"The 50 % equal-tailed intervals overlap at {overlaps(alive, 50)}, the 90 % ones at "
                f"{overlaps(alive, 90)}.")  # fmt: skip
    widths = [row["width_ratio"] for row in alive if row["width_ratio"] is not None]
    if widths:
        text.append(f"B's 90 % intervals of ln QiD are {extent(widths)} times as wide as A's.")
    return " ".join(text)


def extent(values: list[float]) -> str:
    """Smallest to largest of some ratios, or the one that all share when shown."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def overlaps(rows: list[dict], mass: int) -> str:
    """At how many of the targets intervals overlap."""
    count = sum(row[f"overlap{mass}"] for row in rows)
    return f"all {count}" if count == len(rows) else "none" if count == 0 else f"{count} of them"


def summary(left: Side, right: Side) -> str:
    """One paragraph: what was fitted on each side, what they share, what was asked."""
    parts = [
        f"{side.name} is the law {side.projection.attrs['law']} ({side.projection.attrs['model']} model) fitted to "
        f"{side.posterior.cells.sizes['cell']:,} cells of "
        f"{counted(len(side.posterior.families), 'family', 'families')}."
        for side in (left, right)
    ]  # fmt: skip
    total = beside.cells(left, right)[-1]
    differ = [row["fact"] for row in beside.facts(left, right) if not row["same"] and row["fact"] in TOLD]
    differ += ["data"] if total["only_a"] or total["only_b"] or total["changed"] else []
    parts.append(f"They differ in {words.listed(differ)}." if differ
                 else f"{words.sentence(words.listed([*TOLD, 'data']))[:-1]} are the same.")  # fmt: skip
    parts.append(shared_words(total))
    attrs, tokens = left.projection.attrs, sorted(set(left.projection["tokens"].values.tolist()))
    parts.append(f"Both answer for {left.projection.sizes['target']} targets at "
                 f"{words.listed([COUNTED(count) for count in tokens])} tokens; band “{attrs['band']}”: "
                 f"{words.BANDS[attrs['band']]}.")  # fmt: skip
    of = {side.name: str(side.projection["family"].values[0]) for side in (left, right)}
    for name, other in (("A", "B"), ("B", "A")):
        if of[name] == "new" != of[other]:
            parts.append(f"{name} does not know the family {of[other]}: its answer is that of a new family.")
    return " ".join(parts)


# facts that are worth a word where they differ
TOLD = ("law", "drivers", "further assumptions", "model", "priors", "engine", "seed", "versions")


def counted(count: int, one: str, many: str) -> str:
    """1 family, 2 families."""
    return f"{count:,} {one if count == 1 else many}"


def shared_words(total: dict) -> str:
    """How many cells both rest on."""
    changed = f", {total['changed']:,} in both with another QiD" if total["changed"] else ""
    return (f"{counted(total['shared'], 'cell stands', 'cells stand')} in both{changed}, {total['only_a']:,} only in A "
            f"and {total['only_b']:,} only in B.")  # fmt: skip


def independence(left: Side, right: Side) -> str:
    """Why no probability that one is above the other is given."""
    total = beside.cells(left, right)[-1]
    both = total["shared"] + total["changed"]
    if both:
        of = " and ".join(f"{share(both / total[f'{side}_cells'])} of {side.upper()}'s cells" for side in "ab")
        why = f"{of} stand in the other too, so the two are not independent"
    else:
        why = "No cell stands in both, but both start from priors and a law, which they may share"
    return (
        "What is compared are medians and intervals of two distributions for the same target. Overlapping intervals do "
        f"not show that the two agree, nor separate ones that their data contradict each other. {why}: the probability "
        "that a draw of A exceeds a draw of B, reckoned as if draws were independent, would mislead and is not given."
    )


def data_words(left: Side, right: Side) -> list[str]:
    """Families and sources that only one has, in sentences."""
    out = []
    for side, other in ((left, right), (right, left)):
        own = [name for name in side.posterior.families if name not in other.posterior.families]
        of = [set(map(str, one.posterior.cells["source"].values)) for one in (side, other)]
        only = sorted(of[0] - of[1])
        if own:
            out.append(f"Only {side.name} knows {words.listed(own)}.")
        if only:
            more = f" and {len(only) - 5} more" if len(only) > 5 else ""
            out.append(f"Sources only in {side.name}: {', '.join(only[:5])}{more}.")
    return out or ["Both have the same families and sources."]


def commands(left: Side, right: Side, family: str | None) -> tuple[str, ...]:
    """The commands that made the two files, as far as they are recorded, and this page."""
    fits = [str(side.posterior.tree.attrs["command"]) for side in (left, right)
            if side.posterior.tree.attrs.get("command")]  # fmt: skip
    tokens = f"{float(left.projection['tokens'].max()):.12g}".replace("e+", "e")
    band = left.projection.attrs["band"]
    asked_for = [f"--tokens {tokens}", f"--family {shlex.quote(family)}" if family else "",
                 f"--band {band}" if band != "new" else ""]  # fmt: skip
    page = ["bayesqid report", shlex.quote(left.file), shlex.quote(right.file), *filter(None, asked_for), "-o report"]
    return (*dict.fromkeys(fits), " ".join(page))
