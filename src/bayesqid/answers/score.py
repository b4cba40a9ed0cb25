"""Score: how well a posterior predicts measurements that it has not seen.

A row's prediction is the band `observed` of `project.qid_draws`: a fitted checkpoint, source or family keeps its own
deviation, any other is drawn from its population, and the row's own measurement error is added.

Coverage counts every row through its PIT, so it holds near zero and below; errors and CRPS are those of

    g(QiD) = ln max(QiD, s)        s: the row's standard error, below which a measurement tells no two values apart

on the rows whose QiD passes three standard errors. ln error = g(median) - g(measured): above zero is too high.
"""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid import laws, methods
from bayesqid.answers import baselines, draws, project, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.cells import FEATURES
from bayesqid.errors import BadInput
from bayesqid.likelihood import LN10
from bayesqid.quantized_share import PLAIN

MASSES = (0.5, 0.8, 0.9, 0.95)
KEYS = ("source", "checkpoint", "quantizer", "eval_dataset")
NUMBER_KEYS = ("bits", "group_size")
# one measurement written with six digits and read again
SAME = 2e-6
# field of a target -> column of cells
FIELDS = {"family": "family", "params": "n_params_nonembedding", "tokens": "train_tokens", "bits": "bits",
          "effective_bits": "effective_bits", "method": "quantizer", "per_channel": "per_channel",
          "lr_phase": "lr_phase", "eval_dataset": "eval_dataset", "context": "ctx_len", "checkpoint": "checkpoint",
          "source_method": "source_method", "qid_se": "qid_se", "vocab_size": "vocab_size", "loss16": "loss16",
          "headroom": "headroom"}  # fmt: skip
MAY_LACK = ("vocab_size", "loss16")
COPIED = ("family", "model", "checkpoint", "quantizer", "generation", "source", "eval_dataset", "bits",
          "effective_bits", "n_params_nonembedding", "train_tokens", "qid", "qid_se", "censored")  # fmt: skip
GROUPS = {"by_family": "family", "by_method": "quantizer", "by_bits": "nearest_bits", "by_generation": "generation"}
VERDICTS = wording.VERDICTS | {
    "extrapolation": "extrapolation: rows lie outside the range of the data that were fitted",
    "not identified": "not identified: the fitted data do not inform the tokens exponent",
}


def crps(ensemble: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of ensembles (row, draw) against y (row,): integral (F(x) - 1{x >= y})^2 dx.

    F is the ensemble's step function, so it is exact. By order statistics it is
    mean |x - y| - sum_i (2 i - n - 1) x_(i) / n^2 with i from 1. One draw: |x - y|.
    """
    ordered = np.sort(ensemble, axis=1)
    n = ordered.shape[1]
    weights = (2.0 * np.arange(n) - n + 1.0) / n**2
    return np.abs(ordered - y[:, None]).mean(axis=1) - ordered @ weights


def pit(ensemble: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Probability integral transform (rank + 1/2) / (n + 1) of y (row,) in ensembles (row, draw); ties count half."""
    rank = (ensemble < y[:, None]).sum(axis=1) + 0.5 * (ensemble == y[:, None]).sum(axis=1)
    return (rank + 0.5) / (ensemble.shape[1] + 1)


def targets_of(cells: xr.Dataset) -> list[Target]:
    """What each cell asks of a posterior, under its own names of family, checkpoint, source and quantizer.

    With its loss landscape where the cells have it.
    """
    column = {field: cells[name].to_numpy().tolist() for field, name in FIELDS.items()}
    for field in MAY_LACK:
        column[field] = [None if math.isnan(value) else value for value in column[field]]
    measured = [name for name in (*FEATURES, "loss16", *PLAIN, "group_size") if name in cells.coords]
    rows = zip(*(cells[name].to_numpy().tolist() for name in measured), strict=True)
    column["features"] = [dict(zip(measured, values, strict=True)) for values in rows]
    return [Target(**dict(zip(column, values, strict=True))) for values in zip(*column.values(), strict=True)]


def with_families(posterior: Posterior, names: Sequence[str], rng: np.random.Generator) -> Posterior:
    """The posterior with a draw from the population for each family it does not know: all its rows share that."""
    new = [name for name in dict.fromkeys(names) if name not in posterior.families]
    if not new:
        return posterior
    theta = posterior.sample["theta"].transpose("draw", "term", "family")
    drawn = [draws.family_terms(posterior, None, rng) for _ in new]
    values = np.concatenate([theta.to_numpy(), np.stack(drawn, axis=-1)], axis=2)
    families = np.array([*posterior.families, *new], dtype=object)
    wider = xr.DataArray(values, {"term": theta["term"].to_numpy(), "family": families}, theta.dims)
    return replace(posterior, sample=posterior.sample.drop_dims("family").assign(theta=wider))


def frame(posterior: Posterior, cells: xr.Dataset, seed: int = project.SEED) -> xr.Dataset:
    """Predictions of cells, dim `cell`: quantiles of QiD (nats per token), PIT, ln error, CRPS of ln QiD.

    Equal-tailed `lower50` ... `upper95`, `median`, `p_diverged` (of passing ln 10); NaN: `pit` of a diverged cell,
    `ln_error` and `crps` also of cells within three standard errors of zero. Cells must have N, D, P, headroom and
    standard error.
    """
    rng = np.random.default_rng(seed)
    wider = with_families(posterior, cells["family"].to_numpy().tolist(), rng)
    # another stream than the families' draws
    drawn, _ = project.qid_draws(wider, targets_of(cells), "observed", int(rng.integers(2**31)))
    ensemble = np.ascontiguousarray(drawn.T)
    tails = {f"{side}{mass * 100:.0f}": 0.5 + sign * mass / 2 for mass in MASSES
             for side, sign in (("lower", -1), ("upper", 1))}  # fmt: skip
    names = {"median": 0.5, **tails}
    values = dict(zip(names, np.quantile(ensemble, list(names.values()), axis=1), strict=True))
    values["p_diverged"] = (ensemble > np.minimum(LN10, 0.95 * cells["headroom"].to_numpy())[:, None]).mean(axis=1)
    values |= rows(ensemble, cells)
    data = {name: ("cell", value) for name, value in values.items()}
    return xr.Dataset(data, {name: ("cell", cells[name].to_numpy()) for name in COPIED})


def rows(ensemble: np.ndarray, cells: xr.Dataset) -> dict[str, np.ndarray]:
    """PIT, ln error and CRPS of ensembles of QiD (row, draw) against the cells' own QiD."""
    qid, se = cells["qid"].to_numpy(), cells["qid_se"].to_numpy()
    loggable = baselines.on_log_scale(cells)
    log_ensemble = np.log(np.maximum(ensemble, se[:, None]))
    log_qid = np.log(np.maximum(qid, se))
    error = np.median(log_ensemble, axis=1) - log_qid
    return {
        "pit": np.where(cells["censored"].to_numpy(), np.nan, pit(ensemble, qid)),
        "ln_error": np.where(loggable, error, np.nan),
        "crps": np.where(loggable, crps(log_ensemble, log_qid), np.nan),
    }


def fitted_already(posterior: Posterior, cells: xr.Dataset) -> np.ndarray:
    """Which cells stand among the fitted ones: same source, checkpoint, quantizer, bits, group, text and QiD."""

    def keys(data: xr.Dataset) -> list[tuple]:
        texts = [data[name].to_numpy().astype(str).tolist() for name in KEYS]
        numbers = [np.nan_to_num(data[name].to_numpy(), nan=0.0).tolist() for name in NUMBER_KEYS]
        return list(zip(*texts, *numbers, strict=True))

    seen: dict[tuple, list[float]] = {}
    for key, qid in zip(keys(posterior.cells), posterior.cells["qid"].to_numpy().tolist(), strict=True):
        seen.setdefault(key, []).append(qid)
    own = zip(keys(cells), cells["qid"].to_numpy().tolist(), strict=True)
    return np.array([any(abs(qid - old) <= SAME for old in seen.get(key, ())) for key, qid in own], dtype=bool)


def reasons(posterior: Posterior, cells: xr.Dataset) -> np.ndarray:
    """Why each cell cannot be predicted or compared, the first reason that holds; empty where none does."""

    def lacks(name: str) -> np.ndarray:
        values = cells[name].to_numpy()
        return ~(np.isfinite(values) & (values > 0))

    found = {
        "training tokens not disclosed": lacks("train_tokens"),
        "non-embedding parameter count unknown": lacks("n_params_nonembedding"),
        "bits unknown": lacks("effective_bits"),
        "baseline no better than guessing": lacks("headroom"),
        "no standard error": lacks("qid_se"),
        "QiD is not a number": ~np.isfinite(cells["qid"].to_numpy()),
        "fitted already": fitted_already(posterior, cells),
    }
    out = np.full(cells.sizes["cell"], "", dtype=object)
    for reason, holds in found.items():
        out[holds & (out == "")] = reason
    return out


def score(posterior: Posterior, cells: xr.Dataset, seed: int = project.SEED) -> xr.Dataset:
    """Predictions of every cell that can be compared, as `frame`, with those of the baselines over dim `baseline`.

    Attributes: verdict, checks, posterior, dropped rows by reason and levels that were not fitted (JSON). Diverged
    cells stay in the frame for `p_diverged` alone. `BadInput` when no cell is left, or one lacks what the law reads
    of the loss landscape.
    """
    why = reasons(posterior, cells)
    excluded = json.loads(cells.attrs["excluded"])
    dropped = Counter({reason: sum(families.values()) for reason, families in excluded.items()})
    dropped.update(str(reason) for reason in why if reason)
    kept = cells.isel(cell=why == "")
    diverged = int(kept["censored"].sum())
    if diverged:
        dropped["diverged: QiD above ln 10"] += diverged
    if kept.sizes["cell"] == diverged:
        said = "; ".join(f"{count} {reason}" for reason, count in dropped.most_common(3))
        raise BadInput(f"No row is left to score ({said}): give measurements that were not fitted, or add --all.")
    laws.require_features(posterior.law, {str(name): kept[name].to_numpy() for name in kept.coords})
    out = frame(posterior, kept, seed)
    targets, headroom = targets_of(kept), kept["headroom"].to_numpy()
    made = {name: rows(np.exp(call(posterior, targets, headroom)), kept) for name, call in baselines.BASELINES.items()}
    # a law without a spread has an error and no intervals
    for name in ("ouyang", "kumar"):
        made[name]["pit"] = np.full(len(targets), np.nan)
    out = out.assign_coords(baseline=list(made))
    for value in ("pit", "ln_error", "crps"):
        out[f"baseline_{value}"] = (("baseline", "cell"), np.stack([one[value] for one in made.values()]))
    names = [t.family if t.family in posterior.families else None for t in targets]
    attrs = {
        "law": posterior.tree.attrs["law"], "model": posterior.tree.attrs["model"], "interval": "eti", "seed": seed,
        "verdict": project.verdict(posterior, names, outside(posterior, targets)),
        "checks": json.dumps(posterior.checks), "n_dropped": json.dumps(dict(sorted(dropped.items()))),
        "new": json.dumps(new_levels(posterior, targets)),
        "posterior": json.dumps({"path": posterior.path, "sha256": posterior.sha256, "origin": posterior.origin}),
    }  # fmt: skip
    return out.assign_attrs(attrs)


def outside(posterior: Posterior, targets: Sequence[Target]) -> bool:
    """Whether any target lies outside the fitted range, by the corners of what is asked of each family."""
    by_family: dict[str | None, list[Target]] = {}
    for target in targets:
        by_family.setdefault(target.family if target.family in posterior.families else None, []).append(target)
    corners = [
        replace(some[0], family=family, **{name: pick(getattr(t, name) for t in some)
                                           for name in ("params", "tokens", "effective_bits")})
        for family, some in by_family.items() for pick in (min, max)
    ]  # fmt: skip
    beyond = [project.extrapolation(posterior, corner) for corner in corners]
    return any(row["n_ratio"] > 1 or row["d_ratio"] > 1 or row["p_outside"] for row in beyond)


def new_levels(posterior: Posterior, targets: Sequence[Target]) -> dict[str, dict[str, int]]:
    """Rows by level that was not fitted: families, quantizers with a known generation, quantizers without one."""
    fitted = set(map(str, posterior.sample["quantizer"].to_numpy()))
    names = [t.method for t in targets if t.method not in fitted]
    unknown = {name for name in names if methods.generation(name) == "unknown"}
    found = {
        "new_families": Counter(str(t.family) for t in targets if t.family not in posterior.families),
        "new_methods": Counter(name for name in names if name not in unknown),
        "unknown_methods": Counter(name for name in names if name in unknown),
    }
    return {name: dict(sorted(counts.items())) for name, counts in found.items()}


def summary(pits: np.ndarray, errors: np.ndarray, scores: np.ndarray) -> dict:
    """Coverage of the equal-tailed intervals and errors of some rows; None where no row has a value."""
    pits, errors, scores = (values[np.isfinite(values)] for values in (pits, errors, scores))
    return {
        "n": pits.size,
        "n_ln": errors.size,
        "coverage": {f"{m:g}": float((np.abs(pits - 0.5) <= m / 2).mean()) if pits.size else None for m in MASSES},
        "median_abs_ln_error": float(np.median(np.abs(errors))) if errors.size else None,
        "crps_ln": float(scores.mean()) if scores.size else None,
        "bias": float(errors.mean()) if errors.size else None,
    }


def as_json(scored: xr.Dataset) -> dict:
    """The scores as one object of the `--json` contract; None stands where nothing can be said."""
    attrs = scored.attrs
    out: dict = {name: attrs[name] for name in ("law", "model", "verdict", "interval")}
    out |= {name: json.loads(attrs[name]) for name in ("checks", "posterior", "n_dropped")}
    diverged = scored["censored"].to_numpy()
    out["diverged"] = {"n": int(diverged.sum()), "expected": float(scored["p_diverged"].sum())}
    scored = scored.isel(cell=~diverged)
    columns = [scored[name].to_numpy() for name in ("pit", "ln_error", "crps")]
    out |= summary(*columns) | {"n_checkpoints": len(set(scored["checkpoint"].to_numpy()))}
    out["baselines"] = {}
    for name in map(str, scored["baseline"].to_numpy()):
        own = scored.sel(baseline=name)
        said = summary(*(own[f"baseline_{value}"].to_numpy() for value in ("pit", "ln_error", "crps")))
        kept = ("median_abs_ln_error", "crps_ln", "bias", *(["coverage"] if said["n"] else []))
        out["baselines"][name] = {key: said[key] for key in kept}
    bits = np.floor(scored["effective_bits"].to_numpy() + 0.5).astype(int).astype(str)
    for group, coordinate in GROUPS.items():
        labels = bits if coordinate == "nearest_bits" else scored[coordinate].to_numpy().astype(str)
        members = {str(label): labels == label for label in np.unique(labels)}
        out[group] = {label: summary(*(values[own] for values in columns)) for label, own in members.items()}
    return out | json.loads(attrs["new"])


def as_text(scored: xr.Dataset) -> str:
    """The scores for a terminal of 80 columns, verdict first."""
    out = as_json(scored)
    lines = wording.opening(out, VERDICTS) + textwrap.wrap(
        f"{out['n']} rows of {out['n_checkpoints']} checkpoints; {out['n_ln']} of them pass three standard errors and "
        f"are scored on ln QiD too. Law {out['law']}, model {out['model']}. Share of rows inside the equal-tailed "
        "interval of each mass; median |ln error|, mean CRPS and bias of ln QiD.", 80)  # fmt: skip

    def line(label: str, said: dict) -> str:
        def show(value: float | None, digits: int) -> str:
            return "-" if value is None else f"{value:.{digits}f}"

        shares = said.get("coverage", dict.fromkeys(f"{mass:g}" for mass in MASSES))
        rest = "".join(f"{show(said[key], 3):>8}" for key in ("median_abs_ln_error", "crps_ln", "bias"))
        return f"{label[:23]:<23}{said.get('n', ''):>5}{''.join(f'{show(v, 2):>7}' for v in shares.values())}{rest}"

    lines += ["", f"{'':<23}{'n':>5}{'50 %':>7}{'80 %':>7}{'90 %':>7}{'95 %':>7}{'|ln e|':>8}{'CRPS':>8}{'bias':>8}"]
    lines.append(line("this posterior", out))
    lines += [line(name, said) for name, said in out["baselines"].items()]
    for group in GROUPS:
        lines += ["", group.replace("_", " ")]
        lines += [line(f"  {label}", said) for label, said in out[group].items()]
    lines.append("")
    if out["diverged"]["n"] or out["diverged"]["expected"] >= 0.5:
        lines.append(f"Diverged: {out['diverged']['n']} rows, {out['diverged']['expected']:.1f} expected.")
    for name in ("new_families", "new_methods", "unknown_methods"):
        if out[name]:
            said = ", ".join(f"{level} ({count})" for level, count in out[name].items())
            lines += textwrap.wrap(f"{name.replace('_', ' ').capitalize()}: {said}.", 80, subsequent_indent="  ")
    if out["n_dropped"]:
        said = "; ".join(f"{count} {reason}" for reason, count in out["n_dropped"].items())
        lines += textwrap.wrap(f"Dropped: {said}.", 80, subsequent_indent="  ")
    return "\n".join(lines).rstrip()
