"""Draws of (b, spreads, scatters, lam) put under their names: the Posterior, one DataTree in the ArviZ schema."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import ndtri

from bayesqid import laws, likelihood
from bayesqid.inference import hyper
from bayesqid.inference.problem import Problem

SCHEMA = "bayesqid-posterior/1"
PRIOR_DRAWS = 1000
PREDICTIVE_DRAWS = 500
VERSIONS = ("bayesqid", "numpy", "scipy", "xarray", "pymc", "pytensor", "nutpie", "numba", "arviz")


def named(problem: Problem, b: np.ndarray, natural: hyper.Hyper) -> xr.Dataset:
    """Named variables of draws; b has shape (chain, draw, p), natural values have leading (chain, draw)."""
    law, sample = problem.law, ("chain", "draw")
    families = tuple(problem.centers["family"])
    shape = b.shape[:2]

    def levels(name: str) -> Any:
        block = problem.block(name)
        return None if block is None else b[..., block.where] @ block.contrasts.T

    def spread(name: str):
        block = problem.block(name)
        if block is None or block.hyper is None:
            return np.full(shape, 0.0 if block is None else block.sd)
        return natural.sd[..., block.hyper]

    def prior_spread(scale: float):
        # of an effect left out of the fit: the quantiles of its prior in an order that no other parameter follows
        order = np.random.default_rng(int(1e6 * scale)).permutation(shape[0] * shape[1])
        return hyper.half_normal(ndtri((order + 0.5) / order.size), scale).reshape(shape)

    mu, sd, theta = [], [], []
    for term in law.terms:
        mean = levels(f"mu {term.name}")
        mean = np.full(shape, term.mean) if mean is None else mean[..., 0]
        own = levels(f"family {term.name}")
        own = np.zeros((*shape, len(families))) if own is None else own
        mu.append(mean)
        sd.append(spread(f"family {term.name}"))
        theta.append(own if problem.model == "independent" else mean[..., None] + own)
    mu, theta = np.stack(mu, axis=-1), np.stack(theta, axis=-2)
    slot = {term.factor: number for number, term in enumerate(law.terms)}
    if problem.model == "hierarchical":
        # deviations in slope are counted from the family's centre: carried to the pivot they shift its level there
        own = theta - mu[..., None]
        for factor, center in (("-x_N", problem.centers["x_N"]), ("x_D", -problem.centers["x_D"])):
            if factor in slot:
                theta[..., slot["1"], :] += own[..., slot[factor], :] * center
    covariate = {c.factor: levels(c.name)[..., 0] for c in law.covariates}
    by_effect = {(e.by, e.factor): levels(e.name) for e in law.effects}
    for factor, moves in laws.carried(problem.center["x_N"], problem.center["x_D"], covariate).items():
        mu[..., slot[factor]] += moves
        theta[..., slot[factor], :] += moves[..., None]
    if "undecayed x_D" in covariate:
        covariate["undecayed"] = covariate["undecayed"] - covariate["undecayed x_D"] * problem.center["x_D"]

    spreads = [spread(e.name) if problem.block(e.name) else prior_spread(e.spread) for e in law.effects]
    data = {
        "mu": ((*sample, "term"), mu),
        "sd": ((*sample, "term"), np.stack(sd, axis=-1)),
        "theta": ((*sample, "term", "family"), theta),
        "covariate": ((*sample, "covariate_name"), np.stack([covariate[c.factor] for c in law.covariates], -1)),
        "spread": ((*sample, "effect"), np.stack(spreads, axis=-1)),
        "tau": ((*sample, "generation"), natural.tau),
        "lam": (sample, np.broadcast_to(natural.lam, shape)),
    }
    coords = {
        "term": list(law.term_names), "family": list(families), "generation": list(problem.generations),
        "covariate_name": [c.name for c in law.covariates], "effect": [e.name for e in law.effects],
    }  # fmt: skip
    for number, term in enumerate(law.terms):
        data[term.name] = ((*sample, "family"), theta[..., number, :])
    cells = problem.cells
    columns = {name: cells[name].to_numpy() for name in cells.coords}
    columns |= laws.crossed(columns)
    for effect in law.effects:
        coords[effect.by] = [str(name) for name in np.unique(columns[effect.by].astype(str))]
        value = by_effect[effect.by, effect.factor]
        # zero where an earlier effect takes it, see problem.build
        value = np.zeros((*shape, len(coords[effect.by]))) if value is None else value
        for factor, center in (("-x_N", problem.center["x_N"]), ("x_D", -problem.center["x_D"])):
            tilt = by_effect.get((effect.by, factor))
            if effect.factor == "1" and tilt is not None:
                value = value + tilt * center
        data[effect.name] = ((*sample, effect.by), value)
    if problem.latent_names:
        coords["undisclosed"] = list(problem.latent_names)
        middle = law.latent_tokens[0] if law.latent_tokens else 0.0
        data["undisclosed_tokens"] = ((*sample, "undisclosed"), np.exp(middle + natural.latent))
    coords |= {"chain": np.arange(shape[0]), "draw": np.arange(shape[1])}
    return xr.Dataset(data, coords)


def pointwise(problem: Problem, b: np.ndarray, natural: hyper.Hyper) -> tuple[np.ndarray, np.ndarray]:
    """Marginal log density of every cell and eta, each (chain, draw, cell)."""
    shape = (*b.shape[:2], problem.index.shape[0])
    density, eta = np.empty(shape, dtype=np.float32), np.empty(shape)
    for c, d in np.ndindex(shape[:2]):
        weights = problem.weights(natural.lam[c, d], natural.latent[c, d])
        eta[c, d] = (weights * b[c, d][problem.index]).sum(axis=1)
        density[c, d] = problem.log_likelihood(eta[c, d], natural.tau[c, d])[0]
    return density, eta


def replicate(problem: Problem, eta: np.ndarray, natural: hyper.Hyper, rng: np.random.Generator) -> np.ndarray:
    """Posterior predictive QiD of every cell, evaluation error included, shape (chain, draw, cell)."""
    headroom, error = problem.cells["headroom"].to_numpy(), problem.cells["qid_se"].to_numpy()
    scatter = natural.tau[..., problem.generation_of]
    raw = np.exp(np.minimum(eta + likelihood.draw_scatter(rng, scatter, problem.law.tails), 50.0))
    return likelihood.saturate(raw, headroom) + error * rng.normal(size=eta.shape)


def log_prior(problem: Problem, b: np.ndarray, natural: hyper.Hyper) -> xr.Dataset:
    """Log prior density of the coefficients, the spreads, the scatters and lam, each (chain, draw)."""
    sd = hyper.coefficient_sd(problem, natural.sd)
    z = (b - problem.mean) / sd
    values = {
        "b": (-0.5 * z**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)).sum(axis=-1),
        "spread": hyper.log_half_normal(natural.sd, problem.spread_scales).sum(axis=-1),
        "tau": hyper.log_half_normal(natural.tau, problem.law.scatter).sum(axis=-1),
    }
    if isinstance(problem.law.lam, tuple):
        mean, scale = problem.law.lam
        values["lam"] = -0.5 * ((natural.lam - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    if problem.law.latent_tokens:
        scale = problem.law.latent_tokens[1]
        each = -0.5 * (natural.latent / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
        values["undisclosed_tokens"] = each.sum(axis=-1)
    return xr.Dataset({name: (("chain", "draw"), value) for name, value in values.items()})


def centres(problem: Problem) -> xr.Dataset:
    """Mean x_N and x_D of each family's checkpoints and of all, about which deviations in slope turn."""
    return xr.Dataset(
        {"center_x_N": ("family", problem.centers["x_N"]), "center_x_D": ("family", problem.centers["x_D"]),
         "overall_x_N": problem.center["x_N"], "overall_x_D": problem.center["x_D"]},
        {"family": list(problem.centers["family"])},
    )  # fmt: skip


def assemble(
    problem: Problem, b: np.ndarray, natural: hyper.Hyper, stats: xr.Dataset, seed: int, extra: dict
) -> xr.DataTree:
    """The Posterior of all draws: every group of the contract, checks left to the caller in `extra`."""
    rng = np.random.default_rng(seed)
    density, eta = pointwise(problem, b, natural)
    every = max(1, b.shape[0] * b.shape[1] // PREDICTIVE_DRAWS)
    thin = hyper.Hyper(*(values[:, ::every] for values in (natural.sd, natural.tau, natural.lam, natural.latent)))
    prior_b, prior_phi = hyper.draw_prior(problem, PRIOR_DRAWS, rng)
    dims = ("chain", "draw", "cell")
    tree = xr.DataTree.from_dict({
        "posterior": named(problem, b, natural),
        "sample_stats": stats,
        "log_likelihood": xr.Dataset({"qid": (dims, density)}),
        "log_prior": log_prior(problem, b, natural),
        "prior": named(problem, prior_b[None], hyper.unpack(problem, prior_phi[None])),
        "posterior_predictive": xr.Dataset(
            {"qid": (dims, replicate(problem, eta[:, ::every], thin, rng).astype(np.float32))}),
        "observed_data": xr.Dataset({"qid": ("cell", problem.cells["qid"].to_numpy())}),
        "constant_data": centres(problem),
        "cells": problem.cells,
    })  # fmt: skip
    tree.attrs = {
        "schema": SCHEMA, "law": problem.law.name, "drivers": problem.law.drivers,
        "extras": ",".join(problem.law.extras), "model": problem.model, "seed": seed,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": json.dumps({name: version(name) for name in VERSIONS}),
        "priors": json.dumps(priors_of(problem.law)), **extra,
    }  # fmt: skip
    return tree


def priors_of(law: laws.Law) -> dict:
    """The priors in force, in the form that `--prior` reads."""
    table: dict[str, dict[str, float]] = {
        t.name: {"mean": t.mean, "sd": t.sd, "spread": t.spread} for t in law.terms
    }
    table |= {c.name: {"mean": c.mean, "sd": c.sd} for c in law.covariates}
    table |= {e.name: {"spread": e.spread} for e in law.effects}
    table["scatter"] = {"spread": law.scatter}
    if isinstance(law.lam, tuple):
        table["lam"] = {"mean": law.lam[0], "sd": law.lam[1]}
    return table


def thinned(tree: xr.DataTree, draws: int) -> xr.DataTree:
    """The same posterior with `draws` draws in one chain, in single precision, without the large groups."""
    sample = tree["posterior"].to_dataset()
    total = sample.sizes["chain"] * sample.sizes["draw"]
    pick = np.linspace(0, total - 1, draws).round().astype(int)

    def flat(data: xr.Dataset, index) -> xr.Dataset:
        stacked = data.stack(all=("chain", "draw")).isel(all=index).drop_vars(["all", "chain", "draw"])
        out = stacked.rename(all="draw").expand_dims(chain=[0]).assign_coords(draw=np.arange(len(index)))
        return out.transpose("chain", "draw", ...).map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x)

    predictive = tree["posterior_predictive"].to_dataset()
    few = np.linspace(0, predictive.sizes["chain"] * predictive.sizes["draw"] - 1, min(200, draws)).round().astype(int)
    prior = tree["prior"].to_dataset()
    small = xr.DataTree.from_dict({
        "posterior": flat(sample, pick),
        "prior": flat(prior, np.arange(prior.sizes["draw"])),
        "posterior_predictive": flat(predictive, few),
        **{name: tree[name].to_dataset() for name in ("observed_data", "constant_data", "cells")},
    })  # fmt: skip
    small.attrs = dict(tree.attrs) | {"thinned_from": total}
    return small
