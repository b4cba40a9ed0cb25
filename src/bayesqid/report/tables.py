"""Tables of a report: each a pure function of the posterior or of its projection."""

import numpy as np
import xarray as xr

from bayesqid.answers import curves, draws, identification, project, wording
from bayesqid.answers.draws import Posterior
from bayesqid.report.blocks import Column, Table, chance, number, span

DESTROYED = 0.5
CENTRAL = {"lower90": 0.05, "lower50": 0.25, "upper50": 0.75, "upper90": 0.95}
COUNTED = wording.count_text
FAMILY = Column("family", lambda row: row["family"], number=False, one_line=True)


def summary(sample: np.ndarray) -> dict[str, float]:
    """Mean and equal-tailed 50 % and 90 % limits of draws."""
    limits = {name: float(np.quantile(sample, q)) for name, q in CENTRAL.items()}
    return {"mean": float(sample.mean())} | limits


def informed(value: float | None) -> str:
    """What a contraction says: data, prior, or fixed where the model does not let the parameter vary."""
    if value is None:
        return "fixed"
    return "data" if value >= draws.IDENTIFIED else "prior"


def reads(row: dict) -> str:
    """A contraction as readers see it: "prior" below 0.2."""
    if row["informed"] != "data":
        return row["informed"]
    return f"{row['contraction']:.2f}"


def answer(projection: xr.Dataset) -> Table:
    """The projection, one row per target; a QiD past saturation is words instead of a number."""
    rows = []
    for row in project.rows(projection):
        beyond, parts = row.pop("extrapolation"), row.pop("shares")
        loss = {f"loss_{name}": value for name, value in row.pop("loss", {}).items()}
        flat = row | loss | beyond | {f"share_{name}": value for name, value in parts.items()}
        rows.append(flat | {"loss_destroyed": row["p_saturated"] > DESTROYED})
    any_destroyed = any(row["loss_destroyed"] for row in rows)

    def unless_destroyed(show, instead: str):
        return lambda row: instead if row["loss_destroyed"] else show(row)

    # what every row shares stands in the title and not in a column: twelve columns fit no page
    shared = {name: len({row[name] for row in rows}) == 1 for name in ("family", "tokens", "method")}
    first = rows[0]
    common = [
        text
        for name, text in (
            ("family", f"family {first['family']}" if first["family"] != "new" else "a new family"),
            ("tokens", f"{COUNTED(first['tokens'])} tokens"),
            ("method", str(first["method"])),
        )
        if shared[name]
    ]
    columns = (
        *([] if shared["family"] else [FAMILY]),
        Column("parameters", lambda row: COUNTED(row["params"])),
        *([] if shared["tokens"] else [Column("tokens", lambda row: COUNTED(row["tokens"]))]),
        *([] if shared["method"] else [Column("method", lambda row: row["method"], number=False)]),
        Column("bits", lambda row: f"{row['bits']:g}"),
        Column("median QiD", unless_destroyed(lambda row: number(row["median"]), "loss destroyed")),
        Column("50 % ETI", unless_destroyed(lambda row: span(row["lower50"], row["upper50"]), "–")),
        Column("90 % ETI", unless_destroyed(lambda row: span(row["lower90"], row["upper90"]), "–")),
        *(Column(f"P(>{limit})", lambda row, name=f"p_gt_{limit}": chance(row[name])) for limit in project.THRESHOLDS),
        Column("P(saturated)", lambda row: chance(row["p_saturated"])),
        Column("beyond the data", beyond_words),
    )  # fmt: skip
    note = (
        "QiD is the loss after quantization minus the loss before, in nats per token; 0.2 nats multiply perplexity by "
        "1.22. ETI: equal-tailed credible interval. P(>0.2): probability that QiD exceeds 0.2. P(saturated): "
        "probability that the law without a ceiling passes the loss of a uniform guess."
    )
    if any_destroyed:
        note += " “Loss destroyed” stands for a number where that probability is above 50 %."
    title = "Projected QiD in nats per token" + (f": {', '.join(common)}" if common else "")
    return Table("answer", title, columns, rows, note)


def beyond_words(row: dict) -> str:
    """How far a target lies outside the fitted range, in words."""
    parts = [f"{letter} {times(row[key])}×" for letter, key in (("N", "n_ratio"), ("D", "d_ratio")) if row[key] > 1]
    parts += ["bits"] if row["p_outside"] else []
    return ", ".join(parts) if parts else "no"


def times(ratio: float) -> str:
    """A ratio in short form: 6.67, 25M."""
    return f"{ratio:.3g}" if ratio < 1e3 else COUNTED(ratio)


def parameters(posterior: Posterior) -> Table:
    """Population mean, spread and every family's value of each term, with contraction from prior to posterior."""
    prior = posterior.tree["prior"].to_dataset()
    rows = []
    for term in posterior.law.term_names:
        for name, scope in (("mu", "population mean"), ("sd", "spread between families")):
            before = prior[name].sel(term=term).to_numpy().astype(float).ravel()
            after = posterior.sample[name].sel(term=term).to_numpy()
            # a model without this level keeps it fixed: nothing to report
            if before.std() > 0 and after.std() > 0:
                rows.append(_row(term, scope, "", after, before, draws.contraction(posterior, name, term)))
        for family in posterior.families:
            before = prior["theta"].sel(term=term, family=family).to_numpy().astype(float).ravel()
            after = posterior.sample["theta"].sel(term=term, family=family).to_numpy()
            rows.append(_row(term, "family", family, after, before,
                             identification.family_contraction(posterior, term, family)))  # fmt: skip
    columns = (
        Column("term", lambda row: row["term"], number=False),
        Column("of", lambda row: row["family"] or row["scope"], number=False),
        Column("posterior mean", lambda row: number(row["mean"])),
        Column("90 % ETI", lambda row: span(row["lower90"], row["upper90"])),
        Column("prior 90 % ETI", lambda row: span(row["prior_lower90"], row["prior_upper90"])),
        Column("contraction", reads),
    )
    note = (
        "Contraction is 1 − var(posterior) / var(prior); below 0.2 it reads “prior”: there the data did not speak. "
        "alpha: exponent of parameters; beta: of tokens; gamma: of bits, at 3 bits; log_k: ln QiD at 1e9 parameters, "
        "1e11 tokens and 3 bits. ETI: equal-tailed interval."
    )
    return Table("parameters", "Parameters of the law", columns, rows, note, grouped=True)


def _row(term: str, scope: str, family: str, after: np.ndarray, before: np.ndarray, value: float | None) -> dict:
    prior = {f"prior_{name}": float(np.quantile(before, q)) for name, q in CENTRAL.items()}
    return {"term": term, "scope": scope, "family": family} | summary(after) | prior | {
        "contraction": value, "informed": informed(value)
    }  # fmt: skip


def published(posterior: Posterior) -> Table:
    """The exponents that the sources print, for comparison."""
    columns = (
        Column("law", lambda row: row["law"], number=False),
        Column("alpha", lambda row: number(row["alpha"])),
        Column("beta", lambda row: number(row["beta"])),
        Column("gamma", lambda row: number(row["gamma"])),
        Column("source", lambda row: row["citation"], number=False),
    )
    note = "Point estimates without intervals, as printed. Columns of one bit width fix no gamma."
    return Table("published", "Published exponents", columns, curves.published_slopes(), note)


def identified(rows: list[dict]) -> Table:
    """How the tokens of each family vary and how much its own beta was learned."""
    columns = (
        FAMILY,
        Column("checkpoints", lambda row: str(row["checkpoints"])),
        Column("sizes", lambda row: str(row["sizes"])),
        Column("token counts", lambda row: str(row["tokens_counts"])),
        Column("tokens max/min", lambda row: f"{row['tokens_ratio']:.3g}"),
        Column("sd of ln D given ln N", lambda row: f"{row['left_sd']:.2f}"),
        Column("tokens vary apart from size", lambda row: "yes" if row["varies"] else "no", number=False),
        Column("best error of own beta", lambda row: number(row["error"])),
        Column("contraction of beta", lambda row: reads(row | {"informed": informed(row["contraction"])})),
        Column("contraction of beta − mean", lambda row: reads(
            {"contraction": row["contraction_deviation"], "informed": informed(row["contraction_deviation"])})),
    )  # fmt: skip
    note = (
        "sd of ln D given ln N: root mean square of what is left of ln D over the family's checkpoints after a "
        "straight line in ln N; from 0.1 on the tokens count as varying apart from size. Best error: spread between "
        "checkpoints (posterior median) over the root of the residual sum of squares, the standard error that the "
        "family's checkpoints alone could give its beta. The last column is that of beta minus the population mean."
    )
    return Table("identification", "What varies within each family", columns, rows, note)


def effects(posterior: Posterior) -> Table:
    """Covariates, spreads of the effects, levels of the generations, scatter and the exponent of the bit scale."""
    sample, prior = posterior.sample, posterior.tree["prior"].to_dataset().astype(float)
    law = posterior.law
    wanted = [("covariate", c.name, "covariate", {"covariate_name": c.name}) for c in law.covariates]
    wanted += [("spread of effect", e.name, "spread", {"effect": e.name}) for e in law.effects]
    for e in law.effects:
        if e.by == "generation" and e.name in sample:
            wanted += [(e.name, str(g), e.name, {"generation": g}) for g in sample[e.name]["generation"].values]
    wanted += [("scatter tau", str(g), "tau", {"generation": g}) for g in sample["tau"]["generation"].values]
    wanted += [("bit scale", "lam", "lam", {})]
    rows = []
    for kind, name, variable, where in wanted:
        after = sample[variable].sel(where).to_numpy()
        before = prior[variable].sel(where).to_numpy().ravel()
        if before.std() < 1e-9:
            continue
        value = 1 - float(after.var() / before.var())
        rows.append({"kind": kind, "name": name} | summary(after) | {"contraction": value, "informed": informed(value)})
    columns = (
        Column("kind", lambda row: row["kind"], number=False),
        Column("name", lambda row: row["name"], number=False),
        Column("posterior mean", lambda row: number(row["mean"])),
        Column("90 % ETI", lambda row: span(row["lower90"], row["upper90"])),
        Column("contraction", reads),
    )
    note = (
        "On the scale of ln QiD: 0.1 is about 10 %. lam: 0 is a power of bits, 1 an exponential. "
        "ETI: equal-tailed interval. Contraction below 0.2 reads “prior”."
    )
    return Table("effects", "Covariates, effects and scatter", columns, rows, note, grouped=True)
