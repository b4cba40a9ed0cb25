"""How far a projection rests on the priors: other priors and power-scaled ones by reweighting draws."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid import laws
from bayesqid.answers import asking, draws, identification, project, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.answers.reweighting import ALPHAS, k_limit, power_slope, smoothed, weighted_quantile
from bayesqid.errors import BadInput

FACTORS = (0.5, 2.0)
FEWEST = 100
SENSITIVE = 0.05
PERMUTATIONS = 40
DEFAULT = {"params": 70e9, "tokens": 1e14, "bits": 4.0}


def _normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd)


def _half_normal(x, scale):
    return -0.5 * (x / scale) ** 2 - np.log(scale)


def priors(posterior: Posterior) -> dict:
    """The priors in force when the posterior was sampled; `BadInput` for a file that does not say."""
    if "priors" not in posterior.tree.attrs:
        raise BadInput(f"{posterior.path} does not say which priors it was sampled with: sample it again.")
    return json.loads(posterior.tree.attrs["priors"])


def at_centre(posterior: Posterior) -> xr.Dataset:
    """The draws with population means and covariates as their priors hold: bends turning about the centre of the data.

    The file tells them at the pivot: `laws.carried` undone, and a slope of decay in x_D moves the level of decay.
    """
    sample, known = posterior.sample, posterior.tree["constant_data"].to_dataset()
    if "overall_x_D" not in known:
        return sample
    a, d = float(known["overall_x_N"]), float(known["overall_x_D"])
    by_factor = {c.factor: sample["covariate"].sel(covariate_name=c.name).to_numpy() for c in posterior.law.covariates}
    moves = laws.carried(a, d, by_factor)
    mu, theta, covariate = (sample[name].copy(deep=True) for name in ("mu", "theta", "covariate"))
    for term in posterior.law.terms:
        move = xr.DataArray(moves.get(term.factor, 0.0) + np.zeros(posterior.size), dims="draw")
        for values in (mu, theta):
            values.loc[{"term": term.name}] = values.sel(term=term.name) - move
    for own in (c for c in posterior.law.covariates if c.factor == "undecayed" and "undecayed x_D" in by_factor):
        covariate.loc[{"covariate_name": own.name}] += d * by_factor["undecayed x_D"]
    return sample.assign(mu=mu, theta=theta, covariate=covariate)


def log_ratio(posterior: Posterior, term: str, factor: float) -> np.ndarray:
    """ln of new over old prior density of each draw when both scales of a term's prior are multiplied by `factor`.

    Hierarchical: Normal(mean, sd) of the population mean and HalfNormal(spread) of the standard deviation between
    families; pooled: the first only; independent: Normal(mean, sqrt(sd^2 + spread^2)) of each family's value. The
    likelihood and the families given both are unchanged, so that the ratio is exact.
    """
    own, sample, model = priors(posterior)[term], at_centre(posterior), posterior.tree.attrs["model"]
    if model == "independent":
        theta, sd = sample["theta"].sel(term=term).transpose("draw", "family"), np.hypot(own["sd"], own["spread"])
        values = theta.to_numpy()
        return (_normal(values, own["mean"], factor * sd) - _normal(values, own["mean"], sd)).sum(axis=1)
    mu = sample["mu"].sel(term=term).to_numpy()
    out = _normal(mu, own["mean"], factor * own["sd"]) - _normal(mu, own["mean"], own["sd"])
    if model == "hierarchical":
        sd = sample["sd"].sel(term=term).to_numpy()
        out = out + _half_normal(sd, factor * own["spread"]) - _half_normal(sd, own["spread"])
    return out


def reweighted(posterior: Posterior, log_ratios: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Smoothed weights of all draws, the effective number of draws 1 / sum(w^2), and Pareto k.

    The fast engine's draws are resampled: copies of one draw count as one with their weights added.
    """
    tau = posterior.sample["tau"].transpose("draw", "generation").to_numpy()
    _, first, which, copies = np.unique(tau, axis=0, return_index=True, return_inverse=True, return_counts=True)
    if np.ptp(log_ratios) == 0:
        weights, k = copies / copies.sum(), -np.inf
    else:
        weights, k = smoothed(log_ratios[first] + np.log(copies))
    return (weights / copies)[which.ravel()], float(1 / (weights**2).sum()), k


def prior_scale(
    posterior: Posterior, targets: Sequence[Target], term: str, factors: Sequence[float] = FACTORS, band: str = "new"
) -> list[dict]:
    """Median and 90 % equal-tailed interval of each target as fitted (factor 1) and under a rescaled prior of a term.

    Importance weights `log_ratio`, Pareto-smoothed. Where the effective number of draws is below 100 or Pareto k
    above its limit the numbers are None: the draws do not reach what the other prior would allow.
    """
    rows = []
    for factor in (1.0, *factors):
        own = posterior
        if posterior.tree.attrs["model"] == "independent":
            # a new family is drawn from the prior itself, not from anything the weights could mend
            scale = xr.where(posterior.sample["term"] == term, factor, 1.0)
            own = replace(posterior, sample=posterior.sample.assign(sd=posterior.sample["sd"] * scale))
        qid = project.qid_draws(own, targets, band)[0]
        weights, effective, k = reweighted(posterior, log_ratio(posterior, term, factor))
        good = factor == 1.0 or (effective >= FEWEST and k <= k_limit(weights.size))
        for number, target in enumerate(targets):
            bounds = {"lower90": 0.05, "median": 0.5, "upper90": 0.95}
            rows.append({
                "family": target.family or "new", "params": target.params, "tokens": target.tokens,
                "bits": float(target.bits or target.effective_bits), "term": term, "factor": factor,
                **{name: weighted_quantile(qid[:, number], weights, q) if good else None for name, q in bounds.items()},
                "effective": effective, "pareto_k": k if np.isfinite(k) else None,
            })  # fmt: skip
    return rows


def log_hyper_prior(posterior: Posterior) -> np.ndarray:
    """ln density (up to a constant) of the priors that the user sets, of each draw, shape (draw,).

    Population means, standard deviations between families, covariates, spreads, scatters and lam. What is drawn
    given these - families, effects - is no prior in this sense: scaling it too would scale the model.
    """
    known, sample, model = priors(posterior), at_centre(posterior), posterior.tree.attrs["model"]
    out = np.zeros(posterior.size)
    for term in posterior.law.term_names:
        own = known[term]
        if model == "independent":
            theta = sample["theta"].sel(term=term).transpose("draw", "family").to_numpy()
            out = out + _normal(theta, own["mean"], np.hypot(own["sd"], own["spread"])).sum(axis=1)
            continue
        out = out + _normal(sample["mu"].sel(term=term).to_numpy(), own["mean"], own["sd"])
        if model == "hierarchical":
            out = out + _half_normal(sample["sd"].sel(term=term).to_numpy(), own["spread"])
    for covariate in posterior.law.covariates:
        value = sample["covariate"].sel(covariate_name=covariate.name).to_numpy()
        out = out + _normal(value, known[covariate.name]["mean"], known[covariate.name]["sd"])
    for effect in posterior.law.effects:
        out = out + _half_normal(sample["spread"].sel(effect=effect.name).to_numpy(), known[effect.name]["spread"])
    tau = sample["tau"].transpose("draw", "generation").to_numpy()
    out = out + _half_normal(tau, known["scatter"]["spread"]).sum(axis=1)
    if "lam" in known:
        out = out + _normal(sample["lam"].to_numpy(), known["lam"]["mean"], known["lam"]["sd"])
    return out


def log_likelihood(posterior: Posterior) -> np.ndarray | None:
    """ln likelihood of all cells of each draw, scatter integrated out; None in a file without that group."""
    if "log_likelihood" not in posterior.tree.children:
        return None
    return draws.flatten(posterior.tree["log_likelihood"].to_dataset())["qid"].sum("cell").to_numpy()


def power_scaling(posterior: Posterior, targets: Sequence[Target], band: str = "new") -> list[dict]:
    """Sensitivity of ln QiD of each target to power-scaling the priors and the likelihood (Kallioinen et al. 2024).

    Above 0.05 the projection moves with that part. `..._noise` is what draws in no relation to the target give (95 %
    of permutations): a value is flagged only above both. None for the likelihood where the file does not hold it.
    """
    if band == "observed":
        raise BadInput("Sensitivity is told for the bands mean and new: the evaluation error rests on no prior.")
    rng = np.random.default_rng(project.SEED)
    values = np.log(project.qid_draws(posterior, targets, band)[0])
    parts = {"prior": log_hyper_prior(posterior), "likelihood": log_likelihood(posterior)}
    rows = []
    for number, target in enumerate(targets):
        row: dict = {"family": target.family or "new", "params": target.params, "tokens": target.tokens,
                     "bits": float(target.bits or target.effective_bits)}  # fmt: skip
        for name, density in parts.items():
            if density is None:
                row |= {name: None, f"{name}_noise": None, f"{name}_sensitive": None}
                continue
            found = power_slope(values[:, number], density)
            chance = [power_slope(values[:, number], rng.permutation(density)) for _ in range(PERMUTATIONS)]
            noise = float(np.quantile(chance, 0.95))
            row |= {name: found, f"{name}_noise": noise, f"{name}_sensitive": found > max(SENSITIVE, noise)}
        rows.append(row)
    return rows


def default_targets(posterior: Posterior, params: float, tokens: float, bits: float) -> list[Target]:
    """One size, tokens and bits under the default method for a new family and for every fitted one."""
    method = draws.require_method(posterior, asking.DEFAULT_METHOD)
    if posterior.law.features:
        return [draws.typical(posterior, family, method) for family in (None, *posterior.families)]
    return [asking.target_of(None, bits, method, family=family, params=asking.positive("params", params),
                              tokens=asking.positive("tokens", tokens))
            for family in (None, *posterior.families)]  # fmt: skip


def answer(posterior: Posterior, targets: Sequence[Target] | None = None, band: str = "new") -> dict:
    """Everything of this module for some targets (default: 70B, 4 bits, 100T, new and fitted families), JSON-able."""
    targets = default_targets(posterior, **DEFAULT) if targets is None else targets
    term = identification.tokens_term(posterior)
    return {
        "band": band, "interval": "eti", "fewest_effective": FEWEST, "pareto_k_limit": k_limit(posterior.size),
        "prior_scale": [] if term is None else prior_scale(posterior, targets, term, band=band),
        "power_scaling": power_scaling(posterior, targets, band), "alphas": list(ALPHAS), "threshold": SENSITIVE,
        "likelihood": "in this file" if "log_likelihood" in posterior.tree.children else "not in this file",
    }  # fmt: skip


def as_text(found: dict) -> str:
    """`answer` as two tables of at most 80 columns."""
    lines: list[str] = []
    names = {1.0: "as fitted", 0.5: "halved", 2.0: "doubled"}
    if found["prior_scale"]:
        first = found["prior_scale"][0]
        lines += textwrap.wrap(
            f"QiD at {wording.count_text(first['params'])} parameters, {wording.count_text(first['tokens'])} tokens "
            f"and {first['bits']:.3g} bits, band {found['band']!r}, equal-tailed, when both scales of the prior of "
            f"{first['term']} change; by reweighting, nothing is sampled again.", 80)  # fmt: skip
        lines += ["", f"{'family':<12}{'prior scales':<14}{'median':>8}{'90 % interval':>20}{'eff. draws':>12}{'k':>7}"]
        for family in dict.fromkeys(row["family"] for row in found["prior_scale"]):
            for row in (r for r in found["prior_scale"] if r["family"] == family):
                lost = row["median"] is None
                middle = "-" if lost else wording.short(row["median"])
                span = "too few draws" if lost else f"{wording.short(row['lower90'])} - {wording.short(row['upper90'])}"
                k = "" if row["pareto_k"] is None else f"{row['pareto_k']:.2f}"
                lines.append(f"{family[:11] if row['factor'] == 1.0 else '':<12}"
                             f"{names.get(row['factor'], str(row['factor'])):<14}{middle:>8}{span:>20}"
                             f"{row['effective']:>12.0f}{k:>7}".rstrip())  # fmt: skip
        lines.append("")
    lines += textwrap.wrap(
        f"Power-scaling sensitivity of ln QiD; above {found['threshold']:g} and above noise the band moves with that "
        f"part (*). The likelihood is {found['likelihood']}.", 80)  # fmt: skip
    lines += ["", f"{'family':<12}{'prior':>10}{'noise':>8}{'likelihood':>14}{'noise':>8}"]
    for row in found["power_scaling"]:
        cells = [(_starred(row, part), "" if row[f"{part}_noise"] is None else f"{row[f'{part}_noise']:.2f}")
                 for part in ("prior", "likelihood")]  # fmt: skip
        lines.append(f"{row['family'][:11]:<12}{cells[0][0]:>10}{cells[0][1]:>8}{cells[1][0]:>14}{cells[1][1]:>8}".rstrip())
    return "\n".join(lines)


def _starred(row: dict, part: str) -> str:
    return "-" if row[part] is None else f"{row[part]:.2f}" + ("*" if row[f"{part}_sensitive"] else " ")
