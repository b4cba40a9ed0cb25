"""Calibration of `bayesqid level`: do its intervals hold the tokens that a checkpoint saw, and its chances come true?

python benchmarks/level.py                      run what is missing, then print the tables
python benchmarks/level.py --fits 20
python benchmarks/level.py --report             tables and figure into docs/level.md, from the results that are there

One data set draws the parameters of the law from their priors and 160 cells from the parameters, and is fitted by the
fast engine. It is then asked of 10 new checkpoints of fitted families and of 10 of new families: D is log-uniform over
`TOKENS`, N over the sizes of the data; one to four recipes of `POOL` are measured, with the checkpoint's deviation
shared by all and the source's by those of one method. Their true ln QiD is written out here, apart from the answer's
code. One line a data set goes to results/level.jsonl.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from calibration import ERRORS, template
from recovery import clustered
from resumable import ROOT, code, put, run, seeds

from bayesqid import files, laws, likelihood, methods
from bayesqid.answers import asking, draws, level, training_level
from bayesqid.answers.observed import Observed
from bayesqid.inference import hyper, sample, simulate

RESULTS = Path(__file__).resolve().parent / "results" / "level.jsonl"
PAGE, FIGURE = ROOT / "docs" / "level.md", ROOT / "docs" / "level-calibration.svg"
FITS, QUERIES, DRAWS = 120, 10, 500
KINDS = {"known": "a fitted family", "new": "a new family"}
# bounds of the prior of D, the default ones: the checkpoints of the data saw 1e9 to 1e13
TOKENS = level.TOKENS_PRIOR
PARAMS = (2e8, 3e10)
HEADROOM = 8.5
POOL = ("gptq-w2-g128", "gptq-w3-g128", "gptq-w4-g128", "gptq-w3", "rtn-w2-g128", "rtn-w3-g128", "rtn-w4-g128",
        "rtn-w3")  # fmt: skip
FEWEST, MOST = 1, 4
MASSES = (0.5, 0.9)
BINS = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)
RESAMPLES, BAND = 2000, 0.95


# One data set


def terms_of(true: xr.Dataset, family: str | None, centers: dict, rng: np.random.Generator) -> dict[str, float]:
    """Coefficients of a fitted family, or of a new one drawn about the median centre of the fitted ones."""
    names = [str(name) for name in true["term"].values]
    if family is not None:
        return {name: float(true["theta"].sel(term=name, family=family)) for name in names}
    own = {name: float(true["sd"].sel(term=name)) * rng.normal() for name in names}
    own["log_k"] += own["alpha"] * np.median(centers["x_N"]) - own["beta"] * np.median(centers["x_D"])
    return {name: float(true["mu"].sel(term=name)) + own[name] for name in names}


def law_value(true: xr.Dataset, terms: dict[str, float], target: draws.Target) -> float:
    """ln QiD of the true law at a recipe, with the effects of its quantizer and of scales per channel."""
    lam, bits = float(true["lam"]), target.effective_bits
    of = {"generation": methods.generation(target.method), "method": target.method}
    value = laws.log_qid(target.params, target.tokens, bits, **terms, lam=lam)
    for name, by in (("generation", "generation"), ("method", "quantizer")):
        step, tilt = (float(true[f"{name}_{part}"].sel({by: of[name]})) for part in ("level", "slope"))
        value += step - tilt * laws.bit_scale(bits, lam)
    cost, tilt = (float(true["covariate"].sel(covariate_name=f"per_channel{part}")) for part in ("", "_slope"))
    return float(value + target.per_channel * (cost + tilt * np.log(bits / laws.PIVOT_BITS)))


def checkpoint(true: xr.Dataset, family: str | None, centers: dict, rng: np.random.Generator) -> dict:
    """A new checkpoint: N, D, what is observed of it, and its latent QiD at the recipes of the level."""
    params, tokens = np.exp(rng.uniform(*np.log(PARAMS))), np.exp(rng.uniform(*np.log(TOKENS)))
    terms = terms_of(true, family, centers, rng)
    spread = {str(name): float(true["spread"].sel(effect=name)) for name in true["effect"].values}
    own = spread["checkpoint_level"] * rng.normal()
    source = {method: spread["source_level"] * rng.normal() for method in ("gptq", "rtn")}
    recipes = rng.choice(len(POOL), size=rng.integers(FEWEST, MOST + 1), replace=False)
    wanted = [f"gptq-w{bits}-g128" for bits in training_level.BITS]
    seen: dict[str, float] = {}
    targets: dict[str, draws.Target] = {}
    for text in dict.fromkeys([*(POOL[i] for i in recipes), *wanted]):
        target = asking.target_of(text, 4.0, "gptq", family=None, params=params, tokens=tokens, headroom=HEADROOM)
        tau = float(true["tau"].sel(generation=methods.generation(target.method)))
        v = law_value(true, terms, target) + own + source[target.method] + tau * rng.normal()
        seen[text], targets[text] = float(likelihood.saturate(np.exp(min(v, 50.0)), HEADROOM)), target
    observed = []
    for i in recipes:
        error = float(np.exp(rng.uniform(*np.log(ERRORS))))
        value = seen[POOL[i]] + error * rng.normal()
        # what a file knows of a measurement, without the tokens
        observed.append(Observed(POOL[i], value, error, target=replace(targets[POOL[i]], tokens=1.0)))
    return {"params": params, "tokens": tokens, "observed": observed, "level": [seen[text] for text in wanted]}


def judged(posterior: draws.Posterior, one: dict, family: str | None) -> dict:
    """What the answer says of a checkpoint beside what is true."""
    answer = level.level(posterior, one["params"], one["observed"], family=family, tokens_prior=TOKENS)
    x, density = np.log(answer["tokens"].to_numpy()), answer["density"].to_numpy()
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(x))])
    low, high = (float(answer[f"{side}90"].sel(quantity="tokens")) for side in ("lower", "upper"))
    held = [bool(answer[f"lower{mass:.0f}"].sel(quantity="tokens") <= one["tokens"]
                 <= answer[f"upper{mass:.0f}"].sel(quantity="tokens")) for mass in 100 * np.array(MASSES)]  # fmt: skip
    latent = np.array(one["level"])
    inside = (answer["level_lower90"].to_numpy() <= latent) & (latent <= answer["level_upper90"].to_numpy())
    return {
        "n": len(one["observed"]), "diverged": int(answer["censored"].sum()), "held": held,
        "pit": round(float(np.interp(np.log(one["tokens"]), x, below / below[-1])), 5),
        "decades": round(float(np.log10(high / low)), 4), "draws": round(float(answer["effective_draws"]), 1),
        "level_held": inside.tolist(), "level_observed": answer["observed"].to_numpy().tolist(),
        "p": np.round(answer["p_fully_trained"].to_numpy(), 5).tolist(),
        "passed": (latent[:, None] > np.array(training_level.THRESHOLDS)).tolist(),
    }  # fmt: skip


def data_set(seed: int, queries: int = QUERIES, shape: tuple[int, int, int] | None = None) -> dict:
    """One simulated data set, fitted and asked."""
    law = laws.get("boxcox")
    empty = template() if shape is None else template(shape)
    problem, b, phi = simulate.study(law, "hierarchical", seed, empty, own_error=True)
    rng = np.random.default_rng([seed, 3])
    true = simulate.truth(problem, b, hyper.unpack(problem, phi), rng).isel(chain=0, draw=0)
    tree = sample.sample(problem.cells, law, engine="laplace", seed=seed, chains=1, draws=DRAWS)
    posterior = draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "", "", "")
    found: dict[str, list[dict]] = {}
    for kind in KINDS:
        families = [str(rng.choice(posterior.families)) if kind == "known" else None for _ in range(queries)]
        found[kind] = [judged(posterior, checkpoint(true, family, problem.centers, rng), family) for family in families]
    return {"checks": json.loads(tree.attrs["checks"]), "queries": found}


def task(_: str, seed: int) -> dict:
    """`data_set` as `resumable.attempt` calls it."""
    return data_set(seed)


# What the results say


def asked(lines: list[dict], kind: str) -> list[list[dict]]:
    """Queries of one kind by data set."""
    return [line["queries"][kind] for line in lines if "queries" in line]


def coverage(lines: list[dict]) -> list[dict]:
    """Share of intervals that held the true tokens, by kind and mass, with data sets as clusters."""
    out = []
    for kind in KINDS:
        groups = asked(lines, kind)
        for place, mass in enumerate(MASSES):
            share, error, count = clustered([[q["held"][place] for q in group] for group in groups])
            out.append({"kind": kind, "mass": mass, "sets": len(groups), "queries": count, "share": share,
                        "error": error, "holds": abs(share - mass) <= 3 * error})  # fmt: skip
    return out


def reliability(lines: list[dict]) -> list[dict]:
    """Chances of being fully trained that were told, by bin, beside the share that was.

    `error` is that of share - told with data sets as clusters; where hardly a chance failed it is too small.
    """
    groups = [[(p, hit) for kind in KINDS for q in line["queries"][kind]
               for p, hit in zip(np.ravel(q["p"]), np.ravel(q["passed"]), strict=True)]
              for line in lines if "queries" in line]  # fmt: skip
    out = []
    for low, high in zip(BINS[:-1], BINS[1:], strict=True):
        inside = [[(p, hit) for p, hit in group if low <= p < high or p == high == 1] for group in groups]
        inside = [group for group in inside if group]
        if sum(map(len, inside)) < 2:
            continue
        share, _, count = clustered([[bool(hit) for _, hit in group] for group in inside])
        told = float(np.mean([p for group in inside for p, _ in group]))
        # residuals against what was told, not against the share
        sums = np.array([sum(hit - p for p, hit in group) for group in inside])
        error = float(np.sqrt((sums**2).sum()) / count)
        out.append({"low": low, "high": high, "chances": count, "told": told, "share": share, "error": error})
    return out


def brier(lines: list[dict]) -> tuple[float, float]:
    """Mean squared error of the chances, and of always telling the overall share."""
    queries = [q for kind in KINDS for group in asked(lines, kind) for q in group]
    p, hit = (np.concatenate([np.ravel(q[name]) for q in queries]).astype(float) for name in ("p", "passed"))
    return float(((p - hit) ** 2).mean()), float(((hit.mean() - hit) ** 2).mean())


def report(lines: list[dict]) -> str:
    """The tables as Markdown."""
    out = ["| checkpoint of | interval | data sets | checkpoints | held the true tokens | clustered SE | |",
           "|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in coverage(lines):
        out.append(f"| {KINDS[r['kind']]} | {r['mass']:.0%} | {r['sets']} | {r['queries']} | {r['share']:.3f} | "
                   f"{r['error']:.3f} | {'holds' if r['holds'] else 'fails'} |")  # fmt: skip
    out.append("")
    for kind, words in KINDS.items():
        flat = [q for group in asked(lines, kind) for q in group]
        width = np.quantile([q["decades"] for q in flat], [0.5, 0.1, 0.9])
        by = ", ".join(f"{np.median([q['decades'] for q in flat if q['n'] == n]):.2f} from {n}"
                       for n in range(FEWEST, MOST + 1) if any(q["n"] == n for q in flat))  # fmt: skip
        level_held = [[hit for q in group for hit in q["level_held"]] for group in asked(lines, kind)]
        share, error, _ = clustered(level_held)
        out.append(f"- Of {words}: 90 % intervals of D are {width[0]:.2f} decades wide (median; one in ten under "
                   f"{width[1]:.2f}, one in ten over {width[2]:.2f}; medians by the number of QiDs: {by}). The 90 % "
                   f"intervals of the training level held {share:.3f} (clustered SE {error:.3f}).")  # fmt: skip
    score, climate = brier(lines)
    out += ["", "| chance told of being fully trained | chances | mean told | share that was | clustered SE |",
            "|---|---|---|---|---|"]  # fmt: skip
    for r in reliability(lines):
        out.append(f"| {r['low']:.2f} to {r['high']:.2f} | {r['chances']} | {r['told']:.3f} | {r['share']:.3f} | "
                   f"{r['error']:.3f} |")  # fmt: skip
    broken = sum("failed" in line for line in lines)
    unsure = sum(not all(line["checks"].values()) for line in lines if "checks" in line)
    versions = ", ".join(sorted({line["code"] for line in lines}))
    out += ["", f"Brier score {score:.3f}; always telling the overall share scores {climate:.3f}. {broken} fits broke "
            f"down, {unsure} failed the engine's own check. Code of the fits: {versions}; of today: "
            f"{code()}."]  # fmt: skip
    return "\n".join(out)


def band(groups: list[list[float]], z: np.ndarray, seed: int = 0) -> tuple[np.ndarray, float]:
    """ECDF of PITs minus z, and how far a right one strays at any z with 95 %, from resampling whole data sets."""

    def difference(chosen: list[list[float]]) -> np.ndarray:
        pits = np.sort(np.concatenate(chosen))
        return np.searchsorted(pits, z, side="right") / pits.size - z

    rng, found = np.random.default_rng(seed), difference(groups)
    strays = [np.abs(difference([groups[i] for i in rng.integers(len(groups), size=len(groups))]) - found).max()
              for _ in range(RESAMPLES)]  # fmt: skip
    return found, float(np.quantile(strays, BAND))


def figure(lines: list[dict]) -> str:
    """PITs of the tokens, and chances of being fully trained, as SVG."""
    from bayesqid.report import drawing

    z = np.linspace(0.0, 1.0, 201)
    with drawing.style():
        canvas = drawing.canvas_of(9.6, 3.0)
        for number, (kind, words) in enumerate(KINDS.items(), 1):
            found, stray = band([[q["pit"] for q in group] for group in asked(lines, kind)], z)
            axis = canvas.add_subplot(1, 3, number)
            axis.fill_between(z, -stray, stray, color=drawing.tint(drawing.GREY, 0.25), linewidth=0)
            axis.axhline(0, color=drawing.PALE, linewidth=0.6)
            axis.plot(z, found, color=drawing.BLUE, linewidth=1.2)
            axis.set(title=f"tokens, {words}", xlabel="posterior probability below the true tokens", ylim=(-0.15, 0.15))
            if number == 1:
                axis.set_ylabel("distribution minus uniform")
        rows = reliability(lines)
        axis = canvas.add_subplot(1, 3, 3)
        axis.plot([0, 1], [0, 1], color=drawing.PALE, linewidth=0.6)
        axis.errorbar([r["told"] for r in rows], [r["share"] for r in rows], [2 * r["error"] for r in rows],
                      fmt="o", markersize=4, color=drawing.BLUE, linewidth=1.2)  # fmt: skip
        axis.set(title="fully trained", xlabel="chance told", ylabel="share that was (2 clustered SE)")
        return drawing.rendered(canvas)[0].decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=FITS, help="data sets")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--report", action="store_true", help="run nothing; write tables and figure")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    tasks = [] if options.report else [(task, "level", seed, "level") for seed in seeds("level", options.fits)]
    lines = run(options.results, tasks, options.jobs)
    if not any("queries" in line for line in lines):
        parser.error("there are no results yet: run it without --report")
    print(report(lines))
    if options.report:
        files.write_text(FIGURE, figure(lines))
        put(PAGE, "level", f"![Calibration of level](level-calibration.svg)\n\n{report(lines)}")


if __name__ == "__main__":
    main()
