"""Sweeps on real Ray clusters of local processes; each node has a raylet and workers of its own."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import xarray as xr

import test_store as storing
import tinymodels
from bayesqid import measurements
from bayesqid.errors import BadInput
from bayesqid.measure import ray_engine, run
from test_store import bucket, plan  # noqa: F401
from tinymodels import same

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'bayesqid[ray]'")

RECIPES = ["rtn-w3", "rtn-w4-g32"]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}

# Ray leaves files and sockets of its own to the end of the process
pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.timeout(900)]


def started[Made](start: Callable[[], Made]) -> Made:
    """What `start` gives; again where a busy machine took longer than the 30 s that Ray waits."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


class Nodes:
    """A cluster of a head that measures nothing and nodes that do, and its address; what a node has may be given."""

    def __init__(self, count: int, *more_nodes: dict, **system: object) -> None:
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        head = NODE | {"num_cpus": 0, "include_dashboard": False}
        more = {"_system_config": system} if system else {}
        self.cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head | more))
        nodes = [NODE] * count + [NODE | one for one in more_nodes]
        self.nodes = [started(lambda one=one: self.cluster.add_node(**one)) for one in nodes]
        self.address = self.cluster.address

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()
        self.cluster.shutdown()

    def kill(self, node: object) -> None:
        self.cluster.remove_node(node, allow_graceful=False)


def telling(log: Path, seconds: float = 0.0, killed: str = "", times: int = 0) -> Callable:
    """What a worker does, told: a line for each cell that is saved, one for each checkpoint begun, two for each task.

    A checkpoint takes some seconds more once its beginning is told, and one of a name ends its process the first times.
    """

    def work(sweep, task, threads, probe):
        import os
        import signal
        import time

        import ray

        from bayesqid.measure import checkpoint, ray_engine

        def tell(*words):
            line = " ".join(map(str, words)) + "\n"
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, line.encode())
            os.close(descriptor)

        inner_prepare, inner_write = checkpoint.prepare, checkpoint.write_part

        def prepare(plan, one, *rest):
            tell("begun", one.id, os.getpid(), ray.get_runtime_context().get_node_id())
            time.sleep(seconds)
            with open(log) as told:
                before = told.read().count(f"begun {one.id} ")
            if killed and killed in one.id and before <= times:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner_prepare(plan, one, *rest)

        def write_part(plan, folder, one, found, cells):
            inner_write(plan, folder, one, found, cells)
            for name in cells:
                tell("saved", one.id, name)

        checkpoint.prepare, checkpoint.write_part = prepare, write_part
        at = (task.checkpoint.id, ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        tell("from", *at, time.monotonic())
        try:
            return ray_engine._work(sweep, task, threads, probe)
        finally:
            tell("to", *at, time.monotonic())
            checkpoint.prepare, checkpoint.write_part = inner_prepare, inner_write

    return work


def told(log: Path, kind: str) -> list[list[str]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1:] for line in lines if line.startswith(kind)]


def wait_until(true: Callable[[], object], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def each_cell_once(log: Path, suite: Path, output: Path) -> None:
    made = plan(suite)
    wanted = {(checkpoint.id, str(recipe)) for checkpoint in made.checkpoints for recipe in made.recipes}
    counted = Counter(map(tuple, told(log, "saved")))
    assert set(counted) == wanted, "none lost"
    assert set(counted.values()) == {1}, "none measured twice"
    assert Counter(storing.cells(sorted(Path(f"{output}.parts").glob("*.nc")))) == counted


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    models = {f"step{i}": (kind, i) for i, kind in enumerate(["neox", "opt", "neox", "opt", "neox", "opt"])}
    return tinymodels.suite(tmp_path_factory.mktemp("suite") / "toy", models, RECIPES)


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory) -> xr.Dataset:
    return run.run(plan(suite), tmp_path_factory.mktemp("whole") / "m.nc", jobs=1)


@pytest.fixture
def short(suite) -> object:
    made = plan(suite, RECIPES[:1])
    return replace(made, checkpoints=made.checkpoints[:2])


@pytest.mark.slow
def test_a_cluster_of_its_own_gives_what_one_process_gives(short, tmp_path, capfd):
    data = run.run(short, tmp_path / "ray.nc", cluster=ray_engine.Cluster(gpus_per_worker=0.0))
    assert "4/4" in capfd.readouterr().err
    same(data, run.run(short, tmp_path / "here.nc", jobs=1))
    # begun on one engine, gone on with on another
    same(run.run(short, tmp_path / "ray.nc", jobs=1), data)
    assert [path.name for path in (tmp_path / "ray.nc.parts").glob(".*")] == [], "neither probe nor turn is left"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("slurm", None, None, None), "no engine 'slurm'"),
        (("local", "auto", None, None), "--address belongs to --engine ray"),
        (("local", None, 1.0, None), "--gpus-per-worker belongs to --engine ray"),
        (("ray", None, 1.5, None), "--gpus-per-worker is 1.5"),
        (("ray", None, -1.0, None), "--gpus-per-worker is -1"),
        (("ray", None, float("nan"), None), "--gpus-per-worker is nan"),
        (("ray", None, float("inf"), None), "--gpus-per-worker is inf"),
        (("ray", None, None, 0.0), "--cpus-per-worker is 0"),
        (("ray", None, None, float("nan")), "--cpus-per-worker is nan"),
    ],
)
def test_what_cannot_be_asked_of_ray_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        ray_engine.asked(*options)


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"pip install 'bayesqid\[ray\]'"):
        ray_engine.asked("ray", None, None, None)
    assert ray_engine.asked("local", None, None, None) is None


@pytest.mark.slow
def test_no_cluster_at_an_address_is_said(short, tmp_path):
    with pytest.raises(BadInput, match=r"no Ray cluster at 127\.0\.0\.1:9"):
        run.run(short, tmp_path / "m.nc", cluster=ray_engine.Cluster("127.0.0.1:9", 0.0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_worker_does_not_see_is_said(tmp_path):
    with pytest.raises(BadInput, match="does not see .*share"):
        ray_engine._work(None, None, 1, str(tmp_path / "nowhere" / "probe"))


def test_paths_in_a_plan_hold_in_every_working_directory(short, suite, monkeypatch):
    monkeypatch.chdir(suite.parent)
    near = replace(short, checkpoints=(replace(short.checkpoints[0], hub="step0"),), tokenizer="tokenizer")
    far = ray_engine._absolute(near)
    assert far.checkpoints[0].hub == str(suite.parent.resolve() / "step0")
    assert far.tokenizer == str(suite.parent.resolve() / "tokenizer")
    named = replace(short, checkpoints=(replace(short.checkpoints[0], hub="org/model"),), tokenizer=None)
    assert ray_engine._absolute(named) == named


@pytest.mark.soak
def test_a_node_killed_in_the_middle_loses_no_cell_and_measures_none_twice(suite, whole, tmp_path, monkeypatch):
    log, output = tmp_path / "log", tmp_path / "m.nc"
    monkeypatch.setattr(ray_engine, "_work", telling(log, seconds=1.5))
    with Nodes(2) as nodes:

        def kill() -> None:
            # something is saved already, and something is in work on the node that dies
            victim = nodes.nodes[0].node_id

            def struck() -> bool:
                saved = {name for name, _ in told(log, "saved")}
                at_work = [name for name, _, node in told(log, "begun") if node == victim and name not in saved]
                return bool(saved and at_work)

            wait_until(struck, "a checkpoint in work on the node")
            nodes.kill(nodes.nodes[0])

        killer = threading.Thread(target=kill)
        killer.start()
        data = run.run(plan(suite), output, cluster=ray_engine.Cluster(nodes.address, 0.0))
        killer.join()
    same(data, whole)
    each_cell_once(log, suite, output)
    assert len(told(log, "begun")) == 7, "what was in work on the node was begun again"


@pytest.mark.soak
def test_a_worker_killed_is_run_again_and_one_that_always_is_has_failed(suite, whole, tmp_path, monkeypatch):
    log, output = tmp_path / "log", tmp_path / "m.nc"
    monkeypatch.setattr(ray_engine, "_work", telling(log, killed="step3", times=2))
    with Nodes(2) as nodes:
        cluster = ray_engine.Cluster(nodes.address, 0.0)
        data = run.run(plan(suite), output, cluster=cluster)
        assert measurements.failures(data) == {}
        same(data, whole)
        each_cell_once(log, suite, output)
        assert len(told(log, "begun")) == 6 + 2
        monkeypatch.setattr(ray_engine, "_work", telling(tmp_path / "more", killed="step3", times=99))
        data = run.run(plan(suite), tmp_path / "n.nc", cluster=cluster)
    reasons = measurements.failures(data)
    assert set(reasons) == {"opt/toy-opt@step3"}
    assert "its worker was killed 4 times in a row" in reasons["opt/toy-opt@step3"]
    # and another engine mends it
    same(run.run(plan(suite), tmp_path / "n.nc", jobs=1, retry_failed=True), whole)


@pytest.mark.soak
def test_a_task_that_fills_its_nodes_memory_is_ended_by_ray_and_run_again(suite, whole, tmp_path, monkeypatch):
    import psutil

    log, output, filled = tmp_path / "log", tmp_path / "m.nc", tmp_path / "filled"
    inner = telling(log)

    def greedy(sweep, task, threads, probe):
        import time
        from pathlib import Path

        if "step2" in task.checkpoint.id and not Path(filled).exists():
            Path(filled).touch()
            held = [bytearray(b"x") * 2**28 for _ in range(24)]
            time.sleep(60)
            del held
        return inner(sweep, task, threads, probe)

    monkeypatch.setattr(ray_engine, "_work", greedy)
    memory = psutil.virtual_memory()
    threshold = min(0.9, (memory.total - memory.available + 4 * 2**30) / memory.total)
    with Nodes(2, memory_usage_threshold=threshold, memory_monitor_refresh_ms=100) as nodes:
        data = run.run(plan(suite), output, cluster=ray_engine.Cluster(nodes.address, 0.0))
    assert filled.exists()
    same(data, whole)
    each_cell_once(log, suite, output)


@pytest.mark.soak
@pytest.mark.parametrize(("gpus", "at_once"), [(1.0, 1), (0.5, 2)])
def test_a_worker_has_its_gpu_or_its_share_of_one(suite, whole, tmp_path, monkeypatch, gpus, at_once):
    # the GPUs are declared, not there: what is tested is who is told to use which
    log, output = tmp_path / "log", tmp_path / "m.nc"
    monkeypatch.setattr(ray_engine, "_work", telling(log, seconds=1.5))
    with Nodes(1, {"num_gpus": 2, "num_cpus": 4}) as nodes:
        data = run.run(plan(suite), output, cluster=ray_engine.Cluster(nodes.address, gpus))
        assert {node for _, node, *_ in told(log, "from")} == {nodes.nodes[1].node_id}, "not where no GPU is"
    same(data, whole)
    each_cell_once(log, suite, output)
    assert {gpu for *_, gpu, _ in told(log, "from")} == {"0", "1"}, "each sees one alone, and all are used"
    for wanted in "01":
        moments = [(float(moment), step) for kind, step in (("from", 1), ("to", -1))
                   for *_, gpu, moment in told(log, kind) if gpu == wanted]  # fmt: skip
        busy = list(itertools.accumulate(step for _, step in sorted(moments)))
        assert max(busy) == at_once


@pytest.mark.soak
def test_without_gpus_a_worker_sees_none(suite, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setattr(ray_engine, "_work", telling(log))
    with Nodes(0, {"num_gpus": 1}) as nodes:
        run.run(plan(suite), tmp_path / "m.nc", cluster=ray_engine.Cluster(nodes.address, 0.0))
    assert {tuple(one[2:-1]) for one in told(log, "from")} <= {(), ("-1",)}


@pytest.mark.soak
def test_two_sweeps_at_once_on_one_folder_share_it(suite, whole, tmp_path):
    output, log = tmp_path / "m.nc", tmp_path / "log"
    with Nodes(2) as nodes:
        runs = [start(suite, output, nodes.address, log, seconds=0.5) for _ in range(2)]
        ends = [one.communicate(timeout=600) for one in runs]
        assert [one.returncode for one in runs] == [0, 0], ends
    same(measurements.read(output), whole)
    each_cell_once(log, suite, output)


@pytest.mark.soak
def test_the_cluster_gone_and_the_same_command_again(suite, whole, tmp_path):
    output, log = tmp_path / "m.nc", tmp_path / "log"
    with Nodes(2) as nodes:
        process = start(suite, output, nodes.address, log, seconds=1.5)
        wait_until(lambda: told(log, "saved"), "something saved")
        nodes.cluster.shutdown()
        _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert "The Ray cluster is gone; what was finished is kept" in err
    kept = len(told(log, "saved"))
    assert 3 <= kept < 18
    with Nodes(1) as nodes:
        process = start(suite, output, nodes.address, log, seconds=0.0)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    same(measurements.read(output), whole)
    each_cell_once(log, suite, output)


@pytest.mark.soak
def test_ctrl_c_ends_the_workers_and_keeps_what_is_finished(suite, whole, tmp_path):
    output, log = tmp_path / "m.nc", tmp_path / "log"
    with Nodes(2) as nodes:
        process = start(suite, output, nodes.address, log, seconds=1.5)
        wait_until(lambda: told(log, "saved"), "something saved")
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 130, err
        begun = len(told(log, "begun"))
        time.sleep(5)
        assert len(told(log, "begun")) == begun, "nothing goes on"
        assert begun < 6
        found = measurements.read(output)
        assert int((found["status"] == measurements.OK).sum()) == len(told(log, "saved"))
        data = run.run(plan(suite), output, cluster=ray_engine.Cluster(nodes.address, 0.0))
    same(data, whole)


@pytest.mark.soak
def test_a_bucket_serves_a_cluster_that_loses_a_node(suite, whole, bucket, tmp_path, monkeypatch):  # noqa: F811
    from bayesqid.measure import store

    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    log, url = tmp_path / "log", "s3://sweeps/ray/m.nc"
    monkeypatch.setattr(ray_engine, "_work", telling(log, seconds=1.5))
    with Nodes(2) as nodes:

        def kill() -> None:
            wait_until(lambda: told(log, "saved"), "something saved")
            nodes.kill(nodes.nodes[0])

        killer = threading.Thread(target=kill)
        killer.start()
        data = run.run(plan(suite), url, cluster=ray_engine.Cluster(nodes.address, 0.0))
        killer.join()
    same(data, whole)
    place = store.place(url)
    assert len(store.heads(place, "m.nc.parts")) == 6
    (tmp_path / "copy.nc").write_bytes(store.read(place, "m.nc") or b"")
    same(measurements.read(tmp_path / "copy.nc"), whole)
    # and another engine finds nothing left to do
    begun = len(told(log, "begun"))
    same(run.run(plan(suite), url, jobs=1), whole)
    assert len(told(log, "begun")) == begun


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
sys.path[:0] = {path!r}
import test_ray
from bayesqid import cli
from bayesqid.measure import ray_engine
ray_engine._work = test_ray.telling({log!r}, {seconds})
sys.argv = ["bayesqid", "measure", *{words!r}]
cli.main()
"""


def start(suite: Path, output: Path, address: str, log: Path, seconds: float) -> subprocess.Popen:
    """The command, in a process of its own."""
    words = [str(suite), "-o", str(output), "--engine", "ray", "--address", address, "--device", "cpu",
             "--max-bytes", "100", "--calibration-windows", "4", "--gpus-per-worker", "0"]  # fmt: skip
    code = COMMAND.format(path=sys.path, log=str(log), seconds=seconds, words=words)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(autouse=True)
def _no_ray_is_left() -> Iterator[None]:
    yield
    ray.shutdown()
