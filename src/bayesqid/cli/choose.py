"""`bayesqid choose`: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def choose(
    posterior: common.PosteriorFile = None,
    params: common.Params = None,
    model_name: common.ModelName = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A fitted checkpoint: its own deviation counts.", show_default=False)
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="Training tokens, e.g. 15e12.", show_default="of the named model")
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(help="Highest QiD, in nats per token or as a rise of perplexity (5%).", show_default="0.05"),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Probability of staying under it.", show_default="0.9")
    ] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Recipes, with commas between, e.g. gptq-w4-g128.", show_default="all")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory for the weights, e.g. 6GB: also choose the size.", show_default=False),
    ] = None,
    loss_law: Annotated[
        str | None,
        typer.Option(help="With --memory: law of the loss at 16 bits, a name or a TOML file.", show_default=False),
    ] = None,
    landscape: Annotated[
        Path | None,
        typer.Option(help="File of measure --landscape: choose for a model in it by its loss landscape.",
                     show_default=False),
    ] = None,
    family: common.Family = None,
    new_family: common.NewFamily = False,
    lr_phase: Annotated[
        str | None,
        typer.Option(help="Learning rate assumed: annealed, decaying or constant.", show_default="annealed"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show dominated recipes too.")] = False,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Choose the cheapest recipe whose QiD stays under a tolerance, or size and bits for a memory budget."""
    from bayesqid.answers import choose as answer

    found = common.opened(posterior)
    known = common.known_model(model_name)
    seen = None
    if landscape is not None:
        from bayesqid.importers import sources

        seen = sources.read_cells(str(landscape))
    result = answer.choose(found, params, known, tokens, tolerance, confidence, recipes, family, new_family, lr_phase,
                           checkpoint, memory, loss_law, seen)  # fmt: skip
    common.show(as_json, answer.as_json(result), answer.as_text(result, everything))
