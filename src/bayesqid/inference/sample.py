"""Sample the posterior of a law from cells: by NUTS (the reference) or by the fast engine."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from bayesqid import cells as cells_module
from bayesqid import laws
from bayesqid.errors import BadInput
from bayesqid.inference import checks, hyper, laplace, posterior, problem

CHAINS, DRAWS, TUNE = 4, 800, 600
TARGETS = (0.92, 0.97)
# contraction under which a value is the prior's
INFORMED = 0.2
# (chains, draws, tune, seed, target) -> draws and sampler statistics
Sampler = Callable[[int, int, int, int, float], tuple[xr.Dataset, xr.Dataset]]


@dataclass(frozen=True)
class Run:
    """Draws with leading (chain, draw): coefficients, natural hyper-parameters, sampler statistics, a record."""

    b: np.ndarray
    natural: hyper.Hyper
    stats: xr.Dataset
    checks: dict[str, bool]
    record: dict


def nuts(p: problem.Problem, seed: int, chains: int, draws: int, tune: int, backend: str = "nutpie") -> Run:
    """NUTS on the PyMC model; one retry with a higher target and twice the draws if a check fails."""
    from bayesqid.inference import model

    record: dict = {"engine": "nuts", "backend": backend, "tries": []}
    run = None
    begin = time.perf_counter()
    whitening = model.whiten(p)
    sampler = BACKENDS[backend](model.build(p, whitening))
    record["compile_s"] = round(time.perf_counter() - begin, 2)
    for attempt, target in enumerate(TARGETS):
        begin = time.perf_counter()
        sample, stats = sampler(chains, draws * (attempt + 1), tune * (attempt + 1), seed + attempt, target)
        shape = sample["z"].shape[:2]
        sd = sample["sd"].to_numpy() if "sd" in sample else np.empty((*shape, 0))
        lam = sample["lam"].to_numpy() if "lam" in sample else np.full(shape, p.law.lam)
        b = model.coefficients(p, whitening, sd, lam, sample["z"].to_numpy())
        free = sample[[name for name in ("sd", "tau", "lam", "latent") if name in sample]]
        values = checks.worst(free.assign(b=(("chain", "draw", "coefficient"), b)), stats)
        passed = checks.passed(values)
        record["tries"].append({"target_accept": target, "draws": draws * (attempt + 1), "diagnostics": values,
                                "sample_s": round(time.perf_counter() - begin, 2)})  # fmt: skip
        latent = sample["latent"].to_numpy() if "latent" in sample else np.empty((*shape, 0))
        natural = hyper.Hyper(sd, sample["tau"].to_numpy(), lam, latent)
        run = Run(b, natural, stats, passed, record)
        if all(passed.values()):
            break
    assert run is not None
    return run


def _nutpie(built: Any) -> Sampler:
    import nutpie

    with warnings.catch_warnings():
        # numba notes that the likelihood's wrapper cannot be cached across processes; that costs nothing else
        warnings.simplefilter("ignore")
        compiled = nutpie.compile_pymc_model(built)

    def draw(chains: int, draws: int, tune: int, seed: int, target: float) -> tuple[xr.Dataset, xr.Dataset]:
        tree = nutpie.sample(
            compiled, draws=draws, tune=tune, chains=chains, cores=min(chains, os.cpu_count() or 1), seed=seed,
            target_accept=target, progress_bar=sys.stderr.isatty(), save_warmup=False,
        )  # fmt: skip
        return tree["posterior"].to_dataset(), _numbers(tree["sample_stats"].to_dataset())

    return draw


def _numpyro(built: Any) -> Sampler:
    try:
        from bayesqid.inference import jaxed  # noqa: F401  the likelihood for JAX
    except ImportError:
        raise BadInput("The engine numpyro needs JAX: pip install 'bayesqid[numpyro]'.") from None
    import pymc

    def draw(chains: int, draws: int, tune: int, seed: int, target: float) -> tuple[xr.Dataset, xr.Dataset]:
        with built:
            tree = pymc.sample(
                draws=draws, tune=tune, chains=chains, random_seed=seed, nuts_sampler="numpyro", target_accept=target,
                progressbar=sys.stderr.isatty(), compute_convergence_checks=False,
            )  # fmt: skip
        return tree["posterior"].to_dataset(), _numbers(tree["sample_stats"].to_dataset())

    return draw


# programs that run NUTS on a PyMC model
BACKENDS: dict[str, Callable[[Any], Sampler]] = {"nutpie": _nutpie, "numpyro": _numpyro}


def _numbers(stats: xr.Dataset) -> xr.Dataset:
    """The sampler statistics that a netCDF file can hold."""
    keep = ["diverging", "energy", "depth", "n_steps", "step_size", "mean_tree_accept"]
    return stats[[name for name in keep if name in stats]].astype(float)


def fast(p: problem.Problem, seed: int, chains: int, draws: int, tune: int) -> Run:
    """The fast engine; its check is the effective number of importance draws."""
    found = laplace.fit(p, chains * draws, seed, rounds=12, enough=300)
    natural = hyper.unpack(p, found.phi[None])
    stats = xr.Dataset({"importance_ess": found.ess, "importance_proposals": found.proposals})
    record = {"engine": "laplace", "importance_ess": found.ess, "proposals": found.proposals,
              "log_evidence": found.log_evidence}  # fmt: skip
    passed = {"importance_ess": found.ess > checks.FAST_LIMITS["importance_ess"]}
    return Run(found.b[None], natural, stats, passed, record)


ENGINES: dict[str, Callable[..., Run]] = {
    "nuts": nuts, "numpyro": partial(nuts, backend="numpyro"), "laplace": fast,
}  # fmt: skip


def choose_model(cells: xr.Dataset, model: str) -> tuple[str, str | None]:
    """The model that can be fitted and a warning where it is not the one asked for."""
    families = np.unique(cells["family"].to_numpy().astype(str))
    if model == "hierarchical" and families.size == 1:
        return "pooled", (
            f"The data hold one family ({families[0]}), which says nothing of the spread between families: "
            "fitted as pooled."
        )
    return model, None


def sample(
    cells: xr.Dataset, law: laws.Law, model: str = "hierarchical", engine: str = "nuts", seed: int = 0,
    chains: int = CHAINS, draws: int = DRAWS, tune: int = TUNE,
) -> xr.DataTree:  # fmt: skip
    """Posterior of `law` given `cells` as a DataTree of design's contract, checks in `attrs["checks"]`.

    Raises `BadInput` for cells that inference cannot use or an unknown model or engine.
    """
    if engine not in ENGINES:
        raise BadInput(f"There is no engine {engine!r}: choose one of {', '.join(ENGINES)}.")
    cells = cells_module.check(cells, law.latent_tokens is not None)
    fitted, warning = choose_model(cells, model)
    warned = [*([warning] if warning else []), *cells_module.warnings_of(cells)]
    p = problem.build(cells, law, fitted)
    # matrices of a few hundred rows: threads inside them cost more than they bring
    with threadpool_limits(1):
        run = ENGINES[engine](p, seed, chains, draws, tune)
    extra = {
        "checks": json.dumps(run.checks), "check_limits": json.dumps(checks.LIMITS | checks.FAST_LIMITS),
        "engine": json.dumps(run.record), "asked_model": model, "warning": " ".join(warned),
    }  # fmt: skip
    tree = posterior.assemble(p, run.b, run.natural, run.stats, seed, extra)
    tree.attrs["diagnosis"] = json.dumps(checks.diagnose(p, tree), allow_nan=False)
    return tree


def summary(tree: xr.DataTree) -> list[str]:
    """The population's law in words, checks first; equal-tailed 90 % intervals."""
    checks = json.loads(tree.attrs["checks"])
    failed = [name for name, good in checks.items() if not good]
    lines = [f"Checks failed: {', '.join(failed)}." if failed else "All checks passed."]
    lines.append(f"Law {tree.attrs['law']}, model {tree.attrs['model']}; mean and equal-tailed 90 % interval:")
    mu = tree["posterior"].to_dataset()["mu"]
    for term in mu["term"].values:
        values = mu.sel(term=term).to_numpy()
        low, high = np.quantile(values, [0.05, 0.95])
        lines.append(f"  {term:<8}{values.mean():8.3f}   {low:.3f} to {high:.3f}")
    return [*lines, *_decay(tree), *_undisclosed(tree)]


def _decay(tree: xr.DataTree) -> list[str]:
    """What the data say of learning-rate decay beside tokens, or that they say nothing."""
    names = [name for name in ("undecayed", "undecayed_slope") if name in tree["posterior"]["covariate_name"]]
    if not names:
        return []
    after, before = (tree[group].to_dataset()["covariate"] for group in ("posterior", "prior"))
    contraction = {name: 1 - float(after.sel(covariate_name=name).var() / before.sel(covariate_name=name).var())
                   for name in names}  # fmt: skip
    if max(contraction.values()) < INFORMED:
        return ["Tokens or learning-rate decay: not identified, these data do not tell the two apart."]
    lines = ["Before the end of learning-rate decay, added to log_k and to beta:"]
    for name in names:
        values = after.sel(covariate_name=name).to_numpy()
        low, high = np.quantile(values, [0.05, 0.95])
        said = "" if contraction[name] >= INFORMED else "   prior: not identified"
        lines.append(f"  {name:<16}{values.mean():8.3f}   {low:.3f} to {high:.3f}{said}")
    return lines


def _undisclosed(tree: xr.DataTree) -> list[str]:
    """Posterior of training tokens that nobody disclosed, in 1e12."""
    sample = tree["posterior"].to_dataset()
    if "undisclosed_tokens" not in sample:
        return []
    lines = ["Undisclosed training tokens, in 1e12, median and equal-tailed 90 % interval:"]
    for name in map(str, sample["undisclosed"].to_numpy()):
        values = sample["undisclosed_tokens"].sel(undisclosed=name).to_numpy() / 1e12
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        lines.append(f"  {name:<24}{middle:6.2f}   {low:.2f} to {high:.2f}")
    return lines
