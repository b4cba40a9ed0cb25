"""Cells of recipes that quantize a part of the weights: simulated, with known parameters."""

import itertools

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from bayesqid import laws
from bayesqid.answers import draws
from bayesqid.inference import sample, simulate
from bayesqid.inference.problem import build

LAW = laws.get("mixed")
SHARES, KINDS, CHOSEN = (0.5, 0.9), ("layer", "matmul"), ("random", "best of 50")


def grid(families: int = 4, tokens: int = 1, sizes: int = 3, seed: int = 0) -> xr.Dataset:
    """Empty cells of 4 bits in blocks of 32 and of 3 in 128, whole and at two shares, chosen four ways."""
    plain = simulate.grid(families, tokens, sizes, seed, (("rtn", 4.25, 32), ("gptq", 3.25, 128)))
    parts = [plain.assign_coords(quantized_fraction=("cell", np.ones(plain.sizes["cell"])), **_text("", "", plain))]
    for share, kind, chosen in itertools.product(SHARES, KINDS, CHOSEN):
        some = plain.assign_coords(quantized_fraction=("cell", np.full(plain.sizes["cell"], share)))
        parts.append(some.assign_coords(**_text(kind, chosen, plain)))
    return xr.concat(parts, "cell").assign_attrs(plain.attrs)


def _text(kind: str, chosen: str, plain: xr.Dataset) -> dict:
    size = plain.sizes["cell"]
    return {"granularity": ("cell", np.full(size, kind, dtype=object)),
            "assignment": ("cell", np.full(size, chosen, dtype=object))}  # fmt: skip


def simulated(settings: dict[str, float], seed: int = 0, **wanted) -> xr.Dataset:
    """Cells drawn at these parameters, what they do not name from its prior."""
    blank = build(grid(seed=seed, **wanted), LAW, "hierarchical")
    rng = np.random.default_rng(seed)
    b, natural = simulate.with_settings(blank, settings, rng)
    return simulate.observe(blank, b, natural, rng)


def fitted(cells: xr.Dataset, seed: int = 1, size: int = 600) -> draws.Posterior:
    """The law `mixed` fitted by the fast engine."""
    with threadpool_limits(1):
        tree = sample.sample(cells, LAW, engine="laplace", seed=seed, chains=1, draws=size)
    return draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "made.nc", "0" * 64, "file")
