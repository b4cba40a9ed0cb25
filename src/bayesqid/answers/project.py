"""Projection: credible intervals of QiD for models, tokens and recipes that nobody has measured."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from bayesqid import likelihood, methods
from bayesqid.answers import draws, loss_laws, record, shares, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.answers.loss_laws import LossLaw
from bayesqid.errors import BadInput

BANDS = ("mean", "new", "observed")
THRESHOLDS = (0.1, 0.2, 0.5)
SEED = 20260


def quantile_names(name: str) -> dict[str, float]:
    """Equal-tailed quantiles that every band is reported with."""
    return {f"{name}lower90": 0.05, f"{name}lower50": 0.25, f"{name}median": 0.5, f"{name}upper50": 0.75,
            f"{name}upper90": 0.95}  # fmt: skip


def band_parts(
    posterior: Posterior, targets: Sequence[Target], band: str, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """What ln QiD of a band, before its ceiling, is the sum of, by name (`shares.PARTS`), each (draw, target).

    Without `rng` nothing unseen deviates: what is left is what the fitted numbers determine.
    """
    parts = draws.log_law_parts(posterior, targets, rng)
    if band == "mean":
        return parts
    checkpoints = [t.checkpoint or (t.family, t.params, t.tokens) for t in targets]
    sources = [t.source_method or number for number, t in enumerate(targets)]
    parts["checkpoint"] = draws.effects(posterior, "checkpoint", checkpoints, {}, rng)
    parts["source"] = draws.effects(posterior, "source_method", sources, {}, rng)
    if rng is None:
        return parts | {"scatter": np.zeros_like(parts["law"])}
    of = [methods.generation(t.method) for t in targets]
    tau = {name: draws.scatter(posterior, name, rng) for name in dict.fromkeys(of) if name != "unknown"}
    spread = np.stack([tau[name] if name in tau else draws.scatter(posterior, name, rng) for name in of], axis=1)
    return parts | {"scatter": likelihood.draw_scatter(rng, spread, posterior.law.tails)}


def under_ceiling(
    posterior: Posterior, targets: Sequence[Target], band: str, parts: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """QiD in nats per token from the parts of its logarithm, and its law value over the headroom."""
    raw = np.exp(np.minimum(sum(parts.values(), np.zeros(())), 50.0))
    at = {size: draws.nearest_headroom(posterior, size) for size in {t.params for t in targets if t.headroom is None}}
    headroom = np.array([at[t.params] if t.headroom is None else t.headroom for t in targets])
    seen = likelihood.saturate(raw, headroom)
    if band == "observed":
        usual = float(posterior.cells["qid_se"].median())
        seen = seen + np.array([usual if t.qid_se is None else t.qid_se for t in targets]) * rng.normal(size=seen.shape)
    return seen, raw / headroom


def qid_draws(
    posterior: Posterior, targets: Sequence[Target], band: str, seed: int = SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of QiD in nats per token for a band, and of its unbounded law value over the headroom, (draw, target).

    `mean` is the law of the family under the recipe; `new` adds what a new checkpoint in a new source adds
    (checkpoint and source effects, residual scatter); `observed` adds the median standard error of the fitted cells.
    """
    rng = np.random.default_rng(seed)
    return under_ceiling(posterior, targets, band, band_parts(posterior, targets, band, rng), rng)


def at_equal_tokens(targets: Sequence[Target]) -> list[list[int]]:
    """Numbers of the targets that have the same tokens: drawn from one seed each, they make smooth curves over D."""
    together: dict[float, list[int]] = {}
    for number, target in enumerate(targets):
        together.setdefault(target.tokens, []).append(number)
    return list(together.values())


def drawn_and_shared(
    posterior: Posterior, targets: Sequence[Target], band: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """QiD and fullness as `qid_draws` gives them for the targets of each count of tokens, and `shares.shares`."""
    seen = np.empty((posterior.size, len(targets)))
    fullness, share = np.empty_like(seen), np.empty((len(shares.PARTS), len(targets)))
    fitted = band_parts(posterior, targets, band, None)
    for numbers in at_equal_tokens(targets):
        own, rng = [targets[i] for i in numbers], np.random.default_rng(SEED)
        parts = band_parts(posterior, own, band, rng)
        seen[:, numbers], fullness[:, numbers] = under_ceiling(posterior, own, band, parts, rng)
        share[:, numbers] = shares.shares({name: m[:, numbers] for name, m in fitted.items()}, parts)
    return seen, fullness, share


def beyond(posterior: Posterior, targets: Sequence[Target]) -> dict[str, np.ndarray]:
    """By target, how many times N and D lie outside the fitted range (1 inside), and whether the bits do.

    N and D are held against the cells of the target's family, those of a new one against all.
    """
    cells, family = posterior.cells, posterior.cells["family"].to_numpy()
    found = {"n_ratio": np.ones(len(targets)), "d_ratio": np.ones(len(targets))}
    for name in dict.fromkeys(t.family for t in targets):
        own, numbers = family == name if name else slice(None), [i for i, t in enumerate(targets) if t.family == name]
        asked = {"n_ratio": ("n_params_nonembedding", [targets[i].params for i in numbers]),
                 "d_ratio": ("train_tokens", [targets[i].tokens for i in numbers])}  # fmt: skip
        for key, (column, values) in asked.items():
            fitted, value = cells[column].to_numpy()[own], np.array(values)
            low, high = np.nanmin(fitted), np.nanmax(fitted)
            found[key][numbers] = np.maximum(np.maximum(value / high, low / value), 1.0)
    bits, wanted = cells["effective_bits"].to_numpy(), np.array([t.effective_bits for t in targets])
    return found | {"p_outside": (wanted < bits.min()) | (wanted > bits.max())}


def extrapolation(posterior: Posterior, target: Target) -> dict:
    """`beyond` of one target, as plain values."""
    return {name: values[0].item() for name, values in beyond(posterior, [target]).items()}


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


def project(
    posterior: Posterior, targets: Sequence[Target], band: str = "new", loss_law: str | Path | LossLaw | None = None
) -> xr.Dataset:
    """Medians, 50 % and 90 % equal-tailed bands, exceedance probabilities and variance shares of QiD, dim `target`.

    With a `loss_law` (`loss_laws.read`) also quantiles `loss_*` of the quantized loss L16 + QiD, whose L16 is drawn
    independently of QiD, and the median `loss16`; QiD keeps the headroom of the fitted models of its size.
    Attributes: law, model, verdict, checks, band, interval kind, assumptions, what was excluded, the posterior.
    """
    if band not in BANDS:
        raise BadInput(f"There is no band {band!r}: choose one of {', '.join(BANDS)}.")
    law = loss_law if loss_law is None or isinstance(loss_law, LossLaw) else loss_laws.read(loss_law)
    named = [t if t.family is None else replace(t, family=draws.require_family(posterior, t.family)) for t in targets]
    named = [replace(t, method=draws.require_method(posterior, t.method)) for t in named]
    qid, fullness, share = drawn_and_shared(posterior, named, band)
    values = quantiles(qid, "")
    values |= {f"p_gt_{limit}": (qid > limit).mean(axis=0) for limit in THRESHOLDS}
    # saturated: the law without a ceiling would pass the loss of a uniform guess
    values["p_saturated"] = (fullness > 1).mean(axis=0)
    outside = beyond(posterior, named)
    values |= outside
    if law is not None:
        # a stream of its own: the loss before quantization does not vary with the draws of QiD
        rng = np.random.default_rng([SEED, 1])
        before = loss_laws.draws(law, [t.params for t in named], [t.tokens for t in named], posterior.size, rng)
        values |= quantiles(before + qid, "loss_") | {"loss16": np.median(before, axis=0)}
    coords = {
        "family": [t.of for t in named], "params": [t.params for t in named],
        "tokens": [t.tokens for t in named], "bits": [float(t.bits or t.effective_bits) for t in named],
        "effective_bits": [t.effective_bits for t in named], "method": [t.method for t in named],
        "per_channel": [t.per_channel for t in named], "lr_phase": [t.lr_phase for t in named],
    }  # fmt: skip
    anywhere = bool(((outside["n_ratio"] > 1) | (outside["d_ratio"] > 1) | outside["p_outside"]).any())
    told = verdict(posterior, [t.family for t in named], anywhere)
    attrs = record.attrs(posterior, told, assumptions(named)) | {
        "band": band, "excluded": posterior.cells.attrs["excluded"]
    }  # fmt: skip
    attrs |= {} if law is None else {"loss_law": json.dumps(loss_laws.as_json(law))}
    data = {name: ("target", value) for name, value in values.items()} | {"shares": (("part", "target"), share)}
    labels = {name: ("target", value) for name, value in coords.items()} | {"part": list(shares.PARTS)}
    return xr.Dataset(data, labels, attrs)


def quantiles(values: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """`quantile_names` of draws (draw, target), each (target,)."""
    found = np.quantile(values, list(quantile_names(name).values()), axis=0)
    return dict(zip(quantile_names(name), found, strict=True))


def assumptions(targets: Sequence[Target]) -> dict[str, str]:
    """What the numbers take for granted, in words."""
    scales = {("one scale per row" if t.per_channel else f"{t.effective_bits:.4g} effective bits") for t in targets}
    first = targets[0]
    return {
        "lr_phase": ", ".join(dict.fromkeys(t.lr_phase for t in targets)),
        "recipe": f"weights of all linear layers, {', '.join(sorted({t.method for t in targets}))}; "
        + "; ".join(sorted(scales)),
        "params": "non-embedding parameters",
        "text": f"{first.eval_dataset}, context {first.context:g}",
    }


def rows(projection: xr.Dataset) -> list[dict]:
    """The projection as plain rows, one per target, without NaN."""
    columns = {name: projection[name].to_numpy().tolist() for name in projection.variables if name != "part"}
    parts = projection["part"].to_numpy().tolist()
    out = []
    for i in range(projection.sizes["target"]):
        row = {name: columns[name][i] for name in ("family", "params", "tokens", "bits", "method", "effective_bits",
                                                   "lr_phase")}  # fmt: skip
        row |= {name: columns[name][i] for name in quantile_names("")}
        row |= {f"p_gt_{limit}": columns[f"p_gt_{limit}"][i] for limit in THRESHOLDS}
        row["p_saturated"] = columns["p_saturated"][i]
        row["extrapolation"] = {name: columns[name][i] for name in ("n_ratio", "d_ratio", "p_outside")}
        row["shares"] = {part: columns["shares"][j][i] for j, part in enumerate(parts)}
        if "loss16" in columns:
            row["loss"] = {name: columns[f"loss_{name}"][i] for name in quantile_names("")}
            row["loss"]["loss16"] = columns["loss16"][i]
        out.append(row)
    return out


def as_json(projection: xr.Dataset) -> dict:
    """The projection as one object of the `--json` contract."""
    told = record.decoded({name: value for name, value in projection.attrs.items() if name != "command"})
    told |= {"loss_law": json.loads(told["loss_law"])} if "loss_law" in told else {}
    return told | {"rows": rows(projection)}


def as_text(projection: xr.Dataset, with_shares: bool = False) -> str:
    """The projection as tables for a terminal of 80 columns, verdict first."""
    told = as_json(projection)
    takes, found = told["assumptions"], told["rows"]
    lines = [
        *wording.opening(told),
        *textwrap.wrap(
            f"QiD in nats per token; band {told['band']!r}, equal-tailed; law {told['law']}, model {told['model']}; "
            f"learning rate {takes['lr_phase']}; {takes['text']}.", 80),
        "", *_bands([row | {"last": f"{row['p_gt_0.2']:.0%}"} for row in found], ">0.2"),
    ]  # fmt: skip
    if "loss_law" in told:
        lines += ["", *loss_laws.sentences(told["loss_law"]), ""]
        lines += _bands([row | row["loss"] | {"last": f"{row['loss']['loss16']:.3g}"} for row in found], "L16")
    if with_shares:
        lines += ["", *shares.as_text(found)]
    most_n = max(row["extrapolation"]["n_ratio"] for row in found)
    most_d = max(row["extrapolation"]["d_ratio"] for row in found)
    lines += ["", f"Beyond the data by at most {most_n:.3g}x in N and {most_d:.3g}x in D."]
    return "\n".join(lines)


def _bands(found: Sequence[Mapping], last: str) -> list[str]:
    """Header and one line per row: median, both bands and a last column."""
    lines = [f"{'family':<10}{'params':>7}{'tokens':>7}{'bits':>5} {'median':>8} {'50 % band':>17} {'90 % band':>17}"
             f"{last:>6}"]  # fmt: skip
    for row in found:
        inner = f"{wording.short(row['lower50'])} - {wording.short(row['upper50'])}"
        outer = f"{wording.short(row['lower90'])} - {wording.short(row['upper90'])}"
        lines.append(
            f"{row['family'][:10]:<10}{wording.count_text(row['params']):>7}{wording.count_text(row['tokens']):>7}"
            f"{row['bits']:>5.3g} {wording.short(row['median']):>8} {inner:>17} {outer:>17}{row['last']:>6}"
        )
    return lines
