"""Measure a plan: what is missing, one checkpoint after another or several at once, then merge the parts."""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from uuid import uuid4

import torch
import xarray as xr
from tqdm import tqdm

from bayesqid import files, measurements
from bayesqid.errors import BadInput
from bayesqid.measure import landscape_run, layers, load, lock, ray_engine, store, turns
from bayesqid.measure.parts import done, existing, frame, lock_path, parts_folder
from bayesqid.measure.plan import Plan
from bayesqid.measure.turns import Sweep, Task
from bayesqid.recipe import Recipe

# Models below this size leave cores idle: several are measured at once
SMALL_PARAMETERS = 20_000_000

# Large models move a bar by shares of a cell
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} cells [{elapsed}<{remaining}]"

# Measures tasks under a bar and gives back those that another run is at
Engine = Callable[[list[Task], tqdm], list[Task]]

# In a worker: set when the parent wants no more
_stop: Event | None = None


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


def _work(sweep: Sweep, task: Task) -> bool:
    """Measure in a worker; what is finished when the parent stops it is saved."""
    try:
        _go_on()
        return turns.measure(sweep, task, _go_on)
    except KeyboardInterrupt:
        return True


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


def _here(sweep: Sweep, tasks: list[Task], bar: tqdm) -> list[Task]:
    """Measure tasks in this process; those that another run is at."""
    load.quiet()
    others = []
    for task in tasks:
        bar.set_description_str(task.checkpoint.id)
        start = bar.n
        if turns.measure(sweep, task, bar.update):
            # what was tried twice, or not to the end, counts once
            bar.update(start + task.size - bar.n)
        else:
            others.append(task)
    return others


def _in_processes(sweep: Sweep, tasks: list[Task], bar: tqdm, count: int) -> list[Task]:
    """Measure tasks in several processes; those that another run is at."""
    others: list[Task] = []
    threads = max(1, torch.get_num_threads() // count)
    # the biggest first, so that no core waits for a late big one
    ordered = sorted(tasks, key=lambda task: -task.checkpoint.n_params)
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(count, context, _start, (threads, stop)) as pool:
        waiting = {pool.submit(_work, sweep, task): task for task in ordered}
        try:
            for future in as_completed(waiting):
                task = waiting[future]
                if future.result():
                    bar.set_description_str(task.checkpoint.id)
                    bar.update(task.size)
                else:
                    others.append(task)
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
    return others


def _sweep(sweep: Sweep, tasks: list[Task], bar: tqdm, engine: Engine) -> None:
    """Measure tasks, in the end also those that other runs were at, in case they did not come to their end."""
    others = engine(tasks, bar)
    while others:
        bar.set_description_str("waiting for another run")
        now = turns.free(sweep, others)
        others = [task for task in others if task not in now] + engine(now, bar)


def shared(tasks: list[Task], plan: Plan, shard: tuple[int, int]) -> list[Task]:
    """Those tasks that shard i of n measures: every n-th checkpoint of the plan, the i-th first."""
    number, count = shard
    mine = {checkpoint.id for checkpoint in plan.checkpoints[number - 1 :: count]}
    return [task for task in tasks if task.checkpoint.id in mine]


def merged(plan: Plan, output: Path) -> xr.Dataset:
    """Everything measured so far for an output file, its own content and its parts together."""
    parts = list(existing(output, plan))
    data = landscape_run.filled(measurements.merge(frame(plan, parts), parts), parts)
    # those that measured, which need not be the one that merges
    devices = {name for part in parts for name in measurements.manifest(part)["device"].split(", ")}
    if devices:
        told = measurements.manifest(data) | {"device": ", ".join(sorted(devices))}
        data.attrs["manifest"] = json.dumps(told, sort_keys=True)
    # copies are found out before they are loaded, so the file does not have their hash
    return measurements.refuse(data, lock.twins(lock.read(lock_path(output, plan))))


def write_merged(plan: Plan, output: Path, mirror: store.Mirror | None, owner: str) -> None:
    """Write everything measured so far into the file; one run at a time, so that the last one has all."""
    with turns.waited(mirror.place.url if mirror else str(output), turns.MERGING, owner):
        if mirror is not None:
            store.pull(mirror)
        if output.exists() or any(parts_folder(output).glob("*.nc")):
            files.write_netcdf(merged(plan, output), output)
            if mirror is not None:
                store.write(mirror.place, mirror.place.name, output.read_bytes())
    if not output.exists():
        with suppress(OSError):  # what a run that measured nothing leaves: an empty folder
            parts_folder(output).rmdir()


def run(
    plan: Plan, output: str | Path, jobs: int = 0, retry_failed: bool = False, shard: tuple[int, int] = (1, 1),
    cluster: ray_engine.Cluster | None = None,
) -> xr.Dataset:  # fmt: skip
    """Measure what is missing of a plan, write `output`, a path or a URL such as s3://bucket/m.nc, and return it.

    Finished cells lie in `output`.parts/ and are never measured again, failed ones only with `retry_failed`. Ctrl-C
    keeps what is finished and merges it. A landscape may be added to cells measured before, and cells to it. Any number
    of runs may share an output: each checkpoint is measured by one of them. With `shard` (i, n) only every n-th
    checkpoint, from the i-th on; with `cluster` on Ray. Raises `BadInput` when `output` is of another suite or
    protocol.
    """
    if not store.is_url(output):
        return _run(plan, Path(output), None, jobs, retry_failed, shard, cluster)
    with TemporaryDirectory(prefix="bayesqid-") as folder:
        mirror = store.Mirror(store.place(str(output)), Path(folder), plan)
        store.pull(mirror)
        return _run(plan, mirror.output, mirror, jobs, retry_failed, shard, cluster)


def _run(
    plan: Plan, output: Path, mirror: store.Mirror | None, jobs: int, retry_failed: bool, shard: tuple[int, int],
    cluster: ray_engine.Cluster | None,
) -> xr.Dataset:  # fmt: skip
    """As `run`, for a path; `mirror` when it stands for a URL."""
    # the machine that the command is called on need not have the cluster's devices
    here = plan if cluster is None else replace(plan, device="auto")
    device = layers.best_device(here.device)
    found = list(existing(output, here))
    measured, failed, hashes = done(found)
    uncharted = landscape_run.missing(plan, found, retry_failed)
    tasks = shared(missing(plan, measured if retry_failed else measured | failed, uncharted), plan, shard)
    where = mirror.place.url if mirror else str(output)
    sweep = Sweep(plan, where, hashes, retry_failed, uuid4().hex)
    for name, reason in plan.excluded.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    ours = plan.checkpoints[shard[0] - 1 :: shard[1]]
    total = len(ours) * len(plan.recipes)
    left = sum(len(task.recipes) for task in tasks)
    if left < total:
        print(f"{total - left} of {total} cells are in {where} already", file=sys.stderr)
    again = sum((checkpoint.id, str(recipe)) in failed for checkpoint in ours for recipe in plan.recipes)
    if again and not retry_failed:
        print(f"{again} of them failed and are not tried again: --retry-failed does", file=sys.stderr)
    count = workers(plan, jobs, len(tasks)) if cluster is None else 0
    pace = 0.1 if sys.stderr.isatty() else 10.0

    def engine(some: list[Task], bar: tqdm) -> list[Task]:
        if cluster is not None:
            return ray_engine.measure(sweep, some, bar, cluster)
        at_once = min(count, len(some))
        return _here(sweep, some, bar) if at_once <= 1 else _in_processes(sweep, some, bar, at_once)

    try:
        if tasks:
            steps = sum(task.size for task in tasks)
            name = device.type if cluster is None else "ray"
            with tqdm(total=steps, desc=name, mininterval=pace, file=sys.stderr, bar_format=BAR) as bar:
                _sweep(sweep, tasks, bar, engine)
    finally:
        write_merged(here, output, mirror, sweep.owner)
    return measurements.read(output)


def summary(data: xr.Dataset, output: str | Path) -> dict[str, Any]:
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
