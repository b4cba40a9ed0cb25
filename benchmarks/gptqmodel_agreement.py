"""Whole models quantized by GPTQModel's public pipeline and by ours: how far is QiD apart, and what does each cost?

Needs GPTQModel 7 besides bayesqid's `measure` extra; its own environment is best:

    OMP_NUM_THREADS=1 GPTQMODEL_CPU_WORKERS=2 PYTHONPATH=src python benchmarks/gptqmodel_agreement.py [--repeats 3]

GPTQModel quantizes checkpoints of the bundled ladder (load, quantize() on the same calibration rows, save). What it
saved is read by bayesqid and scored on the same text as what our GPTQ makes and saves with the same settings: damp
0.01, symmetric, true-sequential, no reordering; both have scales of float16. A line of JSON per cell holds both QiDs,
their difference, its standard error from the differences per document, and the spread (standard deviation) of our
QiD over `--draws` runs whose scales are off by a random millionth: a symmetric grid puts the weight of largest size,
if it is negative, half-way between two codes, so that noise in the last digit decides which one it gets, and
two right implementations differ. That is a property of one quantized model, which no amount of text averages out.

CPU seconds (user and system, all threads) are medians of `--repeats` rounds in which both take turns, each in a
process of its own that has done such a cell before. Theirs: quantize(); scoring the text's losses with the model
that it leaves; loading, saving and the unquantized model's pass stand apart. Ours: `one` is a run with this recipe
alone, `shared` a sixth of a run with all six; both hold loading, the unquantized model's pass and all scores. `theirs /
ours` compares with theirs plus one such pass (`one`) or a sixth of it (`shared`), since QiD needs it.
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
# GPTQModel writes to stdout, which is for the answer
ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import xarray as xr  # noqa: E402

from bayesqid import bundled  # noqa: E402
from bayesqid.measure import checkpoint, load, loss, plan, save, saved, together  # noqa: E402
from bayesqid.measure.parts import Found  # noqa: E402
from bayesqid.measure.quantizers import rtn  # noqa: E402
from bayesqid.measurements import ratio_se  # noqa: E402
from bayesqid.recipe import NONE, Recipe, parse  # noqa: E402

LADDER = bundled.models_dir() / "tiny"
MODELS = ("tiny-neox-25k/step1953", "tiny-neox-100k/step488", "tiny-neox-224k/step122", "tiny-neox-793k/step488",
          "tiny-llama-27k/step977", "tiny-llama-54k/step488", "tiny-opt-51k/step977")  # fmt: skip
RECIPES = tuple(f"gptq-w{bits}{group}" for group in ("", "-g32") for bits in (2, 3, 4))
SETTINGS = {"context": 256, "max_bytes": 128, "calibration_windows": 16}
WARM_UP = "tiny-llama-27k/step244"


def cpu(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work returns, and its CPU seconds in all threads and children."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = [resource.getrusage(kind) for kind in kinds]
    result = work()
    after = [resource.getrusage(kind) for kind in kinds]
    pairs = zip(before, after, strict=True)
    return result, sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in pairs)


def ready(source: Path, recipes: list[str]) -> together.Ready:
    """A loaded checkpoint with its text, as `bayesqid measure` has it."""
    facts = {"family": "tiny", "tokens": 1.0, "lr_phase": "unknown", "called": None}
    made = plan.make(str(source), recipes, "cpu", SETTINGS, facts, tokenizer=LADDER / "tokenizer")
    return checkpoint.prepare(made, made.checkpoints[0], source, {}, Found())


@torch.inference_mode()
def measured(source: Path, recipes: list[str], weights: dict, keep: bool = False) -> list[tuple[Any, Any]]:
    """Lanes and scores of recipes and of the unquantized model."""
    state = ready(source, recipes)
    return together.measure(state, [NONE, *map(parse, recipes)], weights, keep, lambda amount: None)


def ours(source: Path, recipes: list[str], folder: str | None, draw: int | None) -> dict[str, Any]:
    """Quantize and score by bayesqid; save into `folder`, or let scales be off by a millionth."""
    plain = rtn.grid
    noise = torch.Generator().manual_seed(draw or 0)

    def shaken(weight: torch.Tensor, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
        scale, zero = plain(weight, recipe)
        return scale * (1 + 1e-6 * torch.randn(scale.shape, generator=noise)), zero

    rtn.grid = plain if draw is None else shaken
    try:
        found, seconds = cpu(lambda: measured(source, recipes, {}, folder is not None))
    finally:
        rtn.grid = plain
    for lane, _ in found if folder else ():
        if lane.kept is not None:
            save.save_gptq(Path(str(folder)) / str(lane.recipe), source, lane.recipe, lane.kept)
    return {"nats": {str(lane.recipe): scores.nats.tolist() for lane, scores in found}, "seconds": seconds}


def reads(source: Path, theirs: str, ours: str, recipe: str) -> dict[str, Any]:
    """Nats per document of what GPTQModel and what bayesqid saved."""
    state, name, nats = load.model(source, "float32", torch.device("cpu")), f"{recipe}-saved", {}
    for side, folder in (("theirs", theirs), ("ours", ours)):
        found = measured(source, [name], {name: saved.of(Path(folder), state)})
        scored = {str(lane.recipe): scores.nats.tolist() for lane, scores in found}
        nats |= {"none": scored["none"], side: scored[name]}
    return {"nats": nats}


def theirs(source: Path, recipe: Recipe, blocks: int, folder: str) -> dict[str, Any]:
    """Quantize and save a checkpoint by GPTQModel; CPU seconds of each step and of scoring the text."""
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    state = ready(source, [str(recipe)])
    rows = state.rows(0)
    config = QuantizeConfig(
        bits=recipe.bits, group_size=recipe.group_size, sym=True, desc_act=False, act_group_aware=False,
        damp_percent=0.01, mse=0.0, true_sequential=True, offload_to_disk=False,
    )  # fmt: skip
    examples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows]
    model, loading = cpu(lambda: GPTQModel.load(str(source), config, dtype=torch.float32, device="cpu"))
    plain = GPTQ.quantize
    # no setting of QuantizeConfig says it
    GPTQ.quantize = lambda self, blocksize=blocks: plain(self, blocksize=blocksize)
    try:
        _, quantizing = cpu(lambda: model.quantize(examples, batch_size=1, calibration_data_min_length=1))
    finally:
        GPTQ.quantize = plain
    _, scoring = cpu(lambda: score(model.model, state))
    _, saving = cpu(lambda: model.save(folder))
    _, plainly = cpu(lambda: score(state.model, state))
    log = (Path(folder) / "quant_log.csv").read_text()
    return {"seconds": {"load": loading, "quantize": quantizing, "score": scoring, "save": saving, "plain": plainly},
            "fell back": "fallback" in log}  # fmt: skip


@torch.no_grad()
def score(model: torch.nn.Module, state: together.Ready) -> float:
    """Loss of a model on the evaluation text: a forward pass and the cross-entropy of each token."""
    total = 0.0
    for batch in state.work:
        log = loss.log_probabilities(model(input_ids=batch.inputs, use_cache=False).logits, batch)
        total -= log.gather(1, batch.targets[:, None]).sum().item()
    return total


def serve() -> None:
    """Do what each line of stdin asks for, in one process, and answer in a line of stdout."""
    load.quiet()
    for line in sys.stdin:
        task = json.loads(line)
        source = Path(task.pop("source"))
        if "blocks" in task:
            answer = theirs(source, parse(task["recipe"]), task["blocks"], task["folder"])
        elif "theirs" in task:
            answer = reads(source, **task)
        else:
            answer = ours(source, task["recipes"], task.get("folder"), task.get("draw"))
        print(json.dumps(answer), file=ANSWER, flush=True)


class Worker:
    """One side in a process of its own: threads that one library leaves running are not counted for the other."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - open as long as the process
        self.process = subprocess.Popen([sys.executable, __file__, "--serve"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)  # fmt: skip

    def __call__(self, **task: object) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"a worker ended at {task}:\n{self.log.read()[-2000:]}")
        return json.loads(line)


def compare(found: dict[str, list[float]], tokens: list[int], spread: float) -> dict[str, float]:
    """QiDs of both, their difference, its standard error from the differences per document, and more."""
    count = xr.DataArray(np.array(tokens, dtype=float), dims="document")
    nats = {name: xr.DataArray(np.array(values), dims="document") for name, values in found.items()}
    sums = {"theirs": nats["theirs"] - nats["none"], "ours": nats["ours"] - nats["none"],
            "apart": nats["theirs"] - nats["ours"]}  # fmt: skip
    qid = {name: float(one.sum() / count.sum()) for name, one in sums.items()}
    se = {name: float(ratio_se(one, count)) for name, one in sums.items()}
    # both are draws of the noise
    whole = math.hypot(se["apart"], math.sqrt(2) * spread)

    def over(error: float) -> float:
        """The difference in units of an error, 0 where both are the same model."""
        return qid["apart"] / error if qid["apart"] else 0.0

    return {"QiD theirs": qid["theirs"], "QiD ours": qid["ours"], "SE of QiD": se["ours"], "difference": qid["apart"],
            "SE of difference": se["apart"], "spread": spread, "difference / SE": over(se["apart"]),
            "difference / (SE and spread)": over(whole), "difference / QiD": over(qid["ours"])}  # fmt: skip


def copy(name: str, place: Path) -> Path:
    source = place / name.replace("/", "-")
    shutil.copytree(LADDER / name, source)
    shutil.copytree(LADDER / "tokenizer", source, dirs_exist_ok=True)
    return source


def counted(source: Path) -> list[int]:
    """Scored tokens of each document."""
    state = ready(source, [])
    tokens = np.zeros(state.documents, dtype=int)
    for window in state.windows:
        tokens[window.document] += len(window.targets)
    return tokens.tolist()


def times(mine: Worker, other: Worker, source: Path, recipe: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Quantize by both in turns; the last checkpoint of GPTQModel lies in `folder`, with CPU seconds of each step."""
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        shutil.rmtree(folder, ignore_errors=True)
        made = other(source=str(source), recipe=recipe, blocks=128, folder=str(folder))
        steps = {f"theirs {step}": value for step, value in made["seconds"].items()}
        steps["ours one"] = mine(source=str(source), recipes=[recipe])["seconds"]
        for step, value in steps.items():
            seconds.setdefault(step, []).append(value)
    return {"fell back": made["fell back"], "CPU seconds": {name: statistics.median(v) for name, v in seconds.items()}}


def cells(mine: Worker, other: Worker, name: str, place: Path, said: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every recipe of a checkpoint."""
    source = copy(name, place)
    tokens = counted(source)
    total, folder = sum(tokens), place / f"{source.name}-ours"
    mine(source=str(source), recipes=list(RECIPES), folder=str(folder))
    shared = [mine(source=str(source), recipes=list(RECIPES))["seconds"] / len(RECIPES) for _ in range(said.repeats)]
    draws = [mine(source=str(source), recipes=list(RECIPES), draw=draw)["nats"] for draw in range(said.draws)]
    for recipe in RECIPES:
        spread = statistics.stdev(sum(draw[recipe]) / total for draw in draws)

        def read(made: Path, recipe: str = recipe, spread: float = spread) -> dict[str, float]:
            found = other(source=str(source), theirs=str(made), ours=str(folder / recipe), recipe=recipe)["nats"]
            return compare(found, tokens, spread)

        made = place / f"{source.name}-{recipe}"
        timed = times(mine, other, source, recipe, made, said.repeats)
        seconds = timed["CPU seconds"]
        seconds["ours shared"] = statistics.median(shared)
        both = seconds["theirs quantize"] + seconds["theirs score"]
        ratios = {kind: (both + seconds["theirs plain"] * share) / seconds[f"ours {kind}"]
                  for kind, share in (("one", 1), ("shared", 1 / len(RECIPES)))}  # fmt: skip
        yield {"model": name, "recipe": recipe, **read(made), **timed, "theirs / ours": ratios}


def summary(what: str, chosen: list[dict[str, Any]]) -> dict[str, Any]:
    """How far apart cells are, and what theirs cost over ours."""
    found: dict[str, Any] = {"cells": what, "count": len(chosen)}
    for unit in ("SE", "(SE and spread)", "QiD"):
        sizes = [abs(row[f"difference / {unit}"]) for row in chosen]
        found |= {f"median |difference| / {unit}": statistics.median(sizes), f"largest / {unit}": max(sizes)}
        if unit != "QiD":
            found[f"within 2 {unit}"] = sum(size <= 2 for size in sizes)
    timed = [row["theirs / ours"] for row in chosen if "theirs / ours" in row]
    kinds = ("one", "shared") if timed else ()
    return found | {f"median theirs / ours {kind}": statistics.median(row[kind] for row in timed) for kind in kinds}


def say(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=ANSWER, flush=True)
    return row


def main(said: argparse.Namespace) -> None:
    mine, other = Worker(), Worker()
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        warm = copy(WARM_UP, place)
        mine(source=str(warm), recipes=list(RECIPES))
        for recipe in RECIPES:
            other(source=str(warm), recipe=recipe, blocks=128, folder=str(place / recipe))
        rows = [say(row) for name in said.models for row in cells(mine, other, name, place, said)]
    for what, grouped in (("per channel", False), ("groups of 32", True)):
        say(summary(what, [row for row in rows if ("-g" in row["recipe"]) == grouped]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--draws", type=int, default=4)
    given = parser.parse_args()
    if given.serve:
        serve()
    else:
        main(given)
