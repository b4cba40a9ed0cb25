"""Hostile files: each ends with exit 2 and one sentence, nothing in it is run and nothing outside it is read."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from bayesqid import bundled, files, netcdf, suite
from bayesqid.errors import BadInput
from bayesqid.importers import sources
from bayesqid.measure import hub, load, lock, saved, text
from fakehub import commit
from test_suite import MINIMAL

FIXTURES = Path(__file__).parent / "fixtures"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def refused(call, *arguments, says: str = "") -> str:
    """The sentence with which something is refused, within seconds."""
    start = time.monotonic()
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 600  # it names the folder twice
    assert says in sentence
    assert time.monotonic() - start < 10
    return sentence


def run(*words, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bayesqid", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


# Suites, mappings, laws, assignments: TOML


MINE = MINIMAL.replace("start = 10, stop = 30, every = 10", "list = [10]")


@pytest.mark.parametrize("old_new_says", [
    ('"eval.jsonl"', '"../../../etc/passwd"', "not inside the suite's folder"),
    ('"eval.jsonl"', '"/etc/passwd"', "not inside the suite's folder"),
    ('"calibration.jsonl"', '"a/../../b"', "not inside"),
    ("context = 128", 'context = 128\\ntokenizer = "/etc"', "not inside"),
    ("[text]", 'checkpoints = "../checkpoints.json"\\n[text]', "not inside"),
    ('"step{step}"', '"../../{step}"', "revision"),
    ('"step{step}"', '"/tmp/{step}"', "revision"),
    ('"step{step}"', '"{step.__class__.__mro__}"', "cannot be filled in"),
    ('"step{step}"', '"{step:>9999999999}"', "revision"),
    ('"step{step}"', '"{step:09999999999d}"', "revision"),
    ('"step{step}"', '"{step!r:>999999999}"', "revision"),
    ('"me/mine-1b"', '"../../home"', "hub id"),
    ('"me/mine-1b"', '"/home/me"', "hub id"),
    ('"me/mine-1b"', '"me/\\\\u001b[2Jx"', "hub id"),
    ("list = [10]", 'list = ["x"]', "list holds"),
    ("tokens_per_step = 7", f"tokens_per_step = {'9' * 4000}", "bits"),
    ("n_params = 1100", f"n_params = {'9' * 5000}", "Exceeds"),
    ("list = [10]", "start = 0, stop = 9000000000000000000", "more than"),
], ids=str)  # fmt: skip
def test_a_hostile_suite_is_refused(tmp_path, old_new_says):
    old, new, says = old_new_says
    assert old in MINE
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace(old, new.replace("\\n", "\n").replace("\\\\", "\\"), 1), encoding="utf-8")
    refused(suite.load, path, says=says)


def test_the_suite_before_it_was_made_hostile_is_read(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    assert [one.revision for one in suite.load(tmp_path / "mine.toml").checkpoints] == ["step10"]


@pytest.mark.parametrize(("key", "value"), [
    ("path", "../../../etc"), ("path", "/etc"), ("path", ""), ("revision", "../x"), ("n_params", "many"),
    ("n_params", 10**400), ("train_tokens", [1]), ("family", None),
])  # fmt: skip
def test_a_hostile_table_of_checkpoints_is_refused(tmp_path, key, value):
    row = {"family": "f", "model": "m", "path": "m", "revision": "r", "n_params": 2, "n_params_nonembedding": 1,
           "train_tokens": 3, "lr_phase": "constant", "lr_fraction": 1.0, "vocab_size": 4, "seed": 0,
           "sha256": None}  # fmt: skip
    (tmp_path / "mine.toml").write_text(MINE.replace("[text]", 'checkpoints = "c.json"\n[text]'), encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps([row]))
    assert len(suite.load(tmp_path / "mine.toml").checkpoints) == 2
    (tmp_path / "c.json").write_text(json.dumps([row | {key: value}]))
    refused(suite.load, tmp_path / "mine.toml", says="c.json")


TOML_BOMBS = {
    "dotted": ".".join(["a"] * 60_000) + " = 1", "quoted": '"a,".' * 20_000 + "b = 1", "arrays": "a = " + "[" * 90_000,
    "tables": "a = " + "{a = " * 40_000, "number": "a = " + "9" * 5000, "large": "# " + "x" * files.MOST_TOML,
}  # fmt: skip


@pytest.mark.parametrize("name", TOML_BOMBS)
def test_toml_that_would_take_all_time_or_memory_is_refused(tmp_path, name):
    path = tmp_path / "bomb.toml"
    path.write_text(TOML_BOMBS[name])
    refused(files.read_toml, path)
    refused(suite.load, path)
    refused(files.read_toml, path)


def test_dots_in_texts_and_numbers_are_no_deep_keys(tmp_path):
    (tmp_path / "a.toml").write_text(f'a = "{"." * 99}"  # {"." * 99}\nb = [{"1.5, " * 99}]\nc.d.e = 1\n')
    assert files.read_toml(tmp_path / "a.toml")["b"] == [1.5] * 99


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, '{"a": "\\ud800"}', "\x00", ""])
def test_json_that_is_too_deep_or_half_a_character_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    refused(files.read_json, path)
    refused(lock.read, path)
    refused(text.read, path)
    (tmp_path / "config.json").write_text(content)
    refused(saved.settings, tmp_path)


def test_what_is_no_regular_file_is_refused_instead_of_read_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", "/dev/zero"):
        refused(files.read_text, path, says="There is no")
    refused(suite.load, tmp_path / "pipe.toml")
    (tmp_path / "table.csv").symlink_to("/dev/zero")
    refused(sources.read_cells, str(tmp_path / "table.csv"))


# netCDF


DATA = xr.Dataset({"x": ("a", np.arange(3.0))}, {"a": ["p", "q", "r"]}, {"schema": "toy/1"})


def external_link(file, folder):
    file["secret"] = h5py.ExternalLink(str(folder / "secret.nc"), "/x")


def soft_link(file, folder):
    file["other"] = h5py.SoftLink("/x")


def external_storage(file, folder):
    (folder / "secret.bin").write_bytes(b"s" * 64)
    file.create_dataset("stolen", (8,), dtype="f8", external=[(str(folder / "secret.bin"), 0, 64)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.nc"), "x", (3,))
    file.create_virtual_dataset("stolen", layout)


def bomb(file, folder):
    file.create_dataset("zeros", (2**40,), dtype="f8", chunks=(2**20,), compression="gzip")


def many_texts(file, folder):
    file.create_dataset("texts", (2**30,), dtype=h5py.string_dtype(), chunks=(2**16,), compression="gzip")


def plugin(file, folder):
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((4,))
    made.set_filter(32_001, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(file.id, b"packed", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((4,)), made)


def cycle(file, folder):
    file["again"] = file["/"]


def deep(file, folder):
    group = file
    for name in "ghijklmnopqrstuvwyzABCDEF":
        group = group.create_group(name)


def compound(file, folder):
    file["pair"] = np.zeros(2, dtype=[("a", "f8"), ("b", "i4")])


def variable_length(file, folder):
    file.create_dataset("ragged", (2,), dtype=h5py.vlen_dtype("f8"))


def opaque(file, folder):
    file["opaque"] = np.void(pickle.dumps(os.getcwd))


def reference_attribute(file, folder):
    file["x"].attrs["points"] = file["a"].ref


def many_attributes(file, folder):
    for number in range(netcdf.MOST_ATTRIBUTES + 1):
        file.attrs[f"n{number}"] = number


HOSTILE = {
    external_link: "link", soft_link: "link", external_storage: "another file", virtual: "another file",
    bomb: "GiB", many_texts: "GiB", plugin: "filter", cycle: "deep", deep: "deep",
    compound: "neither numbers nor text", variable_length: "neither numbers nor text",
    opaque: "neither numbers nor text", reference_attribute: "neither numbers nor text", many_attributes: "attributes",
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_hdf5_that_reads_other_files_or_fills_the_memory_is_refused(tmp_path, change):
    for name in ("secret.nc", "evil.nc"):
        files.write_netcdf(DATA, tmp_path / name)
    xr.testing.assert_identical(files.open_dataset(tmp_path / "evil.nc"), DATA)
    with h5py.File(tmp_path / "evil.nc", "r+") as file:
        change(file, tmp_path)
    refused(files.open_tree, tmp_path / "evil.nc", says=HOSTILE[change])
    if change not in (cycle, deep):  # a dataset is the top level alone, and these lie below
        refused(files.open_dataset, tmp_path / "evil.nc", says=HOSTILE[change])


def test_limits_are_said_before_anything_is_read(tmp_path, monkeypatch):
    files.write_netcdf(DATA, tmp_path / "a.nc")
    monkeypatch.setattr(netcdf, "MOST_BYTES", 20)
    monkeypatch.setattr(netcdf, "_values", lambda *_: pytest.fail("read"))
    refused(files.open_dataset, tmp_path / "a.nc", says="of memory")


def test_one_text_that_stands_for_thousands_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        texts = file.create_dataset("a", (20_000,), dtype=h5py.string_dtype(), fillvalue="x" * 50_000)
        texts.make_scale("a")
    assert (tmp_path / "a.nc").stat().st_size < 1e6
    monkeypatch.setattr(netcdf, "MOST_BYTES", 2**26)
    monkeypatch.setattr(netcdf, "AT_ONCE", 2**24)
    refused(files.open_dataset, tmp_path / "a.nc", says="of memory")


# Checkpoints


def test_an_attribute_that_is_no_text_of_unicode_is_refused(tmp_path):
    path = tmp_path / "x.nc"
    files.write_netcdf(xr.Dataset(attrs={"manifest": '{"suite": "????"}'}), path)
    path.write_bytes(path.read_bytes().replace(b"????", b"\xff\xff\xff\xff"))
    refused(files.open_dataset, path, says="utf-8")


def test_a_heap_that_hdf5_would_read_for_ever_is_refused(tmp_path):
    path = tmp_path / "x.nc"
    files.write_netcdf(xr.Dataset({"name": ("row", np.array(["one", "two"], dtype=object))}), path)
    content = bytearray(path.read_bytes())
    heap = here = content.index(b"GCOL\x01")
    here += 16
    while int.from_bytes(content[here : here + 2], "little"):
        here += 16 + -(-int.from_bytes(content[here + 8 : here + 16], "little") // 8) * 8
    free = int.from_bytes(content[here + 8 : here + 16], "little")
    assert here + free == heap + int.from_bytes(content[heap + 8 : heap + 16], "little"), "the rest of the heap"
    for size in (0, 8, free + 8, 2**64 - 8):
        content[here + 8 : here + 16] = size.to_bytes(8, "little")
        path.write_bytes(content)
        refused(files.open_dataset, path, says="its texts are damaged")


def test_a_text_said_to_be_longer_than_the_file_is_refused_before_its_memory_is_taken(tmp_path):
    path = tmp_path / "x.nc"
    files.write_netcdf(xr.Dataset({"name": ("row", np.array(["one", "two"], dtype=object))}), path)
    with h5py.File(path) as file:
        start = file["name"].id.get_offset()
    content = bytearray(path.read_bytes())
    assert content[start : start + 4] == (3).to_bytes(4, "little")
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    refused(files.open_dataset, path, says="a text longer than the file")


@pytest.fixture
def model(tmp_path):
    """A small sound checkpoint, and a canary that hostile code would leave behind."""
    import tinymodels

    tinymodels.save("llama", tmp_path / "model")
    code = f"open({str(tmp_path / 'canary')!r}, 'w').write('ran')\n"
    for name in ("modeling", "configuration", "tokenization"):
        (tmp_path / "model" / f"{name}_evil.py").write_text(code)
    yield tmp_path / "model"
    assert not (tmp_path / "canary").exists(), "code out of a checkpoint was run"


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CODE = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoTokenizer": ["tokenization_evil.Evil", None]}  # fmt: skip


def loaded(model):
    import torch

    return load.model(model, "float32", torch.device("cpu"))


@pytest.mark.parametrize(("changes", "says"), [
    ({"auto_map": CODE, "model_type": "evil", "architectures": ["Evil"]}, "custom code"),
    ({"_attn_implementation": "evil/kernel"}, "code or files of elsewhere"),
    ({"attn_implementation": {"": "evil/kernel:run"}}, "code or files of elsewhere"),
    ({"transformers_weights": "../secret.safetensors"}, "code or files of elsewhere"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "saved quantized"),
    ({"num_hidden_layers": 10**9}, "more than its weights hold"),
    ({"vocab_size": 10**12}, "more than its weights hold"),
    ({"text_config": {"hidden_size": 10**12}}, "more than its weights hold"),
], ids=str)  # fmt: skip
def test_a_configuration_that_names_code_files_or_giants_is_refused(model, changes, says):
    change_json(model / "config.json", **changes)
    refused(loaded, model, says=says)


def test_code_beside_a_known_architecture_is_not_run(model):
    change_json(model / "config.json", auto_map=CODE)
    change_json(model / "tokenizer_config.json", auto_map=CODE, tokenizer_file="/etc/passwd")
    assert loaded(model).config.model_type == "llama"
    assert load.tokenizer(model).encode("words")


def test_a_tokenizer_of_its_own_code_is_refused(model):
    change_json(model / "tokenizer_config.json", auto_map=CODE, tokenizer_class="Evil")
    refused(load.tokenizer, model, says="custom code")


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (Path.write_text, (Path(self.canary), "ran"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_a_pickle_is_never_opened(model, tmp_path, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    refused(loaded, model)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "pytorch_model.bin", 3, None,
                                   "sub/model.safetensors"])  # fmt: skip
def test_an_index_that_leads_elsewhere_is_refused(model, tmp_path, shard):
    (model / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (model / "model-1.safetensors").write_bytes((tmp_path / "secret.safetensors").read_bytes())
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    (model / hub.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
    refused(loaded, model)
    refused(load.contents, model)
    refused(saved.files, model)


def test_an_adapter_that_would_have_another_model_loaded_is_refused(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc", "peft_type": "LORA"}')
    refused(loaded, model, says="adapter")


def header(tensors: dict, size: int | None = None) -> bytes:
    content = json.dumps(tensors).encode()
    return (len(content) if size is None else size).to_bytes(8, "little") + content


@pytest.mark.parametrize("content", [
    header({}, 2**62), header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, -8]}}),
    header({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 0]}}), b"", b"\x80\x04", b"\xff" * 64,
])  # fmt: skip
def test_a_broken_header_of_safetensors_is_refused(model, content):
    (model / "model.safetensors").write_bytes(content)
    refused(loaded, model)
    refused(lambda: list(saved.files(model)))


@pytest.mark.parametrize(("name", "revision"), [
    ("../../etc", "main"), ("/etc", "main"), ("org/toy", "../../../etc/passwd"), ("org/toy", "/etc/passwd"),
    ("org/toy", ""), ("org/toy", "a\x1b[2J"), ("org/toy\n", "main"),
])  # fmt: skip
def test_hub_names_that_lead_out_of_the_cache_are_refused(name, revision):
    refused(hub.resolve, name, revision)


def test_a_lock_cannot_name_a_commit_that_leads_out_of_the_cache(tmp_path):
    refused(hub.resolve, "org/toy", "main", "../../../../etc", says="revision")
    path = tmp_path / "a.lock"
    lock.write(path, {"f/a@1": lock.Entry("org/toy", "main", commit("x"), {})})
    path.write_text(path.read_text().replace(f'"{commit("x")}"', "[1]"))
    refused(lock.read, path, says="no lock")


def test_a_revision_cannot_lead_out_of_a_models_folder(tmp_path):
    (tmp_path / "model").mkdir()
    refused(load.local, str(tmp_path / "model"), "../secret", says="leads out of")


def test_a_damaged_download_removes_nothing_outside_its_repository(tmp_path):
    repository = tmp_path / "models--org--toy"
    (repository / "snapshots" / "c").mkdir(parents=True)
    (repository / "blobs").mkdir()
    for place in (tmp_path / "precious", repository / "blobs" / "b"):
        place.write_text("x")
    for name, target in (("a", tmp_path / "precious"), ("b", Path("../../blobs/b"))):
        link = repository / "snapshots" / "c" / name
        link.symlink_to(target)
        hub._discard(link)
        assert not link.is_symlink()
    assert (tmp_path / "precious").exists()
    assert not (repository / "blobs" / "b").exists()


# The command line


@pytest.mark.slow
def test_commands_refuse_hostile_files_with_exit_2_and_one_sentence(tmp_path):
    files.write_netcdf(DATA, tmp_path / "secret.nc")
    (tmp_path / "secret.nc").rename(tmp_path / "evil.nc")
    with h5py.File(tmp_path / "evil.nc", "r+") as file:
        file["secret"] = h5py.ExternalLink("/etc/passwd", "/x")
    (tmp_path / "evil.toml").write_text(MINE.replace('"eval.jsonl"', '"../../etc/passwd"'))
    for words in (["project", "evil.nc", "--params", "7e9", "--tokens", "1e12", "--bits", "3"],
                  ["measure", "evil.toml"]):  # fmt: skip
        done = run(*words, folder=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("bayesqid: ")
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 3


def test_control_characters_of_names_do_not_reach_a_terminal():
    assert files.printable("a\x1b[2J\x9b31m\u202eb\r\x07ä\t\n日") == "a\ufffd[2J\ufffd31m\ufffdb\ufffd\ufffdä\t\n日"


def test_no_reader_knows_pickle_or_eval():
    words = ("import pickle", "torch.load", "eval(", "exec(", "joblib", "marshal", "allow_pickle", "yaml",
             "trust_remote_code=True", "os.system", "shell=True")  # fmt: skip
    source = {path: path.read_text(encoding="utf-8") for path in bundled._PACKAGE.rglob("*.py")}
    found = [f"{path.name}: {word}" for path, code in source.items() for word in words
             if word in code.replace(".eval()", "").replace("recipe.yaml", "")]  # fmt: skip
    assert not found
