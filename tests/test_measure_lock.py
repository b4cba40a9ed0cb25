import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bayesqid.errors import BadInput
from bayesqid.measure import lock
from bayesqid.measure.lock import Entry

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def entry(digest: str = A, commit: str | None = "1" * 40, name: str = "model.safetensors") -> Entry:
    return Entry("org/toy", "main", commit, {name: digest})


def test_a_lock_is_one_sorted_object_that_reads_back(tmp_path):
    path = tmp_path / "deep" / "toy.lock"
    lock.claim(path, "f/z@1", entry(B))
    lock.claim(path, "f/ä@1", Entry("folder", "local", None, {"model.safetensors": A, "config.json": C}))
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["schema"] == "bayesqid-lock/1"
    assert content["checkpoints"]["f/z@1"] == {
        "hub": "org/toy", "revision": "main", "commit": "1" * 40, "files": {"model.safetensors": B}
    }  # fmt: skip
    assert content["checkpoints"]["f/ä@1"]["commit"] is None
    assert text == json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert lock.read(path) == {
        "f/z@1": entry(B), "f/ä@1": Entry("folder", "local", None, {"config.json": C, "model.safetensors": A})
    }  # fmt: skip


def test_no_lock_locks_nothing(tmp_path):
    assert lock.read(tmp_path / "toy.lock") == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema": "bayesqid-lock/1"}', '{"schema": 1, "checkpoints": {"a": {"b": 1}}}', "\0",
     *(json.dumps({"schema": "bayesqid-lock/1", "checkpoints": {
           "a": {"hub": "", "revision": "", "commit": None, "files": files}
       }}) for files in (3, [], None, {"a.safetensors": []}))],
)  # fmt: skip
def test_what_is_no_lock_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "toy.lock"
    path.write_text(text)
    for call in (lambda: lock.read(path), lambda: lock.claim(path, "f/a@1", entry())):
        with pytest.raises(BadInput, match=r"toy.lock is no lock of a suite: restore it, or delete it"):
            call()
    assert path.read_text() == text


def test_a_lock_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "toy.lock"
    path.write_text('{"schema": "bayesqid-lock/9", "checkpoints": {}}')
    with pytest.raises(BadInput, match="of the schema bayesqid-lock/9, not bayesqid-lock/1"):
        lock.read(path)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (entry(B), f"for model.safetensors the lock has SHA-256 {A}, found was SHA-256 {B}"),
        (entry(A, "2" * 40), f"the lock has commit {'1' * 40}, found was {'2' * 40}"),
        (Entry("org/other", "main", "1" * 40, {"model.safetensors": A}),
         "the lock has the repository org/toy, found was org/other"),
        (entry(A, None), f"the lock has commit {'1' * 40}, found was a folder"),
        (entry(A, name="x.safetensors"), f"for model.safetensors the lock has SHA-256 {A}, found was no such file"),
        (Entry("org/toy", "main", "1" * 40, {"model.safetensors": A, "more.safetensors": B}),
         f"for more.safetensors the lock has no such file, found was SHA-256 {B}"),
    ],
)  # fmt: skip
def test_what_is_not_as_locked_is_refused_with_what_was_found_and_how_to_mend(tmp_path, found, told):
    path = tmp_path / "toy.lock"
    lock.claim(path, "f/a@1", entry())
    before = path.read_bytes()
    with pytest.raises(BadInput) as caught:
        lock.claim(path, "f/a@1", found)
    assert str(caught.value) == (
        f"f/a@1 is not what was locked, {told}: delete its entry in {path} if the change is wanted."
    )
    assert path.read_bytes() == before


def test_a_deleted_entry_is_locked_anew_and_the_others_stay(tmp_path):
    path = tmp_path / "toy.lock"
    lock.claim(path, "f/a@1", entry())
    lock.claim(path, "f/b@1", entry(B))
    content = json.loads(path.read_text())
    del content["checkpoints"]["f/a@1"]
    path.write_text(json.dumps(content))
    lock.claim(path, "f/a@1", entry(C))
    assert lock.read(path) == {"f/a@1": entry(C), "f/b@1": entry(B)}


def test_where_a_folder_lies_is_not_locked(tmp_path):
    path = tmp_path / "toy.lock"
    lock.claim(path, "f/a@1", Entry("here", "local", None, {"model.safetensors": A}))
    lock.claim(path, "f/a@1", Entry("there", "local", None, {"model.safetensors": A}))


def test_the_same_files_under_two_names_are_refused_for_both(tmp_path):
    path = tmp_path / "toy.lock"
    lock.claim(path, "f/a@1", entry())
    with pytest.raises(BadInput, match="^the same weights as f/a@1$"):
        lock.claim(path, "f/b@1", entry(A, "2" * 40, "other-name.safetensors"))
    with pytest.raises(BadInput, match="^the same weights as f/b@1$"):
        lock.claim(path, "f/a@1", entry())
    assert lock.twins(lock.read(path)) == {"f/a@1": "f/b@1", "f/b@1": "f/a@1"}


def test_twins_have_all_shards_in_common_not_some():
    two = {"1.safetensors": A, "2.safetensors": B}
    entries = {
        "a": Entry("h", "1", None, two | {"config.json": C}),
        "b": Entry("h", "2", None, {"x.safetensors": B, "y.safetensors": A}),
        "c": Entry("h", "3", None, {"1.safetensors": A, "2.safetensors": C}),
        "d": Entry("h", "4", None, two),
        "e": Entry("h", "5", None, {"config.json": C}),
        "f": Entry("h", "6", None, {"config.json": C}),
    }
    assert lock.twins(entries) == {"a": "b", "b": "a", "d": "a"}


CLAIMS = """
import sys
from pathlib import Path
from bayesqid.errors import BadInput
from bayesqid.measure import lock
path, names, digit = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
for name in names:
    digest = (digit + name.encode().hex()).ljust(64, "0")
    try:
        lock.claim(path, name, lock.Entry("h", "r", "1" * 40, {f"{i}.safetensors": digest for i in range(50)}))
        print(name, digit, flush=True)
    except BadInput:
        print(name, "refused", flush=True)
"""


def start(path: Path, names: list[str], digit: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIMS, str(path), ",".join(names), digit],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def go(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def test_several_processes_write_at_once_and_lose_nothing(tmp_path):
    path = tmp_path / "toy.lock"
    processes = [start(path, [f"{i}-{j}" for j in range(25)], str(i)) for i in range(3)]
    go(processes)
    assert [process.communicate(timeout=60)[0].count("refused") for process in processes] == [0, 0, 0]
    assert sorted(lock.read(path)) == sorted(f"{i}-{j}" for i in range(3) for j in range(25))


def test_of_two_that_bring_different_bytes_one_alone_is_entered(tmp_path):
    path, names = tmp_path / "toy.lock", [str(j) for j in range(25)]
    processes = [start(path, names, "a"), start(path, names[::-1], "b")]
    go(processes)
    told = [dict(line.split() for line in process.communicate(timeout=60)[0].splitlines()) for process in processes]
    entries = lock.read(path)
    for name in names:
        winner = entries[name].files["0.safetensors"][0]
        assert sorted([told[0][name], told[1][name]]) == sorted([winner, "refused"])


def test_killed_at_any_moment_it_is_whole_and_holds_what_was_confirmed(tmp_path):
    path, rng = tmp_path / "toy.lock", random.Random(0)
    confirmed: set[str] = set()
    for turn in range(4):
        process = start(path, [f"{turn}-{j}" for j in range(500)], str(turn))
        go([process])
        assert process.stdout is not None
        confirmed |= {process.stdout.readline().split()[0] for _ in range(rng.randint(1, 20))}
        time.sleep(rng.uniform(0, 0.005))
        os.kill(process.pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        confirmed |= {line.split()[0] for line in out.splitlines() if line.endswith(f" {turn}")}
        assert confirmed <= lock.read(path).keys()
    # and nobody waits for the dead
    lock.claim(path, "alive", entry(C))


def test_threads_of_one_process_take_turns_too(tmp_path):
    path = tmp_path / "toy.lock"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: lock.claim(path, f"f/a@{i}", entry(f"{i:064d}")), range(40)))
    assert len(lock.read(path)) == 40
