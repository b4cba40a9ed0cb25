"""Simulated cells with known parameters: the independent truth of tests, calibration and power studies."""

import numpy as np
import xarray as xr

from bayesqid import cells as cells_module
from bayesqid import laws, likelihood
from bayesqid.inference import hyper
from bayesqid.inference.problem import Problem, build


def grid(families: int = 6, tokens: int = 5, sizes: int = 2, seed: int = 0) -> xr.Dataset:
    """Empty cells of a designed study: per family `sizes` x `tokens` checkpoints, five recipes each.

    The recipes are RTN and GPTQ at 3 bits per channel, and RTN at 2, GPTQ at 2 and 4 bits in groups of 128, so that
    method, bits and per-channel scales vary apart. 6 families x 5 tokens x 2 sizes x 5 recipes = 300 cells.
    """
    rng = np.random.default_rng(seed)
    recipes = [("rtn", 3.016, -1), ("gptq", 3.016, -1), ("rtn", 2.14, 128), ("gptq", 2.14, 128), ("gptq", 4.16, 128)]
    rows = []
    for family in range(families):
        largest = np.exp(rng.uniform(np.log(3e9), np.log(3e10)))
        last = np.exp(rng.uniform(np.log(3e11), np.log(1e13)))
        for params in np.geomspace(largest / 20, largest, sizes):
            for count in np.geomspace(last / 300, last, tokens):
                loss16 = 1.7 + (4e8 / params) ** 0.3 * 0.6 + (2e10 / count) ** 0.3
                rows += [(f"F{family}", params, count, loss16, *recipe) for recipe in recipes]
    family, params, count, loss16, method, bits, group = (np.array(column) for column in zip(*rows, strict=True))
    size = family.size
    checkpoint = np.array([f"{f} {n:.4g} {d:.4g}" for f, n, d in zip(family, params, count, strict=True)])
    columns = {
        "family": family, "model": checkpoint, "checkpoint": checkpoint, "lr_phase": np.full(size, "annealed"),
        "method": method, "variant": np.full(size, ""), "eval_dataset": np.full(size, "wikitext2"),
        "generation": np.where(method == "rtn", "rtn", "calibrated"), "source": np.full(size, "simulated"),
        "n_params": params, "n_params_nonembedding": params, "train_tokens": count, "lr_fraction": np.zeros(size),
        "vocab_size": np.full(size, 50304.0), "bits": np.round(bits), "group_size": group, "effective_bits": bits,
        "ctx_len": np.full(size, 2048.0), "loss16": loss16, "headroom": np.log(50304.0) - loss16,
        "per_channel": group == -1, "qid": np.full(size, 0.1), "qid_se": np.full(size, 0.01),
        "censored": np.zeros(size, dtype=bool),
    }  # fmt: skip
    return cells_module.build(columns, {}, [{"name": "simulated"}])


def draw(problem: Problem, b: np.ndarray, phi: np.ndarray, rng: np.random.Generator) -> xr.Dataset:
    """Cells whose QiD is drawn from the model at (b, phi); standard error 0.003 nats and 2 %, divergence censored."""
    natural = hyper.unpack(problem, phi)
    eta = (problem.weights(natural.lam) * b[problem.index]).sum(axis=1)
    v = eta + natural.tau[problem.generation_of] * rng.normal(size=eta.size)
    headroom = problem.cells["headroom"].to_numpy()
    seen = likelihood.saturate(np.exp(np.minimum(v, 50.0)), headroom)
    error = np.hypot(0.003, 0.02 * seen)
    cells = problem.cells.copy(deep=True)
    cells["qid"] = ("cell", seen + error * rng.normal(size=eta.size))
    cells["qid_se"] = ("cell", error)
    cells["censored"] = ("cell", v > likelihood.censoring_point(headroom))
    return cells


def study(
    law: laws.Law, model: str, seed: int, template: xr.Dataset | None = None
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """One simulated study: parameters from the priors, cells from the parameters; returns (problem, b, phi)."""
    rng = np.random.default_rng(seed)
    blank = build(grid() if template is None else template, law, model)
    b, phi = hyper.draw_prior(blank, 1, rng)
    return build(draw(blank, b[0], phi[0], rng), law, model), b[0], phi[0]
