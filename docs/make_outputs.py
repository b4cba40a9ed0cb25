"""Run the commands whose output README.md and docs/ show and put what they print today under them.

A shown output is a comment that names the command, followed by a text block:

    <!-- output: bayesqid project --tokens 1e14 -->
    ```text
    ...
    ```

python docs/make_outputs.py
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"<!-- output: bayesqid (?P<words>[^\n]+) -->\n```text\n(?P<shown>.*?)```\n", re.DOTALL)


def output(words: str) -> str:
    """What a command prints on stdout in an empty folder, without blanks at line ends."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bayesqid", *words.split()]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bayesqid {words} ended with exit {done.returncode}:\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines()) + "\n"


def blocks(text: str) -> dict[str, str]:
    """{command: output shown} of a page."""
    return {found["words"]: found["shown"] for found in BLOCK.finditer(text)}


def filled(text: str) -> str:
    """The page with every shown output as the command prints it now."""

    def fresh(found: re.Match[str]) -> str:
        return f"<!-- output: bayesqid {found['words']} -->\n```text\n{output(found['words'])}```\n"

    return BLOCK.sub(fresh, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
