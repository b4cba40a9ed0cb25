"""Candidates: the recipes among which an answer chooses, as targets, and words that such answers share."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bayesqid import methods
from bayesqid.answers import asking, draws
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput
from bayesqid.recipe import FORMATS, METHODS, Recipe, parse

# number formats and widths offered unasked; no cell that laws are fitted to has the others, so what a table said
# of them would be their generation's spread, row after row. `--recipes rtn-mxfp4` asks for them by name
OFFERED = {"int": FORMATS["int"].bits, "mxint": (4, 8), "nf": (4,), "fp": (4,)}
# every method, width and group of these on the method's usual grid: the laws tell grids apart by their bits alone
RECIPES = tuple(
    str(Recipe(name, bits, group, method.grids[0] != "asym" or kind != "int", kind))
    for name, method in METHODS.items()
    for kind in method.formats
    if kind in OFFERED and (kind == "int" or name == "rtn")
    for bits in OFFERED[kind]
    for group in FORMATS[kind].groups
)
UNITS = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
         "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30, "TIB": 2.0**40}  # fmt: skip
_MEMORY = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]{1,3})?)\s*([kmgt]?i?b)\s*", re.ASCII | re.IGNORECASE)


def names(recipes: str | None) -> list[str]:
    """The recipes of a text with commas between, each once in its usual form; all of `RECIPES` without one."""
    if recipes is None:
        return list(RECIPES)
    return list(dict.fromkeys(str(parse(text.strip())) for text in recipes.split(",")))


def targets(posterior: Posterior, recipes: Sequence[str], tokens: float, **question) -> list[Target]:
    """One target per recipe of one model; recipes of one method share the deviation of one new source.

    `question`: what `asking.targets` takes besides. One tool makes all recipes of a method, so they err together.
    """
    found = asking.targets(posterior, tokens, recipes=",".join(recipes), **question)
    keys = {name: draws.require_method(posterior, name) for name in {t.method for t in found}}
    return [replace(t, method=keys[t.method], source_method=f"to be made | {keys[t.method]}") for t in found]


def filled(posterior: Posterior, found: Sequence[Target]) -> list[Target]:
    """The targets with the vocabulary, loss and headroom of the fitted models of their size where they give none.

    Whatever draws the law looks these up for every target; here once for every size.
    """
    names = ("vocab_size", "loss16", "headroom")
    usual = {size: {name: draws.nearest(posterior, size, name) for name in names} for size in {t.params for t in found}}
    known = [{name: getattr(t, name) for name in names if getattr(t, name) is not None} for t in found]
    return [replace(t, **usual[t.params] | own) for t, own in zip(found, known, strict=True)]


def fitted(posterior: Posterior, found: Sequence[Target]) -> np.ndarray:
    """Whether the posterior has fitted each target's quantizer; the others are drawn from their generation."""
    return np.isin([t.method for t in found], posterior.sample["quantizer"].values)


def unfitted_words(found: Sequence[Target], known: np.ndarray) -> str:
    """Which quantizers were not fitted, as a sentence; empty when all were."""
    new = dict.fromkeys(t.method for t, fits in zip(found, known, strict=True) if not fits)
    kinds = ", ".join(f"{key} ({methods.generation(key)})" for key in new)
    return f"not fitted, drawn from their generation: {kinds}" if new else ""


def memory_bytes(text: str) -> float:
    """Bytes of a memory size with its unit, e.g. `6GB` = 6e9, `6GiB` = 6 x 2^30; `BadInput` for anything else."""
    match = _MEMORY.fullmatch(text)
    try:
        value = float(match[1]) * UNITS[match[2].upper()] if match else math.nan
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"--memory is {text!r}: give a number above zero and its unit, e.g. 6GB, or 6GiB for 6 x 2^30.")
    return value


def size_text(value: float) -> str:
    """Bytes in gigabytes (1e9) with three significant digits where they fit."""
    return f"{value / 1e9:.3g}" if value < 1e12 else f"{value / 1e9:.0f}" if value < 1e15 else f"{value / 1e9:.1e}"
