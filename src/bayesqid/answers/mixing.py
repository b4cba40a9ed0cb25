"""The line ln QiD = A + K ln Qr of the law `mixed`, its inverse, and what Cao et al. 2024 say of it.

Qr is the share of the weights of all linear layers that is quantized. With A = ln QiD at Qr = 1 and K its exponent of
Qr, both of a posterior draw,

    largest Qr = min(1, exp((ln raw(T) - A) / K)),   T = ln(1 + rise),   raw = `likelihood.unsaturate`

where K > 0; where K <= 0 leaving weights out does not help, and the largest Qr is 1 or, beyond the tolerance, 0.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from bayesqid import bundled, laws
from bayesqid import quantized_share as part
from bayesqid.answers import draws, project
from bayesqid.answers.draws import Posterior, Target

# factors by which a law tells recipes that quantize a part from those that quantize all
FACTORS = (*part.FACTORS, "x_N ln Qr")
# where the paper's claims are tested: share, parameters, blocks
SHARE, SIZES, BLOCKS = 0.9, (7e9, 7e10), (16.0, 64.0)


def published() -> dict:
    """What Cao et al. 2024 print: rows of `law1` (increase, k, c) and of `law2` (model, q_r, A, k)."""
    return json.loads((bundled.data_dir() / "papers" / "cao.json").read_text(encoding="utf-8"))


def by_law_1(params: float, rise: float, table: Sequence[Mapping[str, float]]) -> float:
    """Largest Qr by the paper's Law 1, N / 1e9 = exp(k (1 - Qr) + c), held to [0, 1]; NaN at a rise not printed."""
    row = next((row for row in table if math.isclose(row["increase"], rise)), None)
    return math.nan if row is None else min(max(1 - (math.log(params / 1e9) - row["c"]) / row["k"], 0.0), 1.0)


def by_law_2(block: float, row: Mapping[str, float]) -> float:
    """Rise of perplexity, a ratio less one, by a row of the paper's Law 2, A block^k per cent."""
    return row["A"] * block ** row["k"] / 100


def population(group: xr.Dataset, law: laws.Law, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """ln QiD of the population's terms and covariates at columns, (draw, column); `group` has one dim `draw`."""
    lam = group["lam"].to_numpy()[:, None]
    out = np.zeros((lam.size, len(columns["effective_bits"])))
    for name, items, along in (("mu", law.terms, "term"), ("covariate", law.covariates, "covariate_name")):
        for item in items:
            value = group[name].sel({along: item.name}).to_numpy()[:, None]
            out += value * laws.factor(item.factor, columns, lam)  # type: ignore[arg-type]
    return out


def shifts(
    posterior: Posterior, targets: Sequence[Target], to: Mapping[str, np.ndarray], rng: np.random.Generator | None
) -> np.ndarray:
    """What ln QiD of a family's law changes by as columns of the targets become `to`, (draw, target).

    Of columns that `bayesqid.quantized_share` names, and of the block size. Which family is new is drawn by `rng`;
    since
    deviations of a new family's terms are independent given the spreads, another stream than A's is as good.
    """
    law, before = posterior.law, draws.columns(posterior, targets)
    after = before | dict(to)
    asked = dict.fromkeys((t.family, t.population) for t in targets)
    theta = {key: draws.family_terms(posterior, key[0], None if key[1] else rng) for key in asked}
    out = np.zeros((posterior.size, len(targets)))

    def change(factor: str) -> np.ndarray:
        return laws.factor(factor, after, 0.0) - laws.factor(factor, before, 0.0)

    for number, term in enumerate(law.terms):
        if term.factor in FACTORS:
            out += np.stack([theta[t.family, t.population][:, number] for t in targets], axis=1) * change(term.factor)
    for covariate in law.covariates:
        if covariate.factor in FACTORS:
            value = posterior.sample["covariate"].sel(covariate_name=covariate.name).to_numpy()[:, None]
            out += value * change(covariate.factor)
    return out


def line(
    posterior: Posterior, targets: Sequence[Target], granularity: str, assignment: str, block: float, band: str,
    seed: int = project.SEED,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A and K of ln QiD = A + K ln Qr, unbounded law values of a band, each (draw, target)."""
    rows = len(targets)
    kind = {"granularity": np.full(rows, granularity), "assignment": np.full(rows, assignment),
            "group_size": np.full(rows, float(block))}  # fmt: skip
    parts = project.band_parts(posterior, targets, band, np.random.default_rng(seed))
    of_all, of_less = (shifts(posterior, targets, kind | {"quantized_fraction": np.full(rows, share)},
                              np.random.default_rng([seed, 2])) for share in (1.0, math.exp(-1)))  # fmt: skip
    return sum(parts.values(), np.zeros((posterior.size, rows))) + of_all, of_all - of_less


def largest(a: np.ndarray, k: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Largest Qr in [0, 1] at which a + k ln Qr <= level; arguments broadcast."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.exp(np.minimum((level - a) / np.where(k > 0, k, 1.0), 0.0))
    return np.where(a <= level, 1.0, np.where(k > 0, inside, 0.0))


def usual(posterior: Posterior, name: str, default: str) -> str:
    """The commonest value that a column of the fitted cells has where a part of the weights is quantized."""
    cells = posterior.cells
    if name not in cells.coords:
        return default
    some = cells["quantized_fraction"].to_numpy() < 1 if "quantized_fraction" in cells.coords else np.array([False])
    values = cells[name].to_numpy().astype(str)
    found = Counter(values[some] if some.any() else values).most_common(1)
    return found[0][0] if found else default


def claims(posterior: Posterior, bits: float, scale_bits: float, assignment: str) -> list[dict]:
    """What the paper claims, as changes of ln QiD of the population's law, each with the probability to be above zero.

    Single matrices, Qr = 0.9, 7e9 parameters and blocks of 32, but where the claim says otherwise. `share`: of
    quantizing all; `size`: of a tenth of 7e10 parameters; `granularity`: of whole layers instead; `block`: of blocks
    of 64 instead of 16, halved, bits of the scales included. Where QiD is lower at a share, a larger one is tolerated.
    `prior`: the same probability before the data; `contraction` as in `draws.contraction`.
    """
    groups = {"posterior": posterior.sample, "prior": draws.flatten(posterior.tree["prior"].to_dataset())}
    rows, block = 6, np.array([32.0, 32.0, 32.0, 32.0, *BLOCKS])
    columns = {
        "n_params_nonembedding": np.array([SIZES[0], SIZES[1], *[SIZES[0]] * 4]), "train_tokens": np.full(rows, 2e12),
        "group_size": block, "effective_bits": bits + scale_bits / block, "per_channel": np.zeros(rows, dtype=bool),
        "eval_dataset": np.full(rows, "wikitext2"), "ctx_len": np.full(rows, laws.REFERENCE_CONTEXT),
        "lr_phase": np.full(rows, "annealed"), "vocab_size": np.full(rows, np.nan), "loss16": np.full(rows, 2.0),
        "quantized_fraction": np.array([SHARE, SHARE, SHARE, 1.0, SHARE, SHARE]),
        "granularity": np.array(["matmul", "matmul", "layer", *["matmul"] * 3]),
        "assignment": np.full(rows, assignment),
    }  # fmt: skip
    changes: dict[str, dict[str, np.ndarray]] = {}
    for name, group in groups.items():
        here, bigger, layers, everything, short, long = population(group, posterior.law, columns).T
        changes[name] = {"share": everything - here, "size": here - bigger, "granularity": layers - here,
                         "block": (long - short) / 2}  # fmt: skip

    def probability(name: str, claim: str) -> float:
        return float((changes[name][claim] > 0).mean())

    return [
        {"claim": claim, "probability": probability("posterior", claim), "prior": probability("prior", claim),
         "median": float(np.median(values)), "lower90": float(np.quantile(values, 0.05)),
         "upper90": float(np.quantile(values, 0.95)),
         "contraction": float(1 - values.var() / changes["prior"][claim].var())}
        for claim, values in changes["posterior"].items()
    ]  # fmt: skip
