"""Measure on a Ray cluster: a task for each checkpoint, so that its recipes share a download, GPUs as resources.

What a task does is what every engine does for a checkpoint, and what it leaves are the same parts. Ray runs a task
again whose worker or node was lost; a task that lost its worker each time has failed, and its cells say so.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from tqdm import tqdm

from bayesqid.errors import BadInput
from bayesqid.measure import store, turns
from bayesqid.measure.parts import parts_folder
from bayesqid.measure.plan import Plan
from bayesqid.measure.turns import Sweep, Task

# Times that a task is run again when its worker or node is lost, or the node's memory runs out
RETRIES, MEMORY_RETRIES = 3, 8
# Seconds that tasks have, once stopped, to leave the block of a model they are in
GRACE = 20.0
# Seconds between looks at whether the command was stopped
LOOK = 0.5
# A cluster on this machine: what is stored in it is the plan
OWN = {"address": "local", "include_dashboard": False, "object_store_memory": 2**28}
# What a task was lost to that is simply begun again
NODE = "node"
GONE = "The Ray cluster is gone; what was finished is kept: start one and give the same command to go on."


class Cluster(NamedTuple):
    """A Ray cluster, `auto` for that of this machine and None for a new one here, and what a worker takes of it."""

    address: str | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float = 1.0


def asked(engine: str, address: str | None, gpus: float | None, cpus: float | None) -> Cluster | None:
    """The cluster that options ask for, None for this machine without Ray; `BadInput` for what cannot be."""
    if engine not in ("local", "ray"):
        raise BadInput(f"There is no engine {engine!r}: choose local or ray.")
    given = {"--address": address, "--gpus-per-worker": gpus, "--cpus-per-worker": cpus}
    needless = [name for name, value in given.items() if value is not None]
    if engine == "local":
        if needless:
            raise BadInput(f"{needless[0]} belongs to --engine ray: give that as well.")
        return None
    if gpus is not None and not (0 <= gpus < 1 or (1 <= gpus <= 1024 and gpus == int(gpus))):
        raise BadInput(f"--gpus-per-worker is {gpus:g}: give a share below 1, or a whole number.")
    if cpus is not None and not (0 < cpus <= 1024):
        raise BadInput(f"--cpus-per-worker is {cpus:g}: give a positive number.")
    _ray()
    return Cluster(address, gpus, 1.0 if cpus is None else cpus)


def _ray() -> Any:
    # read when Ray is loaded
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(MEMORY_RETRIES))
    # a worker without a GPU of its own sees none: its device is `auto` only where it has one
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        return import_module("ray")
    except ImportError as error:
        raise BadInput("Ray is not installed: pip install 'bayesqid[ray]', or leave out --engine ray.") from error


def _answers(address: str | None) -> None:
    """Raise OSError where nobody listens at an address: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Context with a connection to the cluster, or with one on this machine; nothing of ours runs there after it."""
    ray = _ray()
    own: dict[str, Any] = OWN if cluster.address is None else {"address": cluster.address}
    try:
        _answers(cluster.address)
        ray.init(**own, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        where = "on this machine" if cluster.address in (None, "auto") else f"at {cluster.address}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(
            f"There is no Ray cluster {where} ({reason}): start one with `ray start --head`, or give its --address."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _absolute(plan: Plan) -> Plan:
    """The plan with paths that hold in any working directory."""

    def fixed(place: str) -> str:
        return str(Path(place).resolve()) if Path(place).is_dir() else place

    return replace(
        plan,
        checkpoints=tuple(replace(one, hub=fixed(one.hub)) for one in plan.checkpoints),
        tokenizer=fixed(plan.tokenizer) if plan.tokenizer else None,
        saved=tuple((name, fixed(folder)) for name, folder in plan.saved),
        save_to=str(Path(plan.save_to).absolute()) if plan.save_to else None,
    )


def _work(sweep: Sweep, task: Task, threads: int, probe: str | None) -> bool:
    """What a worker does; imported there, so that only names travel."""
    import torch

    from bayesqid.measure import load

    if probe is not None and not Path(probe).exists():
        raise BadInput(
            f"The machine {socket.gethostname()} does not see {Path(probe).parent}: choose a folder that all machines "
            "of the cluster share, or a URL such as s3://bucket/sweep.nc."
        )
    torch.set_num_threads(threads)
    load.quiet()
    return turns.measure(sweep, task)


def _gpus(cluster: Cluster, device: str) -> float:
    """GPUs of a worker: as asked for, else one where the device may be a GPU and the cluster has any."""
    if cluster.gpus_per_worker is not None:
        return cluster.gpus_per_worker
    return float(device == "cuda" or (device == "auto" and _ray().cluster_resources().get("GPU", 0) > 0))


@contextmanager
def _probe(sweep: Sweep) -> Iterator[str | None]:
    """Context with a file in the folder of the parts that every worker must see; None under a URL."""
    if store.is_url(sweep.output):
        yield None
        return
    path = parts_folder(Path(sweep.output)) / f".{sweep.owner}.probe"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def measure(sweep: Sweep, tasks: list[Task], bar: tqdm, cluster: Cluster) -> list[Task]:
    """Measure tasks on a cluster; those that another run is at.

    In a process of its own, since Ray ends the process that talks to a cluster when the cluster goes.
    """
    context = get_context("spawn")
    stop, (ours, theirs) = context.Event(), context.Pipe(duplex=False)
    order = _ray().cloudpickle.dumps((sweep, tasks, cluster, _work))
    quiet = getattr(sys.stderr, "name", "") == os.devnull
    process = context.Process(target=_drive, args=(theirs, stop, order, quiet), daemon=True)
    process.start()
    theirs.close()
    others: list[Task] = []
    try:
        while True:
            kind, value = ours.recv()
            if kind == "end":
                return others
            if kind == "note":
                tqdm.write(value, file=sys.stderr)
            elif kind == "error":
                raise value
            elif kind == "others":
                others.append(tasks[value])
            else:
                bar.set_description_str(tasks[value].checkpoint.id)
                bar.update(tasks[value].size)
    except EOFError as error:
        raise BadInput(GONE) from error
    finally:
        stop.set()
        process.join(2 * GRACE)
        process.kill()


def _drive(to: Connection, stop: Event, order: bytes, quiet: bool) -> None:
    """What the process does that talks to the cluster: it tells which tasks are done, by their numbers."""
    if quiet:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # Ray has things to say on stdout, where the answer goes
    os.dup2(2, 1)
    # Ctrl-C reaches every process of a terminal; the parent alone decides, through `stop`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_guard, daemon=True).start()
    sweep, tasks, cluster, work = _ray().cloudpickle.loads(order)
    try:
        with connected(cluster):
            _drive_tasks(to, stop, sweep, tasks, cluster, work)
    except Exception as error:
        to.send(("error", error))
    else:
        to.send(("end", None))


def _guard() -> None:
    """End this process when its parent is gone; Ray then ends its tasks."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _drive_tasks(
    to: Connection, stop: Event, sweep: Sweep, tasks: list[Task], cluster: Cluster, work: Callable[..., bool]
) -> None:
    ray = _ray()
    output = sweep.output if store.is_url(sweep.output) else str(Path(sweep.output).absolute())
    sweep = sweep._replace(plan=_absolute(sweep.plan), output=output)
    gpus, cpus = _gpus(cluster, sweep.plan.device), cluster.cpus_per_worker
    there = ray.cluster_resources()
    if there.get("GPU", 0) < gpus or there.get("CPU", 0) < cpus:
        has = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        to.send(("note", f"the cluster has {has} now, too few for one worker: waiting until it grows"))
    # exceptions of ours are results, not reasons to try again
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)(work)
    with _probe(sweep) as probe:
        shared, waiting = ray.put(sweep), {}

        def submit(number: int) -> None:
            waiting[remote.remote(shared, tasks[number], max(1, int(cpus)), probe)] = number

        # the biggest first, so that nobody waits for a late big one
        for number in sorted(range(len(tasks)), key=lambda number: -tasks[number].checkpoint.n_params):
            submit(number)
        try:
            while waiting and not stop.is_set():
                ready, _ = ray.wait(list(waiting), timeout=LOOK)
                for one in ready:
                    number = waiting.pop(one)
                    ours, lost = _outcome(one)
                    if lost == NODE:
                        submit(number)
                        continue
                    done = ours if lost is None else turns.give_up(sweep, tasks[number], lost)
                    to.send(("done" if done else "others", number))
        finally:
            _stop(list(waiting))


def _outcome(reference: Any) -> tuple[bool, str | None]:
    """Whether it was our turn, and what a task was lost to: `NODE`, or a reason; raises what the task raised."""
    ray = _ray()
    try:
        return ray.get(reference), None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.OutOfMemoryError:
        return False, f"the memory of its machine ran out, {MEMORY_RETRIES + 1} times in a row"
    except ray.exceptions.WorkerCrashedError:
        return False, f"its worker was killed {RETRIES + 1} times in a row, perhaps because memory ran out"
    except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):
        return False, NODE
    except (ray.exceptions.LocalRayletDiedError, ray.exceptions.RaySystemError) as error:
        raise BadInput(GONE) from error


def _stop(references: list[Any]) -> None:
    """End tasks as Ctrl-C would, so that finished parts are sent; by force those that take long."""
    ray = _ray()
    with suppress(Exception):  # the cluster itself may be what is lost
        for one in references:
            ray.cancel(one)
        _, late = ray.wait(references, num_returns=len(references), timeout=GRACE) if references else ([], [])
        for one in late:
            ray.cancel(one, force=True)
