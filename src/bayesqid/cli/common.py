"""What the commands share: options under one name and help, the posterior opened, the answer printed."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bayesqid.answers.draws import Posterior

PosteriorFile = Annotated[
    str | None,
    typer.Argument(help="Posterior file; else ./posterior.nc, else the bundled one.", show_default=False),
]
Params = Annotated[float | None, typer.Option(help="Non-embedding parameters, e.g. 7e9.", show_default=False)]
ModelName = Annotated[
    str | None, typer.Option(help="A known model, e.g. LLaMA-3-8B: its size and family.", show_default=False)
]
Family = Annotated[str | None, typer.Option(help="A fitted family.", show_default="new family")]
NewFamily = Annotated[bool, typer.Option("--new-family", help="A family nobody has measured.")]
Method = Annotated[str, typer.Option(help="Quantizer, in groups of 128 weights.")]
LrPhase = Annotated[str, typer.Option(help="Learning rate assumed: annealed, decaying or constant.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _hush(quiet: bool) -> bool:
    # whoever writes notes or progress finds sys.stderr shut; `main` kept the real one for errors
    if quiet:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return quiet


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_hush, help="No notes and no progress, only errors, on stderr.")
]


def opened(path: str | None, brief: bool = True) -> "Posterior":
    """The posterior that an answer reads (`draws.read`); which one it is goes to stderr."""
    from bayesqid.answers import draws

    found = draws.read(path, brief)
    typer.echo(f"Posterior: {found.path} ({found.origin}).", err=True)
    return found


def known_model(name: str | None) -> dict | None:
    """Size and family of a model by its name; `BadInput` if it is not known."""
    if name is None:
        return None
    from bayesqid.importers import tables

    return tables.lookup_model(name)


def show(as_json: bool, record: dict, text: str) -> None:
    """Print the answer on stdout: one JSON object without NaN, or text."""
    import json

    typer.echo(json.dumps(record, allow_nan=False) if as_json else text)
