"""`bayesqid sample`: parse, call, write."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def sample(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATA", help="Measurement files, CSV tables or bundled names (atlas, tiny, ladder, "
                       "landscape, mixed, mixed-tiny)."),
    ] = None,
    law: Annotated[str, typer.Option(help="boxcox, ouyang, kumar, per-bit, curved, landscape or mixed.")] = "boxcox",
    model: Annotated[str, typer.Option(help="hierarchical, pooled or independent.")] = "hierarchical",
    drivers: Annotated[str, typer.Option(help="What raises QiD in training: tokens, phase or both.")] = "both",
    extra: Annotated[
        list[str] | None,
        typer.Option("--with", help="A further assumption (bayesqid show laws); may be repeated.", show_default=False),
    ] = None,
    engine: Annotated[str, typer.Option(help="nuts (reference), numpyro or laplace (fast).")] = "nuts",
    prior: Annotated[Path | None, typer.Option(help="TOML file of priors; see bayesqid show laws.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.", min=0)] = 0,
    chains: Annotated[int, typer.Option(help="Chains.", min=2)] = 4,
    draws: Annotated[int, typer.Option(help="Draws per chain.", min=50)] = 800,
    tune: Annotated[int, typer.Option(help="Tuning steps per chain.", min=100)] = 600,
    output: Annotated[Path, typer.Option("--output", "-o", help="Posterior file to write.")] = Path("posterior.nc"),
    quiet: common.Quiet = False,
) -> None:
    """Infer the posterior of a law from measurements (default: the published atlas)."""
    import json
    import shlex
    import sys

    from bayesqid import cells, files, laws
    from bayesqid.importers import sources

    files.writable(output)
    chosen = laws.variant(law, drivers, extra or ())
    if prior is not None:
        chosen = laws.with_priors(chosen, files.read_toml(prior))
    parts = [sources.read_cells(name, chosen.extras) for name in data or ["atlas"]]
    joined = cells.check(cells.join(parts), chosen.latent_tokens is not None)
    print(f"{joined.sizes['cell']} cells, {int(joined['censored'].sum())} of them diverged.", file=sys.stderr)

    if engine == "nuts":
        print("The first run on a machine compiles the model for a while; later ones find it.", file=sys.stderr)

    from bayesqid.answers import draws as answer
    from bayesqid.answers import sensitivity
    from bayesqid.inference import checks as named
    from bayesqid.inference import sample as inference

    tree = inference.sample(joined, chosen, model, engine, seed, chains, draws, tune)
    tree.attrs["command"] = shlex.join(["bayesqid", *sys.argv[1:]])
    files.write_netcdf(tree, output)
    record = named.record(tree, sensitivity.answer(answer.read(str(output))))
    beside = output.with_suffix(".checks.json")
    files.write_text(beside, json.dumps(record, allow_nan=False) + "\n")
    if tree.attrs["warning"]:
        print(tree.attrs["warning"], file=sys.stderr)
    checks = json.loads(tree.attrs["checks"])
    print("\n".join(inference.summary(tree)))
    print(f"Wrote {output} and {beside}.")
    if not all(checks.values()):
        raise typer.Exit(3)
