"""Ouyang et al. 2024, arXiv 2411.17691: Eq. 8, Table 1 and the exponents."""

import math
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from bayesqid import laws
from bayesqid.answers import asking, project, replicate_rows, tokens
from bayesqid.answers.draws import Posterior
from bayesqid.answers.replicate_rows import Row

OWN_FAMILY = "Pythia"
EXPONENTS = ("alpha", "beta", "gamma")
# tokens of one size that differ by less are the same training run's end
VARIES = 1.1
# corners of a polytope satisfy its other sides up to the arithmetic's error, in logarithms
SLACK = 1e-10
_PIVOT_PARAMS, _PIVOT_TOKENS = 1e10, 1e12


def table() -> list[dict]:
    """Entries of Table 1: size, params, qid, bits, tokens (raw count) and its rounding."""
    printed = replicate_rows.stored("ouyang")["table1"]
    error = replicate_rows.half(printed["decimals"]) * 1e12
    return [
        {"size": row["size"], "params": float(row["params"]), "qid": row["qid"], "bits": bits, "tokens": count * 1e12,
         "error": error}
        for size in dict.fromkeys(row["size"] for row in printed["rows"]) for place, bits in enumerate(printed["bits"])
        for row in printed["rows"] if row["size"] == size for count in [row["tokens"][place]]
    ]  # fmt: skip


def bounds(law: dict) -> dict[str, tuple[float, float]]:
    """Constants as intervals: all numbers that round to the printed ones."""
    half = {name: replicate_rows.half(decimals) for name, decimals in law["decimals"].items()}
    return {name: (value - half[name], value + half[name]) for name, value in law["constants"].items()}


def by_law(entry: dict, k: float, alpha: float, beta: float, gamma: float) -> float:
    """Tokens at which k D^beta / (N^alpha P^gamma) reaches the entry's QiD."""
    log = math.log(entry["qid"] / k) + alpha * math.log(entry["params"]) + gamma * math.log(entry["bits"])
    return math.exp(log / beta)


def recomputed(entry: dict, law: dict) -> Row:
    """A row of Table 1: its tokens by Eq. 8, and between which their constants' rounding leaves them.

    Tokens are monotone in each constant, so corners of the rounding hold the extremes.
    """
    ends = [by_law(entry, **dict(zip(law["constants"], corner, strict=True)))
            for corner in product(*bounds(law).values())]  # fmt: skip
    row = Row("Table 1", f"{entry['size']}, {entry['bits']} bits, QiD {entry['qid']:g}", "tokens", entry["tokens"],
              by_law(entry, **law["constants"]), min(ends), max(ends), "Eq. 8, caption of Fig. 6")  # fmt: skip
    return replicate_rows.followed(row, entry["error"])


def sides(entries: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Inequalities A u <= c on u = (level, beta, alpha) of ln QiD = level + beta ln(D / 1e12) - alpha ln(N / 1e10).

    One pair an entry: at the lower end of its rounding the law is at most the threshold, at the upper end at least.
    """
    rows, limits = [], []
    for entry in entries:
        size, level = math.log(entry["params"] / _PIVOT_PARAMS), math.log(entry["qid"])
        for sign in (1, -1):
            count = math.log((entry["tokens"] - sign * entry["error"]) / _PIVOT_TOKENS)
            rows.append([sign, sign * count, -sign * size])
            limits.append(sign * level)
    return np.array(rows), np.array(limits)


def corners(matrix: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Corners of {u: matrix u <= limits} in three dimensions, shape (corner, 3); none where it is empty.

    Every corner is where three sides meet: all triples are solved. A linear function has its extremes at corners.
    """
    triples = np.array(list(combinations(range(limits.size), 3)))
    chosen = matrix[triples]
    regular = np.abs(np.linalg.det(chosen)) > 1e-12
    points = np.linalg.solve(chosen[regular], limits[triples[regular]][..., None])[..., 0]
    return points[(points @ matrix.T <= limits + SLACK).all(axis=1)]


def constants(points: np.ndarray) -> dict[str, tuple[float, float]]:
    """Intervals of k_P, alpha and beta of QiD = k_P D^beta / N^alpha over the corners of a column."""
    level, beta, alpha = points.T
    k = np.exp(level - beta * math.log(_PIVOT_TOKENS) + alpha * math.log(_PIVOT_PARAMS))
    return {name: (float(value.min()), float(value.max()))
            for name, value in (("k", k), ("alpha", alpha), ("beta", beta))}  # fmt: skip


def printed_sides(law: dict, bits: float) -> tuple[np.ndarray, np.ndarray]:
    """The constants' own rounding as inequalities on (level, beta, alpha) of a column, as `sides` has them."""
    box = bounds(law)
    tokens_, size = math.log(_PIVOT_TOKENS), math.log(_PIVOT_PARAMS)
    # ln k_P = level - beta ln 1e12 + alpha ln 1e10 = ln k - gamma ln P
    level = [math.log(box["k"][end]) - box["gamma"][1 - end] * math.log(bits) for end in (0, 1)]
    lines = [([1.0, -tokens_, size], level), ([0.0, 1.0, 0.0], box["beta"]), ([0.0, 0.0, 1.0], box["alpha"])]
    return (np.array([sign * np.array(line) for line, _ in lines for sign in (1, -1)]),
            np.array([value for _, (low, high) in lines for value in (high, -low)]))  # fmt: skip


def columns(law: dict, entries: list[dict]) -> list[dict]:
    """By bit width: how many entries follow one by one, whether one set of printed constants gives all 16, and the
    constants of the column's own power law, as intervals: every set in them, and none outside, gives all 16 entries.
    """
    found = []
    for bits in dict.fromkeys(entry["bits"] for entry in entries):
        own = [entry for entry in entries if entry["bits"] == bits]
        each = [recomputed(entry, law) for entry in own]
        matrix, limits = sides(own)
        more, most = printed_sides(law, bits)
        points = corners(matrix, limits)
        both = corners(np.vstack([matrix, more]), np.append(limits, most))
        found.append({
            "bits": bits, "entries": len(own), "follow": sum(row.follows == replicate_rows.REPRODUCED for row in each),
            "together": bool(both.size), "own": constants(points) if points.size else None,
            "worst": max(abs(math.log(row.recomputed / row.printed)) for row in each),
        })  # fmt: skip
    return found


def column_rows(found: list[dict], posterior: Posterior) -> list[Row]:
    """Exponents of the columns' own power laws against the posterior's, at that width where its law has one."""
    rows = []
    for column in found:
        for name in ("alpha", "beta") if column["own"] else ():
            low, high = column["own"][name]
            row = Row("exponents of the columns", f"{name}, {column['bits']}-bit column", recomputed=(low + high) / 2,
                      low=low, high=high, constants="power law through all 16 entries of the column")  # fmt: skip
            known, own = replicate_rows.term(posterior, name), at_width(posterior, name, column["bits"])
            known = known if known is None or own is None else (known[0] + own, known[1])
            rows.append(replicate_rows.beside_term(row, known, row.recomputed))
    for name in ("alpha", "beta"):
        row = Row("exponents of the columns", f"{name} rises, 2 to 4 bits", constants="the columns' own power laws")
        few, many = (at_width(posterior, name, bits) for bits in (2, 4))
        rows.append(replicate_rows.unanswered(row) if few is None or many is None
                    else replicate_rows.toward(row, many - few))  # fmt: skip
    return rows


def at_width(posterior: Posterior, name: str, bits: float) -> np.ndarray | None:
    """Draws of what a bit width adds to an exponent; None but for the law `per-bit`."""
    effect, label = f"width_{name}", str(laws.width(bits))
    if effect not in posterior.sample or label not in posterior.sample["width"].values:
        return None
    return posterior.sample[effect].sel(width=label).to_numpy()


def _exponent_rows(paper: dict, posterior: Posterior, within: list[str]) -> list[Row]:
    """Printed exponents against the population's, against Pythia's and those of families whose tokens vary."""
    told = [("Eq. 8", "law", EXPONENTS, None), ("alone", "single", EXPONENTS, None)]
    told += [(OWN_FAMILY, "law", EXPONENTS, OWN_FAMILY)] if OWN_FAMILY in posterior.families else []
    told += [(name, "law", ("beta",), name) for name in within if name != OWN_FAMILY]
    rows = []
    for words, key, names, family in told:
        for name in names:
            value = paper[key]["constants"][name]
            row = Row("exponents", f"{name}, {words}", printed=value)
            rows.append(replicate_rows.beside_term(row, replicate_rows.term(posterior, name, family), value))
    return rows


def varying(posterior: Posterior) -> list[str]:
    """Fitted families that hold one size at more than one count of tokens."""
    names = ("family", "n_params_nonembedding", "train_tokens")
    family, size, count = (posterior.cells[name].to_numpy() for name in names)
    known = np.isfinite(count)
    found = []
    for name in posterior.families:
        own = (family == name) & known
        sizes = [count[own & (size == n)] for n in np.unique(size[own])]
        if any(seen.max() > VARIES * seen.min() for seen in sizes):
            found.append(name)
    return found


def table_rows(law: dict, entries: list[dict], posterior: Posterior) -> tuple[list[Row], bool]:
    """Rows of Table 1 beside the posterior's tokens of a new family, and whether medians leave the data's range."""
    rows = [recomputed(entry, law) for entry in entries]
    if "beta" not in posterior.law.term_names or posterior.law.features:
        return [replicate_rows.unanswered(row) for row in rows], False
    asked = list(dict.fromkeys((entry["params"], entry["bits"]) for entry in entries))
    limits = list(dict.fromkeys(entry["qid"] for entry in entries))
    targets = [asking.targets(posterior, laws.PIVOT_TOKENS, params, bits=bits)[0] for params, bits in asked]
    reached = tokens.tokens_draws(posterior, targets, limits, "new")
    informed = project.informed(posterior, None)
    values = [reached[:, asked.index((e["params"], e["bits"])), limits.index(e["qid"])] for e in entries]
    rows = [replicate_rows.beside(row, own, row.printed, informed) for row, own in zip(rows, values, strict=True)]
    there = [replace(targets[asked.index((e["params"], e["bits"]))], tokens=row.printed)
             for e, row in zip(entries, rows, strict=True)]  # fmt: skip
    outside = project.beyond(posterior, there)
    return rows, bool(((outside["n_ratio"] > 1) | (outside["d_ratio"] > 1)).any())


def rows(posterior: Posterior) -> tuple[list[Row], list[str], bool]:
    """Rows, notes in words, and whether what is asked lies outside the range of the data."""
    paper = replicate_rows.stored("ouyang")
    entries = table()
    found = columns(paper["law"], entries)
    in_table, outside = table_rows(paper["law"], entries, posterior)
    within = varying(posterior)
    every = [*in_table, *_exponent_rows(paper, posterior, within), *column_rows(found, posterior)]
    notes = [_said(column) for column in found]
    notes.append(f"Tokens vary at one size within {', '.join(within)}; elsewhere beta is a comparison of families."
                 if within else
                 "No family here has one size at two counts of tokens: beta is a comparison of families, theirs is of "
                 "checkpoints of one run.")  # fmt: skip
    notes.append("Ours: a new checkpoint of a new family, learning rate decayed, groups of 128, WikiText-2; theirs: "
                 "checkpoints before the end of the decay, RefinedWeb, group size not known to us.")  # fmt: skip
    return every, notes, outside


def _said(column: dict) -> str:
    """One column in a sentence."""
    together = "yes" if column["together"] else "none"
    text = (f"{column['bits']} bits: {column['follow']} of {column['entries']} entries follow from constants that "
            f"round to the printed ones, each for itself; one such set for all: {together}; the constants as printed "
            f"miss by up to {math.expm1(column['worst']):.0%}.")  # fmt: skip
    if column["own"] is None:
        return f"{text} No power law gives all of them within their rounding."
    own = "; ".join(f"{name} {low:.6g} to {high:.6g}" for name, (low, high) in column["own"].items())
    return f"{text} A power law of their own gives all within their rounding: {own}."
