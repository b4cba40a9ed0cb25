"""Cao et al. 2024, arXiv 2410.06722, first version: Law 1 and Law 2 of mixed quantization against each other."""

import csv
import math
from dataclasses import replace
from itertools import product

import numpy as np

from bayesqid import bundled, laws
from bayesqid.answers import draws, replicate_rows
from bayesqid.answers.draws import Posterior
from bayesqid.answers.replicate_rows import NOT_REPRODUCED, REPRODUCED, Row

POINTS = "mixed_published.csv"
FIGURE, FAMILY = "Fig. 9b", "Qwen-1.5"
# MXINT-4: an 8-bit scale for every block, 32 weights in the standard
BITS, SCALE_BITS, BLOCK = 4, 8, 32
# where the posterior's own slope is taken, in the middle of the sizes of Fig. 9
MIDDLE = 7.0


def share(size: float, k: float, c: float) -> float:
    """Law 1: largest quantized share of a model of `size` billion parameters, 1 - (ln size - c) / k; may pass 1."""
    return 1 - (math.log(size) - c) / k


def rise(block: float, a: float, k: float) -> float:
    """Law 2: rise of perplexity in per cent at a block size."""
    return a * block**k


def block_size(per_cent: float, a: float, k: float) -> float:
    """The block size at which Law 2 gives a rise in per cent."""
    return (per_cent / a) ** (1 / k)


def points() -> dict[float, dict[float, float]]:
    """{billions of parameters: {quantized share: rise of perplexity in per cent}} of the figure; empty without."""
    path = bundled.data_dir() / POINTS
    if not path.is_file():
        return {}
    found: dict[float, dict[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["figure"] == FIGURE and row["family"] == FAMILY:
                size = float(row["model"].removeprefix(f"{FAMILY}-").removesuffix("B"))
                found.setdefault(size, {})[float(row["quantized_fraction"])] = float(row["increase_percent"])
    return found


def bracket(seen: dict[float, float], per_cent: float) -> tuple[float, float]:
    """Between which shares a curve last stays within a rise: the last one that does and the next one measured."""
    shares = sorted(seen)
    within = [number for number, q in enumerate(shares) if seen[q] <= per_cent]
    if not within:
        return 0.0, shares[0]
    return shares[within[-1]], (shares[within[-1] + 1] if within[-1] + 1 < len(shares) else 1.0)


def around(values: tuple[float, ...], errors: tuple[float, ...]):
    """All corners of constants within their rounding."""
    return product(*((value - error, value + error) for value, error in zip(values, errors, strict=True)))


def law1_rows(law: dict, seen: dict[float, dict[float, float]]) -> list[Row]:
    """Largest share by Law 1 at every size of the figure, and between which shares the figure has it."""
    error, found = replicate_rows.half(law["decimals"]), []
    for row in law["rows"]:
        for size, curve in sorted(seen.items()):
            low, high = bracket(curve, 100 * row["increase"])
            ends = [min(share(size, *corner), 1.0) for corner in around((row["k"], row["c"]), (error, error))]
            meets = low <= max(ends) and min(ends) <= high
            found.append(Row("share by Law 1, and where Fig. 9 has it", f"{size:g}B within {row['increase']:.0%}",
                             "share", recomputed=share(size, row["k"], row["c"]), low=low, high=high,
                             constants="k and c of Law 1; low and high between points read off Fig. 9b",
                             follows=REPRODUCED if meets else NOT_REPRODUCED))  # fmt: skip
    return found


def block_range(law1: dict, law2: dict, number: int) -> tuple[float, float]:
    """Block sizes at which a row of Law 2 lies where Law 1 puts a rise, both within the rounding of their constants.

    At size N and share q Law 1 says that the rise is over every `increase` whose largest share is below q, and within
    every other.
    """
    row, error = law2["rows"][number], replicate_rows.half(law1["decimals"])
    size = float(row["model"].rsplit("-", 1)[1].removesuffix("B"))
    over, within = 0.0, math.inf
    for limit in law1["rows"]:
        largest = [share(size, *corner) for corner in around((limit["k"], limit["c"]), (error, error))]
        if max(largest) < row["q_r"]:
            over = max(over, 100 * limit["increase"])
        if min(largest) >= row["q_r"]:
            within = min(within, 100 * limit["increase"])
    errors = (replicate_rows.half(law2["decimals"]["A"][number]), replicate_rows.half(law2["decimals"]["k"]))
    corners = list(around((row["A"], row["k"]), errors))
    return (min(block_size(over, *corner) for corner in corners),
            max(block_size(within, *corner) for corner in corners))  # fmt: skip


def law2_rows(law1: dict, law2: dict) -> list[Row]:
    """By row of Law 2 the block sizes at which it agrees with Law 1, and whether one block size does for all."""
    ranges = [block_range(law1, law2, number) for number in range(len(law2["rows"]))]
    ranges.append((max(low for low, _ in ranges), min(high for _, high in ranges)))
    names = [f"{row['model'].rsplit('-', 1)[1]}, share {row['q_r']:g}" for row in law2["rows"]]
    rows = [Row("block sizes at which Law 2 agrees with Law 1", name, "block size", low=low, high=high,
                constants="Law 1 and Law 2")
            for name, (low, high) in zip([*names, "one block size for all"], ranges, strict=True)]  # fmt: skip
    low, high = ranges[-1]
    return [*rows[:-1], replace(rows[-1], follows=REPRODUCED if low <= high else NOT_REPRODUCED)]


def exponents(posterior: Posterior, share_: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """What a posterior of the law `mixed` says in place of k of Law 1 and of k of Law 2, draws of each.

    Along QiD held equal d ln N / d(1 - Qr) = -kappa(N) / (Qr (alpha - kappa_N ln Qr)) at Qr = `share_`, with kappa(N) =
    kappa + kappa_N x_N + matmul + searched. At blocks of G = 32, P = 4 + 8 / G, d ln QiD / d ln G = block +
    gamma (P / 3)^lam (8 / G) / P.
    """
    sample = posterior.sample
    mu = {name: sample["mu"].sel(term=name).to_numpy() for name in ("alpha", "gamma", "kappa")}
    of = {name: sample["covariate"].sel(covariate_name=name).to_numpy()
          for name in ("kappa_params", "matmul", "searched", "block")}  # fmt: skip
    x = math.log(size * 1e9 / laws.PIVOT_PARAMS)
    kappa = mu["kappa"] + of["kappa_params"] * x + of["matmul"] + of["searched"]
    along = -kappa / (share_ * (mu["alpha"] - of["kappa_params"] * math.log(share_)))
    bits = BITS + SCALE_BITS / BLOCK
    gamma = mu["gamma"] + draws.deviations(posterior, "generation", "rtn", None).get("-x_P", 0.0)
    slope = (bits / laws.PIVOT_BITS) ** sample["lam"].to_numpy()
    return along, of["block"] + gamma * slope * (SCALE_BITS / BLOCK) / bits


def informed(posterior: Posterior) -> tuple[bool, bool]:
    """Whether data stand behind the exponents of `exponents`: the power of the share and alpha, and the block size."""
    sample = posterior.sample
    prior = {c.name: c.sd for c in posterior.law.covariates} | {t.name: t.sd for t in posterior.law.terms}
    power = sample["mu"].sel(term="kappa") + sample["covariate"].sel(covariate_name=["matmul", "searched"]).sum(
        "covariate_name")  # fmt: skip
    before = sum(prior[name] ** 2 for name in ("kappa", "matmul", "searched"))
    block = float(sample["covariate"].sel(covariate_name="block").var()) / prior["block"] ** 2
    size, bits = (draws.contraction(posterior, "mu", name) for name in ("alpha", "gamma"))
    return (min(size, 1 - float(power.var()) / before) >= draws.IDENTIFIED,
            min(bits, 1 - block) >= draws.IDENTIFIED)  # fmt: skip


def posterior_rows(paper: dict, posterior: Posterior) -> list[Row]:
    """The printed exponents beside a posterior of the law `mixed`; no other law knows of a quantized share."""
    part, found = "beside a posterior", []
    known = getattr(posterior.law, "mixed", False) and posterior.tree.attrs["model"] != "independent"
    told = informed(posterior) if known else (False, False)
    asked = [(f"k of Law 1, {row['increase']:.0%}", 0, row["k"], min(share(MIDDLE, row["k"], row["c"]), 1.0))
             for row in paper["law1"]["rows"]]
    asked += [(f"k of Law 2, {row['model'].rsplit('-', 1)[1]}, {row['q_r']:g}", 1, row["k"], row["q_r"])
              for row in paper["law2"]["rows"]]  # fmt: skip
    for words, which, printed, at in asked:
        made = Row(part, words, printed=printed)
        found.append(replicate_rows.beside(made, exponents(posterior, at, MIDDLE)[which], printed, told[which]) if known
                     else replicate_rows.unanswered(made))  # fmt: skip
    made = Row(part, "larger take larger share")
    found.append(replicate_rows.toward(made, -exponents(posterior, 0.9, MIDDLE)[0], told[0]) if known
                 else replicate_rows.unanswered(made))  # fmt: skip
    return found


def rows(posterior: Posterior) -> tuple[list[Row], list[str], bool]:
    """Rows, notes in words, and whether what is asked lies outside the range of the data."""
    paper, seen = replicate_rows.stored("cao"), points()
    law2 = paper["law2"]["rows"]
    sizes = ", ".join(f"{math.exp(row['c']):.3g}B at {row['increase']:.0%}" for row in paper["law1"]["rows"])
    notes = [f"Law 1 passes a share of 1 from {sizes} on: there it says no more than that everything may be quantized."]
    ratios = []
    for row in law2:
        size = float(row["model"].rsplit("-", 1)[1].removesuffix("B"))
        if row["q_r"] in seen.get(size, {}):
            ratio = rise(BLOCK, row["A"], row["k"]) / seen[size][row["q_r"]]
            ratios.append(f"{ratio:.2f} ({size:g}B, {row['q_r']:g})")
    first = law1_rows(paper["law1"], seen)
    if first:
        notes.append(f"Law 1 lies between the points of Fig. 9 in {sum(row.follows == REPRODUCED for row in first)} of "
                     f"{len(first)} cases, within the rounding of its constants.")  # fmt: skip
    if ratios:
        notes.append(f"Law 2 at blocks of {BLOCK} over what Fig. 9 shows: {', '.join(ratios)}.")
    notes.append("Points of Fig. 9 are the best of 50 random mixes and not monotone in the share: their scatter is "
                 "search noise, which the paper does not print." if seen else
                 f"The points of Fig. 9 are not here (data/{POINTS}): Law 1 cannot be held against them.")  # fmt: skip
    return [*first, *law2_rows(paper["law1"], paper["law2"]),
            *posterior_rows(paper, posterior)], notes, False  # fmt: skip
