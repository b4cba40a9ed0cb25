"""Questions: the words of the command line, checked, as targets."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bayesqid import methods, recipe
from bayesqid.answers import draws
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

DEFAULT_PARAMS = (1e9, 7e9, 70e9, 405e9)
DEFAULT_TOKENS = 1e14
DEFAULT_BITS = (2, 3, 4)
DEFAULT_METHOD = "gptq"
DEFAULT_GROUP = 128
LIMITS = {"params": (1e3, 1e16), "tokens": (1e3, 1e19)}
LR_PHASES = ("annealed", "decaying", "constant")
POINTS = 13
MOST_POINTS = 200
# columns of a CSV of targets
COLUMNS = ("model", "params", "tokens", "bits", "recipe", "family", "method", "lr_phase")
MOST_ROWS = 1000


def positive(name: str, value: float, label: str | None = None) -> float:
    """The value if it is a finite count in a believable range; `BadInput` otherwise, under `label` if it has one."""
    low, high = LIMITS[name]
    if not (math.isfinite(value) and low <= value <= high):
        where = label or f"--{name}"
        raise BadInput(f"{where} is {value:g}: give a number between {low:g} and {high:g}, e.g. {name} 7e9.")
    return float(value)


def target_of(text: str | None, bits: float, method: str, **rest) -> Target:
    """A target from a recipe text, or from bits and a method in the default group of 128 with 16-bit scales."""
    if text is not None:
        wanted = recipe.parse(text)
        if wanted.method == "none":
            raise BadInput("Recipe 'none' is the baseline and loses nothing: name a recipe such as gptq-w4-g128.")
        if wanted.mix:
            raise BadInput(f"Recipe {text!r} is an assignment that stands in a file, which no law knows: leave it out.")
        per_channel = methods.is_per_channel(*methods.canonical(wanted.quantizer), wanted.group_size)
        # a large model's layer: what is stored once a row or column costs a few thousandths of a bit
        effective = recipe.effective_bits(wanted.whole, [(4096, 4096)])
        part = {"quantized_fraction": wanted.fraction, "granularity": wanted.granularity, "assignment": "random",
                "group_size": wanted.group_size}  # fmt: skip
        return Target(
            effective_bits=effective, method=wanted.quantizer, bits=wanted.bits, per_channel=per_channel,
            features=part if wanted.partial else None, **rest
        )  # fmt: skip
    if not (math.isfinite(bits) and 1 <= bits <= 16):
        raise BadInput(f"--bits is {bits:g}: give a number from 1 to 16.")
    effective = bits + recipe.FORMATS["int"].scale_bits / DEFAULT_GROUP
    return Target(effective_bits=effective, method=method, bits=bits, **rest)


def token_counts(
    tokens: float | None, tokens_range: str | tuple[float, float] | None = None, points: int | None = None
) -> list[float]:
    """Training tokens of a question: one count, or `points` (13) of a range, evenly spaced in ln D, ends included.

    A range is written LOW:HIGH, e.g. 1e11:1e14. `BadInput` where that cannot be meant.
    """
    if tokens_range is None:
        if points is not None:
            raise BadInput("--points counts the tokens of --tokens-range: give that too.")
        return [positive("tokens", DEFAULT_TOKENS if tokens is None else tokens)]
    if tokens is not None:
        raise BadInput("--tokens and --tokens-range both set the tokens: give one of them.")
    ends = tokens_range.split(":") if isinstance(tokens_range, str) else tokens_range
    try:
        low, high = (float(end) for end in ends)
    except (ValueError, TypeError):
        raise BadInput(f"--tokens-range is {tokens_range!r}: write LOW:HIGH, e.g. 1e11:1e14.") from None
    low, high = (positive("tokens", end, "An end of --tokens-range") for end in (low, high))
    if low >= high:
        raise BadInput(f"--tokens-range runs from {low:g} to {high:g}: give the smaller number first.")
    count = POINTS if points is None else points
    if not 2 <= count <= MOST_POINTS:
        raise BadInput(f"--points is {count}: give a number from 2 to {MOST_POINTS}.")
    return [low, *np.geomspace(low, high, count)[1:-1].tolist(), high]


def targets(
    posterior: Posterior, tokens: float | None = None, params: float | None = None, known: Mapping | None = None,
    bits: float | None = None, recipes: str | None = None, method: str = DEFAULT_METHOD,
    family: str | None = None, new_family: bool = False, lr_phase: str = "annealed", population: bool = False,
    tokens_range: str | tuple[float, float] | None = None, points: int | None = None,
) -> list[Target]:  # fmt: skip
    """Targets of a question in the words of the command line; what is not said takes the defaults.

    1B, 7B, 70B and 405B parameters; 1e14 tokens; 2, 3 and 4 bits under GPTQ in groups of 128; a new family. `known`
    describes a named model (`bayesqid.importers.tables.lookup_model`). `population` asks about the mean of all
    families. Rows run over sizes, then bits or recipes, then tokens. `BadInput` where two options contradict each
    other or a number is not believable.
    """
    if params is not None and known is not None:
        raise BadInput("--params and --model-name both set the size: give one of them.")
    if bits is not None and recipes is not None:
        raise BadInput("--bits and --recipes both set the bits: give one of them.")
    named = family_asked(posterior, family, new_family, population)
    sizes = DEFAULT_PARAMS if params is None else (positive("params", params),)
    if known is not None:
        sizes = (positive("params", known["n_params_nonembedding"]),)
        if family is None and not (new_family or population) and known["family"] in posterior.families:
            named = known["family"]
    counts = token_counts(tokens, tokens_range, points)
    kinds = [(text.strip(), 0.0) for text in recipes.split(",")] if recipes else []
    kinds = kinds or [(None, width) for width in (DEFAULT_BITS if bits is None else (bits,))]
    key = draws.require_method(posterior, method)
    rest = {"family": named, "population": population, "lr_phase": phase_asked(lr_phase)}
    return [
        target_of(text, width, key, params=size, tokens=count, **rest)
        for size in sizes
        for text, width in kinds
        for count in counts
    ]


def family_asked(posterior: Posterior, family: str | None, new_family: bool, population: bool) -> str | None:
    """The fitted family that is named; `BadInput` if more than one of the three ways to say whose is used."""
    given = {"--family": family is not None, "--new-family": new_family, "--population": population}
    said = [name for name, used in given.items() if used]
    if len(said) > 1:
        raise BadInput(f"{' and '.join(said)} contradict each other: give one of them.")
    return draws.require_family(posterior, family) if family is not None else None


def phase_asked(lr_phase: str) -> str:
    """The learning-rate phase if it is known, else `BadInput`."""
    if lr_phase not in LR_PHASES:
        raise BadInput(f"--lr-phase {lr_phase!r} is not known: choose one of {', '.join(LR_PHASES)}.")
    return lr_phase


def asked(
    posterior: Posterior, file: str | Path | None = None, lookup: Callable[[str], Mapping | None] | None = None, **words
) -> list[Target]:
    """Targets of a CSV if one is named (`--targets`), else of the words (`targets`).

    With a file the words `family`, `new_family`, `population`, `method` and `lr_phase` fill what its rows leave
    empty; the others contradict it.
    """
    if file is None:
        return targets(posterior, **words)
    filling = ("family", "new_family", "population", "method", "lr_phase")
    both = [name for name, value in words.items() if name not in filling and value is not None]
    if both:
        option = "model-name" if both[0] == "known" else both[0].replace("_", "-")
        raise BadInput(f"--targets and --{option} both say what is asked: give one of them.")
    return from_csv(posterior, Path(file), lookup, **{k: v for k, v in words.items() if k in filling})


def from_csv(
    posterior: Posterior, path: Path, lookup: Callable[[str], Mapping | None] | None = None, family: str | None = None,
    new_family: bool = False, population: bool = False, method: str = DEFAULT_METHOD, lr_phase: str = "annealed",
) -> list[Target]:  # fmt: skip
    """Targets of a CSV with a header of `COLUMNS`, one row each; `BadInput` names file, line and column.

    A row needs params or a model's name, tokens (else those of the named model), and bits or a recipe. `family` is a
    fitted one, "new" or "population"; an empty cell takes the value of the argument, a named model its own family
    where that was fitted. `lookup` finds a model by name (`bayesqid.importers.tables.lookup_model`).
    """
    default = family_asked(posterior, family, new_family, population)
    filled = {"family": default or ("population" if population else "new" if new_family else ""),
              "method": method, "lr_phase": phase_asked(lr_phase)}  # fmt: skip
    found = []
    for line, row in _rows(path):
        given = {name: (row.get(name) or "").strip() for name in COLUMNS}
        if given["recipe"] and given["method"]:
            raise BadInput(f"{path.name}, line {line}, column method: the recipe names its method: empty one of them.")
        found.append(_row_target(posterior, given, filled, f"{path.name}, line {line}", lookup))
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Rows of a CSV with the line each ends on."""
    if not path.is_file():
        raise BadInput(f"There is no file {path}: give a CSV with the columns params, tokens and bits.")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
            names = [name.strip() for name in reader.fieldnames or []]
            unknown = [name for name in names if name not in COLUMNS]
            if unknown or len(set(names)) < len(names) or not names:
                wrong = f"the unknown column {unknown[0]!r:.40}" if unknown else "a column twice or no header"
                raise BadInput(f"{path.name}, line 1 has {wrong}: use {', '.join(COLUMNS)}.")
            reader.fieldnames = names
            count = 0
            for count, row in enumerate(reader, 1):
                if None in row:
                    raise BadInput(f"{path.name}, line {reader.line_num} has more cells than the header: mend it.")
                if count > MOST_ROWS:
                    raise BadInput(f"{path.name} has more than {MOST_ROWS} rows: split it.")
                yield reader.line_num, row
            if count == 0:
                raise BadInput(f"{path.name} has a header but no rows.")
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadInput(f"{path.name} cannot be read as CSV: {error}.") from None


@contextmanager
def _told(where: str, column: str) -> Iterator[None]:
    """Put file, line and column before what a check says of a value."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{where}, column {column}: {str(error).replace('--bits', 'bits')}") from None


def _count(name: str, text: str, where: str) -> float:
    with _told(where, name):
        try:
            value = float(text)
        except ValueError:
            raise BadInput(f"{text!r:.40} is not a number.") from None
        return positive(name, value, "it") if name in LIMITS else value


def _row_target(
    posterior: Posterior, given: Mapping[str, str], filled: Mapping[str, str], where: str, lookup: Callable | None
) -> Target:
    for column, other in (("params", "model"), ("bits", "recipe")):
        if bool(given[column]) == bool(given[other]):
            raise BadInput(f"{where}, column {column}: give either {column} or {other}, one of them.")
    known: Mapping = {}
    if given["model"]:
        with _told(where, "model"):
            if lookup is None:
                raise BadInput("models are not known by name here: give params instead.")
            known = lookup(given["model"]) or {}
    size = _count("params", given["params"] or str(known.get("n_params_nonembedding")), where)
    counted = given["tokens"] or str(known.get("train_tokens", ""))
    if counted in ("", "nan"):
        raise BadInput(f"{where}, column tokens: it is empty, and no model tells them: give a number.")
    tokens = _count("tokens", counted, where)
    own = known.get("family") if known.get("family") in posterior.families else "new"
    whose = given["family"] or filled["family"] or str(own)
    with _told(where, "family"):
        family = None if whose in ("new", "population") else draws.require_family(posterior, whose)
    with _told(where, "lr_phase"):
        phase = phase_asked(given["lr_phase"] or filled["lr_phase"])
    with _told(where, "method"):
        method = draws.require_method(posterior, given["method"] or filled["method"])
    rest = {"family": family, "population": whose == "population", "lr_phase": phase, "params": size, "tokens": tokens}
    width = 0.0 if given["recipe"] else _count("bits", given["bits"], where)
    with _told(where, "recipe" if given["recipe"] else "bits"):
        return target_of(given["recipe"] or None, width, method, **rest)
