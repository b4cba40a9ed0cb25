"""The fuzzing harnesses accept their own seeds; in make soak each runs for ten minutes (MINUTES=10)."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    minutes = os.environ.get("MINUTES", "10")
    command = [sys.executable, str(FUZZ / "run.py"), "--minutes", minutes, "--crashes", str(tmp_path / "crashes"),
               "--results", str(tmp_path / "fuzz.jsonl")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, *(path.read_text() for path in (tmp_path / "crashes").glob("*.txt")), sep="\n")
    rows = [json.loads(line) for line in (tmp_path / "fuzz.jsonl").read_text().splitlines()]
    assert {row["parser"] for row in rows} == set(harnesses.HARNESSES), done.stderr[-2000:]
    assert not any(row["crashes"] for row in rows), done.stdout
