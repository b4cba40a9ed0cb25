"""How honest are the intervals on real data: what the atlas's posterior says of cells that were left out of the fit.

    python benchmarks/honesty.py [--variant NAME ...] [--split NAME ...] [--jobs 2]    refits, resumable
    python benchmarks/honesty.py --report                                              Markdown tables

Splits: `family`, each left out in turn; `source`, each of at least 8 cells in turn; `future`, trained on D <= 2T and
predicting D >= 15T; `five`, a family left out but for five of its cells, three draws of these. Variants change the
model by one thing each; the first is the default. One line of results per fold goes to results/honesty.jsonl.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import refit
import xarray as xr
from resumable import put

from bayesqid import cells as cells_module
from bayesqid import laws
from bayesqid.answers import baselines, score
from bayesqid.importers import sources

RESULTS = Path(__file__).parent / "results" / "honesty.jsonl"
SEEDS = (0, 1, 2)
FEWEST = 8
PAGE = Path(__file__).resolve().parents[1] / "docs" / "honesty.md"


def without(law: laws.Law, *names: str) -> laws.Law:
    """The law without the effects and covariates of these names."""
    return replace(law, effects=tuple(e for e in law.effects if e.name not in names),
                   covariates=tuple(c for c in law.covariates if c.name not in names))  # fmt: skip


def rescaled(law: laws.Law, **spreads: float) -> laws.Law:
    return laws.with_priors(law, {name: {"spread": value} for name, value in spreads.items()})


BASE = laws.get("boxcox")


def plus(*effect) -> laws.Law:
    """The default law with one more effect: name, coordinate, factor, spread, and whether it sums to zero."""
    name, by, factor, spread, *zero_sum = effect
    return replace(BASE, effects=(*BASE.effects, laws.Effect(name, by, factor, spread, name, *zero_sum)))


# name -> (law, what it asks)
VARIANTS: dict[str, tuple[laws.Law, str]] = {
    "default": (BASE, "boxcox, hierarchical"),
    "student-t": (laws.variant("boxcox", extras=["student-t"]), "heavier tails"),
    "ouyang": (laws.get("ouyang"), "power law in bits"),
    "kumar": (laws.get("kumar"), "exponential in bits"),
    "per-bit": (laws.get("per-bit"), "constants of each bit width"),
    "curved": (laws.get("curved"), "bends in ln N and ln D"),
    "curved, student-t": (laws.variant("curved", extras=["student-t"]), "bends and heavier tails"),
    "no tokens": (laws.variant("boxcox", "phase"), "no effect of D"),
    "loss": (laws.variant("boxcox", extras=["loss"]), "the baseline's loss as covariate"),
    "vocabulary": (laws.variant("boxcox", extras=["vocabulary"]), "ln V as covariate"),
    "unique tokens": (laws.variant("boxcox", extras=["unique-tokens"]), "OPT at 180B"),
    "no checkpoint": (without(BASE, "checkpoint_level"), "no deviation of checkpoints"),
    "no generation": (without(BASE, "generation_level", "generation_slope"), "methods alone"),
    "no method": (without(BASE, "method_level", "method_slope"), "generations alone"),
    "no slopes": (without(BASE, "generation_slope", "method_slope"), "quantizers share gamma"),
    "no source": (without(BASE, "source_level"), "no deviation of sources"),
    "no per-channel": (without(BASE, "per_channel", "per_channel_slope"), "effective bits alone"),
    "no text": (without(BASE, "c4", "ptb", "context"), "no effect of the evaluation's text"),
    "no family gamma": (rescaled(BASE, gamma=1e-3), "families share gamma"),
    "no family alpha": (rescaled(BASE, alpha=1e-3), "families share alpha"),
    "no family beta": (rescaled(BASE, beta=1e-3), "families share beta"),
    "family x generation": (plus("family_generation_level", "family_generation", "1", 0.3),
                            "families differ in what a generation costs them"),
    "generation alpha": (plus("generation_alpha", "generation", "-x_N", 0.1, True), "generations differ in alpha"),
    "generation beta": (plus("generation_beta", "generation", "x_D", 0.1, True), "generations differ in beta"),
    "generation per-channel": (plus("generation_channel", "generation", "per_channel", 0.3, True),
                               "generations differ in what per-channel scales cost"),
    "source": (replace(BASE, effects=(*(e for e in BASE.effects if e.name != "source_level"), laws.Effect(
        "source_level", "source", "1", 0.3, "one source shares a deviation"))), "sources, not source x method"),
    "with the ladder": (BASE, "the controlled ladder fitted beside the atlas"),
    "curved, with the ladder": (laws.get("curved"), "bends, and the ladder"),
}  # fmt: skip
# data fitted beside the atlas in every fold; none of it is ever left out
BESIDE = {name: "ladder" for name in VARIANTS if name.endswith("with the ladder")}


def law_of(variant: str) -> laws.Law:
    """The variant's law, findable under its name as a posterior's law has to be."""
    law = VARIANTS[variant][0]
    named = replace(law, name=f"variant {variant}", drivers="both", extras=())
    laws.LAWS[named.name] = named
    return named


@cache
def atlas(variant: str) -> xr.Dataset:
    return sources.read_cells("atlas", VARIANTS[variant][0].extras)


@cache
def beside(variant: str) -> list[xr.Dataset]:
    return [sources.read_cells(BESIDE[variant])] if variant in BESIDE else []


def folds(split: str, cells: xr.Dataset) -> dict[str, np.ndarray]:
    """Name of the fold -> mask of the cells left out."""
    family, source = (cells[name].to_numpy().astype(str) for name in ("family", "source"))
    tokens = cells["train_tokens"].to_numpy()
    if split == "family":
        return {name: family == name for name in np.unique(family)}
    if split == "source":
        names, counts = np.unique(source[~cells["censored"].to_numpy()], return_counts=True)
        return {name: source == name for name in names[counts >= FEWEST]}
    if split == "future":
        return {"D >= 15T": tokens >= 14e12}
    out = {}
    for name in np.unique(family):
        own = np.flatnonzero((family == name) & ~cells["censored"].to_numpy())
        for seed in SEEDS:
            given = np.random.default_rng(seed).choice(own, 5, replace=False)
            mask = family == name
            mask[given] = False
            out[f"{name} {seed}"] = mask
    return out


def run(variant: str, split: str, fold: str) -> dict:
    """One refit and its scores, row by row."""
    law, cells = law_of(variant), atlas(variant)
    left_out = folds(split, cells)[fold]
    train = ~left_out & (cells["train_tokens"].to_numpy() <= 2.1e12 if split == "future" else True)
    test = cells.isel(cell=left_out & ~cells["censored"].to_numpy())
    given = cells_module.join([cells.isel(cell=train), *beside(variant)])
    posterior, ess = refit.fitted(given, law)
    frame = score.frame(posterior, test)
    out = {"variant": variant, "split": split, "fold": fold, "ess": round(ess), "n": test.sizes["cell"]}
    keep = {"pit": "pit", "error": "ln_error", "crps": "crps"}
    out |= {short: [round(float(x), 4) for x in frame[name].to_numpy()] for short, name in keep.items()}
    out["family"] = test["family"].to_numpy().astype(str).tolist()
    if variant == "default":
        targets, headroom = score.targets_of(test), test["headroom"].to_numpy()
        for name, call in baselines.BASELINES.items():
            rows = score.rows(np.exp(call(posterior, targets, headroom)), test)
            out[name] = {short: [round(float(x), 4) for x in rows[long]] for short, long in keep.items()}
    return out


def done() -> dict[tuple[str, str, str], dict]:
    if not RESULTS.is_file():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines() if line.endswith("}")]
    return {(row["variant"], row["split"], row["fold"]): row for row in rows}


def of(rows: list[dict], name: str | None, key: str) -> np.ndarray:
    return np.concatenate([np.array((row if name is None else row[name])[key], dtype=float) for row in rows])


def line(rows: list[dict], name: str | None = None) -> str:
    """n, |ln error|, CRPS (mean over rows; mean over folds), bias, coverage of 50 and 90 %."""
    error, crps, pit = (of(rows, name, key) for key in ("error", "crps", "pit"))
    each = [np.nanmean(of([row], name, "crps")) for row in rows if np.isfinite(of([row], name, "crps")).any()]
    spread = name not in ("ouyang", "kumar")
    cover = [f"{np.mean(np.abs(pit[np.isfinite(pit)] - 0.5) <= mass / 2):.2f}" if spread else "" for mass in (0.5, 0.9)]
    return (f"{np.isfinite(error).sum()} | {np.nanmedian(np.abs(error)):.3f} | {np.nanmean(crps):.3f} | "
            f"{np.mean(each):.3f} | {np.nanmean(error):+.2f} | {cover[0]} | {cover[1]}")  # fmt: skip


def by_family(rows: list[dict]) -> str:
    """Coverage by family with an interval from resampling whole families."""
    family, pit = np.concatenate([row["family"] for row in rows]), of(rows, None, "pit")
    family, pit = family[np.isfinite(pit)], pit[np.isfinite(pit)]
    names, rng, out = np.unique(family), np.random.default_rng(0), []
    for mass in (0.5, 0.9):
        inside = np.abs(pit - 0.5) <= mass / 2
        counts = np.array([[inside[family == name].sum(), (family == name).sum()] for name in names])
        picks = rng.integers(len(names), size=(4000, len(names)))
        share = counts[:, 0] / counts[:, 1]
        rates = share[picks].mean(axis=1)
        own = ", ".join(f"{name} {hit / size:.2f}" for name, (hit, size) in zip(names, counts, strict=True))
        low, high = np.quantile(rates, [0.05, 0.95])
        out.append(f"In the {mass * 100:.0f} % interval, families weighed alike: {share.mean():.2f} "
                   f"(resampling families, 90 %: {low:.2f} to {high:.2f}). {own}.")  # fmt: skip
    return "\n\n".join(out)


def report() -> str:
    """All tables as Markdown."""
    found, out = done(), []
    head = ("| n | median abs. ln error | CRPS of rows | CRPS of folds | bias | in 50 % | in 90 % |\n"
            "|---|---|---|---|---|---|---|---|")  # fmt: skip
    for split in ("family", "source", "future", "five"):
        whole = set(folds(split, atlas("default")))
        base = [row for (variant, s, _), row in found.items() if s == split and variant == "default"]
        out.append(f"\n## Split: {split}\n\n| prediction {head}")
        out.append(f"| **this posterior** | {line(base)} |")
        out += [f"| {name} | {line(base, name)} |" for name in baselines.BASELINES]
        rows = {v: [row for (name, s, _), row in found.items() if s == split and name == v] for v in VARIANTS}
        complete = [v for v, own in rows.items() if {row["fold"] for row in own} == whole]
        out.append(f"\n| variant | what it asks {head}-|".replace("|-|", "|---|"))
        out += [f"| {v} | {VARIANTS[v][1]} | {line(rows[v])} |" for v in complete]
        out.append("\n" + by_family(base))
    return "\n".join(out).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--split", nargs="*", default=["family", "source", "future", "five"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        put(PAGE, "honesty", report())
        return print(report())
    have = done()
    asked = [(v, s, f) for v in args.variant for s in args.split for f in folds(s, atlas(v)) if (v, s, f) not in have]
    with ProcessPoolExecutor(args.jobs) as pool:
        for future in as_completed([pool.submit(run, *one) for one in asked]):
            row = future.result()
            with open(RESULTS, "a") as stream:
                stream.write(json.dumps(row, separators=(",", ":")).replace("NaN", "null") + "\n")
            print(row["variant"], row["split"], row["fold"], row["n"], row["ess"], flush=True)


if __name__ == "__main__":
    main()
