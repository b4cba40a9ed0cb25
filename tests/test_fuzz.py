"""The fuzzing harnesses accept their own seeds; in make soak each runs for ten minutes (MINUTES=10 JOBS=1)."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bayesqid import bundled

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"


@pytest.fixture(scope="module")
def harnesses():
    sys.path.insert(0, str(FUZZ))
    yield importlib.import_module("harnesses")
    sys.path.remove(str(FUZZ))


QUICK = ("recipe", "suite", "targets", "lm_eval", "llama_cpp", "gptq", "toml", "lock", "checkpoint", "text")


@pytest.mark.parametrize("name", QUICK)
def test_seeds_get_through_the_parser(harnesses, tmp_path, name):
    from bayesqid.errors import BadInput

    harness = harnesses.HARNESSES[name]
    sound = 0
    for seed in harness.seeds():
        try:
            harness.call(seed, tmp_path)
            sound += 1
        except BadInput:
            pass
    assert sound, "no seed reaches what lies behind the first check"


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_every_parser_stands_ten_minutes_of_fuzzing(harnesses, tmp_path):
    pytest.importorskip("atheris")
    minutes, jobs = os.environ.get("MINUTES", "10"), os.environ.get("JOBS", "1")
    command = [sys.executable, str(FUZZ / "run.py"), "--minutes", minutes, "--jobs", jobs,
               "--crashes", str(tmp_path / "crashes"), "--results", str(tmp_path / "fuzz.jsonl")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, *(path.read_text() for path in (tmp_path / "crashes").glob("*.txt")), sep="\n")
    rows = [json.loads(line) for line in (tmp_path / "fuzz.jsonl").read_text().splitlines()]
    assert {row["parser"] for row in rows} == set(harnesses.HARNESSES), done.stderr[-2000:]
    assert not any(row["crashes"] or row["ended"] for row in rows), done.stdout


HEADER = (bundled.data_dir() / "published_qid.csv").read_bytes().splitlines(keepends=True)[0]
# what fuzzing found, cut down to what made it crash
FOUND = {
    "counts of left-out rows that are no JSON": ("attributes", b"cells excluded\nno json"),
    "measurements without the unquantized model": ("attributes", b"measurements recipe\nrtn-w3"),
    "a row with more values than the header": ("check", HEADER + b"OPT" + b"," * (HEADER.count(b",") + 1) + b"\n"),
    "no row with a perplexity": ("check", HEADER + b"OPT" + b"," * HEADER.count(b",") + b"\n"),
    "a text for GPTQ's meta": ("checkpoint", b'{"quantization_config": {"bits": 4, "meta": "x"}}'),
    "a list for GPTQ's format": ("checkpoint", b'{"quantization_config": {"bits": 4, "checkpoint_format": [1]}}'),
    "a list for a column": ("mapping", b'[columns]\nmodel = "name"\nppl_q = "p"\n[baseline]\ncolumn = ["kind"]\n'
                                       b'value = "fp16"\n\n=====\nname,p,kind\nm,3,fp16\n'),
}  # fmt: skip


@pytest.mark.parametrize("what", FOUND)
def test_what_once_crashed_is_refused_or_read(harnesses, tmp_path, what):
    from bayesqid.errors import BadInput

    name, data = FOUND[what]
    with contextlib.suppress(BadInput):
        harnesses.HARNESSES[name].call(data, tmp_path)
