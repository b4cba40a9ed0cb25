"""Next: which checkpoints and recipes to measure so that a projection narrows most per GPU-hour."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from bayesqid import files, likelihood
from bayesqid import suite as suites
from bayesqid.answers import asking, design, draws, measurable, plan_file, project, record, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

SUITE, BUDGET = "pythia", "8"
PARAMS, BITS = 70e9, 4.0
MOST = 100
PER = {"hour": "GPU-hour", "checkpoint": "checkpoint"}
# the law as fitted, and with room for bends that it has none for
SCENARIOS = ("fitted", "bent")
QUANTILES = (0.05, 0.95)


def parse_budget(text: str) -> tuple[int, float]:
    """Checkpoints and GPU-hours of a budget: `8` is (8, inf), `2.5h` is (100, 2.5); `BadInput` for others."""
    number, hours = text.strip().removesuffix("h"), text.strip().endswith("h")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if hours and math.isfinite(value) and value > 0:
        return MOST, value
    if not hours and value in range(1, MOST + 1):
        return int(value), math.inf
    raise BadInput(f"--budget {text!r} is not known: give 1 to {MOST} checkpoints, e.g. 8, or GPU-hours, e.g. 2.5h.")


def positive(option: str, value: float) -> float:
    """The value if it is a finite number above zero; `BadInput` otherwise."""
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{option} is {value:g}: give a finite number above zero.")
    return float(value)


def family_of(posterior: Posterior, plan: suites.Suite, family: str | None, new_family: bool) -> str:
    """Family of the target under the name that it has in suite or posterior; a new one has a name that neither has.

    Without a wish it is the suite's: the first that is fitted, else the first.
    """
    own = list(dict.fromkeys(c.family for c in plan.checkpoints))
    if family is not None and new_family:
        raise BadInput("--family and --new-family contradict each other: give one of them.")
    if new_family:
        return "a new family"
    if family is None:
        return next((name for name in own if name in posterior.families), own[0] if own else "a new family")
    listed = {name.casefold(): name for name in own}
    return listed.get(family.casefold()) or draws.require_family(posterior, family)


def target_of(
    posterior: Posterior, family: str, tokens: float, params: float | None, known: dict | None, bits: float | None,
    recipes: str | None, method: str, lr_phase: str,
) -> Target:  # fmt: skip
    """The one target of the question; what is not said is 70e9 parameters and GPTQ at 4 bits."""
    size = PARAMS if params is None and known is None else params
    width = BITS if bits is None and recipes is None else bits
    asked = asking.targets(posterior, tokens, size, known, width, recipes, method, None, True, lr_phase)
    if len(asked) > 1:
        raise BadInput("--recipes names several targets: give the one recipe to be projected.")
    return replace(asked[0], family=family)


def next_(
    posterior: Posterior, suite: str | suites.Suite = SUITE, budget: str = BUDGET, candidates: str | None = None,
    tokens: float = 1e14, params: float | None = None, known: dict | None = None, bits: float | None = None,
    recipes: str | None = None, method: str = asking.DEFAULT_METHOD, family: str | None = None,
    new_family: bool = False, lr_phase: str = "annealed", per: str = "hour", error: float | None = None,
    flops: float = measurable.COST["flops"], seed: int = project.SEED,
) -> xr.Dataset:  # fmt: skip
    """Checkpoints of a suite to measure, in order, and what is left of a target's uncertainty after each, dim `pick`.

    The target is ln QiD of the law (band `mean`) of one model and recipe, by default 70e9 parameters of the suite's
    family after 1e14 tokens under GPTQ at 4 bits. `budget`: checkpoints, or GPU-hours with an h. `candidates`: recipes
    to choose from, by default the suite's. `per` "hour" or "checkpoint": what the gain is divided by
    (`design.choose`). The gain is the fall of the log variance, under the law as fitted and under the same with the
    bends of the law `curved` as further unknowns, each as a share of what could be reached for it alone. `error`:
    standard error of a new QiD, nats, by default the median of the fitted cells. `flops`: FLOP/s reached, for the cost
    (`measurable.hours`).
    """
    most, most_hours = parse_budget(budget)
    if per not in PER:
        raise BadInput(f"--per {per!r} is not known: choose one of {', '.join(PER)}.")
    plan = suite if isinstance(suite, suites.Suite) else suites.load(suite)
    texts = list(plan.recipes) if candidates is None else [text.strip() for text in candidates.split(",")]
    error = float(posterior.cells["qid_se"].median()) if error is None else positive("--error", error)
    named = family_of(posterior, plan, family, new_family)
    target = target_of(posterior, named, tokens, params, known, bits, recipes, method, lr_phase)
    rows, left_out = measurable.usable(posterior, plan)
    if not rows:
        raise BadInput(f"Suite {plan.name} has no checkpoint left to measure: name another with --suite.")
    fuller = measurable.with_families(posterior, [*(row.first.family for row in rows), named], seed)
    pool = measurable.pool(fuller, plan, rows, texts, target, error, positive("--flops", flops), seed)
    picks = design.choose(pool, most, most_hours, per == "hour", math.log(measurable.APART))
    if not picks:
        raise BadInput(f"--budget {budget} pays for no checkpoint of {plan.name} that tells anything: give more.")
    return table(posterior, rows, texts, target, pool, picks).assign_attrs(
        told(posterior, plan, target, left_out)
        | {"budget": budget, "per": PER[per], "error": error, "flops": flops, "candidate_recipes": ", ".join(texts),
           "candidates": sum(len(row.checkpoints) for row in rows)}
    )  # fmt: skip


def told(posterior: Posterior, plan: suites.Suite, target: Target, left_out: dict[str, int]) -> dict:
    """What every answer says of itself, the target, and what was left out of the suite."""
    fitted = target.family if target.family in posterior.families else None
    beyond = project.extrapolation(posterior, replace(target, family=fitted))
    outside = beyond["n_ratio"] > 1 or beyond["d_ratio"] > 1 or beyond["p_outside"]
    takes = project.assumptions([target]) | {"family": f"{target.family}{'' if fitted else ' (not fitted)'}"}
    return record.attrs(posterior, project.verdict(posterior, [fitted], outside), takes) | {
        "band": "mean", "suite": plan.name, "source": str(plan.source), "excluded": json.dumps(left_out),
        "family": str(target.family), "params": target.params, "tokens": target.tokens,
        "bits": float(target.bits or target.effective_bits), "method": target.method,
    }  # fmt: skip


def shrunk(eta: np.ndarray, factor: float, headroom: float) -> np.ndarray:
    """Equal-tailed 90 % band of QiD, nats, of draws of ln QiD drawn together about their median by a factor."""
    middle = np.median(eta)
    seen = likelihood.saturate(np.exp(np.minimum(middle + factor * (eta - middle), 50.0)), headroom)
    return np.quantile(seen, QUANTILES)


def table(
    posterior: Posterior, rows: Sequence[measurable.Row], texts: Sequence[str], target: Target, pool: design.Pool,
    picks: Sequence[design.Pick],
) -> xr.Dataset:  # fmt: skip
    """One entry per pick; `sd` (scenario, step) is that of the target's ln QiD, step 0 before any pick."""
    runs = measurable.runs_of(rows)
    chosen = [next(c for c in rows[pick.row].checkpoints if measurable.run_of(c) == runs[pick.run]) for pick in picks]
    before = [design.start(pool, number).variance for number in range(len(pool.variances))]
    sd = np.sqrt(np.array([before, *(pick.variance for pick in picks)]).T)
    headroom = draws.nearest_headroom(posterior, target.params)
    data = {
        "sd": (("scenario", "step"), sd), "hours": ("pick", np.array([pick.hours for pick in picks])),
        "band_now": ("end", shrunk(pool.target, 1.0, headroom)),
        "band_after": ("end", shrunk(pool.target, float(sd[0, -1] / sd[0, 0]), headroom)),
    }  # fmt: skip
    coords = {
        "scenario": list(SCENARIOS[: len(before)]), "end": ["lower90", "upper90"],
        "checkpoint": ("pick", [c.id for c in chosen]), "hub": ("pick", [c.hub for c in chosen]),
        "revision": ("pick", [c.revision for c in chosen]), "family": ("pick", [c.family for c in chosen]),
        "model": ("pick", [c.model for c in chosen]),
        "params": ("pick", np.array([c.n_params_nonembedding for c in chosen], dtype=float)),
        "tokens": ("pick", np.array([c.train_tokens for c in chosen], dtype=float)),
        "lr_phase": ("pick", [c.lr_phase for c in chosen]),
        "recipes": ("pick", [",".join(texts[r] for r in pick.recipes) for pick in picks]),
    }  # fmt: skip
    return xr.Dataset(data, coords)


def rows(answer: xr.Dataset) -> list[dict]:
    """The picks as plain rows, in order."""
    out, names = [], ("checkpoint", "hub", "revision", "model", "family", "params", "tokens", "lr_phase")
    spent = np.cumsum(answer["hours"].to_numpy())
    for i in range(answer.sizes["pick"]):
        row: dict = {name: answer[name].values[i].item() for name in names}
        row |= {"recipes": str(answer["recipes"].values[i]).split(","), "gpu_hours": float(answer["hours"][i]),
                "gpu_hours_so_far": float(spent[i])}  # fmt: skip
        for name, sd in zip(answer["scenario"].values, answer["sd"].to_numpy(), strict=True):
            row[f"sd_{name}"] = {"before": float(sd[i]), "after": float(sd[i + 1])}
        out.append(row)
    return out


def write(answer: xr.Dataset, path: Path) -> list[Path]:
    """Write the picks as a suite that `bayesqid measure` takes (`plan_file.texts`); the files written.

    Every recipe that some pick has is measured at all of them: a suite has one list.
    """
    if path.suffix != ".toml":
        raise BadInput(f"--output {path} is no TOML file: name one, e.g. next.toml.")
    plan = suites.load(answer.attrs["source"])
    by_id = {c.id: c for c in plan.checkpoints}
    used = {text for texts in answer["recipes"].values for text in str(texts).split(",")}
    recipes = [text for text in answer.attrs["candidate_recipes"].split(", ") if text in used]
    made = plan_file.texts(plan, [by_id[name] for name in answer["checkpoint"].values], recipes, path)
    for place, text in made.items():
        files.write_text(place, text)
    return list(made)


def as_json(answer: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract."""
    bands = {name: dict(zip(("lower90", "upper90"), answer[name].to_numpy().tolist(), strict=True))
             for name in ("band_now", "band_after")}  # fmt: skip
    return record.decoded(answer.attrs) | bands | {"rows": rows(answer)}


def as_text(answer: xr.Dataset) -> str:
    """The picks as a table for a terminal of 80 columns, verdict first."""
    told = record.decoded(answer.attrs)
    takes, short, count = told["assumptions"], wording.short, wording.count_text
    (low, high), (lower, upper) = (answer[name].to_numpy() for name in ("band_now", "band_after"))

    def sds(values) -> str:
        return "".join(f"{value:8.3f}" for value in values)

    lines = [
        *wording.opening(told),
        *textwrap.wrap(
            f"Target: QiD of the law (band 'mean') at {count(told['params'])} parameters of {takes['family']}, "
            f"{count(told['tokens'])} tokens, {told['method']} at {told['bits']:g} bits; law {told['law']}, model "
            f"{told['model']}; learning rate {takes['lr_phase']}; {takes['text']}.", 80),
        *textwrap.wrap(
            f"Equal-tailed 90 % band: {short(low)} to {short(high)} nats now, a factor of {high / low:.3g}; a factor "
            f"of {upper / lower:.3g} is expected after these measurements.", 80),
        "",
        f"{'':<50}{'GPU-':>7}   sd of ln QiD",
        f"{'checkpoint':<36}{'params':>7}{'tokens':>7}{'hours':>7}"
        + "".join(f"{name:>8}" for name in answer["scenario"].values),
        f"{'now':<57}{sds(answer['sd'].to_numpy()[:, 0])}",
    ]  # fmt: skip
    for row in rows(answer):
        name = f"{row['model']}@{row['revision']}"
        lines.append(f"{name if len(name) < 36 else name[:32] + '...':<36}{count(row['params']):>7}"
                     f"{count(row['tokens']):>7}{row['gpu_hours']:>7.2f}"
                     + sds(row[f"sd_{scenario}"]["after"] for scenario in answer["scenario"].values))  # fmt: skip
        lines += textwrap.wrap(", ".join(row["recipes"]), 76, initial_indent="    ", subsequent_indent="    ")
    total, cells = float(answer["hours"].sum()), sum(len(row["recipes"]) for row in rows(answer))
    bent = " in both columns alike (bent: with room for bends of the law)" * (answer.sizes["scenario"] > 1)
    closing = (
        f"{cells} measurements in {total:.2g} GPU-hours, at {told['flops']:.2g} FLOP/s. Chosen one after another by "
        f"the fall of the log variance per {told['per']}{bent}. Among {told['candidates']} checkpoints; standard error "
        f"of a QiD {told['error']:.2g} nats."
    )
    return "\n".join([*lines, "", *textwrap.wrap(closing, 80)])
