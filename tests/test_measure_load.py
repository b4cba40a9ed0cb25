import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fakehub
import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import identity, load, lock, patience
from bayesqid.suite import Checkpoint

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tinymodels.save("neox", tmp_path_factory.mktemp("model"), 1)


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_what_was_saved_is_loaded(folder):
    loaded = load.model(folder, "float32", CPU)
    wanted = tinymodels.model("neox", 1).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_hash_is_that_of_the_values_not_of_the_file(folder, tmp_path):
    loaded = load.model(folder, "float32", CPU)
    loaded.half().save_pretrained(tmp_path / "half", max_shard_size="20KB")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    exact = load.model(tmp_path / "half", "float32", CPU)
    sixteen = load.model(tmp_path / "half", "float16", CPU)
    assert identity.weights_sha256(exact) == identity.weights_sha256(sixteen)
    assert identity.weights_sha256(exact) != identity.weights_sha256(load.model(folder, "float32", CPU))


def test_one_changed_number_changes_the_hash(folder):
    loaded = load.model(folder, "float32", CPU)
    before = identity.weights_sha256(loaded)
    weight = loaded.gpt_neox.layers[1].mlp.dense_h_to_4h.weight
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert identity.weights_sha256(loaded) != before


def test_the_hash_is_of_names_shapes_and_hashes_of_values(monkeypatch):
    made = nn.ModuleDict({"b": nn.Linear(7, 5), "a": nn.Linear(3, 2, bias=False)}).to(torch.bfloat16)
    made.register_buffer("turned", torch.randn(4, 6).T)
    made.register_buffer("empty", torch.empty(0))
    lines = ""
    for name in ("a.weight", "b.bias", "b.weight", "empty", "turned"):
        values = made.state_dict()[name].to(torch.float32).numpy()
        digest = hashlib.sha256(np.ascontiguousarray(values).astype("<f4").tobytes()).hexdigest()
        lines += f"{name} {tuple(values.shape)} {digest}\n"
    wanted = hashlib.sha256(lines.encode()).hexdigest()
    assert identity.weights_sha256(made) == wanted
    monkeypatch.setattr(identity, "CHUNK", 4)
    with torch.inference_mode():
        assert identity.weights_sha256(made) == wanted


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 17, -1])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(monkeypatch, value, place):
    monkeypatch.setattr(identity, "CHUNK", 8)
    made = nn.ModuleDict({"good": nn.Linear(4, 4), "bad": nn.Linear(7, 5)})
    made["bad"].weight.data.view(-1)[place] = value
    with pytest.raises(BadInput, match="The weights bad.weight hold values that are not finite"):
        identity.weights_sha256(made)


@pytest.mark.parametrize(("kind", "tied"), [("neox", False), ("llama", False), ("opt", True), ("gpt2", True)])
def test_parameters_are_counted_once_and_without_embeddings(kind, tied):
    made = tinymodels.model(kind)
    total, inner = identity.counts(made)
    head = 0 if tied else tinymodels.VOCABULARY * 32
    positions = {"opt": (tinymodels.CONTEXT + 2) * 32, "gpt2": tinymodels.CONTEXT * 32}.get(kind, 0)
    assert total == made.num_parameters()
    assert inner == total - tinymodels.VOCABULARY * 32 - head - positions


def test_pickled_weights_are_refused_unread(folder, tmp_path):
    place = copy(folder, tmp_path / "pickled")
    (place / "model.safetensors").unlink()
    (place / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(BadInput, match=r"only pickled weights \(pytorch_model.bin\), which can run code"):
        load.model(place, "float32", CPU)


def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    place = copy(folder, tmp_path / "remote")
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "own.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load.model(place, "float32", CPU)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: (place / "config.json").unlink(), "no config.json"),
        (lambda place: (place / "model.safetensors").unlink(), "no .*safetensors weights"),
        (lambda place: (place / "model.safetensors").write_bytes(b"\x00" * 100), "cannot be loaded"),
        (lambda place: (place / "config.json").write_text("{"), "cannot be loaded"),
    ],
)
def test_broken_folders_are_refused_in_one_sentence(folder, tmp_path, change, message):
    place = copy(folder, tmp_path / "broken")
    change(place)
    with pytest.raises(BadInput, match=message) as caught:
        load.model(place, "float32", CPU)
    assert "\n" not in str(caught.value)


def test_weights_missing_from_the_file_are_not_made_up(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    place = copy(folder, tmp_path / "incomplete")
    weights = load_file(place / "model.safetensors")
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="lacks the weights .*dense_h_to_4h"):
        load.model(place, "float32", CPU)


def test_a_folder_without_tokenizer_is_refused(folder, tmp_path):
    place = copy(folder, tmp_path / "bare")
    (place / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="no tokenizer"):
        load.tokenizer(place)


def test_the_listed_hash_is_checked(folder):
    load.verify(folder, None)
    load.verify(folder, hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    with pytest.raises(BadInput, match="SHA-256 differs"):
        load.verify(folder, "0" * 64)


def checkpoint(place: str | Path = fakehub.NAME, revision: str = "main", **facts) -> Checkpoint:
    known = {"family": "f", "model": "toy", "n_params": 1, "n_params_nonembedding": 1, "train_tokens": 1}
    return Checkpoint(**known, hub=str(place), revision=revision, lr_phase="constant", lr_fraction=1.0, **facts)


def bring(one: Checkpoint, tmp_path: Path, **settings) -> dict[str, bytes]:
    """Files of a checkpoint while it is here."""
    with load.brought(one, tmp_path / "toy.lock", **settings) as place:
        return {file.name: file.read_bytes() for file in place.iterdir()}


def refused(one: Checkpoint, tmp_path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        bring(one, tmp_path, sleep=lambda _: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_locked_by_its_bytes(folder, tmp_path):
    place = copy(folder, tmp_path / "here")
    assert bring(checkpoint(place), tmp_path)["config.json"] == (folder / "config.json").read_bytes()
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("config.json", WEIGHTS)}
    assert lock.read(tmp_path / "toy.lock") == {"f/toy@main": lock.Entry("here", "main", None, sums)}
    # the same elsewhere
    bring(checkpoint(place.rename(tmp_path / "there")), tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_changed_since_it_was_locked_is_refused(folder, tmp_path, name):
    place = copy(folder, tmp_path / "here")
    bring(checkpoint(place), tmp_path)
    content = bytearray((place / name).read_bytes())
    content[-2] ^= 1
    (place / name).write_bytes(content)
    told = refused(checkpoint(place), tmp_path)
    assert told.startswith(f"f/toy@main is not what was locked, for {name} the lock has SHA-256 ")
    assert told.endswith(f"delete its entry in {tmp_path / 'toy.lock'} if the change is wanted.")
    (tmp_path / "toy.lock").unlink()
    bring(checkpoint(place), tmp_path)


def test_every_shard_of_a_folder_is_locked(folder, tmp_path):
    load.model(folder, "float32", CPU).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    bring(checkpoint(tmp_path / "sharded"), tmp_path)
    shards = {file.name for file in (tmp_path / "sharded").glob("*.safetensors")}
    assert len(shards) > 2
    assert lock.read(tmp_path / "toy.lock")["f/toy@main"].files.keys() == {"config.json", *shards}


def test_copies_of_a_folder_are_refused_by_both_names(folder, tmp_path):
    bring(checkpoint(copy(folder, tmp_path / "one"), "step1"), tmp_path)
    again = checkpoint(copy(folder, tmp_path / "two"), "step2")
    assert refused(again, tmp_path) == "the same weights as f/toy@step1"
    assert refused(checkpoint(tmp_path / "one", "step1"), tmp_path) == "the same weights as f/toy@step2"


def test_what_turned_out_unfit_is_not_locked_and_can_be_mended(folder, tmp_path):
    place = copy(folder, tmp_path / "here")
    sound = (place / WEIGHTS).read_bytes()
    (place / WEIGHTS).write_bytes(sound[:-1])
    with pytest.raises(BadInput, match="cannot be loaded"), load.brought(checkpoint(place), tmp_path / "toy.lock"):
        load.model(place, "float32", CPU)
    assert lock.read(tmp_path / "toy.lock") == {}
    (place / WEIGHTS).write_bytes(sound)
    bring(checkpoint(place), tmp_path)
    # but what was once measured stays locked
    with pytest.raises(ZeroDivisionError), load.brought(checkpoint(place), tmp_path / "toy.lock"):
        _ = 1 / 0
    assert list(lock.read(tmp_path / "toy.lock")) == ["f/toy@main"]


def test_what_the_suite_lists_is_compared(folder, tmp_path):
    assert "SHA-256 differs" in refused(checkpoint(folder, sha256="0" * 64), tmp_path)
    assert lock.read(tmp_path / "toy.lock") == {}


@pytest.fixture
def served(folder, tmp_path, monkeypatch):
    patience.note.cache_clear()
    with fakehub.serving() as made:
        fakehub.use(monkeypatch, made, tmp_path / "cache")
        made.put("main", {file.name: file.read_bytes() for file in folder.iterdir()})
        yield made
        fakehub.forget()


def altered(served: fakehub.Hub, byte: int = 1) -> dict[str, bytes]:
    """Files of the branch main with other weights."""
    files = served.commits[served.branches["main"]]
    weights = bytearray(files[WEIGHTS])
    weights[-1] ^= byte
    return files | {WEIGHTS: bytes(weights)}


def test_a_checkpoint_of_the_hub_is_locked_loaded_and_removed(served, folder, tmp_path):
    with load.brought(checkpoint(), tmp_path / "toy.lock") as place:
        loaded = load.model(place, "float32", CPU)
        load.tokenizer(place)
    assert identity.weights_sha256(loaded) == identity.weights_sha256(load.model(folder, "float32", CPU))
    assert not place.exists()
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    entry = lock.Entry(fakehub.NAME, "main", fakehub.commit("main"), {WEIGHTS: digest})
    assert lock.read(tmp_path / "toy.lock") == {"f/toy@main": entry}


def test_a_branch_that_moved_is_measured_as_locked(served, tmp_path):
    first = bring(checkpoint(), tmp_path)
    served.put("main", altered(served), "later")
    assert bring(checkpoint(), tmp_path) == first
    (tmp_path / "toy.lock").unlink()
    assert bring(checkpoint(), tmp_path)[WEIGHTS] != first[WEIGHTS]


def test_other_bytes_under_the_locked_commit_are_refused_before_the_download(served, tmp_path):
    bring(checkpoint(), tmp_path)
    served.commits[fakehub.commit("main")] = altered(served)
    before = served.bytes_of(WEIGHTS)
    assert refused(checkpoint(), tmp_path).startswith(f"f/toy@main is not what was locked, for {WEIGHTS} the lock has")
    assert served.bytes_of(WEIGHTS) == before


def test_a_locked_commit_that_is_gone_is_refused(served, tmp_path):
    bring(checkpoint(), tmp_path)
    served.put("main", altered(served), "later")
    del served.commits[fakehub.commit("main")]
    assert f"has no revision {fakehub.commit('main')}" in refused(checkpoint(), tmp_path)


def test_two_revisions_with_the_same_hashes_are_refused_before_the_download(served, tmp_path):
    bring(checkpoint(), tmp_path)
    served.put("step2", served.commits[served.branches["main"]])
    asked = served.bytes_of("")
    assert refused(checkpoint(revision="step2"), tmp_path) == "the same weights as f/toy@main"
    assert refused(checkpoint(), tmp_path) == "the same weights as f/toy@step2"
    assert served.bytes_of("") == asked


def test_hashes_that_the_hub_does_not_tell_are_taken_after_the_download(served, folder, tmp_path):
    served.without_lfs = True
    bring(checkpoint(), tmp_path)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert lock.read(tmp_path / "toy.lock")["f/toy@main"].files == {WEIGHTS: digest}
    served.commits[fakehub.commit("main")] = altered(served)
    assert "is not what was locked" in refused(checkpoint(), tmp_path)
    assert not list((tmp_path / "cache").glob("models--*/snapshots/*/*"))


def test_what_is_refused_by_the_hub_is_not_locked(served, tmp_path):
    assert "has no revision step9" in refused(checkpoint(revision="step9"), tmp_path)
    served.put("pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert "only pickled weights" in refused(checkpoint(revision="pickle"), tmp_path)
    assert not (tmp_path / "toy.lock").exists()


@pytest.mark.parametrize(
    ("error", "keep", "stays"),
    [(ValueError, False, False), (ValueError, True, True), (KeyboardInterrupt, False, True)],
)
def test_what_fails_is_removed_and_what_is_interrupted_is_gone_on_with(served, tmp_path, error, keep, stays):
    with pytest.raises(error), load.brought(checkpoint(), tmp_path / "toy.lock", keep) as place:
        raise error
    assert place.exists() == stays
    if error is KeyboardInterrupt:
        asked = served.bytes_of(WEIGHTS)
        bring(checkpoint(), tmp_path)
        assert served.bytes_of(WEIGHTS) == asked
        assert not place.exists()


FETCH = """
import sys
from pathlib import Path
from bayesqid.errors import BadInput
from bayesqid.measure import hub, lock
try:
    locked = lock.read(Path(sys.argv[2]))
    remote = hub.resolve("org/toy", sys.argv[1], locked["f/toy@main"].commit if locked else None)
    print(hub.download(remote))
except BadInput as error:
    sys.exit(f"BadInput: {error}")
"""


def fetch(served: fakehub.Hub, tmp_path: Path, revision: str, **environment: str) -> subprocess.CompletedProcess:
    # a process of its own, as users have it: the library reads the environment at import
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", FETCH, revision, str(tmp_path / "toy.lock")],
        env=variables | fakehub.environment(served, tmp_path / "home") | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_environment_says_which_hub_which_cache_and_whether_to_ask(served, folder, tmp_path):
    done = fetch(served, tmp_path, "main")
    assert done.returncode == 0, done.stderr
    fetched = Path(done.stdout.strip())
    assert fetched == tmp_path / "home/hub/models--org--toy/snapshots" / fakehub.commit("main")
    assert (fetched / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = fetch(served, tmp_path, "main", **offline)
    assert again.stdout == done.stdout, again.stderr
    missing = fetch(served, tmp_path, "step9", **offline)
    assert missing.returncode == 1
    assert missing.stderr.startswith(
        "BadInput: HF_HUB_OFFLINE is set and org/toy at revision step9 is not in the cache"
    )
    entry = lock.Entry("org/toy", "step9", fakehub.commit("main"), {})
    lock.write(tmp_path / "toy.lock", {"f/toy@main": entry})
    assert fetch(served, tmp_path, "step9", **offline).stdout == done.stdout


def test_folders_are_found_with_and_without_the_revision(tmp_path):
    (tmp_path / "step1").mkdir()
    assert load.folder(str(tmp_path), "step1") == tmp_path / "step1"
    assert load.folder(str(tmp_path / "step1"), "step1") == tmp_path / "step1"
    with pytest.raises(BadInput, match="no folder"):
        load.folder(str(tmp_path / "none"), "step1")
