"""Inference on the bundled atlas, timed as whole processes: our engines beside the sketch of a competent user.

    python benchmarks/sample.py              the table; about four minutes on two quiet cores
    python benchmarks/sample.py --scaling    the fast engine and NUTS on 450 to 4,500 simulated cells
    python benchmarks/sample.py --agree      the population's law by both engines

The sketch is what one writes first in PyMC: every effect a centred normal vector, a Student-t likelihood whose scale
joins measurement error and scatter, sigma^2 = s^2 + (tau mean)^2, default settings. It has the same families,
quantizers, checkpoints, sources and covariates, so that only the engine differs; diverged cells, which it cannot use,
are left out. Seconds are CPU seconds of the whole process, imports and compilation included, in one run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import xarray as xr

DRAWS, TUNE, CHAINS = 500, 500, 4


def sketch() -> dict:
    """The sketch, sampled by PyMC's default."""
    import pymc as pm
    from arviz_stats.sampling_diagnostics import ess, rhat

    from bayesqid import laws
    from bayesqid.importers import sources

    cells = sources.read_cells("atlas")
    cells = cells.isel(cell=np.flatnonzero(~cells["censored"].to_numpy()))
    column = {name: cells[name].to_numpy() for name in (*cells.coords, *cells.data_vars)}
    number = {by: np.unique(column[by].astype(str), return_inverse=True)
              for by in ("family", "generation", "quantizer", "checkpoint", "source_method")}  # fmt: skip
    names = {by: list(levels) for by, (levels, _) in number.items()}
    of = {by: index for by, (_, index) in number.items()}
    x_n, x_d = (laws.factor(name, column, 0.0) for name in ("-x_N", "x_D"))
    other = np.stack([laws.factor(c.factor, column, 0.0) for c in laws.get("boxcox").covariates], axis=1)
    u = np.log(column["effective_bits"] / 3)
    begin = time.perf_counter()
    with pm.Model(coords=names):
        mu = pm.Normal("mu", [-1.5, 0.3, 0.4, 5.0], [1.5, 0.2, 0.25, 2.0])
        sd = pm.HalfNormal("sd", [0.7, 0.15, 0.15, 1.0])
        theta = pm.Normal("theta", mu[:, None], sd[:, None], dims=("term", "family"), shape=(4, len(names["family"])))
        spread = pm.HalfNormal("spread", [0.7, 1.0, 0.5, 0.7, 0.4, 0.3])
        generation = pm.ZeroSumNormal("generation_level", spread[0], dims="generation")
        generation_slope = pm.ZeroSumNormal("generation_slope", spread[1], dims="generation")
        method = pm.Normal("method_level", 0, spread[2], dims="quantizer")
        method_slope = pm.Normal("method_slope", 0, spread[3], dims="quantizer")
        checkpoint = pm.Normal("checkpoint_level", 0, spread[4], dims="checkpoint")
        source = pm.Normal("source_level", 0, spread[5], dims="source_method")
        covariate = pm.Normal("covariate", 0, 0.5, shape=other.shape[1])
        lam = pm.Normal("lam", 0.5, 0.3)
        tau = pm.HalfNormal("tau", 0.4, dims="generation")
        x_p = pm.math.expm1(lam * u) / lam
        slope = theta[3][of["family"]] + generation_slope[of["generation"]] + method_slope[of["quantizer"]]
        eta = (theta[0][of["family"]] + theta[1][of["family"]] * x_n + theta[2][of["family"]] * x_d - slope * x_p
               + generation[of["generation"]] + method[of["quantizer"]] + checkpoint[of["checkpoint"]]
               + source[of["source_method"]] + pm.math.dot(other, covariate))  # fmt: skip
        seen = column["headroom"] * (1 - pm.math.exp(-pm.math.exp(eta) / column["headroom"]))
        sigma = pm.math.sqrt(column["qid_se"] ** 2 + (tau[of["generation"]] * seen) ** 2)
        pm.StudentT("qid", nu=5, mu=seen, sigma=sigma, observed=column["qid"])
        tree = pm.sample(draws=DRAWS, tune=TUNE, chains=CHAINS, cores=2, random_seed=0, progressbar=False)
    wall = time.perf_counter() - begin
    sample = tree["posterior"].to_dataset()
    return {"ess": _least(ess(sample, method="bulk")), "rhat": -_least(-rhat(sample)), "sample_s": wall,
            "divergences": int(tree["sample_stats"]["diverging"].sum()), "cells": cells.sizes["cell"]}  # fmt: skip


def _least(values: xr.Dataset) -> float:
    return float(min(np.nanmin(value.to_numpy()) for value in values.data_vars.values()))


def ours(engine: str) -> dict:
    from bayesqid import laws
    from bayesqid.importers import sources
    from bayesqid.inference import sample

    cells = sources.read_cells("atlas")
    tree = sample.sample(cells, laws.get("boxcox"), engine=engine)
    record = json.loads(tree.attrs["engine"])
    out = {"cells": cells.sizes["cell"], "checks": all(json.loads(tree.attrs["checks"]).values())}
    if engine == "laplace":
        return out | {"ess": record["importance_ess"], "divergences": "", "rhat": float("nan")}
    last = record["tries"][-1]
    least = min(last["diagnostics"][key] for key in ("ess_bulk", "ess_tail"))
    return out | {"ess": least, "tries": len(record["tries"]),
                  "rhat": last["diagnostics"]["rhat"], "divergences": int(last["diagnostics"]["divergences"]),
                  "compile_s": record["compile_s"], "sample_s": last["sample_s"]}  # fmt: skip


def refit() -> dict:
    """One refit inside a running process, as cross-validation makes hundreds."""
    from threadpoolctl import threadpool_limits

    from bayesqid import laws
    from bayesqid.importers import sources
    from bayesqid.inference import laplace, problem

    p = problem.build(sources.read_cells("atlas"), laws.get("boxcox"), "hierarchical")
    with threadpool_limits(1):
        laplace.fit(p, 1000, 99)
        seconds, ess = [], []
        for seed in range(5):
            begin = time.process_time()
            ess.append(laplace.fit(p, 1000, seed).ess)
            seconds.append(time.process_time() - begin)
    return {"cells": p.index.shape[0], "ess": float(np.median(ess)), "refit_s": float(np.median(seconds))}


def agree() -> None:
    """Means and sds of the population by NUTS and by the fast engine, and their difference in Monte Carlo errors."""
    from arviz_stats.sampling_diagnostics import ess

    from bayesqid import laws
    from bayesqid.importers import sources
    from bayesqid.inference import sample

    cells, law = sources.read_cells("atlas"), laws.get("boxcox")
    trees = [sample.sample(cells, law, engine=engine) for engine in ("nuts", "laplace")]
    nuts, fast = (tree["posterior"].to_dataset() for tree in trees)
    importance = json.loads(trees[1].attrs["engine"])["importance_ess"]
    neff = ess(nuts[["mu", "sd", "tau", "lam"]], method="bulk")
    print("| parameter | NUTS mean (sd) | fast mean (sd) | difference / Monte Carlo error |\n|---|---|---|---|")
    for name, dim in (("mu", "term"), ("sd", "term"), ("tau", "generation"), ("lam", None)):
        for level in nuts[dim].values if dim else [None]:
            x, y, draws = ((d[name] if level is None else d[name].sel({dim: level})) for d in (nuts, fast, neff))
            error = float(x.std()) * np.sqrt(1 / float(draws) + 1 / importance)
            print(f"| {name} {level or ''} | {float(x.mean()):.3f} ({float(x.std()):.3f}) | {float(y.mean()):.3f} "
                  f"({float(y.std()):.3f}) | {(float(y.mean()) - float(x.mean())) / error:+.1f} |")  # fmt: skip


RUNS = {"sketch": sketch, "nuts": lambda: ours("nuts"), "laplace": lambda: ours("laplace"), "refit": refit}


def timed(name: str) -> dict:
    """One run in a process of its own: what it found, wall and CPU seconds."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--run", name], capture_output=True, text=True, check=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]) | {"wall": time.perf_counter() - begin, "cpu": cpu}


def scaling() -> None:
    """Seconds by number of cells: 3 recipes each of 150 to 1,500 checkpoints of six families."""
    from threadpoolctl import threadpool_limits

    from bayesqid import laws
    from bayesqid.inference import hyper, laplace, problem, sample, simulate

    law = laws.get("boxcox")
    print("| cells | coefficients | fast refit, CPU s | effective draws | NUTS, wall s | NUTS, least effective draws |")
    print("|---|---|---|---|---|---|")
    for tokens, sizes in ((5, 5), (10, 5), (10, 10), (25, 10)):
        template = simulate.grid(6, tokens, sizes)
        gptq = np.flatnonzero(template["method"].to_numpy() == "gptq")
        blank = problem.build(template.isel(cell=gptq), law, "hierarchical")
        spread = {"family log_k": 0.3, "family alpha": 0.1, "family beta": 0.1, "family gamma": 0.4}
        natural = hyper.Hyper(np.array([spread.get(name, 0.15) for name in blank.spread_names]),
                              np.full(len(blank.generations), 0.25), 0.3, np.empty(0))  # fmt: skip
        rng = np.random.default_rng(0)
        b = blank.mean + hyper.coefficient_sd(blank, natural.sd) * rng.normal(size=blank.size)
        for term, value in zip(law.terms, (-2.0, 0.3, 0.4, 5.4), strict=True):
            b[blank.block(f"mu {term.name}").where] = value
        for covariate in law.covariates:
            b[blank.block(covariate.name).where] = 0
        cells = simulate.observe(blank, b, natural, rng)
        p = problem.build(cells, law, "hierarchical")
        with threadpool_limits(1):
            laplace.settle(p)
            begin = time.process_time()
            found = laplace.fit(p, 500, 0)
            seconds = time.process_time() - begin
        begin = time.perf_counter()
        tree = sample.sample(cells, law)
        wall = time.perf_counter() - begin
        last = json.loads(tree.attrs["engine"])["tries"][-1]["diagnostics"]
        print(f"| {p.index.shape[0]} | {p.size} | {seconds:.1f} | {found.ess:.0f} | {wall:.0f} | "
              f"{min(last['ess_bulk'], last['ess_tail']):.0f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=list(RUNS), help="one run, its result as JSON")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--agree", action="store_true")
    args = parser.parse_args()
    if args.run:
        return print(json.dumps(RUNS[args.run]()))
    if args.scaling:
        return scaling()
    if args.agree:
        return agree()
    found = {name: timed(name) for name in RUNS}
    head = ("engine", "cells", "wall s", "CPU s", "of it compiling", "sampling", "least effective draws", "per CPU s",
            "R-hat", "divergences")  # fmt: skip
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name in ("sketch", "nuts", "laplace"):
        row = found[name]
        stage = [f"{row[key]:.0f}" if key in row else "" for key in ("compile_s", "sample_s")]
        print(f"| {name} | {row['cells']} | {row['wall']:.0f} | {row['cpu']:.0f} | {stage[0]} | {stage[1]} | "
              f"{row['ess']:.0f} | {row['ess'] / row['cpu']:.1f} | {row['rhat']:.3f} | "
              f"{row['divergences']} |")  # fmt: skip
    refit_row = found["refit"]
    print(f"\nA refit by the fast engine: {refit_row['refit_s']:.2f} CPU s, {refit_row['ess']:.0f} effective draws, "
          f"{refit_row['ess'] / refit_row['refit_s']:.0f} per CPU s (medians of five).")  # fmt: skip


if __name__ == "__main__":
    main()
