"""`bayesqid level`: parse, call, print."""

from typing import Annotated

import typer


def level(
    posterior: Annotated[
        str | None,
        typer.Argument(help="Posterior file; else ./posterior.nc, else the bundled one.", show_default=False),
    ] = None,
    qid: Annotated[
        list[str] | None,
        typer.Option(help="A measured QiD in nats, BITS=QID:SE or RECIPE=QID:SE; repeat it.", show_default=False),
    ] = None,
    params: Annotated[
        float | None, typer.Option(help="Non-embedding parameters, e.g. 7e9.", show_default=False)
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="A known model instead: its parameters and family.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="Quantizer of the QiDs given at bits.")] = "gptq",
    family: Annotated[
        str | None, typer.Option(help="A fitted family; a new one when left out.", show_default=False)
    ] = None,
    new_family: Annotated[bool, typer.Option("--new-family", help="Take the model as of a new family.")] = False,
    tokens_prior: Annotated[str, typer.Option(help="Bounds of the log-uniform prior of tokens.")] = "1e9:1e16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Infer how many tokens a model was trained on from its measured QiDs."""
    import json

    from bayesqid.answers import draws
    from bayesqid.answers import level as answer
    from bayesqid.errors import BadInput

    observed = [answer.parse_qid(text) for text in qid or []]
    bounds = answer.parse_tokens_prior(tokens_prior)
    if (params is None) == (model_name is None):
        raise BadInput("The size of the model is needed once: give --params 7e9 or --model-name NAME.")
    if family is not None and new_family:
        raise BadInput("--family and --new-family contradict each other: leave one of them out.")
    fitted = draws.read(posterior)
    if model_name is not None:
        from bayesqid.importers import tables

        known = tables.lookup_model(model_name)
        params = known["n_params_nonembedding"]
        if family is None and not new_family and known["family"] in fitted.families:
            family = known["family"]
    result = answer.level(fitted, float(params or 0), observed, method, family, bounds)
    typer.echo(f"Posterior: {fitted.path} ({fitted.origin}).", err=True)
    typer.echo(json.dumps(answer.as_json(result), allow_nan=False) if as_json else answer.as_text(result))
