"""`bayesqid tokens`: parse, call, print."""

from typing import Annotated

import typer

from bayesqid.cli import common


def tokens(
    posterior: common.PosteriorFile = None,
    params: Annotated[
        float | None, typer.Option(help="Non-embedding parameters, e.g. 7e9.", show_default="1B, 7B, 70B, 405B")
    ] = None,
    model_name: common.ModelName = None,
    bits: Annotated[
        list[float] | None, typer.Option(help="Bits per weight; repeat it.", show_default="2, 3, 4")
    ] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(help="QiD in nats per token; repeat it.", show_default="0.2, 0.3, 0.4, 0.5"),
    ] = None,
    method: common.Method = "gptq",
    family: common.Family = None,
    new_family: common.NewFamily = False,
    band: Annotated[str, typer.Option(help="mean, new or observed.")] = "new",
    lr_phase: common.LrPhase = "annealed",
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Tell after how many training tokens QiD reaches a threshold, beside the printed Table 1."""
    from bayesqid.answers import tokens as answer

    found = common.opened(posterior)
    known = common.known_model(model_name)
    result = answer.tokens(
        found, params, known, bits or None, threshold or None, method, family, new_family, band, lr_phase
    )
    common.show(as_json, answer.as_json(result), answer.as_text(result))
