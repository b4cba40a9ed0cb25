import email.utils
import json
import threading
import time
from pathlib import Path

import pytest

import fakehub
from bayesqid.errors import BadInput
from bayesqid.measure import hub, patience
from fakehub import NAME, Fault, sha256

WEIGHTS = bytes(range(256)) * 40
OTHER = WEIGHTS[::-1]
FILES = {"config.json": b'{"model_type": "toy"}', "tokenizer.json": b'{"of": "toy"}', "model.safetensors": WEIGHTS}
SHARDS = {f"model-0000{i}-of-00002.safetensors": WEIGHTS + bytes([i]) for i in (1, 2)}
INDEX = {hub.INDEX: json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(SHARDS)}}).encode()}


@pytest.fixture
def served(tmp_path, monkeypatch):
    patience.note.cache_clear()
    with fakehub.serving() as made:
        fakehub.use(monkeypatch, made, tmp_path / "cache")
        made.put("main", FILES)
        yield made
        fakehub.forget()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Waits of the library, which are its own, so that no test waits."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def refused(served, revision: str = "main", **settings) -> str:
    with pytest.raises(BadInput) as caught:
        hub.download(hub.resolve(NAME, revision, sleep=lambda _: None, **settings), sleep=lambda _: None)
    text = str(caught.value)
    assert "\n" not in text
    return text


def names(remote: hub.Remote) -> list[str]:
    return [file.name for file in remote.files]


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "blobs" in path.parts]


# --- what a revision is


def test_commit_and_hashes_are_known_before_anything_is_downloaded(served, tmp_path):
    remote = hub.resolve(NAME, "main")
    assert (remote.hub, remote.revision, remote.commit) == (NAME, "main", fakehub.commit("main"))
    assert remote.weights == {"model.safetensors": sha256(WEIGHTS)}
    assert {file.name: file.size for file in remote.files} == {name: len(value) for name, value in FILES.items()}
    assert served.bytes_of("") == 0
    assert not (tmp_path / "cache").exists()


def test_neither_pickles_nor_code_nor_what_lies_in_folders_is_wanted(served):
    extra = ("pytorch_model.bin", "own.py", "fp16/model.safetensors", "onnx/config.json", "README.md", "flax.msgpack")
    served.put("main", FILES | dict.fromkeys(extra, b"x") | {"merges.txt": b"a", "chat.jinja": b"b"})
    assert names(hub.resolve(NAME, "main")) == sorted([*FILES, "merges.txt", "chat.jinja"])


def test_one_file_of_weights_goes_before_shards(served):
    served.put("main", FILES | SHARDS | INDEX)
    assert names(hub.resolve(NAME, "main")) == sorted(FILES)


def test_the_index_says_which_shards_count(served):
    others = {"consolidated.safetensors": OTHER, "model-00001-of-00009.safetensors": OTHER}
    served.put("main", {"config.json": b"{}"} | SHARDS | INDEX | others)
    remote = hub.resolve(NAME, "main")
    assert remote.weights == {name: sha256(value) for name, value in SHARDS.items()}
    folder = hub.download(remote)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["config.json", *SHARDS, *INDEX])


def test_weights_under_another_name_are_taken_when_there_are_no_others(served):
    served.put("main", {"config.json": b"{}", "gptq_model-4bit-128g.safetensors": OTHER})
    assert list(hub.resolve(NAME, "main").weights) == ["gptq_model-4bit-128g.safetensors"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"x"}, r"only pickled weights \(pytorch_model.bin\), which can run code"),
        ({}, "no .*safetensors weights"),
        (INDEX, "lacks the shard model-00001-of-00002.safetensors that model.safetensors.index.json lists"),
        (SHARDS | {hub.INDEX: b"[]"}, "index.json of org/toy at revision main is no index of safetensors"),
        (SHARDS | {hub.INDEX: b'{"weight_map": {}}'}, "no index of safetensors"),
        ({"x.bin": b"x", hub.INDEX: b'{"weight_map": {"w": "x.bin"}}'}, "no index of safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_it_is_downloaded(served, tmp_path, files, message):
    served.put("main", {"config.json": b"{}"} | files)
    with pytest.raises(BadInput, match=message):
        hub.resolve(NAME, "main")
    assert [path for path in served.asked if path.endswith((".bin", ".safetensors", "config.json"))] == []
    assert not (tmp_path / "cache").exists()


def test_a_branch_that_moved_is_followed_only_without_a_commit(served):
    old = hub.resolve(NAME, "main").commit
    new = served.put("main", FILES | {"model.safetensors": OTHER}, "later")
    assert hub.resolve(NAME, "main").commit == new
    locked = hub.resolve(NAME, "main", old)
    assert locked.commit == old
    assert (hub.download(locked) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {"X-Error-Code": "RevisionNotFound"}, f"{NAME} has no revision main: name a branch"),
        (404, {"X-Error-Code": "RepoNotFound"}, f"{NAME} is private or not on the hub: check its name"),
        (401, {"X-Error-Code": "RepoNotFound"}, f"{NAME} is private or not on the hub: check its name"),
        (403, {"X-Error-Code": "GatedRepo"}, f"{NAME} is gated: accept its terms"),
        (401, {"X-Error-Code": "GatedRepo"}, f"{NAME} is gated: accept its terms"),
        (401, {}, r"refuses org/toy to you \(401\): log in"),
        (403, {}, r"refuses org/toy to you \(403\): log in"),
        (404, {}, "does not find org/toy at revision main"),
        (400, {}, "cannot be fetched from the hub: "),
    ],
)
@pytest.mark.parametrize("ends", ["/revision/main", "/config.json"])
def test_refusals_are_told_in_one_sentence_and_not_repeated(served, waits, status, headers, message, ends):
    served.faults.append(Fault(ends, status, headers))
    with pytest.raises(BadInput, match=message) as caught:
        hub.download(hub.resolve(NAME, "main", sleep=waits.append), sleep=waits.append)
    assert "\n" not in str(caught.value)
    assert waits == []


def test_a_missing_revision_and_a_name_that_is_none(served):
    assert "has no revision step9" in refused(served, "step9")
    with pytest.raises(BadInput, match="a/b/c at revision main cannot be fetched"):
        hub.resolve("a/b/c", "main")


# --- patience


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_what_may_pass_is_asked_again_with_growing_waits(served, capsys, status):
    served.faults.append(Fault("/revision/main", status, times=5))
    own: list[float] = []
    assert hub.resolve(NAME, "main", sleep=own.append).commit == fakehub.commit("main")
    assert len(own) == 5
    assert all(2**i / 2 <= wait <= 2**i for i, wait in enumerate(own))
    assert capsys.readouterr().err.splitlines() == [
        f"{NAME}: the hub does not serve it for now, it answers {status}: waiting, then trying again up to 8 times."
    ]


def test_waits_differ_between_processes_that_were_refused_at_once(served):
    own: list[float] = []
    for _ in range(2):
        served.faults.append(Fault("/revision/main", 429, times=7))
        hub.resolve(NAME, "main", sleep=own.append)
    assert own[:7] != own[7:]
    assert sum(own[:7]) < 124


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_the_hub_asks_for_is_kept(served, status):
    served.faults.append(Fault("/revision/main", status, {"Retry-After": "77"}, times=2))
    own: list[float] = []
    hub.resolve(NAME, "main", sleep=own.append)
    assert all(77 <= wait <= 78 for wait in own)
    assert len(own) == 2


def test_waits_are_read_from_seconds_dates_and_rate_limits():
    now = 1_750_000_000.0
    date = email.utils.formatdate(now + 90, usegmt=True)
    assert patience.asked_wait({"retry-after": "12"}, now) == 12
    assert patience.asked_wait({"retry-after": date}, now) == 90
    assert patience.asked_wait({"retry-after": date}, now + 200) == 0
    assert patience.asked_wait({"retry-after": "soon"}, now) is None
    assert patience.asked_wait({"ratelimit": '"api";r=0;t=55'}, now) == 55
    assert patience.asked_wait({"ratelimit": '"api";r=9;t=55'}, now) is None
    assert patience.asked_wait({}, now) is None


def test_patience_ends(served):
    served.faults.append(Fault("/revision/main", 429))
    own: list[float] = []
    with pytest.raises(BadInput, match="it answers 429 8 times in a row: go on later, or set HF_HUB_OFFLINE=1"):
        hub.resolve(NAME, "main", sleep=own.append)
    assert len(own) == 7
    served.faults[:] = [Fault("/revision/main", 429, {"Retry-After": "86400"})]
    with pytest.raises(BadInput, match="it answers 429 and asks to wait 86400 s: go on later"):
        hub.resolve(NAME, "main", sleep=own.append)
    assert len(own) == 7


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [429, 500])
def test_refused_files_are_asked_for_again_with_one_note(served, waits, capsys, status, method):
    remote = hub.resolve(NAME, "main")
    served.faults.append(Fault("/model.safetensors", status, {"Retry-After": "3"}, method, times=7))
    own: list[float] = []
    assert (hub.download(remote, sleep=own.append) / "model.safetensors").read_bytes() == WEIGHTS
    assert all(3 <= wait <= 4 for wait in own + waits)
    told = capsys.readouterr().err.splitlines()
    assert 1 <= len(told) <= 2
    assert all("waiting, then trying again" in line for line in told)


def test_slow_answers_are_asked_for_again_and_then_given_up(served, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(patience, "TRIES", 3)
    served.faults.append(Fault("/revision/main", delay=20, times=2))
    own: list[float] = []
    assert hub.resolve(NAME, "main", sleep=own.append).commit == fakehub.commit("main")
    assert len(own) == 2
    served.faults.append(Fault("/revision/main", delay=20))
    assert r"it cannot be reached or is too slow (ReadTimeout) 3 times in a row" in refused(served)


def test_a_slow_file_is_asked_for_again(served, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    remote = hub.resolve(NAME, "main")
    served.faults.append(Fault("/model.safetensors", method="GET", delay=20, times=2))
    assert (hub.download(remote) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_hub_that_is_not_there(served, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(patience, "TRIES", 2)
    assert "cannot be reached or is too slow (ConnectError) 2 times in a row" in refused(served)


def test_a_bug_is_no_bad_input_and_not_repeated():
    own: list[float] = []
    with pytest.raises(ZeroDivisionError):
        patience.patiently(NAME, "main", lambda: 1 // 0, own.append)
    assert own == []


# --- bytes


def test_every_file_is_downloaded_once_for_all_recipes(served):
    remote = hub.resolve(NAME, "main")
    folder = hub.download(remote)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert hub.download(remote) == folder
    assert served.bytes_of("") == len(FILES)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (OTHER, f"expected SHA-256 {sha256(WEIGHTS)}, found {sha256(OTHER)}"),
        (WEIGHTS[:1000], f"expected {len(WEIGHTS)} bytes, found 1000"),
    ],
)
def test_wrong_bytes_are_fetched_again_once_then_refused_and_not_kept(served, tmp_path, waits, capsys, body, text):
    remote = hub.resolve(NAME, "main")
    served.faults.append(Fault("/model.safetensors", method="GET", body=body, times=1))
    folder = hub.download(remote)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert f"model.safetensors arrived damaged, {text}: fetching it again" in capsys.readouterr().err
    assert served.bytes_of("/model.safetensors") == 2
    hub.prune(remote)
    served.faults.append(Fault("/model.safetensors", method="GET", body=body))
    with pytest.raises(BadInput) as caught:
        hub.download(remote)
    told = str(caught.value)
    assert (
        told == f"model.safetensors of {NAME} at revision main arrived twice other than announced, {text}: go on later."
    )
    assert served.bytes_of("/model.safetensors") == 4
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    assert all(path.read_bytes() != body for path in cached(tmp_path))


def test_a_file_that_is_announced_shorter_when_it_comes_is_found_out(served):
    fault = Fault("/model.safetensors", headers={"X-Linked-Size": "1000"}, body=WEIGHTS[:1000])
    served.faults.append(fault)
    assert f"expected {len(WEIGHTS)} bytes, found 1000" in refused(served)


def test_a_wrong_shard_is_told_by_its_name_and_the_good_one_is_kept(served, waits):
    served.put("main", {"config.json": b"{}"} | SHARDS | INDEX)
    first, second = SHARDS
    served.faults.append(Fault(second, method="GET", body=SHARDS[first]))
    with pytest.raises(
        BadInput, match=f"{second} of .*expected SHA-256 {sha256(SHARDS[second])}, found {sha256(SHARDS[first])}"
    ):
        hub.download(hub.resolve(NAME, "main"))
    assert served.bytes_of(first) == 1


def test_a_broken_connection_is_taken_up_again(served, waits):
    remote = hub.resolve(NAME, "main")
    whole = {"Content-Length": str(len(WEIGHTS))}
    served.faults.append(Fault("/model.safetensors", headers=whole, method="GET", body=WEIGHTS[:5000], times=2))
    assert (hub.download(remote) / "model.safetensors").read_bytes() == WEIGHTS


def test_weights_damaged_in_the_cache_are_found_and_mended(served):
    remote = hub.resolve(NAME, "main")
    folder = hub.download(remote)
    (folder / "model.safetensors").resolve().write_bytes(OTHER)
    assert (hub.download(remote) / "model.safetensors").read_bytes() == WEIGHTS


# --- offline


def test_offline_the_cached_revision_is_used(served, monkeypatch):
    online = hub.resolve(NAME, "main")
    folder = hub.download(online)
    asked = len(served.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    remote = hub.resolve(NAME, "main")
    assert (remote.commit, remote.weights) == (online.commit, online.weights)
    assert hub.download(remote) == folder
    assert hub.download(hub.resolve(NAME, "any", online.commit)) == folder
    hub.prune(remote)
    assert folder.is_dir()
    (folder / "model.safetensors").resolve().write_bytes(OTHER)
    with pytest.raises(BadInput, match=f"is damaged, expected SHA-256 .*found {sha256(OTHER)}: unset HF_HUB_OFFLINE"):
        hub.download(remote)
    assert (folder / "model.safetensors").exists()
    assert len(served.asked) == asked


def test_offline_without_the_revision_is_one_sentence(served, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set and org/toy at revision main is not in the cache" in refused(served)
    assert served.asked == []


# --- the cache afterwards


def revisions(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").glob("models--org--toy/snapshots/*")}


def test_what_we_brought_is_removed_and_shared_files_of_others_stay(served, tmp_path):
    served.put("step2", FILES | {"model.safetensors": OTHER})
    one, two = (hub.resolve(NAME, revision) for revision in ("main", "step2"))
    hub.download(one)
    folder = hub.download(two)
    hub.prune(one)
    assert revisions(tmp_path) == {two.commit}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES | {"model.safetensors": OTHER}
    hub.prune(two)
    assert cached(tmp_path) == []


def test_what_was_cached_before_stays(served, tmp_path):
    from huggingface_hub import hf_hub_download

    remote = hub.resolve(NAME, "main")
    theirs = tmp_path / "cache" / "models--org--toy" / "snapshots" / remote.commit
    for name in ("config.json", "model.safetensors"):
        hf_hub_download(NAME, name, revision="main", cache_dir=tmp_path / "cache")
    assert hub.was_cached(remote)
    hub.download(remote)
    hub.prune(remote)
    assert (theirs / "model.safetensors").read_bytes() == WEIGHTS


def test_a_copy_of_the_repository_with_the_same_commit_stays(served, tmp_path):
    import shutil

    remote = hub.resolve(NAME, "main")
    for name in ("a--toy", "z--toy"):
        hub.download(remote)
        shutil.copytree(tmp_path / "cache" / "models--org--toy", tmp_path / "cache" / f"models--{name}", symlinks=True)
    hub.prune(remote)
    assert revisions(tmp_path) == set()
    for name in ("a--toy", "z--toy"):
        assert (tmp_path / "cache" / f"models--{name}" / "snapshots" / remote.commit / "config.json").exists()


def test_what_a_killed_run_brought_is_still_ours(served, tmp_path, waits):
    remote = hub.resolve(NAME, "main")
    served.faults.append(Fault("/model.safetensors", 403, times=1))
    with pytest.raises(BadInput):
        hub.download(remote)
    assert revisions(tmp_path) == {remote.commit}
    assert not hub.was_cached(remote)
    hub.download(remote)
    hub.prune(remote)
    assert revisions(tmp_path) == set()


def test_what_is_to_be_kept_stays_for_good(served, tmp_path):
    remote = hub.resolve(NAME, "main")
    hub.download(remote)
    hub.prune(remote, keep=True)
    assert hub.was_cached(remote)
    hub.prune(remote)
    assert revisions(tmp_path) == {remote.commit}


def test_removing_waits_for_a_download_beside_it(served, tmp_path):
    served.put("step2", FILES | {"model.safetensors": OTHER})
    one, two = (hub.resolve(NAME, revision) for revision in ("main", "step2"))
    hub.download(one)
    served.faults.append(Fault(f"{two.commit}/model.safetensors", method="GET", delay=0.5, times=1))
    beside = threading.Thread(target=hub.download, args=(two,))
    beside.start()
    while not any(two.commit in path for path in served.asked):
        time.sleep(0.005)
    hub.prune(one)
    beside.join()
    assert revisions(tmp_path) == {two.commit}
    folder = tmp_path / "cache" / "models--org--toy" / "snapshots" / two.commit
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES | {"model.safetensors": OTHER}
