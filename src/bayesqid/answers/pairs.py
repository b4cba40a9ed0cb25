"""Matched pairs: what decay does to QiD, read off checkpoints that differ in nothing else, whatever the law."""

import math
import textwrap
from dataclasses import dataclass

import numpy as np
import xarray as xr

from bayesqid.answers import draws, separation, wording
from bayesqid.answers.draws import Posterior
from bayesqid.answers.separation import POPULATION, Coefficients
from bayesqid.quantized_share import PLAIN

# tokens that differ by more than this factor make no pair
SAME = 1.01
# nats: recipes whose mean QiD of the two checkpoints is less are left out. The rule is symmetric in the two, so that it
# favours no sign of the effect
FLOOR = 0.02
# pairs below which an answer does not speak of them
FEWEST = 4
# prior sd of the mean log ratio, of its slope in ln D, and of the two half-normal scatters
PRIOR_SD = np.array([0.5, 0.3])
SCATTER_SD = 0.3
# quadrature: scatters on logarithmic grids; 1.4 % of the half-normal prior lies below them and nothing above
TAU, OMEGA = (np.geomspace(5e-3, 1.8, size) for size in (60, 90))
DRAWS = 4000
QUANTILES = {"lower90": 0.05, "median": 0.5, "upper90": 0.95}
CONTRADICTED = "law contradicted"
VERDICTS = {CONTRADICTED: "law contradicted: the law's effect of decay is not that of the matched pairs; believe the "
                          "pairs"}  # fmt: skip
RECIPE = ("quantizer", "variant", "bits", "effective_bits", "group_size", "eval_dataset", "ctx_len", "source")


@dataclass(frozen=True)
class Pairs:
    """Pairs as columns of shape (pair,), and their recipes of shape (recipe,), which point to them by `pair`.

    `log_ratio` is ln(QiD after decay / QiD before) and `se` its standard error.
    """

    family: np.ndarray
    model: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    pair: np.ndarray
    log_ratio: np.ndarray
    se: np.ndarray
    after: np.ndarray
    before: np.ndarray

    def at(self, where: np.ndarray) -> "Pairs":
        """Some of the recipes, by a mask or an index, with the pairs that have any of them."""
        kept, place = np.unique(self.pair[where], return_inverse=True)
        whole = (self.family[kept], self.model[kept], self.params[kept], self.tokens[kept])
        parts = (self.log_ratio[where], self.se[where], self.after[where], self.before[where])
        return Pairs(*whole, place.reshape(-1), *parts)


def ratio(after: np.ndarray, before: np.ndarray, after_se: np.ndarray, before_se: np.ndarray) -> tuple:
    """ln(after / before), its standard error and which count, each of shape (recipe,).

    By the delta method se^2 = (se_a / a)^2 + (se_b / b)^2, as if the two were independent: both are measured on the
    same documents, so it is rather too large. A recipe counts if both are above zero and their mean above `FLOOR`.
    """
    good = (after > 0) & (before > 0) & ((after + before) / 2 > FLOOR)
    a, b = np.where(good, after, 1.0), np.where(good, before, 1.0)
    return np.log(a / b), np.hypot(after_se / a, before_se / b), good


def matched(cells: xr.Dataset) -> Pairs:
    """Checkpoints after decay beside an undecayed one of the same family, run, size and tokens (1 %), recipe by recipe.

    Before and after are those of `separation.state`; the run is `model`, so two seeds, or a cosine and a constant run,
    make no pair. Recipes are paired by quantizer, bits, group, text, context and source, diverged ones left out, and
    count as in `ratio`. `after` and `before` are numbers of cells. Of several undecayed ones the nearest in tokens.
    """
    column = {str(name): cells[name].to_numpy() for name in cells.coords}
    rate = separation.rate_left(column["lr_phase"].astype(str), column["lr_fraction"].astype(float))
    usable = np.isfinite(column["train_tokens"]) & ~cells["censored"].to_numpy()
    decayed, full = (np.flatnonzero(usable & kind).tolist() for kind in (rate == 0, rate >= separation.FULL))
    names = ("family", "model", "n_params_nonembedding", *RECIPE, *(name for name in PLAIN if name in column))
    keys = list(zip(*(column[name].tolist() for name in names), strict=True)) if len(full) and len(decayed) else []
    tokens = column["train_tokens"].astype(float)
    beside: dict[tuple, list[int]] = {}
    for cell in full if keys else ():
        beside.setdefault(keys[cell], []).append(cell)
    found = []
    for cell in decayed if keys else ():
        near = min(beside.get(keys[cell], ()), key=lambda one: abs(math.log(tokens[one] / tokens[cell])), default=None)
        if near is not None and abs(math.log(tokens[near] / tokens[cell])) <= math.log(SAME):
            found.append((cell, near))
    after, before = np.array(found, dtype=int).reshape(-1, 2).T
    qid, se = cells["qid"].to_numpy(), cells["qid_se"].to_numpy()
    y, error, good = ratio(qid[after], qid[before], se[after], se[before])
    after, before = after[good], before[good]
    _, first, place = np.unique(column["checkpoint"][after].astype(str), return_index=True, return_inverse=True)
    own = after[first]
    whole = (column["family"][own], column["model"][own], column["n_params_nonembedding"][own], tokens[own])
    return Pairs(*whole, place.reshape(-1), y[good], error[good], after, before)


@dataclass(frozen=True)
class Fit:
    """Draws of the model of `fit`: coefficients (draw, 2), scatters (draw,), log ratio of each pair (draw, pair)."""

    center: float
    line: np.ndarray
    tau: np.ndarray
    omega: np.ndarray
    pair: np.ndarray

    def at(self, tokens: float) -> np.ndarray:
        """Draws of the mean log ratio at D tokens, m + s (ln D - c), shape (draw,)."""
        return self.line @ np.array([1.0, math.log(tokens) - self.center])


def _design(tokens: np.ndarray) -> tuple[float, np.ndarray]:
    center = float(np.log(tokens).mean())
    return center, np.column_stack([np.ones(len(tokens)), np.log(tokens) - center])


def fit(pairs: Pairs, size: int = DRAWS, seed: int = 0) -> Fit:
    """Draws of how decay moves ln QiD, and of how that depends on tokens, by a model of pairs p and recipes r.

        y_pr = d_p + e_pr      e_pr ~ N(0, se_pr^2 + omega^2)      d_p ~ N(m + s (ln D_p - c), tau^2)
        m ~ N(0, 0.5^2)        s ~ N(0, 0.3^2)                     tau, omega ~ HalfNormal(0.3)

    c is the mean of ln D_p. Recipes of one pair share d_p, so they do not count as many observations of decay.
    (m, s, d) given (tau, omega) are Gaussian, in closed form; (tau, omega) by quadrature. At least one recipe.
    """
    center, x = _design(pairs.tokens)
    y, one_hot = pairs.log_ratio, (pairs.pair[:, None] == np.arange(len(pairs.tokens))).astype(float)
    weight = 1 / (pairs.se**2 + OMEGA[:, None] ** 2)
    known = weight @ one_hot
    mean = (weight * y) @ one_hot / known
    # each pair's recipes are as good as one observation of d_p, its weighted mean, and a constant in (m, s, d, tau)
    within = 0.5 * np.log(weight).sum(1) - 0.5 * np.log(known).sum(1)
    within = within - 0.5 * (weight * (y - mean[:, pairs.pair]) ** 2).sum(1)
    variance = TAU[:, None, None] ** 2 + 1 / known
    scaled = x[..., None] * x[:, None]
    precision = np.einsum("top,pij->toij", 1 / variance, scaled) + np.diag(1 / PRIOR_SD**2)
    covariance = np.linalg.inv(precision)
    pull = np.einsum("top,pi->toi", mean / variance, x)
    best = np.einsum("toij,toj->toi", covariance, pull)
    log_weight = within - 0.5 * (np.log(variance) + mean**2 / variance).sum(2)
    log_weight = log_weight + 0.5 * (pull * best).sum(-1) - 0.5 * np.log(np.linalg.det(precision))
    # nodes are even in the logarithm: the prior's density times the scatter
    for axis in (TAU[:, None], OMEGA):
        log_weight = log_weight + np.log(axis) - 0.5 * (axis / SCATTER_SD) ** 2
    share = np.exp(log_weight - log_weight.max()).reshape(-1)
    rng = np.random.default_rng(seed)
    ladder = (np.arange(size) + rng.uniform()) / size
    node = np.searchsorted(np.cumsum(share / share.sum()), ladder).clip(0, share.size - 1)
    t, o = np.unravel_index(node, log_weight.shape)
    root = np.linalg.cholesky(covariance[t, o])
    line = best[t, o] + np.einsum("nij,nj->ni", root, rng.normal(size=(size, 2)))
    spread = 1 / (known[o] + 1 / TAU[t, None] ** 2)
    pair = spread * (known[o] * mean[o] + line @ x.T / TAU[t, None] ** 2)
    pair = pair + np.sqrt(spread) * rng.normal(size=pair.shape)
    # nodes stand for all scatters that are nearer to them than to the next
    tau, omega = (axis[at] * (axis[1] / axis[0]) ** rng.uniform(-0.5, 0.5, size) for axis, at in ((TAU, t), (OMEGA, o)))
    return Fit(center, line, tau, omega, pair)


def factors(log_factor: np.ndarray) -> dict[str, float]:
    """Median and equal-tailed 90 % interval of exp of draws."""
    return {name: float(np.exp(np.quantile(log_factor, q))) for name, q in QUANTILES.items()}


def tail(posterior: Posterior, pairs: Pairs, fitted: Fit, decay: np.ndarray, tokens: float) -> float:
    """How often the law itself would put the pairs' line as far off its own effect at D `tokens`, two-sided.

    `decay`: draws of its log factor at each pair, (draw, pair). A replicate adds to them what the law lets two
    checkpoints differ by, sqrt(2) times its scatter of checkpoints and of cells, and the recipes' noise. Compared is
    the linear function of the pairs' weighted means that is the mean line at `tokens` given the mean scatters.
    """
    rng = np.random.default_rng(1)
    generation = posterior.cells["generation"].to_numpy().astype(str)[pairs.after]
    tau = {name: draws.scatter(posterior, name, rng) for name in sorted(set(generation))}
    one_hot = (pairs.pair[:, None] == np.arange(len(pairs.tokens))).astype(float)
    weight = 1 / (pairs.se**2 + fitted.omega.mean() ** 2)
    known = weight @ one_hot
    share = (weight / known[pairs.pair])[:, None] * one_hot
    noise = (share**2).T @ (pairs.se**2)
    noise = noise + 2 * sum(np.outer(own**2, (share[generation == name] ** 2).sum(0)) for name, own in tau.items())
    noise = noise + 2 * draws.spread_of(posterior, "checkpoint")[:, None] ** 2
    again = decay + np.sqrt(noise) * rng.normal(size=decay.shape)
    _, x = _design(pairs.tokens)
    scaled = x.T / (fitted.tau.mean() ** 2 + 1 / known)
    line = np.linalg.solve(scaled @ x + np.diag(1 / PRIOR_SD**2), scaled)
    reads = np.array([1.0, math.log(tokens) - fitted.center]) @ line
    above = float((again @ reads > pairs.log_ratio @ share @ reads).mean())
    return 2 * min(above, 1 - above)


def beside_the_law(posterior: Posterior, after: Coefficients, params: float, acts: bool) -> dict | None:
    """What the fitted cells' matched pairs say of decay, and the law of the same; None where they are under four.

    Ratios are QiD after decay over QiD before, at the fewest and the most tokens of the pairs. `contradicted`: at the
    most tokens the equal-tailed 90 % intervals of the two do not overlap. `acts`: whether the law has such an effect.
    """
    pairs = matched(posterior.cells)
    if len(pairs.tokens) < FEWEST:
        return None
    fitted, ends = fit(pairs), (float(pairs.tokens.min()), float(pairs.tokens.max()))

    def of_law(tokens: float) -> np.ndarray:
        return after.log_factor(separation.directions(posterior, params, tokens, tokens)["decay"], POPULATION)

    rows = [{"tokens": tokens, "ratio": factors(fitted.at(tokens)), "raises": float((fitted.at(tokens) > 0).mean()),
             "law": factors(of_law(tokens)) if acts else None} for tokens in ends]  # fmt: skip
    slope = {name: float(np.quantile(fitted.line[:, 1], q)) for name, q in QUANTILES.items()}
    told = {"pairs": len(pairs.tokens), "recipes": len(pairs.pair), "floor": FLOOR, "at": rows, "slope": slope,
            "between_pairs": float(np.median(fitted.tau)), "between_recipes": float(np.median(fitted.omega)),
            "tail": None, "contradicted": False}  # fmt: skip
    if acts:
        decay = np.column_stack([of_law(float(tokens)) for tokens in pairs.tokens])
        told["tail"] = tail(posterior, pairs, fitted, decay, ends[1])
        own, law = rows[-1]["ratio"], rows[-1]["law"]
        told["contradicted"] = own["lower90"] > law["upper90"] or own["upper90"] < law["lower90"]
    return told


def overruled(verdict: str, told: dict | None) -> str:
    """The verdict on a law, unless it was "separated" and the pairs (`beside_the_law`) contradict it."""
    return CONTRADICTED if verdict == "separated" and told is not None and told["contradicted"] else verdict


def lines(told: dict) -> list[str]:
    """The section of `beside_the_law` for a terminal of 80 columns."""
    out = textwrap.wrap(
        f"Matched pairs: {told['pairs']} checkpoints after decay beside an undecayed one of the same run, size and "
        f"tokens, {told['recipes']} recipes of a mean QiD above {told['floor']:g} nats. QiD after decay over QiD "
        "before, medians and equal-tailed 90 % intervals:", 80)  # fmt: skip
    out += ["", f"{'':<24}{'pairs':>21}{'law':>22}{'P(pairs > 1)':>13}"]
    for row in told["at"]:
        law = "-" if row["law"] is None else _span(row["law"])
        out.append(f"{f'decay at {wording.count_text(row["tokens"])} tokens':<24}{_span(row['ratio']):>21}{law:>22}"
                   f"{row['raises']:>13.2f}")  # fmt: skip
    slope = told["slope"]
    says = (f"The log ratio changes by {slope['median']:+.2f} ({slope['lower90']:+.2f} to {slope['upper90']:+.2f}) per "
            f"unit of ln D, varies by {told['between_pairs']:.2f} (sd) between pairs, {told['between_recipes']:.2f} "
            "between recipes of a pair.")  # fmt: skip
    if told["tail"] is not None:
        says += (f" Of data that the law makes up, with its scatter of checkpoints, a share of {told['tail']:.2g} puts "
                 f"the pairs as far off at {wording.count_text(told['at'][-1]['tokens'])} (two-sided).")  # fmt: skip
    if told["contradicted"]:
        says += " The two intervals there do not overlap: believe the pairs."
    return [*out, "", *textwrap.wrap(says, 80)]


def _span(row: dict) -> str:
    return f"{row['median']:.3g} ({row['lower90']:.2g} - {row['upper90']:.2g})"
