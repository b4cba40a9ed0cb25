"""Simulation-based calibration: are the true values uniform among the posterior's draws?

python benchmarks/calibration.py                       run what is missing, then write tables and figure
python benchmarks/calibration.py --only laplace --fits 20 --jobs 2
python benchmarks/calibration.py --report              only tables and figure, from the fits that are there

One fit draws parameters from the priors, cells from the parameters and a posterior from the cells; what is kept are the
ranks of the true values among 99 draws. One line per finished fit is appended to results/calibration.jsonl, so that an
interrupted run goes on where it stopped. What is tested and how stands in docs/calibration.md.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from resumable import ROOT, code, put, run, seeds

from bayesqid import files, laws
from bayesqid.answers import asking, project
from bayesqid.answers import draws as answers
from bayesqid.inference import hyper, sample, sbc, simulate

RESULTS = Path(__file__).resolve().parent / "results" / "calibration.jsonl"
PAGE, FIGURE = ROOT / "docs" / "calibration.md", ROOT / "docs" / "calibration.svg"
# families, tokens, sizes: 160 cells under the five recipes of simulate.grid
GRID = (4, 4, 2)
# standard errors, nats, log-uniform over this range: set before there is any QiD, as the model takes them
ERRORS = (0.002, 0.03)
NUTS = {"chains": 4, "draws": 400, "tune": 500}
COVARIATE = "per_channel"
TARGET = {"params": 70e9, "tokens": 1e14}
BITS = 4
FAST_FITS, NUTS_FITS = 200, 60


@dataclass(frozen=True)
class Setup:
    """What is fitted by what, and how often."""

    law: str
    model: str
    engine: str
    fits: int

    @property
    def name(self) -> str:
        """The name under which results are kept."""
        return f"{self.engine} {self.law} {self.model}"


SETUPS = {
    setup.name: setup
    for setup in (
        *(Setup("boxcox", model, "laplace", FAST_FITS) for model in ("hierarchical", "pooled", "independent")),
        *(Setup(law, "hierarchical", "laplace", FAST_FITS) for law in laws.PLAIN if law != "boxcox"),
        Setup("boxcox", "hierarchical", "nuts", NUTS_FITS),
    )
}


# One fit


def template(shape: tuple[int, int, int] = GRID) -> xr.Dataset:
    """Empty cells with standard errors of their own."""
    cells = simulate.grid(*shape)
    error = np.random.default_rng(1).uniform(*np.log(ERRORS), size=cells.sizes["cell"])
    return cells.assign(qid_se=("cell", np.exp(error)))


def quantities(problem, posterior: answers.Posterior, family: str, density: np.ndarray, seed: int) -> dict:
    """What is ranked, by name, each (draw,): parameters, log likelihood of the data, ln QiD of two projections.

    Only what the model estimates: a mean or spread that is fixed has no posterior.
    """
    flat, out = posterior.sample, {}
    for term in problem.law.term_names:
        if problem.block(f"mu {term}"):
            out[f"mu {term}"] = flat["mu"].sel(term=term)
        if problem.block(f"family {term}"):
            out[f"theta {term}"] = flat["theta"].sel(term=term, family=family)
        if f"family {term}" in problem.spread_names:
            out[f"sd {term}"] = flat["sd"].sel(term=term)
    out |= {f"tau {generation}": flat["tau"].sel(generation=generation) for generation in problem.generations}
    if problem.free_lam:
        out["lam"] = flat["lam"]
    out[COVARIATE] = flat["covariate"].sel(covariate_name=COVARIATE)
    values = {name: value.to_numpy() for name, value in out.items()} | {"log likelihood": density}
    for label, known, band in (("known family", family, "mean"), ("new checkpoint, new family", None, "new")):
        target = asking.target_of(None, BITS, asking.DEFAULT_METHOD, family=known, **TARGET)
        # the law's own value over the headroom: its order is that of QiD, but it does not saturate
        values[f"projection, {label}"] = np.log(project.qid_draws(posterior, [target], band, seed)[1][:, 0])
    return values


def fit(setup: Setup, seed: int, shape: tuple[int, int, int] = GRID) -> dict:
    """Ranks of the true values of one simulated study by quantity, and what the engine said of itself."""
    law = laws.get(setup.law)
    problem, b, phi = simulate.study(law, setup.model, seed, template(shape), own_error=True)
    rng = np.random.default_rng([seed, 1])
    size = NUTS if setup.engine == "nuts" else {"chains": 1, "draws": sbc.LEVELS}
    tree = sample.sample(problem.cells, law, setup.model, setup.engine, seed, **size)
    record = json.loads(tree.attrs["engine"])

    natural = hyper.unpack(problem, phi)
    truth = answers.flatten(simulate.truth(problem, b, natural, rng))
    eta = (problem.weights(natural.lam, natural.latent) * b[problem.index]).sum(axis=1)
    density = problem.log_likelihood(eta, natural.tau)[0].sum(keepdims=True)
    found = answers.flatten(tree["posterior"].to_dataset())
    densities = tree["log_likelihood"]["qid"].astype(float).sum("cell").to_numpy().ravel()

    # one family a fit: ranks of several of one fit are no independent evidence
    family = str(rng.choice(problem.centers["family"]))
    drawn = quantities(problem, answers.Posterior(tree, found, "", "", ""), family, densities, seed)
    known = quantities(problem, answers.Posterior(tree, truth, "", "", ""), family, density, seed + 1_000_000)
    # one thinning for all quantities of a fit
    state = rng.integers(2**32)
    ranks = {name: int(sbc.ranks(drawn[name], known[name][0], np.random.default_rng(state))) for name in drawn}
    return {
        "cells": int(problem.cells.sizes["cell"]), "diverged": int(problem.cells["censored"].sum()), "ranks": ranks,
        "importance_ess": record.get("importance_ess"), "checks": json.loads(tree.attrs["checks"]),
    }  # fmt: skip


# What the ranks say


def ranks_of(lines: list[dict], name: str) -> dict[str, np.ndarray]:
    """Ranks by quantity of the fits of one configuration."""
    good = [line["ranks"] for line in lines if line["config"] == name and "ranks" in line]
    return {key: np.array([ranks[key] for ranks in good]) for key in good[0]} if good else {}


def overview(lines: list[dict]) -> list[str]:
    """One row a configuration, Markdown: `p K` is the smallest p times their number, held to 0.05.

    Fits whose own checks failed stay in the ranks; those that broke down have none and stand in the verdict.
    """
    head = "configuration | fits | effective draws, median (5 %) | own checks failed | quantities K | p K | verdict"
    out = [f"| {head} |", "|---|---|---|---|---|---|---|"]
    for name in SETUPS:
        own = [line for line in lines if line["config"] == name]
        rows, broken = sbc.verdict(ranks_of(lines, name)), sum("failed" in line for line in own)
        if not rows:
            continue
        size = [line["importance_ess"] for line in own if line.get("importance_ess")]
        effective = f"{np.median(size):.0f} ({np.quantile(size, 0.05):.0f})" if size else "by the sampler's checks"
        unsure = sum(not all(line["checks"].values()) for line in own if "checks" in line)
        smallest = min(1.0, min(row.p for row in rows) * len(rows))
        outside = [row.name for row in rows if row.outside]
        word = f"outside: {', '.join(outside)}" if outside else "inside"
        word = f"{word}; {broken} fits broke down" if broken else word
        out.append(f"| {name} | {rows[0].fits} | {effective} | {unsure} | {len(rows)} | {smallest:.2g} | {word} |")
    versions = sorted({line["code"] for line in lines if line["config"] in SETUPS})
    return [*out, "", f"Code of these fits: {', '.join(versions)}; of today: {code()}."]


def details(lines: list[dict], name: str) -> list[str]:
    """One row a quantity, Markdown."""
    out = ["", f"### {name}", "", "| quantity | mean rank / L | coverage of 50 % | coverage of 90 % | p | |",
           "|---|---|---|---|---|---|"]  # fmt: skip
    for row in sbc.verdict(ranks_of(lines, name)):
        mark = "outside" if row.outside else ""
        out.append(f"| {row.name} | {row.mean:.3f} | {row.cover50:.3f} | {row.cover90:.3f} | {row.p:.3g} | {mark} |")
    return out


def report(lines: list[dict]) -> str:
    """All tables as Markdown."""
    shown = [name for name in SETUPS if ranks_of(lines, name)]
    return "\n".join([*overview(lines), *(line for name in shown for line in details(lines, name))])


def figure(lines: list[dict]) -> str:
    """Small multiples as SVG: differences of the ranks' distribution from uniform with the band of the whole."""
    from bayesqid.report import drawing

    shown = [name for name in SETUPS if ranks_of(lines, name)]
    columns = min(3, len(shown))
    height = -(-len(shown) // columns)
    z = (np.arange(sbc.LEVELS) + 1) / (sbc.LEVELS + 1)
    with drawing.style():
        canvas = drawing.canvas_of(3.2 * columns, 2.4 * height)
        for number, name in enumerate(shown):
            found = ranks_of(lines, name)
            rows, fits = sbc.verdict(found), len(next(iter(found.values())))
            axis = canvas.add_subplot(height, columns, number + 1)
            low, high = sbc.ecdf_band(fits, mass=1 - (1 - sbc.MASS) / len(rows))
            axis.fill_between(z, low / fits - z, high / fits - z, color=drawing.tint(drawing.GREY, 0.25), linewidth=0)
            for row in rows:
                color, width = (drawing.RED, 1.4) if row.outside else (drawing.BLUE, 0.5)
                label = row.name if row.outside else None
                axis.plot(z, sbc.counts(found[row.name]) / fits - z, color=color, linewidth=width, label=label)
            axis.set_title(f"{name}, {fits} fits")
            axis.axhline(0, color=drawing.PALE, linewidth=0.6)
            if any(row.outside for row in rows):
                axis.legend()
        canvas.supxlabel("rank / L")
        canvas.supylabel("distribution minus uniform")
        return drawing.rendered(canvas)[0].decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, help="fits per configuration (200, and 60 by NUTS)")
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--report", action="store_true", help="run nothing; write the tables and the figure")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not any(options.only in name for name in SETUPS):
        parser.error(f"--only {options.only!r} fits none of: {', '.join(SETUPS)}")
    chosen = [] if options.report else [setup for name, setup in SETUPS.items() if options.only in name]
    tasks = [(fit, s.name, seed, s) for s in chosen for seed in seeds(s.name, options.fits or s.fits)]
    lines = run(options.results, tasks, options.jobs)
    print(report(lines))
    if options.report and any(ranks_of(lines, name) for name in SETUPS):
        files.write_text(FIGURE, figure(lines))
        put(PAGE, "calibration", f"![ECDF differences of the ranks](calibration.svg)\n\n{report(lines)}")


if __name__ == "__main__":
    main()
