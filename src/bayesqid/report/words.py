"""Sentences of a report: every one is built from the numbers that it states."""

import json
import shlex

import xarray as xr

from bayesqid.answers import asking, project, wording
from bayesqid.answers.draws import Posterior
from bayesqid.report.blocks import chance, number, share, span
from bayesqid.report.tables import COUNTED, DESTROYED, times

BANDS = {
    "mean": "the law of the family under the recipe, without scatter",
    "new": "a new checkpoint under the recipe, its own deviation and scatter included",
    "observed": "a new checkpoint under the recipe, deviation, scatter and measurement error included",
}
HEADLINE = 7e9


def listed(names: list[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sentence(text: str) -> str:
    """A clause with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def failed_checks(posterior: Posterior) -> list[str]:
    """Names of the checks that failed."""
    return [name for name, good in posterior.checks.items() if not good]


def alerts(posterior: Posterior, projection: xr.Dataset) -> list[str]:
    """What must be read before any number: failed checks, then what else limits the answer beyond its verdict."""
    failed = failed_checks(posterior)
    out = [f"Checks failed: {', '.join(failed)}."] if failed else []
    if not project.informed(posterior, None) and projection.attrs["verdict"] == "checks failed":
        out.append(sentence(wording.VERDICTS["not identified"]))
    if is_outside(projection) and projection.attrs["verdict"] not in ("extrapolation", "ok"):
        out.append(sentence(wording.VERDICTS["extrapolation"]))
    if posterior.tree.attrs.get("warning"):
        out.append(str(posterior.tree.attrs["warning"]))
    return out


def is_outside(projection: xr.Dataset) -> bool:
    """Whether any target lies outside the fitted range."""
    return bool(((projection["n_ratio"] > 1) | (projection["d_ratio"] > 1) | projection["p_outside"]).any())


def headline(projection: xr.Dataset) -> dict:
    """The row that the summary states: the widest recipe of the size nearest 7e9 parameters, most tokens."""
    rows = project.rows(projection)
    size = min({row["params"] for row in rows}, key=lambda n: (max(n / HEADLINE, HEADLINE / n), n))
    return max((row for row in rows if row["params"] == size), key=lambda row: (row["bits"], row["tokens"]))


def summary(posterior: Posterior, projection: xr.Dataset) -> str:
    """One paragraph: what was fitted, what is projected, how sure, how far from the data."""
    attrs, cells, row = projection.attrs, posterior.cells, headline(projection)
    tokens, params = cells["train_tokens"].to_numpy(), cells["n_params_nonembedding"].to_numpy()
    takes = json.loads(attrs["assumptions"])
    families = posterior.families
    many = f"{len(families)} families" if len(families) > 1 else f"one family ({families[0]})"
    of = "of a new family" if row["family"] == "new" else f"of the family {row['family']}"
    parts = [
        f"The law {attrs['law']} ({attrs['model']} model) was fitted to {cells.sizes['cell']:,} cells of {many}, with "
        f"{COUNTED(tokens.min())} to {COUNTED(tokens.max())} training tokens and {COUNTED(params.min())} to "
        f"{COUNTED(params.max())} non-embedding parameters."
    ]
    asked = (
        f"A model {of} with {COUNTED(row['params'])} parameters after {COUNTED(row['tokens'])} tokens, quantized with "
        f"{row['method']} to {row['bits']:g} bits ({row['effective_bits']:.4g} effective),"
    )
    if row["p_saturated"] > DESTROYED:
        parts.append(
            f"{asked} has its loss destroyed: with probability {chance(row['p_saturated'])} the law passes the loss of "
            "a uniform guess."
        )
    else:
        parts.append(
            f"{asked} is projected to lose {number(row['median'])} nats per token (median; 50 % equal-tailed interval "
            f"{span(row['lower50'], row['upper50'])}, 90 % equal-tailed interval "
            f"{span(row['lower90'], row['upper90'])}); the probability that it loses more than 0.2 is "
            f"{chance(row['p_gt_0.2'])}."
        )
    parts.append(f"The band is “{attrs['band']}”: {BANDS[attrs['band']]}; learning rate {takes['lr_phase']}; evaluated "
                 f"on {takes['text']}.")  # fmt: skip
    parts.append(distance(projection))
    return " ".join(parts)


def distance(projection: xr.Dataset) -> str:
    """How far the targets lie from the data."""
    most_n, most_d = float(projection["n_ratio"].max()), float(projection["d_ratio"].max())
    ratios = {"tokens": most_d, "parameters": most_n}
    where = [f"{times(ratio)} times beyond the data in {what}" for what, ratio in ratios.items() if ratio > 1]
    bits = bool(projection["p_outside"].any())
    if not where and not bits:
        return "All targets lie inside the range of the data."
    parts = [f"The targets lie up to {listed(where)}."] if where else []
    parts += ["Some bit widths lie outside the range of the data."] if bits else []
    return " ".join(parts)


def coverage(rows: list[dict], predicted: list[dict]) -> list[str]:
    """What the posterior predictive check found."""
    whole = next((row for row in rows if row["group"] == "all"), None)
    if whole is None:
        return ["No measured cell is left to check: all diverged."]
    out = [
        f"Of {whole['cells']:,} measured cells {share(whole['coverage50'])} lie inside their 50 % and "
        f"{share(whole['coverage90'])} inside their 90 % equal-tailed posterior predictive intervals"
        f"{width_words(whole['coverage50'])}."
    ]
    groups = [row for row in rows if row["group"] == "family and bits" and row["cells"] >= 20]
    if groups:
        least = min(groups, key=lambda row: row["coverage90"])
        out[0] += (f" Among the groups with at least 20 cells the lowest share inside 90 % is "
                   f"{share(least['coverage90'])}: {least['family']} at {least['bits']} bits.")  # fmt: skip
    diverged = [row for row in predicted if row["diverged"]]
    if diverged:
        mean = sum(row["p_diverged"] for row in diverged) / len(diverged)
        out.append(
            f"{len(diverged):,} more {'cell' if len(diverged) == 1 else 'cells'} diverged (QiD above ln 10) and "
            f"entered the fit as censored; the model gives them that with a mean probability of {chance(mean)}."
        )
    return out


def width_words(inside: float) -> str:
    """Whether intervals that should hold half of the cells are too wide or too narrow."""
    if inside > 0.55:
        return ": they are wider than these cells need"
    return ": they are too narrow" if inside < 0.45 else ""


def sources(posterior: Posterior) -> list[str]:
    """What the data sets say of themselves."""
    out = []
    for source in json.loads(posterior.cells.attrs.get("sources", "[]")):
        facts = {key.replace("_", " "): value for key, value in source.items() if key != "name"}
        told = [f"{value} {key}" if isinstance(value, int) else f"{key} {value}" for key, value in facts.items()]
        out.append(f"{source.get('name', 'unnamed')}: {', '.join(told)}." if told else f"{source.get('name')}.")
    return out


def priors(posterior: Posterior) -> list[str]:
    """The priors in force as sentences; one that differs from the law's own is spelt out from its numbers."""
    law = posterior.law
    inforce = json.loads(posterior.tree.attrs.get("priors", "{}"))
    out = []
    for item in (*law.terms, *law.covariates, *law.effects):
        own = {key: getattr(item, key) for key in ("mean", "sd", "spread") if hasattr(item, key)}
        given = inforce.get(item.name, own)
        says = item.sentence if given == own else f"{spelt(given)}, set for this run"
        out.append(f"{item.name}: {says}.")
    scatter = inforce.get("scatter", {"spread": law.scatter})
    out.append(f"scatter: {spelt(scatter)}.")
    if isinstance(law.lam, tuple):
        out.append(f"lam: {spelt(inforce.get('lam', {'mean': law.lam[0], 'sd': law.lam[1]}))}.")
    else:
        out.append(f"lam: {law.lam:g}, fixed by the law.")
    return out


def spelt(prior: dict[str, float]) -> str:
    """A prior from its numbers."""
    parts = []
    if "mean" in prior:
        low, high = prior["mean"] - 1.645 * prior["sd"], prior["mean"] + 1.645 * prior["sd"]
        parts.append(f"between {number(low)} and {number(high)} (90 %; normal)")
    if "spread" in prior:
        parts.append(f"a standard deviation below {number(1.96 * prior['spread'])} (95 %; half-normal)")
    return ", ".join(parts)


def settings(posterior: Posterior) -> list[str]:
    """How the posterior was drawn."""
    attrs = posterior.tree.attrs
    engine = json.loads(attrs.get("engine", "{}"))
    out = [f"Law {attrs['law']}: {posterior.law.formula}. Model {attrs['model']}."]
    if engine.get("engine") == "nuts":
        last = engine["tries"][-1]
        again = f" after {len(engine['tries'])} tries" if len(engine["tries"]) > 1 else ""
        target = last["target_accept"]
        out.append(f"Engine: NUTS, {last['draws']:,} draws a chain, target acceptance {target:g}{again}.")
    elif engine.get("engine") == "laplace":
        out.append(f"Engine: laplace, the fast one, {engine['proposals']:,} importance proposals; not NUTS.")
    elif engine:
        out.append(f"Engine: {engine.get('engine', 'not recorded')}.")
    kept = f"{posterior.size:,} draws"
    if "thinned_from" in attrs:
        kept += f", thinned from {int(attrs['thinned_from']):,}"
    out.append(f"This report reads {kept}.")
    return out


def versions(posterior: Posterior) -> str:
    """Seed, time and versions of the fit."""
    attrs = posterior.tree.attrs
    made = json.loads(attrs.get("versions", "{}"))
    text = f"Seed {attrs.get('seed', 'not recorded')}, drawn {attrs.get('created_at', 'at a time not recorded')}"
    return text + (f", with {', '.join(f'{name} {v}' for name, v in made.items())}." if made else ".")


def commands(posterior: Posterior, projection: xr.Dataset) -> tuple[str, ...]:
    """Command lines that lead to this page, as far as the files recorded them or the question is the default one."""
    fit, asked = posterior.tree.attrs.get("command"), projection.attrs.get("command")
    rows = project.rows(projection)
    usual = {(n, float(b), asking.DEFAULT_METHOD) for n in asking.DEFAULT_PARAMS for b in asking.DEFAULT_BITS}
    one_question = len({(row["tokens"], row["family"]) for row in rows}) == 1
    if asked is None and one_question and {(row["params"], row["bits"], row["method"]) for row in rows} == usual:
        name = posterior.path.replace("\\", "/").rsplit("/", 1)[-1]
        family = "" if rows[0]["family"] == "new" else f" --family {shlex.quote(rows[0]['family'])}"
        band = "" if projection.attrs["band"] == "new" else f" --band {projection.attrs['band']}"
        tokens = f"{rows[0]['tokens']:.12g}".replace("e+", "e")
        asked = f"bayesqid report {shlex.quote(name)} --tokens {tokens}{family}{band} -o report"
    return tuple(str(line) for line in (fit, asked) if line)
