"""NUTS beside the fast engine on the bundled atlas, in one run: seconds, effective draws, and how well they agree.

python benchmarks/sample.py        about three minutes on two cores
"""

import json
import time

import numpy as np
import xarray as xr
from arviz_stats.sampling_diagnostics import ess

from bayesqid import laws
from bayesqid.importers import sources
from bayesqid.inference import sample


def run(cells: xr.Dataset, engine: str) -> tuple[xr.DataTree, float, float]:
    """Posterior, process seconds of all threads, and the smallest effective number of draws."""
    begin = time.process_time()
    tree = sample.sample(cells, laws.get("boxcox"), engine=engine)
    seconds = time.process_time() - begin
    record = json.loads(tree.attrs["engine"])
    effective = record["tries"][-1]["diagnostics"]["ess_bulk"] if engine == "nuts" else record["importance_ess"]
    return tree, seconds, effective


def main() -> None:
    cells = sources.read_cells("atlas")
    done = {engine: run(cells, engine) for engine in ("nuts", "laplace")}
    print("| engine | process s | fewest effective draws | effective draws per process s |\n|---|---|---|---|")
    for engine, (_, seconds, effective) in done.items():
        print(f"| {engine} | {seconds:.0f} | {effective:.0f} | {effective / seconds:.1f} |")
    a, b = (done[engine][0]["posterior"].to_dataset() for engine in ("nuts", "laplace"))
    print("\n| parameter | NUTS mean (sd) | fast mean (sd) | difference / Monte Carlo error |\n|---|---|---|---|")
    neff = ess(a[["mu", "sd", "tau", "lam"]], method="bulk")
    for name, dim in (("mu", "term"), ("sd", "term"), ("tau", "generation"), ("lam", None)):
        for level in a[dim].values if dim else [None]:
            x, y = ((p[name] if level is None else p[name].sel({dim: level})).to_numpy() for p in (a, b))
            draws = float(neff[name] if level is None else neff[name].sel({dim: level}))
            error = x.std() * np.sqrt(1 / draws + 1 / done["laplace"][2])
            label = name if level is None else f"{name} {level}"
            print(f"| {label} | {x.mean():.3f} ({x.std():.3f}) | {y.mean():.3f} ({y.std():.3f}) | "
                  f"{(y.mean() - x.mean()) / error:+.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
