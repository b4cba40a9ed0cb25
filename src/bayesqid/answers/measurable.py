"""What may be measured next: checkpoints of a suite under recipes, as the posterior sees them, and what they cost."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bayesqid import laws, likelihood, methods, recipe
from bayesqid.answers import asking, design, draws
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput
from bayesqid.suite import Checkpoint, Suite

# what hours are counted with: assumptions, not measurements
COST = {
    "start_s": 60.0,  # a checkpoint: connect, read, check and place it
    "bytes_per_parameter": 2.0,
    "bytes_per_s": 2e8,  # download and reading
    "flops": 2e13,  # reached, in float32
    "text_bytes_per_token": 4.0,
    "text_bytes": 2e5,  # where a suite's text cannot be found
    "calibration_windows": 128.0,
}
# passes over the calibration text that a quantizer takes, in units of one forward pass; others take none
PASSES = {"gptq": 4.0, "awq": 24.0}
# sizes are the same if ln N agrees within this
SAME = 0.01
# checkpoints of one run within this factor of tokens count as repeats: their weights share what is particular to them
APART = 1.5
# of checkpoints of one run the law learns as much from one as from another within this of ln D
THIN = 0.1
# standard normal nodes over which what a measurement tells is averaged
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
SHARES = WEIGHTS / WEIGHTS.sum()
TINY = 1e-12


@dataclass(frozen=True)
class Row:
    """Checkpoints of one family, N, D and phase: to a law they are the same, apart from their own deviations."""

    checkpoints: tuple[Checkpoint, ...]

    @property
    def first(self) -> Checkpoint:
        """The one that stands for all."""
        return self.checkpoints[0]


def usable(posterior: Posterior, suite: Suite) -> tuple[list[Row], dict[str, int]]:
    """Rows of a suite that may be measured, and how many checkpoints were left out for what reason."""
    cells = posterior.cells
    names = ("checkpoint", "model", "family", "n_params_nonembedding", "train_tokens")
    fitted = set(zip(*(cells[name].to_numpy().tolist() for name in names), strict=True))
    ids = {name for name, *_ in fitted}
    places: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _, model, family, params, tokens in fitted:
        for key in (("model", str(model)), ("family", str(family).casefold())):
            places.setdefault(key, []).append((math.log(params), math.log(tokens)))

    def repeats(c: Checkpoint) -> bool:
        n, d = math.log(c.n_params_nonembedding), math.log(c.train_tokens)
        # published tables give sizes, not names of checkpoints, and never those of another seed
        keys = [("model", c.model)] if c.seed is not None else [("model", c.model), ("family", c.family.casefold())]
        near = [place for key in keys for place in places.get(key, ())]
        return c.id in ids or any(abs(n - x) < SAME and abs(d - y) < math.log(APART) for x, y in near)

    left_out: Counter[str] = Counter()
    rows: dict[tuple, list[Checkpoint]] = {}
    for c in suite.checkpoints:
        if c.excluded:
            left_out[c.excluded] += 1
        elif c.lr_phase == "unknown":
            # warm-up: the laws know no such phase
            left_out["learning-rate phase unknown"] += 1
        elif repeats(c):
            left_out[f"fitted, or within a factor of {APART} in tokens of one of its run that is"] += 1
        else:
            rows.setdefault((c.family, c.n_params_nonembedding, c.train_tokens, c.lr_phase, c.vocab_size), []).append(c)
    kept = thinned([Row(tuple(members)) for members in rows.values()])
    spared = sum(map(len, rows.values())) - sum(len(row.checkpoints) for row in kept)
    return kept, dict(left_out) | ({"another of its run within 10 % of its tokens": spared} if spared else {})


def thinned(rows: Sequence[Row]) -> list[Row]:
    """Rows that lie further than `THIN` in ln D from the next of the same family, N and phase, the last one kept."""
    out: list[Row] = []
    lowest: dict[tuple, float] = {}
    for row in sorted(rows, key=lambda one: -one.first.train_tokens):
        kind = (row.first.family, row.first.n_params_nonembedding, row.first.lr_phase, row.first.vocab_size)
        place = math.log(row.first.train_tokens)
        if place < lowest.get(kind, math.inf) - THIN:
            lowest[kind] = place
            out.append(row)
    return out


def run_of(c: Checkpoint) -> str:
    """The training run of a checkpoint: hub id or, for folders, model."""
    return c.model if os.path.isabs(c.hub) else c.hub


def runs_of(rows: Sequence[Row]) -> list[str]:
    """Training runs of all rows in the order of `design.Pool.runs`, further seeds last."""
    runs = {run_of(c): c.seed is not None for row in rows for c in row.checkpoints}
    return sorted(runs, key=lambda name: runs[name])


def with_families(posterior: Posterior, names: Sequence[str], seed: int) -> Posterior:
    """The posterior with families that nobody has measured, each drawn from the population, under their names."""
    new = [name for name in dict.fromkeys(names) if name not in posterior.families]
    if not new:
        return posterior
    rng = np.random.default_rng(seed)
    theta = posterior.sample["theta"].transpose("draw", "term", "family")
    drawn = np.stack([draws.family_terms(posterior, None, rng) for _ in new], axis=-1)
    views = [name for name, values in posterior.sample.items() if "family" in values.dims]
    sample = posterior.sample.drop_vars([*views, "family"]).assign(
        theta=(("draw", "term", "family"), np.concatenate([theta.to_numpy(), drawn], axis=-1))
    )
    return replace(posterior, sample=sample.assign_coords(family=[*posterior.families, *new]))


def recipes_of(posterior: Posterior, texts: Sequence[str]) -> list[Target]:
    """Recipes as targets of no particular model; each once, without the baseline."""
    if not texts:
        raise BadInput("No recipe is left to measure: name some, e.g. --candidates rtn-w3,gptq-w4.")
    if len(set(texts)) < len(texts):
        raise BadInput("A recipe of --candidates is named twice: leave one of them out.")
    made = [asking.target_of(text, 0.0, "", family=None, params=1e9, tokens=1e11) for text in texts]
    return [replace(target, method=draws.require_method(posterior, target.method)) for target in made]


def tokens_of(path: str) -> float:
    """Tokens of a text file by its size."""
    place = Path(path)
    size = place.stat().st_size if place.is_file() else COST["text_bytes"]
    return max(size / COST["text_bytes_per_token"], 1.0)


def hours(suite: Suite, rows: Sequence[Row], texts: Sequence[str], flops: float) -> tuple[np.ndarray, np.ndarray]:
    """GPU-hours: of loading a checkpoint with its baseline (row,), and of each recipe at it (row, recipe).

    start + bytes / rate + 2 n T_eval / flops for the baseline, 2 n (T_eval + passes T_cal) / flops for a recipe, n
    all parameters, T tokens of the texts, T_cal at most the calibration windows of the suite's context.
    """
    size = np.array([max(row.first.n_params, row.first.n_params_nonembedding) for row in rows], dtype=float)
    windows = suite.text.calibration_windows or COST["calibration_windows"]
    evaluation = tokens_of(suite.text.evaluation)
    calibration = min(tokens_of(suite.text.calibration), float(windows * suite.text.context))
    passes = np.array([PASSES.get(recipe.parse(text).method, 0.0) for text in texts])
    first = COST["start_s"] + COST["bytes_per_parameter"] * size / COST["bytes_per_s"] + 2 * size * evaluation / flops
    each = 2 * size[:, None] * (evaluation + passes * calibration) / flops
    return first / 3600, each / 3600


def bends(
    posterior: Posterior, rows: Sequence[Row], kinds: Sequence[Target], target: Target
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the law's form may hide: features (row, recipe, j), those of the target (j,), prior variances (j,).

    The bends of the law `curved`, about the centre of the fitted data, where the law lacks them; the exponent of the
    bit scale where the law fixes it.
    """
    law, centre = posterior.law, posterior.tree["constant_data"].to_dataset()
    curved = laws.variant("curved", law.drivers)
    known = {c.name for c in (*law.covariates, *laws.variant("boxcox", law.drivers).covariates)}
    lacking = [c for c in curved.covariates if c.name not in known]
    n = np.array([row.first.n_params_nonembedding for row in rows] + [target.params])
    d = np.array([row.first.train_tokens for row in rows] + [target.tokens])
    at = {axis: float(centre.get(f"overall_{axis}", centre[f"center_{axis}"]).mean()) for axis in ("x_N", "x_D")}
    moved = {"n_params_nonembedding": n * np.exp(-at["x_N"]), "train_tokens": d * np.exp(-at["x_D"])}
    parts = [np.repeat(laws.factor(c.factor, moved, 0.0)[:, None], len(kinds) + 1, axis=1) for c in lacking]
    variances = [c.sd**2 for c in lacking]
    if not isinstance(law.lam, tuple) and isinstance(curved.lam, tuple):
        bits, step = np.array([kind.effective_bits for kind in kinds] + [target.effective_bits]), 1e-3
        slope = (laws.bit_scale(bits, law.lam + step) - laws.bit_scale(bits, law.lam - step)) / (2 * step)
        gamma = float(posterior.sample["mu"].sel(term="gamma").mean())
        parts.append(np.repeat(-gamma * slope[None], len(rows) + 1, axis=0))
        variances.append(curved.lam[1] ** 2)
    stacked = np.stack(parts, axis=-1) if parts else np.zeros((len(rows) + 1, len(kinds) + 1, 0))
    return stacked[:-1, :-1], stacked[-1, -1], np.array(variances)


def noise(
    posterior: Posterior, mean: np.ndarray, variance: np.ndarray, kinds: Sequence[Target], headroom: np.ndarray,
    error: float,
) -> np.ndarray:  # fmt: skip
    """Variance in ln QiD that one measurement adds to the law and its checkpoint, (row, recipe).

    One over the mean of 1 / (tau^2 + (error / J)^2), J = d QiD / d ln QiD, over what ln QiD ~ (mean, variance) may
    turn out to be; a QiD past ten-fold perplexity tells nothing here.
    """
    rng = np.random.default_rng(0)
    scales, weights = likelihood.TAILS[posterior.law.tails]
    generations = [methods.generation(kind.method) for kind in kinds]
    of = {name: float((draws.scatter(posterior, name, rng) ** 2).mean() * (weights @ scales**2))
          for name in dict.fromkeys(generations)}  # fmt: skip
    scatter = np.array([of[name] for name in generations])
    limit, room, spread = likelihood.censoring_point(headroom)[:, None], headroom[:, None], np.sqrt(variance + scatter)
    precision = np.zeros_like(mean)
    for node, share in zip(NODES, SHARES, strict=True):
        v = np.minimum(mean + spread * node, likelihood.HIGHEST)
        slope = np.exp(v - np.exp(v) / room)
        told = 1 / (scatter + (error / np.maximum(slope, TINY)) ** 2)
        precision += share * np.where(v < limit, told, 0.0)
    return 1 / np.maximum(precision, TINY)


def lagrange(x: np.ndarray, nodes: Sequence[float]) -> np.ndarray:
    """Weights (x, node) with which a polynomial's values at the nodes give its value at x."""
    factors = [[(x - other) / (node - other) for other in nodes if other != node] for node in nodes]
    return np.stack([np.prod(of_node, axis=0) for of_node in factors], axis=-1)


def pool(
    posterior: Posterior, suite: Suite, rows: Sequence[Row], texts: Sequence[str], target: Target, error: float,
    flops: float, seed: int,
) -> design.Pool:  # fmt: skip
    """The rows as `design.Pool`; scenarios: the law as fitted and, where it has none of its own, with bends.

    Families of rows and target that are not fitted have to be among `with_families`. In each draw ln QiD is a
    polynomial of degree two at most in ln D, so that two or three values of D stand for all.
    """
    kinds = recipes_of(posterior, texts)
    keys = [(r.first.family, r.first.n_params_nonembedding, r.first.lr_phase, r.first.vocab_size) for r in rows]
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    sizes = {key[1] for key in keys}
    loss, room = ({n: draws.nearest(posterior, n, name) for n in sizes} for name in ("loss16", "headroom"))
    log_d = np.log(np.array([row.first.train_tokens for row in rows], dtype=float))
    middle = float(log_d.mean())
    offsets = (-1.0, 0.0, 1.0) if any(c.factor == "x_D^2" for c in posterior.law.covariates) else (-1.0, 1.0)
    places = [
        replace(kind, family=family, params=float(n), tokens=float(np.exp(middle + offset)), lr_phase=phase,
                eval_dataset="", context=float(suite.text.context), vocab_size=vocab, loss16=loss[n])
        for family, n, phase, vocab in groups for kind in kinds for offset in offsets
    ]  # fmt: skip
    rng = np.random.default_rng(seed)
    eta = draws.log_law(posterior, [*places, target], rng)
    of_target, eta = eta[:, -1], eta[:, :-1].reshape(-1, len(groups), len(kinds), len(offsets))
    # what a source adds is shared by all that is measured in it with one quantizer, and the target is of no source
    names = [f"measured: {suite.name} | {kind.method}" for kind in kinds]
    fitted = [name in posterior.sample["source_method"].values for name in names]
    own = [name for name, there in zip(names, fitted, strict=True) if there]
    if own:
        eta[:, :, fitted] += draws.effects(posterior, "source_method", own, {}, rng)[:, None, :, None]
    new = list(dict.fromkeys(name for name, there in zip(names, fitted, strict=True) if not there))
    shared = np.equal.outer(np.array(names), np.array(new, dtype=str)).astype(float)
    source = np.full(len(new), float((draws.spread_of(posterior, "source_method") ** 2).mean()))
    bent, bent_target, variances = bends(posterior, rows, kinds, target)
    features = np.concatenate([np.broadcast_to(shared, (len(rows), *shared.shape)), bent], axis=-1)
    scenarios = [np.concatenate([source, on * variances]) for on in ((0, 1) if variances.size else (0,))]
    first, each = hours(suite, rows, texts, flops)
    runs = runs_of(rows)
    made = design.Pool(
        eta, np.array([groups[key] for key in keys]), lagrange(log_d - middle, offsets), features,
        np.array([np.isin(runs, [run_of(c) for c in row.checkpoints]) for row in rows]), log_d, of_target,
        np.concatenate([np.zeros(len(new)), bent_target]), np.array(scenarios),
        float((draws.spread_of(posterior, "checkpoint") ** 2).mean()), np.ones((len(rows), len(kinds))), first, each,
    )  # fmt: skip
    variance = np.diagonal(design.start(made, len(scenarios) - 1).rows, axis1=1, axis2=2) + made.shared
    headroom = np.array([room[key[1]] for key in keys])
    return replace(made, noise=noise(posterior, design.means(made), variance, kinds, headroom, error))
