"""The contest on the loss landscape: what is left out stays out, the forest's distribution, the claims' arithmetic."""


import numpy as np
import pytest
from scipy import stats

from bayesqid import files, laws, likelihood
from bayesqid.answers import baselines
from bayesqid.inference import simulate
from benchmarked import BENCHMARKS, module

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no checkout of the repository")
LAW = laws.get("landscape")


@pytest.fixture(scope="module")
def contest():
    return module("landscape_contest")


@pytest.fixture(scope="module")
def claims():
    return module("landscape_claims")


@pytest.fixture(scope="module")
def cells():
    """Three architectures; QiD is the second-order value but for 10 % scatter, and family F0 has twice as much."""
    made = simulate.grid(3, 4, 2, seed=5)
    rng = np.random.default_rng(3)
    qid = np.maximum(made["taylor"].to_numpy(), 1e-3) * np.exp(0.1 * rng.normal(size=made.sizes["cell"]))
    qid = np.where(made["family"].to_numpy() == "F0", 2 * qid, qid)
    made["qid"] = ("cell", qid)
    made["qid_se"] = ("cell", 0.001 + 0.02 * qid)
    made["censored"] = ("cell", qid > np.log(10))
    return made


@pytest.fixture(scope="module")
def path(cells, tmp_path_factory):
    where = tmp_path_factory.mktemp("contest") / "cells.nc"
    files.write_netcdf(cells, where)
    return str(where)


@pytest.fixture(autouse=True)
def _same_laws():
    before = dict(laws.LAWS)
    yield
    laws.LAWS.clear()
    laws.LAWS.update(before)


def test_no_cell_of_a_fold_is_among_those_it_is_predicted_from(contest, path, monkeypatch):
    seen = []

    def watch(name, train, test, seed):
        seen.append((set(train["checkpoint"].to_numpy()), set(test["checkpoint"].to_numpy()), test["censored"].any()))
        nothing = np.full(test.sizes["cell"], np.nan)
        return dict.fromkeys(contest.KEPT, nothing)

    monkeypatch.setattr(contest, "predicted", watch)
    for split in ("size", "architecture"):
        for fold in np.unique(contest.SPLITS[split][0](contest.cells_of(path))):
            contest.one(path, split, str(fold), "landscape", 1)
    assert len(seen) == 6 + 3
    for train, test, diverged in seen:
        assert test
        assert not train & test
        assert not diverged


def test_cells_without_a_landscape_are_left_out(contest, cells, tmp_path):
    holes = cells["taylor"].to_numpy().copy()
    holes[:3] = np.nan
    files.write_netcdf(cells.assign_coords(taylor=("cell", holes)), tmp_path / "holes.nc")
    assert contest.cells_of(str(tmp_path / "holes.nc")).sizes["cell"] == cells.sizes["cell"] - 3


def test_sizes_within_a_tenth_are_one_size(contest, cells):
    some = cells.isel(cell=slice(0, 5)).assign_coords(n_params_nonembedding=("cell", [1e6, 1.09e6, 1.18e6, 1.5e6, 3e6]))
    assert contest.size_of(some).tolist() == ["1000k", "1000k", "1000k", "1500k", "3000k"]


def test_the_forest_predicts_by_the_cells_in_its_leaves(contest, cells):
    from sklearn.ensemble import RandomForestRegressor

    train, test = cells.isel(cell=slice(0, 80)), cells.isel(cell=slice(80, 90))
    point, quantiles = contest.forest(train, test, 1)
    formats = sorted(set(train["quantizer"].to_numpy().astype(str)))
    answer = np.log(np.maximum(train["qid"].to_numpy(), train["qid_se"].to_numpy()))
    trees = RandomForestRegressor(500, min_samples_leaf=3, max_features=1 / 3, random_state=1)
    trees.fit(contest.design(train, formats), answer)
    known, asked = (trees.apply(contest.design(one, formats)) for one in (train, test))
    np.testing.assert_allclose(point, trees.predict(contest.design(test, formats)))
    for row in (0, 7):
        weight = np.zeros(80)
        for tree in range(500):
            members = np.flatnonzero(known[:, tree] == asked[row, tree])
            weight[members] += 1 / len(members) / 500
        for column in (19, 199, 379):
            # the smallest training value with at least this share of the weight at or below it
            want = min(a for a in answer if weight[answer <= a].sum() >= baselines.PROBABILITIES[column] - 1e-12)
            assert quantiles[row, column] == pytest.approx(want)


def test_a_format_that_the_forest_has_not_seen_is_none_of_those_it_has(contest, cells):
    seen = contest.design(cells.isel(cell=slice(0, 4)), ["gptq"])
    assert seen[:, -1].tolist() == (cells["quantizer"].to_numpy()[:4] == "gptq").astype(float).tolist()
    assert (contest.design(cells, ["awq"])[:, -1] == 0).all()


def test_the_taylor_value_is_taken_as_it_is_under_the_ceiling(contest, cells):
    got = contest.taylor(cells)[:, 0]
    raw = np.maximum(cells["slope"] + cells["curvature"] / 2, 1e-3).to_numpy()
    np.testing.assert_allclose(got, likelihood.saturate(raw, cells["headroom"].to_numpy()))


def test_where_qid_is_the_second_order_value_the_law_finds_it_and_its_intervals_hold(contest, path):
    lines = {name: contest.one(path, "architecture", "F1", name, 1) for name in ("landscape", "boxcox", "taylor")}
    said = {name: contest.of_fold(line) for name, line in lines.items()}
    assert said["taylor"]["error"] < 0.12
    assert said["landscape"]["error"] < 0.5 * said["boxcox"]["error"]
    assert said["landscape"]["in90"] > 0.8
    assert np.isnan(said["taylor"]["in90"])
    assert lines["landscape"]["n"] == lines["boxcox"]["n"]


def test_a_second_run_refits_nothing_and_the_tables_say_how_few_the_folds_are(contest, path, tmp_path, monkeypatch):
    results, calls = tmp_path / "lines.jsonl", []
    real = contest.predicted
    monkeypatch.setattr(contest, "predicted", lambda *a: calls.append(a[0]) or real(*a))
    wanted = contest.tasks(path, ["taylor", "forest"], ["architecture"])
    monkeypatch.setattr(contest, "TREES", 20)
    lines = contest.run(results, wanted)
    assert len(calls) == 6
    assert contest.run(results, wanted) == lines
    assert len(calls) == 6
    lines += [line | {"name": "landscape"} for line in lines if line["name"] == "forest"]
    text = contest.report(lines, lines[0]["config"][:8])
    assert "3 folds" in text
    assert "| taylor |" in text
    assert contest.report([line | {"config": "other"} for line in lines], "00").count("|") == 0


def test_scores_of_a_fold_and_their_error_over_folds(contest):
    line = {"name": "x", "error": [0.1, -0.3, None, 0.2], "crps": [1.0, 2.0, None, 3.0], "pit": [0.5, 0.96, 0.3, None]}
    said = contest.of_fold(line)
    assert (said["error"], said["crps"], said["bias"]) == (pytest.approx(0.2), 2.0, pytest.approx(0.0))
    assert (said["in50"], said["in90"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert contest.mean_and_error(np.array([1.0, 3.0, np.nan])) == "2.00 ± 1.00"


def test_errors_by_cluster_are_those_of_the_clusters_means(claims):
    # with one regressor, a constant, and clusters of equal size the robust error is sd(means) / sqrt(G)
    values = np.random.default_rng(0).normal(size=(6, 4)) + np.arange(6)[:, None]
    slopes, errors, freedom = claims.clustered(np.ones((24, 1)), values.ravel(), np.repeat(np.arange(6), 4))
    assert slopes[0] == pytest.approx(values.mean())
    assert errors[0] == pytest.approx(values.mean(axis=1).std(ddof=1) / np.sqrt(6))
    assert freedom == 5


def test_a_known_trend_of_flatness_is_found_at_equal_tokens(claims, cells):
    tilt = (cells["n_params_nonembedding"].to_numpy() / 1e9) ** -0.4
    measured = dict.fromkeys(("flatness_r", "hessian_trace"), ("cell", 5.0 * tilt))
    own = cells.assign_coords(**measured, curvature=("cell", tilt * 10 ** (-cells["sqnr_db"].to_numpy() / 10)))
    noisy = np.exp(1e-3 * np.random.default_rng(0).normal(size=cells.sizes["cell"]))
    own = own.assign_coords({name: own[name] * noisy for name in ("flatness_r", "hessian_trace", "curvature")})
    answer, figures = claims.flatter(own)
    assert answer.startswith("at equal tokens yes")
    assert figures.count("slope -0.40") >= 3


def test_the_gain_of_gptq_is_that_of_pairs_on_one_grid_and_a_peak_is_no_monotone_gain(claims, cells):
    rows = simulate.grid(3, 4, 2, recipes=tuple((m, b, -1) for m in ("rtn", "gptq") for b in (2.0, 3.0, 4.0)))
    gain = {2.0: 1.2, 3.0: 3.0, 4.0: 1.1}
    rounded = 0.1 * np.exp(0.1 * np.random.default_rng(0).normal(size=rows.sizes["cell"] // 6))
    base = np.repeat(rounded, 6)
    bits, method = rows["bits"].to_numpy(), rows["method"].to_numpy()
    rows["qid"] = ("cell", np.where(method == "gptq", base / [gain[b] for b in bits], base))
    rows["qid_se"] = ("cell", np.full(rows.sizes["cell"], 1e-3))
    pairs = claims.gains(rows)
    assert pairs.sizes["cell"] == rows.sizes["cell"] // 2
    np.testing.assert_allclose(np.exp(pairs["gain"]), [gain[b] for b in pairs["bits"].to_numpy()])
    answer, figures = claims.monotone(rows)
    assert answer == "yes"
    assert "P(most at 3 bits) 1.00" in figures
    rows["qid"] = ("cell", np.where(method == "gptq", base / bits, base))
    assert claims.monotone(rows)[0] == "no"


def test_paired_differences_over_folds_are_those_of_a_t_test(claims):
    def line(fold, name, crps):
        return {"split": "size", "fold": fold, "name": name, "error": [0.1], "crps": [crps], "pit": [0.5]}

    a, b = [0.2, 0.3, 0.1, 0.4], [0.5, 0.4, 0.4, 0.3]
    lines = [line(str(k), name, v) for name, values in (("a", a), ("b", b)) for k, v in enumerate(values)]
    mean, error, folds, p = claims.compared(lines, "size", "a", "b")
    want = stats.ttest_rel(a, b, alternative="less")
    assert (mean, folds) == (pytest.approx(-0.15), 4)
    assert (mean / error, p) == (pytest.approx(want.statistic), pytest.approx(1 - want.pvalue))


def test_a_verdict_needs_nineteen_in_twenty(claims):
    assert [claims.verdict(p) for p in (0.96, 0.94, 0.06, 0.04)] == ["yes", "unclear", "unclear", "no"]
