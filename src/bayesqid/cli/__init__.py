"""Command line: parse, call, write. Exit 0 done, 2 bad input, 3 a check or cell failed, 130 Ctrl-C, 1 a bug."""

import os
import sys
import textwrap
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from bayesqid.cli import compare, level, measure, project, report, sample, score, show, simulate
from bayesqid.errors import BadInput

# question -> name -> command, in the order of `bayesqid --help`
COMMANDS = {
    "What will quantization cost?": {"project": project.project},
    "What do a model's losses tell of its training?": {"level": level.level},
    "Measure and infer": {"measure": measure.measure, "sample": sample.sample},
    "Can the answer be believed?": {
        "report": report.report, "score": score.score, "compare": compare.compare, "simulate": simulate.simulate
    },
    "What ships with bayesqid?": {"show": show.app},
}  # fmt: skip


class _ByQuestion(TyperGroup):
    """Help that lists the commands under the questions that they answer."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(len(name) for commands in COMMANDS.values() for name in commands)
        for question, commands in COMMANDS.items():
            found = [(name, self.get_command(ctx, name)) for name in commands]
            formatter.write(f"\n{question}\n")
            with formatter.indentation():
                formatter.write_dl([(name.ljust(width), one.get_short_help_str(1000)) for name, one in found if one])


app = typer.Typer(
    help="Measure what low-bit quantization costs a language model, infer its scaling law, project it.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, cls=_ByQuestion,
)  # fmt: skip
for _commands in COMMANDS.values():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name)
        else:
            app.command(_name)(_command)


def _say(sentence: str) -> None:
    print("\n".join(textwrap.wrap(sentence, 100)), file=sys.stderr)


def main() -> None:
    """Run the command line; errors meant for people are one plain sentence on stderr."""
    errors = sys.stderr
    try:
        try:
            code = app(standalone_mode=False)
        finally:
            sys.stderr = errors  # --quiet shut it
        sys.stdout.flush()
        if code == 130:  # Typer turns Ctrl-C inside a command into this code
            raise KeyboardInterrupt
    except BadInput as error:
        _say(f"bayesqid: {error}")
        code = 2
    except (BrokenPipeError, SystemExit):  # Typer's way too when the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = error.filename or "A file"
        _say(f"bayesqid: {where} cannot be read or written ({error.strerror or error}): name another or mend this one.")
        code = 2
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _say("bayesqid: stopped; what was finished is kept.")
        code = 130
    except TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message, file=sys.stderr)
        else:
            _say(f"bayesqid: {message} See bayesqid --help.")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
