"""Whose turn a checkpoint is: of all runs that share an output, on whatever engine and machine, one measures it.

In a folder it is a file lock, which the operating system frees when a process dies. Under a URL it is an object that
can be made only where there is none; its owner writes it anew while at work, and one left alone may be taken over.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import NamedTuple

from bayesqid import measurements
from bayesqid.measure import landscape_run, store
from bayesqid.measure.checkpoint import measure_checkpoint
from bayesqid.measure.parts import Cell, Found, done, parts_folder, stem, write_part
from bayesqid.measure.plan import Plan
from bayesqid.measure.together import Progress
from bayesqid.recipe import Recipe
from bayesqid.suite import Checkpoint

# Seconds between signs of life under a URL, and without one until another run may take over; clocks that differ by
# less than a minute do no harm
BEAT, LEFT_ALONE = 20.0, 120.0
# Seconds between looks at what another run is at
LOOK = 1.0
MERGING = "merging"


class Task(NamedTuple):
    """What is missing of a checkpoint: cells of recipes, and its loss landscape for recipes."""

    checkpoint: Checkpoint
    recipes: list[Recipe]
    charted: list[Recipe]

    @property
    def size(self) -> int:
        """Steps of the bar: a checkpoint's landscape is one."""
        return len(self.recipes) + bool(self.charted)


class Sweep(NamedTuple):
    """What all checkpoints of a run share: the plan, where it goes (a path or URL), what was known when it began.

    `hashes` are weight hashes by checkpoint, `retry` whether failed cells are tried again, `owner` the run's own name.
    """

    plan: Plan
    output: str
    hashes: dict[str, str]
    retry: bool
    owner: str


@contextmanager
def _in_folder(output: Path, name: str) -> Iterator[bool]:
    from filelock import FileLock, Timeout

    path = parts_folder(output) / f".{stem(name)}.turn"
    path.parent.mkdir(parents=True, exist_ok=True)
    guard = FileLock(path)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        # while it is held: a lock on a file that is gone counts for nobody
        with suppress(OSError):
            path.unlink()
        guard.release()


def _alone(head: store.Head) -> bool:
    return (datetime.now(UTC) - head.modified).total_seconds() > LEFT_ALONE


def _seize(place: store.Place, name: str, owner: str) -> str | None:
    """Tag of a claim on an object of that name, or None while another run has it."""
    content = json.dumps({"owner": owner, "time": time.time()}).encode()
    tag = store.put(place, name, content, None)
    head = store.head(place, name) if tag is None else None
    if head is None:
        return tag
    theirs = store.read(place, name)
    # the same run asks again only when it lost a worker
    ours = theirs is not None and json.loads(theirs).get("owner") == owner
    return store.put(place, name, content, head.tag) if ours or _alone(head) else None


def _claim(place: store.Place, name: str) -> str:
    return f"{place.name}.turns/{stem(name)}.json"


@contextmanager
def _under_url(place: store.Place, name: str, owner: str) -> Iterator[bool]:
    claim = _claim(place, name)
    tag = _seize(place, claim, owner)
    if tag is None:
        yield False
        return
    stop = Event()

    def beat() -> None:
        mine: str | None = tag
        while mine is not None and not stop.wait(BEAT):
            # a beat that does not get through is made up for by the next
            with suppress(OSError):
                content = json.dumps({"owner": owner, "time": time.time()}).encode()
                mine = store.put(place, claim, content, mine)
        with suppress(OSError):
            head = store.head(place, claim)
            if head is not None and head.tag == mine:
                store.delete(place, claim)

    alive = Thread(target=beat, daemon=True)
    alive.start()
    try:
        yield True
    finally:
        stop.set()
        alive.join()


def taken(output: str, name: str, owner: str, place: store.Place | None = None):
    """Context that gives whether it is this run's turn to do what `name` says for an output; nobody else's then."""
    if store.is_url(output):
        return _under_url(place or store.place(output), name, owner)
    return _in_folder(Path(output), name)


@contextmanager
def waited(output: str, name: str, owner: str) -> Iterator[None]:
    """Context behind `taken`, once it is this run's turn."""
    while True:
        with taken(output, name, owner) as ours:
            if ours:
                yield
                return
        time.sleep(LOOK)


def free(sweep: Sweep, tasks: list[Task]) -> list[Task]:
    """Those tasks whose checkpoint no other run is at, once there are any."""
    place = store.place(sweep.output) if store.is_url(sweep.output) else None

    def is_free(name: str) -> bool:
        if place is None:
            with _in_folder(Path(sweep.output), name) as ours:
                return ours
        head = store.head(place, _claim(place, name))
        return head is None or _alone(head)

    while True:
        found = [task for task in tasks if is_free(task.checkpoint.id)]
        if found or not tasks:
            return found
        time.sleep(LOOK)


@contextmanager
def _workshop(sweep: Sweep, checkpoint: Checkpoint) -> Iterator[tuple[Path, Callable[[], object]] | None]:
    """Where a checkpoint's parts are made, and what sends them on; None while another run is at it."""
    if not store.is_url(sweep.output):
        with taken(sweep.output, checkpoint.id, sweep.owner) as ours:
            yield (Path(sweep.output), lambda: None) if ours else None
        return
    place = store.place(sweep.output)
    with taken(sweep.output, checkpoint.id, sweep.owner, place) as ours:
        if not ours:
            yield None
            return
        with TemporaryDirectory(prefix="bayesqid-") as folder:
            mirror = store.Mirror(place, Path(folder), sweep.plan)
            start = f"{parts_folder(mirror.output).name}/{stem(checkpoint.id)}-"
            store.pull(mirror, lambda name: name.startswith(start))
            yield mirror.output, lambda: store.push(mirror)


def _left(sweep: Sweep, task: Task, output: Path) -> Task:
    """What is still missing of a task now that it is our turn: another run may have been quicker."""
    paths = sorted(parts_folder(output).glob(f"{stem(task.checkpoint.id)}-*.nc"))
    parts = [measurements.read(path) for path in paths]
    measured, failed, _ = done(parts)
    over = measured if sweep.retry else measured | failed
    uncharted = landscape_run.missing(sweep.plan, parts, sweep.retry).get(task.checkpoint.id, [])
    return Task(
        task.checkpoint,
        [recipe for recipe in task.recipes if (task.checkpoint.id, str(recipe)) not in over],
        [recipe for recipe in task.charted if recipe in uncharted],
    )


def measure(sweep: Sweep, task: Task, tick: Progress = lambda amount: None) -> bool:
    """Measure what is missing of a checkpoint and save it as parts; False, at once, while another run is at it."""
    with _workshop(sweep, task.checkpoint) as shop:
        if shop is None:
            return False
        output, send = shop
        left = _left(sweep, task, output)

        def ticked(amount: float) -> None:
            send()
            tick(amount)

        try:
            if left.size:
                measure_checkpoint(
                    sweep.plan, left.checkpoint, left.recipes, sweep.hashes, output, ticked, left.charted
                )
        finally:
            send()
    return True


def give_up(sweep: Sweep, task: Task, reason: str) -> bool:
    """Save what is missing of a checkpoint as failed, and why; False, at once, while another run is at it."""
    with _workshop(sweep, task.checkpoint) as shop:
        if shop is None:
            return False
        output, send = shop
        left, folder = _left(sweep, task, output), parts_folder(output)
        if left.recipes:
            cells = {str(recipe): Cell(None, reason) for recipe in left.recipes}
            write_part(sweep.plan, folder, left.checkpoint, Found(), cells)
        if left.charted:
            features = landscape_run.Features(reason=reason)
            landscape_run.write(sweep.plan, folder, left.checkpoint, left.charted, features)
        send()
    return True
