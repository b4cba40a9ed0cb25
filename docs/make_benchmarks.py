"""Write docs/benchmarks.md from what lies in benchmarks/results/; nothing is run.

python docs/make_benchmarks.py
"""

import ast
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS, RESULTS, PAGE = ROOT / "benchmarks", ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

This page is written by `make docs` from the files in `benchmarks/results/`, which the scripts in `benchmarks/` left;
nothing is run for it. `make bench` runs those that take minutes and need nothing but bayesqid; the others say in their
first lines what they take. Seconds are of one core of one machine, beside whatever else ran there: compare ratios.
"""
# results that were made by hand from what a script prints
MADE_BY = {"measure_scaling": "measure", "measure_sweep": "measure"}
Lines = list[dict]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, ["---"] * len(head), *rows])


def lines(path: Path) -> Lines:
    """The objects of a results file, one a line or one in all."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return [json.loads(text)]
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def sweep(found: Lines) -> str:
    """A sweep of recipes beside plain evaluation."""
    return table(("recipes", "cells", "CPU seconds", "one plain pass, s", "a cell costs of a pass"), [
        (line["recipes"], line["cells"], short(line["cpu_s"]), short(line["plain_pass_s"]), line["ratio"])
        for line in found if "cells" in line])  # fmt: skip


def scaling(found: Lines) -> str:
    """Seconds and memory as recipes or parameters grow."""
    return table(("grown", "recipes", "parameters", "CPU seconds", "MiB"), [
        (line["by"], line["recipes"], short(line["parameters"] / 1e6) + "M", short(line["cpu_s"]), round(line["mib"]))
        for line in found])  # fmt: skip


def own(found: Lines) -> str:
    """What one measured model adds to a run on the atlas."""
    engines = dict.fromkeys(line["engine"] for line in found)
    of = {name: [line for line in found if line["engine"] == name] for name in engines}
    return table(("engine", "pairs of runs", "atlas, CPU seconds", "with a model of one's own", "median ratio"), [
        (name, len(some), short(median(line["atlas"]["cpu"] for line in some)),
         short(median(line["both"]["cpu"] for line in some)), short(median(line["ratio"]["cpu"] for line in some)))
        for name, some in of.items()])  # fmt: skip


def gptq(found: Lines) -> str:
    """Our GPTQ beside GPTQModel's, on the same Hessians."""
    return table(("recipe", "layers", "error, ours / GPTQModel's", "worst layer off by", "weights that differ"), [
        (f"`{line['recipe']}`", line["layers"], f"{line['ours/gptqmodel']:.5f}", short(line["worst layer"]),
         f"{line['entries differing']:.2%}") for line in found])  # fmt: skip


def pipelines(found: Lines) -> str:
    """Whole models quantized by GPTQModel and by us."""
    return table(("recipes", "cells", "median difference / SE", "largest / SE", "within 2 SE", "their time / ours"), [
        (line["cells"], line["count"], short(line["median |difference| / SE"]), short(line["largest / SE"]),
         line["within 2 SE"], short(line["median theirs / ours one"]))
        for line in found if "count" in line])  # fmt: skip


def harness(found: Lines) -> str:
    """Our losses beside lm-evaluation-harness's."""
    return table(("cells", "largest difference of a document, relative", "of bits per byte"), [
        (line["cells"], short(line["largest"]), short(line["bits_per_byte_apart"]))
        for line in found if "cells" in line])  # fmt: skip


def formats(found: Lines) -> str:
    """Our number formats beside torchao's."""
    compared = [line for line in found if "differ" in line]
    return table(("formats compared", "values of each", "that differ, in all"), [
        (len(compared), f"{max(line['values'] for line in compared):,}",
         sum(line["differ"] for line in compared))])  # fmt: skip


def rounds_trip(found: Lines) -> str:
    """Checkpoints in GPTQ's format, read by others and by us."""
    by = dict.fromkeys(line["saved by"] for line in found if "saved by" in line)
    rows = []
    for name in by:
        some = [line for line in found if line.get("saved by") == name]
        apart = {reader: [line[reader] for line in some if reader in line] for reader in ("gptqmodel", "transformers")}
        rows.append((name, len(some), *(short(max((v for v in values if isinstance(v, float)), default=0.0))
                                        for values in apart.values()),
                     sum(isinstance(v, str) for values in apart.values() for v in values)))  # fmt: skip
    return table(("saved by", "checkpoints", "largest difference of a logit from GPTQModel's", "from transformers'",
                  "refused by one of them"), rows)  # fmt: skip


def charting(found: Lines) -> str:
    """What a loss landscape costs, in forward passes."""
    return table(("checkpoint", "recipes", "passes", "budget", "over budget", "passes to evaluate the same"), [
        (line["checkpoint"], line["recipes"], line["passes"]["everything"], line["budget_passes"], line["over_budget"],
         line["evaluating_passes"]) for line in found if "passes" in line])  # fmt: skip


def refits(found: Lines) -> str:
    """How many fits stand behind a page's tables, and how long each took."""
    kinds = {
        kind: [line for line in found if (line.get("config") or line.get("variant") or "") == kind]
        for kind in dict.fromkeys(line.get("config") or line.get("variant") or "" for line in found)
    }
    if len(kinds) > 12:
        kinds = {"all": found}
    return table(("set-up", "fits", "median seconds"), [
        (name.replace("|", ","), len(some), short(median(spent)) if (spent := [
            line["seconds"] for line in some if "seconds" in line]) else "-")
        for name, some in kinds.items()])  # fmt: skip


# stem of a results file -> its figures; a file without a row here is listed alone
FIGURES: dict[str, Callable[[Lines], str]] = {
    "measure_sweep": sweep, "measure_scaling": scaling, "own": own, "gptq_reference": gptq,
    "gptqmodel_agreement": pipelines, "lm_eval_agreement": harness, "formats_reference": formats,
    "gptq_format": rounds_trip, "landscape": charting, "calibration": refits, "recovery": refits, "level": refits,
    "next": refits, "honesty": refits, "landscape_contest": refits,
}  # fmt: skip


def question(script: Path) -> str:
    """First paragraph of what a script says of itself, on one line."""
    told = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return " ".join(told.partition("\n\n")[0].split()).replace("|", "\\|")


def apart() -> set[str]:
    """Scripts that `make bench` leaves out."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"^(?:HOURS|NOT_HERE) := (.*)$", text, re.MULTILINE)
    return {name for names in found for name in names.split()}


def script_of(path: Path) -> str:
    """The script that left a results file: of its name, or of a beginning of it."""
    parts = MADE_BY.get(path.stem, path.stem).split("_")
    names = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if (BENCHMARKS / f"{name}.py").is_file()), "")


def pages_about(name: str) -> str:
    """Pages that name a script."""
    found = [page for page in sorted((ROOT / "docs").glob("*.md"))
             if page != PAGE and f"benchmarks/{name}.py" in page.read_text(encoding="utf-8")]  # fmt: skip
    return ", ".join(f"[{page.stem}]({page.name})" for page in found) or "-"


def page() -> str:
    """The whole page."""
    stored = sorted(path for path in RESULTS.iterdir() if path.suffix in (".json", ".jsonl"))
    scripts = [path for path in sorted(BENCHMARKS.glob("*.py")) if "if __name__" in path.read_text(encoding="utf-8")]
    left = {path.stem: [one.name for one in stored if script_of(one) == path.stem] for path in scripts}
    rows = [(f"`{path.stem}`", question(path), "by name" if path.stem in apart() else "`make bench`",
             ", ".join(f"`{name}`" for name in left[path.stem]) or "-", pages_about(path.stem))
            for path in scripts]  # fmt: skip
    parts = [HEAD, "## The scripts", table(("script", "what it asks", "run", "left behind", "told on"), rows),
             "## What they found"]  # fmt: skip
    for path in stored:
        if path.stem in FIGURES:
            figures = FIGURES[path.stem]
            told = (figures.__doc__ or "").strip()
            parts += [f"### {path.stem}", f"{told} From `benchmarks/results/{path.name}`, by "
                      f"`python benchmarks/{script_of(path)}.py`.", figures(lines(path))]  # fmt: skip
    others = [path for path in stored if path.stem not in FIGURES]
    if others:
        parts += ["### Others", "Stored, with figures on the pages above: "
                  + ", ".join(f"`{path.name}`" for path in others) + "."]  # fmt: skip
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
