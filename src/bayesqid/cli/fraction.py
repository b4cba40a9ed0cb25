"""`bayesqid fraction`: parse, call, print."""

from typing import Annotated

import typer

from bayesqid.cli import common


def fraction(
    posterior: common.PosteriorFile = None,
    increase: Annotated[str, typer.Option(help="Rises of perplexity in per cent, with commas.")] = "5,10,20",
    params: Annotated[
        str | None, typer.Option(help="Non-embedding parameters, with commas.", show_default="1e9,7e9,70e9")
    ] = None,
    model_name: common.ModelName = None,
    tokens: Annotated[
        float | None, typer.Option(help="Training tokens.", show_default="the median of the data")
    ] = None,
    bits: Annotated[float, typer.Option(help="Bits of the low-precision format, without scales.")] = 4.0,
    block: Annotated[float, typer.Option(help="Weights that share a scale.")] = 32,
    granularity: Annotated[
        str | None, typer.Option(help="What is quantized or not: l, whole layers; m, matrices.", show_default="both")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="Shares at which to tell the rise, with commas, 0 to 1.", show_default=False)
    ] = None,
    method: Annotated[str | None, typer.Option(help="Quantizer.", show_default="the commonest fitted")] = None,
    assignment: Annotated[
        str | None,
        typer.Option(help="random, best of 50, greedy or knapsack.", show_default="the commonest fitted"),
    ] = None,
    family: common.Family = None,
    new_family: common.NewFamily = False,
    band: Annotated[str, typer.Option(help="mean or new.")] = "new",
    lr_phase: common.LrPhase = "annealed",
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Tell how much of a model may be quantized at a tolerated rise of perplexity."""
    from bayesqid.answers import fraction as answer

    found = common.opened(posterior)
    known = common.known_model(model_name)
    result = answer.fraction(found, increase, params, known, tokens, bits, block, granularity, at, method, assignment,
                             family, new_family, band, lr_phase)  # fmt: skip
    common.show(as_json, answer.as_json(result), answer.as_text(result))
