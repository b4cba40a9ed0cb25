"""`bayesqid report`: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    posterior: Annotated[
        str | None,
        typer.Argument(help="Posterior file; else ./posterior.nc, else the bundled one.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    tokens: Annotated[float, typer.Option(help="Training tokens to project to, e.g. 1e14.")] = 1e14,
    family: Annotated[str | None, typer.Option(help="A fitted family; else a new one.", show_default=False)] = None,
    band: Annotated[str, typer.Option(help="mean, new or observed.")] = "new",
) -> None:
    """Write a posterior's report: one HTML page, the same as Markdown, figures and their data. Nothing is sampled."""
    from bayesqid import report as page
    from bayesqid.answers import asking, draws, project

    found = draws.read(posterior)
    typer.echo(f"Posterior: {found.path} ({found.origin}).", err=True)
    targets = asking.targets(found, tokens, family=family)
    typer.echo(page.write(found, project.project(found, targets, band), output))
