"""`bayesqid replicate`: parse, call, print."""

from typing import Annotated

import typer

from bayesqid.cli import common


def replicate(
    paper: Annotated[str, typer.Argument(help="ouyang, kumar, cao or xu.", show_default=False)],
    posterior: common.PosteriorFile = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Hold a paper's printed numbers against its own constants and against a posterior."""
    from bayesqid.answers import replicate as answer

    found = answer.replicate(common.opened(posterior), paper)
    common.show(as_json, answer.as_json(found), answer.as_text(found))
