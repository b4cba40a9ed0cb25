"""What the priors alone imply: draws of QiD from the prior of a law, before any cell is seen."""

import textwrap
from collections.abc import Mapping

import numpy as np

from bayesqid import laws, likelihood
from bayesqid.laws import Covariate, Effect, Law, Term

DRAWS = 20_000
# where deviations in slope and bends of the law are counted from: the middle of the data, which is not there yet;
# about that of the models in the atlas
CENTRE_PARAMS, CENTRE_TOKENS = 7e9, 1e12
# nats per token that a model of 32 000 tokens and a loss of 2 can lose
HEADROOM = float(np.log(32_000) - 2.0)
SMALL = 1e-3
QUANTILES = {"lower90": 0.05, "lower50": 0.25, "median": 0.5, "upper50": 0.75, "upper90": 0.95}
Z90 = 1.6448536269514722


def qid(
    law: Law, columns: Mapping[str, np.ndarray], draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Prior draws of QiD of new checkpoints, new families, and of the unbounded law value over the headroom.

    `columns` are those that `laws.factor` reads, (target,); both results (draw, target), the first in nats per token.
    Each target by itself follows the prior; within a draw they share everything but the scatter. Slopes deviate and
    bends turn about models of 7e9 parameters and 1e12 tokens, as in a fit about the centre of the data.
    """
    rng = np.random.default_rng(seed)

    def normal(scale=1.0):
        return scale * rng.normal(size=(draws, 1))

    def half_normal(scale: float):
        return np.abs(normal(scale))

    lam = law.lam[0] + normal(law.lam[1]) if isinstance(law.lam, tuple) else np.full((draws, 1), float(law.lam))
    targets = len(columns["effective_bits"])
    centred = dict(columns) | {
        "n_params_nonembedding": columns["n_params_nonembedding"] * laws.PIVOT_PARAMS / CENTRE_PARAMS,
        "train_tokens": columns["train_tokens"] * laws.PIVOT_TOKENS / CENTRE_TOKENS,
    }

    def factor(name: str, data) -> np.ndarray:
        return laws.factor(name, data, lam)  # type: ignore[arg-type]

    eta = np.zeros((draws, targets))
    for term in law.terms:
        eta += (term.mean + normal(term.sd)) * factor(term.factor, columns)
        eta += half_normal(term.spread) * normal() * factor(term.factor, centred)
    for covariate in law.covariates:
        eta += (covariate.mean + normal(covariate.sd)) * factor(covariate.factor, centred)
    for effect in law.effects:
        eta += half_normal(effect.spread) * normal() * factor(effect.factor, centred)
    tau = np.broadcast_to(half_normal(law.scatter), eta.shape)
    raw = np.exp(np.minimum(eta + likelihood.draw_scatter(rng, tau, law.tails), 50.0))
    return likelihood.saturate(raw, HEADROOM), raw / HEADROOM


def table(law: Law, columns: Mapping[str, np.ndarray], draws: int = DRAWS, seed: int = 0) -> list[dict]:
    """Per target: median, 50 % and 90 % equal-tailed intervals of QiD, share under 1e-3 and share past saturation.

    Past saturation: the law without a ceiling would lose more than a uniform guess does.
    """
    seen, fullness = qid(law, columns, draws, seed)
    asked = {"params": columns["n_params_nonembedding"], "tokens": columns["train_tokens"],
             "effective_bits": columns["effective_bits"]}  # fmt: skip
    found = {name: np.quantile(seen, q, axis=0) for name, q in QUANTILES.items()}
    found |= {"p_small": (seen < SMALL).mean(axis=0), "p_saturated": (fullness > 1).mean(axis=0)}
    columns_of = asked | found
    return [{name: float(values[number]) for name, values in columns_of.items()} for number in range(seen.shape[1])]


def priors(law: Law, shipped: Law | None = None) -> list[dict]:
    """Each prior with its family, numbers and a sentence; the sentence is None where `shipped` has other numbers.

    A sentence tells the shipped numbers in words: under replaced ones it would be false.
    """
    rows: list[dict] = []

    def words(item: Term | Covariate | Effect, before: tuple) -> str | None:
        return item.sentence if shipped is None or item in before else None

    base = law if shipped is None else shipped
    rows += [{"name": t.name, "kind": "term", "mean": t.mean, "sd": t.sd, "spread": t.spread,
              "sentence": words(t, base.terms)} for t in law.terms]  # fmt: skip
    if isinstance(law.lam, tuple):
        same = law.lam == base.lam
        rows.append({"name": "lam", "kind": "bit scale", "mean": law.lam[0], "sd": law.lam[1],
                     "sentence": "0 is a power law in bits, 1 an exponential" if same else None})  # fmt: skip
    rows += [{"name": c.name, "kind": "covariate", "mean": c.mean, "sd": c.sd, "sentence": words(c, base.covariates)}
             for c in law.covariates]  # fmt: skip
    rows += [{"name": e.name, "kind": "effect", "spread": e.spread, "sentence": words(e, base.effects)}
             for e in law.effects]  # fmt: skip
    rows.append({"name": "scatter", "kind": "scatter", "spread": law.scatter,
                 "sentence": "multiplicative, of single cells, one value per generation"})  # fmt: skip
    return rows


def priors_text(law: Law, rows: list[dict]) -> str:
    """`priors` for a reader of 80 columns."""
    heads = {"term": "Terms, one value per family around a population mean", "bit scale": "Exponent of the bit scale",
             "covariate": "Covariates, shared by all cells", "effect": "Effects, one deviation per level",
             "scatter": "Scatter"}  # fmt: skip
    lines, kind = [f"{law.name}: {law.formula}"], ""
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            lines.append(f"  {heads[kind]}")
        numbers = [f"{row['name']} ~ Normal({row['mean']:g}, {row['sd']:g})"] if "mean" in row else []
        label = "spread" if numbers else f"{row['name']}, spread" if row["kind"] == "effect" else row["name"]
        numbers += [f"{label} ~ HalfNormal({row['spread']:g})"] if "spread" in row else []
        says = row["sentence"] or "set by you; " + in_words(row)
        lines.append(textwrap.fill(f"{', '.join(numbers)}: {says}", 80, initial_indent="    ",
                                   subsequent_indent="      "))  # fmt: skip
    return "\n".join(lines)


def in_words(row: dict) -> str:
    """A replaced prior in numbers that follow from it: its central (equal-tailed) 90 % range."""
    if "mean" not in row:
        return f"the spread is under {1.96 * row['spread']:.2g} (95 %)"
    low, high = row["mean"] - Z90 * row["sd"], row["mean"] + Z90 * row["sd"]
    return f"between {low:.3g} and {high:.3g} (90 %)"


def as_text(rows: list[dict], count, short) -> str:
    """`table` for a terminal of 80 columns; `count` and `short` write a count and a number in few characters."""
    lines = textwrap.wrap(
        "What these priors imply before any data: QiD in nats per token of a new checkpoint of a new family, "
        "equal-tailed intervals; share under 0.001 and share that the law puts past a uniform guess.", 80)  # fmt: skip
    lines += ["", f"{'params':>7}{'tokens':>8}{'bits':>6}{'median':>9}{'50 % interval':>18}{'90 % interval':>18}"
              f"{'<0.001':>7}{'lost':>6}"]  # fmt: skip
    for row in rows:
        inner = f"{short(row['lower50'])} - {short(row['upper50'])}"
        outer = f"{short(row['lower90'])} - {short(row['upper90'])}"
        lines.append(f"{count(row['params']):>7}{count(row['tokens']):>8}{row['bits']:>6.3g}{short(row['median']):>9}"
                     f"{inner:>18}{outer:>18}{row['p_small']:>7.0%}{row['p_saturated']:>6.0%}")  # fmt: skip
    return "\n".join(lines)
