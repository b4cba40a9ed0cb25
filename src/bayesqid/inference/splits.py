"""Splits of the cells that copy a question: which cells a law is fitted to, which it must then predict.

A fold is one set of cells predicted jointly. Whatever is shared by the cells of a fold (family, checkpoint, source) is
then new to the law once, as it is for a person who asks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from bayesqid import laws
from bayesqid.errors import BadInput

# the least share of the cells that a cut leaves to train on, and to predict
TRAIN_SHARE, HELD_SHARE = 0.5, 0.05
FEWEST_FOLDS = 2


@dataclass(frozen=True)
class Fold:
    """Cells to train on and cells to predict jointly, as masks over all cells; some may be in neither."""

    name: str
    train: np.ndarray
    held: np.ndarray


@dataclass(frozen=True)
class Split:
    """A way to hold cells out: the question it copies, and its folds where it is not leave-one-out of single cells."""

    name: str
    title: str
    question: str
    folds: Callable[[xr.Dataset, float | None], list[Fold]] | None
    column: str | None = None


def widest_gap(values: np.ndarray) -> float:
    """The value after the widest gap in ln that leaves `TRAIN_SHARE` of the cells below and `HELD_SHARE` above it.

    Of gaps equally wide the last is taken. `BadInput` where no gap leaves both.
    """
    levels = np.unique(values[np.isfinite(values)])
    # a gap of rounding only is none, and equal ratios must tie
    width = np.round(np.diff(np.log(levels)), 6)
    below = np.array([(values < level).mean() for level in levels[1:]])
    width[(below < TRAIN_SHARE) | (1 - below < HELD_SHARE)] = 0
    if width.size == 0 or width.max() <= 0:
        raise BadInput(f"no gap leaves {TRAIN_SHARE:.0%} of the cells below it and {HELD_SHARE:.0%} above it")
    return float(levels[1:][np.flatnonzero(width == width.max())[-1]])


def beyond(column: str) -> Callable[[xr.Dataset, float | None], list[Fold]]:
    """Folds of the cells at or above a cut of `column`, one per checkpoint, each predicted from all cells below."""

    def folds(cells: xr.Dataset, cut: float | None) -> list[Fold]:
        values = cells[column].to_numpy()
        where = widest_gap(values) if cut is None else cut
        # what is not disclosed is on neither side
        train, held = values < where, values >= where
        if not train.any():
            raise BadInput(f"no cell lies below {where:g}")
        checkpoint = cells["checkpoint"].to_numpy().astype(str)
        return [Fold(str(name), train, held & (checkpoint == name)) for name in np.unique(checkpoint[held])]

    return folds


def levels_of(label: Callable[[xr.Dataset], np.ndarray]) -> Callable[[xr.Dataset, float | None], list[Fold]]:
    """One fold per level of a label of the cells, predicted from all other cells."""

    def folds(cells: xr.Dataset, cut: float | None) -> list[Fold]:
        level = label(cells)
        return [Fold(str(name), level != name, level == name) for name in np.unique(level)]

    return folds


def width_of(cells: xr.Dataset) -> np.ndarray:
    """Effective bits rounded to a whole number, as text."""
    return np.char.add(laws.width(cells["effective_bits"].to_numpy()), " bits")


SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split("future", "leave-future-D-out",
              "will a law fitted on today's training lengths hold at longer ones?",
              beyond("train_tokens"), "train_tokens"),
        Split("largest", "leave-largest-N-out", "will a law fitted on smaller models hold for larger ones?",
              beyond("n_params_nonembedding"), "n_params_nonembedding"),
        Split("width", "leave-a-bit-width-out", "does the law hold at a bit width that nobody has measured?",
              levels_of(width_of)),
        Split("family", "leave-a-family-out", "does the law hold for a family that nobody has measured?",
              levels_of(lambda cells: cells["family"].to_numpy().astype(str))),
        Split("source", "leave-a-source-out", "does the law agree with measurements that somebody else makes?",
              levels_of(lambda cells: cells["source"].to_numpy().astype(str))),
        Split("loo", "leave-one-cell-out (PSIS-LOO)", "does the law fill in one missing cell of a table like this?",
              None),
    )
}  # fmt: skip


def require(names: list[str]) -> list[str]:
    """The names if each is a split, without repeats; `BadInput` lists the known ones."""
    for name in names:
        if name not in SPLITS:
            raise BadInput(f"There is no split {name!r}: choose of {', '.join(SPLITS)}.")
    return list(dict.fromkeys(names))


def folds_of(cells: xr.Dataset, name: str, cuts: Mapping[str, float]) -> list[Fold]:
    """Folds of a split, empty for leave-one-out of cells; `BadInput` says why these data cannot be split so.

    `cuts` holds the values from which `future` and `largest` predict, where they are not to be chosen by the rule.
    """
    split = SPLITS[name]
    if split.folds is None:
        return []
    try:
        found = split.folds(cells, cuts.get(name))
    except BadInput as why:
        raise BadInput(f"{split.title} is not possible: {why}; give another --{name}-from.") from None
    if len(found) < FEWEST_FOLDS:
        raise BadInput(
            f"{split.title} is not possible: these data have {len(found)} fold{'s' * (len(found) != 1)} of it and two "
            f"are needed; give more data or leave {name} out of --splits."
        )
    return found
