"""The example reports that ship: whole, small, and what their posteriors give when they are rendered again."""

import csv
import math
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import posteriors

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"
MADE = runpy.run_path(str(REPORTS / "render.py"))
EXAMPLES = list(MADE["EXAMPLES"])
POSTERIORS = {name: ROOT / path for name, (path, _) in MADE["EXAMPLES"].items()}


def rendered(name):
    if not (REPORTS / name / "report.md").is_file():
        pytest.skip(f"no reports/{name}: run make reports")
    return REPORTS / name


@pytest.mark.parametrize("name", EXAMPLES)
def test_links_of_an_example_lead_somewhere(name):
    folder = rendered(name)
    text = (folder / "report.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(((?:data|figures)/[^)]+)\)", text)
    if (folder / "index.html").is_file():
        page = (folder / "index.html").read_text(encoding="utf-8")
        targets += re.findall(r'href="((?:data|figures)/[^"]+)"', page)
    assert targets
    assert sorted({target for target in targets if not (folder / target).is_file()}) == []
    told = {str(path.relative_to(folder)) for kind in ("data", "figures") for path in (folder / kind).iterdir()}
    # the Markdown names no file of points
    assert {name for name in told - set(targets) if not name.endswith("-points.csv")} == set()


def test_examples_and_posteriors_stay_small():
    assert sum(path.stat().st_size for path in REPORTS.rglob("*") if path.is_file()) < 6_000_000
    held = [*(ROOT / "data").glob("posterior.nc"), *(ROOT / "data" / "posteriors").glob("*.nc"),
            *(ROOT / "data" / "reference").glob("*.nc")]  # fmt: skip
    assert 0 < sum(path.stat().st_size for path in held) < 8_000_000


def test_links_to_what_is_left_out_go_and_the_others_stay():
    def link(name, label):
        return f'<a href="{name}">{label}</a>'

    pictures = f"{link('figures/a.svg', 'SVG')}, {link('figures/a.png', 'PNG')}"
    points = f"{link('data/a-points.csv', 'CSV')}, {link('data/a-points.json', 'JSON')}"
    page = f"Data: {link('data/a.csv', 'CSV')}, {link('data/a.json', 'JSON')}; points: {points}; picture: {pictures}"
    kept = {"data/a.csv", "figures/a.svg"}
    assert MADE["lean"](page, kept) == f"Data: {link('data/a.csv', 'CSV')}; picture: {link('figures/a.svg', 'SVG')}"
    text = "![alt](figures/a.svg)\nData: [CSV](data/{0}.csv), [JSON](data/{0}.json).\n"
    assert MADE["lean"](text.format("b"), kept) == "![alt](figures/a.svg)\n"
    assert MADE["lean"](text.format("a"), kept) == "![alt](figures/a.svg)\nData: [CSV](data/a.csv).\n"


def test_a_shortened_picture_moves_no_line_by_a_hundredth_of_a_point():
    path = '<path d="M 1.234567 -2.5 \nL 3.000001 4 \nz\n" style="stroke-width: 0.8"/><g transform="scale(0.015625)"/>'
    assert MADE["shortened"](path) == (
        '<path d="M 1.23 -2.5 L 3 4 z " style="stroke-width: 0.8"/><g transform="scale(0.015625)"/>')  # fmt: skip


def test_packing_keeps_names_and_four_digits(tmp_path):
    make = runpy.run_path(str(ROOT / "data" / "make_posterior.py"))
    whole = posteriors.tree()
    small = make["small"](whole, 50)
    make["write_packed"](make["packed"](small), tmp_path / "packed.nc")
    found = xr.open_datatree(tmp_path / "packed.nc", engine="h5netcdf").load()
    assert found["posterior"].sizes["draw"] == 50
    assert found["prior"].sizes == {"chain": 1, "draw": 400, "term": 4, "family": 3, "covariate_name": 7, "effect": 6,
                                    "generation": 2}  # fmt: skip
    for group in ("posterior", "posterior_predictive", "cells", "constant_data"):
        near = 1e-3 if group == "posterior_predictive" else 1.3e-4
        for name, values in found[group].to_dataset().variables.items():
            if values.dtype.kind in "OSU":
                assert values.values.astype(str).tolist() == small[group][name].values.astype(str).tolist()
            elif name not in ("chain", "draw"):
                expected = small[group][name].values
                if "draw" in values.dims:
                    expected = expected[:, :: -(-expected.shape[1] // values.shape[1])]
                np.testing.assert_allclose(values.values, expected, rtol=near)
    assert found.attrs["law"] == "boxcox"


@pytest.mark.slow
def test_an_example_rendered_again_has_the_same_twins(tmp_path, monkeypatch):
    name = "own-model"
    folder = rendered(name)
    monkeypatch.chdir(ROOT)
    MADE["render"](name, tmp_path / "whole")
    MADE["keep"](tmp_path / "whole", tmp_path / "kept", False)
    assert sorted(os.listdir(folder / "data")) == sorted(os.listdir(tmp_path / "kept" / "data"))
    for path in (folder / "data").iterdir():
        old, new = (list(csv.reader(one.read_text(encoding="utf-8").splitlines())) for one in
                    (path, tmp_path / "kept" / "data" / path.name))  # fmt: skip
        assert len(old) == len(new), path.name
        for before, after in zip(old, new, strict=True):
            # another processor may differ in the last digits
            assert all(a == b or math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-9)
                       for a, b in zip(before, after, strict=True)), (path.name, before, after)  # fmt: skip
