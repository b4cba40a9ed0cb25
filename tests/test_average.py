"""Averaged projections against the mixture written out."""

import json

import numpy as np
import pytest

from bayesqid.answers import asking, average, project
from bayesqid.errors import BadInput
from posteriors import posterior, tree

WEIGHTS = {"low": 0.3, "high": 0.7}


@pytest.fixture(scope="module")
def pair():
    return {"low": posterior(log_k=-4.0, seed=1), "high": posterior(log_k=-2.0, seed=2, size=300)}


@pytest.fixture(scope="module")
def targets(pair):
    return asking.targets(pair["low"], 1e13, 7e9, bits=3.0)


def test_below_a_quantile_of_the_mixture_lies_the_weighted_share_of_the_components(pair, targets):
    found = average.average(pair, WEIGHTS, targets).sel(component=average.MIXTURE)
    drawn = {name: project.qid_draws(one, targets, "new")[0][:, 0] for name, one in pair.items()}
    for name, q in project.quantile_names("").items():
        share = sum(WEIGHTS[k] * np.mean(values <= float(found[name][0])) for k, values in drawn.items())
        assert q <= share + 1e-12
        assert share < q + 0.7 / 300 + 0.3 / 200
    above = sum(WEIGHTS[k] * np.mean(values > 0.2) for k, values in drawn.items())
    assert float(found["p_gt_0.2"][0]) == pytest.approx(above)


def test_every_component_keeps_its_own_band(pair, targets):
    found = average.average(pair, WEIGHTS, targets)
    for name, one in pair.items():
        own = project.project(one, targets)
        for quantile in project.quantile_names(""):
            # of 200 draws and more, neighbours at the 95 % quantile are a few per cent apart
            assert float(found[quantile].sel(component=name)[0]) == pytest.approx(float(own[quantile][0]), rel=0.1)
    low, high = (float(found["median"].sel(component=name)[0]) for name in pair)
    assert low < float(found["median"].sel(component=average.MIXTURE)[0]) < high


def test_a_mixture_of_one_law_is_that_law(pair, targets):
    found = average.average(pair, {"low": 0.0, "high": 2.0}, targets)
    assert found["weight"].values.tolist() == [0.0, 1.0, 1.0]
    for name in project.quantile_names(""):
        values = found[name].isel(target=0)
        assert float(values.sel(component=average.MIXTURE)) == float(values.sel(component="high"))


@pytest.mark.parametrize("weights", [{"low": 1.0}, {"low": 1.0, "other": 1.0}, {"low": -1.0, "high": 2.0},
                                     {"low": 0.0, "high": 0.0}, {"low": float("nan"), "high": 1.0}])  # fmt: skip
def test_weights_that_are_none_are_refused(pair, targets, weights):
    with pytest.raises(BadInput, match=r"[Ww]eight"):
        average.average(pair, weights, targets)


def test_an_unknown_band_is_refused(pair, targets):
    with pytest.raises(BadInput, match="no band"):
        average.average(pair, WEIGHTS, targets, band="broad")


def test_a_posterior_in_memory_answers_as_one_read_from_a_file():
    made = tree(log_k=-2.0, seed=2)
    found = average.of_tree(made, "boxcox")
    wanted = asking.targets(found, 1e13, 7e9, bits=3.0)
    np.testing.assert_array_equal(
        project.qid_draws(found, wanted, "new")[0], project.qid_draws(posterior(log_k=-2.0, seed=2), wanted, "new")[0]
    )


def test_text_fits_the_terminal_and_json_has_no_nan(pair, targets):
    found = {"width": average.average(pair, WEIGHTS, targets), "loo": average.average(pair, WEIGHTS, targets)}
    text = average.as_text(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "mixture by width" in text
    assert "equal-tailed" in text
    out = json.loads(json.dumps(average.as_json(found), allow_nan=False))
    assert out["mixtures"]["loo"]["weights"] == pytest.approx(WEIGHTS)
    assert set(out["components"]) == {"low", "high"}
