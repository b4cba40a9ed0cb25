"""What a run says of itself beside its draws."""

import json

import numpy as np
import xarray as xr

import posteriors
from bayesqid.inference import checks


def test_numbers_are_rounded_and_what_is_no_number_is_null():
    found = checks.rounded({"a": [np.float64(1.23456), float("nan"), float("-inf")], "b": (1, "x", True, None)})
    assert found == {"a": [1.235, None, None], "b": [1, "x", True, None]}
    assert json.dumps(found, allow_nan=False)


def test_the_record_holds_checks_limits_engine_diagnosis_and_sensitivity():
    tree = posteriors.tree(checks={"rhat": False})
    tree.attrs["diagnosis"] = json.dumps({"groups": []})
    found = checks.record(tree, {"prior_scale": [{"median": float("nan")}]})
    assert found["passed"] is False
    assert found["checks"]["rhat"] is False
    assert found["limits"]["rhat"] == 1.01
    assert found["engine"]["engine"] == "nuts"
    assert found["diagnosis"] == {"groups": []}
    assert found["sensitivity"] == {"prior_scale": [{"median": None}]}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_record_of_a_file_without_a_diagnosis_says_so():
    found = checks.record(posteriors.tree())
    assert found["passed"] is True
    assert found["diagnosis"] is None
    assert found["sensitivity"] is None


def test_the_diagnosis_of_a_fit_does_not_touch_the_tree():
    from bayesqid import laws
    from bayesqid.inference import hyper, posterior, simulate

    p, b, phi = simulate.study(laws.get("ouyang"), "hierarchical", 2, simulate.grid(families=2, tokens=2))
    sample = posterior.named(p, b[None, None], hyper.unpack(p, phi[None, None]))
    tree = xr.DataTree.from_dict({"posterior": sample})
    before = tree.copy(deep=True)
    assert checks.diagnose(p, tree)["groups"][0]["cells"] == p.cells.sizes["cell"]
    xr.testing.assert_identical(tree, before)
