"""Recipe: how the weights of a checkpoint are quantized, and how many bits that really costs."""

import re
from dataclasses import dataclass

from bayesqid.errors import BadInput

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (-1, 32, 64, 128)
SCALE_BITS = 16

# method -> whether its grid is symmetric when the text form does not say
DEFAULT_SYMMETRIC = {"rtn": True, "gptq": True}

_TEXT = re.compile(r"(?P<method>[a-z0-9]+)-w(?P<bits>\d+)(?:-g(?P<group>\d+))?(?:-(?P<grid>sym|asym))?")


@dataclass(frozen=True)
class Recipe:
    """A quantization method, its bits per weight, group size (-1: one scale per output row) and grid."""

    method: str
    bits: int
    group_size: int = -1
    symmetric: bool = True

    def __str__(self) -> str:
        """Text form `METHOD-wBITS[-gGROUP][-sym|-asym]`; the grid is written only when not the default."""
        if self.method == "none":
            return "none"
        group = "" if self.group_size == -1 else f"-g{self.group_size}"
        usual = self.symmetric == DEFAULT_SYMMETRIC[self.method]
        grid = "" if usual else "-sym" if self.symmetric else "-asym"
        return f"{self.method}-w{self.bits}{group}{grid}"


NONE = Recipe("none", 16)


def parse(text: str) -> Recipe:
    """Read the text form of a recipe, e.g. `gptq-w4-g128`; `BadInput` says what is wrong with it."""
    if text == "none":
        return NONE
    match = _TEXT.fullmatch(text)
    if match is None:
        raise BadInput(f"{text!r} is not a recipe: write METHOD-wBITS[-gGROUP][-sym|-asym], e.g. gptq-w4-g128.")
    method, bits = match["method"], int(match["bits"])
    group = int(match["group"]) if match["group"] else -1
    if method not in DEFAULT_SYMMETRIC:
        known = ", ".join(DEFAULT_SYMMETRIC)
        raise BadInput(f"Recipe {text!r} names the unknown method {method!r}: known are {known}.")
    if bits not in BITS:
        raise BadInput(f"Recipe {text!r} asks for {bits} bits: choose one of {', '.join(map(str, BITS))}.")
    if group not in GROUPS:
        raise BadInput(f"Recipe {text!r} asks for groups of {group}: choose 32, 64, 128 or leave -g out.")
    symmetric = DEFAULT_SYMMETRIC[method] if match["grid"] is None else match["grid"] == "sym"
    return Recipe(method, bits, group, symmetric)


def stored_bits(recipe: Recipe, rows: int, columns: int) -> int:
    """Bits that a weight of shape (rows, columns) takes: codes, 16-bit scales and, if asymmetric, zero points.

    b*R*C + R*ceil(C/g)*(16 + [asymmetric]*b), with one group per row when g = -1.
    """
    if recipe.method == "none":
        return SCALE_BITS * rows * columns
    groups = 1 if recipe.group_size == -1 else -(-columns // recipe.group_size)
    overhead = SCALE_BITS + (0 if recipe.symmetric else recipe.bits)
    return recipe.bits * rows * columns + rows * groups * overhead


def effective_bits(recipe: Recipe, shapes: list[tuple[int, int]]) -> float:
    """Average bits per weight, with scales and zero points counted, over weights of the given (rows, columns)."""
    weights = sum(rows * columns for rows, columns in shapes)
    return sum(stored_bits(recipe, rows, columns) for rows, columns in shapes) / weights
