"""Level: how many tokens a model was trained on, inferred from the QiD it shows at one or more recipes.

For each posterior draw the law's ln QiD is linear in ln D, so the data see D only through the shift
t = beta (ln D - ln D_0). With u the deviation of the checkpoint and w_m that of method m in a new source,

    p(data | D, draw) = integral N(u; 0, sd_u) prod_m integral N(w_m; 0, sd_w) G_m(t + u + w_m),
    G_m(t) = prod over QiDs i of method m of p(y_i | eta_i + t, tau_i)      (`likelihood.marginal`)

Both integrals are convolutions on one grid of t, exact to the spacing of that grid; a rule with few fixed nodes
would leave gaps between them where tau is smaller than sd_u. The likelihood, not the posterior, is averaged over draws.
"""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from bayesqid import likelihood, methods
from bayesqid.answers import asking, draws, project, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

TOKENS_PRIOR = (1e9, 1e16)
GRID, FINER = 401, 10
MOST_DRAWS = 1000
# points of the shift grid per standard deviation of what the data say about the shift
POINTS_PER_SD = 2
FEWEST_POINTS, MOST_POINTS = 129, 1025
# standard deviations at which the normal density of a shared deviation is cut off
REACH = 5.0
EDGE = 0.01
# stands for a likelihood of zero where its logarithm is taken
SMALLEST = 1e-290
# fewer draws than this carry the answer only when hardly any expects such QiDs
FEWEST_EFFECTIVE = 50
QUANTITIES = ("tokens", "tokens_per_param")
# project's own sentences speak of a band of QiD
VERDICTS = wording.VERDICTS | {
    "extrapolation": "extrapolation: the 90 % interval or the model leaves the range of the data",
    "not identified": "not identified: the data do not inform the tokens exponent",
}


@dataclass(frozen=True)
class Observed:
    """One measured QiD in nats per token with its standard error, at bits or at a recipe in text form."""

    bits: float | str
    qid: float
    se: float


def _float(text: str) -> float | None:
    """The number that a text holds, None where it holds none."""
    try:
        return float(text)
    except ValueError:
        return None


def parse_qid(text: str) -> Observed:
    """Read `BITS=QID:SE` or `RECIPE=QID:SE`, e.g. `4=0.05:0.004`; `BadInput` says what is wrong with it."""
    where, _, values = text.partition("=")
    qid, se = map(_float, values.partition(":")[::2])
    if not where or qid is None or se is None:
        raise BadInput(f"--qid {text!r} is malformed: write BITS=QID:SE in nats per token, e.g. --qid 4=0.05:0.004.")
    bits = _float(where)
    return checked(Observed(where if bits is None else bits, qid, se))


def checked(observed: Observed) -> Observed:
    """The same observation if its numbers can be used, else `BadInput`."""
    if not (math.isfinite(observed.qid) and -1 <= observed.qid <= 100):
        raise BadInput(f"The QiD at {observed.bits} is {observed.qid:g}: give nats per token between -1 and 100.")
    if not (math.isfinite(observed.se) and 0 < observed.se <= 10):
        raise BadInput(f"The standard error at {observed.bits} is {observed.se:g}: give one above 0 and up to 10 nats.")
    return observed


def parse_tokens_prior(text: str) -> tuple[float, float]:
    """Read `LOW:HIGH`, e.g. `1e9:1e16`; `BadInput` says what is wrong with it."""
    low, high = map(_float, text.partition(":")[::2])
    if low is None or high is None:
        raise BadInput(f"--tokens-prior {text!r} is malformed: write LOW:HIGH, e.g. --tokens-prior 1e9:1e16.")
    return checked_prior((low, high))


def checked_prior(bounds: tuple[float, float]) -> tuple[float, float]:
    """The same bounds of the prior of D if they can be used, else `BadInput`."""
    smallest, largest = asking.LIMITS["tokens"]
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and smallest <= low < high <= largest):
        raise BadInput(
            f"--tokens-prior runs from {low:g} to {high:g}: give two rising numbers from {smallest:g} to {largest:g}."
        )
    return float(low), float(high)


def targets_of(qids: Sequence[Observed], method: str, **model) -> list[Target]:
    """The target of every observation; `BadInput` when there is none or one recipe occurs twice."""
    if not qids:
        raise BadInput("No QiD is given: add at least one, e.g. --qid 4=0.05:0.004.")
    targets = []
    for one in map(checked, qids):
        text, bits = (one.bits, 4.0) if isinstance(one.bits, str) else (None, float(one.bits))
        targets.append(asking.target_of(text, bits, method, **model))
    keys = [(t.method, t.effective_bits, t.per_channel) for t in targets]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise BadInput(f"The QiD at {qids[number].bits} is given twice: give one value with its standard error.")
    return targets


def smooth(values: np.ndarray, step: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Rows (draw, point), spaced `step` (draw,) apart, each convolved with Normal(0, sd) (draw,)."""
    reach = min(math.ceil(REACH * np.max(sd / step)), values.shape[1] - 1)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets * (step / np.maximum(sd, 1e-9))[:, None]) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    padded = np.pad(values, ((0, 0), (reach, reach)), mode="edge")
    out = np.zeros_like(values)
    for number in range(offsets.size):
        out += weights[:, number, None] * padded[:, number : number + values.shape[1]]
    return out


def interpolate(values: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Rows (draw, point) read at fractional positions (draw, any): cubic in the log, so exact for a normal density."""
    logs = np.log(np.maximum(values, SMALLEST))
    left = np.clip(position.astype(int), 1, values.shape[1] - 3)
    x, row = position - left, np.arange(len(values))[:, None]
    before, here, after, later = (logs[row, left + shift] for shift in (-1, 0, 1, 2))
    return np.exp(
        -x * (x - 1) * (x - 2) / 6 * before + (x + 1) * (x - 1) * (x - 2) / 2 * here
        - (x + 1) * x * (x - 2) / 2 * after + (x + 1) * x * (x - 1) / 6 * later
    )  # fmt: skip


def is_censored(qid: float, headroom: float) -> bool:
    """Whether a QiD says only that the model diverged: past ten-fold perplexity or past a uniform guess."""
    return qid > likelihood.LN10 or qid >= headroom


def log_density(one: Observed, eta: np.ndarray, tau: np.ndarray, headroom: float, tails: str) -> np.ndarray:
    """Log density of one QiD at law values `eta` (draw, point) with scatter `tau` (draw,), scatter integrated out."""
    scales, shares = likelihood.TAILS[tails]
    parts = [np.log(share) + _normal_density(one, eta, scale * tau, headroom)
             for scale, share in zip(scales, shares, strict=True)]  # fmt: skip
    return parts[0] if len(parts) == 1 else np.logaddexp.reduce(parts, axis=0)


def _normal_density(one: Observed, eta: np.ndarray, tau: np.ndarray, headroom: float) -> np.ndarray:
    if is_censored(one.qid, headroom):
        z = (eta - likelihood.censoring_point(headroom)) / tau[:, None]
        # log Phi is a loop over scalars, and its second derivative lies between -1 and 0: read it off knots instead
        knots = np.linspace(z.min(), z.max(), 4001)
        return np.interp(z, knots, likelihood.log_normal_cdf(knots))
    anchor, precision = likelihood.anchors(one.qid, one.se, headroom)
    return likelihood.marginal(one.qid, one.se, headroom, anchor, precision, eta, tau[:, None])[0]


def likelihood_of_tokens(
    posterior: Posterior, targets: Sequence[Target], qids: Sequence[Observed], tokens: np.ndarray, seed: int
) -> np.ndarray:
    """Likelihood of each draw at each of `tokens`, shape (draw, token), up to one common factor."""
    rng = np.random.default_rng(seed)
    origin = float(np.sqrt(tokens[0] * tokens[-1]))
    here = [replace(t, tokens=origin) for t in targets]
    eta = draws.log_law(posterior, [*here, replace(here[0], tokens=origin * math.e)], rng)
    # one step of ln D shows the exponent of this family in every draw, whatever the law calls it
    eta, slope = eta[:, :-1], eta[:, -1] - eta[:, 0]
    headroom = draws.nearest_headroom(posterior, targets[0].params)
    generations = [methods.generation(t.method) for t in targets]
    scatters = {name: draws.scatter(posterior, name, rng) for name in dict.fromkeys(generations)}
    tau = np.stack([scatters[name] for name in generations], axis=1)
    checkpoint, source = (draws.spread_of(posterior, by) for by in ("checkpoint", "source_method"))

    shift = slope[:, None] * np.log(tokens / origin)
    margin = REACH * (checkpoint + source)
    low = shift.min(axis=1) - margin
    span = np.maximum(shift.max(axis=1) + margin - low, 1e-6)
    wanted = POINTS_PER_SD * math.sqrt(len(qids)) * np.median(span / tau.min(axis=1))
    points = int(np.clip(math.ceil(wanted), FEWEST_POINTS, MOST_POINTS))
    step = span / (points - 1)
    grid = low[:, None] + step[:, None] * np.arange(points)

    together, level = np.ones_like(grid), np.zeros(len(grid))
    for method in dict.fromkeys(t.method for t in targets):
        own = [i for i, t in enumerate(targets) if t.method == method]
        logs = np.zeros_like(grid)
        for i in own:
            logs += log_density(qids[i], eta[:, i, None] + grid, tau[:, i], headroom, posterior.law.tails)
        top = logs.max(axis=1)
        together = together * smooth(np.exp(logs - top[:, None]), step, source)
        level = level + top
    together = smooth(together, step, checkpoint)

    values = interpolate(together, (shift - low[:, None]) / step[:, None])
    return values * np.exp(level - level.max())[:, None]


def level(
    posterior: Posterior,
    params: float,
    qids: Sequence[Observed],
    method: str = asking.DEFAULT_METHOD,
    family: str | None = None,
    tokens_prior: tuple[float, float] = TOKENS_PRIOR,
    seed: int = project.SEED,
) -> xr.Dataset:
    """Posterior of the training tokens D of one model of `params` non-embedding parameters from its QiDs.

    The prior of D is uniform in ln D between the bounds. Quantiles are equal-tailed, over dim `quantity` (tokens and
    tokens per parameter); `density` is per unit of ln D over dim `tokens`; edge masses are those of the outer 1 % of
    the range of ln D, where the prior alone puts 0.01. `BadInput` for observations, bounds, family or method of no use.
    """
    if "beta" not in posterior.law.term_names:
        raise BadInput("This posterior's law has no effect of tokens (--drivers phase): sample one that has.")
    params = asking.positive("params", params)
    lower, upper = checked_prior(tokens_prior)
    family = None if family is None else draws.require_family(posterior, family)
    # the place of D is taken by every value of the grid later
    targets = targets_of(qids, method, family=family, params=params, tokens=lower)
    targets = [replace(t, method=draws.require_method(posterior, t.method)) for t in targets]
    picks = np.linspace(0, posterior.size - 1, min(posterior.size, MOST_DRAWS)).round().astype(int)
    few = replace(posterior, sample=posterior.sample.isel(draw=picks))

    log_tokens = np.linspace(math.log(lower), math.log(upper), GRID)
    tokens = np.exp(log_tokens)
    values = likelihood_of_tokens(few, targets, qids, tokens, seed)
    cell = log_tokens[1] - log_tokens[0]
    evidence = np.trapezoid(values, dx=cell, axis=1)
    if not values.max() > SMALLEST:
        raise BadInput("No number of tokens in the prior explains these QiDs: check their values and --tokens-prior.")
    density = values.mean(axis=0)
    fine = np.linspace(log_tokens[0], log_tokens[-1], (GRID - 1) * FINER + 1)
    finer = interpolate(density[None], ((fine - fine[0]) / cell)[None])[0]
    below = np.concatenate([[0.0], np.cumsum(0.5 * cell / FINER * (finer[1:] + finer[:-1]))])
    density, below = density / below[-1], below / below[-1]
    edge = EDGE * (fine[-1] - fine[0])

    def quantile(q: float) -> np.ndarray:
        found = math.exp(np.interp(q, below, fine))
        return np.array([found, found / params])

    data: dict = {name: ("quantity", quantile(q)) for name, q in project.quantile_names("").items()}
    data["density"] = ("tokens", density, {"long_name": "posterior density per unit of ln tokens"})
    data["mass_at_lower_edge"] = float(np.interp(fine[0] + edge, fine, below))
    data["mass_at_upper_edge"] = 1 - float(np.interp(fine[-1] - edge, fine, below))
    data["effective_draws"] = float(evidence.sum() ** 2 / (evidence**2).sum())
    headroom = draws.nearest_headroom(posterior, params)
    data |= {
        "qid": ("observation", np.array([o.qid for o in qids])),
        "qid_se": ("observation", np.array([o.se for o in qids])),
        "censored": ("observation", np.array([is_censored(o.qid, headroom) for o in qids])),
    }  # fmt: skip
    coords = {
        "tokens": tokens, "quantity": list(QUANTITIES),
        "bits": ("observation", [float(t.bits or t.effective_bits) for t in targets]),
        "effective_bits": ("observation", [t.effective_bits for t in targets]),
        "method": ("observation", [t.method for t in targets]),
        "per_channel": ("observation", [t.per_channel for t in targets]),
    }  # fmt: skip
    bounds = (float(data["lower90"][1][0]), float(data["upper90"][1][0]))
    beyond = [project.extrapolation(posterior, replace(t, tokens=d)) for t in targets for d in bounds]
    outside = any(row["n_ratio"] > 1 or row["d_ratio"] > 1 or row["p_outside"] for row in beyond)
    attrs = {
        "law": posterior.tree.attrs["law"], "model": posterior.tree.attrs["model"], "interval": "eti",
        "verdict": project.verdict(posterior, [family], outside), "checks": json.dumps(posterior.checks),
        "family": family or "new", "params": params, "prior_lower": lower, "prior_upper": upper,
        "method": targets[0].method, "assumptions": json.dumps(assumptions(targets, headroom)),
        "posterior": json.dumps({"path": posterior.path, "sha256": posterior.sha256, "origin": posterior.origin}),
    }  # fmt: skip
    return xr.Dataset(data, coords, attrs)


def assumptions(targets: Sequence[Target], headroom: float) -> dict[str, str]:
    """What the answer takes for granted, in words."""
    return project.assumptions(targets) | {
        "prior": "log-uniform in tokens",
        "source": "a new source: its deviation is shared by all QiDs of one method",
        "headroom": f"{headroom:.3g} nats, the median of the fitted models of this size",
    }


def as_json(answer: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract."""
    attrs = answer.attrs
    out = {name: attrs[name] for name in ("law", "model", "verdict", "interval", "family", "params", "method")}
    out |= {name: json.loads(attrs[name]) for name in ("checks", "posterior", "assumptions")}
    out["observations"] = [
        {"bits": float(one["bits"]), "effective_bits": float(one["effective_bits"]), "method": one["method"].item(),
         "per_channel": bool(one["per_channel"]), "qid": float(one["qid"]), "se": float(one["qid_se"]),
         "censored": bool(one["censored"])}
        for one in (answer.isel(observation=i) for i in range(answer.sizes["observation"]))
    ]  # fmt: skip
    for quantity in QUANTITIES:
        out[quantity] = {name: float(answer[name].sel(quantity=quantity)) for name in project.quantile_names("")}
    edges = {name: float(answer[name]) for name in ("mass_at_lower_edge", "mass_at_upper_edge")}
    out["prior"] = {"lower": attrs["prior_lower"], "upper": attrs["prior_upper"], **edges}
    out["effective_draws"] = float(answer["effective_draws"])
    return out


def as_text(answer: xr.Dataset) -> str:
    """The answer for a terminal of 80 columns, verdict first."""
    out = as_json(answer)
    failed = [name for name, good in out["checks"].items() if not good]
    lines = [f"Checks failed: {', '.join(failed)}."] if failed else []
    whose = "of a new family" if out["family"] == "new" else f"of family {out['family']}"
    lines += [
        textwrap.fill(f"Verdict: {VERDICTS[out['verdict']]}.", 80),
        f"Training tokens of a model of {wording.count_text(out['params'])} parameters {whose};",
        f"equal-tailed; law {out['law']}, model {out['model']}; learning rate {out['assumptions']['lr_phase']};",
        f"{out['assumptions']['text']}.",
        "",
        f"{'':<18}{'median':>9} {'50 % interval':>18} {'90 % interval':>18}",
    ]
    shown = {
        "tokens": wording.count_text,
        "tokens_per_param": lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
    }
    for quantity, show in shown.items():
        row = {name: show(value) for name, value in out[quantity].items()}
        inner, outer = f"{row['lower50']} - {row['upper50']}", f"{row['lower90']} - {row['upper90']}"
        lines.append(f"{quantity.replace('_', ' '):<18}{row['median']:>9} {inner:>18} {outer:>18}")
    lines += ["", f"{'method':<18}{'bits':>6} {'QiD':>8} {'s.e.':>8}"]
    for one in out["observations"]:
        note = "  enters as diverged only" if one["censored"] else ""
        lines.append(f"{one['method'][:17]:<18}{one['bits']:>6.3g} {one['qid']:>8.4g} {one['se']:>8.3g}{note}")
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
