"""Comparison of laws against brute force, simulation and ArviZ."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.special import logsumexp
from tqdm import tqdm

from bayesqid import laws
from bayesqid.errors import BadInput
from bayesqid.inference import compare, evidence, hyper, problem, sample, scores, simulate, splits


def small(name: str) -> laws.Law:
    """A law with one covariate and one effect: two spreads at most, so that quadrature is exact."""
    law = laws.get(name)
    return replace(law, covariates=tuple(c for c in law.covariates if c.name == "c4"),
                   effects=tuple(e for e in law.effects if e.name == "checkpoint_level"))  # fmt: skip


def fill(cells: xr.Dataset, v: np.ndarray) -> xr.Dataset:
    """Cells whose ln QiD is v, known all but exactly and far from any ceiling: Gaussian given the spreads."""
    cells = cells.assign_coords(headroom=cells["headroom"] * 0 + 1e6)
    return cells.assign(qid=("cell", np.exp(v)), qid_se=("cell", 1e-4 * np.exp(v)), censored=("cell", v > 1e9))


@pytest.fixture(scope="module")
def gaussian() -> evidence.Candidate:
    """36 cells of one generation, 6 checkpoints of 3 families, from known coefficients of the small law."""
    cells = simulate.grid(families=3, tokens=2, sizes=1)
    cells = cells.isel(cell=np.repeat(np.flatnonzero(cells["generation"].to_numpy() == "calibrated"), 2))
    law = small("ouyang")
    p = problem.build(fill(cells, np.zeros(cells.sizes["cell"])), law, "pooled")
    rng = np.random.default_rng(4)
    b, _ = hyper.draw_prior(p, 1, rng)
    b = b[0].copy()
    b[p.block("checkpoint_level").where] = 0.3 * rng.normal(size=6)
    v = (p.weights(0.0) * b[p.index]).sum(axis=1) + 0.2 * rng.normal(size=p.index.shape[0])
    cells = fill(cells, v)
    return evidence.Candidate("ouyang", law, "pooled", cells, problem.build(cells, law, "pooled"), "gaussian")


def exact(candidate: evidence.Candidate, mask: np.ndarray) -> float:
    """Log evidence of ln QiD by closed form given spread and scatter, and by quadrature over these two."""
    p = candidate.problem
    v = np.log(candidate.cells["qid"].to_numpy())[mask]
    design = np.zeros((p.index.shape[0], p.size))
    np.add.at(design, (np.arange(len(design))[:, None], p.index), p.weights(0.0))
    design = design[mask]
    grid = np.linspace(-4.5, 4.5, 61)
    phi = np.array(np.meshgrid(grid, grid)).reshape(2, -1).T
    natural = hyper.unpack(p, phi)
    wide = design * hyper.coefficient_sd(p, natural.sd)[:, None, :]
    noise = natural.tau[:, p.generation_of][:, mask] ** 2
    factor = np.linalg.cholesky(wide @ wide.transpose(0, 2, 1) + noise[:, :, None] * np.eye(v.size))
    z = np.linalg.solve(factor, np.broadcast_to((v - design @ prior_mean(p))[:, None], (len(phi), v.size, 1)))[..., 0]
    log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    logs = -0.5 * (z**2).sum(axis=1) - log_det + np.array([hyper.log_prior(one) for one in phi])
    scale = -0.5 * v.size * np.log(2 * np.pi) + 2 * np.log(grid[1] - grid[0])
    # the density of QiD is that of ln QiD over QiD
    return float(logsumexp(logs) + scale - v.sum())


def prior_mean(p: problem.Problem) -> np.ndarray:
    return np.concatenate([np.full(block.count, block.mean) for block in p.blocks])


def test_the_score_of_a_fold_is_the_joint_density_of_its_cells_given_the_others(gaussian):
    folds = splits.folds_of(gaussian.cells, "family", {})
    found, error = compare.score(gaussian, folds, 1, evidence.Ledger(None, {}), tqdm(total=0, disable=True))
    for fold, lpd, own in zip(folds, found["lpd"], found["lpd_error"], strict=True):
        truth = exact(gaussian, fold.train | fold.held) - exact(gaussian, fold.train)
        assert own < 0.15
        assert abs(lpd - truth) < 4 * own
    # the error of what all folds share enters their sum once per fold
    assert error > np.sqrt(np.sum(np.square(found["lpd_error"]))) * 1.01


def test_a_fold_scored_from_a_model_rebuilt_without_its_cells_would_be_another_model(gaussian):
    fold = splits.folds_of(gaussian.cells, "family", {})[0]
    kept = problem.part(gaussian.problem, fold.train)
    rebuilt = problem.build(gaussian.cells.isel(cell=np.flatnonzero(fold.train)), gaussian.law, "pooled")
    assert kept.size == gaussian.problem.size == rebuilt.size + 2


def test_psis_leave_one_out_and_refits_agree_with_exact_leave_one_out(gaussian):
    tree = sample.sample(gaussian.cells, gaussian.law, "pooled", "laplace", 3, 1, compare.DRAWS)
    found, _ = compare.loo(gaussian, tree, 3, evidence.Ledger(None, {}), tqdm(total=0, disable=True))
    everything = np.arange(gaussian.cells.sizes["cell"])
    whole = exact(gaussian, everything >= 0)
    good = np.flatnonzero((found["pareto_k"] < 0.5) & ~found["refitted"])
    assert good.size >= 18
    gap = np.array([found["lpd"][i] - whole + exact(gaussian, everything != i) for i in good[::4]])
    assert np.abs(gap).max() < 0.1
    worst = int(np.argmin(found["lpd"]))
    refit = compare.refit(gaussian, worst, 3, evidence.Ledger(None, {}))
    assert abs(refit["lpd"] - whole + exact(gaussian, everything != worst)) < 4 * refit["lpd_error"]
    assert refit["lpd_error"] < 0.2


@pytest.fixture(scope="module")
def from_ouyang() -> xr.Dataset:
    """Cells of Ouyang's law: two families, three widths."""
    cells = simulate.grid(families=2, tokens=2, sizes=2)
    p = problem.build(cells, small("ouyang"), "pooled")
    b, rng = prior_mean(p), np.random.default_rng(6)
    phi = np.full(hyper.start(p).size, -1.0)
    return simulate.draw(p, b, phi, rng)


@pytest.fixture(scope="module")
def compared(from_ouyang, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    wanted = [small("ouyang"), small("kumar")]
    found, trees = compare.compare(from_ouyang, wanted, ["pooled"], ["width"], seed=2, folder=folder)
    return found, trees, folder


def test_data_of_ouyangs_law_prefer_it_to_kumars_at_a_bit_width_left_out(compared):
    found, _, _ = compared
    width = found.sel(split="width")
    assert float(width["difference"].sel(candidate="ouyang")) == 0
    lead = -float(width["difference"].sel(candidate="kumar"))
    assert lead > 5
    assert lead > 4 * float(width["difference_error"].sel(candidate="kumar"))
    assert float(width["weight"].sel(candidate="ouyang")) > 0.6


def test_totals_differences_and_errors_are_those_of_the_folds(compared):
    found, _, _ = compared
    lpd = found["lpd"].to_numpy()[:, found["fold_split"].to_numpy() == "width"]
    assert lpd.shape == (2, 3)
    width = found.sel(split="width")
    np.testing.assert_allclose(width["total"], lpd.sum(axis=1))
    gap = lpd[1] - lpd[0]
    assert float(width["difference"].sel(candidate="kumar")) == pytest.approx(gap.sum())
    assert float(width["difference_se"].sel(candidate="kumar")) == pytest.approx(np.sqrt(3) * np.std(gap, ddof=1))


def test_a_second_run_fits_nothing_and_finds_the_same(compared, from_ouyang, monkeypatch):
    found, _, folder = compared

    def never(*_, **__):
        raise AssertionError("fitted again")

    with open(folder / evidence.LEDGER, "a") as stream:
        stream.write('\n{"key": "torn')
    monkeypatch.setattr(compare.laplace, "fit", never)
    wanted = [small("ouyang"), small("kumar")]
    again, trees = compare.compare(from_ouyang, wanted, ["pooled"], ["width"], seed=2, folder=folder)
    xr.testing.assert_identical(again, found)
    assert sorted(trees) == ["kumar", "ouyang"]


def test_other_data_are_fitted_again(compared, from_ouyang, monkeypatch):
    _, _, folder = compared

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare.laplace, "fit", stop)
    other = from_ouyang.assign(qid=from_ouyang["qid"] * 1.01)
    with pytest.raises(KeyboardInterrupt):
        compare.compare(other, [small("ouyang")], ["pooled"], ["width"], seed=2, folder=folder)


def test_a_torn_line_does_not_swallow_the_next_fit(tmp_path):
    (tmp_path / evidence.LEDGER).write_text('{"key": "a", "ess": 1.0}\n{"key": "to')
    evidence.keep(evidence.read_ledger(tmp_path), "b", {"ess": 2.0})
    assert evidence.read_ledger(tmp_path).known == {"a": {"key": "a", "ess": 1.0}, "b": {"key": "b", "ess": 2.0}}


def test_text_fits_the_terminal_and_json_has_no_nan(compared):
    found, _, _ = compared
    text = scores.as_text(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "Fewer than 5 folds" in text
    assert splits.SPLITS["width"].question in " ".join(text.split())
    out = json.loads(json.dumps(scores.as_json(found), allow_nan=False))
    assert out["splits"]["width"]["candidates"]["ouyang"]["difference"] == 0
    assert [row["fold"] for row in out["splits"]["width"]["scores"]] == ["2 bits", "3 bits", "4 bits"]


def test_pooled_evidences_are_means_with_the_error_of_a_mean():
    rows = [{"log_evidence": np.log(z), "ess": 100.0, "proposals": 1e9} for z in (1.0, 3.0)]
    value, error, ess = evidence.pool(rows)
    assert value == pytest.approx(np.log(2.0))
    assert error == pytest.approx(np.sqrt((1 + 9) / 16 / 100))
    assert ess == pytest.approx(160.0)


def test_a_split_of_one_family_is_reported_by_default_and_refused_by_name():
    cells = simulate.grid(families=1, tokens=3, sizes=2)
    found, refused = compare.plan(cells, None, {})
    assert "family" in refused
    assert "source" in refused
    assert "1 fold" in refused["family"]
    assert {"width", "loo"} <= set(found)
    with pytest.raises(BadInput, match="leave-a-family-out is not possible"):
        compare.plan(cells, ["family"], {})


def test_what_is_not_known_is_refused():
    cells = simulate.grid(families=1, tokens=3, sizes=2)
    with pytest.raises(BadInput, match="no split 'weekday'"):
        compare.plan(cells, ["weekday"], {})
    with pytest.raises(BadInput, match="--future-from .* not among --splits"):
        compare.plan(cells, ["width"], {"future": 1e12})
    with pytest.raises(BadInput, match="no model 'mixed'"):
        compare.candidates_of(cells, [laws.get("ouyang")], ["mixed"])
    with pytest.raises(BadInput, match="no law 'chinchilla'"):
        compare.law_of("chinchilla")
    with pytest.raises(BadInput, match="no drivers 'moon'"):
        compare.law_of("ouyang:moon")


@pytest.mark.parametrize("text", ["ouyang", "boxcox:phase", "per-bit+student-t", "kumar:tokens+vocabulary+loss"])
def test_a_law_named_with_its_variant_comes_back_under_that_name(text):
    assert compare.law_text(compare.law_of(text)) == text


def test_one_family_under_two_models_is_compared_once_with_a_note():
    cells = simulate.grid(families=1, tokens=3, sizes=2)
    found, notes = compare.candidates_of(cells, [laws.get("ouyang")], ["hierarchical", "pooled"])
    assert [one.label for one in found] == ["ouyang"]
    assert "one family" in notes[0]


def run(*options: str):
    import typer
    from typer.testing import CliRunner

    from bayesqid.cli import compare as command

    app = typer.Typer()
    app.command()(command.compare)
    return CliRunner().invoke(app, list(options))


@pytest.mark.parametrize(("options", "message"), [
    (["--laws", "chinchilla"], "no law"), (["--splits", "weekday"], "no split"), (["--models", "mixed"], "no model"),
    (["--splits", "source"], "not possible"), (["--params", "-1"], "--params"), (["--bits", "99"], "--bits"),
    (["--future-from", "1"], "--future-from"),
])  # fmt: skip
def test_the_command_refuses_what_it_cannot_compare_before_it_fits(options, message):
    found = run("tiny", *options)
    assert isinstance(found.exception, BadInput)
    assert message in str(found.exception)


@pytest.mark.slow
def test_the_command_projects_with_every_law_and_their_mixture(tmp_path):
    from bayesqid import bundled, files, measurements

    tiny = measurements.read(bundled.data_dir() / "tiny.nc")
    files.write_netcdf(tiny.isel(checkpoint=slice(None, None, 3)), tmp_path / "few.nc")
    asked = (str(tmp_path / "few.nc"), "--laws", "ouyang,kumar", "--splits", "width,loo", "--params", "7e9", "--json",
             "-o", str(tmp_path / "out"))  # fmt: skip
    found = run(*asked)
    assert found.exit_code in (0, 3), found.exception
    out = json.loads(found.stdout)
    assert set(out["projection"]["components"]) == {"ouyang", "kumar"}
    weights = out["projection"]["mixtures"]["width"]["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert all(weights[law] == one["weight"] for law, one in out["splits"]["width"]["candidates"].items())
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"ouyang.nc", "kumar.nc", "comparison.nc", "fits.jsonl"}
    assert (found.exit_code == 0) == all(out["checks"].values())
    # from what was kept
    assert run(*asked).stdout == found.stdout
