"""Files that are sound as netCDF and not as what they say they are: each reads, or is refused in one sentence."""

import sys
import warnings
from pathlib import Path

import pytest

import spoiling
from bayesqid import cells, files, measurements
from bayesqid.answers import draws, project
from bayesqid.errors import BadInput
from bayesqid.importers import sources
from bayesqid.measure import parts

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
# what make test does to each variable; make soak does all
FEW = ("absent", "texts", "one dim less")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small sound file of each kind."""
    sys.path.insert(0, str(FUZZ))
    import harnesses

    sys.path.remove(str(FUZZ))
    folder = tmp_path_factory.mktemp("sound")
    paths = {kind: folder / f"{kind}.nc" for kind in ("measurements", "cells", "posterior")}
    for kind, path in paths.items():
        path.write_bytes(harnesses._small(kind))
    return paths


def read_cells(path: Path) -> None:
    found = cells.check(cells.join([sources.read_cells(str(path))]))
    cells.warnings_of(found)


def read_measurements(path: Path, whole: Path) -> None:
    data = measurements.read(path)
    parts.done([data])
    measurements.merge(measurements.read(whole), [data])
    read_cells(path)


def read_posterior(path: Path) -> None:
    posterior = draws.read(str(path), brief=True)
    for family in (None, posterior.families[0]):
        project.project(posterior, [draws.Target(family, 7e10, 1e14, 4.0, "gptq")])


def refused_or_read(kind: str, path: Path, folder: Path, keep) -> int:
    """How many spoiled files were tried; tells all that ended in anything but `BadInput`."""
    broken, tried = [], 0
    read = {"measurements": lambda one: read_measurements(one, path), "cells": read_cells,
            "posterior": read_posterior}[kind]  # fmt: skip
    for what, make in spoiling.spoiled(spoiling.groups(path)):
        if not keep(what):
            continue
        try:
            tree = make()
            files.write_netcdf(tree if kind == "posterior" else tree.to_dataset(), folder / "spoiled.nc")
        except (ValueError, TypeError):  # netCDF has no way to say it
            continue
        tried += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # values out of range may make numpy warn
                read(folder / "spoiled.nc")
        except BadInput as error:
            broken += [f"{what}: several lines, {error}"] * ("\n" in str(error))
        except Exception as error:
            broken.append(f"{what}: {error!r}")
    assert broken == []
    return tried


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["measurements", "cells"])
def test_a_variable_in_another_form_ends_in_no_traceback(sound, tmp_path, kind):
    assert refused_or_read(kind, sound[kind], tmp_path, lambda what: what.endswith(FEW)) > 80


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", ["measurements", "cells", "posterior"])
def test_whatever_is_done_to_a_file_ends_in_no_traceback(sound, tmp_path, kind):
    tried = refused_or_read(kind, sound[kind], tmp_path, lambda what: True)
    print(f"\n{kind}: {tried} spoiled files")
    assert tried > 300
