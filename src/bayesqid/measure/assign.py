"""Assignments: the number format of each linear layer of one checkpoint, drawn from a recipe or read from a file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayesqid import files
from bayesqid.errors import BadInput
from bayesqid.recipe import BASELINE_BITS, NONE, Recipe, parse, stored_bits

SCHEMA = "bayesqid-mix/1"
# layer -> its format, for every linear layer of the blocks
Formats = Mapping[str, Recipe]
# assignments by the recipe that names them, format of every layer as text: plain values that can be sent to a process
Given = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
# linear layers of every block: name -> (rows, columns)
Blocks = Sequence[Mapping[str, tuple[int, int]]]


def units(blocks: Blocks, granularity: str) -> list[tuple[str, ...]]:
    """Names of the layers that get one format together: those of a block (`layer`), or each alone (`matmul`)."""
    if granularity == "layer":
        return [tuple(found) for found in blocks]
    return [(name,) for found in blocks for name in found]


def joined(blocks: Blocks) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every layer by name."""
    return {name: shape for found in blocks for name, shape in found.items()}


def _sizes(blocks: Blocks, granularity: str) -> np.ndarray:
    shapes = joined(blocks)
    return np.array([sum(int(np.prod(shapes[name])) for name in unit) for unit in units(blocks, granularity)])


def fill(sizes: np.ndarray, fraction: float, order: np.ndarray) -> np.ndarray:
    """Which units are taken, (units,): in the given order, each if it brings their share nearer to `fraction`."""
    total = int(sizes.sum())
    taken, so_far = np.zeros(len(sizes), dtype=bool), 0
    for unit in order:
        # nearer means that the middle between without and with lies below; what is as near is left out
        if so_far + sizes[unit] / 2 < fraction * total * (1 - 1e-12):
            taken[unit], so_far = True, so_far + int(sizes[unit])
    return taken


def drawn(blocks: Blocks, recipe: Recipe) -> Formats:
    """Assignment that a recipe for a share of the weights draws: its format, or none, for every layer.

    The units of its granularity are taken in a random order, each if it brings the share nearer to the recipe's
    (`fill`). The order follows from the names and sizes of the layers, the share, the granularity and the number of the
    draw, not from the format: two formats are compared on the same layers. `BadInput` where the nearest share is all
    or nothing, as with two blocks and a share of 0.9.
    """
    sizes = _sizes(blocks, recipe.granularity)
    key = json.dumps([{name: list(shape) for name, shape in joined(blocks).items()}, recipe.fraction,
                      recipe.granularity])  # fmt: skip
    seed = int(hashlib.sha256(key.encode()).hexdigest()[:32], 16)
    order = np.random.default_rng((seed, recipe.draw)).permutation(len(sizes))
    taken = fill(sizes, recipe.fraction, order)
    if taken.all() or not taken.any():
        what = "blocks" if recipe.granularity == "layer" else "linear layers"
        raise BadInput(f"of {len(sizes)} {what} the share nearest to {recipe.fraction:g} is {float(taken.any()):g}: "
                       f"{recipe} needs more of them, or another share")  # fmt: skip
    low = {name for unit, one in zip(units(blocks, recipe.granularity), taken, strict=True) if one for name in unit}
    return {name: recipe.whole if name in low else NONE for name in joined(blocks)}


def formats(recipe: Recipe, blocks: Blocks, mixes: Mapping[str, Formats]) -> Formats | None:
    """Assignment of a recipe, None where all layers get the recipe itself; `BadInput` where it does not fit a model.

    `mixes` are the assignments of files by the recipes that name them.
    """
    if recipe.partial:
        return drawn(blocks, recipe)
    if not recipe.mix:
        return None
    given, names = mixes[str(recipe)], set(joined(blocks))
    odd = sorted(set(given) - names) or sorted(names - set(given))
    if odd:
        lacks = "which this model does not have" if odd[0] in given else "to which it gives no format"
        raise BadInput(f"{recipe} was made for another model: {odd[0]} is a layer {lacks}")
    return given


def bits(assignment: Formats, blocks: Blocks) -> int:
    """Bits that the layers' weights take together, scales included, layers without a format at 16 bits a weight."""
    return sum(stored_bits(assignment[name].whole, *shape) for name, shape in joined(blocks).items())


def weights(blocks: Blocks) -> int:
    """Weights of all linear layers of the blocks."""
    return sum(rows * columns for rows, columns in joined(blocks).values())


def low_share(assignment: Formats, blocks: Blocks) -> float:
    """Share Qr of the weights of the blocks' linear layers that is quantized."""
    low = sum(rows * columns for name, (rows, columns) in joined(blocks).items() if assignment[name] != NONE)
    return low / weights(blocks)


@dataclass(frozen=True)
class Mix:
    """An assignment with how it was found: layer -> format as text, and facts for the reader of its file."""

    found: str
    layers: Mapping[str, str]
    facts: Mapping[str, Any]

    @property
    def recipe(self) -> Recipe:
        """Recipe that names the assignment: how it was found and the start of its hash."""
        digest = hashlib.sha256(json.dumps(sorted(self.layers.items())).encode()).hexdigest()
        return Recipe("mix", 0, mix=f"{self.found}@{digest[:8]}")


def usable(text: str) -> Recipe:
    """A format that a layer may get, `none` for 16 bits; `BadInput` for what needs calibration text or is partial."""
    one = parse(text)
    if one.calibrated or one.saved or one.partial or one.mix:
        raise BadInput(f"A layer cannot get {text}: name a method that needs no calibration text, such as rtn-w4.")
    return one


def read(path: str | Path) -> Mix:
    """An assignment from its TOML file; `BadInput` says what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no assignment {path}: bayesqid mix writes one.")
    raw = files.read_toml(path, "assignment")
    layers, found = raw.pop("layers", None), raw.get("found")
    if raw.pop("schema", None) != SCHEMA or not isinstance(layers, dict) or not layers:
        raise BadInput(f"{path} is no assignment: it needs schema = \"{SCHEMA}\" and a table [layers].")
    if not (isinstance(found, str) and found.isascii() and found.isalnum() and found.islower() and len(found) <= 20):
        raise BadInput(f"{path}: found is {found!r:.40}: write one word such as \"own\", how the assignment was found.")
    for name, text in layers.items():
        if not isinstance(text, str):
            raise BadInput(f"{path}: the format of {name} is {text!r:.40}, which is no text such as \"rtn-w3\".")
        try:
            usable(text)
        except BadInput as fault:
            raise BadInput(f"{path}, layer {name}: {fault}") from None
    return Mix(found, {name: str(usable(text)) for name, text in layers.items()}, raw)


def is_file(item: str) -> bool:
    """Whether an item among recipes is the file of an assignment."""
    return item.strip().endswith(".toml")


def of_files(items: Sequence[str], wanted: Sequence[Recipe]) -> Given:
    """Assignments of the files among items; `BadInput` for a wanted recipe that names one whose file is not given."""
    mixes = [read(item.strip()) for item in items if is_file(item)]
    given = {str(mix.recipe): tuple(mix.layers.items()) for mix in mixes}
    for recipe in wanted:
        if recipe.mix and str(recipe) not in given:
            raise BadInput(f"{recipe} names an assignment that stands in a file: give the file instead, e.g. mix.toml.")
    return tuple(given.items())


def by_recipe(given: Given) -> dict[str, Formats]:
    """The same assignments with their formats read."""
    return {recipe: {name: parse(text) for name, text in layers} for recipe, layers in given}


def _toml(value: Any) -> str:
    # JSON writes strings, booleans and finite numbers as TOML does
    return json.dumps(value)


def as_toml(mix: Mix) -> str:
    """The text of an assignment's file."""
    lines = ["# Number formats of the linear layers of one checkpoint; `bayesqid measure MODEL --recipes THIS_FILE`",
             f"schema = {_toml(SCHEMA)}", f"found = {_toml(mix.found)}",
             *(f"{name} = {_toml(value)}" for name, value in mix.facts.items() if name != "found"), "", "[layers]",
             *(f"{_toml(name)} = {_toml(text)}" for name, text in mix.layers.items())]  # fmt: skip
    return "\n".join(lines) + "\n"


def write(mix: Mix, path: str | Path) -> Path:
    """Write an assignment's file, all or nothing."""
    return files.write_text(path, as_toml(mix))


def average(assignment: Formats, blocks: Blocks) -> float:
    """Bits per weight over the blocks' linear layers; at most 16 where nothing is quantized."""
    return bits(assignment, blocks) / weights(blocks) if weights(blocks) else float(BASELINE_BITS)
