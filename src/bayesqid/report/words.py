"""Sentences of a report: every one is built from the numbers that it states."""

import json
import shlex

import numpy as np
import xarray as xr

from bayesqid.answers import asking, draws, identification, project, wording
from bayesqid.answers.draws import Posterior
from bayesqid.report import asked
from bayesqid.report.blocks import chance, number, share, span
from bayesqid.report.tables import COUNTED, DESTROYED, times

BANDS = {
    "mean": "the law of the family under the recipe, without scatter",
    "new": "a new checkpoint under the recipe, its own deviation and scatter included",
    "observed": "a new checkpoint under the recipe, deviation, scatter and measurement error included",
}


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
    """The row that the summary states (`asked.headline`)."""
    return asked.headline(project.rows(projection))


def tokens_clause(posterior: Posterior, identified: list[dict], family: str | None = None) -> str:
    """What the tokens exponent that an answer about a family rests on is informed by, as a clause.

    `identified`: `identification.families`.
    """
    if identification.tokens_term(posterior) is None:
        return "the law as fitted has no term of tokens"
    if not project.informed(posterior, family):
        return "the data do not inform the tokens exponent, so the interval is the prior's"
    telling = [row["family"] for row in identified if row["varies"] and (row["within"] or 0.0) >= draws.IDENTIFIED]
    if len(identified) == 1:
        return (f"the tokens exponent is informed within {identified[0]['family']} only, the one family of the data"
                if identified[0]["varies"] else
                "in the one family of the data the effect of tokens cannot be told from that of size")  # fmt: skip
    if not telling:
        return "the tokens exponent is informed by differences between families only"
    rest = " and by differences between families" if len(telling) < len(identified) else ""
    return f"the tokens exponent is informed within {listed(telling)}{rest}"


WHOSE = {"new": "a new family's model", "population": "a model of the mean of all families"}


def lead(posterior: Posterior, projection: xr.Dataset) -> str:
    """The answer in one sentence, with what its tokens exponent rests on."""
    row = headline(projection)
    whose = WHOSE.get(row["family"], f"a model of {row['family']}")
    says = f"at {COUNTED(row['tokens'])} tokens and {row['bits']:g} bits {whose} of {COUNTED(row['params'])} parameters"
    if row["p_saturated"] > DESTROYED:
        says += (f" has its loss destroyed (the law passes that of a uniform guess with probability "
                 f"{chance(row['p_saturated'])})")  # fmt: skip
    else:
        says += (f" loses {number(row['median'])} nats per token (median; 90 % equal-tailed interval "
                 f"{span(row['lower90'], row['upper90'])})")  # fmt: skip
    family = None if row["family"] in WHOSE else row["family"]
    text = f"{says}; {tokens_clause(posterior, identification.families(posterior), family)}."
    if failed_checks(posterior):
        return f"Not to be used, for the sampler's own checks did not pass: {text}"
    return f"{text[:1].upper()}{text[1:]}"


def summary(posterior: Posterior, projection: xr.Dataset) -> str:
    """One paragraph: the answer, how sure, what was fitted, how far from the data."""
    attrs, cells, row = projection.attrs, posterior.cells, headline(projection)
    tokens, params = cells["train_tokens"].to_numpy(), cells["n_params_nonembedding"].to_numpy()
    takes = json.loads(attrs["assumptions"])
    families = posterior.families
    many = f"{len(families)} families" if len(families) > 1 else f"one family ({families[0]})"
    parts = [lead(posterior, projection)]
    asked_of = f"That is quantized with {row['method']} to {row['effective_bits']:.4g} effective bits"
    if row["p_saturated"] <= DESTROYED:
        asked_of += (f"; the 50 % equal-tailed interval is {span(row['lower50'], row['upper50'])}, the probability to "
                     f"lose more than 0.2 is {chance(row['p_gt_0.2'])}")  # fmt: skip
    parts.append(f"{asked_of}.")
    parts.append(
        f"The law {attrs['law']} ({attrs['model']} model) was fitted to {cells.sizes['cell']:,} cells of {many}, with "
        f"{COUNTED(np.nanmin(tokens))} to {COUNTED(np.nanmax(tokens))} training tokens and {COUNTED(params.min())} to "
        f"{COUNTED(params.max())} non-embedding parameters."
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


def calibration(posterior: Posterior) -> list[str]:
    """What the stored predictive checks say of all cells, left-out ones first, and of the groups that surprise."""
    found = json.loads(posterior.tree.attrs.get("diagnosis", "{}"))
    if not found:
        return ["The predictive checks by groups are not in this file."]
    whole = next(row for row in found["groups"] if row["by"] == "all")
    out = []
    if whole.get("loo_coverage90") is None:
        out.append(f"Of {whole['cells']:,} fitted cells {share(whole['coverage50'])} lie inside their 50 % and "
                   f"{share(whole['coverage90'])} inside their 90 % equal-tailed intervals; cells left out are not in "
                   "this file.")  # fmt: skip
    else:
        out.append(f"Predicted from all others, {share(whole['loo_coverage50'])} of {whole['cells']:,} cells lie "
                   f"inside their 50 % and {share(whole['loo_coverage90'])} inside their 90 % equal-tailed intervals; "
                   "the uniformity of their probability integral transforms has a p-value of "
                   f"{whole['p_loo_pit']:.2g}.")  # fmt: skip
    odd = [f"{row['level']}{' bits' if row['by'] == 'bits' else ''} ({row['says']})" for row in found["groups"]
           if row["says"] and row["by"] != "all"]  # fmt: skip
    out.append(f"Surprising groups: {', '.join(odd)}." if odd else "No group of cells is surprising.")
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
    fit, question = posterior.tree.attrs.get("command"), projection.attrs.get("command")
    rows = project.rows(projection)
    usual = {(n, float(b), asking.DEFAULT_METHOD) for n in asking.DEFAULT_PARAMS for b in asking.DEFAULT_BITS}
    one_question = len({(row["tokens"], row["family"]) for row in rows}) == 1
    if question is None and one_question and {(row["params"], row["bits"], row["method"]) for row in rows} == usual:
        name = posterior.path.replace("\\", "/").rsplit("/", 1)[-1]
        family = "" if rows[0]["family"] == "new" else f" --family {shlex.quote(rows[0]['family'])}"
        band = "" if projection.attrs["band"] == "new" else f" --band {projection.attrs['band']}"
        tokens = f"{rows[0]['tokens']:.12g}".replace("e+", "e")
        question = f"bayesqid report {shlex.quote(name)} --tokens {tokens}{family}{band} -o report"
    return tuple(str(line) for line in (fit, question) if line)
