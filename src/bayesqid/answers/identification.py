"""Where the information about the tokens exponent beta comes from: within families or between them."""

import numpy as np

from bayesqid import laws
from bayesqid.answers import draws
from bayesqid.answers.draws import Posterior

VARIES = 0.1
NOTHING = 1e-12
UNDECAYED = ("constant", "decaying")


def residual(y: np.ndarray, *explained_by: np.ndarray) -> np.ndarray:
    """What is left of y after a least-squares fit on a constant and the given columns, shape of y."""
    design = np.column_stack([np.ones(y.size), *explained_by])
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


def families(posterior: Posterior) -> list[dict]:
    """One row per fitted family on how its tokens vary and how much its own beta was learned.

    `x_D_sd` is the root mean square, over the family's checkpoints, of what is left of x_D = ln(D / 1e11) after
    regressing it on x_N; `x_D_sd_phase` after regressing it on x_N and on whether the learning rate had decayed.
    A family varies its tokens apart from its size where `x_D_sd` >= 0.1, i.e. by about 10 % either way.
    `beta_error` is the standard error that the family's checkpoints alone could give its beta if quantization
    added no scatter of its own: the posterior median spread between checkpoints over the root of the residual sum
    of squares; None where nothing is left. `within` = s^2 / (s^2 + beta_error^2) with s the prior scale of the
    spread of beta: the share of the prior's variance that this could remove, so the best case.
    `contraction_deviation` is 1 - var(beta_f - mu_beta) / prior variance of the same, None for a model without it.
    """
    cells = posterior.cells
    checkpoint_sd = float(np.median(draws.spread_of(posterior, "checkpoint")))
    prior_sd = _deviation_sd(posterior)
    rows = []
    for family in posterior.families:
        points = _checkpoints(cells, family)
        x_n = np.log(points[:, 0] / laws.PIVOT_PARAMS)
        x_d = np.log(points[:, 1] / laws.PIVOT_TOKENS)
        left = residual(x_d, x_n)
        squares = float(left @ left)
        error = float(checkpoint_sd / np.sqrt(squares)) if squares > NOTHING else None
        spread = np.sqrt(squares / len(points)) if squares > NOTHING else 0.0
        phase = residual(x_d, x_n, points[:, 2])
        beta = posterior.sample["beta"].sel(family=family).to_numpy()
        deviation = beta - posterior.sample["mu"].sel(term="beta").to_numpy()
        rows.append({
            "family": family,
            "cells": int((cells["family"].to_numpy() == family).sum()),
            "checkpoints": len(points),
            "sizes": len(np.unique(points[:, 0])),
            "tokens_counts": len(np.unique(points[:, 1])),
            "tokens_min": float(points[:, 1].min()),
            "tokens_max": float(points[:, 1].max()),
            "tokens_ratio": float(points[:, 1].max() / points[:, 1].min()),
            "x_D_sd": float(spread),
            "x_D_sd_phase": float(np.sqrt(np.mean(phase**2))) if phase @ phase > NOTHING else 0.0,
            "varies": bool(spread >= VARIES),
            "beta_error": error,
            "within": None if not prior_sd else prior_sd**2 / (prior_sd**2 + error**2) if error else 0.0,
            "beta_sd": float(beta.std()),
            "contraction": family_contraction(posterior, "beta", family),
            "contraction_deviation": 1 - float(deviation.var()) / prior_sd**2 if prior_sd else None,
        })  # fmt: skip
    return rows


def _checkpoints(cells, family: str) -> np.ndarray:
    """Distinct (N, D, undecayed) of a family's checkpoints, shape (checkpoint, 3)."""
    own = cells.isel(cell=np.flatnonzero(cells["family"].to_numpy() == family))
    undecayed = np.isin(own["lr_phase"].to_numpy().astype(str), UNDECAYED).astype(float)
    names = own["checkpoint"].to_numpy().astype(str)
    first = np.unique(names, return_index=True)[1]
    return np.column_stack([own["n_params_nonembedding"], own["train_tokens"], undecayed])[first]


def _deviation_sd(posterior: Posterior) -> float:
    """Prior standard deviation of beta_f - mu_beta; 0 for a model that has no such deviation."""
    prior = posterior.tree["prior"].to_dataset()
    deviation = prior["theta"].sel(term="beta") - prior["mu"].sel(term="beta")
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
    """What the data can say of beta, in words that follow from the numbers of `families`."""
    rows = families(posterior) if rows is None else rows
    return [_source_of_beta(rows), *_phase(rows), *_centres(posterior, rows), *_population(posterior)]


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
            f"{row['family']}: {row['checkpoints']} checkpoints, standard error at best {row['beta_error']:.2g}, which "
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
    mixed = [row["family"] for row in rows if row["varies"] and row["x_D_sd_phase"] < VARIES]
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


def _population(posterior: Posterior) -> list[str]:
    value = draws.contraction(posterior, "mu", "beta")
    sample = posterior.sample["mu"].sel(term="beta").to_numpy()
    if sample.std() == 0:
        return []
    low, high = np.quantile(sample, [0.05, 0.95])
    says = "the data inform it" if value >= draws.IDENTIFIED else "that is the prior's"
    return [f"The population mean of beta is {sample.mean():.2f} (90 % equal-tailed interval {low:.2f} to {high:.2f}), "
            f"with a contraction of {value:.2f} from its prior: {says}."]  # fmt: skip


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
