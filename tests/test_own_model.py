"""The page about a model of one's own runs as it is printed, and says what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bayesqid.answers import draws

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own-model.md").read_text()
BLOCKS = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMES = ("measure", "sample", "level", "project", "choose", "measure", "python")


def run(language: str, code: str, folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def row(text: str, label: str) -> list[float]:
    """Numbers of the first line that begins with a label, units of counts spelt out."""
    line = next(line for line in text.splitlines() if line.startswith(label))
    units = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "": 1.0}
    found = re.findall(r"(?<![\w.])(\d[\d.]*)([kMBT]?)(?![\w%])", line[len(label) :])
    return [float(number) * units[unit] for number, unit in found]


@pytest.mark.slow
def test_the_page_runs_from_a_folder_to_a_decision_and_shows_what_is_printed(tmp_path):
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    blocks = BLOCKS.findall(PAGE)
    assert [language if language == "python" else code.split()[1] for language, code in blocks] == list(NAMES)
    printed = [run(language, code, tmp_path) for language, code in blocks]

    # the same to a third of a standard error or so, on any machine
    label = "mine/mine-25k@local"
    assert row(printed[0], label) == pytest.approx(row(PAGE, label), abs=2e-3)
    assert "All checks passed." in printed[1]
    assert "mine" in draws.read(str(tmp_path / "posterior.nc"), brief=True).families

    _, low50, high50, low90, high90 = row(printed[2], "tokens  ")
    assert low90 < low50 < 7_999_488 < high50 < high90
    assert row(printed[2], "tokens  ") == pytest.approx(row(PAGE, "tokens  "), rel=0.5)

    assert printed[3].startswith("Verdict: extrapolation")
    assert row(printed[3], "mine ")[3] == pytest.approx(row(PAGE, "mine ")[3], rel=0.2)

    choice = "Choice: gptq-w4-g32, 4.5 bits"
    assert choice in PAGE
    assert choice in printed[4]
    assert "checkpoint mine/mine-25k@local" in " ".join(printed[4].split()).replace("mine- 25k", "mine-25k")

    cells, measured = printed[5].splitlines()[1].split(), printed[6]
    assert len(cells) == 7
    assert measured.startswith("measured 0.0")
    assert row(measured, "measured") == pytest.approx(row(PAGE, "measured"), abs=6e-3)
