"""Level: how many tokens a model was trained on, and whether it is fully trained, inferred from QiDs it shows.

    p(D | QiDs) is proportional to p(D) mean over draws of p(QiDs | D, draw)         (`level_likelihood`)

The likelihood, not the posterior, is averaged over draws. Training level in the sense of Ouyang et al. (arXiv
2411.17691): the QiD that a model shows under low-bit quantization; they call it fully trained where that passes a
threshold. So the level at a width is the latent QiD of this very checkpoint, without error of evaluation, under one
quantizer in groups of 128: v = eta(D) + u + w + tau e as there, jointly in D, draw, u and w. Its scatter e is new
where nobody observed that recipe (band `new`); where somebody did, e is that observation's.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid import likelihood
from bayesqid.answers import asking, draws, level_likelihood, project, record, training_level, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.answers.observed import Observed, checked_prior, is_censored, targets_of
from bayesqid.answers.training_level import Rows
from bayesqid.errors import BadInput

TOKENS_PRIOR = (1e9, 1e16)
GRID, FINER = 401, 10
MOST_DRAWS = 1000
EDGE = 0.01
# fewer draws than this carry the answer only when hardly any expects such QiDs
FEWEST_EFFECTIVE = 50
QUANTITIES = ("tokens", "tokens_per_param")
# values of D less likely than this beside the likeliest are left out of the level where D is conditioned on
UNLIKELY = 1e-5
# project's own sentences speak of a band of QiD
VERDICTS = wording.VERDICTS | {
    "extrapolation": "extrapolation: the 90 % interval or the model leaves the range of the data",
    "not identified": "not identified: the data do not inform the tokens exponent",
}


def trapezoid(x: np.ndarray) -> np.ndarray:
    """Masses of values x of a uniform distribution over their range."""
    mass = np.gradient(x)
    mass[[0, -1]] /= 2
    return mass / mass.sum()


def level(
    posterior: Posterior,
    params: float,
    qids: Sequence[Observed],
    method: str = asking.DEFAULT_METHOD,
    family: str | None = None,
    tokens_prior: tuple[float, float] = TOKENS_PRIOR,
    lr_phase: str | None = None,
    seed: int = project.SEED,
) -> xr.Dataset:
    """Posterior of the training tokens D and of the training level of one model from its QiDs.

    `params`: non-embedding parameters. `method`: quantizer of the QiDs given at bits and of the level. `lr_phase`:
    that of the checkpoint; else the one its file says, else annealed. The prior of D is uniform in ln D between the
    bounds. Quantiles are equal-tailed: of dim `quantity` (tokens and tokens per parameter), and `level_*` of dim
    `level_bits`, the latent QiD in nats per token (`observed`: that very recipe was). `p_fully_trained` (level_bits,
    threshold): the probability that this QiD passes the threshold. `density` is per unit of ln D over dim `tokens`;
    edge masses are those of the outer 1 % of the range of ln D, where the prior alone puts 0.01. `BadInput` for
    observations, bounds, family, phase or method of no use.
    """
    if "beta" not in posterior.law.term_names:
        raise BadInput("This posterior's law has no effect of tokens (--drivers phase): sample one that has.")
    if lr_phase not in (None, *asking.LR_PHASES):
        raise BadInput(f"--lr-phase {lr_phase!r} is not known: choose one of {', '.join(asking.LR_PHASES)}.")
    params = asking.positive("params", params)
    lower, upper = checked_prior(tokens_prior)
    family = None if family is None else draws.require_family(posterior, family)
    phase = {} if lr_phase is None else {"lr_phase": lr_phase}
    # the place of D is taken by every value of the grid later
    targets = targets_of(qids, method, family=family, params=params, tokens=lower, **phase)
    targets = [replace(t, method=draws.require_method(posterior, t.method)) for t in targets]
    asked = training_level.asked_of(targets, draws.require_method(posterior, method))
    picks = np.linspace(0, posterior.size - 1, min(posterior.size, MOST_DRAWS)).round().astype(int)
    few = replace(posterior, sample=posterior.sample.isel(draw=picks))

    log_tokens = np.linspace(math.log(lower), math.log(upper), GRID)
    values, latent = joint(few, [*targets, *asked], qids, log_tokens, seed)
    data = _of_tokens(values, log_tokens, params) | _of_level(latent, few, targets, asked, qids)
    headroom = _headroom(posterior, targets[0])
    data |= {
        "qid": ("observation", np.array([o.qid for o in qids])),
        "qid_se": ("observation", np.array([o.se for o in qids])),
        "censored": ("observation", np.array([o.censored or is_censored(o.qid, headroom) for o in qids])),
    }  # fmt: skip
    coords = {
        "tokens": np.exp(log_tokens), "quantity": list(QUANTITIES), "level_bits": list(training_level.BITS),
        "threshold": list(training_level.THRESHOLDS),
        "bits": ("observation", [float(t.bits or t.effective_bits) for t in targets]),
        "effective_bits": ("observation", [t.effective_bits for t in targets]),
        "method": ("observation", [t.method for t in targets]),
        "per_channel": ("observation", [t.per_channel for t in targets]),
    }  # fmt: skip
    bounds = (float(data["lower90"][1][0]), float(data["upper90"][1][0]))
    beyond = [project.extrapolation(posterior, replace(t, tokens=d)) for t in targets for d in bounds]
    outside = any(row["n_ratio"] > 1 or row["d_ratio"] > 1 or row["p_outside"] for row in beyond)
    told = project.verdict(posterior, [family], outside)
    attrs = record.attrs(posterior, told, assumptions(posterior, targets, headroom)) | {
        "family": family or "new", "params": params, "prior_lower": lower, "prior_upper": upper,
        "method": targets[0].method, "level_method": asked[0].method,
    }  # fmt: skip
    return xr.Dataset(data, coords, attrs)


def joint(
    posterior: Posterior, targets: Sequence[Target], qids: Sequence[Observed], log_tokens: np.ndarray, seed: int
) -> tuple[np.ndarray, list[tuple[Rows, ...]]]:
    """Likelihood (draw, value) at each ln D up to a common factor, and for each recipe asked its latent ln QiD.

    `targets`: those of the QiDs, then the recipes asked. The latent value is told without the QiD of that recipe
    itself, under the prior uniform in ln D (`level_likelihood.mix` puts it in).
    """
    origin = (log_tokens[0] + log_tokens[-1]) / 2
    question = level_likelihood.pose(posterior, targets, math.exp(origin), seed)
    coarse = np.linspace(log_tokens[0], log_tokens[-1], level_likelihood.COARSE)
    parts = level_likelihood.branches(question, log_tokens - origin)
    if len(parts) > 1:
        parts = level_likelihood.branches(question, coarse - origin)
    beliefs = [level_likelihood.believe(question, qids, *part) for part in parts]
    logs = np.concatenate([level_likelihood.log_likelihood(question, one) for one in beliefs], axis=1)
    if logs.max() == -math.inf:
        raise BadInput("No number of tokens in the prior explains these QiDs: check their values and --tokens-prior.")
    logs = np.maximum(logs - logs.max(), level_likelihood.LOWEST)
    priors = [trapezoid(log_tokens)] if len(beliefs) == 1 else [np.array([mass]) for mass in trapezoid(coarse)]
    if len(beliefs) > 1:
        best = logs.max(axis=0)
        likely = np.flatnonzero(best > best.max() + math.log(UNLIKELY))
        beliefs, priors = [beliefs[i] for i in likely], [priors[i] for i in likely]
        position = (log_tokens - log_tokens[0]) / (coarse[1] - coarse[0])
        logs = level_likelihood.read_log(logs, np.broadcast_to(position, (len(logs), position.size)))
    asked = range(len(qids), len(targets))
    own = [training_level.own_of(targets[: len(qids)], targets[number]) for number in asked]
    latent = [training_level.predict(question, one, prior, asked, own)
              for one, prior in zip(beliefs, priors, strict=True)]  # fmt: skip
    return np.exp(logs), list(zip(*latent, strict=True))


def _headroom(posterior: Posterior, target: Target) -> float:
    return target.headroom or draws.nearest_headroom(posterior, target.params)


def _of_tokens(values: np.ndarray, log_tokens: np.ndarray, params: float) -> dict:
    """Variables of the answer that tell of D, from the likelihood (draw, value)."""
    cell = log_tokens[1] - log_tokens[0]
    evidence = np.trapezoid(values, dx=cell, axis=1)
    density = values.mean(axis=0)
    fine = np.linspace(log_tokens[0], log_tokens[-1], (GRID - 1) * FINER + 1)
    finer = np.exp(level_likelihood.read(density[None], ((fine - fine[0]) / cell)[None])[0])
    below = np.concatenate([[0.0], np.cumsum(0.5 * cell / FINER * (finer[1:] + finer[:-1]))])
    density, below = density / below[-1], below / below[-1]
    edge = EDGE * (fine[-1] - fine[0])
    found = {name: math.exp(np.interp(q, below, fine)) for name, q in project.quantile_names("").items()}
    return {name: ("quantity", np.array([value, value / params])) for name, value in found.items()} | {
        "density": ("tokens", density, {"long_name": "posterior density per unit of ln tokens"}),
        "mass_at_lower_edge": float(np.interp(fine[0] + edge, fine, below)),
        "mass_at_upper_edge": 1 - float(np.interp(fine[-1] - edge, fine, below)),
        "effective_draws": float(evidence.sum() ** 2 / (evidence**2).sum()),
    }


def _of_level(
    latent: Sequence[Sequence[Rows]], posterior: Posterior, targets: Sequence[Target], asked: Sequence[Target],
    qids: Sequence[Observed],
) -> dict:  # fmt: skip
    """Variables of the answer that tell of the training level."""
    headroom = _headroom(posterior, asked[0])
    point = np.log(likelihood.unsaturate(np.minimum(training_level.THRESHOLDS, (1 - 1e-9) * headroom), headroom))
    own = [training_level.own_of(targets, one) for one in asked]
    told = [training_level.mix(rows, None if i is None else qids[i], headroom)
            for rows, i in zip(latent, own, strict=True)]  # fmt: skip
    above = np.array([1 - np.interp(point, v, below) for v, below in told])
    out: dict = {"p_fully_trained": (("level_bits", "threshold"), above),
                 "observed": ("level_bits", np.array([i is not None for i in own])),
                 "level_effective_bits": ("level_bits", np.array([t.effective_bits for t in asked]))}  # fmt: skip
    for name, q in project.quantile_names("level_").items():
        raw = np.exp([min(np.interp(q, below, v), likelihood.HIGHEST) for v, below in told])
        out[name] = ("level_bits", likelihood.saturate(raw, headroom), {"units": "nats per token"})
    return out


def assumptions(posterior: Posterior, targets: Sequence[Target], headroom: float) -> dict[str, str]:
    """What the answer takes for granted, in words."""
    first = targets[0]
    where = "as measured" if first.headroom else "the median of the fitted models of this size"
    out = project.assumptions(targets) | {
        "prior": "log-uniform in tokens",
        "source": "a new source: its deviation is shared by all QiDs of one method",
        "headroom": f"{headroom:.3g} nats, {where}",
    }
    if first.source_method in posterior.sample["source_method"].values:
        out["source"] = "the fitted source of these measurements, with its own deviation"
    if first.checkpoint in posterior.sample["checkpoint"].values:
        out["checkpoint"] = "taken as new, though it was fitted: these QiDs count twice"
    return out


def as_json(answer: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract."""
    attrs = record.decoded(answer.attrs)
    names = ("law", "model", "verdict", "interval", "family", "params", "method", "checks", "posterior", "assumptions")
    out: dict = {name: attrs[name] for name in names}
    out["observations"] = [
        {"bits": float(one["bits"]), "effective_bits": float(one["effective_bits"]), "method": one["method"].item(),
         "per_channel": bool(one["per_channel"]), "qid": float(one["qid"]) if np.isfinite(one["qid"]) else None,
         "se": float(one["qid_se"]), "censored": bool(one["censored"])}
        for one in (answer.isel(observation=i) for i in range(answer.sizes["observation"]))
    ]  # fmt: skip
    for quantity in QUANTITIES:
        out[quantity] = {name: float(answer[name].sel(quantity=quantity)) for name in project.quantile_names("")}
    out["training_level"] = [
        {"bits": float(one["level_bits"]), "effective_bits": float(one["level_effective_bits"]),
         "method": attrs["level_method"], "observed": bool(one["observed"])}
        | {name: float(one[f"level_{name}"]) for name in project.quantile_names("")}
        | {f"p_gt_{limit}": float(one["p_fully_trained"].sel(threshold=limit)) for limit in training_level.THRESHOLDS}
        for one in (answer.sel(level_bits=bits) for bits in training_level.BITS)
    ]  # fmt: skip
    edges = {name: float(answer[name]) for name in ("mass_at_lower_edge", "mass_at_upper_edge")}
    out["prior"] = {"lower": attrs["prior_lower"], "upper": attrs["prior_upper"], **edges}
    out["effective_draws"] = float(answer["effective_draws"])
    return out


def as_text(answer: xr.Dataset) -> str:
    """The answer for a terminal of 80 columns, verdict first."""
    out = as_json(answer)
    whose = "of a new family" if out["family"] == "new" else f"of family {out['family']}"
    takes = out["assumptions"]
    lines = [
        *wording.opening(out, VERDICTS),
        *textwrap.wrap(
            f"Training tokens of a model of {wording.count_text(out['params'])} parameters {whose}; equal-tailed; law "
            f"{out['law']}, model {out['model']}; learning rate {takes['lr_phase']}; {takes['text']}.", 80),
        *(textwrap.wrap(f"Checkpoint: {takes['checkpoint']}.", 80) if "checkpoint" in takes else []),
        "",
        f"{'':<18}{'median':>9} {'50 % interval':>18} {'90 % interval':>18}",
    ]  # fmt: skip
    shown = {
        "tokens": wording.count_text,
        "tokens_per_param": lambda value: wording.count_text(value) if value >= 1e5 else f"{value:,.0f}"
        if value >= 100 else f"{value:.3g}",
    }
    for quantity, show in shown.items():
        row = {name: show(value) for name, value in out[quantity].items()}
        inner, outer = f"{row['lower50']} - {row['upper50']}", f"{row['lower90']} - {row['upper90']}"
        lines.append(f"{quantity.replace('_', ' '):<18}{row['median']:>9} {inner:>18} {outer:>18}")
    lines += ["", *_level_lines(out["training_level"]), ""]
    lines.append(f"{'method':<18}{'bits':>6} {'QiD':>8} {'s.e.':>8}")
    for one in out["observations"]:
        note = "  enters as diverged only" if one["censored"] else ""
        value = "" if one["qid"] is None else f"{one['qid']:.4g}"
        lines.append(f"{one['method'][:17]:<18}{one['bits']:>6.3g} {value:>8} {one['se']:>8.3g}{note}")
    prior = out["prior"]
    lines += [
        "",
        f"Prior: log-uniform from {wording.count_text(prior['lower'])} to {wording.count_text(prior['upper'])} tokens; "
        f"posterior mass in its outer 1 %:",
        f"{prior['mass_at_lower_edge']:.2%} at the lower edge, {prior['mass_at_upper_edge']:.2%} at the upper.",
    ]
    if max(prior["mass_at_lower_edge"], prior["mass_at_upper_edge"]) > EDGE:
        lines.append("More than the prior alone puts there: the interval depends on --tokens-prior.")
    if out["effective_draws"] < FEWEST_EFFECTIVE:
        lines.append(f"About {out['effective_draws']:.0f} draws of all carry this answer: take the interval as rough.")
    return "\n".join(lines)


def _level_lines(rows: Sequence[dict]) -> list[str]:
    heads = "".join(f"{f'>{limit}':>6}" for limit in training_level.THRESHOLDS)
    lines = textwrap.wrap(
        f"Training level: this model's QiD under {rows[0]['method']} in groups of 128; fully trained where it passes "
        "a threshold (arXiv 2411.17691), with probability", 80)  # fmt: skip
    lines.append(f"{'bits':<6}{'median':>8} {'50 % interval':>18} {'90 % interval':>18}{heads}")
    for row in rows:
        inner, outer = (f"{wording.short(row[f'lower{m}'])} - {wording.short(row[f'upper{m}'])}" for m in (50, 90))
        chances = "".join(f"{row[f'p_gt_{limit}']:>6.0%}" for limit in training_level.THRESHOLDS)
        mark = " *" if row["observed"] else ""
        name = f"{row['bits']:g}{mark}"
        lines.append(f"{name:<6}{wording.short(row['median']):>8} {inner:>18} {outer:>18}{chances}")
    if any(row["observed"] for row in rows):
        lines.append("* observed: measured at this very recipe")
    return lines
