"""Projections averaged over laws: the mixture of their predictive draws beside each law's own band."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid import files
from bayesqid.answers import draws, project, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

MIXTURE = "mixture"


def of_tree(tree: xr.DataTree, name: str) -> Posterior:
    """A posterior that is in memory, as an answer reads it; `name` stands where a file has its path."""
    content = json.dumps([tree.attrs["law"], tree.attrs["model"], int(tree.attrs["seed"]), name])
    sample = draws.flatten(tree["posterior"].to_dataset())
    return Posterior(tree, sample, name, files.sha256_bytes(content.encode()), "memory")


def checked_weights(posteriors: Mapping[str, Posterior], weights: Mapping[str, float]) -> np.ndarray:
    """Weights in the order of the posteriors, summing to one; `BadInput` where they are no weights of these."""
    if not posteriors or set(posteriors) != set(weights):
        raise BadInput(f"Weights are given of {', '.join(weights) or 'nothing'} for the posteriors "
                       f"{', '.join(posteriors) or 'none'}: give one weight for each.")  # fmt: skip
    values = np.array([weights[name] for name in posteriors], dtype=float)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise BadInput("Weights must be numbers of at least zero that do not all vanish: give others.")
    return values / values.sum()


def average(
    posteriors: Mapping[str, Posterior], weights: Mapping[str, float], targets: Sequence[Target], band: str = "new",
    seed: int = project.SEED,
) -> xr.Dataset:  # fmt: skip
    """Equal-tailed 50 % and 90 % bands of QiD (nats per token) of every component and of their mixture.

    Dims (component, target), the last component is the mixture p(QiD) = sum_k w_k p_k(QiD): its quantiles are those of
    all components' predictive draws pooled, each draw of component k with weight w_k over its number of draws. Also
    p_gt_X = P(QiD > X). `weight` is 1 for the mixture. `BadInput` for an unknown band, family, method or weights.
    """
    if band not in project.BANDS:
        raise BadInput(f"There is no band {band!r}: choose one of {', '.join(project.BANDS)}.")
    share = checked_weights(posteriors, weights)
    predicted = []
    for posterior in posteriors.values():
        known = [t if t.family is None else replace(t, family=draws.require_family(posterior, t.family))
                 for t in targets]  # fmt: skip
        known = [replace(t, method=draws.require_method(posterior, t.method)) for t in known]
        predicted.append(project.qid_draws(posterior, known, band, seed)[0])
    per_draw = np.concatenate([np.full(len(one), w / len(one)) for one, w in zip(predicted, share, strict=True)])
    some = per_draw > 0
    sets = [(one, np.full(len(one), 1 / len(one))) for one in predicted]
    sets.append((np.concatenate(predicted)[some], per_draw[some]))
    values = {
        name: np.array([np.quantile(x, q, axis=0, method="inverted_cdf", weights=w) for x, w in sets])
        for name, q in project.quantile_names("").items()
    }
    for limit in project.THRESHOLDS:
        values[f"p_gt_{limit}"] = np.array([w @ (x > limit) / w.sum() for x, w in sets])
    coords = {
        "component": np.array([*posteriors, MIXTURE], dtype=object),
        "params": ("target", [t.params for t in targets]), "tokens": ("target", [t.tokens for t in targets]),
        "bits": ("target", [float(t.bits or t.effective_bits) for t in targets]),
        "family": ("target", np.array([t.family or "new" for t in targets], dtype=object)),
        "method": ("target", np.array([t.method for t in targets], dtype=object)),
    }  # fmt: skip
    data: dict = {name: (("component", "target"), value) for name, value in values.items()}
    data["weight"] = ("component", np.append(share, 1.0))
    verdicts = {name: project.verdict(one, [t.family for t in targets], _outside(one, targets))
                for name, one in posteriors.items()}  # fmt: skip
    attrs = {"band": band, "interval": "eti", "verdicts": json.dumps(verdicts),
             "assumptions": json.dumps(project.assumptions(targets))}  # fmt: skip
    return xr.Dataset(data, coords, attrs)


def _outside(posterior: Posterior, targets: Sequence[Target]) -> bool:
    beyond = [project.extrapolation(posterior, target) for target in targets]
    return any(row["n_ratio"] > 1 or row["d_ratio"] > 1 or row["p_outside"] for row in beyond)


def as_json(averages: Mapping[str, xr.Dataset]) -> dict:
    """Projections by name of the weights they were averaged with, as one object without NaN."""
    first = next(iter(averages.values()))
    names = [*project.quantile_names(""), *(f"p_gt_{limit}" for limit in project.THRESHOLDS)]

    def rows(one: xr.Dataset) -> list[dict]:
        return [
            {"params": float(cell["params"]), "tokens": float(cell["tokens"]), "bits": float(cell["bits"]),
             **{name: float(cell[name]) for name in names}}
            for cell in (one.isel(target=i) for i in range(one.sizes["target"]))
        ]  # fmt: skip

    components = [str(name) for name in first["component"].values if name != MIXTURE]
    return {
        "band": first.attrs["band"], "interval": first.attrs["interval"],
        "assumptions": json.loads(first.attrs["assumptions"]), "verdicts": json.loads(first.attrs["verdicts"]),
        "components": {name: rows(first.sel(component=name)) for name in components},
        "mixtures": {
            name: {"weights": {c: float(one["weight"].sel(component=c)) for c in components},
                   "rows": rows(one.sel(component=MIXTURE))}
            for name, one in averages.items()
        },
    }  # fmt: skip


def as_text(averages: Mapping[str, xr.Dataset]) -> str:
    """Projections for a terminal of 80 columns: each component, then each mixture."""
    out = as_json(averages)
    takes = out["assumptions"]
    lines = textwrap.wrap(
        f"Projected QiD in nats per token; band {out['band']!r}, equal-tailed; learning rate {takes['lr_phase']}; "
        f"{takes['recipe']}; {takes['text']}.", 80)  # fmt: skip
    told: dict[str, list[str]] = {}
    for name, verdict in out["verdicts"].items():
        told.setdefault(verdict, []).append(name)
    for verdict, names in told.items():
        lines += textwrap.wrap(f"Verdict for {', '.join(names)}: {wording.VERDICTS[verdict]}.", 80)
    lines += ["", f"{'':<27}{'params':>7}{'tokens':>7}{'bits':>5} {'median':>8}{'90 % band':>18}{'>0.2':>6}"]
    parts = [*out["components"].items(), *((f"mixture by {n}", one["rows"]) for n, one in out["mixtures"].items())]
    for name, rows in parts:
        for row in rows:
            outer = f"{wording.short(row['lower90'])} - {wording.short(row['upper90'])}"
            lines.append(
                f"{name[:26]:<27}{wording.count_text(row['params']):>7}{wording.count_text(row['tokens']):>7}"
                f"{row['bits']:>5.3g} {wording.short(row['median']):>8}{outer:>18}{row['p_gt_0.2']:>6.0%}"
            )
    return "\n".join(lines)
