"""Data that a person names: bundled names, measurement files, tables."""

import json

import numpy as np
import pandas as pd
import pytest

from bayesqid import bundled, cells, files, measurements
from bayesqid.errors import BadInput
from bayesqid.importers import sources


@pytest.fixture(scope="module")
def atlas():
    return sources.read_cells("atlas")


def test_the_atlas_has_its_cells_and_counts_what_is_left_out(atlas):
    """Counted in the CSV itself, without the importer."""
    raw = pd.read_csv(bundled.data_dir() / "published_qid.csv")
    assert atlas.sizes["cell"] == raw["default"].sum() == 1232
    assert int(atlas["censored"].sum()) == (raw["default"] & (raw["qid"] > np.log(10))).sum() == 73
    left_out = json.loads(atlas.attrs["excluded"])
    assert sum(sum(families.values()) for families in left_out.values()) == len(raw) - 1232
    np.testing.assert_array_equal(atlas["qid"], raw.loc[raw["default"], "qid"])
    cells.check(atlas)


def test_every_source_is_named_with_its_hash(atlas):
    source = json.loads(atlas.attrs["sources"])[0]
    assert source["name"] == "atlas"
    assert source["sha256"] == files.sha256_file(bundled.data_dir() / "published_qid.csv")


def test_the_ladder_is_the_same_by_name_and_by_path():
    by_name, by_path = sources.read_cells("tiny"), sources.read_cells(str(bundled.data_dir() / "tiny.nc"))
    assert by_name.drop_attrs().identical(by_path.drop_attrs())
    data = measurements.read(bundled.data_dir() / "tiny.nc")
    assert by_name.sizes["cell"] == data.sizes["checkpoint"] * (data.sizes["recipe"] - 1)
    one = by_name.isel(cell=11)
    recipe = f"{one['method'].item()}-w{one['bits'].item():.0f}" + ("-g32" if one["group_size"] == 32 else "")
    there = measurements.qid(data).sel(checkpoint=one["checkpoint"].item(), recipe=recipe)
    assert one["qid"].item() == there.item()
    cells.check(by_name)


def test_joined_data_keep_every_cell_and_both_sources(atlas):
    ladder = sources.read_cells("tiny")
    both = cells.join([atlas, ladder])
    assert both.sizes["cell"] == atlas.sizes["cell"] + ladder.sizes["cell"]
    assert [source["name"] for source in json.loads(both.attrs["sources"])] == ["atlas", "tiny"]
    np.testing.assert_array_equal(both["qid"], np.concatenate([atlas["qid"], ladder["qid"]]))


@pytest.mark.parametrize("name", ["atlas", "tiny"])
def test_the_same_data_twice_are_refused(name):
    with pytest.raises(BadInput, match="stands in two of the data sets"):
        cells.join([sources.read_cells(name), sources.read_cells(name)])


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no data 'nowhere\.nc'.*atlas, tiny"):
        sources.read_cells("nowhere.nc")
    with pytest.raises(BadInput, match="no data"):
        sources.read_cells(str(tmp_path))
    with pytest.raises(BadInput, match="bayesqid-posterior/1"):
        sources.read_cells(str(bundled.data_dir() / "posterior.nc"))
    (tmp_path / "note.txt").write_text("a note")
    with pytest.raises(BadInput, match="cannot be read"):
        sources.read_cells(str(tmp_path / "note.txt"))


@pytest.mark.parametrize("lacking", ["nats", "tokens", "status", "weight_sha256", "effective_bits"])
def test_a_measurement_file_that_lacks_something_is_refused(tmp_path, lacking):
    data = files.open_dataset(bundled.data_dir() / "tiny.nc").drop_vars(lacking)
    files.write_netcdf(data, tmp_path / "m.nc")
    with pytest.raises(BadInput, match=lacking):
        sources.read_cells(str(tmp_path / "m.nc"))


def test_what_is_no_toml_is_refused(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "b.toml").write_text("a = ")
    for name in ("a.toml", "b.toml", "c.toml"):
        with pytest.raises(BadInput, match=name):
            files.read_toml(tmp_path / name)
    (tmp_path / "d.toml").write_text("beta = {mean = 0.5}")
    assert files.read_toml(tmp_path / "d.toml") == {"beta": {"mean": 0.5}}
