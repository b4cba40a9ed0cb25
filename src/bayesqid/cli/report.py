"""`bayesqid report`: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def report(
    posteriors: Annotated[
        list[str] | None,
        typer.Argument(metavar="[POSTERIOR] [OTHER]",
                       help="Posterior file; else ./posterior.nc, else the bundled one. Two: side by side, A then B."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    tokens: Annotated[float, typer.Option(help="Training tokens to project to, e.g. 1e14.")] = 1e14,
    family: common.Family = None,
    band: Annotated[str, typer.Option(help="mean, new or observed.")] = "new",
    paper: Annotated[
        bool, typer.Option("--paper", help="Also figures as PDF and SVG at journal widths, and a LaTeX table.")
    ] = False,
    quiet: common.Quiet = False,
) -> None:  # fmt: skip
    """Write the report of a posterior, or of what differs between two: HTML, Markdown, figures and data."""
    from bayesqid.errors import BadInput

    names = posteriors or [None]
    if len(names) > 2:
        raise BadInput(f"{len(names)} posteriors are named: give one for its report or two to lay side by side.")
    if len(names) == 2 and paper:
        raise BadInput("--paper draws one posterior: name one, or leave --paper out.")
    found = [common.opened(name, brief=False) for name in names]
    if len(found) == 2:
        from bayesqid.report import compare

        typer.echo(compare.write(found[0], found[1], output, tokens, family, band))
        return
    from bayesqid import report as page
    from bayesqid.answers import asking, project

    answer = project.project(found[0], asking.targets(found[0], tokens, family=family), band)
    typer.echo(page.write(found[0], answer, output))
    if paper:
        from bayesqid.report import paper as figures

        typer.echo(figures.write(found[0], answer, output))
