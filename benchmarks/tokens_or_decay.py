"""Tokens or decay by the law: `drivers` on the controlled ladder, the atlas and both, for docs/tokens-or-decay.md.

    python benchmarks/tokens_or_decay.py             fits what is missing (fast engine): some minutes of one core
    python benchmarks/tokens_or_decay.py --report    the table alone

The pairs of checkpoints that differ in the learning rate alone are read without a law: phase_pairs.py.
"""

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
from resumable import ROOT, load, put, run

from bayesqid import cells as cells_module
from bayesqid import laws
from bayesqid.answers import average, drivers, wording
from bayesqid.importers import sources
from bayesqid.inference import sample

RESULTS = Path(__file__).parent / "results" / "tokens_or_decay.jsonl"
PAGE = ROOT / "docs" / "tokens-or-decay.md"
# below, QiDs of the ladder lie within a few standard errors and rise much faster with tokens than above
BENT = 2e6


def ladder(least: float = 0.0) -> xr.Dataset:
    """Cells of the controlled ladder from so many tokens on."""
    found = sources.read_cells("ladder")
    return found.isel(cell=found["train_tokens"].to_numpy() > least)


def atlas_and_ladder(least: float = 0.0) -> xr.Dataset:
    return cells_module.join([sources.read_cells("atlas"), ladder(least)])


# name -> (cells, law, model)
FITS = {
    "atlas": (lambda: sources.read_cells("atlas"), "boxcox", "hierarchical"),
    "ladder": (ladder, "boxcox", "pooled"),
    "ladder, D > 2M": (lambda: ladder(BENT), "boxcox", "pooled"),
    "ladder, curved": (ladder, "curved", "pooled"),
    "atlas and ladder": (atlas_and_ladder, "boxcox", "hierarchical"),
    "atlas and ladder, D > 2M": (lambda: atlas_and_ladder(BENT), "boxcox", "hierarchical"),
}


def fit(name: str, seed: int) -> dict:
    """What `drivers` says of one fit: factors by effect, their correlation, verdict."""
    make, law, model = FITS[name]
    cells = make()
    tree = sample.sample(cells, laws.get(law), model, engine="laplace", seed=seed)
    told = drivers.as_json(drivers.drivers(average.of_tree(tree, "memory"), suite=["tiny"]))
    keep = ("kind", "family", "tokens", "contraction", "lower90", "median", "upper90")
    return {"cells": cells.sizes["cell"], "verdict": told["verdict"], "checks": told["checks"],
            "correlation": told["correlation"], "effects": [{k: row[k] for k in keep} for row in told["effects"]],
            "pairs": told.get("pairs")}  # fmt: skip


def shown(row: dict) -> str:
    prior = " (prior)" if row["contraction"] < 0.2 else ""
    return f"{row['median']:.2g} ({row['lower90']:.2g} - {row['upper90']:.2g}){prior}"


def table(lines: dict[str, dict]) -> str:
    heads = ("data", "cells", "QiD per 10 x tokens", "exponent", "decay, at the fewest tokens", "at the most",
             "correlation", "verdict")  # fmt: skip
    out = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in (name for name in FITS if name in lines):
        line = lines[name]
        effects = line["effects"]
        tokens = next(row for row in effects if (row["kind"], row["family"]) == ("tokens", "population"))
        low, high = sorted((row for row in effects if row["kind"] == "decay"), key=lambda row: row["tokens"])
        ends = [f"{shown(row)} at {wording.count_text(row['tokens'])}" for row in (low, high)]
        exponent = " - ".join(f"{np.log10(tokens[key]):.2f}" for key in ("lower90", "upper90"))
        exponent = f"{np.log10(tokens['median']):.2f} ({exponent})"
        both = line["correlation"]["factors"]
        out.append(f"| {name} | {line['cells']} | {shown(tokens)} | {exponent} | {ends[0]} | {ends[1]} | {both:+.2f} | "
                   f"{line['verdict'].split(':')[0]} |")  # fmt: skip
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    if not parser.parse_args().report:
        run(RESULTS, [(fit, name, 0, name) for name in FITS])
    lines = {line["config"]: line for line in load(RESULTS)}
    put(PAGE, "drivers", table(lines))
    print(table(lines))


if __name__ == "__main__":
    main()
