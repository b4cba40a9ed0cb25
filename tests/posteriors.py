"""A small valid posterior from known numbers, without a sampler: what the answers and the report are tested on."""

import json

import numpy as np
import xarray as xr

from bayesqid import cells as cells_module
from bayesqid import laws
from bayesqid.answers import draws

PRIORS = {"log_k": (-1.5, 1.5, 0.7), "alpha": (0.3, 0.2, 0.15), "beta": (0.4, 0.25, 0.15), "gamma": (5.0, 2.0, 1.0)}
TRUTH = {"log_k": -2.0, "alpha": 0.3, "beta": 0.5, "gamma": 5.0}
GOOD = {"divergences": True, "rhat": True, "ess_bulk": True, "ess_tail": True, "ebfmi": True}
WORST = {"divergences": 0.0, "rhat": 1.003, "ess_bulk": 900.0, "ess_tail": 800.0, "ebfmi": 0.8}
# tokens are crossed with size in "crossed", the same for all in "fixed", 20 a parameter in "lockstep"
FAMILIES = {
    "crossed": [(n, d) for n in (1e9, 7e9, 70e9) for d in (3e11, 3e12, 3e13)],
    "fixed": [(n, 1e12) for n in (1e9, 7e9, 70e9)],
    "lockstep": [(n, 20 * n) for n in (1e9, 7e9, 70e9)],
}
METHODS = ("gptq", "rtn")
BITS = (2.0, 3.0, 4.0)


def cells(families: dict[str, list[tuple[float, float]]] | None = None, lr_phase: str = "annealed") -> xr.Dataset:
    """Cells of the given families' (N, D) under two methods and three bit widths, QiD exactly on the law's curve."""
    rows = [
        (family, n, d, method, bits)
        for family, points in (FAMILIES if families is None else families).items()
        for n, d in points for method in METHODS for bits in BITS
    ]  # fmt: skip
    family, n, d, method, bits = (np.array(column) for column in zip(*rows, strict=True))
    qid = laws.qid(n, d, bits, **TRUTH, lam=0.0)
    headroom = np.full(len(rows), 8.5)
    qid = np.where(method == "rtn", 1.5, 1.0) * qid
    columns = {
        "family": family, "model": [f"{f}-{x:g}" for f, x in zip(family, n, strict=True)],
        "checkpoint": [f"{f}-{x:g}@{y:g}" for f, x, y in zip(family, n, d, strict=True)],
        "lr_phase": np.full(len(rows), lr_phase), "method": method, "variant": np.full(len(rows), ""),
        "generation": np.where(method == "rtn", "rtn", "calibrated"), "eval_dataset": np.full(len(rows), "wikitext2"),
        "source": np.full(len(rows), "arXiv 0000.00000, <made | up> & known"), "n_params": n,
        "n_params_nonembedding": n, "train_tokens": d, "lr_fraction": np.full(len(rows), 0.1),
        "vocab_size": np.full(len(rows), 32000.0), "bits": bits, "group_size": np.full(len(rows), 128.0),
        "effective_bits": bits, "ctx_len": np.full(len(rows), 2048.0), "loss16": np.full(len(rows), 1.9),
        "headroom": headroom, "per_channel": np.zeros(len(rows), dtype=bool), "qid": qid,
        "qid_se": np.full(len(rows), 1e-3), "censored": qid > np.log(10.0),
    }  # fmt: skip
    return cells_module.build(columns, {"instruction-tuned model": {"crossed": 3}}, [{"name": "made", "rows": 4}])


def tree(
    data: xr.Dataset | None = None, checks: dict[str, bool] | None = None, beta_sd: float = 0.03, log_k: float = -2.0,
    size: int = 200, seed: int = 1, warning: str = "", lam: float = 0.0,
) -> xr.DataTree:  # fmt: skip
    """A posterior around TRUTH: `beta_sd` is how well the population mean of beta is known (its prior sd is 0.25)."""
    data = cells() if data is None else data
    law, rng = laws.get("boxcox"), np.random.default_rng(seed)
    families = sorted(set(data["family"].values))
    truth = TRUTH | {"log_k": log_k}
    known = {"log_k": 0.1, "alpha": 0.03, "beta": beta_sd, "gamma": 0.2}
    levels = {by: sorted(set(map(str, data[by].values)))
              for by in ("generation", "quantizer", "checkpoint", "source_method")}  # fmt: skip
    terms = list(law.term_names)

    def group(prior: bool, draws_: int) -> xr.Dataset:
        def normal(*shape):
            return rng.normal(size=(1, draws_, *shape))

        center = np.array([PRIORS[t][0] if prior else truth[t] for t in terms])
        width = np.array([PRIORS[t][1] if prior else known[t] for t in terms])
        scale = np.array([PRIORS[t][2] if prior else PRIORS[t][2] / 5 for t in terms])
        mu, sd = center + width * normal(4), np.abs(scale * normal(4))
        theta = mu[..., None] + sd[..., None] * normal(4, len(families))
        spread = np.array([e.spread for e in law.effects]) * (1 if prior else 0.2)
        lead = ("chain", "draw")
        values = {
            "mu": ((*lead, "term"), mu), "sd": ((*lead, "term"), sd), "theta": ((*lead, "term", "family"), theta),
            "covariate": ((*lead, "covariate_name"), (1 if prior else 0.1) * 0.3 * normal(len(law.covariates))),
            "spread": ((*lead, "effect"), np.abs(spread * normal(len(law.effects)))),
            "tau": ((*lead, "generation"), np.abs((0.4 if prior else 0.1) * normal(len(levels["generation"])))),
            "lam": (lead, 0.5 + 0.3 * normal() if prior else lam + 0.02 * normal()),
        }  # fmt: skip
        values |= {t: ((*lead, "family"), theta[..., i, :]) for i, t in enumerate(terms)}
        values |= {e.name: ((*lead, e.by), (1 if prior else 0.05) * e.spread * normal(len(levels[e.by])))
                   for e in law.effects}  # fmt: skip
        coords = levels | {"term": terms, "family": families, "covariate_name": [c.name for c in law.covariates],
                           "effect": [e.name for e in law.effects]}  # fmt: skip
        return xr.Dataset(values, {name: np.array(v, dtype=object) for name, v in coords.items()})

    qid = data["qid"].to_numpy()
    predicted = qid * np.exp(0.2 * rng.normal(size=(1, 100, qid.size)))
    x_n = [np.log(data["n_params_nonembedding"].values[data["family"].values == f] / 1e9).mean() for f in families]
    x_d = [np.log(data["train_tokens"].values[data["family"].values == f] / 1e11).mean() for f in families]
    made = xr.DataTree.from_dict({
        "posterior": group(False, size),
        "prior": group(True, 2 * size),
        "posterior_predictive": xr.Dataset({"qid": (("chain", "draw", "cell"), predicted)}),
        "observed_data": xr.Dataset({"qid": ("cell", qid)}),
        "constant_data": xr.Dataset({"center_x_N": ("family", x_n), "center_x_D": ("family", x_d)},
                                    {"family": np.array(families, dtype=object)}),
        "cells": data,
    })  # fmt: skip
    priors: dict = {name: dict(zip(("mean", "sd", "spread"), value, strict=True)) for name, value in PRIORS.items()}
    priors |= {c.name: {"mean": c.mean, "sd": c.sd} for c in law.covariates}
    priors |= {e.name: {"spread": e.spread} for e in law.effects}
    priors |= {"scatter": {"spread": 0.4}, "lam": {"mean": 0.5, "sd": 0.3}}
    made.attrs = {
        "schema": draws.SCHEMA, "law": law.name, "model": "hierarchical", "seed": 7,
        "created_at": "2026-01-02T03:04:05+00:00", "versions": json.dumps({"bayesqid": "0.1.0"}),
        "priors": json.dumps(priors), "checks": json.dumps(GOOD | (checks or {})),
        "check_limits": json.dumps({"divergences": 0, "rhat": 1.01, "ess_bulk": 400, "ess_tail": 400, "ebfmi": 0.3}),
        "engine": json.dumps({"engine": "nuts", "tries": [
            {"target_accept": 0.9, "draws": 100, "diagnostics": WORST | {"rhat": 1.5}},
            {"target_accept": 0.97, "draws": 200, "diagnostics": WORST}]}),
        "asked_model": "hierarchical", "warning": warning,
    }  # fmt: skip
    return made


def posterior(**wanted) -> draws.Posterior:
    """The same as `bayesqid.answers.draws.read` would give it."""
    made = tree(**wanted)
    return draws.Posterior(made, draws.flatten(made["posterior"].to_dataset()), "made/posterior.nc", "0" * 64, "file")
