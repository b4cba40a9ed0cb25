"""`bayesqid drivers`: parse, call, print."""

from typing import Annotated

import typer

from bayesqid.cli import common


def drivers(
    posterior: common.PosteriorFile = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Training tokens compared, LOW:HIGH, e.g. 1e11:1e13.", show_default="fewest:most fitted"),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="A fitted family whose tokens are judged.", show_default="population")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Suite to judge, a name or a TOML file; may be repeated.", show_default="all bundled"),
    ] = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Tokens or learning-rate decay: what each does to QiD, and what would tell them apart."""
    from bayesqid.answers import drivers as answer

    contrast = None if tokens is None else answer.parse_tokens(tokens)
    found = answer.drivers(common.opened(posterior), contrast, family, suite)
    common.show(as_json, answer.as_json(found), answer.as_text(found))
