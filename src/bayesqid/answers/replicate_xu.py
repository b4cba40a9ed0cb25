"""Xu et al. 2024, arXiv 2410.12119: the direction of the claims, by stored results of a measured ladder."""

import math

import numpy as np

from bayesqid import laws
from bayesqid.answers import draws, replicate_rows
from bayesqid.answers.draws import Posterior
from bayesqid.answers.replicate_rows import NOT_REPRODUCED, REPRODUCED, UNCLEAR, Row

# answers of the stored results start with one of these
ANSWERS = {"yes": REPRODUCED, "no": NOT_REPRODUCED, "unclear": UNCLEAR}
SURE = 0.95
# a left-out architecture is predicted as well as a left-out size below this ratio of errors, if this share is inside
WORSE, INSIDE = 1.5, 0.8
# coefficient of the law `landscape` -> sign that the paper's features should have, and in words
SIGNS = {"sqnr": (-1, "more SQNR, less QiD"), "flatness": (1, "sharper, more QiD")}


def said(row: dict) -> str:
    """Verdict of a stored row: by its probability, else by the criterion of transfer."""
    if "p" in row:
        return REPRODUCED if row["p"] >= SURE else NOT_REPRODUCED if row["p"] <= 1 - SURE else UNCLEAR
    return REPRODUCED if row["value"] <= WORSE and row["inside90"] >= INSIDE else NOT_REPRODUCED


def stored_rows() -> list[Row]:
    """What the measured ladder says of each claim; intervals are those of the stored results, not of a posterior."""
    claims = {claim["name"]: claim["claim"] for claim in replicate_rows.stored("xu")["claims"]}
    return [
        Row(claims[result["name"]], row["of"], recomputed=row.get("value", math.nan), low=row.get("lower90", math.nan),
            high=row.get("upper90", math.nan), constants=row["units"], follows=said(row), p=row.get("p", math.nan),
            p_of="stored")
        for result in replicate_rows.stored("xu_here")["results"] for row in result["rows"]
    ]  # fmt: skip


def posterior_rows(posterior: Posterior) -> list[Row]:
    """Directions that the posterior itself knows: signs of features of the law `landscape`, size in the others."""
    size = replicate_rows.term(posterior, "alpha")
    row = Row("this posterior", "larger models lose less")
    rows = [replicate_rows.unanswered(row) if size is None else
            replicate_rows.toward(row, size[0], size[1] >= draws.IDENTIFIED)]  # fmt: skip
    for name, (sign, words) in SIGNS.items():
        row = Row("this posterior", words)
        own = name in {effect.name for effect in posterior.law.shrunk}
        values = posterior.sample[name].sel(everything=laws.EVERYTHING).to_numpy() if own else np.zeros(0)
        rows.append(replicate_rows.toward(row, sign * values) if own else replicate_rows.unanswered(row))
    return rows


def rows(posterior: Posterior) -> tuple[list[Row], list[str], bool]:
    """Rows, notes in words, and whether what is asked lies outside the range of the data."""
    here = replicate_rows.stored("xu_here")
    answers = {result["name"]: result["answer"] for result in here["results"]}
    notes = [f"{claim['claim'][0].upper()}{claim['claim'][1:]}. {claim['says']} Here: {answers[claim['name']]}."
             for claim in replicate_rows.stored("xu")["claims"]]  # fmt: skip
    notes.append(
        "Stored results of the tiny ladder (ten runs of three architectures, 25 thousand to 0.8 million "
        "parameters): slope of ln curvature in ln N; CRPS less that of all features, where the two only must not "
        "lose and all but these 2 must; worst error for a left-out architecture over the mean of left-out sizes. "
        "P: that the direction is true; reproduced from 0.95 on, not reproduced up to 0.05. The paper prints no "
        "numbers that we could read: only directions are compared."
    )
    return [*stored_rows(), *posterior_rows(posterior)], notes, False
