"""Recipe: how the weights of a checkpoint are quantized, and how many bits that really costs."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from bayesqid.errors import BadInput


class Format(NamedTuple):
    """A number format: its bits, group sizes (-1: one scale per output row), the usual one, bits per scale."""

    bits: tuple[int, ...]
    groups: tuple[int, ...]
    usual_group: int
    scale_bits: int


# "int" is written w4, the others by their name and bits: mxint4, nf4
FORMATS = {
    "int": Format((2, 3, 4, 5, 6, 8), (-1, 32, 64, 128), -1, 16),
    "mxint": Format((4, 8), (16, 32, 64, 128), 32, 8),
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
    "rtn": Method(("int", "mxint", "nf", "fp"), ("sym", "asym")),
    "gptq": Method(("int",), ("sym", "asym"), ("act", "oneshot"), calibrated=True),
    "awq": Method(("int",), ("asym", "sym"), calibrated=True),
    "hqq": Method(("int",), ("asym",)),
}
# what a recipe may say besides: in the order in which it is written
OPTIONS = {
    "act": "columns in the order of falling Hessian diagonal",
    "oneshot": "Hessians of the unquantized model instead of those behind what is already quantized",
    "saved": "weights as they stand in a checkpoint that was saved quantized",
}
# formats whose grid needs no zero point
_ONE_GRID = ("mxint", "nf", "fp")

_TEXT = re.compile(
    r"(?P<method>[a-z0-9]+)-(?P<format>w|mxint|nf|fp)(?P<bits>\d{1,9})(?:-g(?P<group>\d{1,9}))?(?:-(?P<grid>sym|asym))?"
    r"(?P<options>(?:-(?:act|oneshot))*)(?:-s(?P<seed>\d{1,9}))?(?P<saved>-saved)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Recipe:
    """A quantization method, its bits per weight, group size (-1: one scale per output row), grid and format.

    `seed` draws the calibration text; methods without calibration keep 0.
    """

    method: str
    bits: int
    group_size: int = -1
    symmetric: bool = True
    format: str = "int"
    options: tuple[str, ...] = ()
    seed: int = 0

    def __str__(self) -> str:
        """Text form `METHOD-FORMAT[-gGROUP][-sym|-asym][-OPTION][-sSEED]`; what is usual is left out."""
        if self.method == "none":
            return "none"
        form = FORMATS[self.format]
        name = f"{'w' if self.format == 'int' else self.format}{self.bits}"
        group = "" if self.group_size == form.usual_group else f"-g{self.group_size}"
        grid = "sym" if self.symmetric else "asym"
        grid = "" if self.format in _ONE_GRID or grid == METHODS[self.method].grids[0] else f"-{grid}"
        options = "".join(f"-{option}" for option in self.options if option != "saved")
        seed = f"-s{self.seed}" if self.seed else ""
        return f"{self.method}-{name}{group}{grid}{options}{seed}{'-saved' if self.saved else ''}"

    @property
    def quantizer(self) -> str:
        """Printed name under which `bayesqid.methods` knows the quantizer, e.g. rtn, nf4, gptq-actorder."""
        if self.format in ("nf", "fp"):
            return f"{self.format}{self.bits}"
        form = "" if self.format == "int" else f"-{self.format}"
        return f"{self.method}{form}{'-actorder' if 'act' in self.options else ''}"

    @property
    def calibrated(self) -> bool:
        """Whether the weights depend on calibration text that we draw."""
        return self.method != "none" and METHODS[self.method].calibrated and not self.saved

    @property
    def saved(self) -> bool:
        """Whether the weights come from a checkpoint that was saved quantized."""
        return "saved" in self.options


NONE = Recipe("none", BASELINE_BITS)


def parse(text: str) -> Recipe:
    """Read the text form of a recipe, e.g. `gptq-w4-g128`; `BadInput` says what is wrong with it."""
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
    method, kind = METHODS[name], "int" if match["format"] == "w" else match["format"]
    if kind not in method.formats:
        raise BadInput(f"Recipe {text!r}: {name} does not round to {match['format']}{bits}, only rtn does.")
    form = FORMATS[kind]
    group = int(match["group"]) if match["group"] else form.usual_group
    if bits not in form.bits:
        raise BadInput(f"Recipe {text!r} asks for {bits} bits: choose one of {', '.join(map(str, form.bits))}.")
    if group not in form.groups:
        choices = ", ".join(str(size) for size in form.groups if size > 0)
        raise BadInput(f"Recipe {text!r} asks for groups of {group}: choose {choices} or leave -g out.")
    if match["grid"] and (kind in _ONE_GRID or match["grid"] not in method.grids):
        raise BadInput(f"Recipe {text!r}: {name} {kind} has one grid only: leave -{match['grid']} out.")
    options = tuple(filter(None, (match["options"] or "").split("-")))
    for option in options:
        if option not in method.options:
            raise BadInput(f"Recipe {text!r}: {name} has no option {option!r}: leave it out.")
    if list(options) != [option for option in OPTIONS if option in options]:
        raise BadInput(f"Recipe {text!r}: write its options once and in the order {', '.join(method.options)}.")
    seed = int(match["seed"] or 0)
    if match["saved"] and (seed or "oneshot" in options):
        raise BadInput(f"Recipe {text!r}: a saved checkpoint does not tell how it was calibrated: leave that out.")
    if seed and not method.calibrated:
        raise BadInput(f"Recipe {text!r}: {name} draws no calibration text: leave -s{seed} out.")
    symmetric = kind in _ONE_GRID or (match["grid"] or method.grids[0]) == "sym"
    saved = ("saved",) if match["saved"] else ()
    return Recipe(name, bits, group, symmetric, kind, options + saved, seed)


def stored_bits(recipe: Recipe, rows: int, columns: int) -> int:
    """Bits that a weight of shape (rows, columns) takes: codes, scales and, if asymmetric, zero points.

    b R C + G (s + z): G = R ceil(C/g) groups (R when g = -1; ceil(R C/g) for nf4 and fp4, whose blocks run
    over the flattened matrix) of scale bits s (16; 8 for MX; 32 for nf4, fp4) and zero-point bits z (0 if symmetric,
    else b; HQQ's zero points are 16-bit numbers). With `act` each column's group is stored as well, 32 C bits
    when there are groups. NF4's 16 levels and AWQ's scales, which are folded into the layer before, cost nothing.
    """
    if recipe.method == "none":
        return BASELINE_BITS * rows * columns
    if recipe.format in ("nf", "fp"):
        groups = -(-rows * columns // recipe.group_size)
    else:
        groups = rows * (1 if recipe.group_size == -1 else -(-columns // recipe.group_size))
    zero = 0 if recipe.symmetric else 16 if recipe.method == "hqq" else recipe.bits
    index = 32 * columns if "act" in recipe.options and recipe.group_size != -1 else 0
    return recipe.bits * rows * columns + groups * (FORMATS[recipe.format].scale_bits + zero) + index


def effective_bits(recipe: Recipe, shapes: list[tuple[int, int]]) -> float:
    """Average bits per weight, with scales and zero points counted, over weights of the given (rows, columns)."""
    weights = sum(rows * columns for rows, columns in shapes)
    return sum(stored_bits(recipe, rows, columns) for rows, columns in shapes) / weights
