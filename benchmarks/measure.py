"""What a sweep costs over plain evaluation: CPU seconds per cell over those of one forward pass of the same text.

    python benchmarks/measure.py sweep [--every 1] [--repeats 3] [--only SET]   # the ladder, 18 recipes
    python benchmarks/measure.py scaling [--figure FILE.svg]   # seconds and memory by recipes and by parameters

`sweep` runs the command line in a process of its own, one thread, imports, hashing, calibration, quantization and
writing included, and interleaves it with plain passes: `model(input_ids).logits` and the cross-entropy of each token,
the same windows in the same batches. Cells are recipes and baseline of every checkpoint. Prints JSON lines; nothing
fails on time.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
RTN = ("rtn-w2", "rtn-w3", "rtn-w4", "rtn-w8", "rtn-w2-g32", "rtn-w3-g32", "rtn-w4-g32", "rtn-w3-asym", "rtn-w4-asym")
GPTQ = ("gptq-w2", "gptq-w3", "gptq-w4", "gptq-w2-g32", "gptq-w3-g32", "gptq-w4-g32", "gptq-w3-asym", "gptq-w4-asym",
        "gptq-w4-act")  # fmt: skip
SETS = {
    "9 RTN, 9 GPTQ sequential": RTN + GPTQ,
    "9 RTN, 9 GPTQ one-shot": RTN + tuple(f"{name}-oneshot" for name in GPTQ),
    "9 RTN": RTN,
}
NOBODY = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}


def cpu_of(command: list[str]) -> float:
    """CPU seconds, user and system, of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def a_suite(folder: Path, every: int) -> Path:
    """The bundled suite with each `every`th checkpoint of every model."""
    rows = json.loads((ROOT / "models" / "tiny" / "checkpoints.json").read_text())
    (folder / "checkpoints.json").write_text(json.dumps(rows[::every]))
    (folder / "tiny").symlink_to(ROOT / "models" / "tiny")
    text = (ROOT / "models" / "tiny.toml").read_text()
    text = text.replace('checkpoints = "tiny/checkpoints.json"', 'checkpoints = "checkpoints.json"')
    (folder / "some.toml").write_text(text)
    return folder / "some.toml"


def plain(suite: Path) -> tuple[float, int]:
    """CPU seconds of one forward pass over the evaluation text, summed over the suite's checkpoints; their number."""
    import torch

    from bayesqid.measure import checkpoint as one
    from bayesqid.measure import load, plan
    from bayesqid.measure.parts import Found

    torch.set_num_threads(1)
    load.quiet()
    made, total = plan.make(str(suite), ["rtn-w4"], "cpu", {}, NOBODY), 0.0
    with torch.inference_mode():
        for checkpoint in made.checkpoints:
            ready = one.prepare(made, checkpoint, load.folder(checkpoint.hub, checkpoint.revision), {}, Found())
            start = time.process_time()
            for batch in ready.work:
                logits = ready.model(input_ids=batch.inputs, use_cache=False).logits[batch.scored]
                torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
            total += time.process_time() - start
    return total, len(made.checkpoints)


def sweep(sets: list[str], every: int, repeats: int) -> None:
    ratios: dict[str, list[float]] = {name: [] for name in sets}
    with tempfile.TemporaryDirectory() as place:
        suite = a_suite(Path(place), every)
        for repeat in range(repeats):
            for name in sets:
                recipes = SETS[name]
                floor, checkpoints = plain(suite)
                output = Path(place) / f"{repeat}-{len(ratios[name])}-{name.replace(' ', '')}.nc"
                spent = cpu_of([
                    sys.executable, "-m", "bayesqid", "measure", str(suite), "--recipes", ",".join(recipes),
                    "-o", str(output), "--jobs", "1",
                ])  # fmt: skip
                cells = checkpoints * (len(recipes) + 1)
                ratios[name].append(spent / cells / (floor / checkpoints))
                row = {"recipes": name, "cells": cells, "cpu_s": round(spent, 1), "plain_pass_s": round(floor, 2)}
                print(json.dumps(row | {"ratio": round(ratios[name][-1], 3)}), flush=True)
    for name, found in ratios.items():
        print(json.dumps({"recipes": name, "median_ratio": round(statistics.median(found), 3), "of": len(found)}))


def one_run(width: int, layers: int, recipes: list[str], documents: int) -> dict:
    """CPU seconds and peak resident MiB of measuring a random Llama-shaped model, in a process of its own."""
    script = f"""
import json, resource, time, torch
torch.set_num_threads(1)
from transformers import LlamaConfig, LlamaForCausalLM
from bayesqid.measure import blocks, layers, text, together
from bayesqid.recipe import NONE, parse
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size={width}, intermediate_size={4 * width},
    num_hidden_layers={layers}, num_attention_heads={width // 32}, max_position_embeddings=256)).eval()
generator = torch.Generator().manual_seed(1)
tokens = [torch.randint(0, 256, (129,), generator=generator).numpy() for _ in range({documents})]
rows = torch.randint(0, 256, (16, 256), generator=generator)
with torch.inference_mode():
    windows = text.windows(tokens, 256)
    linears = layers.linears(model)
    inside = [{{id(m) for m in block.modules()}} for block in layers.blocks(model)]
    by_block = [{{n: m for n, m in linears.items() if id(m) in members}} for members in inside]
    as_tuple = blocks.verify(model, torch.from_numpy(windows[0].inputs[None, :8]))
    ready = together.Ready(model, torch.device("cpu"), as_tuple, by_block, windows, lambda seed: rows, len(tokens))
    ready.lay_out()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, waiting = time.process_time(), [NONE] + [parse(name) for name in {recipes!r}]
    size = together.lanes_at_once(ready, waiting)
    while waiting:
        together.measure(ready, waiting[:size], {{}}, False, lambda amount: None)
        del waiting[:size]
    print(json.dumps(dict(cpu_s=time.process_time() - start, at_once=size,
        mib=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        parameters=sum(w.weight.numel() for w in linears.values()))))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(rows: list[dict], file: Path) -> None:
    """CPU seconds and memory over recipes, and over parameters, with the line through zero and the last point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10.5, 3.1), layout="constrained")
    recipes = [row for row in rows if row["by"] == "recipes"]
    parameters = [row for row in rows if row["by"] == "parameters"]
    panels = ((recipes, "recipes", "cpu_s", "recipes", "CPU seconds"),
              (recipes, "recipes", "mib", "recipes", "peak memory (MiB)"),
              (parameters, "parameters", "cpu_s", "parameters in linear layers", "CPU seconds"))  # fmt: skip
    for axis, (found, x, y, across, up) in zip(axes, panels, strict=True):
        axis.plot([row[x] for row in found], [row[y] for row in found], "o-", color="#1f5a85", markersize=4)
        axis.set(xlabel=across, ylabel=up)
        if x == "recipes":
            axis.set(xlim=(0, None), ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    last = recipes[-1]
    axes[0].plot([0, last["recipes"]], [0, last["cpu_s"]], "--", color="#999999", linewidth=1)
    axes[1].axvline(recipes[-1]["at_once"], linestyle="--", color="#999999", linewidth=1)
    axes[1].annotate("in work at once", (last["at_once"], 0), (4, 6), textcoords="offset points", color="#666666")
    axes[2].set(xscale="log", yscale="log")
    top = parameters[-1]
    axes[2].plot([row["parameters"] for row in parameters],
                 [top["cpu_s"] * row["parameters"] / top["parameters"] for row in parameters],
                 "--", color="#999999", linewidth=1)  # fmt: skip
    figure.savefig(file, metadata={"Date": None})


def scaling(figure: Path | None) -> None:
    rows = []
    many = [f"{name}{grid}{end}" for end in ("", "-s1", "-s2", "-s3", "-s4", "-s5") for grid in ("", "-g32", "-g64")
            for name in ("gptq-w2", "gptq-w3", "gptq-w4", "gptq-w8")]  # fmt: skip
    for count in (1, 2, 4, 9, 18, 36, 72):
        found = one_run(128, 4, many[:count], 192)
        rows.append({"by": "recipes", "recipes": count} | found)
        print(json.dumps(rows[-1]), flush=True)
    for width, layers in ((32, 2), (64, 4), (128, 4), (256, 6), (512, 8)):
        found = one_run(width, layers, ["rtn-w3", "rtn-w4", "gptq-w3", "gptq-w4"], 96)
        rows.append({"by": "parameters", "recipes": 4} | found)
        print(json.dumps(rows[-1]), flush=True)
    if figure:
        draw(rows, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["sweep", "scaling"], default="sweep")
    parser.add_argument("--every", type=int, default=1, help="measure each n-th checkpoint of the ladder only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="draw the curves into this SVG file")
    parser.add_argument("--only", action="append", choices=list(SETS), help="one set of recipes; may be repeated")
    given = parser.parse_args()
    if given.what == "sweep":
        sweep(given.only or list(SETS), given.every, given.repeats)
    else:
        scaling(given.figure)


if __name__ == "__main__":
    main()
