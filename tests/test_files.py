import hashlib

import numpy as np
import pytest
import xarray as xr

from bayesqid import files
from bayesqid.errors import BadInput

DATA = xr.Dataset({"x": ("a", np.arange(3.0))}, {"a": ["p", "q", "r"]}, {"schema": "toy/1"})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = files.write_text(tmp_path / "a.txt", "old")

    def write(aside):
        aside.write_text("half of the n")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        files.write_aside(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failing_first_write_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        files.write_aside(tmp_path / "b.txt", lambda aside: 1 // 0)
    assert names(tmp_path) == []


def test_readers_never_see_half_a_file(tmp_path):
    path = files.write_text(tmp_path / "a.txt", "old")

    def write(aside):
        assert path.read_text() == "old"
        aside.write_text("new")
        assert path.read_text() == "old"

    assert files.write_aside(path, write) == path
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_folders_are_made_and_text_is_utf8(tmp_path):
    path = files.write_text(tmp_path / "x" / "y" / "a.txt", "π\n")
    assert path.read_bytes() == "π\n".encode()


def test_datasets_and_trees_round_trip(tmp_path):
    files.write_netcdf(DATA, tmp_path / "d.nc")
    xr.testing.assert_identical(files.open_dataset(tmp_path / "d.nc"), DATA)
    tree = xr.DataTree.from_dict({"posterior": DATA, "cells": DATA.isel(a=[0])})
    files.write_netcdf(tree, tmp_path / "t.nc")
    assert files.open_tree(tmp_path / "t.nc").identical(tree)
    assert names(tmp_path) == ["d.nc", "t.nc"]


def test_an_old_encoding_does_not_overrule_new_values(tmp_path):
    old = DATA.copy()
    old["x"].encoding = {"dtype": "int16", "scale_factor": 1.0, "_FillValue": -1}
    old["x"] = old["x"] + 0.25
    old["x"].encoding = {"dtype": "int16", "scale_factor": 1.0, "_FillValue": -1}
    files.write_netcdf(old, tmp_path / "d.nc")
    assert files.open_dataset(tmp_path / "d.nc")["x"].values.tolist() == [0.25, 1.25, 2.25]


def test_what_was_read_does_not_hold_the_file(tmp_path):
    files.write_netcdf(DATA, tmp_path / "d.nc")
    first = files.open_dataset(tmp_path / "d.nc")
    files.write_netcdf(DATA + 1, tmp_path / "d.nc")
    assert first["x"].values.tolist() == [0, 1, 2]
    assert files.open_dataset(tmp_path / "d.nc")["x"].values.tolist() == [1, 2, 3]


@pytest.mark.parametrize("opener", [files.open_dataset, files.open_tree])
def test_missing_and_corrupt_files_are_bad_input(tmp_path, opener):
    with pytest.raises(BadInput, match=r"There is no .* file .*none\.nc"):
        opener(tmp_path / "none.nc")
    with pytest.raises(BadInput, match="There is no"):
        opener(tmp_path)
    files.write_netcdf(DATA, tmp_path / "good.nc")
    whole = (tmp_path / "good.nc").read_bytes()
    for number, content in enumerate((b"", b"this is not netCDF", whole[:500], whole[: len(whole) // 2])):
        path = tmp_path / f"{number}.nc"
        path.write_bytes(content)
        with pytest.raises(BadInput, match="cannot be read") as caught:
            opener(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_sha256_is_the_usual_one(tmp_path):
    # FIPS 180 example
    want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_bytes(b"abc") == want
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 20_000)
    assert files.sha256_file(big) == hashlib.sha256(big.read_bytes()).hexdigest()
