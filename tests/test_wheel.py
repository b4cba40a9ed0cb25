"""Wheel and sdist in bare environments, from another folder: what a user without the checkout gets."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("bayesqid-*.tar.gz")
    return built


def declared() -> list[str]:
    """Names of the distributions that the dependencies, without extras, bring along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    queue, seen = [(Requirement(text), frozenset()) for text in project["dependencies"]], set()
    for wanted, of in queue:
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in of or {""}):
            continue
        key = (wanted.name.casefold(), frozenset(wanted.extras))
        if key not in seen:
            seen.add(key)
            queue += [(Requirement(text), key[1]) for text in distribution(wanted.name).requires or ()]
    return sorted({name for name, _ in seen})


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory):
    """A folder with what pip would install beside bayesqid, linked from this environment."""
    folder = tmp_path_factory.mktemp("dependencies")
    for name in declared():
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            there = Path(str(distribution(name).locate_file(top)))
            if not (folder / top).exists():
                (folder / top).symlink_to(there, target_is_directory=there.is_dir())
    return folder


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def bare(package: Path, dependencies: Path, folder: Path) -> Path:
    """The command of a new environment that has a package and its declared dependencies, nothing else."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")
    if package.suffix == ".gz":  # as pip does: a wheel of it first
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
            "--wheel-dir", folder, package)  # fmt: skip
        (package,) = folder.glob("bayesqid-*.whl")
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", package)
    return folder / "bin" / "bayesqid"


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_package_answers_in_an_environment_with_the_declared_dependencies_alone(kind, dependencies, request, tmp_path):
    command = bare(request.getfixturevalue(kind), dependencies, tmp_path / "env")
    away = tmp_path / "away"
    away.mkdir()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([command, "project", "--tokens", "1e14", "--json"], cwd=away, env=env, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'env'}/" in done.stderr
    assert {row["tokens"] for row in json.loads(done.stdout)["rows"]} == {1e14}
    code = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in ('torch', 'transformers', 'pytest')))"
    assert subprocess.run([command.parent / "python", "-c", code], cwd=away, env=env, check=False).returncode == 0


@pytest.mark.soak
def test_sdist_holds_what_a_wheel_is_built_from_and_no_leftovers(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "data/posterior.nc", "src/bayesqid/laws.py"} <= names
    assert {f"models/{path.name}" for path in (ROOT / "models").glob("*.toml")} <= names
    assert [name for name in names if re.search(r"__pycache__|\.pyc$|^(?:site|dist|build|\.venv)/", name)] == []


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
