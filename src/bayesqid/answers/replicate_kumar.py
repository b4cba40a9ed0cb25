"""Kumar et al. 2024, arXiv 2411.04330: constants, their units, the factor they leave open, bits as an exponential."""

import math
from dataclasses import replace

import numpy as np

from bayesqid import laws
from bayesqid.answers import asking, draws, project, replicate_rows
from bayesqid.answers.draws import Posterior, Target
from bayesqid.answers.replicate_rows import Row

BITS = (2, 3, 4)
BILLION = 1e9


def asked(paper: dict) -> list[tuple[str, float, float, float]]:
    """Where the law is evaluated: part, N, D, bits: the largest run of the fit, their check, a model of today."""
    span = paper["range"]
    most = span["tokens"][1]
    sizes = [(span["params"][1], most), (span["checked_params"], most), (7e9, 2e12)]
    return [("QiD", params, tokens, bits) for params, tokens in sizes for bits in BITS]


def law_at(params: float, tokens: float, bits: float) -> float:
    """QiD in nats per token by Eq. 2 with the printed constants alone."""
    return float(np.exp(laws.log_qid(params, tokens, bits, **laws.published_constants("kumar"))))


def _count(value: float) -> str:
    return f"{value / 1e12:g}T" if value >= 1e12 else f"{value / 1e9:g}B" if value >= 1e9 else f"{value / 1e6:g}M"


def qid_rows(paper: dict, posterior: Posterior) -> tuple[list[Row], bool]:
    """The law's QiD, and what a factor of exp(-b) to exp(b) makes of it, beside the posterior's of a new family.

    Units: the same law with N and D counted in billions, at the largest run of the fit and 3 bits.
    """
    factor = math.exp(paper["open"]["constant"]["b"])
    points = asked(paper)
    values = [law_at(*where) for _, *where in points]
    (_, params, tokens, bits), words = points[1], "N, D in billions"
    points.append(("units", params, tokens, bits))
    values.append(law_at(params / BILLION, tokens / BILLION, bits))
    points.append(("units", params, tokens, bits))
    values.append(law_at(params, tokens, bits))
    names = [f"{_count(n)}, {_count(d)} tokens, {p:g} bits" for _, n, d, p in points[:-2]] + [words, "N, D raw counts"]
    rows = [Row(part, name, "nats", recomputed=value, low=value / factor, high=value * factor,
                constants="Eq. 2 with Table 2, times exp(-b) to exp(b)")
            for (part, *_), name, value in zip(points, names, values, strict=True)]  # fmt: skip
    if posterior.law.features or "alpha" not in posterior.law.term_names:
        return [replicate_rows.unanswered(row) for row in rows], False
    targets = [asking.targets(posterior, tokens, params, bits=bits)[0] for _, params, tokens, bits in points]
    qid = project.qid_draws(posterior, targets, "new")[0]
    informed = project.informed(posterior, None)
    outside = project.beyond(posterior, targets)
    rows = [replicate_rows.beside(row, qid[:, i], (row.low, row.high), informed) for i, row in enumerate(rows)]
    for number in (1, 7):  # 3 bits, the largest run of the fit and the model of today
        ours = qid[:, number] / values[number]
        for words, value in (("exp(b)", factor), ("1", 1.0), ("exp(-b)", 1 / factor)):
            row = Row("factor left open", f"{words}, {names[number].removesuffix(' tokens, 3 bits')}", "times",
                      recomputed=value, constants="b of Table 2")  # fmt: skip
            rows.append(replicate_rows.beside(row, ours, value, informed))
    return rows, bool(((outside["n_ratio"] > 1) | (outside["d_ratio"] > 1)).any())


def step_rows(paper: dict, posterior: Posterior) -> list[Row]:
    """What one bit less multiplies QiD by, GPTQ: exp(1 / gamma_post) at any bits here, a power in Ouyang et al."""
    printed, decimals = (paper["law"][key]["gamma_post"] for key in ("constants", "decimals"))
    error = replicate_rows.half(decimals)
    gamma = laws.published_constants("ouyang")["gamma"]
    rows = []
    for low, high in zip(BITS[:-1], BITS[1:], strict=True):
        ours = None if replicate_rows.term(posterior, "gamma") is None else step(posterior, low, high)
        exponential = Row("one bit less", f"{high} to {low} bits, exponential", "times",
                          recomputed=math.exp(1 / printed), low=math.exp(1 / (printed + error)),
                          high=math.exp(1 / (printed - error)), constants="gamma_post of Table 2")  # fmt: skip
        power = Row("one bit less", f"{high} to {low} bits, power", "times", recomputed=(high / low) ** gamma,
                    constants="gamma of Ouyang et al.")  # fmt: skip
        rows += [replicate_rows.unanswered(row) if ours is None else replicate_rows.beside(row, ours, row.recomputed)
                 for row in (exponential, power)]  # fmt: skip
    return rows


def step(posterior: Posterior, low: float, high: float) -> np.ndarray:
    """Draws of QiD at `low` bits over that at `high`, of the unbounded law of the population under GPTQ."""
    targets = [Target(None, laws.PIVOT_PARAMS, laws.PIVOT_TOKENS, bits, asking.DEFAULT_METHOD, population=True)
               for bits in (low, high)]  # fmt: skip
    ln = draws.log_law(posterior, targets, np.random.default_rng(project.SEED))
    return np.exp(ln[:, 0] - ln[:, 1])


def lam_rows(posterior: Posterior) -> list[Row]:
    """The exponent of the scale of bits: 1 makes QiD an exponential in bits, 0 a power; only a free one can say."""
    rows = []
    for words, value in (("lam = 1, exponential", 1.0), ("lam = 0, power", 0.0)):
        row = Row("bits", words, recomputed=value, constants="form of the law")
        if not isinstance(posterior.law.lam, tuple):
            rows.append(replicate_rows.unanswered(row))
            continue
        values = posterior.sample["lam"].to_numpy()
        contraction = 1 - float(values.var()) / posterior.law.lam[1] ** 2
        rows.append(replace(replicate_rows.beside(row, values, value, contraction >= draws.IDENTIFIED),
                            contraction=contraction))  # fmt: skip
    return rows


def exponent_rows(paper: dict, posterior: Posterior) -> list[Row]:
    """gamma_N, gamma_D, the slope 3 / gamma_post at 3 bits, and gamma_D - gamma_N, which the paper calls similar."""
    constants, decimals = paper["law"]["constants"], paper["law"]["decimals"]
    rows = [
        replicate_rows.beside_term(Row("exponents", f"{name} ({own})", printed=constants[name]),
                                   replicate_rows.term(posterior, own), constants[name])
        for name, own in (("gamma_N", "alpha"), ("gamma_D", "beta"))
    ]  # fmt: skip
    error = replicate_rows.half(decimals["gamma_post"])
    slope = laws.PIVOT_BITS / constants["gamma_post"]
    row = Row("exponents", "3 / gamma_post (gamma)", recomputed=slope, constants="gamma_post of Table 2",
              low=laws.PIVOT_BITS / (constants["gamma_post"] + error),
              high=laws.PIVOT_BITS / (constants["gamma_post"] - error))  # fmt: skip
    rows.append(replicate_rows.beside_term(row, replicate_rows.term(posterior, "gamma"), slope))
    gap, error = constants["gamma_D"] - constants["gamma_N"], replicate_rows.half(decimals["gamma_D"])
    row = Row("exponents", "gamma_D - gamma_N", recomputed=gap, low=gap - 2 * error, high=gap + 2 * error,
              constants="Table 2")  # fmt: skip
    alpha, beta = (replicate_rows.term(posterior, name) for name in ("alpha", "beta"))
    known = alpha and beta and (beta[0] - alpha[0], min(alpha[1], beta[1]))
    return [*rows, replicate_rows.beside_term(row, known, gap)]


def rows(posterior: Posterior) -> tuple[list[Row], list[str], bool]:
    """Rows, notes in words, and whether what is asked lies outside the range of the data."""
    paper = replicate_rows.stored("kumar")
    levels, outside = qid_rows(paper, posterior)
    b = paper["open"]["constant"]["b"]
    constants = paper["law"]["constants"]
    apart = BILLION ** (constants["gamma_D"] - constants["gamma_N"])
    notes = [
        f"Table 2 prints b = {b:g} as well, without its role: if it is a factor exp(-b) or exp(b), the level is open "
        f"by {math.exp(b):.2g} times either way. P is of the value in that range nearest our median: excluded means "
        "whatever the factor.",
        "At 7B and 2T their law is extrapolated, at 220M and 26B ours is.",
        f"N and D in billions instead of raw counts divide the law by {apart:.3g}, more than the factor leaves open.",
        "Ours: a new checkpoint of a new family, learning rate decayed, groups of 128, WikiText-2; theirs: Dolma, "
        "group size not known to us. One bit less: the population under GPTQ, without a ceiling.",
    ]  # fmt: skip
    found = [*levels, *step_rows(paper, posterior), *lam_rows(posterior), *exponent_rows(paper, posterior)]
    return found, notes, outside
