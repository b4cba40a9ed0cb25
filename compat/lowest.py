"""The lowest versions that pyproject.toml allows of the base install's direct dependencies, as pip's constraints."""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(requirements: list[str]) -> list[str]:
    """`numpy==2.2` for `numpy>=2.2`; extras and upper bounds are left out."""
    found = []
    for text in requirements:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9][0-9.]*)", text)
        if match is None:
            raise SystemExit(f"{text} of {PYPROJECT.name} has no lower bound.")
        found.append(f"{match[1]}=={match[2]}")
    return found


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][name] for name in sys.argv[1:])]
    print("\n".join(lowest([text for group in groups for text in group])))
