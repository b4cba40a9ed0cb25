"""`bayesqid simulate`: parse, call, write."""

from pathlib import Path
from typing import Annotated

import typer

from bayesqid.cli import common


def simulate(
    law: Annotated[
        str | None, typer.Option(help="Law that makes the cells; see bayesqid show laws.", show_default="boxcox")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Fix a parameter, e.g. alpha=0.3, sd_alpha=0, tau=0.2, lam=0.",
                     show_default=False),
    ] = None,
    published: Annotated[
        str | None, typer.Option(help="Printed constants that every family follows: ouyang or kumar.",
                                 show_default=False)
    ] = None,
    families: Annotated[int, typer.Option(help="Families.", min=1, max=100)] = 6,
    tokens: Annotated[int, typer.Option(help="Token counts per size.", min=1, max=100)] = 5,
    sizes: Annotated[int, typer.Option(help="Sizes per family.", min=1, max=100)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.", min=0)] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of cells to write.")] = Path("cells.nc"),
    quiet: common.Quiet = False,
) -> None:  # fmt: skip
    """Make cells from a law with known parameters; what is not set is drawn from the prior."""
    import json

    from bayesqid import files, laws
    from bayesqid.inference import simulate as inference

    files.writable(output)
    chosen = laws.get(law or published or "boxcox")
    cells = inference.make(chosen, settings or (), published, families, tokens, sizes, seed)
    files.write_netcdf(cells, output)
    truth = json.loads(cells.attrs["truth"])["parameters"]
    print(f"{cells.sizes['cell']} cells of {families} families, {int(cells['censored'].sum())} of them diverged.")
    print(f"Law {chosen.name}; true population means and standard deviations between families:")
    for term, value in truth["mu"].items():
        print(f"  {term:<10}{value:8.3f} {truth['sd'][term]:8.3f}")
    print(f"  {'lam':<10}{truth['lam']:8.3f}")
    print(f"Wrote {output}: all parameters are in its attribute 'truth'.")
