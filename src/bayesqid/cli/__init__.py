"""Command line: parse, call, write. Exit 0 done, 2 bad input, 3 a check or cell failed, 130 Ctrl-C, 1 a bug."""

import gc
import keyword
import os
import sys
import textwrap
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from bayesqid.cli import terminal
from bayesqid.errors import BadInput

# question -> commands, each the file of its name, in the order of `bayesqid --help`
COMMANDS = {
    "What will quantization cost?": ("project", "choose", "fraction", "tokens"),
    "What do a model's losses tell of its training?": ("level", "drivers"),
    "Measure and infer": ("next", "measure", "mix", "import", "sample"),
    "Can the answer be believed?": ("report", "score", "compare", "replicate", "simulate"),
    "What ships with bayesqid?": ("show",),
}
# commands that are over in a second
SHORT = (*COMMANDS["What will quantization cost?"], *COMMANDS["What do a model's losses tell of its training?"], "next",
         "replicate")  # fmt: skip

# packages that only measuring needs, and `pip install bayesqid` does not bring
OF_MEASURE = ("torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "obstore", "filelock")


def function(name: str) -> Any:
    """What a command calls, or the Typer of its own commands; Python's own words stand as `next_` and `import_`."""
    module = import_module(f"bayesqid.cli.{name}_" if keyword.iskeyword(name) else f"bayesqid.cli.{name}")
    return [getattr(module, known) for known in ("app", name, f"{name}_") if hasattr(module, known)][0]


class _ByQuestion(TyperGroup):
    """Commands made only when they are called for, and help that lists them under the questions they answer."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in COMMANDS.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        called = function(cmd_name)
        one = typer.Typer(add_completion=False, rich_markup_mode=None)
        if isinstance(called, typer.Typer):
            one.add_typer(called, name=cmd_name)
            return typer.main.get_group(one).commands[cmd_name]
        one.command(cmd_name)(called)
        return typer.main.get_command(one)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for question, names in COMMANDS.items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            formatter.write(f"\n{question}\n")
            with formatter.indentation():
                formatter.write_dl([(name.ljust(width), one.get_short_help_str(1000)) for name, one in found])


app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, cls=_ByQuestion,
)  # fmt: skip


@app.callback()
def _bayesqid() -> None:
    """Measure what low-bit quantization costs a language model, infer its scaling law, project it."""


def _say(sentence: str) -> None:
    print("\n".join(textwrap.wrap(sentence, 100)), file=sys.stderr)


def main() -> None:
    """Run the command line; errors meant for people are one plain sentence on stderr."""
    terminal.guard()
    errors = sys.stderr
    if sys.argv[1:2] and sys.argv[1] in SHORT:
        gc.disable()  # imports make few cycles, and looking for them takes a tenth of a question's second
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
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in OF_MEASURE:
            raise
        _say(f"bayesqid: this needs {missing}, which is not installed: pip install 'bayesqid[measure]'.")
        code = 2
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
