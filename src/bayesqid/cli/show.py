"""`bayesqid show`: what ships with the package, as plain text."""

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bayesqid.suite import Suite

app = typer.Typer(help="Show what ships with bayesqid.", no_args_is_help=True)

WIDTH = 80


@app.callback()
def _group() -> None:
    """Show what ships with bayesqid."""  # keeps `suites` a subcommand even while it is alone


@app.command()
def suites(
    name: Annotated[
        str | None, typer.Argument(help="A suite's name or TOML file; all when left out.")
    ] = None,
) -> None:
    """List the suites, or one suite's models, schedules and exclusions."""
    from bayesqid import suite

    if name is None:
        print(suites_text([suite.load(known) for known in suite.names()]))
    else:
        print(suite_text(suite.load(name)))


@app.command()
def laws(
    name: Annotated[str | None, typer.Argument(help="One law; all when left out.")] = None,
) -> None:
    """Show the laws: formula, priors as sentences, published constants, source."""
    from bayesqid import laws as table

    chosen = list(table.LAWS.values()) if name is None else [table.get(name)]
    print("\n\n".join(table.describe(law) for law in chosen))


def suites_text(loaded: "list[Suite]") -> str:
    """Table of suites: models, usable and excluded checkpoints, sizes and tokens."""
    rows = [("suite", "models", "checkpoints", "excluded", "N", "tokens")]
    for suite in loaded:
        usable = [c for c in suite.checkpoints if c.excluded is None]
        rows.append(
            (
                suite.name,
                str(len({c.model for c in usable})),
                str(len(usable)),
                str(len(suite.checkpoints) - len(usable)),
                _range([c.n_params_nonembedding for c in usable]),
                _range([c.train_tokens for c in usable]),
            )
        )
    return _table(rows) + "\n\nSizes N are non-embedding. One suite in full: bayesqid show suites NAME"


def suite_text(suite: "Suite") -> str:
    """One suite in full: models, schedules with what they rest on, exclusions with reasons, notes."""
    rows = [("model", "N", "usable", "excluded", "tokens", "last LR")]
    for model, group in groupby(suite.checkpoints, key=lambda c: c.model):
        checkpoints = list(group)
        usable = [c for c in checkpoints if c.excluded is None]
        last = max(usable or checkpoints, key=lambda c: c.train_tokens)
        rows.append(
            (
                model,
                _count(last.n_params_nonembedding),
                str(len(usable)),
                str(len(checkpoints) - len(usable)),
                _range([c.train_tokens for c in usable]),
                f"{last.lr_phase} {last.lr_fraction:.2f}",
            )
        )
    parts = [f"{suite.name}: {suite.title}", _table(rows)]
    parts += _section("Learning-rate schedules", [f"{words} [{status}]" for words, status in suite.schedules])
    parts += _section("Excluded", [f"{words} [{source}]" for words, source in suite.exclusions])
    parts += _section("Notes", list(suite.notes))
    parts += _section("Recipes", [", ".join(suite.recipes)])
    return "\n\n".join(parts)


def _section(title: str, lines: list[str]) -> list[str]:
    filled = [textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines]
    return ["\n".join([title, *filled])] if lines else []


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def _range(values: list[int]) -> str:
    if not values:
        return "-"
    low, high = _count(min(values)), _count(max(values))
    return low if low == high else f"{low}-{high}"


def _count(value: float) -> str:
    """Three digits and a unit: 1.21B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
