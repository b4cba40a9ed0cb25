"""Projection: credible intervals of QiD for models, tokens and recipes that nobody has measured."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid import likelihood, methods
from bayesqid.answers import draws, record, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

BANDS = ("mean", "new", "observed")
THRESHOLDS = (0.1, 0.2, 0.5)
SEED = 20260


def quantile_names(name: str) -> dict[str, float]:
    """Equal-tailed quantiles that every band is reported with."""
    return {f"{name}lower90": 0.05, f"{name}lower50": 0.25, f"{name}median": 0.5, f"{name}upper50": 0.75,
            f"{name}upper90": 0.95}  # fmt: skip


def qid_draws(
    posterior: Posterior, targets: Sequence[Target], band: str, seed: int = SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of QiD in nats per token for a band and of its unbounded law value, each (draw, target).

    `mean` is the law of the family under the recipe; `new` adds what a new checkpoint in a new source adds
    (checkpoint and source effects, residual scatter); `observed` adds the median standard error of the fitted cells.
    """
    rng = np.random.default_rng(seed)
    eta = draws.log_law(posterior, targets, rng)
    if band != "mean":
        checkpoints = [t.checkpoint or (t.family, t.params, t.tokens) for t in targets]
        sources = [t.source_method or number for number, t in enumerate(targets)]
        for by, levels in (("checkpoint", checkpoints), ("source_method", sources)):
            eta = eta + draws.effects(posterior, by, levels, {}, rng)
        of = [methods.generation(t.method) for t in targets]
        tau = {name: draws.scatter(posterior, name, rng) for name in dict.fromkeys(of) if name != "unknown"}
        spread = np.stack([tau[name] if name in tau else draws.scatter(posterior, name, rng) for name in of], axis=1)
        eta = eta + likelihood.draw_scatter(rng, spread, posterior.law.tails)
    raw = np.exp(np.minimum(eta, 50.0))
    at = {size: draws.nearest_headroom(posterior, size) for size in {t.params for t in targets if t.headroom is None}}
    headroom = np.array([at[t.params] if t.headroom is None else t.headroom for t in targets])
    seen = likelihood.saturate(raw, headroom)
    if band == "observed":
        usual = float(posterior.cells["qid_se"].median())
        seen = seen + np.array([usual if t.qid_se is None else t.qid_se for t in targets]) * rng.normal(size=seen.shape)
    return seen, raw / headroom


def extrapolation(posterior: Posterior, target: Target) -> dict:
    """How many times N and D lie outside the fitted range (1 inside), and whether the bits do."""
    cells = posterior.cells
    own = cells.sel(cell=cells["family"].to_numpy() == target.family) if target.family else cells

    def ratio(value: float, name: str) -> float:
        low, high = float(own[name].min()), float(own[name].max())
        return max(value / high, low / value, 1.0)

    bits = cells["effective_bits"].to_numpy()
    return {
        "n_ratio": ratio(target.params, "n_params_nonembedding"),
        "d_ratio": ratio(target.tokens, "train_tokens"),
        "p_outside": not bits.min() <= target.effective_bits <= bits.max(),
    }


def informed(posterior: Posterior, family: str | None) -> bool:
    """Whether the data inform the tokens exponent that a target of this family rests on.

    With independent families each rests on its own exponent, a new one on the prior; else on the population's. A law
    without tokens rests on none.
    """
    if "beta" not in posterior.law.term_names:
        return True
    if posterior.tree.attrs["model"] != "independent":
        return draws.contraction(posterior, "mu", "beta") >= draws.IDENTIFIED
    return family is not None and draws.contraction(posterior, "theta", "beta", family) >= draws.IDENTIFIED


def verdict(posterior: Posterior, families: Sequence[str | None], outside: bool) -> str:
    """The first that holds: checks failed, not identified, extrapolation, ok."""
    if not all(posterior.checks.values()):
        return "checks failed"
    if not all(informed(posterior, family) for family in dict.fromkeys(families)):
        return "not identified"
    return "extrapolation" if outside else "ok"


def project(posterior: Posterior, targets: Sequence[Target], band: str = "new") -> xr.Dataset:
    """Medians, 50 % and 90 % equal-tailed bands and exceedance probabilities of QiD, dim `target`.

    Attributes: law, model, verdict, checks, band, interval kind, assumptions, what was excluded, the posterior.
    """
    if band not in BANDS:
        raise BadInput(f"There is no band {band!r}: choose one of {', '.join(BANDS)}.")
    named = [t if t.family is None else replace(t, family=draws.require_family(posterior, t.family)) for t in targets]
    named = [replace(t, method=draws.require_method(posterior, t.method)) for t in named]
    qid, fullness = qid_draws(posterior, named, band)
    values = {name: np.quantile(qid, q, axis=0) for name, q in quantile_names("").items()}
    values |= {f"p_gt_{limit}": (qid > limit).mean(axis=0) for limit in THRESHOLDS}
    # saturated: the law without a ceiling would pass the loss of a uniform guess
    values["p_saturated"] = (fullness > 1).mean(axis=0)
    beyond = [extrapolation(posterior, t) for t in named]
    values |= {key: np.array([row[key] for row in beyond]) for key in ("n_ratio", "d_ratio", "p_outside")}
    coords = {
        "family": [t.family or "new" for t in named], "params": [t.params for t in named],
        "tokens": [t.tokens for t in named], "bits": [float(t.bits or t.effective_bits) for t in named],
        "effective_bits": [t.effective_bits for t in named], "method": [t.method for t in named],
        "per_channel": [t.per_channel for t in named],
    }  # fmt: skip
    outside = any(row["n_ratio"] > 1 or row["d_ratio"] > 1 or row["p_outside"] for row in beyond)
    told = verdict(posterior, [t.family for t in named], outside)
    attrs = record.attrs(posterior, told, assumptions(named)) | {
        "band": band, "excluded": posterior.cells.attrs["excluded"]
    }  # fmt: skip
    data = {name: ("target", value) for name, value in values.items()}
    return xr.Dataset(data, {name: ("target", value) for name, value in coords.items()}, attrs)


def assumptions(targets: Sequence[Target]) -> dict[str, str]:
    """What the numbers take for granted, in words."""
    scales = {("one scale per row" if t.per_channel else f"{t.effective_bits:.4g} effective bits") for t in targets}
    first = targets[0]
    return {
        "lr_phase": first.lr_phase,
        "recipe": f"weights of all linear layers, {', '.join(sorted({t.method for t in targets}))}; "
        + "; ".join(sorted(scales)),
        "params": "non-embedding parameters",
        "text": f"{first.eval_dataset}, context {first.context:g}",
    }


def rows(projection: xr.Dataset) -> list[dict]:
    """The projection as plain rows, one per target, without NaN."""
    out = []
    for i in range(projection.sizes["target"]):
        one = projection.isel(target=i)
        row = {name: one[name].item() for name in ("family", "params", "tokens", "bits", "method", "effective_bits")}
        row |= {name: float(one[name]) for name in quantile_names("")}
        row |= {f"p_gt_{limit}": float(one[f"p_gt_{limit}"]) for limit in THRESHOLDS}
        row["p_saturated"] = float(one["p_saturated"])
        row["extrapolation"] = {"n_ratio": float(one["n_ratio"]), "d_ratio": float(one["d_ratio"]),
                                "p_outside": bool(one["p_outside"])}  # fmt: skip
        out.append(row)
    return out


def as_json(projection: xr.Dataset) -> dict:
    """The projection as one object of the `--json` contract."""
    return record.decoded(projection.attrs) | {"rows": rows(projection)}


def as_text(projection: xr.Dataset) -> str:
    """The projection as a table for a terminal of 80 columns, verdict first."""
    told = record.decoded(projection.attrs)
    takes = told["assumptions"]
    lines = [
        *wording.opening(told),
        *textwrap.wrap(
            f"QiD in nats per token; band {told['band']!r}, equal-tailed; law {told['law']}, model {told['model']}; "
            f"learning rate {takes['lr_phase']}; {takes['text']}.", 80),
        "",
        f"{'family':<10}{'params':>7}{'tokens':>7}{'bits':>5} {'median':>8} {'50 % band':>17} {'90 % band':>17}"
        f"{'>0.2':>6}",
    ]
    for row in rows(projection):
        inner = f"{wording.short(row['lower50'])} - {wording.short(row['upper50'])}"
        outer = f"{wording.short(row['lower90'])} - {wording.short(row['upper90'])}"
        lines.append(
            f"{row['family'][:9]:<10}{wording.count_text(row['params']):>7}{wording.count_text(row['tokens']):>7}"
            f"{row['bits']:>5.3g} "
            f"{wording.short(row['median']):>8} {inner:>17} {outer:>17}{row['p_gt_0.2']:>6.0%}"
        )
    beyond = [r["extrapolation"] for r in rows(projection)]
    most_n, most_d = max(r["n_ratio"] for r in beyond), max(r["d_ratio"] for r in beyond)
    lines += ["", f"Beyond the data by at most {most_n:.3g}x in N and {most_d:.3g}x in D."]
    return "\n".join(lines)
