"""Recipe: how the weights of a checkpoint are quantized, and how many bits that really costs."""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from bayesqid.errors import BadInput


class Format(NamedTuple):
    """A number format: its bits, group sizes (-1: one scale per output row), the usual one, bits per scale.

    And bits that every weight matrix stores once, and whether what enters the layers may be rounded as well (`wa`).
    """

    bits: tuple[int, ...]
    groups: tuple[int, ...]
    usual_group: int
    scale_bits: int
    matrix_bits: int = 0
    inputs: bool = False


_BLOCKS = (16, 32, 64, 128)
# "int" is written w4, the others by their name, bits and element: mxint4, nf4, mxfp6e2m3
FORMATS = {
    "int": Format((2, 3, 4, 5, 6, 8), (-1, 32, 64, 128), -1, 16),
    "mxint": Format((2, 3, 4, 6, 8), _BLOCKS, 32, 8, inputs=True),
    "mxfp": Format((4,), _BLOCKS, 32, 8, inputs=True),
    "mxfp-e2m3": Format((6,), _BLOCKS, 32, 8, inputs=True),
    "mxfp-e3m2": Format((6,), _BLOCKS, 32, 8, inputs=True),
    "mxfp-e4m3": Format((8,), _BLOCKS, 32, 8, inputs=True),
    "mxfp-e5m2": Format((8,), _BLOCKS, 32, 8, inputs=True),
    "fp-e4m3": Format((8,), (-1,), -1, 32, inputs=True),
    "fp-e5m2": Format((8,), (-1,), -1, 32, inputs=True),
    "nvfp": Format((4,), (16,), 16, 8, matrix_bits=32),
    "nf": Format((4,), (64, 128, 256), 64, 32),
    "fp": Format((4,), (64, 128, 256), 64, 32),
}
# the baseline keeps this many bits per weight
BASELINE_BITS = 16


class Method(NamedTuple):
    """Formats a method rounds to, grids it knows (the usual one first), options, whether it needs calibration text."""

    formats: tuple[str, ...]
    grids: tuple[str, ...]
    options: tuple[str, ...] = ()
    calibrated: bool = False


METHODS = {
    "rtn": Method(tuple(FORMATS), ("sym", "asym")),
    "gptq": Method(("int", "mxint"), ("sym", "asym"), ("act", "oneshot"), calibrated=True),
    "awq": Method(("int",), ("asym", "sym"), calibrated=True),
    "hqq": Method(("int",), ("asym",)),
}
# what a recipe may say besides: in the order in which it is written
OPTIONS = {
    "act": "columns in the order of falling Hessian diagonal",
    "oneshot": "Hessians of the unquantized model instead of those behind what is already quantized",
    "wa": "what enters the quantized layers rounded to the same format",
    "saved": "weights as they stand in a checkpoint that was saved quantized",
}

# how a share of the weights is chosen: letter in the text form -> whole blocks, or linear layers one by one
GRANULARITIES = {"l": "layer", "m": "matmul"}

# written in one way only: no leading zeros
_NUMBER = r"(?:0|[1-9]\d{0,8})"
_TEXT = re.compile(
    rf"(?P<method>[a-z0-9]+)-(?P<format>w|mxint|mxfp|nvfp|nf|fp)(?P<bits>{_NUMBER})(?P<element>e\dm\d)?"
    rf"(?:-g(?P<group>{_NUMBER}))?(?:-(?P<grid>sym|asym))?"
    rf"(?P<options>(?:-(?:act|oneshot|wa))*)(?:-s(?P<seed>{_NUMBER}))?(?P<saved>-saved)?",
    re.ASCII,
)
_SHARE = re.compile(rf"(?P<share>-?{_NUMBER}(?:\.\d{{1,6}})?)(?P<unit>[lm])(?P<draw>{_NUMBER})?", re.ASCII)
_MIX = re.compile(r"mix-[a-z0-9]{1,20}@[0-9a-f]{8}")


def spelled(kind: str, bits: int) -> str:
    """A number format as recipes write it, e.g. w4, mxint3, mxfp6e2m3."""
    stem, _, element = kind.partition("-")
    return f"{'w' if stem == 'int' else stem}{bits}{element}"


def options(method: str, kind: str) -> tuple[str, ...]:
    """Options, besides `saved`, that a recipe of a method in a format may name, in the order in which they stand.

    MX blocks are neighbours in the matrix as it is stored, so their columns cannot be put into another order.
    """
    known = [option for option in METHODS[method].options if option != "act" or kind == "int"]
    return (*known, "wa") if FORMATS[kind].inputs else tuple(known)


@dataclass(frozen=True)
class Recipe:
    """A quantization method, its bits per weight, group size (-1: one scale per output row), grid and format.

    `seed` draws the calibration text; methods without calibration keep 0. `fraction` is the share Qr of the weights
    of the blocks' linear layers that is quantized, the others stay at 16 bits; which ones, whole blocks (`granularity`
    layer) or linear layers (matmul), is drawn with the number `draw`. A recipe of the method `mix` names an assignment
    that stands in a file, by how it was found and the start of its hash: `mix`.
    """

    method: str
    bits: int
    group_size: int = -1
    symmetric: bool = True
    format: str = "int"
    options: tuple[str, ...] = ()
    seed: int = 0
    fraction: float = 1.0
    granularity: str = ""
    draw: int = 0
    mix: str = ""

    def __str__(self) -> str:
        """Text form `METHOD-FORMAT[-gGROUP][-sym|-asym][-OPTION][-sSEED][@SHARE(l|m)[DRAW]]`; the usual is left out."""
        if self.method in ("none", "mix"):
            return f"mix-{self.mix}" if self.mix else "none"
        group = "" if self.group_size == FORMATS[self.format].usual_group else f"-g{self.group_size}"
        grid = "sym" if self.symmetric else "asym"
        grid = "" if self.format != "int" or grid == METHODS[self.method].grids[0] else f"-{grid}"
        options = "".join(f"-{option}" for option in self.options if option != "saved")
        seed = f"-s{self.seed}" if self.seed else ""
        unit = {name: letter for letter, name in GRANULARITIES.items()}.get(self.granularity, "")
        part = f"@{f'{self.fraction:.6f}'.rstrip('0')}{unit}{self.draw or ''}" if self.partial else ""
        return f"{self.method}-{self.number}{group}{grid}{options}{seed}{'-saved' if self.saved else ''}{part}"

    @property
    def partial(self) -> bool:
        """Whether only a share of the weights is quantized."""
        return self.fraction < 1

    @property
    def whole(self) -> "Recipe":
        """The same recipe for all of the weights."""
        return replace(self, fraction=1.0, granularity="", draw=0)

    @property
    def number(self) -> str:
        """Number format as it is written, e.g. w4, mxint3, mxfp6e2m3."""
        return spelled(self.format, self.bits)

    @property
    def quantizer(self) -> str:
        """Printed name under which `bayesqid.methods` knows the quantizer, e.g. rtn, nf4, gptq-actorder, rtn-mxfp4-wa.

        Integers of all widths share one name; every floating-point format has its own, for its error does not follow
        from its bits; assignments are all `mix`.
        """
        if self.mix:
            return "mix"
        if self.format in ("nf", "fp"):
            return self.number
        form = {"int": "", "mxint": "-mxint"}.get(self.format, f"-{self.number}")
        ends = {"act": "-actorder", "wa": "-wa"}
        return f"{self.method}{form}{''.join(ends.get(option, '') for option in self.options)}"

    @property
    def calibrated(self) -> bool:
        """Whether the weights depend on calibration text that we draw."""
        return self.method in METHODS and METHODS[self.method].calibrated and not self.saved

    @property
    def rounds_inputs(self) -> bool:
        """Whether what enters the quantized layers is rounded to the recipe's format as well."""
        return "wa" in self.options

    @property
    def saved(self) -> bool:
        """Whether the weights come from a checkpoint that was saved quantized."""
        return "saved" in self.options


NONE = Recipe("none", BASELINE_BITS)


def parse(text: str) -> Recipe:
    """Read the text form of a recipe, e.g. `gptq-w4-g128` or `rtn-w3@0.5m`; `BadInput` says what is wrong with it."""
    if text == "none":
        return NONE
    if _MIX.fullmatch(text):
        return Recipe("mix", 0, mix=text.removeprefix("mix-"))
    whole, at, part = text.partition("@")
    return _with_share(_parse_whole(whole), part, text) if at else _parse_whole(text)


def _with_share(whole: Recipe, part: str, text: str) -> Recipe:
    match = _SHARE.fullmatch(part)
    if match is None:
        raise BadInput(
            f"{text!r} is not a recipe: write the share behind @ as 0.9m for linear layers or 0.9l for whole blocks, "
            "and the number of a draw behind it, e.g. rtn-w3@0.9m17."
        )
    share = float(match["share"])
    if not 0 <= share <= 1:
        raise BadInput(f"Recipe {text!r} quantizes the share {share:g} of the weights: give a number between 0 and 1.")
    if share in (0.0, 1.0):
        mend = "none" if share == 0 else f"{whole}"
        raise BadInput(f"Recipe {text!r} quantizes {'all' if share else 'none'} of the weights: write {mend}.")
    if match["share"].endswith("0"):
        raise BadInput(f"Recipe {text!r}: write the share without zeros at its end, {share:g}.")
    if whole == NONE or whole.saved:
        raise BadInput(f"Recipe {text!r}: {whole} cannot be for a share of the weights, leave @{part} out.")
    return replace(whole, fraction=share, granularity=GRANULARITIES[match["unit"]], draw=int(match["draw"] or 0))


def _parse_whole(text: str) -> Recipe:
    if text == "none":
        return NONE
    match = _TEXT.fullmatch(text)
    if match is None:
        raise BadInput(
            f"{text!r} is not a recipe: write METHOD-wBITS[-gGROUP][-sym|-asym], e.g. gptq-w4-g128, or rtn-nf4."
        )
    name, bits = match["method"], int(match["bits"])
    if name not in METHODS:
        raise BadInput(f"Recipe {text!r} names the unknown method {name!r}: known are {', '.join(METHODS)}.")
    method, stem = METHODS[name], "int" if match["format"] == "w" else match["format"]
    kind = f"{stem}-{match['element']}" if match["element"] else stem
    number = spelled(kind, bits)
    if kind not in FORMATS or bits not in FORMATS[kind].bits:
        known = [spelled(other, width) for other, form in FORMATS.items() for width in form.bits
                 if other.partition("-")[0] == stem]  # fmt: skip
        wanted = f"{bits} bits" if match["element"] is None else number
        raise BadInput(f"Recipe {text!r} asks for {wanted}: choose one of {', '.join(known)}.")
    if kind not in method.formats:
        able = " and ".join(other for other, one in METHODS.items() if kind in one.formats)
        raise BadInput(f"Recipe {text!r}: {name} does not round to {number}, only {able} can.")
    form = FORMATS[kind]
    group = int(match["group"]) if match["group"] else form.usual_group
    if group not in form.groups:
        choices = ", ".join(str(size) for size in form.groups if size > 0)
        mend = f"choose {choices} or leave -g out" if choices else f"{number} has none, leave -g out"
        raise BadInput(f"Recipe {text!r} asks for groups of {group}: {mend}.")
    if match["grid"] and (kind != "int" or match["grid"] not in method.grids):
        raise BadInput(f"Recipe {text!r}: {name} {kind} has one grid only: leave -{match['grid']} out.")
    said, allowed = tuple(filter(None, match["options"].split("-"))), options(name, kind)
    for option in said:
        if option not in allowed:
            raise BadInput(f"Recipe {text!r}: {name} has no option {option!r} with {number}: leave it out.")
    if list(said) != [option for option in allowed if option in said]:
        raise BadInput(f"Recipe {text!r}: write its options once and in the order {', '.join(allowed)}.")
    seed = int(match["seed"] or 0)
    if match["saved"] and (seed or "oneshot" in said):
        raise BadInput(f"Recipe {text!r}: a saved checkpoint does not tell how it was calibrated: leave that out.")
    if seed and not method.calibrated:
        raise BadInput(f"Recipe {text!r}: {name} draws no calibration text: leave -s{seed} out.")
    symmetric = kind != "int" or (match["grid"] or method.grids[0]) == "sym"
    saved = ("saved",) if match["saved"] else ()
    return Recipe(name, bits, group, symmetric, kind, said + saved, seed)


def stored_bits(recipe: Recipe, rows: int, columns: int) -> int:
    """Bits that a weight of shape (rows, columns) takes: codes, scales and, if asymmetric, zero points.

    b R C + G (s + z): G = R ceil(C/g) groups (R when g = -1; ceil(R C/g) for nf4 and fp4, whose blocks run
    over the flattened matrix) of scale bits s (16; 8 for MX and NVFP4; 32 for FP8, nf4, fp4) and zero-point bits z
    (0 if symmetric, else b; HQQ's zero points are 16-bit numbers). With `act` each column's group is stored as well,
    32 C bits when there are groups; NVFP4 stores one more scale of 32 bits. Of a recipe for a share of the weights
    these are the bits of a weight that is quantized. NF4's 16 levels and AWQ's scales, which
    are folded into the layer before, cost nothing; neither does what `wa` rounds, for it is not stored.
    """
    if recipe.method == "none":
        return BASELINE_BITS * rows * columns
    if recipe.format in ("nf", "fp"):
        groups = -(-rows * columns // recipe.group_size)
    else:
        groups = rows * (1 if recipe.group_size == -1 else -(-columns // recipe.group_size))
    zero = 0 if recipe.symmetric else 16 if recipe.method == "hqq" else recipe.bits
    index = 32 * columns if "act" in recipe.options and recipe.group_size != -1 else 0
    form = FORMATS[recipe.format]
    return recipe.bits * rows * columns + groups * (form.scale_bits + zero) + index + form.matrix_bits


def effective_bits(recipe: Recipe, shapes: list[tuple[int, int]]) -> float:
    """Average bits per weight, with scales and zero points counted, over weights of the given (rows, columns).

    Of a recipe for a share Qr of the weights, Qr P + (1 - Qr) 16 with P those of the quantized ones: what it asks for,
    for the share that a model's layers come to may differ a little.
    """
    if recipe.mix:
        raise BadInput(f"The bits of {recipe} are those of one checkpoint's layers: give its file to bayesqid measure.")
    weights = sum(rows * columns for rows, columns in shapes)
    low = sum(stored_bits(recipe, rows, columns) for rows, columns in shapes) / weights
    return recipe.fraction * low + (1 - recipe.fraction) * BASELINE_BITS if recipe.partial else low
