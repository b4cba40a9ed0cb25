"""`bayesqid show`: what ships with the package, as plain text."""

import textwrap
from itertools import groupby
from pathlib import Path
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


@app.command()
def priors(
    law: Annotated[str, typer.Option(help="Law; see bayesqid show laws.")] = "boxcox",
    prior: Annotated[Path | None, typer.Option(help="TOML file of priors, as for bayesqid sample.")] = None,
    predictive: Annotated[bool, typer.Option("--predictive", help="What they imply before any data.")] = False,
    params: Annotated[
        float | None, typer.Option(help="Non-embedding parameters.", show_default="1B, 7B, 70B, 405B")
    ] = None,
    tokens: Annotated[float, typer.Option(help="Training tokens.", show_default="1e14")] = 1e14,
    bits: Annotated[float | None, typer.Option(help="Bits per weight.", show_default="2, 3, 4")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show each prior in words and, with --predictive, the QiD that the priors alone imply."""
    import json

    from bayesqid import files
    from bayesqid import laws as table
    from bayesqid.answers import draws, standing, wording
    from bayesqid.inference import implied

    shipped = table.get(law)
    chosen = shipped if prior is None else table.with_priors(shipped, files.read_toml(prior))
    rows = implied.priors(chosen, shipped)
    found = []
    if predictive:
        targets = standing.asked(tokens, params, bits)
        found = [row | {"bits": t.bits} for row, t in zip(implied.table(chosen, draws.columns(None, targets)), targets,
                                                          strict=True)]  # fmt: skip
    if as_json:
        answer = {"law": chosen.name, "formula": chosen.formula, "priors": rows}
        answer |= {"interval": "eti", "predictive": found} if predictive else {}
        print(json.dumps(answer, allow_nan=False))
        return
    print(implied.priors_text(chosen, rows))
    if predictive:
        print("\n" + implied.as_text(found, wording.count_text, wording.short))


@app.command()
def posterior(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[POSTERIOR]", help="Posterior file; else ./posterior.nc, else the bundled one.",
            show_default=False,
        ),
    ] = None,
    params: Annotated[float, typer.Option(help="Non-embedding parameters of the sensitivity.")] = 70e9,
    tokens: Annotated[float, typer.Option(help="Training tokens of the sensitivity.")] = 1e14,
    bits: Annotated[float, typer.Option(help="Bits per weight of the sensitivity.")] = 4.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a posterior rests on: checks, what the data informed, how far the priors move it."""
    from bayesqid.answers import standing
    from bayesqid.cli import common

    answer = standing.of(common.opened(path, brief=False), params, tokens, bits)
    common.show(as_json, answer, standing.as_text(answer))


@app.command()
def atlas(
    family: Annotated[list[str] | None, typer.Option(help="Family; may be repeated.", show_default=False)] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Quantizer or generation (rtn, calibrated, optimised, vector); may be repeated.",
                     show_default=False),
    ] = None,
    bits: Annotated[
        list[float] | None, typer.Option(help="Nominal bits; may be repeated.", show_default=False)
    ] = None,
    source: Annotated[str | None, typer.Option(help="Part of a source's name.", show_default=False)] = None,
    text: Annotated[
        str | None, typer.Option(help="Beginning of the text's name, e.g. c4.", show_default=False)
    ] = None,
    default: Annotated[
        bool, typer.Option("--default/--all", help="Only rows that enter inference, or all of them.")
    ] = True,
    by: Annotated[str, typer.Option(help="Table and colours by family or method.")] = "family",
    rows: Annotated[bool, typer.Option("--rows", help="List the rows as well.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the rows as CSV.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw QiD into this .svg or .png file.", show_default=False)
    ] = None,
    x: Annotated[str, typer.Option("--x", help="What QiD is drawn against: params, tokens or bits.")] = "bits",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:  # fmt: skip
    """Show the published measurements: how many, of what, how large; filter, list, write and plot them."""
    from bayesqid import files
    from bayesqid.answers import wording
    from bayesqid.cli import common
    from bayesqid.errors import BadInput
    from bayesqid.importers import atlas as published

    if by not in published.BY:
        raise BadInput(f"--by {by} is neither of {', '.join(published.BY)}.")
    if x not in published.AXES:
        raise BadInput(f"--x {x} is none of {', '.join(published.AXES)}.")
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise BadInput(f"{plot} must end in .svg or .png.")
    table = published.read()
    chosen = published.select(table, family or (), method or (), bits or (), source, text, default)
    if output is not None:
        files.write_text(output, published.as_csv(chosen))
    if plot is not None:
        from bayesqid.report import atlas as figure

        picture = figure.draw(published.points(chosen, by), x)[plot.suffix == ".png"]
        files.write_aside(plot, lambda aside: aside.write_bytes(picture))
    common.show(as_json, published.as_json(chosen, len(table), by, rows),
                published.as_text(chosen, len(table), wording.count_text, by, rows))  # fmt: skip


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
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = []
    for row in ((_shortened(row[0], widths[0]), *row[1:]) for row in rows):
        first, *rest = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def _shortened(name: str, room: int) -> str:
    """A name cut in its middle: both ends tell models apart."""
    return name if len(name) <= room else f"{name[: (room - 3) // 2]}...{name[-((room - 2) // 2) :]}"


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
