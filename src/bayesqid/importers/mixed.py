"""Tables of recipes that quantize a part of the weights: a table of losses with what part that is."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from bayesqid import cells, quantized_share
from bayesqid.errors import BadInput
from bayesqid.importers import tables

if TYPE_CHECKING:
    import pandas as pd


def shares(rows: "pd.DataFrame", name: str) -> np.ndarray:
    """Quantized shares of a table's rows as numbers; `BadInput` names the first that is not above 0 and up to 1."""
    out = np.full(len(rows), np.nan)
    for number, text in enumerate(rows["quantized_fraction"]):
        with suppress(ValueError):
            out[number] = float(text)
        if not 0 < out[number] <= 1:
            row = rows.index[number] + 1
            raise BadInput(f"{name}, row {row} (line {row + 1}): quantized_fraction = {text!s:.40} is not a share "
                           "above 0 and up to 1.")  # fmt: skip
    return out


def read(path: Path, source: Mapping[str, object], extras: Collection[str] = ()) -> xr.Dataset:
    """Cells of a table with the columns quantized_fraction, and granularity and assignment if they are known.

    A table without the first is one of plain recipes (`cells.from_table`).
    """
    table = tables.with_extras(tables.read_table(path), extras)
    return with_shares(cells.from_table(table, source), table, path.name)


def with_shares(found: xr.Dataset, table: "pd.DataFrame", name: str) -> xr.Dataset:
    """Cells of a derived table with the part of the weights that it says is quantized, if it says so."""
    if "quantized_fraction" not in table:
        return found
    kept: pd.DataFrame = table.loc[table["default"].astype(bool).to_numpy()]
    texts = {name: kept[name].fillna("").astype(str).str.strip().to_numpy().astype(object)
             for name in ("granularity", "assignment") if name in kept}  # fmt: skip
    known = {"granularity": quantized_share.GRANULARITIES, "assignment": quantized_share.ASSIGNMENTS}
    for column, values in texts.items():
        odd = np.flatnonzero(~np.isin(values.astype(str), ["", *known[column]]))
        if odd.size:
            row = kept.index[odd[0]] + 1
            raise BadInput(f"{name}, row {row} (line {row + 1}): {column} = {values[odd[0]]:.40} is unknown: it may be "
                           f"empty, {' or '.join(known[column])}.")  # fmt: skip
    blank = {name: np.full(len(kept), quantized_share.PLAIN[name], dtype=object)
             for name in ("granularity", "assignment")}  # fmt: skip
    columns = {"quantized_fraction": shares(kept, name), **blank, **texts}
    return found.assign_coords({name: ("cell", values) for name, values in columns.items()})
