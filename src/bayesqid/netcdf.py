"""Netcdf-4 files read with h5py alone: what `xarray.open_datatree` gives, in a fifth of the time.

xarray's own readers build a lazy, indexable stand-in for every variable. A posterior has a hundred small ones that are
all read at once, and that machinery takes longer than the rest of an answer, imports included.
"""

import math
from collections.abc import Collection, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import Struct
from typing import Any

import h5py
import h5py.h5l
import numpy as np
import xarray as xr

# attributes by which netCDF-4 lays dimensions on HDF5: readers hide them
_REFERENCES = {"REFERENCE_LIST", "DIMENSION_LIST"}
_OF_SCALES = {"NAME", "_Netcdf4Dimid"}
_LAYOUT = {"CLASS", "_Netcdf4Coordinates", "_NCProperties", "_nc3_strict"} | _OF_SCALES
_HEAP, _SIZE, _OBJECT = b"GCOL\x01", Struct("<Q"), Struct("<H6xQ")
_BARE = b"This is a netCDF dimension but not a netCDF variable"


# What a file may hold. Compressed zeros take nothing on disk and all of the memory, so it is said before reading
MOST_BYTES = 2**32
MOST_OBJECTS = 20_000
MOST_DEPTH = 16
MOST_ATTRIBUTES = 1000
# bytes that are read at once of texts, each of which may repeat what stands in the file once
AT_ONCE = 2**31
# those inside HDF5 itself: others are looked for among plugins, which are code
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SZIP,
            h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET}  # fmt: skip


def open_tree(path: str | Path, leave: Collection[str] = ()) -> xr.DataTree:
    """The file in memory but for the groups of the top level named in `leave`.

    Any exception of h5py or xarray where it is no sound netCDF-4; `ValueError` for what HDF5 can do and netCDF-4 does
    not need: links and values in other files, filters from plugins, types but numbers and text, and more than fits.
    """
    with h5py.File(path, "r") as file:
        _refuse_endless_heaps(file)
        return xr.DataTree.from_dict(_read(file, Counted(file), leave))


def open_dataset(path: str | Path) -> xr.Dataset:
    """The file's top level in memory; what is below it is not read. Exceptions as for `open_tree`."""
    with h5py.File(path, "r") as file:
        _refuse_endless_heaps(file)
        return _read(file, Counted(file), None)["/"]


def _refuse_endless_heaps(file: h5py.File) -> None:
    """Raise ValueError where a heap of texts says of one of its objects that it takes no room, or more than there is.

    HDF5 (2.0) goes from object to object by their sizes, and for ever where one is 0. A heap is "GCOL", version, three
    bytes, its size, then objects: number (0: free), count, four bytes, size, and their bytes filled up to eights.
    """
    if file.id.get_create_plist().get_sizes() != (8, 8):
        raise ValueError("its places are not of 8 bytes")
    with open(file.filename, "rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as held:
        # heaps within heaps would have the same bytes read again and again
        heap, left = held.find(_HEAP), len(held) // _OBJECT.size
        while heap >= 0:
            here, end = heap + 16, heap + _SIZE.unpack_from(held, heap + 8)[0]
            while here + _OBJECT.size <= min(end, len(held)):
                number, size = _OBJECT.unpack_from(held, here)
                here += _OBJECT.size + (size + 7 & ~7) if number else size
                left -= 1
                if here > end or (size < _OBJECT.size and not number) or left < 0:
                    raise ValueError("its texts are damaged")
            heap = held.find(_HEAP, heap + 8)


class Counted:
    """Objects and bytes of a file that were seen so far; `ValueError` when they become too many."""

    def __init__(self, file: h5py.File) -> None:
        self.objects, self.bytes, self.on_disk = 0, 0, max(1, file.id.get_filesize())

    def add(self, objects: int = 0, size: int = 0) -> None:
        """Count some more."""
        self.objects, self.bytes = self.objects + objects, self.bytes + size
        if self.objects > MOST_OBJECTS:
            raise ValueError(f"it holds more than {MOST_OBJECTS} variables, groups and attributes")
        if self.bytes > MOST_BYTES:
            raise ValueError(f"it would take more than {MOST_BYTES / 2**30:g} GiB of memory")


def _read(file: h5py.File, counted: Counted, leave: Collection[str] | None) -> dict[str, xr.Dataset]:
    groups = dict(_groups(file, "/", leave, counted))
    scales = {int(attributes["_Netcdf4Dimid"]): name for _, variables in groups.values()
              for name, (_, attributes) in variables.items() if {"CLASS", "_Netcdf4Dimid"} <= attributes.keys()
              }  # fmt: skip
    return {where: _dataset(group, variables, scales, counted) for where, (group, variables) in groups.items()}


# name -> dataset with its attributes, which are dear to read and so read once
Variables = dict[str, tuple[h5py.Dataset, dict[str, Any]]]


def _groups(
    group: h5py.Group, path: str, leave: Collection[str] | None, counted: Counted
) -> Iterator[tuple[str, tuple[h5py.Group, Variables]]]:
    """Groups from `path` down but for those to `leave`, None for all below; with their variables."""
    if path.count("/") > MOST_DEPTH:
        raise ValueError(f"its groups lie more than {MOST_DEPTH} deep")
    counted.add(len(group))
    items = {name: _item(group, name) for name in map(str, group) if name not in (leave or ()) or path != "/"}
    yield path, (group, {name: (_plain(item, counted), _attributes(item, counted)) for name, item in items.items()
                         if isinstance(item, h5py.Dataset)})  # fmt: skip
    for name, item in items.items():
        if isinstance(item, h5py.Group) and leave is not None:
            yield from _groups(item, f"{path.rstrip('/')}/{name}", leave, counted)


def _item(group: h5py.Group, name: str) -> Any:
    # a link is followed by opening it: into another file, if it says so
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{name!r:.40} is a link to another place")
    return group[name]


def _plain(item: h5py.Dataset, counted: Counted) -> h5py.Dataset:
    """The same variable if its values are numbers or text that stand in the file and fit into the memory."""
    made, kind = item.id.get_create_plist(), item.dtype
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise ValueError(f"the values of {item.name!r:.40} stand in another file")
    if any(made.get_filter(number)[0] not in _FILTERS for number in range(made.get_nfilters())):
        raise ValueError(f"{item.name!r:.40} is packed by a filter that HDF5 has not itself")
    if kind.kind not in "biufS" and h5py.check_string_dtype(kind) is None:
        raise ValueError(f"{item.name!r:.40} holds {kind}, neither numbers nor text")
    counted.add(size=math.prod(item.shape or (0,)) * kind.itemsize)
    return item


def _dataset(group: h5py.Group, variables: Variables, scales: dict[int, str], counted: Counted) -> xr.Dataset:
    data = {
        name: xr.Variable(_dims(name, item, attributes, scales), _values(item, counted), _visible(attributes))
        for name, (item, attributes) in variables.items()
        if not bytes(attributes.get("NAME", b"")).startswith(_BARE)
    }
    return xr.decode_cf(xr.Dataset(data, attrs=_visible(_attributes(group, counted))))


def _dims(name: str, item: h5py.Dataset, attributes: dict[str, Any], scales: dict[int, str]) -> tuple[str, ...]:
    """Names of the dimensions, by their numbers where the writer left those, else through references to the scales."""
    if item.ndim == 0:
        return ()
    if "CLASS" in attributes and item.ndim == 1:
        return (name,)
    if "_Netcdf4Coordinates" in attributes:
        return tuple(scales[int(number)] for number in np.atleast_1d(attributes["_Netcdf4Coordinates"]))
    return tuple(str(item.file[refs[0]].name).rpartition("/")[2] for refs in np.asarray(item.attrs["DIMENSION_LIST"]))


def _values(item: h5py.Dataset, counted: Counted) -> np.ndarray:
    text = h5py.check_string_dtype(item.dtype)
    # text of a fixed length is an array of characters, whose last dimension decode_cf joins
    if not text or text.length is not None:
        return np.asarray(item[()])
    _refuse_endless(item, counted)
    # no text is longer than the file, but a thousand may be the same one
    rows = max(1, AT_ONCE // counted.on_disk // max(1, math.prod(item.shape[1:])))
    if item.ndim == 0 or rows >= len(item):
        return _texts(item.asstr()[()], counted)
    return np.concatenate([_texts(item.asstr()[start : start + rows], counted) for start in range(0, len(item), rows)])


def _refuse_endless(item: h5py.Dataset, counted: Counted) -> None:
    """Raise ValueError where a text says that it is longer than the file; HDF5 takes that memory before it looks.

    A text stands elsewhere in the file; the variable holds its length (4 bytes) and place. Read here only where they
    lie in one piece, as h5netcdf and netCDF4 write them; in chunks one text can take 4 GiB for a moment.
    """
    start = item.id.get_offset()
    if start is not None and item.size:
        texts = np.fromfile(item.file.filename, [("length", "<u4"), ("place", "<u8"), ("number", "<u4")], item.size,
                            offset=start)  # fmt: skip
        if int(texts["length"].max(initial=0)) > counted.on_disk:
            raise ValueError(f"{item.name!r:.40} has a text longer than the file")


def _texts(found: Any, counted: Counted) -> np.ndarray:
    # numpy gives every text the length of the longest, four bytes a character
    longest = max(map(len, found.flat), default=0) if isinstance(found, np.ndarray) else len(found)
    counted.add(size=4 * longest * np.size(found))
    return np.asarray(found, dtype=str)


def _attributes(item: h5py.Group | h5py.Dataset, counted: Counted) -> dict[str, Any]:
    """Attributes by name; of those that lay out dimensions only what is needed, as each takes as long as a variable."""
    names = list(item.attrs)
    counted.add(len(names))
    if len(names) > MOST_ATTRIBUTES:
        raise ValueError(f"{item.name!r:.40} has more than {MOST_ATTRIBUTES} attributes")
    own = {"_Netcdf4Coordinates"} if getattr(item, "ndim", 0) == 1 else set()
    skipped = _REFERENCES | (own if "CLASS" in names else _OF_SCALES)
    return {name: _attribute(_of(item, name, counted)) for name in names if name not in skipped}


def _of(item: h5py.Group | h5py.Dataset, name: str, counted: Counted) -> Any:
    """An attribute as h5py gives it, opened once: to look at it first and read it then would take twice as long."""
    one = h5py.h5a.open(item.id, name.encode("utf-8", "surrogateescape"))
    kind, shape = one.dtype, one.shape
    text = kind.kind == "O" and h5py.check_string_dtype(kind) is not None
    if kind.kind not in "biufS" and not text:
        raise ValueError(f"the attribute {name!r:.40} holds {kind}, neither numbers nor text")
    if shape is None:
        return item.attrs[name]
    size = math.prod(shape)
    # a text may be as long as the file, and a list may repeat it
    if text and size > 1 and size * counted.on_disk > MOST_BYTES:
        raise ValueError(f"the attribute {name!r:.40} lists {size} texts")
    counted.add(size=size * kind.itemsize)
    held: Any = np.zeros(shape, kind)
    one.read(held)
    if text:
        plain = [value.decode() for value in held.flat]
        return plain[0] if not shape else np.array(plain, dtype=object).reshape(shape)
    return held[()] if held.ndim == 0 else held


def _visible(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _LAYOUT}


def _attribute(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode() if not isinstance(value, np.bytes_) else value
    return value[0] if isinstance(value, np.ndarray) and value.shape == (1,) else value
