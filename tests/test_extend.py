"""The pages on adding a law, a quantizer and an importer, followed block by block in a copy of the code.

A block stands behind a comment that says what becomes of it: `new FILE`, `in FILE, behind: LINE`, or `run`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(
    r"^<!-- (?P<what>new|in|run)(?P<where>[^\n]*?) -->\n```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


def steps(page: str) -> list[re.Match[str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = list(STEP.finditer(text))
    # every block of the page is one of them
    assert len(found) == len(re.findall(r"^```\w+$", text, re.MULTILINE))
    return found


@pytest.fixture
def copy(tmp_path) -> Path:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "models"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    command = tmp_path / "bin" / "bayesqid"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bayesqid "$@"\n')
    command.chmod(0o755)
    return tmp_path


def apply(step: re.Match[str], folder: Path) -> str:
    """Do what a block says; what it prints."""
    where = step["where"].strip()
    if step["what"] == "new":
        assert not (folder / where).exists()
        (folder / where).write_text(step["code"], encoding="utf-8")
        return ""
    if step["what"] == "in":
        name, _, line = where.partition(", behind: ")
        before = (folder / name).read_text(encoding="utf-8")
        row = f"\n{line}\n"
        assert before.count(row) == 1, f"{name} has {line!r} {before.count(row)} times"
        (folder / name).write_text(before.replace(row, f"{row}{step['code']}"), encoding="utf-8")
        return ""
    done = called(step["kind"], step["code"], folder)
    assert done.returncode == 0, f"{step['code']}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def called(kind: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run bash or Python with the copy's code."""
    env = {**os.environ, "PYTHONPATH": str(folder / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
           "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])}  # fmt: skip
    command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[kind]
    return subprocess.run([*command, code], cwd=folder, env=env, capture_output=True, text=True, check=False)


def follow(page: str, folder: Path) -> str:
    return "\n".join(apply(step, folder) for step in steps(page))


@pytest.mark.slow
def test_a_law_is_added_as_the_page_says_and_gives_its_parameters_back(copy):
    said = follow("add-a-law.md", copy)
    found = re.search(r"^  rho +\S+ +(\S+) to (\S+)$", said, re.MULTILINE)
    assert found is not None, said
    # the truth of --set rho=0.4 lies in the interval, which is narrower than the prior's
    low, high = map(float, found.groups())
    assert low < 0.4 < high
    assert high - low < 2 * 1.645 * 0.2
    assert "law ratio" in said
    # what the page says of a law without the factor x_D
    done = called("bash", "bayesqid tokens ratio.nc", copy)
    assert (done.returncode, "no effect of tokens" in done.stderr) == (2, True)


@pytest.mark.slow
def test_a_quantizer_is_added_as_the_page_says(copy):
    *told, last = steps("add-a-quantizer.md")
    assert last["code"].startswith("bayesqid measure ")
    for step in told:
        apply(step, copy)


@pytest.mark.soak
def test_a_quantizer_that_was_added_measures(copy):
    said = follow("add-a-quantizer.md", copy)
    row = next(line for line in said.splitlines() if line.startswith("tiny-neox/"))
    plain, clipped = map(float, row.split()[-2:])
    # as the page says: a smaller error of the weights, a larger one of the model
    assert 0 < plain < clipped


@pytest.mark.slow
def test_an_importer_is_added_as_the_page_says(copy):
    follow("add-an-importer.md", copy)


@pytest.mark.slow
def test_without_its_row_in_the_table_a_page_fails(copy):
    told = steps("add-an-importer.md")
    for step in told[:1] + told[2:3]:
        apply(step, copy)
    with pytest.raises(AssertionError, match="none of the results that can be imported"):
        apply(told[3], copy)
