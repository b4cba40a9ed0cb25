"""What is fuzzed: for every parser of a file nobody vouches for, seeds and a function of bytes.

A harness may raise `BadInput` and nothing else. It gets a folder to put files into.
"""

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bayesqid import bundled, cells, files, importers, laws, measurements, recipe, suite
from bayesqid.answers import asking, draws, loss_laws
from bayesqid.errors import BadInput
from bayesqid.importers import check, sources
from bayesqid.importers.formats import Given

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
# between the files of one input
CUT = b"\n=====\n"


class Harness(NamedTuple):
    """What is called with an input and a folder, and inputs to begin with."""

    call: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]


def _file(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _recipe(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", "replace")
    found = recipe.parse(text)
    if recipe.parse(str(found)) != found:
        raise AssertionError(f"{text!r} does not round-trip")


def _recipes() -> list[bytes]:
    texts = ["none", "rtn-w3", "gptq-w4-g128-act-oneshot-s3", "awq-w3-g32-sym-saved", "rtn-mxfp6e2m3-g16-wa", "rtn-nf4",
             "rtn-w3@0.9m17", "rtn-mxint4-wa@0.25l", "mix-own@0123abcd", "hqq-w4-g64"]  # fmt: skip
    return [text.encode() for text in texts]


def _suite(data: bytes, folder: Path) -> None:
    toml, _, table = data.partition(CUT)
    (folder / "tiny").mkdir(exist_ok=True)
    _file(table, folder / "tiny", "checkpoints.json")
    suite.load(_file(toml, folder, "suite.toml"))


def _suites() -> list[bytes]:
    rows = json.loads((bundled.models_dir() / "tiny" / "checkpoints.json").read_text(encoding="utf-8"))[:2]
    made = [(bundled.models_dir() / f"{name}.toml").read_bytes() for name in ("pythia", "gemstones", "amber")]
    return [*made, (bundled.models_dir() / "tiny.toml").read_bytes() + CUT + json.dumps(rows).encode()]


def _table(data: bytes, folder: Path) -> None:
    cells.check(sources.read_cells(str(_file(data, folder, "table.csv"))))


TABLE = b"""family,model,method,bits,group_size,ppl_fp,ppl_q,qid,qid_se,n_params_nonembedding,train_tokens,vocab_size
mine,m1,gptq,3,128,5.47,6.29,,0.001,6.5e9,2e12,32000
mine,m1,rtn,4,-1,5.47,6.11,,,6.5e9,2e12,32000
mine,m2,awq,4,128,,,0.05,0.002,1.3e10,2e12,
other,LLaMA-3-8B,gptq-sym,2,64,,,3.5,,,,
"""


def _check(data: bytes, folder: Path) -> None:
    path = _file(data, folder, "table.csv")
    check.check(path)
    check.notes(path)


@functools.cache
def _posterior() -> draws.Posterior:
    return draws.read(str(bundled.data_dir() / "posterior.nc"), brief=True)


def _targets(data: bytes, folder: Path) -> None:
    asking.asked(_posterior(), _file(data, folder, "targets.csv"))


TARGETS = b"""params,tokens,bits,family,method,lr_phase
7e9,2e12,3,Pythia,gptq,annealed
1.3e10,1e13,4,new,rtn,constant
"""


def _mapping(data: bytes, folder: Path) -> None:
    toml, _, table = data.partition(CUT)
    given = Given(mapping=_file(toml, folder, "mapping.toml"), family="mine", params=1e9, tokens=3e11)
    importers.read([_file(table, folder, "table.csv")], given, "table")


MAPPING = b"""[columns]
model = "name"
loss = "nll"
bits = "wbits"
[constants]
method = "gptq"
group_size = 128
[units]
loss = "bits"
[scale]
bits = 1
[baseline]
column = "kind"
value = "fp16"
match = ["model"]
[values.model]
m1 = "mine"
""" + CUT + b"""name,nll,wbits,kind
m1,3.1,16,fp16
m1,3.4,4,q
m1,3.9,3,q
"""


def _lm_eval(data: bytes, folder: Path) -> None:
    parts = [*data.split(CUT), b"", b"", b""]
    for name, results, samples in (("base", parts[0], parts[1]), ("run", parts[2] or parts[0], parts[3])):
        (folder / name).mkdir(exist_ok=True)
        _file(results, folder / name, "results_1.json")
        _file(samples, folder / name, "samples_texts_1.jsonl")
    given = Given(family="mine", params=1e9, tokens=3e11, vocabulary=5e4, baseline=folder / "base", recipe="gptq-w4",
                  tokens_per_byte=0.25)  # fmt: skip
    importers.read([folder / "run"], given, "lm-eval")


def _lm_evals() -> list[bytes]:
    def run(model: str, nats: list[float]) -> list[bytes]:
        data = {"results": {"texts": {"bits_per_byte,none": 0.9}}, "versions": {"texts": 1.0}, "n-shot": {"texts": 0},
                "configs": {"texts": {"task": "texts", "output_type": "loglikelihood_rolling"}}, "date": 1.0,
                "config": {"model_args": {"pretrained": model}, "model_revision": "main", "limit": None},
                "max_length": 2048}  # fmt: skip
        lines = [{"doc_id": at, "doc_hash": "h", "filtered_resps": [str(-one)],
                  "arguments": {"gen_args_0": {"arg_0": "some text " * (at + 1)}}}
                 for at, one in enumerate(nats)]  # fmt: skip
        return [json.dumps(data).encode(), "\n".join(map(json.dumps, lines)).encode()]

    return [CUT.join([*run("my-1B", [9.0, 20.0]), *run("my-1B-q", [9.5, 21.0])]), CUT.join(run("my-1B", [1.0]))]


def _llama_cpp(data: bytes, folder: Path) -> None:
    base, _, log = data.partition(CUT)
    given = Given(family="mine", params=1e9, tokens=3e11, baseline=_file(base, folder, "f16.log") if log else None)
    importers.read([_file(log or base, folder, "q4.log")], given, "llama.cpp")


def _logs() -> list[bytes]:
    def plain(kind: str, values: str, last: str) -> bytes:
        return (f"print_info: file type   = {kind}\nprint_info: file size   = 4.58 GiB (4.89 BPW)\n"
                "print_info: general.name     = LLaMA-3-8B\nprint_info: n_vocab          = 128256\n"
                "perplexity: calculating perplexity over 3 chunks, n_ctx=512, batch_size=512, n_seq=1\n"
                f"{values}\nFinal estimate: PPL = {last} +/- 0.03\n").encode()  # fmt: skip

    paired = (b"print_info: file type   = Q4_K - Medium\nprint_info: general.name     = my 1B\n"
              b"====== Perplexity statistics ======\nMean PPL(Q)                   :   6.2   +/-   0.02\n"
              b"Mean PPL(base)                :   6.0   +/-   0.02\n"
              b"Mean ln(PPL(Q)/PPL(base))     :   0.03  +/-   0.001\n"
              b"Mean    KLD:   0.02  +/-   0.0001\n")  # fmt: skip
    before = plain("F16", "[1]6.1,[2]6.2,[3]6.0,", "6.0")
    after = plain("Q4_K - Medium", "[1]6.3,[2]6.4,[3]6.2,", "6.2")
    return [CUT.join([before, after]), paired]


def _gptq(data: bytes, folder: Path) -> None:
    given = Given(family="mine", params=1e9, tokens=3e11, ppl="5.47:5.63")
    importers.read([_file(data, folder, "quantize_config.json")], given, "gptq")


GPTQ = [b'{"bits": 4, "group_size": 128, "desc_act": true, "sym": false, "quant_method": "gptq"}',
        b'{"hidden_size": 64, "quantization_config": {"quant_method": "awq", "w_bit": 4, "bits": 4, '
        b'"q_group_size": 64, "zero_point": true, "meta": {"recipe": "gptq-w4-g128"}}}']  # fmt: skip


def _toml(data: bytes, folder: Path) -> None:
    path = _file(data, folder, "a.toml")
    for read in (lambda: laws.describe(laws.with_priors(laws.get("boxcox"), files.read_toml(path))),
                 lambda: loss_laws.read(path), lambda: _assign().read(path)):  # fmt: skip
        with contextlib.suppress(BadInput):
            read()


def _assign():
    from bayesqid.measure import assign

    return assign


TOML = [b"[beta]\nmean = 0.5\nsd = 0.1\nspread = 0.2\n[lam]\nmean = 0.1\nsd = 0.2\n[scatter]\nspread = 0.3\n",
        b'form = "chinchilla"\ncitation = "x"\ncorrelation = [["A", "B", 0.1]]\n[values]\nE = 1.69\nA = 406.4\n'
        b'B = 410.7\nalpha = 0.34\nbeta = 0.28\n[sd]\nE = 0.0\nA = 1.0\nB = 1.0\nalpha = 0.01\nbeta = 0.01\n',
        b'schema = "bayesqid-mix/1"\nfound = "own"\n[layers]\n"a.b" = "rtn-w3"\nc = "none"\n']  # fmt: skip


def _spoiled(data: bytes, whole: bytes) -> bytes:
    """A sound file with bytes put elsewhere: each five bytes say where, how and which; a coverage-guided flip."""
    made = bytearray(whole)
    for at in range(0, len(data) - 4, 5):
        where = int.from_bytes(data[at : at + 3], "little") % len(made)
        if data[at + 3] == 255:
            del made[max(where, 512) :]
        else:
            made[where] = data[at + 4]
    return bytes(made)


def _positive(data):
    # with none above zero nothing behind that check is reached
    return data.isel(cell=np.flatnonzero(data["qid"].to_numpy() > 0)[:4])


@functools.cache
def _small(name: str) -> bytes:
    """A small sound netCDF file of a kind."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "small.nc"
        if name == "measurements":
            whole = measurements.read(bundled.data_dir() / "tiny.nc")
            files.write_netcdf(whole.isel(checkpoint=[0, 1], document=slice(0, 3), recipe=slice(0, 2)), path)
        elif name == "cells":
            files.write_netcdf(_positive(sources.read_cells("tiny")), path)
        else:
            tree = files.open_tree(bundled.data_dir() / "posterior.nc", draws.PER_CELL)
            files.write_netcdf(tree.isel(draw=slice(0, 4), missing_dims="ignore"), path)
        return path.read_bytes()


def _netcdf(kind: str) -> Callable[[bytes, Path], None]:
    def call(data: bytes, folder: Path) -> None:
        path = _file(_spoiled(data, _small(kind)), folder, "spoiled.nc")
        if kind == "posterior":
            draws.read(str(path), brief=True)
        else:
            cells.check(cells.join([sources.read_cells(str(path))]))

    return call


def _attributes(data: bytes, folder: Path) -> None:
    """JSON in attributes and text in labels, of files that are sound as netCDF."""
    what, _, text = data.decode("utf-8", "replace").replace("\0", "").partition("\n")
    kind, _, name = what.partition(" ")
    path = folder / "attributes.nc"
    path.write_bytes(_small(kind if kind in ("measurements", "cells") else "cells"))
    data_set = files.open_dataset(path)
    if name in data_set.variables:
        if data_set[name].dtype.kind not in "OUT":
            return
        values = np.array([text, *data_set[name].values.astype(str).flat[1:]], dtype=object)
        put = data_set.assign_coords if name in data_set.coords else data_set.assign
        data_set = put({name: (data_set[name].dims, values.reshape(data_set[name].shape))})
    else:
        data_set.attrs[name if name in ("manifest", "excluded", "sources", "schema") else "excluded"] = text
    files.write_netcdf(data_set, path)
    found = cells.check(cells.join([sources.read_cells(str(path))]))
    from bayesqid.importers import formats

    formats.table(found)


ATTRIBUTES = [b'cells excluded\n{"reason": {"family": 3}}', b'cells sources\n[{"name": "a", "sha256": "b"}]',
              b'measurements manifest\n{"suite": "tiny", "protocol": {"text": "t", "context": 128}}',
              b"measurements recipe\nrtn-w3", b"cells family\nPythia", b"cells quantizer\ngptq",
              b"cells schema\nbayesqid-cells/1", b"measurements family\nx", b"cells lr_phase\nannealed"]  # fmt: skip


def _parts(data: bytes, folder: Path) -> None:
    from bayesqid.measure import parts

    found = [measurements.read(_file(_spoiled(data, _small("measurements")), folder, "part.nc"))]
    parts.done(found)
    whole = measurements.read(_file(_small("measurements"), folder, "whole.nc"))
    measurements.merge(whole, found)


def _lock(data: bytes, folder: Path) -> None:
    from bayesqid.measure import lock
    from bayesqid.measure.lock import Entry

    path = _file(data, folder, "a.lock")
    entries = lock.read(path)
    lock.twins(entries)
    for entry in entries.values():
        lock.difference(entry, Entry("org/toy", "main", "1" * 40, {"model.safetensors": "a" * 64}))
    lock.text(entries)


LOCK = (b'{"schema": "bayesqid-lock/1", "checkpoints": {"f/a@1": {"hub": "org/toy", "revision": "main", "commit": "'
        + b"1" * 40 + b'", "files": {"model.safetensors": "' + b"a" * 64 + b'"}}}}')  # fmt: skip


def _checkpoint(data: bytes, folder: Path) -> None:
    """A checkpoint's configuration, index and weights, up to where transformers takes over."""
    from bayesqid.measure import hub, load, saved

    config, index, weights = [*data.split(CUT), b"", b""][:3]
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "model").mkdir()
    _file(config, folder / "model", "config.json")
    if index:
        _file(index, folder / "model", hub.INDEX)
    _file(weights, folder / "model", "model-1.safetensors" if index else "model.safetensors")
    for read in (load.fit, saved.recipe_of, lambda path: list(saved.weights(path).values()),
                 lambda path: list(saved.others(path).values())):  # fmt: skip
        with contextlib.suppress(BadInput):
            read(folder / "model")


def _checkpoints() -> list[bytes]:
    made = []
    for name in ("baseline", "gptq-w3", "gptq-w4-g32-act", "pack-w4-g32-act"):
        config, weights = ((FIXTURES / name / file).read_bytes() for file in ("config.json", "model.safetensors"))
        made.append(CUT.join([config, b"", weights]))
    index = b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}'
    return [*made, CUT.join([b"{}", index, made[0].rpartition(CUT)[2]])]


def _text(data: bytes, folder: Path) -> None:
    from bayesqid.measure import text

    text.digest(text.cut(text.read(_file(data, folder, "text.jsonl")), 100))


HARNESSES = {
    "recipe": Harness(_recipe, _recipes),
    "suite": Harness(_suite, _suites),
    "table": Harness(_table, lambda: [TABLE]),
    "check": Harness(_check, lambda: [TABLE, (bundled.data_dir() / "published_qid.csv").read_bytes()[:3000]]),
    "targets": Harness(_targets, lambda: [TARGETS]),
    "mapping": Harness(_mapping, lambda: [MAPPING]),
    "lm_eval": Harness(_lm_eval, _lm_evals),
    "llama_cpp": Harness(_llama_cpp, _logs),
    "gptq": Harness(_gptq, lambda: GPTQ),
    "toml": Harness(_toml, lambda: TOML),
    "measurements": Harness(_netcdf("measurements"), lambda: [b"\0\0\1\0\0"]),
    "cells": Harness(_netcdf("cells"), lambda: [b"\0\0\1\0\0"]),
    "posterior": Harness(_netcdf("posterior"), lambda: [b"\0\0\1\0\0"]),
    "attributes": Harness(_attributes, lambda: ATTRIBUTES),
    "parts": Harness(_parts, lambda: [b"\0\0\1\0\0"]),
    "lock": Harness(_lock, lambda: [LOCK]),
    "checkpoint": Harness(_checkpoint, _checkpoints),
    "text": Harness(_text, lambda: [b'{"id": "a", "text": "one two"}\n{"text": "three"}\n']),
}
