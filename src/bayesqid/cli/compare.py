"""`bayesqid compare`: parse, call, write."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def compare(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATA", help="Measurement files, CSV tables or bundled names (atlas, tiny, ladder, "
                       "landscape, mixed, mixed-tiny)."),
    ] = None,
    compared: Annotated[
        str | None,
        typer.Option("--laws", help="Laws, with commas between: NAME[:DRIVERS][+EXTRA].", show_default="all"),
    ] = None,
    models: Annotated[
        str, typer.Option(help="hierarchical, pooled, independent; with commas between.")
    ] = "hierarchical",
    splits: Annotated[
        str | None,
        typer.Option(
            help="future, largest, width, family, source, loo; with commas between.",
            show_default="all that the data allow",
        ),
    ] = None,
    future_from: Annotated[
        float | None,
        typer.Option(help="Training tokens from which to predict, e.g. 1.5e13.", show_default="after the widest gap"),
    ] = None,
    largest_from: Annotated[
        float | None,
        typer.Option(help="Parameters from which to predict, e.g. 3e10.", show_default="after the widest gap"),
    ] = None,
    params: Annotated[float, typer.Option(help="Non-embedding parameters to project to.")] = 70e9,
    tokens: Annotated[float, typer.Option(help="Training tokens to project to.")] = 1e14,
    bits: Annotated[float, typer.Option(help="Bits per weight to project to.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.", min=0)] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for posteriors, scores and finished fits.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: common.Quiet = False,
) -> None:
    """Compare laws by what they predict of data left out, and average their projections."""
    import json
    import shlex
    import sys

    from bayesqid import cells, files, laws
    from bayesqid.answers import asking, average
    from bayesqid.importers import sources

    asking.positive("params", params)
    asking.positive("tokens", tokens)
    asking.target_of(None, bits, asking.DEFAULT_METHOD, family=None, params=params, tokens=tokens)
    if output is not None:
        files.writable(output / "comparison.nc")
    joined = cells.check(cells.join([sources.read_cells(name) for name in data or ["atlas"]]))
    print(f"{joined.sizes['cell']} cells, {int(joined['censored'].sum())} of them diverged.", file=sys.stderr)

    from bayesqid.inference import compare as inference
    from bayesqid.inference import scores

    wanted = [inference.law_of(name.strip()) for name in (compared.split(",") if compared else laws.PLAIN)]
    names = [name.strip() for name in splits.split(",")] if splits else None
    cuts = {name: value for name, value in (("future", future_from), ("largest", largest_from)) if value is not None}
    chosen = [name.strip() for name in models.split(",")]
    found, trees = inference.compare(joined, wanted, chosen, names, cuts, seed, output)
    found.attrs["command"] = shlex.join(["bayesqid", *sys.argv[1:]])
    if output is not None:
        files.write_netcdf(found, output / "comparison.nc")

    posteriors = {name: average.of_tree(tree, name) for name, tree in trees.items()}
    targets = asking.targets(next(iter(posteriors.values())), tokens, params, bits=bits)
    averages = {name: average.average(posteriors, weights, targets) for name, weights in scores.weights(found).items()}
    if as_json:
        print(json.dumps(scores.as_json(found) | {"projection": average.as_json(averages)}, allow_nan=False))
    else:
        print(f"{scores.as_text(found)}\n\n{average.as_text(averages)}")
    if output is not None:
        print(f"Wrote {output}.", file=sys.stderr)
    if not all(json.loads(found.attrs["checks"]).values()):
        raise typer.Exit(3)
