"""Train the tiny ladder from scratch: real language models that differ in size and in tokens alone.

python models/tiny/train.py                          every run that is not finished
python models/tiny/train.py --only tiny-neox-25k     one run (repeat --only for more)
"""

import argparse
import copy
import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import corpus  # noqa: E402
import shapes  # noqa: E402

BATCH = 16
TOKENS_PER_STEP = BATCH * corpus.CONTEXT
PEAK_LR = 4e-3
WARMUP = 50
COOLDOWN = 0.2


@dataclass(frozen=True)
class Run:
    """One model and seed: its shape, the millions of tokens to save it at, and those to cool it down from."""

    name: str
    family: str
    width: int
    layers: int
    millions: tuple[float, ...]
    cooldowns: tuple[float, ...] = ()
    seed: int = 1


LONG, SHORT = (0.5, 1, 2, 4, 8), (1, 2, 4)
RUNS = (
    Run("tiny-neox-793k", "tiny-neox", 128, 4, (0.25, 0.5, 1, 1.4, 2)),
    Run("tiny-neox-224k", "tiny-neox", 96, 2, (0.25, 0.5, 1, 2, 4)),
    Run("tiny-neox-100k", "tiny-neox", 64, 2, LONG, SHORT),
    Run("tiny-neox-25k", "tiny-neox", 32, 2, LONG, SHORT),
    Run("tiny-neox-25k-seed2", "tiny-neox", 32, 2, (2, 4, 8), seed=2),
    Run("tiny-neox-25k-seed3", "tiny-neox", 32, 2, (2, 4, 8), seed=3),
    Run("tiny-llama-27k", "tiny-llama", 32, 2, SHORT),
    Run("tiny-llama-54k", "tiny-llama", 32, 4, SHORT),
    Run("tiny-opt-25k", "tiny-opt", 32, 2, SHORT),
    Run("tiny-opt-51k", "tiny-opt", 32, 4, SHORT),
)


@dataclass(frozen=True)
class Save:
    """A checkpoint to write after `step` steps, those from `start` on cooling down (start = step: none)."""

    step: int
    start: int

    @property
    def revision(self) -> str:
        return f"step{self.step}" if self.start == self.step else f"step{self.step}-cooldown"


def steps_for(millions: float) -> int:
    """Return the whole number of steps nearest to that many million tokens."""
    return round(millions * 1e6 / TOKENS_PER_STEP)


def cooldown_end(start: int) -> int:
    """Return the step at which a cooldown from `start` ends: 20 % more tokens, in whole steps."""
    return start + round(COOLDOWN * start)


def lr_fraction(step: int, start: int | None = None) -> float:
    """Return learning rate over peak once `step` steps are done; `start` begins a linear cooldown to zero.

    min(1, (step + 1) / WARMUP), times (end - step) / (end - start) from `start` on.
    """
    fraction = min(1.0, (step + 1) / WARMUP)
    if start is None or step <= start:
        return fraction
    end = cooldown_end(start)
    return fraction * max(0, end - step) / (end - start)


def saves(run: Run) -> list[Save]:
    """Return a run's checkpoints by tokens: the constant ones, and the ends of the cooldowns."""
    constant = [Save(steps_for(m), steps_for(m)) for m in run.millions]
    cooled = [Save(cooldown_end(steps_for(m)), steps_for(m)) for m in run.cooldowns]
    return sorted(constant + cooled, key=lambda save: save.step)


def build(run: Run) -> torch.nn.Module:
    """Return the model as the run's seed initialises it; nothing else is random but for all runs alike."""
    torch.manual_seed(run.seed)
    return shapes.FAMILIES[run.family](run.width, run.layers)


def loss_of(model: torch.nn.Module, windows: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the next-byte loss (nats) of windows (batch, length + 1); a target of -1 does not count."""
    logits = model(windows[:, :-1].clamp(min=0), use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), windows[:, 1:].flatten(), ignore_index=-1, reduction=reduction
    )


@torch.no_grad()
def heldout_loss(model: torch.nn.Module, windows: torch.Tensor) -> float:
    """Return the loss on the held-out windows in nats per token."""
    total = sum(loss_of(model, batch, "sum").item() for batch in windows.split(32))
    return total / int((windows[:, 1:] >= 0).sum())


def optimizer_for(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return AdamW; weight decay acts on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95))


def advance(model, optimizer, windows: np.ndarray, steps: range, start: int | None, bar: tqdm) -> float:
    """Train through `steps` (in place); return the mean training loss of the last 20 of them."""
    last = []
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * lr_fraction(step, start)
        batch = torch.from_numpy(windows[step * BATCH : (step + 1) * BATCH].astype(np.int64))
        loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = [*last[-19:], loss.item()]
        bar.update()
        bar.set_postfix(loss=f"{last[-1]:.3f}", refresh=False)
    if not math.isfinite(sum(last)):
        raise SystemExit(f"the loss is no number at step {steps.stop}: the learning rate is too high")
    return sum(last) / len(last)


def branch(model, optimizer):
    """Return a copy of the model and of its optimizer that may be trained on their own."""
    twin = copy.deepcopy(model)
    other = optimizer_for(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return twin, other


def write_checkpoint(model: torch.nn.Module, folder: Path) -> str:
    """Write config.json and model.safetensors in half precision; return the weights' SHA-256."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(aside)
    for path in aside.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    return sha256(folder / "model.safetensors")


def sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(run: Run, windows: np.ndarray, heldout: torch.Tensor) -> dict:
    """Train one run, write its checkpoints, and return its log."""
    model = build(run)
    optimizer = optimizer_for(model)
    began, cpu = time.perf_counter(), time.process_time()
    todo = saves(run)
    log: dict = {"seed": run.seed, "peak_lr": PEAK_LR, "checkpoints": {}}
    steps = max(save.start for save in todo) + sum(save.step - save.start for save in todo)

    def keep(save: Save, trained, loss: float) -> None:
        digest = write_checkpoint(trained, HERE / run.name / save.revision)
        saved = copy.deepcopy(trained).half().float()
        nats = heldout_loss(saved, heldout)
        log["checkpoints"][save.revision] = {"train_nats": loss, "heldout_nats": nats, "sha256": digest}
        tqdm.write(f"{run.name} {save.revision}: train {loss:.4f}, held out {nats:.4f} nats per token")

    with tqdm(total=steps, desc=run.name, mininterval=10) as bar:
        for before, start in legs(run):
            loss = advance(model, optimizer, windows, range(before, start), None, bar)
            for save in (save for save in todo if save.start == start):
                if save.step == start:
                    keep(save, model, loss)
                else:
                    twin, other = branch(model, optimizer)
                    keep(save, twin, advance(twin, other, windows, range(start, save.step), start, bar))
    seconds = time.perf_counter() - began
    log |= {"seconds": round(seconds, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    return log | {"tokens_per_second": round(steps * TOKENS_PER_STEP / seconds)}


def legs(run: Run) -> Iterator[tuple[int, int]]:
    """Yield the stretches (from step, to step) of the constant run between its saves."""
    stops = sorted({save.start for save in saves(run)})
    yield from zip([0, *stops[:-1]], stops, strict=True)


def logs() -> dict:
    """Return the logs of the finished runs, by name."""
    path = HERE / "training.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def finished(run: Run) -> bool:
    """Say whether a run's checkpoints all stand there as its log says."""
    done = logs().get(run.name, {}).get("checkpoints", {})
    return all(
        (path := HERE / run.name / save.revision / "model.safetensors").exists()
        and sha256(path) == done.get(save.revision, {}).get("sha256")
        for save in saves(run)
    )


def rows(run: Run, log: dict) -> list[dict]:
    """Return the rows of checkpoints.json for one run; hash and loss are null until it is trained."""
    total, outside = shapes.parameter_counts(build(run))
    table = []
    for save in saves(run):
        done = log.get("checkpoints", {}).get(save.revision, {})
        constant = save.step == save.start
        table.append(
            {
                "family": run.family,
                "model": run.name,
                "path": f"tiny/{run.name}/{save.revision}",
                "revision": save.revision,
                "n_params": total,
                "n_params_nonembedding": outside,
                "train_tokens": save.step * TOKENS_PER_STEP,
                "tokens_per_step": TOKENS_PER_STEP,
                "step": save.step,
                "lr_phase": "constant" if constant else "annealed",
                "lr_fraction": lr_fraction(save.step, None if constant else save.start),
                "vocab_size": shapes.VOCAB,
                "seed": run.seed,
                "sha256": done.get("sha256"),
                "heldout_nats_per_token": done.get("heldout_nats"),
            }
        )
    return table


def record(name: str | None = None, log: dict | None = None) -> None:
    """Add a finished run to training.json and rewrite checkpoints.json; a lock keeps two processes apart."""
    lock = os.open(HERE, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        known = logs() | ({name: log} if name else {})
        ordered = {run.name: known[run.name] for run in RUNS if run.name in known}
        table = [row for run in RUNS for row in rows(run, ordered.get(run.name, {}))]
        corpus.write_text(HERE / "training.json", json.dumps(ordered, indent=1) + "\n")
        corpus.write_text(HERE / "checkpoints.json", json.dumps(table, indent=1) + "\n")
    finally:
        os.close(lock)


def training_windows() -> np.ndarray:
    """Return the training windows, refusing text other than what corpus.json records."""
    pieces, about = corpus.build()
    if about != json.loads((HERE / "corpus.json").read_text(encoding="utf-8")):
        raise SystemExit("the installed packages give another text: install the versions in corpus.json")
    return corpus.stream(pieces)


def main(only: list[str] | None) -> None:
    """Train every run asked for that is not finished, one after the other."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    record()
    windows, heldout = training_windows(), torch.from_numpy(corpus.heldout())
    for run in RUNS:
        if (only and run.name not in only) or finished(run):
            continue
        record(run.name, train(run, windows, heldout))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=[run.name for run in RUNS])
    main(parser.parse_args().only)
