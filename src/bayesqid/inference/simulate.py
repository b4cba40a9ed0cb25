"""Simulated cells with known parameters: the independent truth of tests, calibration and power studies."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid import cells as cells_module
from bayesqid import laws, likelihood
from bayesqid.errors import BadInput
from bayesqid.inference import hyper, posterior
from bayesqid.inference.problem import Problem, build

# method, effective bits, group size (-1: one scale per output row)
Recipes = tuple[tuple[str, float, int], ...]
RECIPES: Recipes = (
    ("rtn", 3.016, -1), ("gptq", 3.016, -1), ("rtn", 2.14, 128), ("gptq", 2.14, 128), ("gptq", 4.16, 128),
)  # fmt: skip


def grid(families: int = 6, tokens: int = 5, sizes: int = 2, seed: int = 0, recipes: Recipes = RECIPES) -> xr.Dataset:
    """Empty cells of a designed study: per family `sizes` x `tokens` checkpoints, all `recipes` each.

    The default recipes are RTN and GPTQ at 3 bits per channel, and RTN at 2, GPTQ at 2 and 4 bits in groups of 128, so
    that method, bits and per-channel scales vary apart. 6 families x 5 tokens x 2 sizes x 5 recipes = 300 cells. Every
    checkpoint and recipe has a loss landscape (`landscape`).
    """
    rng = np.random.default_rng(seed)
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
    # a stream of its own: what is drawn after the grid does not depend on it
    drawn = landscape(checkpoint, bits, np.random.default_rng([seed, 1]))
    return cells_module.build(columns | drawn, {}, [{"name": "simulated"}])


def landscape(checkpoint: np.ndarray, bits: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Made-up columns of the loss landscape of every cell: checkpoints differ in flatness, recipes in their error.

    With u independent standard normals of the checkpoint, e of the checkpoint and bits (RTN and GPTQ on one grid round
    to one error), and noise = 10^(-SQNR / 10):

        SQNR = 6.02 P - 5 + e dB     H = 5 exp(0.8 u1)     flatness = 0.005 H exp(0.1 u2)     trace = 80 H exp(0.5 u3)
        curvature = H noise exp(0.3 e2)     slope = 0.1 H noise e3     layer error = 500 noise exp(0.5 u4 + 0.2 e4)
    """
    names, own = np.unique(checkpoint, return_inverse=True)
    pairs = np.unique([f"{c} {p:g}" for c, p in zip(checkpoint, bits, strict=True)], return_inverse=True)
    u = rng.normal(size=(4, names.size))[:, own]
    e = rng.normal(size=(4, pairs[0].size))[:, pairs[1]]
    sqnr = 6.02 * bits - 5 + e[0]
    noise = 10 ** (-sqnr / 10)
    height = 5 * np.exp(0.8 * u[0])
    curvature, slope = height * noise * np.exp(0.3 * e[1]), 0.1 * height * noise * e[2]
    return {
        "sqnr_db": sqnr, "slope": slope, "curvature": curvature, "taylor": slope + curvature / 2,
        "layer_error": 500 * noise * np.exp(0.5 * u[3] + 0.2 * e[3]), "hessian_trace": 80 * height * np.exp(0.5 * u[2]),
        "flatness_r": 0.005 * height * np.exp(0.1 * u[1]),
    }  # fmt: skip


def observe(
    problem: Problem, b: np.ndarray, natural: hyper.Hyper, rng: np.random.Generator, error: np.ndarray | None = None
) -> xr.Dataset:
    """Cells whose QiD is drawn from the model at coefficients b and natural hyper-parameters.

    `error`: standard error of every cell, nats; without it 0.003 nats and 2 % of QiD. Where ranks of the truth are
    taken it has to be given: an error that follows the scatter would tell what the model does not read from it.
    What is seen above the point of divergence is censored.
    """
    eta = (problem.weights(natural.lam, natural.latent) * b[problem.index]).sum(axis=1)
    v = eta + likelihood.draw_scatter(rng, natural.tau[problem.generation_of], problem.law.tails)
    headroom = problem.cells["headroom"].to_numpy()
    seen = likelihood.saturate(np.exp(np.minimum(v, 50.0)), headroom)
    spread = np.hypot(0.003, 0.02 * seen) if error is None else error
    qid = seen + spread * rng.normal(size=eta.size)
    limit = likelihood.saturate(np.exp(likelihood.censoring_point(headroom)), headroom)
    cells = problem.cells.copy(deep=True)
    cells["qid"] = ("cell", qid)
    cells["qid_se"] = ("cell", spread)
    cells["censored"] = ("cell", qid > limit)
    return cells


def draw(problem: Problem, b: np.ndarray, phi: np.ndarray, rng: np.random.Generator) -> xr.Dataset:
    """Cells whose QiD is drawn from the model at (b, phi); standard error 0.003 nats and 2 %, divergence censored."""
    return observe(problem, b, hyper.unpack(problem, phi), rng)


def study(
    law: laws.Law, model: str, seed: int, template: xr.Dataset | None = None, own_error: bool = False
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """One simulated study: parameters from the priors, cells from the parameters; returns (problem, b, phi).

    `own_error`: the standard errors are those of the template, whatever QiD comes out (see `observe`).
    """
    rng = np.random.default_rng(seed)
    blank = build(grid() if template is None else template, law, model)
    b, phi = hyper.draw_prior(blank, 1, rng)
    error = blank.cells["qid_se"].to_numpy() if own_error else None
    return build(observe(blank, b[0], hyper.unpack(blank, phi[0]), rng, error), law, model), b[0], phi[0]


def truth(problem: Problem, b: np.ndarray, natural: hyper.Hyper, rng: np.random.Generator) -> xr.Dataset:
    """The parameters under their names, in the form of a posterior of one draw (dims chain, draw, ...).

    The spread of an effect that the problem leaves out is nowhere in the cells; it is drawn from its prior.
    """
    one = hyper.Hyper(**{name: np.asarray(value)[None, None] for name, value in vars(natural).items()})
    named = posterior.named(problem, b[None, None], one)
    spread = named["spread"].copy()
    for effect in problem.law.effects:
        if problem.block(effect.name) is None:
            spread.loc[{"effect": effect.name}] = abs(effect.spread * rng.normal())
    return named.assign(spread=spread)


def settable(problem: Problem) -> dict[str, float]:
    """Names that `with_settings` takes and the lowest value each may have.

    A term is its population mean, sd_TERM the standard deviation between families, spread_EFFECT that of an effect,
    tau or tau_GENERATION the scatter of ln QiD. Effects that the cells cannot tell apart have no name here.
    """
    law = problem.law
    bounds = {term.name: -math.inf for term in law.terms} | {c.name: -math.inf for c in law.covariates}
    bounds |= {f"sd_{term.name}": 0.0 for term in law.terms}
    bounds |= {f"spread_{e.name}": 0.0 for e in law.effects if problem.block(e.name) is not None}
    bounds |= {"tau": 0.0} | {f"tau_{generation}": 0.0 for generation in problem.generations}
    return bounds | ({"lam": -math.inf} if problem.free_lam else {})


def parse_settings(texts: Iterable[str]) -> dict[str, float]:
    """{name: value} of texts NAME=VALUE; `BadInput` for anything else or a name given twice."""
    found: dict[str, float] = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (name and sign and math.isfinite(number)):
            raise BadInput(f"--set {text!r} is not NAME=NUMBER: write, for example, --set alpha=0.3.")
        if name in found:
            raise BadInput(f"--set gives {name} twice: keep one of them.")
        found[name] = number
    return found


def published_settings(name: str, problem: Problem) -> dict[str, float]:
    """Settings under which every family follows printed constants exactly: no spreads, no covariates, no effects.

    The scatter of single cells is left to its prior. `BadInput` where the law has other terms or another exponent.
    """
    if not laws.get(name).published:
        known = ", ".join(law.name for law in laws.LAWS.values() if law.published)
        raise BadInput(f"Law {name!r} has no published constants: choose one of {known}.")
    law, constants = problem.law, laws.published_constants(name)
    lam = constants.pop("lam")
    if set(constants) != set(law.term_names) or (not problem.free_lam and law.lam != lam):
        raise BadInput(f"The constants of {name} do not fit law {law.name}: leave --law out, or take boxcox.")
    still = {key: 0.0 for key, low in settable(problem).items() if key.startswith(("sd_", "spread_")) and low == 0.0}
    still |= {covariate.name: 0.0 for covariate in law.covariates}
    return still | constants | ({"lam": lam} if problem.free_lam else {})


def with_settings(
    problem: Problem, settings: Mapping[str, float], rng: np.random.Generator
) -> tuple[np.ndarray, hyper.Hyper]:
    """Coefficients and hyper-parameters drawn from the prior, but for what is set; see `settable`.

    What is not set does not depend on what is: one seed gives the same deviations in units of their spreads.
    """
    bounds = settable(problem)
    for name, value in settings.items():
        if name not in bounds:
            raise BadInput(f"Law {problem.law.name} has no parameter {name!r} here: known are {', '.join(bounds)}.")
        if value < bounds[name]:
            raise BadInput(f"{name} is {value:g}, but a standard deviation is not below zero: give 0 or more.")
    natural = hyper.unpack(problem, rng.normal(size=hyper.start(problem).size))
    sd, tau = natural.sd.copy(), natural.tau.copy()
    for number, block in enumerate(problem.spread_names):
        key = f"sd_{block.removeprefix('family ')}" if block.startswith("family ") else f"spread_{block}"
        sd[number] = settings.get(key, sd[number])
    for number, generation in enumerate(problem.generations):
        tau[number] = settings.get(f"tau_{generation}", settings.get("tau", tau[number]))
    natural = replace(natural, sd=sd, tau=tau, lam=float(settings.get("lam", natural.lam)))
    b = problem.mean + hyper.coefficient_sd(problem, sd) * rng.normal(size=problem.size)
    means = {term.name: f"mu {term.name}" for term in problem.law.terms}
    blocks = {name: problem.block(means.get(name, name)) for name in settings}
    wanted = {name: block.where for name, block in blocks.items() if block is not None}
    for name, where in wanted.items():
        b[where] = settings[name]
    # what is named holds at the pivot: bends and tilts about the centre of the data shift it there
    named = truth(problem, b, natural, rng).isel(chain=0, draw=0)
    for name, where in wanted.items():
        there = named["mu"].sel(term=name) if name in means else named["covariate"].sel(covariate_name=name)
        b[where] += settings[name] - float(there)
    return b, natural


def record(problem: Problem, named: xr.Dataset) -> dict:
    """The parameters of `truth` as plain numbers by name and level, those that had no part in the cells left out."""

    def nested(values: xr.DataArray):
        if not values.dims:
            return float(values)
        dim = values.dims[0]
        return {str(level): nested(values.sel({dim: level})) for level in values[dim].values}

    told = [effect.name for effect in problem.law.effects if problem.block(effect.name) is not None]
    one = named.isel(chain=0, draw=0, drop=True).sel(effect=told)
    return {str(name): nested(one[name]) for name in one.data_vars if name not in problem.law.term_names}


def make(
    law: laws.Law, settings: Iterable[str] = (), published: str | None = None, families: int = 6, tokens: int = 5,
    sizes: int = 2, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Cells of a designed study with known parameters, all of them as JSON in `attrs["truth"]`.

    `settings`: texts NAME=VALUE that overrule the published constants; what neither names is drawn from the prior.
    """
    blank = build(grid(families, tokens, sizes, seed), law, "hierarchical")
    wanted = published_settings(published, blank) if published else {}
    wanted |= parse_settings(settings)
    rng = np.random.default_rng(seed)
    b, natural = with_settings(blank, wanted, rng)
    cells = observe(blank, b, natural, rng)
    known = {"law": law.name, "published": published, "seed": seed, "set": wanted,
             "parameters": record(blank, truth(blank, b, natural, rng))}  # fmt: skip
    cells.attrs["truth"] = json.dumps(known)
    return cells
