"""Truth here is the scores' own integrals, closed forms of the normal law, and measurements simulated by hand."""

import json
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import typer
import xarray as xr
from scipy import stats
from typer.testing import CliRunner

import posteriors
from bayesqid import files
from bayesqid.answers import draws, score
from bayesqid.errors import BadInput

KEYS = {"law", "model", "verdict", "checks", "interval", "posterior", "n", "n_ln", "n_checkpoints", "n_dropped",
        "coverage", "median_abs_ln_error", "crps_ln", "bias", "baselines", "by_family", "by_method", "by_bits",
        "by_generation", "diverged", "new_families", "new_methods", "unknown_methods"}  # fmt: skip
# nothing may change what it returns
fake = cache(posteriors.posterior)
# a fitted family at sizes in between, and one that was not fitted
SHOWN = {"crossed": [(2e9, 6e11), (9e9, 1e12)], "unseen": [(3e9, 2e12)]}


def table(families=None, **changed) -> xr.Dataset:
    """Cells that nobody fitted, on the law's curve; `changed` replaces whole columns."""
    made = posteriors.cells(SHOWN if families is None else families)
    return change(made.assign_attrs(excluded="{}"), **changed)


def change(cells: xr.Dataset, **columns) -> xr.Dataset:
    for name, values in columns.items():
        full = np.full(cells.sizes["cell"], values, dtype=cells[name].dtype) if np.isscalar(values) else values
        cells = cells.assign_coords({name: ("cell", full)}) if name in cells.coords else cells.assign(
            {name: ("cell", full)})  # fmt: skip
    return cells


def by_hand(ensemble, y):
    """Integral of (F - 1{x >= y})^2 over the steps of F, for one row."""
    edges = np.sort(np.append(ensemble, y))
    middle = 0.5 * (edges[1:] + edges[:-1])
    below = (ensemble[None, :] <= middle[:, None]).mean(axis=1)
    return float((((below - (middle >= y)) ** 2) * np.diff(edges)).sum())


def test_crps_is_the_integral_of_the_squared_difference_of_distribution_functions():
    rng = np.random.default_rng(0)
    ensemble, y = rng.normal(size=(20, 37)), 2 * rng.normal(size=20)
    want = [by_hand(row, value) for row, value in zip(ensemble, y, strict=True)]
    np.testing.assert_allclose(score.crps(ensemble, y), want, rtol=1e-10)


def test_crps_of_many_draws_is_the_closed_form_of_the_normal_law():
    ensemble = stats.norm(1.0, 2.0).ppf((np.arange(4000) + 0.5) / 4000)[None]
    z = (2.5 - 1.0) / 2.0
    want = 2.0 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert score.crps(ensemble, np.array([2.5]))[0] == pytest.approx(want, rel=1e-3)


def test_crps_of_one_draw_is_the_absolute_error():
    np.testing.assert_allclose(score.crps(np.array([[1.0], [4.0]]), np.array([3.0, 3.5])), [2.0, 0.5])


def test_pit_of_a_fair_draw_is_uniform_on_its_ranks_and_ties_count_half():
    ensemble = np.tile(np.arange(9.0), (4, 1))
    np.testing.assert_allclose(score.pit(ensemble, np.array([-1.0, 3.5, 4.0, 99.0])), [0.05, 0.45, 0.5, 0.95])


def simulated(posterior: draws.Posterior, count: int, seed: int) -> xr.Dataset:
    """Measurements of `count` new families, each with its own draw of everything, by the model written out."""
    rng = np.random.default_rng(seed)
    n, d, p = 10 ** rng.uniform(8.5, 11, count), 10 ** rng.uniform(11.5, 13, count), rng.uniform(3.4, 4.5, count)
    cells = posteriors.cells({f"f{i}": [(n[i], d[i])] for i in range(count)})
    cells = cells.isel(cell=(cells["method"].to_numpy() == "gptq") & (cells["bits"].to_numpy() == 3))
    sample, center = posterior.sample, posterior.tree["constant_data"]
    pick = rng.integers(posterior.size, size=count)
    x_n, x_d = np.log(n / 1e9), np.log(d / 1e11)

    def of(name: str, **level: str) -> np.ndarray:
        return sample[name].sel(level).to_numpy()[pick]

    def term(name: str) -> tuple[np.ndarray, np.ndarray]:
        return of("mu", term=name), of("sd", term=name) * rng.normal(size=count)

    (k, k_own), (a, a_own), (b, b_own), (g, g_own) = map(term, ("log_k", "alpha", "beta", "gamma"))
    lam = of("lam")
    x_p = ((p / 3) ** lam - 1) / lam
    # slopes deviate about the median centre of the fitted families
    eta = k + k_own - a * x_n - a_own * (x_n - np.median(center["center_x_N"]))
    eta += b * x_d + b_own * (x_d - np.median(center["center_x_D"])) - (g + g_own) * x_p
    eta += of("generation_level", generation="calibrated") - of("generation_slope", generation="calibrated") * x_p
    eta += of("method_level", quantizer="gptq") - of("method_slope", quantizer="gptq") * x_p
    for effect in ("checkpoint_level", "source_level"):
        eta += of("spread", effect=effect) * rng.normal(size=count)
    eta += of("tau", generation="calibrated") * rng.normal(size=count)
    se = np.full(count, 0.004)
    qid = 8.5 * (1 - np.exp(-np.exp(eta) / 8.5)) + se * rng.normal(size=count)
    sources = np.array([f"s{i}" for i in range(count)], dtype=object)
    joined = np.array([f"{s} | gptq" for s in sources], dtype=object)
    return change(cells, qid=qid, qid_se=se, effective_bits=p, source=sources, source_method=joined,
                  censored=np.zeros(count, dtype=bool)).assign_attrs(excluded="{}")  # fmt: skip


def test_intervals_hold_the_share_they_promise_of_measurements_that_follow_the_posterior():
    posterior = fake(size=400)
    coverage = score.as_json(score.score(posterior, simulated(posterior, 300, 5)))["coverage"]
    for mass, share in coverage.items():
        assert share == pytest.approx(float(mass), abs=4 * np.sqrt(float(mass) * (1 - float(mass)) / 300)), mass


def test_a_posterior_that_is_off_by_a_factor_is_told_so():
    posterior, shifted = fake(size=400), fake(size=400, log_k=-0.5)
    data = simulated(posterior, 150, 6)
    good, bad = (score.as_json(score.score(one, data)) for one in (posterior, shifted))
    assert bad["coverage"]["0.9"] < good["coverage"]["0.9"] - 0.2
    assert bad["bias"] - good["bias"] == pytest.approx(1.5, abs=0.2), "above zero means predicted too high"
    assert bad["crps_ln"] > good["crps_ln"]


def test_rows_of_an_unknown_family_share_one_draw_of_the_population():
    posterior = fake(size=300)
    wider = score.with_families(posterior, ["a", "crossed", "b", "a"], np.random.default_rng(0))
    assert wider.families == [*posterior.families, "a", "b"]
    terms = wider.sample["theta"]
    xr.testing.assert_equal(terms.sel(family="crossed", drop=True), posterior.sample["theta"].sel(
        family="crossed", drop=True))  # fmt: skip
    a, b = (terms.sel(family=name, term="alpha").to_numpy() for name in "ab")
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.9, "two families are two draws"
    assert score.with_families(posterior, ["crossed"], np.random.default_rng(0)) is posterior


def fitted_rows(**changed) -> xr.Dataset:
    """Measurements of fitted checkpoints at bits that were not fitted."""
    cells = posteriors.cells().assign_attrs(excluded="{}")
    kept = cells.isel(cell=(cells["method"].to_numpy() == "gptq") & (cells["bits"].to_numpy() == 4))
    return change(kept, effective_bits=4.5, bits=4.5, **changed)


@pytest.mark.parametrize(("effect", "by", "level"), [
    ("checkpoint_level", "checkpoint", "crossed-7e+09@3e+12"),
    ("source_level", "source_method", "arXiv 0000.00000, <made | up> & known | gptq")])  # fmt: skip
def test_a_fitted_deviation_is_used_where_it_applies_and_nowhere_else(effect, by, level):
    posterior, cells = posteriors.posterior(), fitted_rows(qid_se=1e-6)
    where = cells[by].to_numpy() == level
    assert where.any()
    assert level in posterior.sample[by].to_numpy()
    before = score.frame(posterior, cells)["median"].to_numpy()
    posterior.sample[effect].loc[{by: level}] += 0.5
    after = score.frame(posterior, cells)["median"].to_numpy()
    # saturation takes a little of it
    np.testing.assert_allclose(np.log(after / before)[where], 0.5, atol=0.05)
    np.testing.assert_allclose(after[~where], before[~where])


def test_a_measurement_near_zero_counts_for_coverage_and_not_on_the_log_scale():
    cells = fitted_rows(qid_se=0.5)
    cells = change(cells, qid=np.where(np.arange(cells.sizes["cell"]) % 2, -0.02, 0.01))
    made = score.frame(fake(), cells)
    assert np.isfinite(made["pit"]).all()
    assert np.isnan(made["ln_error"]).all()
    assert np.isnan(made["crps"]).all()
    said = score.as_json(score.score(fake(), cells))
    assert (said["n"], said["n_ln"], said["median_abs_ln_error"]) == (cells.sizes["cell"], 0, None)
    assert said["coverage"]["0.95"] == 1.0, "the row's own error is in the interval"


def test_quantiles_rise_and_the_median_is_the_50_percent_point():
    made = score.frame(fake(), table())
    names = ["lower95", "lower90", "lower80", "lower50", "median", "upper50", "upper80", "upper90", "upper95"]
    assert (np.diff(np.stack([made[name].to_numpy() for name in names]), axis=0) > 0).all()
    inside = (made["qid"] >= made["lower80"]) & (made["qid"] <= made["upper80"])
    depth = np.abs(made["pit"].to_numpy() - 0.5)
    # at the very edge the quantile's interpolation and the rank may differ by one of 200 draws
    clear = np.abs(depth - 0.4) > 0.01
    np.testing.assert_array_equal(inside.to_numpy()[clear], (depth <= 0.4)[clear])
    assert {True, False} == set(inside.to_numpy()[clear].tolist())


def test_the_same_seed_gives_the_same_numbers():
    posterior = fake()
    xr.testing.assert_identical(score.score(posterior, table(), 3), score.score(posterior, table(), 3))
    assert not score.frame(posterior, table(), 3).equals(score.frame(posterior, table(), 4))


def test_fitted_rows_are_dropped_and_counted_and_others_of_the_same_model_are_not():
    posterior = fake()
    fitted = posterior.cells.assign_attrs(excluded="{}")
    measured_again = change(fitted.isel(cell=slice(0, 3)), qid=fitted["qid"].to_numpy()[:3] * 1.01)
    both = xr.concat([fitted, measured_again], "cell", combine_attrs="override")
    said = score.as_json(score.score(posterior, both))
    diverged = int(both["censored"].sum())
    assert said["n_dropped"]["fitted already"] == fitted.sizes["cell"]
    assert said["n"] + said["diverged"]["n"] == 3
    assert sum(said["n_dropped"].values()) + said["n"] == both.sizes["cell"], "every row is told"
    assert diverged
    with pytest.raises(BadInput, match="fitted already"):
        score.score(posterior, fitted)


@pytest.mark.parametrize(("column", "value", "reason"), [
    ("train_tokens", np.nan, "training tokens not disclosed"), ("n_params_nonembedding", np.nan, "parameter count"),
    ("effective_bits", np.nan, "bits unknown"), ("headroom", -0.1, "guessing"), ("qid_se", 0.0, "no standard error"),
    ("qid", np.nan, "not a number"), ("censored", True, "ln 10")])  # fmt: skip
def test_a_row_that_cannot_be_compared_is_dropped_with_its_reason(column, value, reason):
    cells = table()
    values = cells[column].to_numpy().copy()
    values[4] = value
    whole, lacking = (score.as_json(score.score(fake(), c)) for c in (cells, change(
        cells, **{column: values})))  # fmt: skip
    (new,) = set(lacking["n_dropped"]) - set(whole["n_dropped"]) or {"diverged: QiD above ln 10"}
    assert reason in new
    assert lacking["n"] == whole["n"] - 1
    assert sum(lacking["n_dropped"].values()) + lacking["n"] == cells.sizes["cell"]


def test_rows_that_the_importer_left_out_are_counted_with_the_rest():
    cells = table().assign_attrs(excluded=json.dumps({"instruction-tuned model": {"a": 2, "b": 3}}))
    assert score.as_json(score.score(fake(), cells))["n_dropped"]["instruction-tuned model"] == 5


def test_divergence_is_scored_as_an_event():
    cells = table(qid=3.0, censored=True)
    mixed = xr.concat([cells.isel(cell=[0]), table().isel(cell=slice(1, None))], "cell", combine_attrs="override")
    said = score.as_json(score.score(fake(log_k=-5.0), mixed))["diverged"]
    assert said["n"] >= 1
    assert said["expected"] < 0.5, "such a posterior expects none"


def test_the_answer_keeps_its_contract():
    cells = table(quantizer=np.where(np.arange(18) % 3 == 0, "awq", np.where(np.arange(18) % 3 == 1, "magic", "gptq")))
    said = json.loads(json.dumps(score.as_json(score.score(fake(), cells)), allow_nan=False))
    assert set(said) == KEYS
    assert said["posterior"] == {"path": "made/posterior.nc", "sha256": "0" * 64, "origin": "file"}
    assert said["interval"] == "eti"
    assert set(said["coverage"]) == {"0.5", "0.8", "0.9", "0.95"}
    for group in ("by_family", "by_method", "by_bits", "by_generation"):
        assert sum(one["n"] for one in said[group].values()) == said["n"], group
    assert set(said["by_bits"]) <= {"2", "3", "4"}
    assert set(said["new_families"]) == {"unseen"}
    assert (set(said["new_methods"]), set(said["unknown_methods"])) == ({"awq"}, {"magic"})
    assert set(said["baselines"]) == {"ouyang", "kumar", "ols", "hyper_mean"}
    for name, one in said["baselines"].items():
        assert ("coverage" in one) == (name in ("ols", "hyper_mean")), name
        assert one["crps_ln"] > 0


def test_crps_of_a_point_law_is_its_mean_absolute_error():
    scored = score.score(fake(), table())
    errors = scored["baseline_ln_error"].sel(baseline="kumar")
    assert score.as_json(scored)["baselines"]["kumar"]["crps_ln"] == pytest.approx(float(np.abs(errors).mean()))


def test_the_verdict_says_when_rows_leave_the_range_of_the_fit():
    inside = {"crossed": [(2e9, 6e11)]}
    beyond = {"crossed": [(2e9, 6e11), (2e11, 6e11)]}
    found = [score.score(fake(), table(one)).attrs["verdict"] for one in (inside, beyond)]
    assert found == ["ok", "extrapolation"]


def test_the_text_fits_a_terminal_and_puts_failed_checks_first():
    posterior = posteriors.posterior(checks={"rhat": False})
    cells = table(quantizer="a-quantizer-with-a-name-that-is-far-too-long", checkpoint="a checkpoint")
    text = score.as_text(score.score(posterior, cells))
    assert text.startswith("Checks failed: rhat.")
    assert max(map(len, text.splitlines())) <= 80
    assert "nan" not in text


HEADER = "family,model,method,bits,qid,n_params_nonembedding,train_tokens\n"
ROWS = "mine,m1,gptq,3,0.2,1e9,1e12\nmine,m1-instruct,gptq,4,0.05,1e9,1e12\nmine,m2,gptq,4,0.04,1e9,\n"


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return files.write_netcdf(posteriors.tree(), tmp_path_factory.mktemp("known") / "known.nc").read_bytes()


@pytest.fixture
def cli(known, tmp_path, monkeypatch):
    from bayesqid.cli.score import score as command

    (tmp_path / "known.nc").write_bytes(known)
    (tmp_path / "t.csv").write_text(HEADER + ROWS)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(command)
    return lambda *words: CliRunner().invoke(app, [*map(str, words)])


def test_the_command_takes_a_table_alone_or_after_a_posterior(cli, tmp_path):
    done = cli("known.nc", "t.csv", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["n"] == 1
    assert found["n_dropped"] == {"instruction-tuned model": 1, "training tokens not disclosed": 1}
    assert "known.nc (file)" in done.stderr
    (tmp_path / "known.nc").rename(tmp_path / "posterior.nc")
    alone = cli("t.csv", "--json")
    assert json.loads(alone.stdout) == found | {"posterior": found["posterior"] | {"path": "posterior.nc"}}
    assert cli("t.csv").stdout.splitlines()[0].startswith("Verdict:")


def test_all_scores_what_inference_leaves_out_but_not_what_nobody_can_predict(cli):
    found = json.loads(cli("known.nc", "t.csv", "--all", "--json").stdout)
    assert (found["n"], found["n_dropped"]) == (2, {"training tokens not disclosed": 1})


@pytest.mark.parametrize("words", [("known.nc", "t.csv", "t.csv"), ("known.nc", "nowhere.csv"), ("no.nc", "t.csv"),
                                   ("known.nc", "tiny", "--all")])  # fmt: skip
def test_the_command_refuses_what_it_cannot_read(cli, words):
    assert isinstance(cli(*words).exception, BadInput)


def test_scoring_loads_neither_a_sampler_nor_torch():
    code = "import sys, bayesqid.answers.score; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} & {"torch", "pymc", "arviz", "numba"} == set()
