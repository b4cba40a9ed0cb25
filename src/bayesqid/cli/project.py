"""`bayesqid project`: parse, call, write."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def project(
    posterior: common.PosteriorFile = None,
    tokens: Annotated[float | None, typer.Option(help="Training tokens, e.g. 1.5e13.", show_default="1e14")] = None,
    tokens_range: Annotated[
        str | None, typer.Option(help="Tokens LOW:HIGH instead, evenly spaced in ln D.", show_default=False)
    ] = None,
    points: Annotated[int | None, typer.Option(help="How many tokens of the range.", show_default="13")] = None,
    params: Annotated[
        float | None, typer.Option(help="Non-embedding parameters, e.g. 7e9.", show_default="1B, 7B, 70B, 405B")
    ] = None,
    model_name: common.ModelName = None,
    bits: Annotated[float | None, typer.Option(help="Bits per weight.", show_default="2, 3, 4")] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Recipes, with commas between, e.g. gptq-w4-g128.", show_default=False)
    ] = None,
    targets: Annotated[
        Path | None, typer.Option(help="CSV: params, tokens, bits or recipe; see docs.", show_default=False)
    ] = None,
    method: common.Method = "gptq",
    family: common.Family = None,
    new_family: common.NewFamily = False,
    population: Annotated[bool, typer.Option("--population", help="The mean of all families, none drawn.")] = False,
    band: Annotated[str, typer.Option(help="mean, new or observed.")] = "new",
    lr_phase: common.LrPhase = "annealed",
    loss_law: Annotated[
        str | None,
        typer.Option(help="The quantized loss too: ouyang, chinchilla, hoffmann or a TOML file.", show_default=False),
    ] = None,
    shares: Annotated[bool, typer.Option("--shares", help="Print where the variance comes from, too.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for a full report.", show_default=False)
    ] = None,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Project QiD to model sizes and training tokens, with 50 % and 90 % credible bands."""
    import shlex
    import sys

    from bayesqid.answers import asking
    from bayesqid.answers import project as answer

    # a report shows predictions of every cell, which the answer alone does not read
    found = common.opened(posterior, brief=output is None)
    wanted = asking.asked(
        found, targets, common.known_model, tokens=tokens, tokens_range=tokens_range, points=points, params=params,
        known=common.known_model(model_name), bits=bits, recipes=recipes, method=method, family=family,
        new_family=new_family, population=population, lr_phase=lr_phase,
    )  # fmt: skip
    result = answer.project(found, wanted, band, loss_law)
    result.attrs["command"] = shlex.join(["bayesqid", *sys.argv[1:]])
    if output is not None:
        from bayesqid import files

        files.write_netcdf(result, output / "projection.nc")
    common.show(as_json, answer.as_json(result), answer.as_text(result, shares))
    if output is not None:
        from bayesqid import report

        typer.echo(f"Report: {report.write(found, result, output)}", err=as_json)
