"""Scores of folds against closed forms and ArviZ."""

import numpy as np
import xarray as xr
from arviz_stats import compare as az_compare

from bayesqid.inference import scores


def test_stacking_weights_of_two_laws_in_two_folds_have_their_closed_form():
    a, b, c, d = 1.0, 0.1, 0.2, 0.6
    weight = -((a - c) * d + (b - d) * c) / (2 * (a - c) * (b - d))
    np.testing.assert_allclose(scores.stack(np.log([[a, b], [c, d]])), [weight, 1 - weight], atol=1e-4)
    np.testing.assert_allclose(scores.stack(np.array([[-1.0, -900.0], [-2.0, -1000.0]])), [1, 0], atol=1e-4)


def test_stacking_weights_are_those_of_arviz():
    rng = np.random.default_rng(0)
    centre = -0.5 * rng.normal(size=(3, 60)) ** 2 - np.array([0.1, 0.0, 0.3])[:, None]
    trees = {
        name: xr.DataTree.from_dict({
            "posterior": xr.Dataset({"x": (("chain", "draw"), rng.normal(size=(2, 400)))}),
            "log_likelihood": xr.Dataset(
                {"y": (("chain", "draw", "cell"), row + 0.05 * rng.normal(size=(2, 400, 60)))}),
        })
        for name, row in zip("abc", centre, strict=True)
    }  # fmt: skip
    from arviz_stats.loo import loo

    pointwise = {name: loo(tree, pointwise=True, var_name="y") for name, tree in trees.items()}
    theirs = az_compare(pointwise, method="stacking", round_to="none")["weight"]
    ours = scores.stack(np.array([np.asarray(pointwise[name].elpd_i) for name in "abc"]))
    np.testing.assert_allclose(ours, [theirs[name] for name in "abc"], atol=0.01)


def test_the_standard_error_of_a_sum_of_folds_is_that_of_independent_ones():
    lpd = np.random.default_rng(1).normal(size=(2, 4000)) * [[1.0], [2.0]] - [[0.0], [0.1]]
    gap, se = scores.difference(lpd, 0)
    assert gap[0] == se[0] == 0
    assert abs(gap[1] + 400) < 4 * se[1]
    assert abs(se[1] / np.sqrt(4000 * 5) - 1) < 0.05
