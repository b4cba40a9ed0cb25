import numpy as np
import pytest

import posteriors
from bayesqid.answers import asking, curves, project


@pytest.fixture(scope="module")
def posterior():
    return posteriors.posterior()


def target(**changes):
    facts = {"family": None, "params": 7e9, "tokens": 1e12} | changes
    return asking.target_of(None, 3, "gptq", **facts)


def test_the_grid_holds_the_asked_tokens_and_reaches_beyond_asked_and_fitted(posterior):
    grid = curves.grid(posterior, [1e14])
    assert 1e14 in grid
    assert grid[0] < posterior.cells["train_tokens"].min()
    assert grid[-1] > 1e14
    assert (np.diff(grid) > 0).all()


def test_a_band_equals_the_projection_of_its_target(posterior):
    found = curves.bands(posterior, [target()], np.array([1e12, 1e14]), "new")
    for j, tokens in enumerate((1e12, 1e14)):
        alone = project.project(posterior, [target(tokens=tokens)], "new")
        for name in ("lower90", "lower50", "median", "upper50", "upper90", "p_saturated"):
            assert found[name].values[0, j] == pytest.approx(float(alone[name][0]), rel=1e-12)


def test_outside_is_told_by_the_range_of_the_cells(posterior):
    found = curves.bands(posterior, [target(), target(params=1e12)], np.array([1e10, 1e12, 1e15]))
    assert found["outside"].values.tolist() == [[True, False, True], [True, True, True]]


def test_bands_rise_with_tokens_without_the_jitter_of_independent_draws(posterior):
    found = curves.bands(posterior, [target()], np.geomspace(1e11, 1e13, 9))
    slope = np.diff(np.log(found["median"].values[0]))
    assert (slope > 0).all()
    assert np.abs(slope - slope.mean()).max() < 0.03


def test_near_takes_comparable_cells_only(posterior):
    near = curves.near(posterior, target())
    assert near.sizes["cell"] > 0
    assert set(near["bits"].values) == {3.0}
    assert set(near["n_params_nonembedding"].values) == {7e9}


def test_a_family_has_its_own_range_of_tokens(posterior):
    assert curves.tokens_range(posterior, "fixed") == (1e12, 1e12)
    assert curves.tokens_range(posterior, None) == (2e10, 3e13)


def test_the_published_law_is_the_printed_one():
    # Ouyang et al., Eq. 8: 0.017 D^0.5251 / (N^0.2261 P^5.4967)
    by_hand = 0.017 * 1e14**0.5251 / (7e9**0.2261 * 4**5.4967)
    assert curves.published_qid("ouyang", 7e9, np.array([1e14]), 4.0)[0] == pytest.approx(by_hand, rel=1e-9)
    slopes = {row["law"]: row for row in curves.published_slopes()}
    assert slopes["ouyang"]["gamma"] == pytest.approx(5.4967)
    assert slopes["kumar"]["gamma"] == pytest.approx(3 / 0.5907)
    assert slopes["ouyang, 3-bit column"]["gamma"] is None
