"""`bayesqid level`: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def level(
    posterior: common.PosteriorFile = None,
    qid: Annotated[
        list[str] | None,
        typer.Option(help="A measured QiD in nats, BITS=QID:SE or RECIPE=QID:SE; repeat it.", show_default=False),
    ] = None,
    measurements: Annotated[
        Path | None, typer.Option(help="Measurement file to read the QiDs from, with size and family.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The checkpoint in that file.", show_default="the only one")
    ] = None,
    params: common.Params = None,
    model_name: common.ModelName = None,
    method: Annotated[str, typer.Option(help="Quantizer of the QiDs given at bits and of the level.")] = "gptq",
    family: common.Family = None,
    new_family: common.NewFamily = False,
    lr_phase: Annotated[
        str | None,
        typer.Option(
            help="Learning rate assumed: annealed, decaying or constant.", show_default="the file's, else annealed"
        ),
    ] = None,
    tokens_prior: Annotated[str, typer.Option(help="Bounds of the log-uniform prior of tokens.")] = "1e9:1e16",
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Infer from measured QiDs how many tokens a model saw and whether it is fully trained."""
    from bayesqid.answers import level as answer
    from bayesqid.answers import observed

    bounds = observed.parse_tokens_prior(tokens_prior)
    cells = None
    if measurements is not None:
        from bayesqid.importers import sources

        cells = sources.read_cells(str(measurements))
    asked = observed.question(qid or [], cells, checkpoint, params, common.known_model(model_name), family, new_family)
    found = common.opened(posterior)
    whose, note = observed.family_of(asked, found.families)
    if note:
        typer.echo(note, err=True)
    result = answer.level(found, asked.params, asked.qids, method, whose, bounds, lr_phase)
    common.show(as_json, answer.as_json(result), answer.as_text(result))
