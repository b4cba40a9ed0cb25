"""Recovery of known laws: do the bands of a fitted posterior hold the law, and a fresh checkpoint, 90 % of the time?

python benchmarks/recovery.py                    run what is missing, then print the tables
python benchmarks/recovery.py --fits 3 --jobs 2
python benchmarks/recovery.py --report           only the tables, also into docs/calibration.md

Data come from Ouyang's and from Kumar's printed constants, families scattered closely around them (`WORLD`), at 2, 3
and 4 bits; `boxcox`, which knows neither, is fitted by the fast engine. Band `mean` is held against the family's true
law, band `new` against a fresh checkpoint with its own deviation and scatter, at the fitted widths and one outside, all
within the range of the family's N and D. One line a refit is appended to results/recovery.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import xarray as xr
from resumable import put, run, seeds
from scipy.stats import halfnorm

from bayesqid import laws, likelihood
from bayesqid.answers import asking, project
from bayesqid.answers import draws as answers
from bayesqid.inference import problem as problems
from bayesqid.inference import sample, simulate

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "calibration.md"
SOURCES = ("ouyang", "kumar")
FITTED, OUTSIDE = (2, 3, 4), (5,)
GRID = (4, 4, 2)
FITS, DRAWS, MASS, LEAST = 100, 1000, 0.9, 0.85
# standard deviations between families, of checkpoints and of single cells; covariates and effects of quantizers are 0
WORLD = {"sd_log_k": 0.2, "sd_alpha": 0.03, "sd_beta": 0.03, "sd_gamma": 0.3, "spread_checkpoint_level": 0.15,
         "tau": 0.2}  # fmt: skip
BANDS = ("mean", "new")


def effective(bits: int) -> float:
    """Effective bits of a width in the default group."""
    return asking.target_of(None, bits, asking.DEFAULT_METHOD, family=None, params=1e9, tokens=1e12).effective_bits


def world(source: str, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Cells made from a source's constants and the true parameters, under their names."""
    recipes = tuple((method, effective(bits), asking.DEFAULT_GROUP) for method in ("rtn", "gptq") for bits in FITTED)
    blank = problems.build(simulate.grid(*GRID, seed=seed, recipes=recipes), laws.get("boxcox"), "hierarchical")
    rng = np.random.default_rng(seed)
    b, natural = simulate.with_settings(blank, simulate.published_settings(source, blank) | WORLD, rng)
    return simulate.observe(blank, b, natural, rng), simulate.truth(blank, b, natural, rng).isel(chain=0, draw=0)


def truth_of(target: answers.Target, true: xr.Dataset) -> float:
    """ln QiD of the true law of a target's family, written out."""
    theta = {str(term): float(true["theta"].sel(term=term, family=target.family)) for term in true["term"].values}
    return float(laws.log_qid(target.params, target.tokens, target.effective_bits, **theta, lam=float(true["lam"])))


def fresh(values: np.ndarray, true: xr.Dataset, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """ln QiD of a fresh checkpoint per family, shape (family * width,): its deviation, its source's, its scatter.

    One source tells nothing of how sources differ, so the band takes that spread from its prior: so does the truth.
    """
    source = halfnorm(scale=next(e.spread for e in laws.get("boxcox").effects if e.by == "source_method")).rvs(
        random_state=rng
    )
    checkpoint = float(true["spread"].sel(effect="checkpoint_level")) * rng.normal(size=(shape[0], 1))
    tau = float(true["tau"].sel(generation="calibrated"))
    return values + (checkpoint + np.hypot(source, tau) * rng.normal(size=shape)).ravel()


def refit(source: str, seed: int) -> dict:
    """Whether the equal-tailed 90 % band of each family holds, by band and width."""
    cells, true = world(source, seed)
    tree = sample.sample(cells, laws.get("boxcox"), engine="laplace", seed=seed, chains=1, draws=DRAWS)
    posterior = answers.Posterior(tree, answers.flatten(tree["posterior"].to_dataset()), "", "", "")
    widths = (*FITTED, *OUTSIDE)
    targets = []
    for family in posterior.families:
        own = cells.isel(cell=np.flatnonzero(cells["family"].to_numpy() == family))
        ends = (own[name].to_numpy() for name in ("n_params_nonembedding", "train_tokens"))
        params, tokens = (float(np.sqrt(values.min() * values.max())) for values in ends)
        targets += [asking.target_of(None, bits, asking.DEFAULT_METHOD, family=family, params=params, tokens=tokens)
                    for bits in widths]  # fmt: skip
    law = np.array([truth_of(target, true) for target in targets])
    rng = np.random.default_rng([seed, 2])
    happened = {"mean": law, "new": fresh(law, true, (len(posterior.families), len(widths)), rng)}
    held: dict[str, dict[str, list[bool]]] = {}
    for band in BANDS:
        seen, fullness = project.qid_draws(posterior, targets, band, seed)
        headroom = (seen / -np.expm1(-fullness))[0]
        value = likelihood.saturate(np.exp(happened[band]), headroom)
        low, high = np.quantile(seen, [(1 - MASS) / 2, (1 + MASS) / 2], axis=0)
        inside = ((low <= value) & (value <= high)).reshape(-1, len(widths))
        held[band] = {str(bits): inside[:, column].tolist() for column, bits in enumerate(widths)}
    record = json.loads(tree.attrs["engine"])
    return {"held": held, "importance_ess": record["importance_ess"], "checks": json.loads(tree.attrs["checks"])}


def clustered(groups: list[list[bool]]) -> tuple[float, float, int]:
    """Share that held, its standard error with refits as clusters (one refit's bands share its data), their number."""
    sums, counts = np.array([sum(g) for g in groups]), np.array([len(g) for g in groups])
    share = sums.sum() / counts.sum()
    residual = sums - share * counts
    error = np.sqrt((residual**2).sum() * len(groups) / max(len(groups) - 1, 1)) / counts.sum()
    return float(share), float(error), int(counts.sum())


def judged(share: float, error: float, outside: bool) -> bool:
    """Within three clustered standard errors of 0.90 at fitted widths; at least 0.85 outside them."""
    return share >= LEAST if outside else abs(share - MASS) <= 3 * error


def rows(lines: list[dict]) -> list[dict]:
    """One row per law, band and width, with one for all fitted widths together."""
    out = []
    for source in SOURCES:
        held = [line["held"] for line in lines if line["config"] == source and "held" in line]
        for band in BANDS if held else ():
            widths = {f"{bits}": (f"{bits}",) for bits in (*FITTED, *OUTSIDE)}
            widths["all fitted"] = tuple(map(str, FITTED))
            for label, members in widths.items():
                share, error, count = clustered([sum((one[band][w] for w in members), []) for one in held])
                outside = label in map(str, OUTSIDE)
                out.append({"law": source, "band": band, "bits": label, "refits": len(held), "bands": count,
                            "share": share, "error": error, "holds": judged(share, error, outside),
                            "wanted": f">= {LEAST}" if outside else f"{MASS} +- 3 SE"})  # fmt: skip
    return out


def report(lines: list[dict]) -> str:
    """The table as Markdown, with what broke down."""
    out = ["| truth | band | bits | refits | bands | held by 90 % | clustered SE | wanted | |",
           "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows(lines):
        out.append(f"| {r['law']} | {r['band']} | {r['bits']} | {r['refits']} | {r['bands']} | {r['share']:.3f} | "
                   f"{r['error']:.3f} | {r['wanted']} | {'holds' if r['holds'] else 'fails'} |")  # fmt: skip
    broken = sum("failed" in line for line in lines)
    unsure = sum(not all(line["checks"].values()) for line in lines if "checks" in line)
    versions = ", ".join(sorted({line["code"] for line in lines}))
    out += ["", f"{broken} refits broke down, {unsure} failed the engine's own check. Code of the refits: {versions}."]
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=FITS, help="refits per law")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--report", action="store_true", help="run nothing; write the table into docs/calibration.md")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "recovery.jsonl")
    options = parser.parse_args()
    sources = () if options.report else SOURCES
    tasks = [(refit, s, seed, s) for s in sources for seed in seeds(f"recovery {s}", options.fits)]
    lines = run(options.results, tasks, options.jobs)
    print(report(lines))
    if options.report and rows(lines):
        put(PAGE, "recovery", report(lines))


if __name__ == "__main__":
    main()
