"""What the data informed: every parameter from prior to posterior, and for a term from within or between families."""

import textwrap

import numpy as np

from bayesqid import laws
from bayesqid.answers import draws, information
from bayesqid.answers.draws import Posterior

VARIES = 0.1
NOTHING = 1e-12
UNDECAYED = ("constant", "decaying")
TOKENS = "x_D"


def table(posterior: Posterior) -> list[dict]:
    """One row per parameter that every family shares: prior mean and sd, posterior mean, 90 % equal-tailed interval.

    `contraction` = 1 - var(posterior) / var(prior), prior moments from the prior draws of the file; `informed` says
    whether it reaches 0.2, below that the value is the prior's. Population means carry `within`, `between` and
    `within_share` of `information.of_term`. A feature's row is that of its coefficient. What a model keeps fixed has no
    row.
    """
    sample, law = posterior.sample, posterior.law
    wanted: list[tuple[str, str, str, dict[str, str]]] = []
    for name in law.term_names:
        wanted += [("population mean", name, "mu", {"term": name}), ("family spread", name, "sd", {"term": name})]
    wanted.append(("bit scale", "lam", "lam", {}))
    wanted += [("covariate", c.name, "covariate", {"covariate_name": c.name}) for c in law.covariates]
    # a coefficient under shrinkage is told itself, not by the standard deviation of its one level
    wanted += [("feature", e.name, e.name, {e.by: laws.EVERYTHING}) for e in law.shrunk]
    wanted += [("effect spread", e.name, "spread", {"effect": e.name}) for e in law.effects if e not in law.shrunk]
    wanted += [("scatter", str(g), "tau", {"generation": str(g)}) for g in sample["generation"].values]
    prior = posterior.tree["prior"].to_dataset()
    rows = []
    for kind, name, variable, where in wanted:
        before = prior[variable].sel(where).to_numpy().astype(float).ravel()
        after = sample[variable].sel(where).to_numpy()
        if before.std() == 0 or after.std() == 0:
            continue
        contraction = 1 - float(after.var() / before.var())
        low, high = np.quantile(after, [0.05, 0.95])
        row = {
            "kind": kind, "name": name, "prior_mean": float(before.mean()), "prior_sd": float(before.std()),
            "mean": float(after.mean()), "lower90": float(low), "upper90": float(high), "contraction": contraction,
            "informed": contraction >= draws.IDENTIFIED,
        }  # fmt: skip
        rows.append(row | (information.of_term(posterior, name) if kind == "population mean" else {}))
    return rows


def as_text(rows: list[dict]) -> str:
    """`table` for a terminal of 80 columns."""
    lines = [f"{'parameter':<31}{'prior mean (sd)':>16}{'mean':>7}{'90 % interval':>16}{'contr.':>7}"]
    for row in rows:
        label = row["name"] if row["kind"] == "population mean" else f"{row['kind']} {row['name']}"
        reads = f"{row['contraction']:.2f}" if row["informed"] else "prior"
        # adding zero turns -0.00 into 0.00
        keys = ("prior_mean", "prior_sd", "mean", "lower90", "upper90")
        numbers = [f"{round(row[key], 2) + 0.0:.2f}" for key in keys]
        before, span = f"{numbers[0]} ({numbers[1]})", f"{numbers[3]} - {numbers[4]}"
        lines.append(f"{label[:30]:<31}{before:>16}{numbers[2]:>7}{span:>16}{reads:>7}")
    shared = [row for row in rows if row.get("within_share") is not None]
    if shared:
        lines += ["", "Where the information about the population means comes from:", ""]
        lines.append(f"{'term':<12}{'within families':>17}{'between families':>18}{'share within':>14}")
        lines += [f"{r['name'][:11]:<12}{r['within']:>17.3g}{r['between']:>18.3g}{r['within_share']:>14.0%}"
                  for r in shared]  # fmt: skip
        lines += textwrap.wrap("Precision (1 / variance) of the mean by contrasts within families alone and by those "
                               "between family centres alone.", 80)  # fmt: skip
    return "\n".join(lines)


def residual(y: np.ndarray, *explained_by: np.ndarray) -> np.ndarray:
    """What is left of y after a least-squares fit on a constant and the given columns, shape of y."""
    design = np.column_stack([np.ones(y.size), *explained_by])
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


def tokens_term(posterior: Posterior) -> str | None:
    """Name of the term that multiplies ln D, None in a law without one."""
    return next((term.name for term in posterior.law.terms if term.factor == TOKENS), None)


def families(posterior: Posterior, term: str | None = None) -> list[dict]:
    """One row per fitted family on how a term's factor varies in it and how much its own coefficient was learned.

    `term` defaults to the one of tokens, whose factor is x_D = ln(D / 1e11); no row in a law without it.
    `left_sd` is the root mean square of what is left of the factor after regressing it on the other factors of the
    law, `left_sd_phase` after regressing it on whether the learning rate had decayed too. Points are the family's
    checkpoints, for the factor of bits its cells after the mean of each checkpoint is taken away; for the constant
    nothing is regressed. A family varies the factor apart where `left_sd` >= 0.1: tokens by about 10 % either way.
    `error` is the standard error that the family's points alone could give its own coefficient if nothing else were
    uncertain: the posterior median spread between checkpoints (scatter, where points are cells) over the root of the
    residual sum of squares; None where nothing is left. `within` = s^2 / (s^2 + error^2) with s the prior
    scale of a family's deviation: the share of the prior's variance that this could remove, so the best case.
    `contraction_deviation` is 1 - var(theta_f - mu) / prior variance of the same, None for a model without it.
    """
    name = tokens_term(posterior) if term is None else term
    if name is None:
        return []
    cells = posterior.cells
    prior_sd = _deviation_sd(posterior, name)
    rows = []
    for family in posterior.families:
        points = _checkpoints(cells, family)
        left, phase, noise = _left(posterior, family, name)
        squares = float(left @ left)
        error = noise / np.sqrt(squares) if squares > NOTHING else None
        spread = np.sqrt(squares / len(left)) if squares > NOTHING else 0.0
        theta = posterior.sample["theta"].sel(term=name, family=family).to_numpy()
        deviation = theta - posterior.sample["mu"].sel(term=name).to_numpy()
        rows.append({
            "family": family,
            "term": name,
            "cells": int((cells["family"].to_numpy() == family).sum()),
            "checkpoints": len(points),
            "sizes": len(np.unique(points[:, 0])),
            "tokens_counts": len(np.unique(points[:, 1])),
            "tokens_min": float(points[:, 1].min()),
            "tokens_max": float(points[:, 1].max()),
            "tokens_ratio": float(points[:, 1].max() / points[:, 1].min()),
            "left_sd": float(spread),
            "left_sd_phase": float(np.sqrt(np.mean(phase**2))) if phase @ phase > NOTHING else 0.0,
            "varies": bool(spread >= VARIES),
            "error": error,
            "within": None if not prior_sd else prior_sd**2 / (prior_sd**2 + error**2) if error else 0.0,
            "sd": float(theta.std()),
            "contraction": family_contraction(posterior, name, family),
            "contraction_deviation": 1 - float(deviation.var()) / prior_sd**2 if prior_sd else None,
        })  # fmt: skip
    return rows


def _left(posterior: Posterior, family: str, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """What is left of a term's factor at the points of a family, the same given decay, and the noise of a point."""
    cells = posterior.cells
    own = cells.isel(cell=np.flatnonzero(cells["family"].to_numpy() == family))
    data = information.table(own)
    names, first, which = np.unique(data["checkpoint"].astype(str), return_index=True, return_inverse=True)
    values = {t.name: information.factor_values(posterior, t.factor, data) for t in posterior.law.terms}
    inner = {key: v - np.array([v[which == k].mean() for k in range(len(names))])[which] for key, v in values.items()}
    by_cell = {key for key, v in inner.items() if np.abs(v).max() > NOTHING}
    undecayed = np.isin(data["lr_phase"].astype(str), UNDECAYED).astype(float)
    if name in by_cell:
        left = residual(inner[name], *(inner[key] for key in by_cell - {name}))
        return left, left, float(np.median(posterior.sample["tau"]))
    noise = float(np.median(draws.spread_of(posterior, "checkpoint")))
    point = values[name][first]
    if np.ptp(point) == 0 and np.abs(point).max() > 0 and _constant(posterior, name):
        return point, point, noise
    others = [values[t.name][first] for t in posterior.law.terms
              if t.name not in by_cell | {name} and not _constant(posterior, t.name)]  # fmt: skip
    return residual(point, *others), residual(point, *others, undecayed[first]), noise


def _constant(posterior: Posterior, name: str) -> bool:
    return next(term.factor for term in posterior.law.terms if term.name == name) == "1"


def _checkpoints(cells, family: str) -> np.ndarray:
    """Distinct (N, D, undecayed) of a family's checkpoints, shape (checkpoint, 3)."""
    own = cells.isel(cell=np.flatnonzero(cells["family"].to_numpy() == family))
    undecayed = np.isin(own["lr_phase"].to_numpy().astype(str), UNDECAYED).astype(float)
    names = own["checkpoint"].to_numpy().astype(str)
    first = np.unique(names, return_index=True)[1]
    return np.column_stack([own["n_params_nonembedding"], own["train_tokens"], undecayed])[first]


def _deviation_sd(posterior: Posterior, term: str) -> float:
    """Prior standard deviation of a family's term minus its mean; 0 for a model that has no such deviation."""
    prior = posterior.tree["prior"].to_dataset()
    deviation = prior["theta"].sel(term=term) - prior["mu"].sel(term=term)
    # the first family is as good as any: a priori they are alike
    return float(deviation.isel(family=0).astype(float).std())


def family_contraction(posterior: Posterior, term: str, family: str) -> float | None:
    """1 - var(posterior) / var(prior) of one family's coefficient; None where the prior does not let it vary."""
    prior = posterior.tree["prior"].to_dataset()["theta"].sel(term=term, family=family)
    before = float(prior.astype(float).var())
    if before < NOTHING:
        return None
    return 1 - float(posterior.sample["theta"].sel(term=term, family=family).var()) / before


def centre_correlation(posterior: Posterior) -> float | None:
    """Correlation over families of the mean x_N and the mean x_D of their checkpoints; None below three families."""
    means = []
    for family in posterior.families:
        points = _checkpoints(posterior.cells, family)
        means.append(np.log(points[:, :2]).mean(axis=0))
    x_n, x_d = np.array(means).T
    if len(means) < 3 or x_n.std() < NOTHING or x_d.std() < NOTHING:
        return None
    return float(np.corrcoef(x_n, x_d)[0, 1])


def sentences(posterior: Posterior, rows: list[dict] | None = None) -> list[str]:
    """What the data can say of the tokens exponent, in words that follow from the numbers of `families`."""
    name = tokens_term(posterior)
    if name is None:
        return [f"The law {posterior.law.name} as fitted has no term of tokens: nothing can be said of their exponent."]
    rows = families(posterior) if rows is None else rows
    return [_source_of_beta(rows), *_phase(rows), *_centres(posterior, rows), *_share(posterior, name),
            *_population(posterior, name)]  # fmt: skip


def _share(posterior: Posterior, name: str) -> list[str]:
    found = information.of_term(posterior, name)
    if found["within_share"] is None or len(posterior.families) < 2:
        return []
    return [f"Of the information about the population mean of {name}, contrasts within families hold "
            f"{100 * found['within_share']:.0f} %, those between families the rest."]  # fmt: skip


def _source_of_beta(rows: list[dict]) -> str:
    varying = [row for row in rows if row["varies"]]
    telling = [row for row in varying if (row["within"] or 0.0) >= draws.IDENTIFIED]
    if len(rows) == 1:
        if varying:
            return (f"The data hold one family, {rows[0]['family']}; it varies its tokens apart from its size, "
                    "so beta is informed within that family and says nothing of other families.")  # fmt: skip
        return (f"The data hold one family, {rows[0]['family']}, which does not vary its tokens apart from its size: "
                "they cannot tell the effect of tokens from that of size.")  # fmt: skip
    if not varying:
        return (
            "In these data no family varies its tokens apart from its size, so beta is informed by differences between "
            "families only, where it cannot be told from differences in tokenizer, architecture, data and year."
        )
    if not telling:
        each = "; ".join(
            f"{row['family']}: {row['checkpoints']} checkpoints, standard error at best {row['error']:.2g}, which "
            f"removes {100 * (row['within'] or 0.0):.0f} % of the prior variance of a family's own deviation"
            for row in varying
        )
        vary, whose = ("varies its", "its") if len(varying) == 1 else ("vary their", "their")
        return (
            f"In these data {_listed([row['family'] for row in varying])} {vary} tokens somewhat apart from size, but "
            f"too little to inform a beta of {whose} own ({each}). So beta is in effect informed by differences "
            "between families only, where it cannot be told from differences in tokenizer, architecture, data and year."
        )
    others = len(rows) - len(telling)
    vary = "varies its" if len(telling) == 1 else "vary their"
    return (
        f"In these data {_listed([row['family'] for row in telling])} {vary} tokens apart from size enough to inform "
        "beta within the family; "
        + (f"the other {others} can inform it only by differences between families." if others > 1
           else "the other family can inform it only by its difference from the rest." if others
           else "no family rests on differences between families alone.")
    )  # fmt: skip


def _phase(rows: list[dict]) -> list[str]:
    mixed = [row["family"] for row in rows if row["varies"] and row["left_sd_phase"] < VARIES]
    if not mixed:
        return []
    return [f"In {_listed(mixed)} tokens and learning-rate decay go together: what is left of tokens after size and "
            "decay is too little to tell the two apart."]  # fmt: skip


def _centres(posterior: Posterior, rows: list[dict]) -> list[str]:
    found = centre_correlation(posterior)
    if found is None:
        return []
    return [f"Over the {len(rows)} family centres ln N and ln D correlate at {found:.2f}"
            + (": differences between families cannot well separate tokens from size either." if abs(found) >= 0.7
               else ".")]  # fmt: skip


def _population(posterior: Posterior, name: str) -> list[str]:
    value = draws.contraction(posterior, "mu", name)
    sample = posterior.sample["mu"].sel(term=name).to_numpy()
    if sample.std() == 0:
        return []
    low, high = np.quantile(sample, [0.05, 0.95])
    says = "the data inform it" if value >= draws.IDENTIFIED else "that is the prior's"
    return [f"The population mean of {name} is {sample.mean():.2f} (90 % equal-tailed interval {low:.2f} to "
            f"{high:.2f}), with a contraction of {value:.2f} from its prior: {says}."]  # fmt: skip


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
