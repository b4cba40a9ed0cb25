"""What tells the effect of tokens from that of learning-rate decay: contrasts in fitted data, and in suites to come."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from bayesqid import cells as cells_module
from bayesqid import laws, methods
from bayesqid.answers import asking, draws, identification
from bayesqid.answers.draws import Posterior
from bayesqid.errors import BadInput
from bayesqid.likelihood import LN10
from bayesqid.suite import Suite

# tokens that differ by less than this factor count as the same
NEAR = 1.25
# share of the peak learning rate above which a checkpoint counts as undecayed
FULL = 0.9
# a family may leave the law's line in ln D at knots this far apart, by as much as decay may matter a priori: what could
# as well be a bend is not put down to decay
KNOTS, BEND = np.log(3), 0.5
BITS = 3.0
NOTHING = 1e-12
POPULATION = "population"
# coefficients of the terms and of the covariates
Direction = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Points:
    """Checkpoints as columns, each of shape (checkpoint,): family, run, N, D and the learning rate left.

    `rate` is the learning rate over the peak of its run: 1 while it is constant, 0 after the end of decay, between the
    two while it falls; NaN where that is not known. `undecayed` is what the law makes of it, 0 or 1.
    """

    family: np.ndarray
    run: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    rate: np.ndarray
    undecayed: np.ndarray

    def at(self, where: np.ndarray) -> "Points":
        """Those of a mask or an index."""
        return Points(*(getattr(self, name)[where] for name in self.__dataclass_fields__))


def rate_left(phase: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Share of the peak learning rate by phase, shape (checkpoint,): 1, 0 or, while it falls, the known fraction."""
    fixed = np.select([phase == "constant", phase == "annealed"], [1.0, 0.0], np.nan)
    return np.where(phase == "decaying", fraction, fixed)


def of_cells(cells: xr.Dataset) -> Points:
    """The checkpoints of some cells whose training tokens are disclosed, each once."""
    known = np.flatnonzero(np.isfinite(cells["train_tokens"].to_numpy()))
    names = cells["checkpoint"].to_numpy().astype(str)[known]
    own = cells.isel(cell=known[np.unique(names, return_index=True)[1]])
    column = {name: own[name].to_numpy() for name in own.coords}
    return _points(column["family"], column["model"], column["n_params_nonembedding"], column["train_tokens"],
                   column["lr_phase"], column["lr_fraction"])  # fmt: skip


def of_suite(suite: Suite) -> Points:
    """The checkpoints of a suite that may be measured, those in warm-up left out."""
    own = [c for c in suite.checkpoints if c.excluded is None and c.train_tokens > 0 and c.lr_phase != "unknown"]
    names = ("family", "model", "n_params_nonembedding", "train_tokens", "lr_phase", "lr_fraction")
    points = _points(*([getattr(c, name) for c in own] for name in names))
    if not np.isfinite(points.rate).any():
        raise BadInput(f"Suite {suite.name} has no checkpoint whose tokens and learning rate are known: name another.")
    return points


def _points(family, run, params, tokens, phase, fraction) -> Points:
    phase = np.asarray(phase, dtype=str)
    return Points(
        np.asarray(family, dtype=str), np.asarray(run, dtype=str), np.asarray(params, dtype=float),
        np.asarray(tokens, dtype=float), rate_left(phase, np.asarray(fraction, dtype=float)),
        laws.factor("undecayed", {"lr_phase": phase}, 0.0),
    )  # fmt: skip


def groups(*columns: np.ndarray) -> np.ndarray:
    """Number of the group of equal values that each row belongs to, shape (row,)."""
    code = np.zeros(len(columns[0]), dtype=int)
    for column in columns:
        # sorting thousands of names, as np.unique does, takes longer than counting them in
        number: dict = {}
        own = np.array([number.setdefault(value, len(number)) for value in column.tolist()], dtype=int)
        code = np.unique(code * max(len(number), 1) + own, return_inverse=True)[1].reshape(-1)
    return code


def state(points: Points) -> np.ndarray:
    """2: undecayed (rate of at least 0.9 of its peak), 0: decay over, 1: in between, -1: not known."""
    known = np.where(points.rate >= FULL, 2, np.where(points.rate == 0, 0, 1))
    return np.where(np.isnan(points.rate), -1, known)


def contrasts(points: Points) -> dict:
    """How often tokens vary at a fixed phase, and the phase at fixed tokens, among models of one family and size.

    `tokens_spans`: sets of one family, size and phase (undecayed or decay over) whose tokens span a factor above 1.25,
    `widest_span` the largest factor; `phase_pairs`: checkpoints at the end of decay with an undecayed one of the same
    family and size at tokens within that factor; `replicates`: checkpoints beside one of another run with the same
    family, size, phase and tokens (1 %): seeds, or another peak learning rate, which tell neither effect but how
    checkpoints scatter.
    """
    phase, x = state(points), np.log(points.tokens)
    spans, widest, pairs = 0, 1.0, 0
    same = groups(points.family, points.params)
    for number in range(same.max(initial=-1) + 1):
        own = same == number
        over, full = (np.sort(x[own & (phase == value)]) for value in (0, 2))
        for one in (over, full):
            if one.size:
                ratio = float(np.exp(one[-1] - one[0]))
                widest, spans = max(widest, ratio), spans + (ratio > NEAR)
        edges = [np.searchsorted(full, over + shift) for shift in (-np.log(NEAR), np.log(NEAR))]
        pairs += int((edges[1] > edges[0]).sum())
    twins = groups(points.family, points.params, phase, np.rint(100 * x))
    runs = groups(points.run)
    first = np.unique(np.stack([twins, runs], axis=1), axis=0)[:, 0]
    several = np.bincount(first, minlength=twins.max(initial=-1) + 1) > 1
    return {"checkpoints": x.size, "sizes": np.unique(points.params).size, "tokens_counts": np.unique(x).size,
            "tokens_spans": int(spans), "widest_span": widest, "phase_pairs": pairs,
            "replicates": int(several[twins].sum())}  # fmt: skip


def inflation(points: Points) -> dict[str, dict]:
    """How far tokens, and the phase, follow from everything else in a design of checkpoints.

    VIF = 1 / (1 - R^2) = SST / SSR of the regression of x_D on x_N, one constant per family and whether the learning
    rate was undecayed (of that on x_D in its turn): the factor by which collinearity multiplies the variance of its
    coefficient (Belsley, Kuh and Welsch 1980). `left_sd` is the root mean square of the residual, `left_between` the
    same without constants per family, so that differences between families count too. VIF is None
    where the column does not vary (`varies`), or nothing is left of it. `within`: share of variance in families.
    """
    x_d, x_n = np.log(points.tokens), np.log(points.params)
    families = [(points.family == name).astype(float) for name in np.unique(points.family)]
    out = {}
    for name, y, other in (("tokens", x_d, points.undecayed), ("decay", points.undecayed, x_d)):
        total, left = y - y.mean(), identification.residual(y, *families, x_n, other)
        inside, between = identification.residual(y, *families), identification.residual(y, x_n, other)
        varies = bool(total @ total > NOTHING)
        remains = varies and left @ left > 1e-9 * (total @ total)
        out[name] = {
            "varies": varies, "vif": float((total @ total) / (left @ left)) if remains else None,
            "left_sd": float(np.sqrt(np.mean(left**2))) if remains else 0.0,
            "left_between": float(np.sqrt(np.mean(between**2))),
            "within": float((inside @ inside) / (total @ total)) if varies else None,
        }  # fmt: skip
    return out


def factors(posterior: Posterior, params, tokens, rate) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the law's terms (point, term) and covariates (point, covariate) at 3 bits, all else as reference.

    The factors of an undecayed learning rate are multiplied by `rate`, which the law takes as 0 or 1.
    """
    count = len(tokens)
    data = {
        "n_params_nonembedding": np.asarray(params, dtype=float), "train_tokens": np.asarray(tokens, dtype=float),
        "effective_bits": np.full(count, BITS), "per_channel": np.zeros(count), "lr_phase": np.full(count, "constant"),
        "eval_dataset": np.full(count, "wikitext2"), "ctx_len": np.full(count, float(laws.REFERENCE_CONTEXT)),
        "vocab_size": np.full(count, laws.PIVOT_VOCABULARY), "loss16": np.full(count, laws.PIVOT_LOSS),
    }  # fmt: skip

    def column(name: str) -> np.ndarray:
        value = np.asarray(laws.factor(name, data, 0.0), dtype=float)
        return value * np.asarray(rate, dtype=float) if name.startswith("undecayed") else value

    terms = np.stack([column(term.factor) for term in posterior.law.terms], axis=1)
    others = [column(covariate.factor) for covariate in posterior.law.covariates]
    return terms, np.stack(others, axis=1) if others else np.empty((count, 0))


def directions(posterior: Posterior, params: float, low: float, high: float) -> dict[str, Direction]:
    """Coefficients of terms and covariates in the two log factors: tokens from `low` to `high`, decay at `high`."""
    terms, others = factors(posterior, [params] * 3, [low, high, high], [0.0, 0.0, 1.0])
    return {"tokens": (terms[1] - terms[0], others[1] - others[0]),
            "decay": (terms[1] - terms[2], others[1] - others[2])}  # fmt: skip


@dataclass(frozen=True)
class Coefficients:
    """Draws of the terms of the population and of every family, (draw, term), and of the covariates."""

    terms: dict[str, np.ndarray]
    covariates: np.ndarray

    def log_factor(self, direction: Direction, family: str = POPULATION) -> np.ndarray:
        """Draws of a log factor (`directions`), shape (draw,)."""
        return self.terms[family] @ direction[0] + self.covariates @ direction[1]


def coefficients(sample: xr.Dataset) -> Coefficients:
    """Those of flat draws, of the posterior or of the prior."""
    terms = {POPULATION: sample["mu"].transpose("draw", "term").to_numpy()}
    theta = sample["theta"].transpose("family", "draw", "term").to_numpy()
    terms |= {str(name): own for name, own in zip(sample["family"].values, theta, strict=True)}
    return Coefficients(terms, sample["covariate"].transpose("draw", "covariate_name").to_numpy())


def thinned(points: Points) -> Points:
    """Of each run and phase the last checkpoint in every factor of 1.25 in tokens: nearer ones deviate alike."""
    place = groups(points.family, points.run, points.params, state(points),
                   np.floor(np.log(points.tokens) / np.log(NEAR)))  # fmt: skip
    order = np.argsort(points.tokens, kind="stable")
    last = np.zeros(place.max(initial=-1) + 1, dtype=int)
    last[place[order]] = order
    return points.at(np.sort(last))


def hats(x: np.ndarray) -> np.ndarray:
    """Linear interpolation between knots at a distance of ln 3 over the range of x, shape (point, knot)."""
    knots = np.arange(x.min(), x.max() + KNOTS, KNOTS)
    return np.clip(1 - np.abs(x[:, None] - knots) / KNOTS, 0, None)


def after_measuring(
    posterior: Posterior, points: Points, params: float, low: float, high: float, seed: int = 1
) -> dict:
    """Variances of the log factors of tokens and decay, and their correlation, if these checkpoints were measured.

    Taken as linear and Gaussian: x, all terms of the checkpoints' families and all covariates, has the covariance S of
    the posterior draws (an unfitted family's terms are drawn from the population). Every checkpoint gives one cell
    at 3 bits under the default method,

        y = H x + B g + e      Var e = tau^2 + s_c^2 + (1e-3 / QiD)^2      g ~ Normal(0, 0.5^2)
        S' = (I + S J)^-1 S    J = [H B]' Var(e)^-1 [H B]

    tau, s_c the posterior medians of scatter and of the checkpoint effect, 1e-3 nats the floor of a standard error,
    QiD that of the mean coefficients. B g lets a family leave the law's line in ln D, at knots a factor of 3 in D apart
    and by the prior's 0.5 of decay itself. Without it a suite in which decay follows from tokens would seem to tell
    them apart by the law's straightness alone. While the rate falls a checkpoint counts as undecayed by the share that
    is left of the peak. Of each run only one checkpoint in every factor of 1.25 in tokens counts, none past ln 10 nats.
    `family` is the one with most checkpoints, whose tokens are spoken of.
    """
    used = thinned(points.at(np.isfinite(points.rate)))
    rng = np.random.default_rng(seed)
    names, counts = np.unique(used.family, return_counts=True)
    of = {str(name): draws.family_terms(posterior, str(name) if name in posterior.families else None, rng)
          for name in names}  # fmt: skip
    known = posterior.sample["covariate"].transpose("draw", "covariate_name").to_numpy()
    sample = np.hstack([*of.values(), known])
    terms, others = factors(posterior, used.params, used.tokens, used.rate)
    inside = (used.family[:, None] == names).astype(float)
    design = np.hstack([*(terms * own[:, None] for own in inside.T), others])
    covariance = np.cov(sample, rowvar=False)
    size, leading = terms.shape[1], str(names[counts.argmax()])
    checkpoint = float(np.median(draws.spread_of(posterior, "checkpoint")))
    method = methods.generation(methods.effect_key(*methods.canonical(asking.DEFAULT_METHOD)))
    tau = float(np.median(draws.scatter(posterior, method, rng)))
    log_qid = design @ sample.mean(axis=0)
    noise = tau**2 + checkpoint**2 + (cells_module.NOISE_FLOOR / np.exp(np.minimum(log_qid, 50.0))) ** 2
    weight = np.where(log_qid < np.log(LN10), 1 / noise, 0.0)
    bends = np.hstack([hats(np.log(used.tokens)) * own[:, None] for own in inside.T])
    whole = np.hstack([design, bends])
    before = np.zeros((whole.shape[1],) * 2)
    before[: len(covariance), : len(covariance)] = covariance
    bent = np.arange(len(covariance), len(before))
    before[bent, bent] = BEND**2
    information = whole.T @ (weight[:, None] * whole)
    after = np.linalg.solve(np.eye(len(before)) + before @ information, before)
    place, rows = list(of).index(leading) * size, {}
    for name, (term, other) in directions(posterior, params, low, high).items():
        row = np.zeros(len(before))
        row[place : place + size], row[len(of) * size : len(covariance)] = term, other
        rows[name] = row
    return {"family": leading, "used": int((weight > 0).sum()),
            "before": _moments(before, rows), "after": _moments(after, rows)}  # fmt: skip


def _moments(covariance: np.ndarray, rows: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    tokens, decay = (float(rows[name] @ covariance @ rows[name]) for name in ("tokens", "decay"))
    both = float(rows["tokens"] @ covariance @ rows["decay"])
    vary = tokens > NOTHING and decay > NOTHING
    return {"tokens": tokens, "decay": decay, "correlation": both / np.sqrt(tokens * decay) if vary else None}
