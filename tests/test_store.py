import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import xarray as xr

import tinymodels
from bayesqid import measurements
from bayesqid.errors import BadInput
from bayesqid.measure import checkpoint as one
from bayesqid.measure import lock, run, store, turns
from bayesqid.measure import plan as planning
from bayesqid.measure.parts import parts_folder, stem
from tinymodels import NO_FACTS, same

MODELS = {"neox1": ("neox", 1), "opt3": ("opt", 3)}
SETTINGS = {"max_bytes": 100, "calibration_windows": 4}


def plan(suite: Path, recipes: list[str] | None = None, **settings) -> planning.Plan:
    return planning.make(str(suite), recipes, "cpu", SETTINGS | settings, NO_FACTS)


def cells(parts: list[Path]) -> list[tuple[str, str]]:
    """Every cell of some parts, as often as it was measured."""
    found = [measurements.read(path) for path in parts]
    return [(c, r) for part in found for c in part["checkpoint"].values for r in part["recipe"].values]


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return tinymodels.suite(tmp_path_factory.mktemp("suite") / "toy", MODELS, ["rtn-w3"])


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory) -> xr.Dataset:
    return run.run(plan(suite), tmp_path_factory.mktemp("whole") / "m.nc", jobs=1)


@pytest.fixture
def memory(monkeypatch) -> store.Place:
    """A store in memory that every URL of it reaches."""
    from obstore.store import MemoryStore

    kept = store.Place("memory:///sweeps/m.nc", MemoryStore(), "m.nc")
    monkeypatch.setattr(store, "place", lambda url: kept)
    return kept


def measured(monkeypatch) -> list[str]:
    """The checkpoints that are measured from now on, in this order."""
    calls, inner, alone = [], one.prepare, threading.Lock()

    def prepare(*args):
        calls.append(args[1].id)
        with alone:  # transformers cannot load in two threads at once
            return inner(*args)

    monkeypatch.setattr(one, "prepare", prepare)
    return calls


def test_a_sweep_under_a_url_gives_what_one_in_a_folder_gives_and_is_gone_on_with_in_either(
    suite, whole, memory, tmp_path, monkeypatch
):
    begun = plan(suite)
    first = replace(begun, checkpoints=begun.checkpoints[:1])
    run.run(first, memory.url, jobs=1)
    calls = measured(monkeypatch)
    same(run.run(begun, memory.url, jobs=1), whole)
    assert calls == [checkpoint.id for checkpoint in begun.checkpoints[1:]]
    there = {name for folder in ("m.nc.parts", "toy.lock.parts") for name in store.heads(memory, folder)}
    assert len(there) == 2 * len(MODELS)
    assert not store.heads(memory, "m.nc.turns"), "claims are taken back"
    # what lies there, copied into a folder
    for name in [*there, "m.nc"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(store.read(memory, name) or b"")
    same(measurements.read(tmp_path / "m.nc"), whole)
    same(run.run(begun, tmp_path / "m.nc", jobs=1), whole)
    assert len(calls) == len(MODELS) - 1
    assert sorted(cells(sorted((tmp_path / "m.nc.parts").glob("*.nc")))) == sorted(
        (checkpoint.id, str(recipe)) for checkpoint in begun.checkpoints for recipe in begun.recipes
    )


def twice(made: planning.Plan, output: str | Path) -> list[xr.Dataset]:
    """What two runs on one output at once give."""
    results: list[xr.Dataset] = []
    sweeps = [threading.Thread(target=lambda: results.append(run.run(made, output, jobs=1))) for _ in range(2)]
    for sweep in sweeps:
        sweep.start()
    for sweep in sweeps:
        sweep.join()
    return results


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_checkpoints(suite, whole, memory, tmp_path, monkeypatch):
    calls = measured(monkeypatch)
    for output in (memory.url, tmp_path / "m.nc"):
        calls.clear()
        results = twice(plan(suite), output)
        assert sorted(calls) == sorted(checkpoint.id for checkpoint in plan(suite).checkpoints), "none twice, none lost"
        assert len(results) == 2
        for result in results:
            same(result, whole)  # each waits for the other's cells


def test_a_claim_left_alone_is_taken_over_and_one_that_lives_is_not(memory, monkeypatch):
    with turns.taken(memory.url, "a", "first") as ours:
        assert ours
        with turns.taken(memory.url, "a", "second") as theirs:
            assert not theirs
        with turns.taken(memory.url, "a", "first") as again:
            assert again, "a run that lost its worker goes on at once"
        with turns.taken(memory.url, "b", "second") as theirs:
            assert theirs
    with turns.taken(memory.url, "a", "second") as ours:
        assert ours
    store.put(memory, turns._claim(memory, "a"), b'{"owner": "dead"}', None)
    with turns.taken(memory.url, "a", "second") as ours:
        assert not ours
    late = datetime.now(UTC) + timedelta(seconds=turns.LEFT_ALONE + 1)
    monkeypatch.setattr(turns, "datetime", type("Clock", (), {"now": staticmethod(lambda zone: late)}))
    with turns.taken(memory.url, "a", "second") as ours:
        assert ours


def test_of_many_that_take_over_at_once_one_does(memory, monkeypatch):
    monkeypatch.setattr(turns, "_alone", lambda head: True)
    store.put(memory, "claim", b'{"owner": "dead"}', None)
    head, barrier, won = store.head(memory, "claim"), threading.Barrier(8), []

    def take(name: str) -> None:
        barrier.wait()
        won.append(store.put(memory, "claim", name.encode(), head.tag))

    takers = [threading.Thread(target=take, args=(str(i),)) for i in range(8)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert sum(tag is not None for tag in won) == 1


def test_a_claim_is_kept_alive_while_at_work(memory, monkeypatch):
    monkeypatch.setattr(turns, "BEAT", 0.01)
    with turns.taken(memory.url, "a", "first") as ours:
        assert ours
        before = store.head(memory, turns._claim(memory, "a"))
        deadline = time.monotonic() + 20
        while store.head(memory, turns._claim(memory, "a")).tag == before.tag:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert store.head(memory, turns._claim(memory, "a")) is None


def test_a_claim_in_a_folder_dies_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from bayesqid.measure import turns\n"
        "with turns.taken(sys.argv[1], 'a', 'x') as ours:\n print(ours, flush=True); time.sleep(600)"
    )
    output = tmp_path / "m.nc"
    with subprocess.Popen([sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        with turns.taken(str(output), "a", "y") as ours:
            assert not ours
        process.kill()
    with turns.taken(str(output), "a", "y") as ours:
        assert ours
    assert list(parts_folder(output).iterdir()) == []


def test_parts_are_sent_as_they_are_made_and_their_lock_before_them(suite, memory, tmp_path, monkeypatch):
    from bayesqid.measure import together

    monkeypatch.setattr(together, "LANES_BYTES", 1)
    sent = []
    inner_write, inner_put = store.write, store.put
    monkeypatch.setattr(store, "write", lambda p, name, content: sent.append(name) or inner_write(p, name, content))
    monkeypatch.setattr(store, "put", lambda p, name, *rest: sent.append(name) or inner_put(p, name, *rest))
    begun = plan(suite, ["rtn-w3", "rtn-w4"])
    chosen = replace(begun, checkpoints=begun.checkpoints[:1])
    stopped = []

    def stop(amount: float) -> None:
        stopped.append(amount)
        if any(name.startswith("m.nc.parts") for name in sent):
            raise KeyboardInterrupt

    sweep = turns.Sweep(chosen, memory.url, {}, False, "me")
    with pytest.raises(KeyboardInterrupt):
        turns.measure(sweep, turns.Task(chosen.checkpoints[0], list(chosen.recipes), []), stop)
    kinds = [name.split("/")[0] for name in sent]
    assert kinds[:3] == ["m.nc.turns", "toy.lock.parts", "m.nc.parts"]
    parts = store.heads(memory, "m.nc.parts")
    assert 1 <= len(parts) < len(chosen.recipes)
    assert not store.heads(memory, "m.nc.turns")


@pytest.mark.slow
def test_weights_locked_under_a_url_are_obeyed(memory, tmp_path):
    suite = tinymodels.suite(tmp_path / "s", {"step1": ("neox", 1)}, ["rtn-w3"])
    run.run(plan(suite), memory.url, jobs=1)
    tinymodels.model("neox", 9).save_pretrained(suite.parent / "step1")
    data = run.run(plan(suite, ["rtn-w4"]), memory.url, jobs=1)
    assert data["status"].sel(recipe=["none", "rtn-w3", "rtn-w4"]).values.tolist() == [[1, 1, 2]]
    assert "is not what was locked" in next(iter(measurements.failures(data).values()))


@pytest.mark.slow
def test_the_same_weights_under_two_names_fail_both_under_a_url(memory, tmp_path):
    suite = tinymodels.suite(tmp_path / "s", {"a": ("neox", 1), "b": ("neox", 1), "c": ("neox", 3)}, ["rtn-w3"])
    data = run.run(plan(suite), memory.url, jobs=1)
    assert data["status"].values.tolist() == [[2, 2], [2, 2], [1, 1]]
    assert sorted(lock.twins(dict(_locked(memory)))) == [
        "neox/toy-neox@a", "neox/toy-neox@b",
    ]  # fmt: skip


def _locked(place: store.Place) -> list[tuple[str, lock.Entry]]:
    texts = [json.loads(store.read(place, name) or b"") for name in store.heads(place, "toy.lock.parts")]
    return [(name, lock.Entry(**entry)) for text in texts for name, entry in text["checkpoints"].items()]


@pytest.mark.parametrize(
    ("shard", "fits"), [("1/1", (1, 1)), ("2/8", (2, 8)), ("0/8", None), ("9/8", None), ("1", None), ("a/b", None),
                        ("-1/3", None), ("1/0", None), ("1/8/2", None), ("1.5/2", None)],
)  # fmt: skip
def test_shards_are_read(shard, fits):
    if fits:
        assert planning.shard(shard) == fits
    else:
        with pytest.raises(BadInput, match="is no share"):
            planning.shard(shard)


def test_shards_divide_a_suite_and_the_last_one_merges_all(suite, whole, tmp_path, monkeypatch):
    calls = measured(monkeypatch)
    for number in (2, 1):
        data = run.run(plan(suite), tmp_path / "m.nc", jobs=1, shard=(number, 2))
    ids = [checkpoint.id for checkpoint in plan(suite).checkpoints]
    assert calls == [*ids[1::2], *ids[0::2]]
    same(data, whole)


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3://bucket/", "names no file"), ("s3://bucket", "names no file"), ("foo://bucket/m.nc", "nothing to store in"),
     ("file:///tmp/m.nc", "nothing that runs can share"), ("s3:///m.nc", "names no file")],
)
def test_urls_that_name_nothing_to_write_are_refused(url, message):
    with pytest.raises(BadInput, match=message):
        store.place(url)


def server_command() -> str | None:
    """moto's server, which wants other versions of some packages and so lives in an environment of its own."""
    return os.environ.get("MOTO_SERVER") or shutil.which("moto_server")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Environment that leads s3:// to a server here, with a bucket `sweeps`."""
    command = server_command()
    if command is None:
        pytest.skip("moto_server is not on the PATH: install moto[server] into an environment of its own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "log"
    words = [command, "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as out, subprocess.Popen(words, stdout=out, stderr=out) as server:
        try:
            request = urllib.request.Request(f"{endpoint}/sweeps", method="PUT")
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(request, timeout=5).close()
                    break
                except OSError:
                    if server.poll() is not None:
                        pytest.skip(f"{command} does not start: {log.read_text().strip()[:200]}")
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
            yield {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
                   "AWS_REGION": "us-east-1"}  # fmt: skip
        finally:
            server.kill()


@pytest.fixture
def s3(bucket, monkeypatch) -> dict[str, str]:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.mark.slow
def test_a_bucket_of_s3_keeps_a_sweep_that_two_share(suite, whole, s3, monkeypatch):
    calls = measured(monkeypatch)
    url = "s3://sweeps/deep/down/m.nc"
    results = twice(plan(suite), url)
    assert sorted(calls) == sorted(checkpoint.id for checkpoint in plan(suite).checkpoints)
    assert len(results) == 2
    for result in results:
        same(result, whole)
    place = store.place(url)
    assert not store.heads(place, "m.nc.turns")
    assert store.put(place, "x", b"1", None)
    assert store.put(place, "x", b"2", None) is None, "the server knows If-None-Match"


def test_what_is_wrong_with_a_bucket_is_said(s3, monkeypatch):
    with pytest.raises(BadInput, match="no bucket nowhere"):
        store.place("s3://nowhere/m.nc")
    monkeypatch.setattr(store, "RETRIES", {"max_retries": 1, "retry_timeout": timedelta(seconds=2)})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="cannot be reached"):
        store.place("s3://sweeps/m.nc")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="There are no credentials|cannot be reached"):
        store.place("s3://sweeps/m.nc")


def test_a_store_that_fails_in_the_middle_ends_the_sweep_and_loses_nothing(suite, whole, memory, monkeypatch):
    real, written = store.write, []

    def broken(place, name, content):
        written.append(name)
        if len(written) > 1:
            raise OSError(5, "the store is away", place.url)
        real(place, name, content)

    monkeypatch.setattr(store, "write", broken)
    with pytest.raises(OSError, match="the store is away"):
        run.run(plan(suite), memory.url, jobs=1)
    monkeypatch.setattr(store, "write", real)
    calls = measured(monkeypatch)
    same(run.run(plan(suite), memory.url, jobs=1), whole)
    assert len(calls) == len(MODELS) - 1
    assert written[0].startswith("m.nc.parts/" + stem(plan(suite).checkpoints[0].id))


def test_the_sweep_on_paper_is_what_its_script_works_out():
    script = runpy.run_path(str(Path(__file__).resolve().parents[1] / "docs" / "make_scaling.py"))
    assert script["PAGE"].read_text() == script["page"](), "run python docs/make_scaling.py"
