"""Sound netCDF files spoiled in their structure, one variable or attribute in one way at a time."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from bayesqid import files


def _put(data: xr.Dataset, name: str, change: Callable[[xr.Variable], xr.Variable]) -> xr.Dataset:
    """The Dataset with one variable changed; an index goes first, since it would not let its dimension change."""
    made = change(data[name].variable.to_base_variable())
    rest = data.drop_vars(name)
    return rest.assign_coords({name: made}) if name in rest.dims else rest.assign({name: made})


def _values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[xr.Dataset, str], xr.Dataset]:
    """A variable with other values of the same shape."""
    return lambda data, name: _put(
        data, name, lambda variable: xr.Variable(variable.dims, change(variable.values), variable.attrs)
    )


def _first(value: object) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        made = values.astype(object if isinstance(value, str) or values.dtype.kind in "OUT" else float)
        made.flat[:1] = [str(value) if made.dtype == object else value]
        return made

    return change


def _flat(data: xr.Dataset, name: str) -> xr.Dataset:
    return _put(data, name, lambda variable: variable.isel({variable.dims[-1]: 0}))


def _deep(data: xr.Dataset, name: str) -> xr.Dataset:
    return _put(data, name, lambda variable: variable.expand_dims("more"))


def _along(data: xr.Dataset, name: str) -> xr.Dataset:
    return _put(data, name, lambda variable: xr.Variable(
        [f"{one}_other" for one in variable.dims], variable.values, variable.attrs))  # fmt: skip


# name -> what it does to a variable
WAYS: dict[str, Callable[[xr.Dataset, str], xr.Dataset]] = {
    "absent": lambda data, name: data.drop_vars(name),
    "numbers": _values(lambda values: np.arange(values.size, dtype=float).reshape(values.shape)),
    "texts": _values(lambda values: np.full(values.shape, "text", dtype=object)),
    "truths": _values(lambda values: np.ones(values.shape, dtype=bool)),
    "unknown": _values(_first(np.nan)),
    "infinite": _values(_first(-np.inf)),
    "huge": _values(_first(1e300)),
    "negative": _values(_first(-1)),
    "empty text": _values(_first("")),
    "one dim less": _flat,
    "one dim more": _deep,
    "other dims": _along,
}


def spoiled(whole: dict[str, xr.Dataset]) -> Iterator[tuple[str, Callable[[], xr.DataTree]]]:
    """What is done and how to have it, for every variable, dim and attribute of every group."""
    for group, data in whole.items():

        def put(make: Callable[[], xr.Dataset], group: str = group) -> Callable[[], xr.DataTree]:
            return lambda: xr.DataTree.from_dict({**whole, group: make()})

        for name in map(str, data.variables):
            for way, spoil in WAYS.items():
                if way != "one dim less" or data[name].dims:
                    yield f"{group} {name}: {way}", put(partial(spoil, data, name))
        for dim in map(str, data.dims):
            for way, rows in {"of length 0": [], "the first twice": [0, *range(data.sizes[dim])]}.items():
                yield f"{group} {dim}: {way}", put(partial(data.isel, {dim: rows}))
        for name in data.attrs:
            for value in ("", "text", "{}", "[1]", '{"a": {"a": 1}}', "null", 3.5, np.arange(3)):
                yield f"{group} attribute {name}: {value}", put(partial(data.assign_attrs, {name: value}))
            rest = {key: one for key, one in data.attrs.items() if key != name}
            yield f"{group} attribute {name}: absent", put(partial(data.drop_attrs(deep=False).assign_attrs, rest))
    for group in list(whole)[1:]:
        rest = {key: one for key, one in whole.items() if key != group}
        yield f"group {group}: absent", partial(xr.DataTree.from_dict, rest)


def groups(path: Path) -> dict[str, xr.Dataset]:
    """A file's groups by path."""
    tree = files.open_tree(path)
    return {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
