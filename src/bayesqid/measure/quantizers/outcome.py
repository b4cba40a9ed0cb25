"""What goes into a quantizer besides the weight, and what comes out."""

from typing import NamedTuple

from torch import Tensor


class Seen(NamedTuple):
    """What calibration text showed of a layer's inputs x (columns,).

    `hessian` is 2/n sum x x^T (columns, columns) and `magnitude` the mean of |x| (columns,), None unless wanted.
    """

    hessian: Tensor
    magnitude: Tensor | None = None


class Quantized(NamedTuple):
    """A quantized weight (rows, columns) as ordinary float32 numbers, a note, and where it lies on its grid.

    A uniform grid is w = scale (codes - zero): codes (rows, columns) from 0 up, scale and zero (rows, groups), and
    `group` (columns,), the group of every column, when groups are not consecutive. Other formats leave these None.
    """

    weight: Tensor
    note: str = ""
    codes: Tensor | None = None
    scale: Tensor | None = None
    zero: Tensor | None = None
    group: Tensor | None = None
