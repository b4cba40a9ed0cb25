"""`bayesqid score`: parse, call, print."""

from typing import TYPE_CHECKING, Annotated

import typer

from bayesqid.cli import common

if TYPE_CHECKING:
    import xarray as xr


def score(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[POSTERIOR] TABLE",
            help="Measurements that were not fitted: a CSV table, a measurement file or a bundled name. Before it a "
            "posterior file; else ./posterior.nc, else the bundled one.",
        ),
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="Score also rows of a table that inference leaves out by default.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: common.Quiet = False,
) -> None:
    """Score a posterior's predictions against measurements that were not fitted."""
    from bayesqid.answers import score as answer
    from bayesqid.errors import BadInput

    if len(names) > 2:
        raise BadInput(f"{len(names)} files are given: name a table, or a posterior and then a table.")
    *named, table = names
    fitted = common.opened(named[0] if named else None)
    result = answer.score(fitted, _cells(table, everything))
    common.show(as_json, answer.as_json(result), answer.as_text(result))


def _cells(name: str, everything: bool) -> "xr.Dataset":
    """Cells of a table, a measurement file or a bundled name; with `everything` also a table's excluded rows."""
    from pathlib import Path

    from bayesqid import bundled, cells, files
    from bayesqid.errors import BadInput
    from bayesqid.importers import sources, tables

    if not everything:
        return sources.read_cells(name)
    path = bundled.data_dir() / sources.BUNDLED[name] if name in sources.BUNDLED else Path(name)
    if path.suffix != ".csv":
        raise BadInput(f"--all is for tables, and {name} is none: leave it out.")
    table = tables.read_table(path).assign(default=True)
    return cells.from_table(table, {"name": name, "sha256": files.sha256_file(path)})
