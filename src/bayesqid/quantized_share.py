"""Which part of the weights is quantized: the columns of cells that say so, and what the law `mixed` reads of them.

Qr is the share of the parameters of all linear layers that is held in the low-precision format; the rest stays at 16
bits. Effective bits of such cells are those of the low-precision share alone, scales included: what is rounded is
rounded as coarsely whatever stays out. The average over all of them follows, `average_bits`.
"""

from collections.abc import Mapping

import numpy as np

from bayesqid.errors import BadInput

# column -> what a set of cells without it means
PLAIN = {"quantized_fraction": 1.0, "granularity": "", "assignment": ""}
GRANULARITIES = {"layer": "whole layers", "matmul": "single matrices"}
# how it was chosen what stays at 16 bits; "" is as good as random
ASSIGNMENTS = ("random", "best of 50", "greedy", "knapsack")
# weights that share a scale at which the block size changes nothing
PIVOT_BLOCK = 32.0
# bits by which scales can raise those of a format; more is an average over weights at 16 bits
MOST_OVERHEAD = 2.0
FULL_BITS = 16.0


def average_bits(fraction, bits):
    """Bits per weight over all linear layers, Qr P + (1 - Qr) 16; arguments broadcast."""
    return fraction * bits + (1 - fraction) * FULL_BITS


def column(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column of cells, shape (cell,), at its value of plain recipes where there is none."""
    rows = len(columns["effective_bits"])
    return np.asarray(columns[name]) if name in columns else np.full(rows, PLAIN[name])


def log_fraction(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """ln Qr of every cell, zero for plain recipes."""
    return np.log(column(columns, "quantized_fraction").astype(float))


def _where(name: str, *values: str):
    return lambda c: np.isin(column(c, name).astype(str), values) * log_fraction(c)


def log_block(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """ln(block / 32); zero where a row shares one scale, which is a covariate of its own, and where it is not known."""
    size = np.asarray(columns.get("group_size", np.full(len(columns["effective_bits"]), np.nan)), dtype=float)
    return np.log(np.where(size > 0, size, PIVOT_BLOCK) / PIVOT_BLOCK)


# factor of the law -> its value per cell; but for the block's all vanish where everything is quantized
FACTORS = {
    "ln Qr": log_fraction,
    "matmul ln Qr": _where("granularity", "matmul"),
    "searched ln Qr": _where("assignment", "best of 50"),
    "ranked ln Qr": _where("assignment", "greedy", "knapsack"),
    "ln block": log_block,
}


def checked(value: float, name: str = "Qr") -> float:
    """The same share if it lies in [0, 1], else `BadInput`."""
    if not 0 <= value <= 1:
        raise BadInput(f"{name} is {value:g}: the share of the weights that is quantized lies between 0 and 1.")
    return float(value)


def require(law: str, mixed: bool, columns: Mapping[str, np.ndarray]) -> None:
    """`BadInput` unless the law, `mixed` or not, can use the cells' shares, and these are shares."""
    if "quantized_fraction" not in columns:
        return
    share = column(columns, "quantized_fraction").astype(float)

    def of(cell: int) -> str:
        return f"{columns['checkpoint'][cell]} with {columns['quantizer'][cell]}"

    bad = np.flatnonzero(~((share > 0) & (share <= 1)))
    if bad.size:
        raise BadInput(f"quantized_fraction of {of(bad[0])} is {share[bad[0]]:g}: give a share above 0 and up to 1.")
    part = share < 1
    if part.any() and not mixed:
        raise BadInput(f"Only a part of the weights is quantized in {int(part.sum())} of {part.size} cells, of which "
                       f"law {law} knows nothing: take --law mixed, or leave them out.")  # fmt: skip
    known = {"granularity": GRANULARITIES, "assignment": ASSIGNMENTS} if mixed else {}
    for name, values in known.items():
        said = column(columns, name).astype(str)
        odd = np.flatnonzero(~np.isin(said, ["", *values]))
        if odd.size:
            one, some = str(said[odd[0]]), ", ".join(values)
            raise BadInput(f"{name} of {of(odd[0])} is {one!r}: use {some}, or leave it empty.")
    averaged = np.flatnonzero(part & (np.asarray(columns["effective_bits"]) > columns["bits"] + MOST_OVERHEAD))
    if averaged.size:
        cell = averaged[0]
        raise BadInput(f"effective_bits of {of(cell)} is {columns['effective_bits'][cell]:.4g}: give that of the "
                       "quantized weights alone, not the average with those at 16 bits.")  # fmt: skip
