"""Train and measure the controlled ladder: N and D, and learning-rate phase at equal D, varied apart.

python models/ladder/train.py                                  every CPU run that is not finished
python models/ladder/train.py --only ladder-neox-25k           one run (repeat --only for more)
python models/ladder/train.py --device cuda --scale gpu --out $OUT --only ladder-neox-3m

A run is trained and measured as one unit. Only its result comes back, OUT/RUN.json; its checkpoints are forgotten.
"""

import argparse
import copy
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import xarray as xr

from bayesqid import cells, files, measurements
from bayesqid.measure import load, plan
from bayesqid.measure import run as measuring
from bayesqid.suite import Checkpoint

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import runs  # noqa: E402
from results import as_columns, by_checkpoint, one_line_each  # noqa: E402
from runs import RUNS, Run, corpus, shapes, tiny  # noqa: E402
from stream import Windows, training_text  # noqa: E402

SUITE = "ladder"
RECIPES = (
    *(f"rtn-w{bits}" for bits in (2, 3, 4, 5)), "rtn-w3-asym", "rtn-mxint4",
    *(f"rtn-w{bits}-g32" for bits in (2, 3, 4)),
    *(f"gptq-w{bits}" for bits in (2, 3, 4)), "gptq-w3-g32",
    # three draws of the calibration text at one width tell how far GPTQ's QiD depends on the draw
    "gptq-w3-s1", "gptq-w3-s2",
    "hqq-w3-g32", "hqq-w4-g32",
)  # fmt: skip
# steps over which the training loss is averaged
CURVE = 50
CEILING_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass
class Trainer:
    """A model in training, the text it reads, and what it has cost so far."""

    run: Run
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    windows: Windows
    device: torch.device
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, run: Run, windows: Windows, device: torch.device) -> "Trainer":
        """Return a run at its start; on a GPU in bfloat16 (weights float32) and compiled."""
        model = run.build().to(device)
        return cls(run, model, tiny.optimizer_for(model), windows, device)

    def loss(self, step: int) -> torch.Tensor:
        """Return the loss of a step's windows."""
        batch = self.windows.batch(step, runs.BATCH[self.run.scale])
        if self.device.type != "cuda":
            return tiny.loss_of(self.model, batch)
        with torch.autocast("cuda", torch.bfloat16):
            return torch.compile(tiny.loss_of)(self.model, batch)

    def warm(self) -> float:
        """Compile forward and backward and train nothing; return the seconds it took."""
        began = time.perf_counter()
        self.loss(0).backward()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    def advance(self, steps: range, start: int | None = None) -> list[list[float]]:
        """Train through `steps`; return [step, mean training loss up to it] every `CURVE` steps and at the end."""
        began = time.perf_counter()
        curve, total, since = [], torch.zeros((), device=self.device), steps.start
        for step in steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.run.peak_lr * runs.lr_fraction(self.run, step, start)
            loss = self.loss(step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            total += loss.detach()
            if (step + 1) % CURVE == 0 or step + 1 == steps.stop:
                mean = total.item() / (step + 1 - since)
                if not math.isfinite(mean):
                    raise SystemExit(f"{self.run.name}: the loss is no number at step {step + 1}: lower the peak rate")
                curve.append([step + 1, round(mean, 4)])
                total, since = torch.zeros_like(total), step + 1
        self.steps += len(steps)
        self.seconds += time.perf_counter() - began
        return curve

    def cool(self, save: tiny.Save) -> list[list[float]]:
        """Train a branch to its end, leaving it in the model; `back` of the state before undoes it."""
        return self.advance(range(save.start, save.step), save.start)

    def state(self) -> tuple[dict, dict]:
        """Return a copy of weights and optimizer state."""
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def back(self, state: tuple[dict, dict]) -> None:
        """Put weights and optimizer back to a state."""
        self.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])


def trained(trainer: Trainer) -> Iterator[tuple[tiny.Save, list[list[float]]]]:
    """Train a run, yielding at every checkpoint with the curve of the stretch before it."""
    todo = runs.saves(trainer.run)
    stops = sorted({save.start for save in todo})
    for before, start in zip([0, *stops[:-1]], stops, strict=True):
        curve = trainer.advance(range(before, start))
        for save in (save for save in todo if save.start == start):
            if save.step == start:
                yield save, curve
            else:
                state = trainer.state()
                yield save, trainer.cool(save)
                trainer.back(state)


def written(trainer: Trainer, folder: Path, heldout: torch.Tensor) -> tuple[list[Checkpoint], dict]:
    """Train a run and write its checkpoints into a folder; return them and the log."""
    run, found, log = trainer.run, [], {}
    total, outside = shapes.parameter_counts(trainer.model)
    for save, curve in trained(trainer):
        digest = tiny.write_checkpoint(trainer.model, folder / save.revision)
        stored = copy.deepcopy(trainer.model).half().float()
        nats = tiny.heldout_loss(stored, heldout.to(trainer.device))
        tokens = save.step * run.tokens_per_step
        log[save.revision] = {
            "step": save.step,
            "train_tokens": tokens,
            "epochs": round(tokens / trainer.windows.unique_tokens, 5),
            "heldout_nats": round(nats, 5),
            "file_sha256": digest,
            "train_curve": curve,
        }
        found.append(
            Checkpoint(
                family=run.family, model=run.name, hub=str(folder / save.revision), revision=save.revision,
                n_params=total, n_params_nonembedding=outside, train_tokens=tokens,
                lr_phase=runs.phase(run, save),
                lr_fraction=runs.lr_fraction(run, save.step, None if save.step == save.start else save.start),
                vocab_size=shapes.VOCAB, seed=run.seed, sha256=digest,
            )
        )  # fmt: skip
        print(f"{run.name} {save.revision}: {tokens / 1e6:.2f}M tokens, held out {nats:.4f} nats", flush=True)
    return found, log


def measured(checkpoints: list[Checkpoint], folder: Path, device: str, recipes: tuple[str, ...]) -> xr.Dataset:
    """Measure checkpoints by the tiny ladder's protocol on its text; a cell that fails ends the run."""
    todo = replace(plan.make("tiny", list(recipes), device, {}, {}), suite=SUITE, checkpoints=tuple(checkpoints))
    data = measuring.run(todo, folder / "measurements.nc", jobs=1)
    failed = measurements.failures(data)
    if failed:
        raise SystemExit(f"{len(failed)} cells failed, among them {next(iter(failed.items()))}")
    return data


def ceiling(device: torch.device) -> float:
    """Return the floating-point operations per second of one large matrix product: bfloat16 on a GPU, else float32."""
    side = CEILING_SIDE[device.type]
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.randn(side, side, device=device, dtype=torch.float32).to(kind)

    def seconds() -> float:
        _wait(device)
        began = time.perf_counter()
        for _ in range(10):
            matrix @ matrix
        _wait(device)
        return (time.perf_counter() - began) / 10

    return 2 * side**3 / min(seconds() for _ in range(4))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def unit(run: Run, windows: Windows, device: torch.device, folder: Path, recipes: tuple[str, ...] = RECIPES) -> dict:
    """Train and measure one run in a folder; return its result: definition, cost, logs, cells."""
    heldout = torch.from_numpy(corpus.heldout())
    trainer = Trainer.of(run, windows, device)
    compiling = trainer.warm()
    checkpoints, log = written(trainer, folder, heldout)
    began = time.perf_counter()
    data = measured(checkpoints, folder, device.type, recipes)
    minutes = (time.perf_counter() - began) / 60
    for revision, facts in by_checkpoint(data).items():
        log[revision] |= facts
    count = len(checkpoints) * (data.sizes["recipe"] - 1)
    pace = trainer.steps * run.tokens_per_step / trainer.seconds
    most = ceiling(device)
    return {
        "run": definition(run),
        "command": command(run, device),
        "unique_tokens": windows.unique_tokens,
        "device": measurements.manifest(data)["device"],
        "versions": measurements.manifest(data)["versions"],
        "protocol": measurements.manifest(data)["protocol"],
        "cost": {
            "compile_seconds": round(compiling, 1),
            "trained_tokens": trainer.steps * run.tokens_per_step,
            "tokens_per_second": round(pace),
            "quantized_checkpoints": count,
            "cells_per_minute": round(count / minutes, 1),
            "matmul_flops_per_second": float(f"{most:.4g}"),
            "share_of_matmul": round(pace * runs.flops_per_token(run) / most, 4),
        },
        "checkpoints": log,
        "recipes": [str(name) for name in data["recipe"].to_numpy()],
        "cells": as_columns(cells.from_measurements(data, {"name": run.name})),
    }


def definition(run: Run) -> dict:
    """Return a run as plain values."""
    return json.loads(json.dumps(asdict(run)))


def command(run: Run, device: torch.device) -> str:
    """Return the command that makes a run's result."""
    return f"python models/ladder/train.py --device {device.type} --scale {run.scale} --only {run.name}"


def finished(run: Run, path: Path) -> bool:
    """Say whether a result is there and is of this run as it is defined now."""
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["run"] == definition(run)


def do(run: Run, windows: Windows, device: torch.device, out: Path, keep: Path | None = None,
       recipes: tuple[str, ...] = RECIPES) -> bool:  # fmt: skip
    """Make a run's result unless it is finished; say whether it was made. Nothing is written before the end."""
    path = out / f"{run.name}.json"
    if finished(run, path):
        return False
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep / run.name)) as folder:
        result = unit(run, windows, device, Path(folder), recipes)
    files.write_text(path, one_line_each(result))
    print(f"{path}: {json.dumps(result['cost'])}", flush=True)
    return True


def main() -> None:
    """Train and measure every run asked for that is not finished, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=[run.name for run in RUNS])
    parser.add_argument("--scale", choices=list(runs.BATCH), default="cpu")
    parser.add_argument("--device", choices=list(CEILING_SIDE), default="cpu")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "data" / "ladder", help="folder of results")
    parser.add_argument("--text", type=Path, help="training text written by stream.py, instead of the packages'")
    parser.add_argument("--keep", type=Path, help="folder to keep checkpoints and measurements in")
    given = parser.parse_args()
    wanted = [run for run in RUNS if run.scale == given.scale and (not given.only or run.name in given.only)]
    todo = [run for run in wanted if not finished(run, given.out / f"{run.name}.json")]
    if not todo:
        print("every run asked for is finished")
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if given.device == "cpu":
        torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    load.quiet()
    device = torch.device(given.device)
    windows = Windows.of(training_text(given.text), device)
    for run in todo:
        do(run, windows, device, given.out, given.keep)


if __name__ == "__main__":
    main()
