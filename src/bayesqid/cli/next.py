"""`bayesqid next`: parse, call, write."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def next_(
    posterior: common.PosteriorFile = None,
    suite: Annotated[str, typer.Option(help="Suite to choose from: a name or a TOML file.")] = "pythia",
    budget: Annotated[str, typer.Option(help="Checkpoints, e.g. 8, or GPU-hours, e.g. 2.5h.")] = "8",
    candidates: Annotated[
        str | None, typer.Option(help="Recipes to choose from, with commas between.", show_default="suite's")
    ] = None,
    per: Annotated[str, typer.Option(help="Gain per GPU-hour or per checkpoint: hour or checkpoint.")] = "hour",
    tokens: Annotated[float, typer.Option(help="Training tokens of the target.", show_default="1e14")] = 1e14,
    params: Annotated[
        float | None, typer.Option(help="Its non-embedding parameters.", show_default="70e9")
    ] = None,
    model_name: common.ModelName = None,
    bits: Annotated[float | None, typer.Option(help="Its bits per weight.", show_default="4")] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Its recipe instead, e.g. gptq-w4-g128.", show_default=False)
    ] = None,
    method: common.Method = "gptq",
    family: Annotated[
        str | None, typer.Option(help="Its family, of the suite or fitted.", show_default="suite's")
    ] = None,
    new_family: common.NewFamily = False,
    lr_phase: common.LrPhase = "annealed",
    error: Annotated[
        float | None, typer.Option(help="Standard error of a new QiD, nats.", show_default="median of those fitted")
    ] = None,
    flops: Annotated[float, typer.Option(help="FLOP/s that a GPU reaches.", show_default="2e13")] = 2e13,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Suite file of the choice, for bayesqid measure.", show_default=False),
    ] = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Choose which checkpoints and recipes to measure next so that a projection narrows most per GPU-hour."""
    from bayesqid.answers import next as answer

    found = common.opened(posterior)
    known = common.known_model(model_name)
    result = answer.next_(found, suite, budget, candidates, tokens, params, known, bits, recipes, method, family,
                          new_family, lr_phase, per, error, flops)  # fmt: skip
    if output is not None:
        written = answer.write(result, output)
        typer.echo(f"Suite: {', '.join(map(str, written))}; bayesqid measure {output}", err=True)
    common.show(as_json, answer.as_json(result), answer.as_text(result))
