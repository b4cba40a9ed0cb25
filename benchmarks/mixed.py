"""How much of a model may be quantized: the law `mixed` fitted to published and to measured recipes.

    python benchmarks/mixed.py published                # a minute on one core: benchmarks/results/mixed.json
    python benchmarks/mixed.py measured                 # data/mixed.nc: benchmarks/results/mixed_measured.json
    python benchmarks/mixed.py published --engine nuts -o nuts.json
    python benchmarks/mixed.py report                   # the tables of docs/mixed.md from what is stored

Stored: coefficients with their 90 % equal-tailed intervals, the claims of Cao et al. 2024 with their probabilities (and
those of variants of the data), largest shares by size, and rises of perplexity by block; by the fast engine unless told
otherwise. `docs/make_mixed.py` draws them without sampling anything.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import xarray as xr
from resumable import ROOT, put

from bayesqid import bundled, cells, files, laws, measurements, quantized_share
from bayesqid.answers import draws, mixing, project
from bayesqid.answers import fraction as answer
from bayesqid.importers import mixed
from bayesqid.inference import sample

RESULTS = Path(__file__).parent / "results"
STORED = {"published": RESULTS / "mixed.json", "measured": RESULTS / "mixed_measured.json"}
EXTRAS = ("latent-tokens",)
POINTS = 25
BLOCKS = (16, 32, 64, 128, 256, 512)


def read(which: str) -> xr.Dataset:
    """Cells of the published points, tokens of the rest unknown, or of the measured ladder."""
    if which == "published":
        return mixed.read(bundled.data_dir() / "mixed_published.csv", {"name": "mixed"}, EXTRAS)
    path = bundled.data_dir() / "mixed.nc"
    if files.open_dataset(path).attrs.get("schema") == cells.SCHEMA:
        return cells.from_file(files.open_dataset(path), {"name": path.name})
    return cells.from_measurements(measurements.read(path), {"name": path.name})


def fit(found: xr.Dataset, engine: str = "laplace", seed: int = 0) -> draws.Posterior:
    """The law `mixed` fitted, as the answers read it."""
    unknown = bool(np.isnan(found["train_tokens"].to_numpy()).any())
    tree = sample.sample(found, laws.variant("mixed", "both", EXTRAS if unknown else ()), engine=engine, seed=seed,
                         chains=4, draws=800 if engine == "nuts" else 1000)  # fmt: skip
    return draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "memory", "", "memory")


def interval(values) -> list[float]:
    """Median and ends of the 90 % equal-tailed interval."""
    return [round(float(q), 5) for q in np.quantile(np.asarray(values), [0.5, 0.05, 0.95])]


def coefficients(posterior: draws.Posterior) -> dict:
    """Population terms, families' terms, covariates of the mix, scatter."""
    own = posterior.sample
    names = [c.name for c in posterior.law.covariates if c.factor in mixing.FACTORS]
    return {
        "population": {term: interval(own["mu"].sel(term=term)) for term in posterior.law.term_names},
        "family": {str(family): {term: interval(own[term].sel(family=family)) for term in posterior.law.term_names}
                   for family in posterior.families},
        "covariate": {name: interval(own["covariate"].sel(covariate_name=name)) for name in names},
        "tau": {str(name): interval(own["tau"].sel(generation=name)) for name in own["generation"].values},
    }  # fmt: skip


def asked(posterior: draws.Posterior, family: str | None, band: str) -> dict:
    """Largest shares at 5, 10 and 20 % by size, from a third of the least to three times the largest."""
    n = posterior.cells["n_params_nonembedding"].to_numpy()
    own = n if family is None else n[posterior.cells["family"].to_numpy() == family]
    sizes = np.geomspace(own.min() / 3, own.max() * 3, POINTS)
    told = answer.as_json(answer.fraction(posterior, params=tuple(sizes), family=family, band=band))
    names = ("granularity", "params", "increase", *project.quantile_names(""), "p_all", "law_1")
    return {"family": family, "band": band, "fitted": [float(own.min()), float(own.max())], "verdict": told["verdict"],
            "rows": [{k: row[k] if isinstance(row[k], str | None) else float(f"{row[k]:.5g}") for k in names}
                     for row in told["rows"]]}  # fmt: skip


def blocks(posterior: draws.Posterior, family: str) -> list[dict]:
    """Rise of perplexity in per cent by block, share and model of Law 2, of the family's law (band mean)."""
    out = []
    for row in mixing.published()["law2"]["rows"]:
        own = posterior.cells.isel(cell=posterior.cells["checkpoint"].to_numpy() == row["model"])
        size = float(own["n_params_nonembedding"][0])
        for block in BLOCKS:
            told = answer.as_json(answer.fraction(posterior, params=size, family=family, band="mean", block=block,
                                                  granularity="m", at=row["q_r"]))  # fmt: skip
            found = {name: float(f"{told['asked'][0][name]:.5g}") for name in ("median", "lower90", "upper90")}
            out.append({"model": row["model"], "q_r": row["q_r"], "block": block, **found,
                        "law_2": float(f"{100 * mixing.by_law_2(block, row):.5g}")})  # fmt: skip
    return out


def claims(posterior: draws.Posterior) -> list[dict]:
    """`mixing.claims` at 4 bits, rounded."""
    chosen = mixing.usual(posterior, "assignment", "random")
    return [{k: v if isinstance(v, str) else round(v, 4) for k, v in claim.items()}
            for claim in mixing.claims(posterior, 4.0, 8.0, chosen)]  # fmt: skip


def evidence(posterior: draws.Posterior) -> float:
    """Log evidence by the fast engine."""
    return round(json.loads(posterior.tree.attrs["engine"])["log_evidence"], 2)


def other_shape(found: xr.Dataset) -> float:
    """Log evidence of the law with Qr - 1 in place of ln Qr, which has the same slope at Qr = 1 but no zero."""
    before, factor = quantized_share.log_fraction, laws.FACTORS["ln Qr"]
    try:
        quantized_share.log_fraction = lambda c: quantized_share.column(c, "quantized_fraction").astype(float) - 1  # type: ignore[assignment]
        laws.FACTORS["ln Qr"] = quantized_share.log_fraction
        return evidence(fit(found))
    finally:
        quantized_share.log_fraction, laws.FACTORS["ln Qr"] = before, factor


def variants(found: xr.Dataset) -> dict[str, xr.Dataset]:
    """Other cells to test the claims with: name -> cells."""
    family, model = found["family"].to_numpy().astype(str), found["checkpoint"].to_numpy().astype(str)
    out = {f"{name} alone": found.isel(cell=family == name) for name in np.unique(family)}
    largest = {str(name): model[family == name][found["n_params_nonembedding"].to_numpy()[family == name].argmax()]
               for name in np.unique(family)}  # fmt: skip
    out["without each family's largest model"] = found.isel(cell=~np.isin(model, list(largest.values())))
    out["standard errors doubled"] = found.assign(qid_se=found["qid_se"] * 2)
    high = found["quantized_fraction"].to_numpy() >= 0.9
    out["shares of 0.9 and more"] = found.isel(cell=high)
    return out


def report(which: str, engine: str) -> Mapping:
    """All that is stored of one set of cells."""
    found = read(which)
    posterior = fit(found, engine)
    families = posterior.families
    by_count = {name: int((posterior.cells["family"].to_numpy() == name).sum()) for name in families}
    main = max(by_count, key=lambda name: by_count[name])
    out = {
        "data": which, "engine": engine, "cells": found.sizes["cell"], "checks": posterior.checks, "cells_of": by_count,
        "excluded": json.loads(found.attrs["excluded"]), "coefficients": coefficients(posterior),
        "claims": claims(posterior), "largest": [asked(posterior, None, "new"), asked(posterior, main, "mean")],
    }  # fmt: skip
    if which == "published":
        out["blocks"] = blocks(posterior, main)
    if engine == "laplace":
        out["log_evidence"] = {"ln Qr": evidence(posterior), "Qr - 1": other_shape(found)}
        out["variants"] = {name: {"cells": other.sizes["cell"], "claims": claims(fit(other))}
                           for name, other in variants(found).items()}  # fmt: skip
    return out


def chance(probability: float) -> str:
    return "> 0.999" if probability > 0.999 else f"{probability:.3f}"


def table(found: Mapping) -> str:
    """Probabilities of the claims by the cells they are asked of; in brackets before the data."""
    heads = {"size": "larger models tolerate more", "granularity": "single matrices more than layers",
             "block": "small blocks more than large"}  # fmt: skip
    out = [f"| cells | n | {' | '.join(heads.values())} |", "|---" * (2 + len(heads)) + "|"]
    for name, one in {"all": found, **found["variants"]}.items():
        claimed = {claim["claim"]: claim for claim in one["claims"]}
        each = [f"{chance(claimed[key]['probability'])} ({claimed[key]['prior']:.2f})" for key in heads]
        out.append(f"| {name} | {one['cells']} | {' | '.join(each)} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=(*STORED, "report"))
    parser.add_argument("--engine", default="laplace", choices=tuple(sample.ENGINES))
    parser.add_argument("-o", "--output", type=Path)
    wanted = parser.parse_args()
    if wanted.data == "report":
        for name, path in STORED.items():
            put(ROOT / "docs" / "mixed.md", name, table(json.loads(path.read_text(encoding="utf-8"))))
        return
    path = wanted.output or STORED[wanted.data]
    found = report(wanted.data, wanted.engine)
    path.write_text(json.dumps(found, allow_nan=False).replace('}, {"', '},\n{"') + "\n", encoding="utf-8")
    for claim in found["claims"]:
        print(claim)
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()
