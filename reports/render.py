"""Render the example reports from the posteriors that ship: nothing is sampled, the same input gives the same bytes.

python reports/render.py                 all three
python reports/render.py own-model       one of atlas, atlas-and-ladder, own-model

What is kept here has to stay small: Markdown with its figures as SVG and its tables as CSV; the page itself, 2.6 MB,
and the rows behind clouds of points of one example only. What `bayesqid report` writes besides (JSON, PNG) is left out,
and so are the links to it.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bayesqid import files, report
from bayesqid.answers import asking, draws, project

HERE = Path(__file__).resolve().parent
# name -> posterior, question
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "atlas": ("data/posterior.nc", {"tokens": 1e14}),
    "atlas-and-ladder": ("data/posteriors/atlas-and-ladder.nc", {"tokens": 1e14}),
    # what the model that was measured would lose had it been trained on ten times the tokens
    "own-model": ("data/posteriors/own-model.nc",
                  {"family": "tiny-neox", "params": 25472.0, "tokens": 8e7, "lr_phase": "constant"}),
}  # fmt: skip
WHOLE = ("atlas",)
CLOUDS = ("predictive", "fan-points")
NUMBERS = re.compile(r"-?\d+\.\d+")
PATHS = re.compile(r' d="[^"]*"')


def render(name: str, into: Path) -> None:
    """The whole report of an example, as the command line writes it."""
    path, question = EXAMPLES[name]
    posterior = draws.read(path)
    answer = project.project(posterior, asking.targets(posterior, **question))
    if question.keys() != {"tokens"}:
        told = [f"--{key.replace('_', '-')} {value:.12g}" if isinstance(value, float) else
                f"--{key.replace('_', '-')} {value}" for key, value in question.items()]  # fmt: skip
        answer.attrs["command"] = " ".join(["bayesqid project", Path(path).name, *told, "-o report"])
    report.write(posterior, answer, into)


def keep(rendered: Path, into: Path, whole: bool) -> None:
    """Put what is kept of a report in the place of what was there."""
    for old in ("data", "figures"):
        shutil.rmtree(into / old, ignore_errors=True)
    tables = {f"data/{path.name}" for path in rendered.glob("data/*.csv") if whole or path.stem not in CLOUDS}
    kept = tables | {f"figures/{path.name}" for path in rendered.glob("figures/*.svg")}
    for name in sorted(kept):
        text = (rendered / name).read_text(encoding="utf-8")
        files.write_text(into / name, text if name in tables else shortened(text))
    (into / "index.html").unlink(missing_ok=True)
    for name in ("report.md", *(["index.html"] if whole else [])):
        files.write_text(into / name, lean((rendered / name).read_text(encoding="utf-8"), kept))


def lean(text: str, kept: set[str]) -> str:
    """A page or its Markdown without the links to files that are not kept, the words before them included."""
    link = r"(?:data|figures)/[\w.-]+"
    for whole in (rf'<a href="({link})">[^<]*</a>', rf"(?<!!)\[[A-Z]+\]\(({link})\)"):
        text = re.sub(rf"(?:[;,] )?{whole}", lambda found: found[0] if found[1] in kept else "", text)
    return re.sub(r"; points: ?(?=;|</p>)|^Data: \.\n", "", text, flags=re.MULTILINE)


def shortened(svg: str) -> str:
    """The same picture with a hundredth of a point as the last digit of its lines."""

    def cut(path: re.Match) -> str:
        short = NUMBERS.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), path[0])
        return re.sub(r"\s+", " ", short)

    return re.sub(r"\n +", "\n", PATHS.sub(cut, svg))


def main() -> None:
    """Render those that are named, or all."""
    os.chdir(HERE.parent)
    for name in sys.argv[1:] or EXAMPLES:
        with tempfile.TemporaryDirectory() as folder:
            render(name, Path(folder))
            keep(Path(folder), HERE / name, name in WHOLE)
        print(HERE.name, name, sep="/")


if __name__ == "__main__":
    main()
