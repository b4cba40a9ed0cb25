"""Sample the posterior of a law from cells: by NUTS (the reference) or by the fast engine."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from bayesqid import cells as cells_module
from bayesqid import laws
from bayesqid.errors import BadInput
from bayesqid.inference import checks, hyper, laplace, posterior, problem

CHAINS, DRAWS, TUNE = 4, 800, 500
TARGETS = (0.9, 0.97)


@dataclass(frozen=True)
class Run:
    """Draws with leading (chain, draw): coefficients, natural hyper-parameters, sampler statistics, a record."""

    b: np.ndarray
    natural: hyper.Hyper
    stats: xr.Dataset
    checks: dict[str, bool]
    record: dict


def nuts(p: problem.Problem, seed: int, chains: int, draws: int, tune: int) -> Run:
    """NUTS on the PyMC model through nutpie; one retry with a higher target and twice the draws if a check fails."""
    import nutpie

    from bayesqid.inference import model

    with warnings.catch_warnings():
        # numba notes that the likelihood's wrapper cannot be cached across processes; that costs nothing else
        warnings.simplefilter("ignore")
        compiled = nutpie.compile_pymc_model(model.build(p, model.whiten(p)))
    record: dict = {"engine": "nuts", "tries": []}
    run = None
    for attempt, target in enumerate(TARGETS):
        tree = nutpie.sample(
            compiled, draws=draws * (attempt + 1), tune=tune * (attempt + 1), chains=chains,
            cores=min(chains, os.cpu_count() or 1), seed=seed + attempt, target_accept=target,
            progress_bar=sys.stderr.isatty(), save_warmup=False,
        )  # fmt: skip
        sample, stats = tree["posterior"].to_dataset(), _numbers(tree["sample_stats"].to_dataset())
        free = [name for name in ("sd", "tau", "lam", "b") if name in sample]
        values = checks.worst(sample[free], stats)
        passed = checks.passed(values)
        record["tries"].append({"target_accept": target, "draws": draws * (attempt + 1), "diagnostics": values})
        lam = sample["lam"].to_numpy() if "lam" in sample else np.full(sample["tau"].shape[:2], p.law.lam)
        sd = sample["sd"].to_numpy() if "sd" in sample else np.empty((*lam.shape, 0))
        natural = hyper.Hyper(sd, sample["tau"].to_numpy(), lam)
        run = Run(sample["b"].to_numpy(), natural, stats, passed, record)
        if all(passed.values()):
            break
    assert run is not None
    return run


def _numbers(stats: xr.Dataset) -> xr.Dataset:
    """The sampler statistics that a netCDF file can hold."""
    keep = ["diverging", "energy", "depth", "n_steps", "step_size", "mean_tree_accept"]
    return stats[[name for name in keep if name in stats]].astype(float)


def fast(p: problem.Problem, seed: int, chains: int, draws: int, tune: int) -> Run:
    """The fast engine; its check is the effective number of importance draws."""
    found = laplace.fit(p, chains * draws, seed)
    natural = posterior.natural_of(p, found.phi[None])
    stats = xr.Dataset({"importance_ess": found.ess, "importance_proposals": found.proposals})
    record = {"engine": "laplace", "importance_ess": found.ess, "proposals": found.proposals,
              "log_evidence": found.log_evidence}  # fmt: skip
    passed = {"importance_ess": found.ess > checks.FAST_LIMITS["importance_ess"]}
    return Run(found.b[None], natural, stats, passed, record)


ENGINES: dict[str, Callable[..., Run]] = {"nuts": nuts, "laplace": fast}


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
    fitted, warning = choose_model(cells_module.check(cells), model)
    p = problem.build(cells, law, fitted)
    # matrices of a few hundred rows: threads inside them cost more than they bring
    with threadpool_limits(1):
        run = ENGINES[engine](p, seed, chains, draws, tune)
    extra = {
        "checks": json.dumps(run.checks), "check_limits": json.dumps(checks.LIMITS | checks.FAST_LIMITS),
        "engine": json.dumps(run.record), "asked_model": model, "warning": warning or "",
    }  # fmt: skip
    return posterior.assemble(p, run.b, run.natural, run.stats, seed, extra)


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
    return lines
