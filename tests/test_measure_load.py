import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import identity, load

CPU = torch.device("cpu")
REVISION = "step1000"
COMMIT = "a" * 40


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


class FakeHub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub for one repository at one revision."""

    folder: Path
    asked: list[str]

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        files = sorted(self.folder.iterdir())
        if path in (f"/api/models/org/toy/revision/{name}" for name in (REVISION, COMMIT)):
            siblings = [{"rfilename": file.name} for file in files]
            return self.send({"id": "org/toy", "modelId": "org/toy", "sha": COMMIT, "siblings": siblings,
                              "tags": [], "private": False, "downloads": 0})  # fmt: skip
        if path in (f"/api/models/org/toy/tree/{name}" for name in (REVISION, COMMIT)):
            return self.send([{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                              for file in files])  # fmt: skip
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/org/toy/resolve/") and (self.folder / name).is_file():
            content = (self.folder / name).read_bytes()
            return self.reply(200, content if body else b"", len(content), etag=hashlib.sha1(content).hexdigest())
        return self.reply(404, b"{}", 2)

    def send(self, value) -> None:
        content = json.dumps(value).encode()
        self.reply(200, content, len(content))

    def reply(self, code: int, content: bytes, size: int, etag: str | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(size))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if code == 404:
            self.send_header("X-Error-Code", "RevisionNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


FETCH = """
import sys
from bayesqid.errors import BadInput
from bayesqid.measure import load
try:
    print(load.folder("org/toy", sys.argv[1]))
except BadInput as error:
    sys.exit(f"BadInput: {error}")
"""


def fetch(hub: str, cache: Path, revision: str, offline: bool = False) -> subprocess.CompletedProcess:
    # a process of its own: the hub's address is read at import
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "PATH": "/usr/bin:/bin",
                   "PYTHONPATH": ":".join(sys.path), "HF_HUB_DISABLE_TELEMETRY": "1",
                   "HF_HUB_OFFLINE": "1" if offline else "0", "NO_PROXY": "127.0.0.1"}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", FETCH, revision], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_a_hub_revision_is_fetched_pinned_and_without_code_or_pickles(folder, tmp_path):
    place = copy(folder, tmp_path / "served")
    (place / "pytorch_model.bin").write_bytes(b"a pickle")
    (place / "own.py").write_text("raise SystemExit")
    FakeHub.folder, FakeHub.asked = place, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = f"http://127.0.0.1:{server.server_port}"
    try:
        done = fetch(hub, tmp_path / "cache", REVISION)
        assert done.returncode == 0, done.stderr
        fetched = Path(done.stdout.strip())
        assert fetched.name == COMMIT
        assert {file.name for file in fetched.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
        assert not any(path.endswith((".bin", ".py")) for path in FakeHub.asked)
        loaded = load.model(fetched, "float32", CPU)
        assert identity.weights_sha256(loaded) == identity.weights_sha256(load.model(folder, "float32", CPU))
        missing = fetch(hub, tmp_path / "cache", "step9")
        assert missing.returncode == 1
        assert "BadInput: org/toy at revision step9 cannot be fetched" in missing.stderr
    finally:
        server.shutdown()
        server.server_close()
    # once fetched it is there without a hub
    again = fetch(hub, tmp_path / "cache", REVISION, offline=True)
    assert again.stdout == done.stdout, again.stderr


def test_folders_are_found_with_and_without_the_revision(tmp_path):
    (tmp_path / "step1").mkdir()
    assert load.folder(str(tmp_path), "step1") == tmp_path / "step1"
    assert load.folder(str(tmp_path / "step1"), "step1") == tmp_path / "step1"
    with pytest.raises(BadInput, match="no folder"):
        load.folder(str(tmp_path / "none"), "step1")
