"""Files of other versions, exact round trips, and homes, terminals, locales and folders that are not as usual."""

import io
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayesqid import bundled, cells, files, measurements
from bayesqid.answers import draws
from bayesqid.cli import terminal
from bayesqid.errors import BadInput
from bayesqid.importers import sources

DATA = bundled.data_dir()
ASKED = ("project", "--params", "7e9", "--tokens", "1e13", "--bits", "3")
HOME = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME", "NUMBA_CACHE_DIR", "PYTENSOR_FLAGS")


def run(*words, folder, **environment):
    kept = {name: value for name, value in os.environ.items()
            if name not in (*HOME, "LANG", "PYTHONUTF8", "PYTHONIOENCODING", "TERM", "COLUMNS")
            and not name.startswith("LC_")}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "bayesqid", *map(str, words)], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
        check=False, env=kept | {"OMP_NUM_THREADS": "1", "HOME": str(folder)} | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The answer under usual circumstances."""
    done = run(*ASKED, folder=tmp_path_factory.mktemp("usual"))
    assert done.returncode == 0, done.stderr
    return done.stdout


LOCALES = {
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}  # fmt: skip


@pytest.mark.parametrize("name", LOCALES)
def test_an_answer_in_a_locale_without_utf_8_is_the_same_but_for_letters_it_lacks(usual, tmp_path, name):
    done = run(*ASKED, folder=tmp_path, **LOCALES[name])
    assert done.returncode == 0, done.stderr
    encoding = "latin-1" if name == "latin-1" else "ascii"
    assert done.stdout == usual.decode().encode(encoding, "backslashreplace")


@pytest.mark.slow
def test_an_answer_in_a_folder_with_spaces_and_umlauts_is_the_same(usual, tmp_path):
    folder = tmp_path / "my füße and ♥"
    folder.mkdir()
    (folder / "post é rior.nc").write_bytes((DATA / "posterior.nc").read_bytes())
    done = run(*ASKED[:1], "post é rior.nc", *ASKED[1:], "-o", "ré sumé", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines()[:8] == usual.decode().splitlines()[:8]
    assert (folder / "ré sumé").exists() or list(folder.glob("ré sumé*"))


def test_an_answer_with_a_home_that_cannot_be_written_is_the_same(usual, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)
    # root may write anywhere but into what is no folder
    for place in (home, "/dev/null", "/nonexistent"):
        done = run(*ASKED, folder=tmp_path, HOME=str(place), XDG_CACHE_HOME=f"{place}/cache")
        assert done.returncode == 0, done.stderr
        assert done.stdout == usual


@pytest.mark.slow
def test_figures_and_posteriors_are_made_with_a_home_that_cannot_be_written(tmp_path):
    done = run(*ASKED, "-o", "report", folder=tmp_path, HOME="/dev/null", XDG_CACHE_HOME="/dev/null/cache")
    assert done.returncode == 0, done.stderr
    assert any(tmp_path.glob("report*"))
    done = run("sample", "tiny", "--model", "pooled", "--engine", "laplace", "-o", "p.nc", folder=tmp_path,
               HOME="/dev/null", XDG_CACHE_HOME="/dev/null/cache")  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert draws.read(str(tmp_path / "p.nc")).tree.attrs["schema"] == "bayesqid-posterior/1"


# Schema versions


def dataset(kind):
    if kind == "cells":
        return sources.read_cells("tiny").isel(cell=slice(0, 6))
    return measurements.read(DATA / "tiny.nc").isel(checkpoint=[0, 1], document=slice(0, 4))


@pytest.mark.parametrize("schema", ["bayesqid-{}/0", "bayesqid-{}/2", "bayesqid-{}/1.1", "other/1", "", 1, None])
@pytest.mark.parametrize("kind", ["measurements", "cells", "posterior"])
def test_a_file_of_another_schema_is_refused_in_one_sentence(tmp_path, kind, schema):
    path = tmp_path / "other.nc"
    data = files.open_tree(DATA / "posterior.nc", draws.PER_CELL) if kind == "posterior" else dataset(kind)
    data.attrs = {name: value for name, value in data.attrs.items() if name != "schema"}
    if schema is not None:
        data.attrs["schema"] = schema.format(kind) if isinstance(schema, str) else schema
    files.write_netcdf(data, path)
    with pytest.raises(BadInput, match="schema") as caught:
        draws.read(str(path), brief=True) if kind == "posterior" else cells.check(sources.read_cells(str(path)))
    assert "\n" not in str(caught.value)


def test_measurements_of_before_linear_fraction_was_kept_are_read(tmp_path):
    data = dataset("measurements")
    path = files.write_netcdf(data.drop_vars("linear_fraction"), tmp_path / "old.nc")
    xr.testing.assert_identical(measurements.read(path)["linear_fraction"].drop_attrs(),
                                data["linear_fraction"].drop_attrs())  # fmt: skip


# Round trips


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
# netCDF has no empty list and no list within a list
ATTRIBUTE = st.one_of(TEXT, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False),
                      st.lists(st.floats(allow_nan=False), min_size=2, max_size=4).map(np.array))  # fmt: skip
NAME = st.from_regex(r"[a-z][a-z0-9_]{0,15}", fullmatch=True)


@st.composite
def datasets(draw):
    """Datasets of every kind of values that we write, with attributes everywhere."""
    size = draw(st.integers(1, 4))
    values = {
        "float": st.floats(), "int": st.integers(-(2**63), 2**63 - 1), "flag": st.booleans(), "text": TEXT,
        "small": st.floats(width=32), "byte": st.integers(-128, 127),
    }  # fmt: skip
    kinds = {"float": float, "int": "int64", "flag": bool, "text": object, "small": "float32", "byte": "int8"}
    data = {name: ("x", np.array(draw(st.lists(one, min_size=size, max_size=size)), dtype=kinds[name]),
                   draw(st.dictionaries(NAME.map("a_{}".format), ATTRIBUTE, max_size=2)))
            for name, one in values.items()}  # fmt: skip
    labels = np.array(draw(st.lists(TEXT, min_size=size, max_size=size, unique=True)), dtype=object)
    attrs = draw(st.dictionaries(NAME.map("a_{}".format), ATTRIBUTE, max_size=3))
    return xr.Dataset(data, {"x": labels}, attrs)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(datasets())
def test_a_dataset_comes_back_as_it_was_attributes_too(tmp_path_factory, data):
    path = files.write_netcdf(data, tmp_path_factory.mktemp("trip") / "a.nc")
    for found in (files.open_dataset(path), files.open_tree(path).to_dataset()):
        xr.testing.assert_identical(found, data)
        for name, variable in data.variables.items():
            assert found[name].dtype.kind in {"O": "OUT"}.get(variable.dtype.kind, variable.dtype.kind)
            assert variable.dtype.kind == "O" or found[name].dtype == variable.dtype
        assert {key: type(value) for key, value in found.attrs.items() if isinstance(value, str)} == {
            key: str for key, value in data.attrs.items() if isinstance(value, str)
        }


@pytest.mark.parametrize("kind", ["measurements", "cells"])
def test_our_own_files_come_back_as_they_were(tmp_path, kind):
    data = dataset(kind)
    again = files.open_dataset(files.write_netcdf(data, tmp_path / "a.nc"))
    xr.testing.assert_identical(again, data)
    assert json.dumps(again.attrs) == json.dumps(data.attrs)


# Terminals


def test_control_characters_are_shown_but_for_the_moves_of_progress_bars():
    out, error = io.StringIO(), io.StringIO()
    terminal.Plain(out).write("a\x1b[2J\r\x07b\n")
    assert terminal.Plain(error, moves=True).write("\r50%\x1b[A\x1b[31m\x9b") == 13
    assert out.getvalue() == "a\ufffd[2J\ufffd\ufffdb\n"
    assert error.getvalue() == "\r50%\x1b[A\ufffd[31m\ufffd"


def test_names_in_files_cannot_command_a_terminal(tmp_path):
    data = sources.read_cells("tiny").isel(cell=slice(0, 6))
    data = data.assign_coords(family=("cell", np.array(["\x1b[2J\x1b]0;owned\x07"] * 6, dtype=object)))
    files.write_netcdf(data, tmp_path / "c.nc")
    done = run("show", "c.nc", folder=tmp_path)
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\x07" not in done.stdout + done.stderr
