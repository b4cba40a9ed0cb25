"""Names of quantizers: what a table prints, what a law estimates, and to which generation it belongs.

Effects are estimated per *effect key*, `method` or `method-variant`; the generation is the level above it.
"""

LEGACY_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q6_0", "q8_0")
K_TYPES = (
    "q2_k", "q2_k_s", "q3_k", "q3_k_xs", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k", "q4_k_s", "q4_k_m",
    "q5_k", "q5_k_s", "q5_k_m", "q6_k",
)  # fmt: skip
IQ_TYPES = (
    "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq2_k", "iq3_xxs", "iq3_xs", "iq3_s",
    "iq3_m", "iq3_k", "iq4_xs", "iq4_nl", "iq4_ks", "iq4_k", "iq5_k", "iq6_k",
)  # fmt: skip
# number formats whose effects are estimated apart from that of uniform grids: shared powers of two, narrow floats
MX_TYPES = ("mxint", "mxfp4", "mxfp6e2m3", "mxfp6e3m2", "mxfp8e4m3", "mxfp8e5m2")
FP8_TYPES = ("fp8e4m3", "fp8e5m2")
# the same with what enters the layers rounded too
_BOTH = tuple(f"{name}-wa" for name in (*MX_TYPES, *FP8_TYPES))
_LLAMACPP = {"llamacpp-legacy": LEGACY_TYPES, "llamacpp-k": K_TYPES, "llamacpp-iq": IQ_TYPES}

# printed name, casefolded -> (method, variant); a variant is kept only where its effect is estimated apart
METHODS: dict[str, tuple[str, str]] = {
    "rtn": ("rtn", ""),
    "rtn-sym": ("rtn", ""),
    "round-to-nearest": ("rtn", ""),
    "nearest": ("rtn", ""),
    "bnb-nf4": ("bnb", "nf4"),
    "bnb-nf4-dq": ("bnb", "nf4-dq"),
    "bnb-fp4": ("bnb", "fp4"),
    "nf4": ("bnb", "nf4"),
    "fp4": ("bnb", "fp4"),
    "gptq": ("gptq", ""),
    "gptq-sym": ("gptq", ""),
    "gptq(quantlm)": ("gptq", ""),
    "auto-gptq": ("gptq", ""),
    "autogptq": ("gptq", ""),
    "gptqmodel": ("gptq", ""),
    "optq": ("gptq", ""),
    "gptq-actorder": ("gptq", "actorder"),
    "gptq-act-order": ("gptq", "actorder"),
    "gptq-r": ("gptq", "actorder"),
    "obq": ("obq", ""),
    "awq": ("awq", ""),
    "autoawq": ("awq", ""),
    "awq+gptq": ("awq", ""),
    "hqq": ("hqq", ""),
    "owq": ("owq", ""),
    "spqr": ("spqr", ""),
    "spinquant": ("spinquant", ""),
    "picollm": ("picollm", ""),
    "quik-4b": ("quik", ""),
    "atom": ("atom", ""),
    "pb-llm": ("pb-llm", ""),
    "billm": ("billm", ""),
    "smoothquant": ("smoothquant", ""),
    "quarot": ("quarot", ""),
    "quarot-rtn": ("quarot", "rtn"),
    "omniquant": ("omniquant", ""),
    "autoround": ("autoround", ""),
    "auto-round": ("autoround", ""),
    "autoround-iters1k": ("autoround", ""),
    "autoround-iters2k": ("autoround", ""),
    "autoround-iters4k": ("autoround", ""),
    "decoupleq": ("decoupleq", ""),
    "db-llm": ("db-llm", ""),
    "squeezellm": ("squeezellm", ""),
    "squeezellm-0.1%": ("squeezellm", ""),
    "squeezellm-0.45%": ("squeezellm", ""),
    "squeezellm-0.5%": ("squeezellm", ""),
    "lnq": ("lnq", ""),
    "gptvq": ("gptvq", ""),
    "gptvq-1d": ("gptvq", "1d"),
    "gptvq-2d": ("gptvq", "2d"),
    "gptvq-4d": ("gptvq", "4d"),
    "quip": ("quip", ""),
    "quip#": ("quip#", ""),
    "quip#-ft": ("quip#", ""),
    "quip#-noft": ("quip#", ""),
    "aqlm": ("aqlm", ""),
    "aqlm-ft-1x16": ("aqlm", ""),
    "aqlm-ft-2x8": ("aqlm", ""),
    "aqlm-pv-1x16": ("aqlm", ""),
    "vptq": ("vptq", ""),
    "qtip": ("qtip", ""),
    "efficientqat": ("efficientqat", ""),
    "lnq+guidedquant": ("lnq", "guidedquant"),
    "qtip+guidedquant": ("qtip", "guidedquant"),
} | {
    prefix + name + suffix: (method, variant)
    for method, types in _LLAMACPP.items()
    for name in types
    for prefix in ("llama.cpp:", "llama.cpp-pure:", "gguf:", "")
    for suffix, variant in (("", ""), ("+imatrix", "imatrix"))
}
METHODS |= {f"rtn-{name}": ("rtn", name) for name in (*MX_TYPES, *FP8_TYPES, "nvfp4", *_BOTH)}
METHODS |= {f"gptq-{name}": ("gptq", name) for name in ("mxint", "mxint-wa")}
METHODS |= {f"{pair[0]}-{pair[1]}".rstrip("-"): pair for pair in METHODS.values()}  # effect keys too

GENERATIONS = ("rtn", "calibrated", "optimised", "vector")

# effect key -> (generation, why)
GENERATION: dict[str, tuple[str, str]] = {
    "rtn": ("rtn", "rounds each weight alone"),
    **{f"rtn-{name}": ("rtn", "rounds blocks that share a power of two as scale") for name in MX_TYPES},
    **{f"rtn-{name}": ("rtn", "rounds to a narrow float with a scale per row") for name in FP8_TYPES},
    "rtn-nvfp4": ("rtn", "rounds to a narrow float, blocks that share a narrow float as scale"),
    **{f"rtn-{name}": ("rtn", "rounds weights and what enters the layers") for name in _BOTH},
    "llamacpp-legacy": ("rtn", "rounds blocks of 32 without looking at data"),
    "bnb": ("rtn", "rounds to a fixed 4-bit code"),
    "bnb-nf4": ("rtn", "rounds to a fixed normal-quantile code"),
    "bnb-nf4-dq": ("rtn", "rounds to a fixed normal-quantile code, scales rounded too"),
    "bnb-fp4": ("rtn", "rounds to a fixed float code"),
    "smoothquant": ("rtn", "rescales activations, then rounds"),
    "quarot": ("rtn", "rotates, then rounds"),
    "quarot-rtn": ("rtn", "rotates, then rounds"),
    "gptq": ("calibrated", "second-order error feedback on a uniform grid"),
    "gptq-actorder": ("calibrated", "error feedback in the order of activation size"),
    "gptq-mxint": ("calibrated", "second-order error feedback, blocks share a power of two as scale"),
    "gptq-mxint-wa": ("calibrated", "the same, what enters the layers rounded too"),
    "obq": ("calibrated", "second-order error feedback, one weight at a time"),
    "awq": ("calibrated", "activation-aware scales on a uniform grid"),
    "hqq": ("calibrated", "zero points fitted to the weights by half-quadratic steps"),
    "owq": ("calibrated", "error feedback with a few columns kept wide"),
    "spqr": ("calibrated", "error feedback with outliers kept apart"),
    "spinquant": ("calibrated", "learned rotation, then error feedback"),
    "picollm": ("calibrated", "vendor's mixed precision from calibration data"),
    "quik": ("calibrated", "error feedback with outlier columns kept wide"),
    "atom": ("calibrated", "error feedback with outlier channels kept wide"),
    "pb-llm": ("calibrated", "partly binary, error feedback"),
    "billm": ("calibrated", "binary with residuals, error feedback"),
    "llamacpp-k": ("calibrated", "super-blocks with searched scales"),
    "llamacpp-k-imatrix": ("calibrated", "searched scales weighted by activations"),
    "llamacpp-legacy-imatrix": ("calibrated", "legacy blocks with scales weighted by activations"),
    "omniquant": ("optimised", "clipping and scales learned block by block"),
    "autoround": ("optimised", "rounding learned by signed gradients"),
    "decoupleq": ("optimised", "alternating optimisation of codes and scales"),
    "db-llm": ("optimised", "two learned binary codes"),
    "squeezellm": ("optimised", "sensitivity-weighted codebook per row"),
    "lnq": ("optimised", "codebook per row by alternating optimisation"),
    "gptvq": ("optimised", "small codebooks with error feedback"),
    "gptvq-1d": ("optimised", "scalar codebooks with error feedback"),
    "gptvq-2d": ("optimised", "pair codebooks with error feedback"),
    "gptvq-4d": ("optimised", "four-weight codebooks with error feedback"),
    "quip": ("optimised", "incoherent rotation with adaptive rounding"),
    "llamacpp-iq": ("optimised", "lattice or non-linear codes"),
    "llamacpp-iq-imatrix": ("optimised", "lattice or non-linear codes weighted by activations"),
    "aqlm": ("vector", "additive codebooks tuned by block"),
    "quip#": ("vector", "lattice codebook after rotation"),
    "qtip": ("vector", "trellis code after rotation"),
    "vptq": ("vector", "vector codebooks tuned by layer"),
    "efficientqat": ("vector", "weights and scales trained by block and end to end"),
    "lnq-guidedquant": ("vector", "codebook per row guided by the end loss"),
    "qtip-guidedquant": ("vector", "trellis code guided by the end loss"),
}

# one codebook per output row costs no more than its bits, and floats have exponents of their own: no penalty for
# per-channel scales
PER_CHANNEL_EXEMPT = frozenset({
    "squeezellm", "lnq", "gptvq", "gptvq-1d", "gptvq-2d", "gptvq-4d", "quip", "spqr", "llamacpp-iq-imatrix",
    "rtn-fp8e4m3", "rtn-fp8e5m2", "rtn-fp8e4m3-wa", "rtn-fp8e5m2-wa",
})  # fmt: skip

# uniform grid, a 16-bit scale and a b-bit zero point per group: stored bits follow from b and the group
UNIFORM = frozenset({
    "rtn", "gptq", "gptq-actorder", "obq", "awq", "omniquant", "autoround", "efficientqat",
})  # fmt: skip


def canonical(printed: str) -> tuple[str, str]:
    """(method, variant) of a printed name, case ignored; an unknown name is (its casefold, "")."""
    name = printed.strip().casefold()
    return METHODS.get(name, (name, ""))


def effect_key(method: str, variant: str = "") -> str:
    """Level at which a quantizer's effect is estimated: `method` or `method-variant`."""
    return f"{method}-{variant}" if variant else method


def generation(method: str, variant: str = "") -> str:
    """Generation of an effect key, one of `GENERATIONS`; "unknown" where the table has none."""
    return GENERATION.get(effect_key(method, variant), ("unknown", ""))[0]


def is_per_channel(method: str, variant: str, group_size: float) -> bool:
    """Whether a row of weights shares one uniform scale (group size -1, no codebook of its own)."""
    key = effect_key(method, variant)
    return group_size == -1 and generation(key) != "vector" and key not in PER_CHANNEL_EXEMPT
