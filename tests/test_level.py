"""Truth here is closed form: with small errors ln D is Gaussian; else sums on dense grids written out anew."""

import json
import math

import numpy as np
import pytest
import typer
from scipy.stats import norm
from typer.testing import CliRunner

from bayesqid import files
from bayesqid.answers import draws, level, observed
from bayesqid.answers.observed import Observed
from bayesqid.errors import BadInput
from bayesqid.importers import sources
from level_posterior import TERMS, make, tree

PARAMS = 3e9
WIDE = (1e3, 1e19)
EXACT = 1e-4
QUANTILES = {"lower90": 0.05, "lower50": 0.25, "median": 0.5, "upper50": 0.75, "upper90": 0.95}


def intercept(bits, terms=TERMS):
    """ln QiD of the printed law at one token, in groups of 128 with a 16-bit scale."""
    effective = bits + 16 / 128
    return (
        terms["log_k"]
        - terms["alpha"] * math.log(PARAMS / 1e9)
        - terms["beta"] * math.log(1e11)
        - terms["gamma"] * math.log(effective / 3)
    )


def log_raw(posterior, qid):
    """ln of the unbounded law value whose saturated QiD is `qid`."""
    headroom = draws.nearest_headroom(posterior, PARAMS)
    return math.log(-headroom * math.log(1 - qid / headroom))


def observed_at(posterior, bits, log_tokens, shift=0.0):
    """The QiD that the law shows at these tokens, times exp(shift), seen without noise."""
    headroom = draws.nearest_headroom(posterior, PARAMS)
    raw = math.exp(intercept(bits) + TERMS["beta"] * log_tokens + shift)
    return headroom * (1 - math.exp(-raw / headroom))


def log_quantiles(answer):
    return {name: math.log(float(answer[name].sel(quantity="tokens"))) for name in QUANTILES}


def assert_normal(answer, mean, sd, tolerance=0.01):
    """Quantiles within `tolerance` standard deviations of Normal(mean, sd)."""
    for name, value in log_quantiles(answer).items():
        assert value == pytest.approx(norm.ppf(QUANTILES[name], mean, sd), abs=tolerance * sd), name


def assert_density(answer, density_of, tolerance=0.01):
    """Quantiles agree with a density of ln D tabulated on 20001 points, within `tolerance` of its sd."""
    x = np.linspace(math.log(answer.attrs["prior_lower"]), math.log(answer.attrs["prior_upper"]), 20001)
    density = density_of(x)
    below = np.cumsum(density) / density.sum()
    mean = (density * x).sum() / density.sum()
    sd = math.sqrt((density * (x - mean) ** 2).sum() / density.sum())
    for name, value in log_quantiles(answer).items():
        assert value == pytest.approx(np.interp(QUANTILES[name], below, x), abs=tolerance * sd), name


@pytest.mark.parametrize(("tau", "qid"), [(0.3, 0.05), (0.05, 0.3), (0.9, 0.05)])
def test_one_exact_qid_gives_the_normal_of_the_inverted_law(tau, qid):
    posterior = make(tau=tau)
    mean, sd = (log_raw(posterior, qid) - intercept(4)) / TERMS["beta"], tau / TERMS["beta"]
    prior = (math.exp(mean - 6 * sd), math.exp(mean + 6 * sd))
    answer = level.level(posterior, PARAMS, [Observed(4, qid, EXACT * qid)], family="F0", tokens_prior=prior)
    assert_normal(answer, mean, sd)


def test_tokens_per_parameter_are_the_tokens_divided_by_the_parameters():
    answer = level.level(make(), PARAMS, [Observed(4, 0.05, 1e-3)], family="F0")
    for name in QUANTILES:
        tokens, ratio = answer[name].values
        assert ratio == pytest.approx(tokens / PARAMS)


@pytest.mark.parametrize("checkpoint", [0.0001, 0.3, 0.8])
@pytest.mark.parametrize("source", [0.0001, 0.4])
def test_several_qids_follow_generalised_least_squares(checkpoint, source):
    """Scatter is each QiD's own, the source's deviation that of a method, the checkpoint's is everyone's."""
    tau = {"calibrated": 0.2, "rtn": 0.35}
    posterior = make(tau=tau, spread={"checkpoint_level": checkpoint, "source_level": source})
    log_tokens, shifts = math.log(1e12), np.array([0.15, -0.2, 0.3])
    bits, texts, method = [4, 3, 3], [4, 3, "rtn-w3-g128"], np.array([0, 0, 1])
    seen = [observed_at(posterior, b, log_tokens, shift) for b, shift in zip(bits, shifts, strict=True)]
    qids = [Observed(text, qid, EXACT * qid) for text, qid in zip(texts, seen, strict=True)]
    answer = level.level(posterior, PARAMS, qids, family="F0", tokens_prior=WIDE)
    own = np.array([tau["calibrated"], tau["calibrated"], tau["rtn"]])
    covariance = np.diag(own**2) + checkpoint**2 + source**2 * (method[:, None] == method)
    weights = np.linalg.solve(covariance, np.ones(3))
    mean = log_tokens + (weights @ shifts) / weights.sum() / TERMS["beta"]
    assert_normal(answer, mean, 1 / math.sqrt(weights.sum()) / TERMS["beta"])


def test_a_shared_checkpoint_deviation_does_not_average_out_over_bits():
    """sd of two bits: sqrt(tau^2 / 2 + omega^2) / beta, not sqrt((tau^2 + omega^2) / 2) / beta."""
    tau, omega, log_tokens = 0.2, 0.5, math.log(1e12)
    posterior = make(tau=tau, spread={"checkpoint_level": omega})
    qids = [Observed(b, q, EXACT * q) for b in (3, 4) for q in [observed_at(posterior, b, log_tokens)]]
    answer = level.level(posterior, PARAMS, qids, family="F0", tokens_prior=WIDE)
    found = log_quantiles(answer)
    width = (found["upper90"] - found["lower90"]) / (2 * norm.ppf(0.95))
    assert width == pytest.approx(math.sqrt(tau**2 / 2 + omega**2) / TERMS["beta"], rel=0.01)


@pytest.mark.parametrize(("qid", "se"), [(0.03, 0.02), (-0.01, 0.02), (1.5, 0.4)])
def test_evaluation_error_is_integrated(qid, se):
    posterior, tau = make(tau=0.3), 0.3
    headroom = draws.nearest_headroom(posterior, PARAMS)
    answer = level.level(posterior, PARAMS, [Observed(4, qid, se)], family="F0", tokens_prior=(1e6, 1e18))
    v = np.linspace(-25, 12, 6001)
    seen = norm.pdf(qid, headroom * (1 - np.exp(-np.exp(v) / headroom)), se)

    def density(x):
        eta = intercept(4) + TERMS["beta"] * x
        return np.array([(seen * norm.pdf(v, e, tau)).sum() for e in eta[::20]]).repeat(20)[: x.size]

    assert_density(answer, density, tolerance=0.02)


@pytest.mark.parametrize("qid", [2.5, 50.0])
def test_a_diverged_qid_says_only_that_much(qid):
    tau, omega = 0.3, 0.4
    posterior = make(tau=tau, spread={"checkpoint_level": omega})
    answer = level.level(posterior, PARAMS, [Observed(2, qid, 0.1)], family="F0")
    point = log_raw(posterior, math.log(10))
    assert_density(
        answer, lambda x: norm.cdf((intercept(2) + TERMS["beta"] * x - point) / math.hypot(tau, omega)), tolerance=0.005
    )
    assert level.as_json(answer)["observations"][0]["censored"]
    assert "diverged" in level.as_text(answer)


def test_the_likelihood_is_averaged_over_draws_not_the_posterior():
    """Three draws; the third hardly expects these QiDs, so it must hardly count."""
    terms = {"log_k": [-2.0, -1.6, -4.0], "beta": [0.4, 0.3, 0.5], "gamma": [5.0, 5.5, 1.0]}
    terms = {name: np.array(values) for name, values in terms.items()}
    tau = np.array([0.2, 0.4, 0.25])
    posterior = make(size=3, terms=terms, tau=tau)
    qids = {3: 0.25, 4: 0.06}
    answer = level.level(posterior, PARAMS, [Observed(b, q, EXACT * q) for b, q in qids.items()], family="F0")

    def per_draw(x):
        out = np.ones((3, x.size))
        for number in range(3):
            own = TERMS | {name: values[number] for name, values in terms.items()}
            for bits, qid in qids.items():
                mean = intercept(bits, own) + own["beta"] * x
                out[number] *= norm.pdf(log_raw(posterior, qid), mean, tau[number])
        return out

    assert_density(answer, lambda x: per_draw(x).sum(axis=0))
    x = np.linspace(math.log(1e9), math.log(1e16), 20001)
    evidence = per_draw(x).sum(axis=1)
    assert float(answer["effective_draws"]) == pytest.approx(evidence.sum() ** 2 / (evidence**2).sum(), rel=0.01)
    with pytest.raises(AssertionError):
        assert_density(answer, lambda x: (per_draw(x) / per_draw(x).sum(axis=1, keepdims=True)).sum(axis=0))


def test_a_new_family_is_as_wide_as_the_spread_between_families():
    """All four terms deviate by sd; at the pivot N and D and at 3 bits only log_k's deviation shows."""
    tau, sd, size = 0.2, 0.3, 1000
    posterior = make(size=size, tau=tau, sd=np.full(size, sd))
    params, log_tokens = 1e9, math.log(1e11)
    text = "gptq-w3-g128"
    qid = math.exp(-2.0 - 5.0 * math.log(3.125 / 3))
    fitted = level.level(posterior, params, [Observed(text, qid, EXACT)], family="F0", tokens_prior=WIDE)
    new = level.level(posterior, params, [Observed(text, qid, EXACT)], tokens_prior=WIDE)
    assert new.attrs["family"] == "new"

    def width(answer):
        found = log_quantiles(answer)
        return found["upper50"] - found["lower50"]

    assert log_quantiles(new)["median"] == pytest.approx(log_tokens, abs=0.4)
    # beta itself varies by 0.3 about 0.4, which widens further
    assert width(new) > 1.15 * math.hypot(tau, sd) / tau * width(fitted)


def test_the_prior_shows_where_the_data_are_silent():
    """A QiD with a standard error of 10 nats: the posterior is the log-uniform prior."""
    answer = level.level(make(), PARAMS, [Observed(4, 0.1, 10.0)], family="F0", tokens_prior=(1e9, 1e13))
    for name, value in log_quantiles(answer).items():
        assert value == pytest.approx(math.log(1e9) + QUANTILES[name] * math.log(1e4), abs=0.02)
    assert float(answer["mass_at_lower_edge"]) == pytest.approx(0.01, abs=2e-4)
    assert float(answer["mass_at_upper_edge"]) == pytest.approx(0.01, abs=2e-4)


def test_mass_piled_up_at_an_edge_is_told():
    answer = level.level(make(tau=0.1), PARAMS, [Observed(4, 2.0, 0.01)], family="F0", tokens_prior=(1e9, 1e11))
    assert float(answer["mass_at_upper_edge"]) > 0.3
    assert float(answer["mass_at_lower_edge"]) < 1e-6
    assert "depends on --tokens-prior" in level.as_text(answer)
    assert "depends on --tokens-prior" not in level.as_text(level.level(make(), PARAMS, [Observed(4, 0.05, 1e-3)]))


def test_the_density_integrates_to_one_and_its_order_and_seed_do_not_matter():
    qids = [Observed(4, 0.05, 0.002), Observed("rtn-w3-g128", 0.4, 0.01), Observed(3, 0.2, 0.01)]
    numbers = {"size": 50, "tau": 0.3, "sd": np.full(50, 0.1),
               "spread": {"checkpoint_level": np.full(50, 0.3), "source_level": np.full(50, 0.2)}}  # fmt: skip
    answer = level.level(make(**numbers), PARAMS, qids)
    assert np.trapezoid(answer["density"], np.log(answer["tokens"])) == pytest.approx(1)
    again = level.level(make(**numbers), PARAMS, qids)
    assert answer.identical(again)
    turned = level.level(make(**numbers), PARAMS, qids[::-1])
    np.testing.assert_allclose(turned["density"], answer["density"], rtol=1e-6, atol=1e-12)


def test_the_verdict_says_when_the_interval_leaves_the_fitted_tokens():
    sharp = make(tau=0.02)
    cells = sharp.cells
    middle = math.exp(float(np.log(cells["train_tokens"].where(cells["family"] == "F0", drop=True)).mean()))
    inside = Observed(3, observed_at(sharp, 3, math.log(middle)), 1e-4)
    assert level.level(sharp, PARAMS, [inside], family="F0").attrs["verdict"] == "ok"
    beyond = Observed(3, observed_at(sharp, 3, math.log(middle) + 5), 1e-4)
    assert level.level(sharp, PARAMS, [beyond], family="F0").attrs["verdict"] == "extrapolation"
    assert level.level(sharp, 3e11, [inside], family="F0").attrs["verdict"] == "extrapolation"
    failed = level.level(make(checks={"rhat": False, "ess_bulk": True}), PARAMS, [inside])
    assert failed.attrs["verdict"] == "checks failed"
    assert level.as_text(failed).startswith("Checks failed: rhat.")
    idle = make(size=2, terms={"beta": np.array([-0.6, 1.4])}, beta_prior=1.0)
    assert level.level(idle, PARAMS, [inside]).attrs["verdict"] == "not identified"


def test_the_object_has_the_keys_of_the_contract_and_no_nan():
    answer = level.as_json(level.level(make(), PARAMS, [Observed(4, 0.05, 1e-3)]))
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert {"law", "model", "checks", "verdict", "posterior", "interval", "assumptions", "family", "params", "method",
            "observations", "tokens", "tokens_per_param", "prior", "training_level"} <= set(answer)  # fmt: skip
    assert [row["bits"] for row in answer["training_level"]] == [2, 3, 4]
    assert {*QUANTILES, "p_gt_0.2", "p_gt_0.3", "p_gt_0.4", "p_gt_0.5", "observed"} <= set(answer["training_level"][0])
    assert set(answer["prior"]) == {"lower", "upper", "mass_at_lower_edge", "mass_at_upper_edge"}
    assert set(answer["tokens"]) == set(QUANTILES)
    assert set(answer["posterior"]) == {"path", "sha256", "origin"}


def test_the_text_fits_a_terminal_of_80_columns():
    qids = [Observed(4, 0.05, 1e-3), Observed("rtn-w3-g128", 99.0, 10), Observed(2.5, 0.1234567, 0.001234)]
    text = level.as_text(level.level(make(), 6.98e9, qids, family="F0", tokens_prior=WIDE))
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("change", "why"),
    [({"qids": []}, "No QiD"), ({"params": math.nan}, "params"), ({"params": -7e9}, "params"),
     ({"qids": [Observed(4, 0.1, 0.1), Observed("gptq-w4-g128", 0.2, 0.1)]}, "twice"),
     ({"qids": [Observed(math.nan, 0.1, 0.1)]}, "bits"), ({"qids": [Observed(40, 0.1, 0.1)]}, "bits"),
     ({"qids": [Observed("none", 0.1, 0.1)]}, "baseline"), ({"qids": [Observed("w4", 0.1, 0.1)]}, "not a recipe"),
     ({"qids": [Observed(4, 0.1, -0.1)]}, "error"), ({"method": "magic"}, "quantizer"),
     ({"family": "FF0"}, "did you mean F0"), ({"tokens_prior": (1e16, 1e9)}, "tokens-prior"),
     ({"lr_phase": "warm"}, "lr-phase")],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(change, why):
    asked = {"params": PARAMS, "qids": [Observed(4, 0.05, 1e-3)]} | change
    with pytest.raises(BadInput, match=why):
        level.level(make(), **asked)


@pytest.fixture
def cli(tmp_path):
    from bayesqid.cli.level import level as command

    files.write_netcdf(tree(), tmp_path / "known.nc")
    app = typer.Typer()
    app.command()(command)
    return lambda *words: CliRunner().invoke(app, [str(tmp_path / "known.nc"), *words])


def test_the_command_prints_the_answer_and_names_the_posterior(cli):
    words = ("--params", "3e9", "--family", "f0", "--qid", "4=0.05:0.001", "--qid", "rtn-w3-g128=0.4:0.01")
    done = cli(*words, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    want = level.level(make(), 3e9, [Observed(4, 0.05, 0.001), Observed("rtn-w3-g128", 0.4, 0.01)], family="F0")
    assert found["tokens"] == pytest.approx(level.as_json(want)["tokens"])
    assert found["family"] == "F0"
    assert "known.nc (file)" in done.stderr
    assert cli(*words).stdout.strip() == level.as_text(want)


def test_the_command_reads_a_measurement_file(cli, tmp_path):
    """A file of the cells of one checkpoint; which one of several it is, test_observed asks."""
    cells = sources.read_cells("tiny")
    own = cells.isel(cell=np.flatnonzero(cells["model"].to_numpy() == "tiny-llama-54k")[:5])
    files.write_netcdf(own, tmp_path / "one.nc")
    words = ("--measurements", str(tmp_path / "one.nc"), "--tokens-prior", "1e3:1e16")
    done = cli(*words, "--json")
    assert done.exit_code == 0
    assert "tiny-llama was not fitted" in done.stderr
    found = json.loads(done.stdout)
    qids, known = observed.from_cells(own)
    assert found["params"] == known["params"]
    assert [row["qid"] for row in found["observations"]] == [q.qid for q in qids]
    assert found["assumptions"]["lr_phase"] == "constant"
    assert found["assumptions"]["headroom"].endswith("as measured")
    want = level.level(make(), known["params"], qids, tokens_prior=(1e3, 1e16))
    assert found["tokens"] == pytest.approx(level.as_json(want)["tokens"])
    annealed = json.loads(cli(*words, "--json", "--lr-phase", "annealed", "--family", "F1").stdout)
    assert (annealed["assumptions"]["lr_phase"], annealed["family"]) == ("annealed", "F1")
    assert max(map(len, cli(*words).stdout.splitlines())) <= 80


def test_a_checkpoint_that_was_fitted_is_told_to_count_twice():
    target = draws.Target("F0", PARAMS, 1.0, 4.125, "gptq", checkpoint="one", bits=4.0)
    answer = level.level(make(), PARAMS, [Observed(4, 0.05, 1e-3, target=target)], family="F0")
    assert "count twice" in level.as_text(answer)
    assert "count twice" not in level.as_text(level.level(make(), PARAMS, [Observed(4, 0.05, 1e-3)], family="F0"))


def test_a_diverged_cell_without_a_value_leaves_no_nan_in_the_object():
    answer = level.as_json(level.level(make(), PARAMS, [Observed(2, math.nan, 0.1, True)], family="F0"))
    assert json.dumps(answer, allow_nan=False)
    assert answer["observations"][0]["qid"] is None
    assert answer["training_level"][0]["p_gt_0.5"] == 1


@pytest.mark.parametrize(
    "words",
    [("--qid", "4=0.05:0.001"), ("--params", "3e9"), ("--params", "3e9", "--model-name", "x", "--qid", "4=0.05:0.001"),
     ("--params", "3e9", "--family", "F0", "--new-family", "--qid", "4=0.05:0.001")],
)  # fmt: skip
def test_the_command_refuses_half_a_question(cli, words):
    assert isinstance(cli(*words).exception, BadInput)
