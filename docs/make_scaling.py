"""Write the tables of docs/scaling.md: what the Pythia sweep takes on 1, 8 and 64 GPUs, worked out on paper.

    python docs/make_scaling.py

Two figures are measured: a cell costs 1.34 passes of its text (benchmarks/results/measure_sweep.jsonl), and the
checkpoints are those of models/pythia.toml. All others are assumptions, named in `ASSUMED`.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
START, END = "<!-- worked out by docs/make_scaling.py -->", "<!-- end -->"

SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
# name -> (value, what it is)
ASSUMED = {
    "bytes_per_parameter": (2, "bytes of a published weight (float16)"),
    "bytes_per_token": (4, "bytes of text behind a token"),
    "download": (0.5e9, "bytes per second that a machine gets from the hub, whatever its GPUs"),
    "gpus_per_machine": (8, "GPUs of a machine"),
    "float32": (20e12, "operations per second of a GPU in float32, as used (an H100's peak without TF32 is 67e12)"),
    "bfloat16": (300e12, "the same in bfloat16 (peak 990e12)"),
    "host": (1e9 / 3, "bytes per second of weights that a worker hashes twice and loads"),
    "fixed": (15, "seconds of a checkpoint that do not depend on its size: asking the hub, kernels, saving"),
}
A = {name: value for name, (value, _) in ASSUMED.items()}


def checkpoints() -> list[int]:
    """Parameters of every checkpoint of the ten sizes that the suite lists and does not leave out."""
    from bayesqid import suite

    wanted = {f"pythia-{size}" for size in SIZES}
    return [one.n_params for one in suite.load("pythia").checkpoints if one.model in wanted and not one.excluded]


def ratio() -> float:
    """Measured cost of a cell over one pass of its text, half of the recipes GPTQ."""
    rows = [json.loads(line) for line in (ROOT / "benchmarks/results/measure_sweep.jsonl").read_text().splitlines()]
    return next(row["median_ratio"] for row in rows if "median_ratio" in row and "GPTQ sequential" in row["recipes"])


def passes() -> tuple[float, int]:
    """Passes over the evaluation text that a checkpoint takes, and the text's tokens.

    Where the ratio was measured, calibration text was a sixth of the evaluation text; here it is more, and a GPTQ
    recipe takes it through the model twice.
    """
    from bayesqid import suite
    from bayesqid.measure import plan

    nobody = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}
    made = plan.make("pythia", None, "cpu", {}, nobody)
    text, calibration = (sum(len(one.text.encode()) for one in some) for some in (made.documents, made.calibration))
    recipes = suite.load("pythia").recipes
    more = 2 * (calibration / text - 1 / 6) * sum(name.startswith("gptq") for name in recipes)
    return ratio() * (len(recipes) + 1) + more, round(text / A["bytes_per_token"])


def parts(sizes: Iterable[int], dtype: str) -> dict[str, float]:
    """Seconds of one worker in all, by what takes them; of the download, those of one machine."""
    sizes = list(sizes)
    each, tokens = passes()
    total = sum(sizes)
    return {
        "download": total * A["bytes_per_parameter"] / A["download"],
        "GPU": 2 * total * tokens * each / A[dtype],
        "hashing and loading": total * A["bytes_per_parameter"] / A["host"],
        "fixed": len(sizes) * A["fixed"],
    }


def hours(sizes: list[int], gpus: int, dtype: str) -> tuple[float, dict[str, float], str]:
    """Hours of a sweep, hours of each part spread over GPUs or machines, and what limits it.

    A worker downloads, loads and measures one checkpoint after another, so its seconds add up; but all workers of a
    machine together cannot take less than the machine's download. Nor can the sweep be shorter than its biggest task.
    """
    machines = math.ceil(gpus / A["gpus_per_machine"])
    whole = {name: seconds / 3600 for name, seconds in parts(sizes, dtype).items()}
    spread = {name: value / (machines if name == "download" else gpus) for name, value in whole.items()}
    link, biggest = spread["download"], sum(parts([max(sizes)], dtype).values()) / 3600
    busy = sum(value / gpus for value in whole.values())
    found = max(busy, link, biggest)
    if found == link:
        limit = "download"
    elif found == biggest:
        limit = "the biggest checkpoint"
    else:
        limit = max((name for name in spread if name != "download"), key=lambda name: spread[name])
        limit = "download" if whole["download"] / gpus > spread[limit] else limit
    return found, spread, limit


def tables() -> str:
    """Both tables as Markdown."""
    sizes = checkpoints()
    each, tokens = passes()
    lines = [f"{len(sizes):,} checkpoints of ten sizes, {sum(sizes) * A['bytes_per_parameter'] / 1e12:.1f} TB; "
             f"{tokens:,} tokens of evaluation text; seven cells each, {each:.1f} passes of that text.", "",
             "| assumed | value |", "|---|---|"]  # fmt: skip
    lines += [f"| {what} | {value:.3g} |" for value, what in ASSUMED.values()]
    heads = ("GPUs", "dtype", "download, h", "GPU, h", "hashing and loading, h", "fixed, h", "sweep, h", "limited by")
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for dtype in ("float32", "bfloat16"):
        for gpus in (1, 8, 64):
            found, spread, limit = hours(sizes, gpus, dtype)
            row = " | ".join(f"{spread[name]:.2g}" for name in ("download", "GPU", "hashing and loading", "fixed"))
            lines.append(f"| {gpus} | {dtype} | {row} | {found:.2g} | {limit} |")
    return "\n".join(lines)


def page() -> str:
    """The page with its tables worked out again."""
    before, rest = PAGE.read_text().split(START)
    return f"{before}{START}\n{tables()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page())
