"""Differences between sources: the likelihood against its textbook form, intervals against simulation."""

import numpy as np
import pandas as pd
import pytest

from bayesqid.importers import reproducibility


def design(configurations: int, sources: int, methods: int, rng: np.random.Generator):
    """Each configuration belongs to one method and was measured by two or three of its sources."""
    rows = []
    for number in range(configurations):
        method = number % methods
        for source in rng.choice(sources, size=rng.integers(2, 4), replace=False):
            rows.append((number, f"{source}|{method}"))
    configuration, cluster = (np.array(column) for column in zip(*rows, strict=True))
    return configuration, cluster


def simulate(configuration, cluster, shared, own, error, rng):
    level = rng.normal(-2, 1, configuration.max() + 1)[configuration]
    names, of = np.unique(cluster, return_inverse=True)
    return level + rng.normal(0, shared, names.size)[of] + rng.normal(0, np.hypot(own, error))


def test_contrasts_are_orthonormal_and_blind_to_the_level_of_a_configuration():
    configuration = np.array([0, 0, 1, 1, 1, 2, 2])
    k = reproducibility.contrasts(configuration)
    assert k.shape == (7, 4)
    np.testing.assert_allclose(k.T @ k, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(k.T @ np.eye(3)[configuration], 0, atol=1e-12)


def test_the_likelihood_is_the_restricted_one_of_the_textbook():
    """-2 ln L = ln |V| + ln |X'V^-1 X| + y'Py + constant, with V over rows and X the levels, worked out directly."""
    rng = np.random.default_rng(5)
    configuration, cluster = design(9, 4, 2, rng)
    error = rng.uniform(0.01, 0.1, configuration.size)
    y = simulate(configuration, cluster, 0.2, 0.1, error, rng)
    grid = np.array([0.05, 0.2, 0.7])
    found = reproducibility.log_likelihood(y, error, configuration, cluster, grid)
    x = np.eye(configuration.max() + 1)[configuration]
    members = np.eye(len(set(cluster)))[np.unique(cluster, return_inverse=True)[1]]
    direct = np.empty((3, 3))
    for i, shared in enumerate(grid):
        for j, own in enumerate(grid):
            v = shared**2 * members @ members.T + np.diag(own**2 + error**2)
            inverse = np.linalg.inv(v)
            within = x.T @ inverse @ x
            p = inverse - inverse @ x @ np.linalg.solve(within, x.T @ inverse)
            direct[i, j] = -0.5 * (np.linalg.slogdet(v)[1] + np.linalg.slogdet(within)[1] + y @ p @ y)
    np.testing.assert_allclose(found - found[0, 0], direct - direct[0, 0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "own"), [(0.15, 0.2), (0.3, 0.05)])
def test_intervals_hold_the_truth_as_often_as_they_say(shared, own):
    rng = np.random.default_rng(11)
    configuration, cluster = design(18, 5, 3, rng)
    error = rng.uniform(0.005, 0.05, configuration.size)
    held = np.zeros(3)
    runs = 40
    for _ in range(runs):
        y = simulate(configuration, cluster, shared, own, error, rng)
        found = reproducibility.spreads(reproducibility.log_likelihood(y, error, configuration, cluster))
        truth = (shared, own, np.hypot(shared, own))
        held += [one.lower < value < one.upper for one, value in zip(found, truth, strict=True)]
    # 36 of 40 expected; 0.1 % of binomial draws lie below 29
    assert (held >= 29).all(), held
    assert (held < 3 * runs).all()


def test_rounding_that_explains_every_difference_leaves_nothing_for_the_sources():
    rng = np.random.default_rng(2)
    configuration, cluster = design(30, 5, 3, rng)
    error = np.full(configuration.size, 0.1)
    y = simulate(configuration, cluster, 0.0, 0.0, error, rng)
    shared, own, _ = reproducibility.spreads(reproducibility.log_likelihood(y, error, configuration, cluster))
    assert max(shared.lower, own.lower) < 0.02
    assert max(shared.median, own.median) < 0.07
    exact = reproducibility.spreads(reproducibility.log_likelihood(y, error * 0.01, configuration, cluster))
    assert exact[2].median == pytest.approx(0.1, rel=0.4), "taken for exact, the same numbers differ by their rounding"


def table(*rows: dict) -> pd.DataFrame:
    usual = {
        "model": "M", "method": "gptq", "method_printed": "GPTQ", "variant": "", "generation": "calibrated",
        "bits": 3.0, "group_size": 128.0, "effective_bits": 3.15, "kind": "weight_only", "eval_dataset": "wikitext2",
        "ctx_len": 2048.0, "ppl_fp": 5.0, "ppl_q": 6.0, "ppl_q_decimals": 2, "censored": False, "default_reason": "",
        "duplicate_kind": "", "flags": "", "notes": "", "source": "A",
    }  # fmt: skip
    made = pd.DataFrame([usual | row for row in rows])
    return made.assign(qid=np.log(made["ppl_q"] / made["ppl_fp"]))


def test_two_labs_of_one_configuration_count_and_their_rounding_is_a_uniform_one():
    found = reproducibility.repeated(table({}, {"source": "B", "ppl_q": 6.2}, {"model": "alone"}))
    assert sorted(found["source"]) == ["A", "B"]
    by_hand = 0.01 / 6.2 / np.sqrt(12) / np.log(6.2 / 5)
    assert found.set_index("source").loc["B", "error"] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    "other",
    [
        {"bits": 4.0}, {"group_size": 64.0}, {"eval_dataset": "c4"}, {"ctx_len": 4096.0}, {"model": "N"},
        {"method": "awq", "method_printed": "AWQ"}, {"censored": True}, {"flags": "suspect;x"},
        {"duplicate_kind": "repeat: quoted copy (same digits)"}, {"notes": "value quoted there from another paper"},
        {"ppl_fp": 5.2}, {"ppl_q": 5.01}, {"ppl_q": 4.9}, {"default_reason": "activations quantized too"},
        {"method_printed": "GPTQ-sym"}, {"flags": "group_unknown"},
    ],
)  # fmt: skip
def test_what_is_no_independent_measurement_of_the_same_is_left_out(other):
    assert reproducibility.repeated(table({}, {"source": "B", "ppl_q": 6.2} | other)).empty


def test_merged_versions_are_one_configuration_as_the_laws_take_them():
    rows = table({}, {"source": "B", "ppl_q": 6.2, "method_printed": "GPTQ-sym"})
    assert len(reproducibility.repeated(rows, merged=True)) == 2
    types = table(*({"method": "llamacpp-k", "method_printed": name, "source": name} for name in ("q3_k_s", "q3_k_m")))
    assert reproducibility.repeated(types, merged=True).empty


def test_a_source_counts_once_per_configuration():
    rows = table({}, {"ppl_q": 6.1}, {"source": "B", "ppl_q": 6.2})
    assert len(reproducibility.repeated(rows)) == 2


def test_classes_with_too_few_configurations_have_no_estimate():
    held = (("A", "M", 6.0), ("B", "M", 6.2), ("A", "N", 6.5), ("B", "N", 6.4), ("A", "O", 7.0), ("B", "O", 7.3))
    rows = table(*({"source": source, "model": model, "ppl_q": value} for source, model, value in held))
    found = reproducibility.by_class(rows)
    assert set(found) == {"calibrated", "all"}
    assert found["all"] == found["calibrated"]
    one = reproducibility.as_rows(found)[0]
    assert (one["class"], one["configurations"], one["rows"], one["sources"]) == ("calibrated", 3, 6, 2)
    apart = [abs(np.log(np.log(a / 5) / np.log(b / 5))) for a, b in ((6.0, 6.2), (6.5, 6.4), (7.0, 7.3))]
    by_hand = np.median(apart)
    assert one["robust"] == pytest.approx(1.4826 * by_hand / np.sqrt(2), rel=1e-12)
    assert one["both"]["lower"] < one["both"]["median"] < one["both"]["upper"]
