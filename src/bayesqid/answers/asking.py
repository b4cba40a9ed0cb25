"""Questions: the words of the command line, checked, as targets."""

import math

from bayesqid import recipe
from bayesqid.answers import draws
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

DEFAULT_PARAMS = (1e9, 7e9, 70e9, 405e9)
DEFAULT_BITS = (2, 3, 4)
DEFAULT_METHOD = "gptq"
DEFAULT_GROUP = 128
LIMITS = {"params": (1e3, 1e16), "tokens": (1e3, 1e19)}
LR_PHASES = ("annealed", "decaying", "constant")


def positive(name: str, value: float) -> float:
    """The value if it is a finite count in a believable range; `BadInput` otherwise."""
    low, high = LIMITS[name]
    if not (math.isfinite(value) and low <= value <= high):
        raise BadInput(f"--{name} is {value:g}: give a number between {low:g} and {high:g}, e.g. {name} 7e9.")
    return float(value)


def target_of(text: str | None, bits: float, method: str, **rest) -> Target:
    """A target from a recipe text, or from bits and a method in the default group of 128 with 16-bit scales."""
    if text is not None:
        wanted = recipe.parse(text)
        if wanted.method == "none":
            raise BadInput("Recipe 'none' is the baseline and loses nothing: name a recipe such as gptq-w4-g128.")
        per_channel = wanted.group_size == -1
        # a large model's layer: what is stored once a row or column costs a few thousandths of a bit
        effective = recipe.effective_bits(wanted, [(4096, 4096)])
        return Target(
            effective_bits=effective, method=wanted.quantizer, bits=wanted.bits, per_channel=per_channel, **rest
        )
    if not (math.isfinite(bits) and 1 <= bits <= 16):
        raise BadInput(f"--bits is {bits:g}: give a number from 1 to 16.")
    effective = bits + recipe.FORMATS["int"].scale_bits / DEFAULT_GROUP
    return Target(effective_bits=effective, method=method, bits=bits, **rest)


def targets(
    posterior: Posterior, tokens: float, params: float | None = None, known: dict | None = None,
    bits: float | None = None, recipes: str | None = None, method: str = DEFAULT_METHOD,
    family: str | None = None, new_family: bool = False, lr_phase: str = "annealed",
) -> list[Target]:  # fmt: skip
    """Targets of a question in the words of the command line; what is not said takes the defaults.

    1B, 7B, 70B and 405B parameters; 2, 3 and 4 bits under GPTQ in groups of 128; a new family. `known` describes a
    named model (`bayesqid.importers.tables.lookup_model`). `BadInput` where two options contradict each other or a
    number is not believable.
    """
    if params is not None and known is not None:
        raise BadInput("--params and --model-name both set the size: give one of them.")
    if bits is not None and recipes is not None:
        raise BadInput("--bits and --recipes both set the bits: give one of them.")
    if family is not None and new_family:
        raise BadInput("--family and --new-family contradict each other: give one of them.")
    if lr_phase not in LR_PHASES:
        raise BadInput(f"--lr-phase {lr_phase!r} is not known: choose one of {', '.join(LR_PHASES)}.")
    sizes = DEFAULT_PARAMS if params is None else (positive("params", params),)
    if known is not None:
        sizes = (positive("params", known["n_params_nonembedding"]),)
        if family is None and not new_family and known["family"] in posterior.families:
            family = known["family"]
    named = family and draws.require_family(posterior, family)
    count = positive("tokens", tokens)
    kinds = [(text.strip(), 0.0) for text in recipes.split(",")] if recipes else []
    kinds = kinds or [(None, width) for width in (DEFAULT_BITS if bits is None else (bits,))]
    key = draws.require_method(posterior, method)
    return [
        target_of(text, width, key, family=named, params=size, tokens=count, lr_phase=lr_phase)
        for size in sizes
        for text, width in kinds
    ]
