"""The wheel alone, in a bare environment, from another folder: what a user without the checkout gets."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BLOCKED = (
    "torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "click",  # not among the dependencies
    # not needed for an answer
    "pymc", "pytensor", "nutpie", "numba", "numpyro", "jax", "arviz", "arviz_stats", "matplotlib", "altair",
    "vl_convert",
)  # fmt: skip
# Stands in for an environment without the heavy packages: importing one fails as if it were not installed
CALL = f"""
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import bayesqid
print(bayesqid.__file__, file=sys.stderr)
sys.argv[0] = "bayesqid"
runpy.run_module("bayesqid", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("bayesqid-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def call(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run bayesqid from the installed wheel; -S leaves out the checkout's editable install."""
    script = cwd / "call.py"
    script.write_text(CALL)
    site = sysconfig.get_path("purelib")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), site])}
    command = [sys.executable, "-S", str(script), *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_wheel_holds_data_suites_and_ladder(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    bundle = "bayesqid/bundle/"
    assert {bundle + "data/published_qid.csv", bundle + "data/posterior.nc"} <= names
    suites = {path.name for path in (ROOT / "models").glob("*.toml")}
    assert {f"{bundle}models/{name}" for name in suites} <= names
    weights = {p.relative_to(ROOT).as_posix() for p in (ROOT / "models" / "tiny").rglob("*.safetensors")}
    assert weights
    assert {bundle + path for path in weights} <= names
    assert {bundle + "models/tiny/tokenizer/tokenizer.json", bundle + "models/tiny/text/eval.jsonl"} <= names
    assert [name for name in names if re.search(r"__pycache__|\.pyc$|/\.", name)] == []


ANSWERS = (
    "project --tokens 1e14", "choose --model-name LLaMA-3-8B", "tokens", "level --params 7e9 --qid 4=0.05:0.004",
    "drivers --suite smollm3", "next --suite olmo2",
)  # fmt: skip


@pytest.mark.parametrize("words", ANSWERS)
def test_wheel_answers_without_checkout_torch_or_pymc(words, installed, tmp_path):
    done = call(installed, tmp_path, *words.split(), "--json")
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stderr.splitlines()[0]
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    "words", [["project", "--no-such-option"], ["no-such-command"], ["project", "no-such-file.nc"]]
)
def test_wheel_tells_bad_input_in_plain_words(installed, tmp_path, words):
    done = call(installed, tmp_path, *words)
    said = done.stderr.splitlines()[1:]
    assert done.returncode == 2, done.stderr
    assert 1 <= len(said) <= 3
    assert "Traceback" not in done.stderr
    assert any("no-such" in line for line in said)


@pytest.mark.parametrize("words", [[], ["--help"], ["project", "--help"]])
def test_wheel_helps_without_heavy_packages(installed, tmp_path, words):
    done = call(installed, tmp_path, *words)
    assert done.returncode in (0, 2), done.stderr
    assert "Usage" in done.stdout + done.stderr


def test_wheel_knows_its_suites(installed, tmp_path):
    done = call(installed, tmp_path, "show", "suites")
    assert done.returncode == 0, done.stderr
    for path in (ROOT / "models").glob("*.toml"):
        assert path.stem in done.stdout
