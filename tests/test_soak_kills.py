"""Long tests: `bayesqid measure` killed at random moments."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr

from bayesqid import bundled, measurements

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

MODELS = bundled.models_dir()
TELLING = Path(__file__).with_name("telling.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# for each number of jobs
KILLS = 30
# three architectures; layers of the first have more columns than GPTQ updates at once
LADDER = ("tiny-neox-100k/step244", "tiny-llama-27k/step244", "tiny-opt-25k/step244")
RECIPES = "rtn-w2,rtn-w4-g32,rtn-mxint4,gptq-w2,gptq-w3,gptq-w3-act,gptq-w2-s1,gptq-w4-oneshot,awq-w3"
# where a kill is meant to land: how often, and at most how many seconds after that begins
AIMS = {"quantizing": (4, 0.02), "writing": (4, 0.05), "merging": (2, 0.3), "anything": (3, 0)}
# two to four recipes are in work at once, so that checkpoints have several parts, and others after each kill
FEW, ALL = 24_000_000, 2**30


@pytest.fixture(scope="module")
def ladder(tmp_path_factory) -> Path:
    """A suite of small checkpoints of the ladder."""
    folder = tmp_path_factory.mktemp("ladder")
    rows = [row for row in json.loads((MODELS / "tiny" / "checkpoints.json").read_text())
            if row["path"].removeprefix("tiny/") in LADDER]  # fmt: skip
    assert len(rows) == len(LADDER)
    (folder / "checkpoints.json").write_text(json.dumps(rows))
    text = (MODELS / "tiny.toml").read_text().replace('"tiny/checkpoints.json"', '"checkpoints.json"')
    text = text.replace('name = "tiny"', 'name = "soak"')
    (folder / "tiny").symlink_to(MODELS / "tiny")
    (folder / "soak.toml").write_text(text)
    return folder / "soak.toml"


class Measuring:
    """A run of the command in a process group of its own, and what it tells."""

    def __init__(self, server: subprocess.Popen, ladder: Path, output: Path, jobs: int, lanes_bytes: int) -> None:
        self.told, self.errors, self.ended = (output.with_suffix(f".{name}") for name in ("told", "errors", "ended"))
        for path in (self.told, self.errors):
            path.write_text("")
        self.ended.unlink(missing_ok=True)
        words = ["measure", ladder, "-o", output, "--jobs", jobs, "--documents", 32, "--recipes", RECIPES]
        order = {name: str(getattr(self, name)) for name in ("told", "errors", "ended")}
        order |= {"words": [str(word) for word in words], "lanes_bytes": lanes_bytes}
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(order), file=server.stdin, flush=True)
        self.pid = int(server.stdout.readline())

    def lines(self) -> list[tuple[int, str]]:
        whole = self.told.read_text().rpartition("\n")[0].splitlines()
        return [(int(pid), doing) for pid, doing in map(str.split, whole)]

    def wait_for(self, aim: str, times: int) -> bool:
        """Wait until something was begun so many times, or the end; whether it was."""
        while sum(doing == aim for _, doing in self.lines()) < times:
            if self.ended.exists():
                return False
            time.sleep(0.001)
        return True

    def end(self, seconds: float = 600) -> int:
        """Exit status, once it has ended."""
        deadline = time.monotonic() + seconds
        while not self.ended.exists():
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.005)
        return int(self.ended.read_text())

    def alive(self) -> list[int]:
        """Processes of the group that have not ended."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
                found += [int(stat.parent.name)] if state != "Z" and int(group) == self.pid else []
        return found

    def workers(self) -> list[int]:
        """Processes besides the parent that have told something and have not ended."""
        return sorted({pid for pid, _ in self.lines()} & set(self.alive()) - {self.pid})

    def kill(self, whom: str) -> None:
        """End the parent, all of the group or one worker at once; returns when none of the group is left."""
        if whom == "worker":
            os.kill(self.workers()[0], signal.SIGKILL)
            assert self.end() == 2
            assert "A worker process was killed" in self.errors.read_text()
        else:
            (os.kill if whom == "parent" else os.killpg)(self.pid, signal.SIGKILL)
            assert self.end() == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while self.alive():
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.005)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    """Python with everything loaded, from which runs are forked."""
    with subprocess.Popen([sys.executable, TELLING], env=ENVIRONMENT, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        yield process
        process.kill()


@pytest.fixture(scope="module")
def whole(server, ladder, tmp_path_factory) -> tuple[xr.Dataset, float]:
    """What an uninterrupted run of all recipes at once gives, and the seconds it takes."""
    output = tmp_path_factory.mktemp("whole") / "m.nc"
    # the first one also loads what is loaded late
    for _ in range(2):
        start = time.monotonic()
        run = Measuring(server, ladder, output, 1, ALL)
        assert run.end() == 0, run.errors.read_text()
        seconds = time.monotonic() - start
        data = measurements.read(output)
        parts = list(Path(f"{output}.parts").glob("*.nc"))
        assert len(parts) == len(LADDER), "one part for each checkpoint"
        for path in (output, *parts):
            path.unlink()
    return data, seconds


def equal(output: Path, expected: xr.Dataset) -> None:
    found = measurements.read(output)
    assert (found["status"] == measurements.OK).all()
    xr.testing.assert_identical(found.drop_attrs(deep=False), expected.drop_attrs(deep=False))
    seen = []
    for path in Path(f"{output}.parts").glob("*.nc"):
        part = measurements.read(path)
        seen += [(c, r) for c in part["checkpoint"].values for r in part["recipe"].values]
    assert len(seen) == len(set(seen)) == found["status"].size, "no cell twice, none lost"


def strike(run: Measuring, aim: str, seconds: float, chance: random.Random) -> bool:
    """Wait for a random moment; whether the run has not ended before."""
    if aim == "anything":
        deadline = time.monotonic() + chance.uniform(0, seconds)
        while time.monotonic() < deadline and not run.ended.exists():
            time.sleep(0.001)
    elif run.wait_for(aim, 1 if aim == "merging" else chance.randint(1, 5)):
        time.sleep(chance.uniform(0, AIMS[aim][1]))
    return not run.ended.exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_moments_it_ends_with_the_same_values(server, ladder, whole, tmp_path, jobs):
    expected, seconds = whole
    chance, hit, kills, rounds = random.Random(jobs), Counter(), 0, 0
    output = tmp_path / "m0.nc"
    while kills < KILLS or not rounds or Path(f"{output}.parts").exists():
        run = Measuring(server, ladder, output, jobs, FEW)
        aim = chance.choices(list(AIMS), [often for often, _ in AIMS.values()])[0]
        if kills < KILLS and strike(run, aim, seconds, chance):
            workers = run.workers()
            whom = chance.choice(["group", "parent", *["worker"] * bool(workers)])
            at = dict([(run.pid, "else"), *run.lines()])
            try:
                run.kill(whom)
            except (ProcessLookupError, IndexError):  # it came too late
                run.end()
                continue
            hit.update([whom, *(at[pid] for pid in {"worker": workers[:1]}.get(whom, [run.pid, *workers]))])
            kills += 1
            if output.exists():
                measurements.read(output)  # never half a file
        else:
            assert run.end() == 0, run.errors.read_text()
            equal(output, expected)
            rounds += 1
            output = tmp_path / f"m{rounds}.nc"
    print(f"\njobs {jobs}: {kills} kills over {rounds} files that came to their end, processes hit: {dict(hit)}")
    assert all(hit[doing] for doing in ("quantizing", "writing", "merging")), hit
