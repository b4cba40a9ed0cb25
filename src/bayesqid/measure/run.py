"""Measure a plan: what is missing, one checkpoint after another or several at once, then merge the parts."""

import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
import xarray as xr
from tqdm import tqdm

from bayesqid import files, measurements
from bayesqid.errors import BadInput
from bayesqid.measure import landscape_run, layers, load, lock
from bayesqid.measure.checkpoint import measure_checkpoint
from bayesqid.measure.parts import done, existing, frame, lock_path, parts_folder
from bayesqid.measure.plan import Plan
from bayesqid.recipe import Recipe
from bayesqid.suite import Checkpoint

# Models below this size leave cores idle: several are measured at once
SMALL_PARAMETERS = 20_000_000

# Large models move a bar by shares of a cell
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} cells [{elapsed}<{remaining}]"

# In a worker: set when the parent wants no more
_stop: Event | None = None


class Task(NamedTuple):
    """What is missing of a checkpoint: cells of recipes, and its loss landscape for recipes."""

    checkpoint: Checkpoint
    recipes: list[Recipe]
    charted: list[Recipe]

    @property
    def size(self) -> int:
        """Steps of the bar: a checkpoint's landscape is one."""
        return len(self.recipes) + bool(self.charted)


def _guard() -> None:
    """End this worker when its parent is gone: a killed parent cannot end it."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _start(threads: int, stop: Event) -> None:
    global _stop
    _stop = stop
    # Ctrl-C reaches every process of a terminal; the parent alone decides, through `stop`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_guard, daemon=True).start()
    torch.set_num_threads(threads)
    load.quiet()


def _go_on(amount: float = 0.0) -> None:
    # `amount` is for those who show progress
    if _stop is not None and _stop.is_set():
        raise KeyboardInterrupt


def _work(plan: Plan, task: Task, hashes: dict[str, str], output: Path) -> None:
    """Measure in a worker; what is finished when the parent stops it is saved."""
    try:
        _go_on()
        measure_checkpoint(plan, task.checkpoint, task.recipes, hashes, output, _go_on, task.charted)
    except KeyboardInterrupt:
        return


def workers(plan: Plan, jobs: int, tasks: int) -> int:
    """Checkpoints measured at once: `jobs`, or for 0 as many as there are cores if all models are small."""
    if jobs > 0:
        return min(jobs, max(tasks, 1))
    small = all(0 < checkpoint.n_params < SMALL_PARAMETERS for checkpoint in plan.checkpoints)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = layers.best_device(plan.device).type == "cpu"
    return min(cores, tasks) if small and on_cpu and tasks > 1 else 1


def missing(plan: Plan, measured: set[tuple[str, str]], uncharted: Mapping[str, list[Recipe]]) -> list[Task]:
    """Checkpoints with the recipes that are still to be measured, or to be charted, for them."""
    tasks = [
        Task(checkpoint, [recipe for recipe in plan.recipes if (checkpoint.id, str(recipe)) not in measured],
             uncharted.get(checkpoint.id, []))
        for checkpoint in plan.checkpoints
    ]  # fmt: skip
    return [task for task in tasks if task.size]


def _here(plan: Plan, tasks: list[Task], hashes: dict[str, str], output: Path, bar: tqdm) -> None:
    load.quiet()
    for task in tasks:
        bar.set_description_str(task.checkpoint.id)
        start = bar.n
        measure_checkpoint(plan, task.checkpoint, task.recipes, hashes, output, bar.update, task.charted)
        # what was tried twice, or not to the end, counts once
        bar.update(start + task.size - bar.n)


def _in_processes(plan: Plan, tasks: list[Task], hashes: dict[str, str], output: Path, bar: tqdm, count: int) -> None:
    threads = max(1, torch.get_num_threads() // count)
    # the biggest first, so that no core waits for a late big one
    ordered = sorted(tasks, key=lambda task: -task.checkpoint.n_params)
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(count, context, _start, (threads, stop)) as pool:
        waiting = {pool.submit(_work, plan, task, hashes, output): task for task in ordered}
        try:
            for future in as_completed(waiting):
                task = waiting[future]
                future.result()
                bar.set_description_str(task.checkpoint.id)
                bar.update(task.size)
        except BrokenProcessPool as error:
            # the others have ended already, and the one that was killed may hold the lock of `stop` for ever
            raise BadInput(
                "A worker process was killed, perhaps because memory ran out; what was finished is kept: "
                "measure again to go on, with --jobs 1."
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def merged(plan: Plan, output: Path) -> xr.Dataset:
    """Everything measured so far for an output file, its own content and its parts together."""
    parts = list(existing(output, plan))
    data = landscape_run.filled(measurements.merge(frame(plan, parts), parts), parts)
    # copies are found out before they are loaded, so the file does not have their hash
    return measurements.refuse(data, lock.twins(lock.read(lock_path(output, plan))))


def run(plan: Plan, output: Path, jobs: int = 0, retry_failed: bool = False) -> xr.Dataset:
    """Measure what is missing of a plan, write `output` and return it.

    Finished cells lie in `output`.parts/ and are never measured again, failed ones only with `retry_failed`. Ctrl-C
    keeps what is finished and merges it. A landscape may be added to cells measured before, and cells to it. Raises
    `BadInput` when `output` is of another suite or protocol.
    """
    device = layers.best_device(plan.device)
    found = list(existing(output, plan))
    measured, failed, hashes = done(found)
    uncharted = landscape_run.missing(plan, found, retry_failed)
    tasks = missing(plan, measured if retry_failed else measured | failed, uncharted)
    folder = parts_folder(output)
    for name, reason in plan.excluded.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    total = len(plan.checkpoints) * len(plan.recipes)
    left = sum(len(task.recipes) for task in tasks)
    if left < total:
        print(f"{total - left} of {total} cells are in {output} already", file=sys.stderr)
    again = sum((checkpoint.id, str(recipe)) in failed for checkpoint in plan.checkpoints for recipe in plan.recipes)
    if again and not retry_failed:
        print(f"{again} of them failed and are not tried again: --retry-failed does", file=sys.stderr)
    count = workers(plan, jobs, len(tasks))
    pace = 0.1 if sys.stderr.isatty() else 10.0
    try:
        if tasks:
            steps = sum(task.size for task in tasks)
            with tqdm(total=steps, desc=device.type, mininterval=pace, file=sys.stderr, bar_format=BAR) as bar:
                if count == 1:
                    _here(plan, tasks, hashes, output, bar)
                else:
                    _in_processes(plan, tasks, hashes, output, bar, count)
    finally:
        if folder.is_dir() or output.exists():
            files.write_netcdf(merged(plan, output), output)
    return measurements.read(output)


def summary(data: xr.Dataset, output: Path) -> dict[str, Any]:
    """What a run came to, as plain values: cells by status, failures with their reasons."""
    status = data["status"].values
    return {
        "output": str(output),
        "checkpoints": data.sizes["checkpoint"],
        "recipes": [str(name) for name in data["recipe"].values],
        "measured": int((status == measurements.OK).sum()),
        "missing": int((status == measurements.MISSING).sum()),
        "failed": int((status == measurements.FAILED).sum()),
        "failures": measurements.failures(data) | landscape_run.reasons(data),
        "device": measurements.manifest(data)["device"],
    }
