"""Netcdf-4 files read with h5py alone: what `xarray.open_datatree` gives, in a fifth of the time.

xarray's own readers build a lazy, indexable stand-in for every variable. A posterior has a hundred small ones that are
all read at once, and that machinery takes longer than the rest of an answer, imports included.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

# attributes by which netCDF-4 lays dimensions on HDF5: readers hide them
_REFERENCES = {"REFERENCE_LIST", "DIMENSION_LIST"}
_OF_SCALES = {"NAME", "_Netcdf4Dimid"}
_LAYOUT = {"CLASS", "_Netcdf4Coordinates", "_NCProperties", "_nc3_strict"} | _OF_SCALES
_BARE = b"This is a netCDF dimension but not a netCDF variable"


def open_tree(path: str | Path, leave: Collection[str] = ()) -> xr.DataTree:
    """The file in memory but for the groups of the top level named in `leave`.

    `OSError`, `KeyError`, `ValueError` or `TypeError` where it is no sound netCDF-4.
    """
    with h5py.File(path, "r") as file:
        groups = dict(_groups(file, "/", leave))
        scales = {int(attributes["_Netcdf4Dimid"]): name for _, variables in groups.values()
                  for name, (_, attributes) in variables.items() if {"CLASS", "_Netcdf4Dimid"} <= attributes.keys()
                  }  # fmt: skip
        data = {where: _dataset(group, variables, scales) for where, (group, variables) in groups.items()}
    return xr.DataTree.from_dict(data)


# name -> dataset with its attributes, which are dear to read and so read once
Variables = dict[str, tuple[h5py.Dataset, dict[str, Any]]]


def _groups(group: h5py.Group, path: str, leave: Collection[str]) -> Iterator[tuple[str, tuple[h5py.Group, Variables]]]:
    items = {name: item for name, item in group.items() if name not in leave or path != "/"}
    yield path, (group, {name: (item, _attributes(item)) for name, item in items.items()
                         if isinstance(item, h5py.Dataset)})  # fmt: skip
    for name, item in items.items():
        if isinstance(item, h5py.Group):
            yield from _groups(item, f"{path.rstrip('/')}/{name}", leave)


def _dataset(group: h5py.Group, variables: Variables, scales: dict[int, str]) -> xr.Dataset:
    data = {
        name: xr.Variable(_dims(name, item, attributes, scales), _values(item), _visible(attributes))
        for name, (item, attributes) in variables.items()
        if not bytes(attributes.get("NAME", b"")).startswith(_BARE)
    }
    return xr.decode_cf(xr.Dataset(data, attrs=_visible(_attributes(group))))


def _dims(name: str, item: h5py.Dataset, attributes: dict[str, Any], scales: dict[int, str]) -> tuple[str, ...]:
    """Names of the dimensions, by their numbers where the writer left those, else through references to the scales."""
    if item.ndim == 0:
        return ()
    if "CLASS" in attributes and item.ndim == 1:
        return (name,)
    if "_Netcdf4Coordinates" in attributes:
        return tuple(scales[int(number)] for number in np.atleast_1d(attributes["_Netcdf4Coordinates"]))
    return tuple(str(item.file[refs[0]].name).rpartition("/")[2] for refs in np.asarray(item.attrs["DIMENSION_LIST"]))


def _values(item: h5py.Dataset) -> np.ndarray:
    text = h5py.check_string_dtype(item.dtype)
    # text of a fixed length is an array of characters, whose last dimension decode_cf joins
    return np.asarray(item.asstr()[()], dtype=str) if text and text.length is None else np.asarray(item[()])


def _attributes(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Attributes by name; of those that lay out dimensions only what is needed, as each takes as long as a variable."""
    names = list(item.attrs)
    own = {"_Netcdf4Coordinates"} if getattr(item, "ndim", 0) == 1 else set()
    skipped = _REFERENCES | (own if "CLASS" in names else _OF_SCALES)
    return {name: _attribute(item.attrs[name]) for name in names if name not in skipped}


def _visible(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _LAYOUT}


def _attribute(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode() if not isinstance(value, np.bytes_) else value
    return value[0] if isinstance(value, np.ndarray) and value.shape == (1,) else value
