"""What a posterior rests on, in one place: checks, what the data informed, fit by groups, sensitivity to the priors."""

import json
import textwrap

from bayesqid import methods
from bayesqid.answers import asking, draws, identification, sensitivity
from bayesqid.answers.draws import Posterior, Target


def asked(tokens: float, params: float | None = None, bits: float | None = None) -> list[Target]:
    """Targets of a new family under the default method, default 1B to 405B at 2, 3 and 4 bits."""
    sizes = asking.DEFAULT_PARAMS if params is None else (asking.positive("params", params),)
    method = methods.effect_key(*methods.canonical(asking.DEFAULT_METHOD))
    return [asking.target_of(None, width, method, family=None, params=size, tokens=asking.positive("tokens", tokens))
            for size in sizes for width in (asking.DEFAULT_BITS if bits is None else (bits,))]  # fmt: skip


def of(posterior: Posterior, params: float, tokens: float, bits: float) -> dict:
    """Checks, parameters from prior to posterior, stored diagnosis and sensitivity, JSON-able without NaN."""
    attrs = posterior.tree.attrs
    if posterior.law.features:
        # a law of the loss landscape cannot be asked about a size: the middle of what was fitted stands for it
        method = draws.require_method(posterior, asking.DEFAULT_METHOD)
        targets = [draws.typical(posterior, family, method) for family in (None, *posterior.families)]
    else:
        targets = sensitivity.default_targets(posterior, params, tokens, bits)
    return {
        "law": attrs["law"], "model": attrs["model"], "interval": "eti", "checks": posterior.checks,
        "posterior": {"path": posterior.path, "sha256": posterior.sha256, "origin": posterior.origin},
        "parameters": identification.table(posterior), "families": identification.families(posterior),
        "says": identification.sentences(posterior), "diagnosis": json.loads(attrs.get("diagnosis", "null")),
        "sensitivity": sensitivity.answer(posterior, targets),
    }  # fmt: skip


def as_text(found: dict) -> str:
    """`of` for a terminal of 80 columns, failed checks first."""
    failed = [name for name, good in found["checks"].items() if not good]
    lines = [f"Checks failed: {', '.join(failed)}." if failed else "All checks passed."]
    lines += [f"Law {found['law']}, model {found['model']}; intervals equal-tailed.", ""]
    lines += [identification.as_text(found["parameters"]), ""]
    for sentence in found["says"]:
        lines += textwrap.wrap(sentence, 80)
    lines += ["", diagnosis_text(found["diagnosis"]), "", sensitivity.as_text(found["sensitivity"])]
    return "\n".join(lines)


def diagnosis_text(found: dict | None) -> str:
    """The predictive checks by groups that `sample` stored, as a table of 80 columns."""
    if found is None:
        return "Predictive checks by groups: not in this file."
    loo = found["loo"] is not None
    lines = textwrap.wrap(
        "Fitted cells against the model by groups: share inside the 50 % and 90 % predictive intervals, mean and sd of "
        "the standardised residuals, tail areas of both (small or near 1: not what the model predicts)"
        + (", uniformity of leave-one-out PITs." if loo else "."), 80)  # fmt: skip
    lines += ["", f"{'group':<18}{'cells':>6}{'50 %':>6}{'90 %':>6}{'mean':>7}{'sd':>6}{'p mean':>8}{'p sd':>8}"
              + (f"{'p PIT':>8}" if loo else "")]  # fmt: skip
    for row in found["groups"]:
        name = _name(row)
        spread = "-" if row["sd_z"] is None else f"{row['sd_z']:.2f}"
        areas = [row["p_mean"], row["p_sd"]] + ([row["p_loo_pit"]] if loo else [])
        lines.append(f"{name[:17]:<18}{row['cells']:>6}{row['coverage50']:>6.0%}{row['coverage90']:>6.0%}"
                     f"{round(row['mean_z'], 2) + 0.0:>7.2f}{spread:>6}" + "".join(f"{_area(p):>8}" for p in areas)
                     )  # fmt: skip
    told = [f"{_name(row)}: {row['says']}" for row in found["groups"] if row["says"]]
    lines += textwrap.wrap("Surprising: " + "; ".join(told) + "." if told else "No group is surprising.", 80)
    if loo:
        lines += textwrap.wrap(
            f"{found['loo']['cells_above_limit']} cells have a Pareto k above {found['loo']['pareto_k_limit']:.2g}: "
            "their leave-one-out PITs are not to be relied on.", 80)  # fmt: skip
    return "\n".join(lines)


def _name(row: dict) -> str:
    if row["by"] != "bits":
        return row["level"]
    return f"{row['level']} bit" + ("" if row["level"] == "1" else "s")


def _area(p: float | None) -> str:
    return "-" if p is None else "<.001" if p < 0.001 else ">.999" if p > 0.999 else f"{p:.3f}"
