"""The calibration of `level`: its truth, written out, is the problem's own law; its tables count what they say."""


import numpy as np
import pytest

from benchmarked import BENCHMARKS, module

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no checkout of the repository")


@pytest.fixture(scope="module")
def bench():
    return module("level")


def query(held, p, passed, **more):
    return {"held": held, "p": [[p]], "passed": [[passed]], "pit": 0.5, "n": 1, "decades": 2.0,
            "level_held": [True]} | more  # fmt: skip


def lines_of(held):
    """Data sets of four queries of either kind; in each set all four hold or none does."""
    said = {"code": "0", "checks": {"importance_ess": True}}
    return [said | {"queries": dict.fromkeys(("known", "new"), [query([one, one], 0.8, one)] * 4)} for one in held]


def test_data_sets_are_the_clusters_of_the_coverage(bench):
    lines = lines_of([True] * 9 + [False])
    row = bench.coverage(lines)[1]
    assert (row["sets"], row["queries"], row["share"], row["holds"]) == (10, 40, 0.9, True)
    assert row["error"] == pytest.approx(0.1)  # that of 10 sets, not of 40 queries: sqrt(.9 * .1 / 9)
    assert not bench.coverage(lines_of([True] * 2 + [False] * 30))[1]["holds"]


def test_chances_stand_beside_what_came_true(bench):
    rows = bench.reliability(lines_of([True] * 8 + [False] * 2))
    assert [(r["low"], r["chances"], round(r["told"], 6), r["share"]) for r in rows] == [(0.7, 80, 0.8, 0.8)]
    assert bench.brier(lines_of([True] * 8 + [False] * 2)) == pytest.approx((0.16, 0.16))


def test_the_truth_is_the_law_of_the_problem_at_its_own_cells(bench):
    """ln QiD written out for a fitted family is what the problem's matrix gives, checkpoints and sources aside."""
    from bayesqid import laws
    from bayesqid.answers import draws
    from bayesqid.inference import hyper, simulate

    problem, b, phi = simulate.study(laws.get("boxcox"), "hierarchical", 5, simulate.grid(3, 2, 2))
    natural = hyper.unpack(problem, phi)
    true = simulate.truth(problem, b, natural, np.random.default_rng(0)).isel(chain=0, draw=0)
    eta = (problem.weights(natural.lam, natural.latent) * b[problem.index]).sum(axis=1)
    cells = problem.cells
    for i in range(0, cells.sizes["cell"], 7):
        one = cells.isel(cell=i)
        family = str(one["family"].values)
        target = draws.Target(family, float(one["n_params_nonembedding"]), float(one["train_tokens"]),
                              float(one["effective_bits"]), str(one["quantizer"].values),
                              bool(one["per_channel"]))  # fmt: skip
        value = bench.law_value(true, bench.terms_of(true, family, {}, np.random.default_rng(0)), target)
        shared = float(true["checkpoint_level"].sel(checkpoint=str(one["checkpoint"].values)))
        source = float(true["source_level"].sel(source_method=str(one["source_method"].values)))
        assert value + shared + source == pytest.approx(eta[i], abs=1e-9)
