"""A posterior of known numbers, made by hand, for the tests of level and project."""

import json

import numpy as np
import xarray as xr

from bayesqid import laws
from bayesqid.answers import draws
from bayesqid.inference import simulate

FAMILIES = ("F0", "F1")
GENERATIONS = ("calibrated", "rtn")
QUANTIZERS = ("gptq", "rtn")
TERMS = {"log_k": -2.0, "alpha": 0.3, "beta": 0.4, "gamma": 5.0}


def tree(size=1, terms=None, spread=None, tau=0.3, sd=1e-9, lam=0.0, effects=None, covariates=None, checks=None,
         beta_prior=1.0, law="ouyang") -> xr.DataTree:  # fmt: skip
    """Numbers are scalars or one per draw: `terms` of all families, `spread` by effect, `effects` by (name, level)."""
    spread, effects, covariates = spread or {}, effects or {}, covariates or {}
    known = laws.get(law)

    def per_draw(value):
        return np.broadcast_to(np.asarray(value, dtype=float), (size,))

    mu = np.stack([per_draw((TERMS | (terms or {}))[name]) for name in known.term_names], axis=-1)
    taus = tau if isinstance(tau, dict) else dict.fromkeys(GENERATIONS, tau)
    levels = {"generation": GENERATIONS, "quantizer": QUANTIZERS, "checkpoint": ("one",), "source_method": ("a | rtn",),
              "width": ("2", "3", "4")}
    data = {
        "mu": (("draw", "term"), mu),
        "sd": (("draw", "term"), np.stack([per_draw(sd)] * mu.shape[1], axis=-1)),
        "theta": (("draw", "term", "family"), np.repeat(mu[:, :, None], len(FAMILIES), axis=2)),
        "covariate": (("draw", "covariate_name"),
                      np.stack([per_draw(covariates.get(c.name, 0.0)) for c in known.covariates], axis=-1)),
        "spread": (("draw", "effect"), np.stack([per_draw(spread.get(e.name, 1e-9)) for e in known.effects], axis=-1)),
        "tau": (("draw", "generation"), np.stack([per_draw(taus[name]) for name in GENERATIONS], axis=-1)),
        "lam": ("draw", per_draw(lam)),
    }  # fmt: skip
    for effect in known.effects:
        values = [per_draw(effects.get((effect.name, level), 0.0)) for level in levels[effect.by]]
        data[effect.name] = (("draw", effect.by), np.stack(values, axis=-1))
    coords = {
        "term": list(known.term_names), "family": list(FAMILIES), "covariate_name": [c.name for c in known.covariates],
        "effect": [e.name for e in known.effects], **{name: list(values) for name, values in levels.items()},
    }  # fmt: skip
    sample = xr.Dataset(data, coords).expand_dims(chain=[0]).transpose("chain", "draw", ...)
    wide = beta_prior * np.array([-1.0, 1.0])[None, :, None] * np.ones((1, 2, mu.shape[1]))
    prior = xr.Dataset(dict.fromkeys(("mu", "sd"), (("chain", "draw", "term"), wide)), {"term": coords["term"]})
    centers = xr.Dataset({name: ("family", np.zeros(len(FAMILIES))) for name in ("center_x_N", "center_x_D")})
    made = xr.DataTree.from_dict({"posterior": sample, "prior": prior, "constant_data": centers, "cells": cells()})
    checks = json.dumps(checks or {"rhat": True})
    made.attrs = {"schema": draws.SCHEMA, "law": law, "model": "hierarchical", "checks": checks}
    return made


def cells() -> xr.Dataset:
    """300 cells: params 1.5e8 to 3e10, tokens 1e9 to 1e13, 2.14 to 4.16 bits."""
    return simulate.grid(families=len(FAMILIES))


def make(**numbers) -> draws.Posterior:
    """The same as the answers hold it."""
    made = tree(**numbers)
    return draws.Posterior(made, draws.flatten(made["posterior"].to_dataset()), "made.nc", "0" * 64, "file")
