"""A posterior of some cells by the fast engine, in memory, as the answers read it."""

import json

import xarray as xr
from threadpoolctl import threadpool_limits

from bayesqid import laws
from bayesqid.answers import draws
from bayesqid.inference import hyper, laplace, posterior, problem


def fitted(cells: xr.Dataset, law: laws.Law, model: str = "hierarchical", seed: int = 0, size: int = 1000):
    """(Posterior, effective importance draws); the law must stand in `laws.LAWS` under its name."""
    p = problem.build(cells, law, model)
    with threadpool_limits(1):
        found = laplace.fit(p, size, seed)
    sample = posterior.named(p, found.b[None], hyper.unpack(p, found.phi[None]))
    tree = xr.DataTree.from_dict({"posterior": sample, "constant_data": posterior.centres(p), "cells": cells})
    tree.attrs = {"law": law.name, "drivers": law.drivers, "extras": ",".join(law.extras), "model": model,
                  "checks": json.dumps({"importance_ess": found.ess > 100})}  # fmt: skip
    return draws.Posterior(tree, draws.flatten(sample), "memory", "", "memory"), found.ess
