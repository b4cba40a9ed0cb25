"""Scaling laws of QiD: each a small table of terms that are linear in their coefficients.

Every law here has the form

    ln QiD = log_k - alpha x_N + beta x_D - gamma x_P(lam) + covariates + effects
    x_N = ln(N / 1e9),  x_D = ln(D / 1e11),  x_P = ((P / 3)^lam - 1) / lam   (lam -> 0: ln(P / 3))

with N non-embedding parameters, D training tokens, P effective bits per weight, so that exp(log_k) is the QiD in
nats per token of a model of 1e9 parameters after 1e11 tokens at 3 bits; but for `landscape`, which knows neither N, D
nor P and rests on the measured features of `bayesqid.features`. `mixed` adds what part of the weights is quantized,
`bayesqid.quantized_share`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from bayesqid import features, quantized_share
from bayesqid.errors import BadInput

PIVOT_PARAMS, PIVOT_TOKENS, PIVOT_BITS = 1e9, 1e11, 3.0
PIVOT_VOCABULARY, PIVOT_LOSS = 50_000.0, 2.0
REFERENCE_CONTEXT = 2048
# the one level of the coordinate `everything`
EVERYTHING = "all"


def bit_scale(bits, lam):
    """Box-Cox scale of bits, ((P/3)^lam - 1) / lam, which has unit slope in ln P at 3 bits whatever lam.

    Near lam = 0 the quotient cancels, so there its series u + lam u^2 / 2 + lam^2 u^3 / 6 with u = ln(P/3) stands.
    """
    u = np.log(bits / PIVOT_BITS)
    lam = np.asarray(lam, dtype=float)
    series = u + lam * u**2 / 2 + lam**2 * u**3 / 6
    safe = np.where(np.abs(lam) < 1e-4, 1.0, lam)
    return np.where(np.abs(lam) < 1e-4, series, np.expm1(safe * u) / safe)


def crossed(columns: Mapping) -> dict[str, np.ndarray]:
    """Coordinates that effects refer to and that follow from others, as text, shape (cell,)."""
    pairs = zip(columns["family"].astype(str), columns["generation"].astype(str), strict=True)
    return {"width": width(columns["effective_bits"]), "family_generation": np.array([f"{a} | {b}" for a, b in pairs]),
            "everything": np.full(len(columns["family"]), EVERYTHING)}  # fmt: skip


@dataclass(frozen=True)
class Term:
    """A coefficient of the law proper: one value per family around a population mean.

    `mean`, `sd`: normal prior of the population mean. `spread`: scale of the half-normal prior of the
    standard deviation between families. `factor`: the covariate that the coefficient multiplies.
    """

    name: str
    factor: str
    mean: float
    sd: float
    spread: float
    sentence: str


@dataclass(frozen=True)
class Covariate:
    """A coefficient shared by all cells, with a normal prior."""

    name: str
    factor: str
    mean: float
    sd: float
    sentence: str


@dataclass(frozen=True)
class Effect:
    """One deviation per level of a coordinate, Normal(0, sd), with sd ~ HalfNormal(spread); summing to zero or not."""

    name: str
    by: str
    factor: str
    spread: float
    sentence: str
    zero_sum: bool = False


@dataclass(frozen=True)
class Law:
    """A named set of terms, covariates and effects with its exponent of the bit scale, source and constants.

    `lam` is a number where the law fixes the exponent, else the (mean, sd) of its normal prior. `scatter` is the
    scale of the half-normal prior of the residual scatter of ln QiD, `tails` its shape (`likelihood.TAILS`).
    `published` holds the constants that the sources print, in the units of their own formulas. `latent_tokens` is the
    (mean, sd) of the normal prior of ln D of models whose tokens are not disclosed, None where such cells stay out.
    `drivers` and `extras` say which variant of the law it is.
    """

    name: str
    formula: str
    lam: float | tuple[float, float]
    citation: str
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    terms: tuple[Term, ...] = ()
    covariates: tuple[Covariate, ...] = ()
    effects: tuple[Effect, ...] = ()
    scatter: float = 0.4
    tails: str = "normal"
    latent_tokens: tuple[float, float] | None = None
    drivers: str = "both"
    extras: tuple[str, ...] = ()

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms, in order."""
        return tuple(term.name for term in self.terms)

    @property
    def features(self) -> tuple[str, ...]:
        """Columns of cells that the law's features of the loss landscape read; most laws have none."""
        return features.needed(item.factor for item in (*self.terms, *self.covariates, *self.effects))

    @property
    def mixed(self) -> bool:
        """Whether the law knows recipes that quantize a part of the weights alone."""
        return any(item.factor == "ln Qr" for item in self.terms)

    @property
    def shrunk(self) -> tuple["Effect", ...]:
        """Coefficients under shrinkage: effects with one level, which has a standard deviation of its own."""
        return tuple(effect for effect in self.effects if effect.by == "everything")


# factor -> its value per cell from the cells' columns, except "-x_P", which needs lam as well
FACTORS = {
    "1": lambda c: np.ones(len(c["effective_bits"])),
    "-x_N": lambda c: -np.log(c["n_params_nonembedding"] / PIVOT_PARAMS),
    "x_D": lambda c: np.log(c["train_tokens"] / PIVOT_TOKENS),
    "-x_P": lambda c, lam: -bit_scale(c["effective_bits"], lam),
    "per_channel": lambda c: c["per_channel"].astype(float),
    "per_channel ln P": lambda c: c["per_channel"] * np.log(c["effective_bits"] / PIVOT_BITS),
    "c4": lambda c: np.char.startswith(c["eval_dataset"].astype(str), "c4").astype(float),
    "ptb": lambda c: np.char.startswith(c["eval_dataset"].astype(str), "ptb").astype(float),
    "ln context": lambda c: np.log(c["ctx_len"] / REFERENCE_CONTEXT),
    "undecayed": lambda c: np.isin(c["lr_phase"].astype(str), ["constant", "decaying"]).astype(float),
    "undecayed x_D": lambda c: FACTORS["undecayed"](c) * FACTORS["x_D"](c),
    "x_N^2": lambda c: FACTORS["-x_N"](c) ** 2,
    "x_D^2": lambda c: FACTORS["x_D"](c) ** 2,
    "x_N x_D": lambda c: -FACTORS["-x_N"](c) * FACTORS["x_D"](c),
    "ln V": lambda c: np.nan_to_num(np.log(c["vocab_size"] / PIVOT_VOCABULARY)),
    "ln loss": lambda c: np.log(c["loss16"] / PIVOT_LOSS),
    **{name: partial(features.standard, name) for name in features.FEATURES},
    **quantized_share.FACTORS,
    "x_N ln Qr": lambda c: -FACTORS["-x_N"](c) * FACTORS["ln Qr"](c),
}


def width(bits) -> np.ndarray:
    """The whole number of bits that a recipe's effective bits count as, as text."""
    return np.clip(np.rint(bits), 2, 8).astype(int).astype(str)


def factor(name: str, columns: Mapping[str, np.ndarray], lam: float) -> np.ndarray:
    """Values of a factor for every cell, shape (cell,); `BadInput` where its column of the landscape is not there."""
    absent = [column for column in features.needed([name]) if column not in columns]
    if absent:
        raise BadInput(f"{absent[0]} of the loss landscape is not known here: measure it with --landscape.")
    if name == "-x_P":
        return FACTORS[name](columns, lam)
    return FACTORS[name](columns)


def carried(a: float, d: float, covariate: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By factor of a term: what bends and tilts of the law, fitted about the data's centre (a, d), add at the pivot.

    c (x_N - a)^2 = c x_N^2 - 2 a c x_N + c a^2, and likewise for x_D^2 and x_N x_D; c (x_D - d) = c x_D - c d;
    c (x_N - a) ln Qr = c x_N ln Qr - c a ln Qr.
    """
    params, tokens, both = (covariate.get(name) for name in ("x_N^2", "x_D^2", "x_N x_D"))
    moves: dict[str, np.ndarray] = {}
    if params is not None:
        moves = {"1": params * a**2, "-x_N": 2 * a * params}
    if params is not None and tokens is not None and both is not None:
        moves = {
            "1": moves["1"] + tokens * d**2 + both * a * d,
            "-x_N": moves["-x_N"] + both * d,
            "x_D": -2 * d * tokens - both * a,
        }
    for factor, center in (("-x_N", a), ("x_D", -d)):
        if factor in covariate:
            moves["1"] = moves.get("1", 0.0) + covariate[factor] * center
    return moves | ({"ln Qr": -a * covariate["x_N ln Qr"]} if "x_N ln Qr" in covariate else {})


_TERMS = (
    Term("log_k", "1", -1.5, 1.5, 0.7,
         "QiD of 1e9 parameters after 1e11 tokens at 3 bits is between 0.02 and 2.6 nats (90 %); "
         "families differ by a factor of two either way"),
    Term("alpha", "-x_N", 0.3, 0.2, 0.15,
         "ten times the parameters divide QiD by a factor between 0.9 and 4.3 (90 %)"),
    Term("beta", "x_D", 0.4, 0.25, 0.15,
         "ten times the tokens multiply QiD by a factor between 0.98 and 6.5 (90 %)"),
    Term("gamma", "-x_P", 5.0, 2.0, 1.0,
         "near 3 bits one per cent more bits lower QiD by 1.7 to 8.3 per cent (90 %)"),
)

_COVARIATES = (
    Covariate("per_channel", "per_channel", 0.5, 0.5,
              "one uniform scale per output row costs a factor between 0.7 and 3.8 at 3 bits (90 %)"),
    Covariate("per_channel_slope", "per_channel ln P", 0.0, 1.0,
              "that cost may grow or fall with bits"),
    Covariate("c4", "c4", 0.0, 0.3, "evaluated on C4 instead of WikiText-2: within a factor of 1.6 (90 %)"),
    Covariate("ptb", "ptb", 0.0, 0.3, "evaluated on Penn Treebank instead: within a factor of 1.6 (90 %)"),
    Covariate("context", "ln context", 0.0, 0.2, "doubling the context changes QiD by less than 26 % (90 %)"),
    Covariate("undecayed", "undecayed", 0.0, 0.5,
              "a checkpoint before the end of learning-rate decay differs by a factor under 2.3 (90 %)"),
    Covariate("undecayed_slope", "undecayed x_D", 0.0, 0.15,
              "and its tokens exponent by less than 0.25 (90 %)"),
)
# extrapolation slack of the law `curved`: 0.02 bends a tenfold exponent by 0.2 over a factor of e^5 = 150
_CURVATURE = (
    Covariate("bend_params", "x_N^2", 0.0, 0.02, "alpha may change by 0.15 over a factor of 100 in N (90 %)"),
    Covariate("bend_tokens", "x_D^2", 0.0, 0.02, "beta may change by 0.3 over a factor of 100 in D (90 %)"),
    Covariate("bend_both", "x_N x_D", 0.0, 0.02, "and by half as much over a factor of 100 in the other (90 %)"),
)

_EFFECTS = (
    Effect("generation_level", "generation", "1", 0.7,
           "quantizer generations differ by about a factor of two at 3 bits", True),
    Effect("generation_slope", "generation", "-x_P", 1.0, "and by about 1 in gamma", True),
    Effect("method_level", "quantizer", "1", 0.5, "methods of one generation differ by about 50 % at 3 bits"),
    Effect("method_slope", "quantizer", "-x_P", 0.7, "and by about 0.7 in gamma"),
    Effect("checkpoint_level", "checkpoint", "1", 0.4, "all recipes of one checkpoint share a deviation of about 40 %"),
    Effect("source_level", "source_method", "1", 0.3, "one method in one source shares a deviation of about 30 %"),
)

# one law per bit width, partially pooled: Ouyang et al.'s own Table 1 follows other constants at each
_WIDTHS = (
    Effect("width_level", "width", "1", 0.3, "bit widths deviate from the common scale of bits by about 30 %"),
    Effect("width_alpha", "width", "-x_N", 0.1, "and by about 0.1 in alpha"),
    Effect("width_beta", "width", "x_D", 0.1, "and by about 0.1 in beta"),
)

# The law `landscape`. Its physical core: QiD is the second-order value of the loss along the rounding error, up to a
# power near one
_CORE = (
    Term("log_k", "1", -2.3, 0.7, 0.4,
         "where the second-order value is 0.1 nats QiD is between 0.03 and 0.3 (90 %); families differ by about 50 %"),
    Term("taylor", "ln taylor", 1.0, 0.3, 0.15,
         "ten times the second-order value multiplies QiD by a factor between 3 and 31 (90 %)"),
)
# The rest by shrinkage: beta_f ~ Normal(0, sd_f), sd_f ~ HalfNormal(s), s = 0.3, each for itself. This is the
# normal-gamma prior of shape 1/2 (Griffin and Brown 2010, Bayesian Analysis 5): its density K_0(|beta| / s) / (pi s) is
# unbounded at zero, where it draws what the data do not ask for, and its tails are exponential. The regularised
# horseshoe (Piironen and Vehtari 2017) has half-Cauchy sd_f under a slab and one global scale that the data set: here
# the slab's width is stated in their place. For six features that is enough, and both engines sample it as any spread
_SHRUNK = tuple(
    Effect(name, "everything", factor, 0.3, f"{words}, multiplies QiD by under 1.7 either way (90 %), most likely by 1")
    for name, factor, words in (
        ("sqnr", "sqnr", "6 dB more SQNR, about one bit"),
        ("baseline_loss", "baseline", "0.3 more ln of the loss before quantization"),
        ("layer_error", "layer error", "1.8 more ln of the layer error"),
        ("trace", "trace", "1 more ln of the trace of the Hessian"),
        ("flatness", "flatness", "1.5 more ln of the rise along random directions"),
        ("curvature_share", "curvature share", "0.3 more share of curvature in the second-order value"),
    )
)
# The law `mixed`. Errors of layers that add up make QiD, on average, proportional to the share Qr of weights quantized
# at random; what is chosen well falls faster as weights are left out, hence exponents of Qr
_MIXED = Term("kappa", "ln Qr", 1.0, 0.5, 0.3,
              "of layers picked at random QiD is proportional to the quantized share to a power between 0.2 and 1.8 "
              "(90 %); families differ by 0.3")  # fmt: skip
_MIXED_COVARIATES = (
    Covariate("kappa_params", "x_N ln Qr", 0.0, 0.2, "ten times the parameters change that power by under 0.8 (90 %)"),
    Covariate("matmul", "matmul ln Qr", 0.0, 1.0,
              "single matrices instead of whole layers change it by under 1.6 either way (90 %)"),
    Covariate("searched", "searched ln Qr", 0.5, 1.5, "the best of 50 assignments adds between -2 and 3 (90 %)"),
    Covariate("ranked", "ranked ln Qr", 0.5, 1.5, "as does an assignment by sensitivity"),
    Covariate("block", "ln block", 0.2, 0.2,
              "beyond the bits of its scales a block twice as long multiplies QiD by 0.9 to 1.45 (90 %)"),
)
_TEXT = tuple(c for c in _COVARIATES if c.name in ("c4", "ptb", "context"))
_LEVELS = tuple(replace(e, sentence=e.sentence.removesuffix(" at 3 bits")) for e in _EFFECTS if e.factor == "1")

_OUYANG = {
    "unified": {"k": 0.017, "alpha": 0.2261, "beta": 0.5251, "gamma": 5.4967},
    # exact power laws behind the columns of Table 1; the 3- and 4-bit ones are not the unified law
    "2-bit": {"k": 3.775e-4, "alpha": 0.22496, "beta": 0.52413},
    "3-bit": {"k": 1.1695e-5, "alpha": 0.3547, "beta": 0.6728},
    "4-bit": {"k": 6.13249e-6, "alpha": 0.3835, "beta": 0.6551},
}
_KUMAR = {"unified": {"C_T": 0.0598, "gamma_N": 0.3439, "gamma_D": 0.5068, "gamma_post": 0.5907}}

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("boxcox", "ln QiD = log_k - alpha x_N + beta x_D - gamma ((P/3)^lam - 1)/lam", (0.5, 0.3),
            "Box-Cox exponent on bits that nests Ouyang et al. (lam = 0) and Kumar et al. (lam = 1)",
            {}, _TERMS, _COVARIATES, _EFFECTS),
        Law("ouyang", "QiD = k D^beta / (N^alpha P^gamma)", 0.0,
            "Ouyang et al. 2024, arXiv 2411.17691, Eq. 8", _OUYANG, _TERMS, _COVARIATES, _EFFECTS),
        Law("kumar", "QiD = C_T D^gamma_D / N^gamma_N exp(-P / gamma_post)", 1.0,
            "Kumar et al. 2024, arXiv 2411.04330, Eq. 2 and Table 2", _KUMAR, _TERMS, _COVARIATES, _EFFECTS),
        Law("per-bit", "ln QiD = log_k_P - alpha_P x_N + beta_P x_D, partially pooled over bit widths P about boxcox",
            (0.5, 0.3), "Ouyang et al. 2024, arXiv 2411.17691, Table 1, where each bit width has constants of its own",
            _OUYANG, _TERMS, _COVARIATES, (*_EFFECTS, *_WIDTHS)),
        Law("curved", "boxcox + c_N x_N^2 + c_D x_D^2 + c_ND x_N x_D", (0.5, 0.3),
            "Box-Cox with small quadratic terms as slack for extrapolation",
            {}, _TERMS, (*_COVARIATES, *_CURVATURE), _EFFECTS),
        Law("landscape", "ln QiD = log_k + taylor ln((g.d + d'Hd / 2) / 0.1) + features of the loss landscape", 0.0,
            "Second-order expansion of the loss along the rounding error d, with the features of Xu et al. 2024, arXiv "
            "2410.12119; needs measure --landscape", {}, _CORE, _TEXT, (*_LEVELS, *_SHRUNK)),
        Law("mixed", "boxcox + (kappa + kappa_N x_N + matmul + assignment) ln Qr + block ln(block / 32)", (0.5, 0.3),
            "Share of the weights that may be quantized: Cao et al. 2024, arXiv 2410.06722, Sec. 4", {},
            (*_TERMS, _MIXED), (*_COVARIATES, *_MIXED_COVARIATES), _EFFECTS),
    )
}  # fmt: skip
# laws of N, D and P alone, which any cells of plain recipes can be fitted with
PLAIN: dict[str, Law] = {name: law for name, law in LAWS.items() if not law.features and not law.mixed}

DRIVERS = {
    "both": "tokens and learning-rate decay",
    "tokens": "tokens alone",
    "phase": "learning-rate decay alone",
}
# name -> what is done, in words
EXTRAS = {
    "student-t": "residual scatter with Student-t tails, 5 degrees of freedom",
    "vocabulary": "ln of the vocabulary's size as a covariate",
    "loss": "ln of the baseline's loss as a covariate",
    "latent-tokens": "models of undisclosed tokens are fitted too, ln D ~ Normal(ln 4e12, 0.8)",
    "unique-tokens": "D counts unique tokens where a source says how many (OPT: 180B of 300B)",
}
_LATENT_TOKENS = (math.log(4e12), 0.8)
_EXTRA_COVARIATES = {
    "vocabulary": Covariate("vocabulary", "ln V", 0.0, 0.3, "twice the vocabulary changes QiD by under 40 % (90 %)"),
    "loss": Covariate("loss", "ln loss", 0.0, 1.0, "one per cent more loss changes QiD by under 1.6 per cent (90 %)"),
}


def variant(name: str, drivers: str = "both", extras: Iterable[str] = ()) -> Law:
    """The law of that name with what drives QiD in training (`DRIVERS`) and with extra assumptions (`EXTRAS`).

    Without tokens there is no term beta; without decay no covariate of it. `BadInput` for what is not known.
    """
    law, extras = get(name), tuple(dict.fromkeys(extras))
    if drivers not in DRIVERS:
        raise BadInput(f"There are no drivers {drivers!r}: choose one of {', '.join(DRIVERS)}.")
    for extra in extras:
        if extra not in EXTRAS:
            raise BadInput(f"There is no extra {extra!r}: choose among {', '.join(EXTRAS)}.")
    terms, covariates, effects = law.terms, law.covariates, law.effects
    if drivers == "tokens":
        covariates = tuple(c for c in covariates if not c.factor.startswith("undecayed"))
    if drivers == "phase":
        terms = tuple(t for t in terms if t.factor != "x_D")
        covariates = tuple(c for c in covariates if "x_D" not in c.factor)
        effects = tuple(e for e in effects if e.factor != "x_D")
    covariates = (*covariates, *(_EXTRA_COVARIATES[extra] for extra in extras if extra in _EXTRA_COVARIATES))
    latent = _LATENT_TOKENS if "latent-tokens" in extras else None
    if latent and any(c.factor == "x_D^2" for c in covariates):
        raise BadInput(f"Law {name} is not linear in ln D, which latent-tokens needs: leave one of the two.")
    tails = "student-t" if "student-t" in extras else law.tails
    return replace(law, terms=terms, covariates=covariates, effects=effects, tails=tails, latent_tokens=latent,
                   drivers=drivers, extras=extras)  # fmt: skip


def get(name: str) -> Law:
    """The law of that name; `BadInput` lists the known ones."""
    if name not in LAWS:
        raise BadInput(f"There is no law {name!r}: choose one of {', '.join(LAWS)}.")
    return LAWS[name]


def log_qid(params, tokens, bits, log_k, alpha, beta, gamma, lam):
    """ln QiD of the law proper, without covariates and effects; arguments broadcast; N, D raw counts."""
    x_params = np.log(params / PIVOT_PARAMS)
    x_tokens = np.log(tokens / PIVOT_TOKENS)
    return log_k - alpha * x_params + beta * x_tokens - gamma * bit_scale(bits, lam)


def qid(params, tokens, bits, log_k, alpha, beta, gamma, lam):
    """QiD in nats per token of the law proper, unbounded: see `bayesqid.likelihood.saturate` for the ceiling."""
    return np.exp(log_qid(params, tokens, bits, log_k, alpha, beta, gamma, lam))


def require_features(law: Law, columns: Mapping[str, np.ndarray]) -> None:
    """`BadInput` unless the columns of cells hold a number for all that the law reads of the loss landscape.

    Nor may cells that quantize a part of the weights meet a law that does not know them (`quantized_share.require`).
    """
    quantized_share.require(law.name, law.mixed, columns)
    for name in law.features:
        unknown = ~np.isfinite(np.asarray(columns[name], dtype=float)) if name in columns else np.array([True])
        if unknown.any():
            cell = int(np.argmax(unknown))
            of = "" if unknown.all() else f" of {columns['checkpoint'][cell]} with {columns['quantizer'][cell]}"
            raise BadInput(f"Law {law.name} needs the loss landscape, and {name}{of} is not in these data: "
                           "measure with --landscape, or take another law.")  # fmt: skip


def published_constants(name: str, constants: str = "unified") -> dict[str, float]:
    """Printed constants of a law turned into the arguments of `qid` (log_k, alpha, beta, gamma, lam).

    The `N-bit` sets of Ouyang's Table 1 hold at their own bit width only; they come back with gamma = 0.
    """
    printed = get(name).published[constants]
    if name == "kumar":
        alpha, beta, gamma = printed["gamma_N"], printed["gamma_D"], PIVOT_BITS / printed["gamma_post"]
        log_k = math.log(printed["C_T"]) - gamma
    else:
        alpha, beta, gamma = printed["alpha"], printed["beta"], printed.get("gamma", 0.0)
        log_k = math.log(printed["k"]) - gamma * math.log(PIVOT_BITS)
    log_k += beta * math.log(PIVOT_TOKENS) - alpha * math.log(PIVOT_PARAMS)
    return {"log_k": log_k, "alpha": alpha, "beta": beta, "gamma": gamma, "lam": float(name == "kumar")}


PRIOR_KEYS = ("mean", "sd", "spread")


def with_priors(law: Law, priors: Mapping[str, Mapping[str, float]]) -> Law:
    """The law with some priors replaced, e.g. `{"beta": {"mean": 0.5, "sd": 0.1}}`; `lam` takes mean and sd.

    Raises `BadInput` for an unknown term or key, a value that is not a finite number, or a scale not above zero.
    """
    known = {item.name: item for item in (*law.terms, *law.covariates, *law.effects)}
    for name, change in priors.items():
        if name == "lam" and isinstance(law.lam, tuple):
            allowed = {"mean", "sd"}
        elif name == "scatter":
            allowed = {"spread"}
        elif name in known:
            allowed = {key for key in PRIOR_KEYS if hasattr(known[name], key)}
        else:
            names = ", ".join([*known, "scatter", *(["lam"] if isinstance(law.lam, tuple) else [])])
            raise BadInput(f"The prior of {name!r} cannot be set for law {law.name}: known are {names}.")
        if not isinstance(change, Mapping):
            raise BadInput(f"Prior [{name}] is {change!r}: give a table such as {{mean = 0.5, sd = 0.1}}.")
        for key, value in change.items():
            if key not in allowed:
                raise BadInput(f"Prior [{name}] has the unknown key {key!r}: use {', '.join(sorted(allowed))}.")
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (key != "mean" and value <= 0):
                raise BadInput(f"Prior [{name}] has {key} = {value!r}: give a finite number, above zero for a scale.")
    lam, scatter = law.lam, priors.get("scatter", {}).get("spread", law.scatter)
    if isinstance(lam, tuple) and "lam" in priors:
        lam = (priors["lam"].get("mean", lam[0]), priors["lam"].get("sd", lam[1]))

    def changed(items):
        return tuple(replace(item, **priors.get(item.name, {})) for item in items)

    return replace(law, terms=changed(law.terms), covariates=changed(law.covariates), effects=changed(law.effects),
                   lam=lam, scatter=scatter)  # fmt: skip


def describe(law: Law) -> str:
    """The law for a reader of 80 columns: formula, priors as sentences, published constants, source."""
    import textwrap

    def item(label: str, text: str) -> str:
        return textwrap.fill(f"{label}: {text}", 80, initial_indent="    ", subsequent_indent="      ")

    lines = [f"{law.name}: {law.formula}", textwrap.fill(f"Source: {law.citation}.", 80)]
    lines += ["  Terms, one value per family around a population mean"]
    lines += [item(f"{t.name} ~ Normal({t.mean:g}, {t.sd:g}), spread ~ HalfNormal({t.spread:g})", t.sentence)
              for t in law.terms]  # fmt: skip
    if isinstance(law.lam, tuple):
        mean, sd = law.lam
        lines.append(item(f"lam ~ Normal({mean:g}, {sd:g})", "0 is a power law in bits, 1 an exponential"))
    else:
        lines.append(item(f"lam = {law.lam:g}", "fixed by the law"))
    lines += ["  Covariates, shared by all cells"]
    lines += [item(f"{c.name} ~ Normal({c.mean:g}, {c.sd:g})", c.sentence) for c in law.covariates]
    lines += ["  Effects, one deviation per level"]
    lines += [item(f"{e.name} by {e.by}, spread ~ HalfNormal({e.spread:g})", e.sentence) for e in law.effects]
    lines.append(item(f"scatter ~ HalfNormal({law.scatter:g}) per generation",
                      f"multiplicative, of single cells, {law.tails}"))  # fmt: skip
    if law.published:
        lines += ["  Published constants, in the units of the source"]
        for key, values in law.published.items():
            lines.append(item(key, ", ".join(f"{name} = {value:g}" for name, value in values.items())))
    lines += ["  On request: --drivers " + ", ".join(DRIVERS) + "; --with"]
    lines += [item(name, words) for name, words in EXTRAS.items()]
    return "\n".join(lines)
