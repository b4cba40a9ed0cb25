"""Truth: posteriors of known numbers, where tokens have a closed form; else the law itself on a fine grid of tokens."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.stats import norm
from typer.testing import CliRunner

import posteriors
from bayesqid import files
from bayesqid.answers import asking, candidates, draws, project, tokens
from bayesqid.answers.draws import Target
from bayesqid.cli.tokens import tokens as command
from bayesqid.errors import BadInput
from level_posterior import TERMS, make, tree

MANY = 40_000
TABLE = json.loads((Path(__file__).parent / "data" / "ouyang_table1.json").read_text())["rows"]
SIZES = {"1B": 1e9, "7B": 7e9, "70B": 70e9, "405B": 405e9}
QUANTILES = {"lower90": 0.05, "lower50": 0.25, "median": 0.5, "upper50": 0.75, "upper90": 0.95}


def log_tokens(posterior, params, bits, threshold, terms=TERMS):
    """ln D at which the printed law shows a QiD under its ceiling, in groups of 128 with a 16-bit scale."""
    headroom = draws.nearest_headroom(posterior, params)
    raw = -headroom * math.log(1 - threshold / headroom)
    at_pivot = (terms["log_k"] - terms["alpha"] * math.log(params / 1e9)
                - terms["gamma"] * math.log((bits + 16 / 128) / 3))  # fmt: skip
    return math.log(1e11) + (math.log(raw) - at_pivot) / terms["beta"]


def only(answer):
    """The single row of an answer."""
    (row,) = tokens.as_json(answer)["rows"]
    return row


def test_one_draw_of_a_known_law_is_inverted_in_closed_form():
    posterior = make()
    answer = tokens.tokens(posterior, band="mean")
    assert answer.sizes["target"] == 4 * 3 * 4
    for row in tokens.rows(answer):
        want = math.exp(log_tokens(posterior, row["params"], row["bits"], row["threshold"]))
        assert row["median"] == pytest.approx(want, rel=1e-6)
        assert (row["p_never"], row["p_always"]) == (0, 0)


def test_the_interval_of_a_normal_level_is_the_normal_s():
    """ln D = const - log_k / beta, so its standard deviation is that of everything in the level over beta."""
    spread = {"checkpoint_level": 0.3, "source_level": 0.2}
    posterior = make(size=MANY, tau=0.4, spread=spread)
    sd = math.sqrt(0.3**2 + 0.2**2 + 0.4**2) / TERMS["beta"]
    row = only(tokens.tokens(posterior, 7e9, bits=[3], threshold=[0.3]))
    mean = log_tokens(posterior, 7e9, 3, 0.3)
    for name, q in QUANTILES.items():
        error = 4 * math.sqrt(q * (1 - q) / MANY) / norm.pdf(norm.ppf(q)) * sd
        assert math.log(row[name]) == pytest.approx(norm.ppf(q, mean, sd), abs=error), name


def test_the_band_observed_moves_the_threshold_by_the_error_of_a_measurement():
    posterior = make(size=MANY, tau=1e-9)
    row = only(tokens.tokens(posterior, 7e9, bits=[3], threshold=[0.3], band="observed"))
    usual = float(posterior.cells["qid_se"].median())
    for name, q in QUANTILES.items():
        error = 4 * math.sqrt(q * (1 - q) / MANY) / norm.pdf(norm.ppf(q))
        want = log_tokens(posterior, 7e9, 3, 0.3 + usual * norm.ppf(q))
        step = log_tokens(posterior, 7e9, 3, 0.3 + usual) - log_tokens(posterior, 7e9, 3, 0.3)
        assert math.log(row[name]) == pytest.approx(want, abs=1.2 * error * step), name


CURVED = {"bend_params": 0.01, "bend_tokens": np.array([0.004, -0.004, -0.03, 0.02]), "bend_both": -0.01}
STRAIGHT = {"undecayed": 0.3, "undecayed_slope": np.array([0.05, -0.1, 0.2, -0.6])}


@pytest.mark.parametrize("band", project.BANDS)
@pytest.mark.parametrize(("law", "covariates"), [("curved", CURVED), ("boxcox", STRAIGHT)])
def test_each_draw_crosses_the_threshold_where_its_projection_does(law, covariates, band):
    """Projected at the tokens found a draw shows the threshold, and nowhere below on 33 tokens from 1e3 to 1e19."""
    posterior = make(size=4, law=law, lam=0.7, covariates=covariates, spread={"checkpoint_level": 0.3})
    targets = [Target(None, n, 1e11, b, "gptq", lr_phase="constant") for n, b in ((1e9, 2.125), (70e9, 4.125))]
    limits = np.array([0.05, 0.2, 1.0])
    found = tokens.tokens_draws(posterior, targets, limits, band)

    def shown(at):
        return project.qid_draws(posterior, [replace(t, tokens=at) for t in targets], band)[0]

    grid = np.geomspace(1e3, 1e19, 33)
    there = np.stack([shown(at) for at in grid])
    kinds = set()
    for index in np.ndindex(found.shape):
        draw, target, limit = index
        got, wanted = found[index], limits[limit]
        below = there[:, draw, target] < wanted
        if got == 1e3:
            kinds.add("always")
            assert not below[0]
            continue
        kinds.add("never" if got == np.inf else "crossed")
        assert below[grid < got * (1 - 1e-6)].all()
        if got < np.inf:
            assert shown(got)[draw, target] == pytest.approx(wanted, rel=1e-9)
    assert {"crossed", "never"} <= kinds


def test_first_crossing_of_random_quadratics_agrees_with_a_dense_grid():
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(3, 300)) * np.array([3.0, 1.0, 0.2])[:, None]
    coefficients[2, :100] = 0.0
    coefficients[1, :20] = 0.0
    found = tokens.first_reached(coefficients, np.zeros(300), -8.0, 9.0)
    x = np.linspace(-8, 9, 200_001)
    for (c0, c1, c2), got in zip(coefficients.T, found, strict=True):
        values = c0 + c1 * x + c2 * x**2
        above = np.flatnonzero(values >= 0)
        if above.size:
            assert got == pytest.approx(x[above[0]], abs=1.01 * (x[1] - x[0]))
        else:
            assert got == np.inf or values.max() > -1e-6
    assert {np.inf, -8.0} < set(found.tolist())


def test_a_tiny_bend_does_not_cost_digits():
    straight = tokens.first_reached(np.array([[-3.0], [0.4], [0.0]]), np.zeros(1), -18.0, 18.0)
    for bend in (1e-17, -1e-17, 1e-12, -1e-12):
        got = tokens.first_reached(np.array([[-3.0], [0.4], [bend]]), np.zeros(1), -18.0, 18.0)
        assert got == pytest.approx(straight, rel=1e-9)
    assert straight == pytest.approx(7.5, rel=1e-12)


def test_draws_that_never_reach_it_count_and_leave_quantiles_among_them_empty():
    """60 % of the draws rise, 30 % fall from below, 10 % fall from above: those are above it at the lower limit."""
    level, slope = np.full(1000, -2.0), np.full(1000, 0.4)
    slope[600:], level[600:900] = -0.4, -14.0
    posterior = make(size=1000, terms={"log_k": level, "beta": slope})
    row = only(tokens.tokens(posterior, 1e9, bits=[3], threshold=[0.3], band="mean"))
    assert (row["p_never"], row["p_always"]) == (0.3, 0.1)
    assert row["lower90"] == 1e3
    want = math.exp(log_tokens(posterior, 1e9, 3, 0.3))
    assert [row["lower50"], row["median"]] == pytest.approx([want, want], rel=1e-6)
    assert (row["upper50"], row["upper90"]) == (None, None)
    text = tokens.as_text(tokens.tokens(posterior, 1e9, bits=[3], threshold=[0.3], band="mean"))
    assert all(words in text for words in ("<=1k - >1e19", "  30%", "In up to 10% of the draws"))


def test_a_quantile_is_the_least_tokens_by_which_that_share_has_reached_it():
    """Ten draws, the level falling from one to the next: 5, 25, 50, 75 and 95 % are the 1st, 3rd, 5th, 8th and 10th."""
    level = -2.0 - np.arange(10) / 10
    row = only(tokens.tokens(make(size=10, terms={"log_k": level}), 1e9, bits=[3], threshold=[0.3], band="mean"))
    want = [log_tokens(make(), 1e9, 3, 0.3, TERMS | {"log_k": level[i]}) for i in (0, 2, 4, 7, 9)]
    assert [math.log(row[name]) for name in QUANTILES] == pytest.approx(want, rel=1e-6)


def test_a_threshold_at_the_ceiling_is_never_reached():
    posterior = make(size=50)
    headroom = draws.nearest_headroom(posterior, 7e9)
    limits = [headroom - 1e-9, headroom, 99.0]
    rows = tokens.rows(tokens.tokens(posterior, 7e9, bits=[2], threshold=limits, band="mean"))
    assert [row["p_never"] for row in rows] == [0.0, 1.0, 1.0]
    assert (rows[1]["median"], rows[1]["extrapolation"]["d_ratio"]) == (None, None)
    assert rows[0]["extrapolation"]["d_ratio"] >= 1


def test_the_printed_table_stands_as_printed():
    answer = tokens.rows(tokens.tokens(make()))
    found = {(row["params"], row["threshold"], row["bits"]): row["printed"] for row in answer}
    want = {(SIZES[size], float(limit), bits): value * 1e12 for size, rows in TABLE.items()
            for limit, values in rows.items() for bits, value in zip((2.0, 3.0, 4.0), values, strict=True)}  # fmt: skip
    assert found == pytest.approx(want, rel=1e-12)


def test_nothing_is_printed_for_what_the_table_does_not_hold():
    posterior = make()
    for change in ({"params": 2e9}, {"bits": [5]}, {"threshold": [0.25]}, {"method": "rtn"}):
        answer = tokens.tokens(posterior, **({"params": 1e9, "bits": [4], "threshold": [0.2]} | change))
        assert only(answer)["printed"] is None, change
    assert only(tokens.tokens(posterior, 1e9, bits=[4], threshold=[0.2]))["printed"] == 1.4424e12


@pytest.mark.parametrize(("params", "bits", "threshold"), [(1e9, 4, 0.2), (405e9, 4, 0.2), (70e9, 2, 0.5)])
def test_equation_8_is_inverted_in_its_own_units(params, bits, threshold):
    """k D^beta / (N^alpha P^gamma) = threshold, raw counts, the constants as printed."""
    want = (threshold * params**0.2261 * bits**5.4967 / 0.017) ** (1 / 0.5251)
    assert tokens.by_equation_8(params, bits, threshold) == pytest.approx(want, rel=1e-9)


def test_the_row_says_how_far_its_median_tokens_lie_beyond_the_data():
    posterior = make(size=101)
    row = only(tokens.tokens(posterior, 7e9, bits=[4], threshold=[0.5], band="mean"))
    target = replace(asking.targets(posterior, 1e11, params=7e9, bits=4)[0], tokens=row["median"])
    assert row["extrapolation"] == project.extrapolation(posterior, target)
    assert row["extrapolation"]["d_ratio"] > 1
    inside = tokens.tokens(posterior, 7e9, bits=[3], threshold=[0.05], band="mean")
    assert only(inside)["extrapolation"] == {"n_ratio": 1, "d_ratio": 1, "p_outside": False}


def test_the_verdict_is_judged_at_the_median_tokens():
    posterior = make(size=2, terms={"beta": np.array([0.39, 0.41])})
    near, far = ({"params": 7e9, "bits": [3], "threshold": [limit]} for limit in (0.05, 8.0))
    assert tokens.tokens(posterior, **near).attrs["verdict"] == "ok"
    assert tokens.tokens(posterior, **far).attrs["verdict"] == "extrapolation"
    unsure = make(size=2, terms={"beta": np.array([-0.6, 1.4])})
    assert tokens.tokens(unsure, **near).attrs["verdict"] == "not identified"


def test_a_law_without_tokens_is_refused():
    made = tree()
    made.attrs["drivers"] = "phase"
    posterior = draws.Posterior(made, draws.flatten(made["posterior"].to_dataset()), "x", "", "file")
    with pytest.raises(BadInput, match="no effect of tokens"):
        tokens.tokens(posterior)


def test_the_object_has_the_keys_of_the_contract_and_no_nan():
    answer = tokens.as_json(tokens.tokens(posteriors.posterior(), threshold=[0.3, 50.0]))
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert {"law", "model", "verdict", "band", "interval", "checks", "posterior", "assumptions", "excluded", "limits",
            "rows"} == set(answer)  # fmt: skip
    assert set(answer["rows"][0]) == {
        "family", "params", "bits", "effective_bits", "method", "threshold", *QUANTILES, "p_never", "p_always",
        "printed", "printed_law", "extrapolation",
    }  # fmt: skip
    assert [row["median"] for row in answer["rows"] if row["threshold"] == 50.0] == [None] * 12


@pytest.mark.parametrize("checks", [{"rhat": True}, {"rhat": False}])
def test_the_text_fits_a_terminal_of_80_columns(checks):
    slope = np.concatenate([np.full(90, 0.04), np.full(10, -0.01)])
    posterior = make(size=100, checks=checks, tau=1.0, law="boxcox", terms={"beta": slope})
    for params in (1.234e7, 4.05e11, 1e16):
        text = tokens.as_text(tokens.tokens(posterior, params, bits=[1, 3.25, 16], threshold=[1e-6, 0.125, 99.5]))
        assert max(map(len, text.splitlines())) <= 80
        assert "nan" not in text
        assert text.startswith("Verdict:" if checks["rhat"] else "Checks failed: rhat.")


@pytest.mark.parametrize(
    ("asked", "why"),
    [({"threshold": [0.0]}, "--threshold is 0"), ({"threshold": [math.nan]}, "--threshold is nan"),
     ({"threshold": [-1.0]}, "--threshold is -1"), ({"threshold": [math.inf]}, "--threshold is inf"),
     ({"threshold": []}, "No threshold"), ({"bits": []}, "No bits"), ({"bits": [0.0]}, "--bits is 0"),
     ({"params": math.inf}, "--params is inf"), ({"band": "wide"}, "no band 'wide'"), ({"method": "magic"}, "magic"),
     ({"family": "F9"}, "F9"), ({"family": "F0", "new_family": True}, "contradict"), ({"lr_phase": "x"}, "--lr-phase")],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused_in_one_sentence(asked, why):
    with pytest.raises(BadInput, match=why) as caught:
        tokens.tokens(make(), **asked)
    assert "\n" not in str(caught.value)


def test_a_named_model_brings_its_size_and_family():
    posterior = make(size=3, terms={"beta": np.array([0.3, 0.4, 0.5])})
    known = {"model": "M", "family": "F1", "n_params_nonembedding": 6.5e9}
    row = only(tokens.tokens(posterior, known=known, bits=[3], threshold=[0.2], band="mean"))
    assert (row["family"], row["params"]) == ("F1", 6.5e9)
    assert math.log(row["median"]) == pytest.approx(log_tokens(posterior, 6.5e9, 3, 0.2))


def test_the_command_prints_one_object_or_a_table(tmp_path):
    path = tmp_path / "posterior.nc"
    files.write_netcdf(posteriors.tree(), path)
    app = typer.Typer()
    app.command()(command)
    words = [str(path), "--params", "7e9", "--bits", "3", "--bits", "4", "--threshold", "0.2"]
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert shown.exit_code == 0, shown.output
    rows = json.loads(shown.stdout)["rows"]
    assert [(row["params"], row["bits"], row["threshold"]) for row in rows] == [(7e9, 3, 0.2), (7e9, 4, 0.2)]
    assert f"Posterior: {path} (file)." in shown.stderr
    assert CliRunner().invoke(app, words).stdout.startswith("Verdict:")


def test_what_is_looked_up_of_a_size_stands_in_where_a_target_says_nothing():
    posterior = posteriors.posterior()
    silent = Target(None, 7e9, 1e12, 3.0, "gptq")
    given = replace(silent, vocab_size=5e4, headroom=6.0)
    one, other = candidates.filled(posterior, [given, silent])
    assert (one.vocab_size, one.headroom) == (5e4, 6.0)
    assert (other.vocab_size, other.headroom) == (32000.0, draws.nearest_headroom(posterior, 7e9))
    with_, without = (project.qid_draws(posterior, found, "new")[0] for found in ([silent], [other]))
    np.testing.assert_array_equal(with_, without)
