import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bayesqid import cells, measurements
from bayesqid.recipe import parse

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "data" / "tiny_seeds.nc"


@pytest.fixture(scope="module")
def data():
    return measurements.read(FILE)


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "data" / "make_seeds.py"))


def test_every_cell_has_five_draws_of_the_suite_s_protocol_and_none_failed(data):
    assert (data["status"] == measurements.OK).all()
    recipes = [parse(str(name)) for name in data["recipe"].values if name != "none"]
    drawn = {replace(recipe, seed=0): {r.seed for r in recipes if replace(r, seed=0) == replace(recipe, seed=0)}
             for recipe in recipes}  # fmt: skip
    assert len(drawn) == 6
    assert all(seeds == {0, 1, 2, 3, 4} for seeds in drawn.values())
    assert data.sizes["checkpoint"] == 16
    assert set(data["family"].values) == {"tiny-neox", "tiny-llama", "tiny-opt"}
    manifest = measurements.manifest(data)
    assert (manifest["suite"], manifest["command"]) == ("tiny", "python data/make_seeds.py")
    assert (manifest["protocol"]["max_bytes"], manifest["protocol"]["calibration_windows"]) == (128, 16)
    assert FILE.stat().st_size < 1.5e6


def test_no_two_draws_gave_the_same_weights(data):
    losses = np.round(data["nats"].sum("document").values, 6)
    assert all(len(set(row)) == row.size for row in losses)


def test_its_cells_know_their_calibration_noise(data):
    made = cells.check(cells.from_measurements(data, {"name": "seeds"}))
    assert made.sizes["cell"] == 16 * 6
    assert set(made["quantizer"].values) == {"gptq", "awq"}
    assert (made["calibration_sd"].values > 5e-4).all()
    assert json.loads(made.attrs["excluded"]) == {}


def test_the_noise_s_form_is_the_likeliest_one(data, script):
    """`EVEN_QID` lies in the 95 % profile-likelihood interval of q0; variances of five draws are gamma, 4 degrees."""
    draws = script["draws"](data)
    mean, variance = draws.mean.ravel(), draws.variance.ravel()
    grid = np.linspace(0.005, 0.03, 51)

    def loss(even):
        scale = mean**2 + even**2
        scale = scale * (variance / scale).mean()
        return float(np.sum(np.log(scale) + variance / scale)) * 4 / 2

    lost = [loss(even) - min(map(loss, grid)) for even in (cells.EVEN_QID, 0.005, 0.03)]
    assert lost[0] < 1.92
    assert min(lost[1:]) > 1.92, "it is not everywhere"


@pytest.mark.parametrize(
    "title", ["By recipe", "By size", "Scale", "Three of five", "Four of five", "Together", "Training seeds"]
)
def test_the_docs_show_the_tables_that_the_file_gives(data, script, title):
    made = script["tables"](script["draws"](data))
    assert made[title] in (ROOT / "docs" / "calibration-noise.md").read_text()
    assert len(made) == 7


def test_rounding_keeps_the_bits_it_says(script):
    values = np.random.default_rng(1).normal(size=1000) * 10.0 ** np.arange(-5, 5).repeat(100)
    for bits in (12, 24):
        error = np.abs(script["rounded"](values, bits) / values - 1)
        assert 0.25 * 2.0**-bits < error.max() <= 2.0**-bits
    np.testing.assert_array_equal(script["rounded"](np.array([0.0, -3.0, 0.5, 1e9]), 12)[:3], [0.0, -3.0, 0.5])
