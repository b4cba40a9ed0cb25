"""Features of the loss landscape as the law `landscape` reads them: measured columns put on stated scales.

A feature is f(columns) = (value - pivot) / scale; `value` is the column or its logarithm, above a floor. Pivots and
scales are constants of this table, about the middle and the spread of what quantized models show, and never moments of
the data: coefficients of two fits, and their priors, mean the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# nats per token: QiD that the second-order value is counted from, and below which it is not told from zero
PIVOT_TAYLOR, LEAST_TAYLOR = 0.1, 1e-3


@dataclass(frozen=True)
class Feature:
    """One feature: the columns it reads, its value before standardising, pivot, scale, and the value in words."""

    columns: tuple[str, ...]
    value: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    pivot: float
    scale: float
    words: str


def _log(name: str, least: float) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    return lambda c: np.log(np.maximum(np.asarray(c[name], dtype=float), least))


def share_of_curvature(slope, curvature):
    """Share that curvature has in the second-order value, (c / 2) / (|s| + |c| / 2).

    One without slope, below zero where the loss bends down, zero where both vanish.
    """
    size = np.abs(slope) + np.abs(curvature) / 2
    return np.where(size > 0, curvature / 2 / np.where(size > 0, size, 1.0), 0.0)


# factor of the law -> its feature. Logarithms end where what is measured cannot be told from zero, or the loss bends
# down: at about three scales below the pivot
FEATURES: dict[str, Feature] = {
    "ln taylor": Feature(("taylor",), _log("taylor", LEAST_TAYLOR), float(np.log(PIVOT_TAYLOR)), 1.0,
                         "ln of the second-order value, at least 0.001 nats, over 0.1 nats"),
    "sqnr": Feature(("sqnr_db",), lambda c: np.asarray(c["sqnr_db"], dtype=float), 14.0, 6.0,
                    "SQNR less 14 dB, in 6 dB: about one bit"),
    "baseline": Feature(("loss16",), _log("loss16", 0.1), float(np.log(2.0)), 0.3,
                        "ln of the loss before quantization over 2 nats, in 0.3"),
    "layer error": Feature(("layer_error",), _log("layer_error", 0.05), 3.0, 1.8,
                           "ln of the layer error, at least 0.05, less 3, in 1.8"),
    "trace": Feature(("hessian_trace",), _log("hessian_trace", 20.0), 6.0, 1.0,
                     "ln of the trace of the Hessian, at least 20 nats, less 6"),
    "flatness": Feature(("flatness_r",), _log("flatness_r", 2e-4), -4.0, 1.5,
                        "ln of the rise along random directions, at least 0.0002 nats, plus 4, in 1.5"),
    "curvature share": Feature(
        ("slope", "curvature"), lambda c: share_of_curvature(c["slope"], c["curvature"]), 0.8, 0.3,
        "share of curvature in the second-order value less 0.8, in 0.3"),
}  # fmt: skip


def standard(factor: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """A feature on its stated scale for every cell, shape (cell,)."""
    feature = FEATURES[factor]
    return (feature.value(columns) - feature.pivot) / feature.scale


def needed(factors) -> tuple[str, ...]:
    """Columns that the features among the factors read, each once."""
    read = [column for factor in factors if factor in FEATURES for column in FEATURES[factor].columns]
    return tuple(dict.fromkeys(read))
