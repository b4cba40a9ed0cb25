"""`bayesqid project`: parse, call, write."""

from pathlib import Path
from typing import Annotated

import typer


def project(
    posterior: Annotated[
        str | None,
        typer.Argument(help="Posterior file; else ./posterior.nc, else the bundled one.", show_default=False),
    ] = None,
    tokens: Annotated[float, typer.Option(help="Training tokens, e.g. 1.5e13.", show_default="1e14")] = 1e14,
    params: Annotated[
        float | None, typer.Option(help="Non-embedding parameters, e.g. 7e9.", show_default="1B, 7B, 70B, 405B")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="A known model, e.g. LLaMA-3-8B: its size and family.", show_default=False)
    ] = None,
    bits: Annotated[float | None, typer.Option(help="Bits per weight.", show_default="2, 3, 4")] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Recipes, with commas between, e.g. gptq-w4-g128.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="Quantizer, in groups of 128 weights.")] = "gptq",
    family: Annotated[str | None, typer.Option(help="A fitted family.", show_default="new family")] = None,
    new_family: Annotated[bool, typer.Option("--new-family", help="A family nobody has measured.")] = False,
    band: Annotated[str, typer.Option(help="mean, new or observed.")] = "new",
    lr_phase: Annotated[str, typer.Option(help="Learning rate assumed: annealed, decaying or constant.")] = "annealed",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for a full report.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Project QiD to model sizes and training tokens, with 50 % and 90 % credible bands."""
    import json
    import shlex
    import sys

    from bayesqid.answers import asking, draws
    from bayesqid.answers import project as answer

    found = draws.read(posterior)
    print(f"Posterior: {found.path} ({found.origin}).", file=sys.stderr)
    known = None
    if model_name is not None:
        from bayesqid.importers.tables import lookup_model

        known = lookup_model(model_name)
    targets = asking.targets(found, tokens, params, known, bits, recipes, method, family, new_family, lr_phase)
    result = answer.project(found, targets, band)
    result.attrs["command"] = shlex.join(["bayesqid", *sys.argv[1:]])
    if output is not None:
        from bayesqid import files

        files.write_netcdf(result, output / "projection.nc")
    print(json.dumps(answer.as_json(result), allow_nan=False) if as_json else answer.as_text(result))
    if output is not None:
        from bayesqid import report

        page = report.write(found, result, output)
        print(f"Report: {page}", file=sys.stderr if as_json else sys.stdout)
