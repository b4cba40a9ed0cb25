"""Write docs/cli.md from the command line itself, so that neither can say what the other does not.

python docs/make_cli.py
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent / "cli.md"
HEAD = """# Commands

This page is written by `make docs` from the commands themselves.

Answers go to stdout, as text or with `--json` as one JSON object; progress and notes go to stderr.

| exit | meaning |
|---|---|
| 0 | done |
| 1 | a bug: please report it |
| 2 | bad input, told in one sentence |
| 3 | finished, but a check or a cell failed |
| 130 | Ctrl-C; what was finished is kept |
"""


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Commands that do something, with the words that call them."""
    children = command.list_commands(None) if hasattr(command, "list_commands") else []
    if not children:
        yield name, command
    for child in children:
        yield from leaves(command.get_command(None, child), f"{name} {child}".strip())


def plain(words: str) -> str:
    """Help on one line, without the brackets around a default that stands for something."""
    return re.sub(r"\[default: \((.*)\)(; .*)?\]", r"[default: \1\2]", " ".join(words.split()))


def section(name: str, command: Any) -> str:
    """One command: how it is called, what it does, its arguments and options."""
    context = command.make_context(f"bayesqid {name}", [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## bayesqid {name}", f"```text\nbayesqid {name} {usage}\n```", (command.help or "").strip()]
    records = [p.get_help_record(context) for p in command.params if not getattr(p, "hidden", False)]
    lines = [f"- `{left.replace(' range', '')}`: {plain(right)}".rstrip(": ") for left, right in filter(None, records)]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def commands() -> dict[str, Any]:
    """Every command of the program by the words that call it."""
    from typer.main import get_command

    from bayesqid.cli import app

    return dict(leaves(get_command(app)))


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, "\n\n".join(section(name, command) for name, command in commands().items()), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
