"""The fast engine against frozen NUTS posteriors, and the files themselves."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from bayesqid import files, laws
from bayesqid.inference import posterior, sample, simulate

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no checkout of the repository")
NAMES = ("atlas", "tiny", "simulated")
LIMIT = 4.0


@pytest.fixture(scope="module")
def reference():
    """benchmarks/reference.py as a namespace."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return runpy.run_path(str(BENCHMARKS / "reference.py"))
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def small():
    """A posterior of 40 cells by the fast engine."""
    cells = simulate.study(laws.get("boxcox"), "hierarchical", 3, simulate.grid(2, 2, 2))[0].cells
    return sample.sample(cells, laws.get("boxcox"), engine="laplace", chains=4, draws=500)


def frozen(reference, name: str) -> xr.DataTree:
    path = reference["FOLDER"] / f"{name}.nc"
    assert path.is_file(), f"{path} is missing: run python benchmarks/reference.py"
    return files.open_tree(path)


def test_every_reference_is_here_and_no_other(reference):
    assert tuple(reference["REFERENCES"]) == NAMES
    assert sorted(path.name for path in reference["FOLDER"].glob("*.nc")) == sorted(f"{name}.nc" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_is_what_posteriordb_asks_for(reference, name):
    tree = frozen(reference, name)
    draws, found = tree["posterior"].to_dataset(), tree["diagnostics"].to_dataset()
    assert all(json.loads(tree.attrs["checks"]).values())
    assert (draws.sizes["chain"] * draws.sizes["draw"], draws.sizes["chain"] >= 4) == (reference["DRAWS"], True)
    worst = {d: [float(v.sel(diagnostic=d).max()) for v in found.data_vars.values()] for d in ("rhat",)}
    assert max(worst["rhat"]) < 1.01
    for values in draws.data_vars.values():
        assert values.dtype == np.float32
        assert np.isfinite(values.to_numpy()).all()
    assert (reference["FOLDER"] / f"{name}.nc").stat().st_size < reference["LIMIT_BYTES"]


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_is_of_todays_cells_and_priors(reference, name):
    tree = frozen(reference, name)
    assert tree.attrs["cells_sha256"] == reference["digest"](reference["REFERENCES"][name]())
    today = posterior.priors_of(laws.get(reference["LAW"]))
    assert json.loads(tree.attrs["priors"]) == json.loads(json.dumps(today))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_fast_engine_agrees_with_the_reference(reference, name):
    tree = sample.sample(reference["REFERENCES"][name](), laws.get(reference["LAW"]), engine="laplace", seed=1,
                         chains=1, draws=2000)  # fmt: skip
    effective = json.loads(tree.attrs["engine"])["importance_ess"]
    assert effective > 100
    apart = reference["differences"](frozen(reference, name), tree, effective)
    assert len(apart) == 4 * len(reference["scalars"](reference["estimated"](tree)))
    assert {key: round(value, 1) for key, value in apart.items() if not abs(value) < LIMIT} == {}


def as_reference(reference, tree: xr.DataTree) -> xr.DataTree:
    data = reference["estimated"](tree)
    return xr.DataTree.from_dict({"posterior": data, "diagnostics": reference["diagnostics"](data)})


def test_a_posterior_does_not_differ_from_itself(reference, small):
    apart = reference["differences"](as_reference(reference, small), small, 500)
    assert max(map(abs, apart.values())) < 0.2


@pytest.mark.parametrize(("shift", "stretch", "told"), [(0.5, 1.0, "mean lam"), (0.0, 1.5, "sd lam"),
                                                        (0.0, 1.5, "q5 lam"), (0.0, 1.5, "q95 lam")])  # fmt: skip
def test_a_shifted_or_stretched_scalar_is_told(reference, small, shift, stretch, told):
    other = small.copy()
    lam = small["posterior"]["lam"]
    other["posterior"]["lam"] = lam.mean() + stretch * (lam - lam.mean()) + shift * float(lam.std())
    assert abs(reference["differences"](as_reference(reference, small), other, 2000)[told]) > LIMIT


def test_what_the_model_does_not_estimate_is_no_part_of_a_reference(reference, small):
    names = set(reference["scalars"](reference["estimated"](small)))
    # in this grid every quantizer stands alone in its generation: no spread of methods or sources can be told
    assert {"mu alpha", "sd beta", "theta gamma F1", "tau rtn", "lam", "spread checkpoint_level"} <= names
    assert not names & {"spread method_level", "spread source_level"}


def test_rounding_moves_no_draw_by_more_than_half_a_step(reference):
    x = xr.DataArray(np.random.default_rng(0).normal(size=(2, 500, 2)) * [1.0, 1e-3] + [5.0, 0.0],
                     dims=("chain", "draw", "term"))  # fmt: skip
    kept = reference["rounded"](x)
    assert kept.dtype == np.float32
    assert (abs(kept - x).max(("chain", "draw")) <= x.std(("chain", "draw")) / 256 + 1e-6).all()
    assert len(np.unique(kept[..., 0])) < len(np.unique(x[..., 0]))


def test_a_reference_survives_its_file(reference, small, tmp_path):
    made = as_reference(reference, small)
    reference["write"](made, tmp_path / "r.nc")
    back = files.open_tree(tmp_path / "r.nc")
    xr.testing.assert_equal(back["posterior"].to_dataset(), made["posterior"].to_dataset())


def test_other_cells_have_another_digest(reference):
    cells = simulate.grid(1, 2, 1)
    assert reference["digest"](cells) == reference["digest"](cells.copy(deep=True))
    assert reference["digest"](cells) != reference["digest"](cells.assign(qid=cells["qid"] + 1e-12))
    renamed = cells.assign_coords(family=cells["family"].str.replace("F", "G"))
    assert reference["digest"](cells) != reference["digest"](renamed)
