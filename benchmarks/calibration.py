"""Coverage of the fast engine's 90 % intervals: parameters from the priors, simulated cells, one refit each.

python benchmarks/calibration.py --refits 100        adds what is missing to calibration.jsonl, then prints the table

One line per finished refit is appended to the results file, so that an interrupted run goes on where it stopped.
Standard errors are clustered by refit: intervals of one refit share its data.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from bayesqid import laws
from bayesqid.inference import hyper, laplace, posterior, simulate
from bayesqid.inference.problem import Problem

LAW, MODEL, DRAWS, MASS = "boxcox", "hierarchical", 2000, 0.9


def parameters(problem: Problem, b: np.ndarray, phi: np.ndarray) -> dict[str, np.ndarray]:
    """Named parameters of (chain, draw) draws flattened to (draw, ...): mu, family terms, spreads, scatter, lam."""
    named = posterior.named(problem, b, posterior.natural_of(problem, phi)).stack(all=("chain", "draw"))
    out = {}
    for term in named["term"].values:
        out[f"mu {term}"] = named["mu"].sel(term=term).values[:, None]
        out[f"family {term}"] = named["theta"].sel(term=term).transpose("all", "family").values
        out[f"sd {term}"] = named["sd"].sel(term=term).values[:, None]
    out["tau"] = named["tau"].transpose("all", "generation").values
    out["lam"] = named["lam"].values[:, None]
    return out


def refit(seed: int) -> dict:
    """One simulated study and its refit: whether each interval covers, by parameter."""
    problem, b, phi = simulate.study(laws.get(LAW), MODEL, seed)
    found = laplace.fit(problem, DRAWS, seed + 10_000_000)
    truth = parameters(problem, b[None, None], phi[None, None])
    drawn = parameters(problem, found.b[None], found.phi[None])
    tail = (1 - MASS) / 2
    covered = {}
    for name, values in drawn.items():
        low, high = np.quantile(values, [tail, 1 - tail], axis=0)
        covered[name] = [bool(c) for c in (low <= truth[name][0]) & (truth[name][0] <= high)]
    natural = hyper.unpack(problem, phi)
    return {"seed": seed, "cells": int(problem.index.shape[0]), "diverged": int(problem.diverged.sum()),
            "importance_ess": found.ess, "lam": natural.lam, "covered": covered}  # fmt: skip


def clustered(groups: list[list[bool]]) -> tuple[float, float, int]:
    """Share covered, its standard error with refits as clusters, and the number of intervals."""
    sums, counts = np.array([sum(g) for g in groups]), np.array([len(g) for g in groups])
    share = sums.sum() / counts.sum()
    residual = sums - share * counts
    error = np.sqrt((residual**2).sum() * len(groups) / (len(groups) - 1)) / counts.sum()
    return share, float(error), int(counts.sum())


def table(results: list[dict]) -> str:
    """Coverage by parameter and pooled, as Markdown."""
    names = list(results[0]["covered"])
    rows = {name: [r["covered"][name] for r in results] for name in names}
    for kind in ("mu", "family", "sd"):
        rows[f"**{kind}, pooled**"] = [
            sum((r["covered"][n] for n in names if n.startswith(f"{kind} ")), []) for r in results
        ]
    lines = ["| parameter | intervals | coverage of 90 % | clustered SE | (coverage - .9) / SE |"]
    lines.append("|---|---|---|---|---|")
    for name, groups in rows.items():
        share, error, count = clustered(groups)
        lines.append(f"| {name} | {count} | {share:.3f} | {error:.3f} | {(share - MASS) / error:+.1f} |")
    ess = np.array([r["importance_ess"] for r in results])
    lines.append(f"\n{len(results)} refits of {results[0]['cells']} cells; effective importance draws: median "
                 f"{np.median(ess):.0f}, 5 % below {np.quantile(ess, 0.05):.0f}.")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refits", type=int, default=100)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("calibration.jsonl"))
    options = parser.parse_args()
    done = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    for seed in sorted(set(range(options.refits)) - {r["seed"] for r in done}):
        done.append(refit(seed))
        with open(options.results, "a") as stream:
            stream.write(json.dumps(done[-1]) + "\n")
        print(f"refit {seed}: importance ESS {done[-1]['importance_ess']:.0f}", flush=True)
    print(table(done))


if __name__ == "__main__":
    main()
