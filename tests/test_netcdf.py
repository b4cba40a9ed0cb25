"""Files read with h5py are what xarray reads from them."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from xarray.testing import assert_identical

from bayesqid import files, netcdf
from bayesqid.errors import BadInput

DATA = Path(__file__).resolve().parents[1] / "data"


def mixed() -> xr.DataTree:
    root = xr.Dataset(
        {"flag": ("x", [True, False]), "name": ("x", ["a", "käse"]), "square": (("x", "x2"), np.eye(2)),
         "gap": ("x", [1.0, np.nan]), "scalar": 3, "free": ("y", [1, 2, 3])},
        {"x": [0.5, 1.5], "x2": ["p", "q"], "label": ("x", ["u", "v"])},
        {"title": "ä title", "list": [1.0, 2.0], "one": 4, "empty": ""},
    )  # fmt: skip
    below = xr.Dataset({"of_parent": ("x", [1, 2]), "own": ("z", np.arange(4, dtype="int8"))})
    return xr.DataTree.from_dict({"/": root, "/a": below, "/a/b": xr.Dataset(attrs={"only": "attributes"})})


def read_both(path: Path) -> tuple[dict, dict]:
    ours, theirs = netcdf.open_tree(path), xr.open_datatree(path, engine="h5netcdf").load()
    return ours.to_dict(), theirs.to_dict()


@pytest.mark.parametrize("name", ["posterior.nc", *(f"reference/{kind}.nc" for kind in ("atlas", "tiny", "simulated"))])
def test_shipped_files_read_as_xarray_reads_them(name):
    ours, theirs = read_both(DATA / name)
    assert ours.keys() == theirs.keys()
    for path, dataset in theirs.items():
        assert_identical(ours[path], dataset)


@pytest.mark.parametrize("numbered", [True, False])
def test_every_kind_of_variable_and_attribute_reads_as_xarray_reads_it(tmp_path, numbered):
    path = files.write_netcdf(mixed(), tmp_path / "mixed.nc")
    if not numbered:  # netCDF-C leaves the numbers of the dimensions out where the references say enough
        with h5py.File(path, "r+") as file:
            for item in [*file.values(), *file["a"].values()]:
                item.attrs.pop("_Netcdf4Coordinates", None)
    ours, theirs = read_both(path)
    assert ours.keys() == theirs.keys()
    for group, dataset in theirs.items():
        assert_identical(ours[group], dataset)
        assert {name: v.dtype for name, v in ours[group].variables.items()} == {
            name: v.dtype for name, v in dataset.variables.items()
        }


@pytest.mark.parametrize("content", [b"", b"CDF\x01 classic", b"\x89HDF\r\n\x1a\n cut short"])
def test_a_file_that_is_no_netcdf4_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "bad.nc"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read as a netCDF posterior file"):
        files.open_tree(path)


def test_a_plain_hdf5_file_is_refused_in_one_sentence(tmp_path):
    with h5py.File(tmp_path / "plain.nc", "w") as file:
        file["numbers"] = np.arange(3)
    with pytest.raises(BadInput, match="cannot be read"):
        files.open_tree(tmp_path / "plain.nc")


def test_text_stored_as_characters_is_read_as_text(tmp_path):
    data = xr.Dataset({"name": ("cell", ["a", "bcd", "Übung"]), "x": ("cell", [1.0, 2.0, 3.0])},
                      {"cell": ["one", "two", "three"]})  # fmt: skip
    tree = xr.DataTree.from_dict({"cells": data})
    stored = {name: {"dtype": "S1", "zlib": True} for name in ("name", "cell")}
    tree.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding={"/cells": stored})
    found = netcdf.open_tree(tmp_path / "a.nc")["cells"]
    assert found["name"].values.tolist() == ["a", "bcd", "Übung"]
    assert found["cell"].values.tolist() == ["one", "two", "three"]
