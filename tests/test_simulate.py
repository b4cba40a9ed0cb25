"""Simulated cells and the command that writes them, against the law written out and against closed forms."""

import json

import numpy as np
import pytest
import typer
from scipy.stats import kstest, norm
from typer.testing import CliRunner

from bayesqid import cells as cells_module
from bayesqid import files, laws, likelihood
from bayesqid.cli import simulate as command
from bayesqid.errors import BadInput
from bayesqid.importers import sources
from bayesqid.inference import hyper, problem, simulate

BOXCOX = laws.get("boxcox")
QUIET = ["tau=0", *(f"spread_{name}=0" for name in ("generation_level", "generation_slope", "checkpoint_level")),
         *(f"{c.name}=0" for c in BOXCOX.covariates)]  # fmt: skip


def truth(cells) -> dict:
    return json.loads(cells.attrs["truth"])["parameters"]


def expected(cells, known: dict) -> np.ndarray:
    """QiD of each cell's family by the law alone, saturated."""
    family = cells["family"].to_numpy()
    theta = {term: np.array([levels[name] for name in family]) for term, levels in known["theta"].items()}
    size = [cells[name].to_numpy() for name in ("n_params_nonembedding", "train_tokens", "effective_bits")]
    return likelihood.saturate(laws.qid(*size, **theta, lam=known["lam"]), cells["headroom"].to_numpy())


def test_without_scatter_and_effects_the_cells_follow_the_law_of_their_family():
    cells = simulate.make(BOXCOX, QUIET, families=3, seed=4)
    z = (cells["qid"].to_numpy() - expected(cells, truth(cells))) / cells["qid_se"].to_numpy()
    # what is left is the evaluation error
    assert kstest(z, norm.cdf).pvalue > 0.01


@pytest.mark.parametrize("name", ["ouyang", "kumar"])
@pytest.mark.parametrize("law", [None, "boxcox"])
def test_published_constants_are_followed_by_every_family(name, law):
    cells = simulate.make(laws.get(law or name), ["tau=0"], name, families=2, seed=1)
    constants, known = laws.published_constants(name), truth(cells)
    assert known["lam"] == constants["lam"]
    for term, levels in known["theta"].items():
        assert list(levels.values()) == pytest.approx([constants[term]] * 2, rel=1e-12)
    gap = (cells["qid"].to_numpy() - expected(cells, known)) / cells["qid_se"].to_numpy()
    assert kstest(gap, norm.cdf).pvalue > 0.01


@pytest.mark.parametrize("law", laws.PLAIN.values(), ids=lambda law: law.name)
def test_what_is_set_is_what_the_truth_says(law):
    wanted = {"alpha": 0.31, "beta": 0.52, "sd_alpha": 0.0, "context": 0.1, "tau_rtn": 0.2, "undecayed": -0.3}
    wanted |= {"lam": 0.4} if isinstance(law.lam, tuple) else {}
    cells = simulate.make(law, [f"{name}={value}" for name, value in wanted.items()], families=2, tokens=3)
    known = truth(cells)
    assert known["mu"]["alpha"] == pytest.approx(0.31, abs=1e-12)
    assert known["mu"]["beta"] == pytest.approx(0.52, abs=1e-12)
    assert known["covariate"]["context"] == pytest.approx(0.1, abs=1e-12)
    assert known["covariate"]["undecayed"] == pytest.approx(-0.3, abs=1e-12)
    assert list(known["theta"]["alpha"].values()) == pytest.approx([known["mu"]["alpha"]] * 2, abs=1e-12)
    assert (known["sd"]["alpha"], known["tau"]["rtn"]) == (0.0, 0.2)
    assert known["lam"] == wanted.get("lam", law.lam)
    assert json.loads(cells.attrs["truth"])["set"] == wanted


def test_setting_one_parameter_leaves_the_others_as_the_seed_drew_them():
    free, one = (truth(simulate.make(BOXCOX, texts, seed=3)) for texts in ((), ("alpha=0.9",)))
    assert one["mu"] == free["mu"] | {"alpha": pytest.approx(0.9)}
    assert {**one, "mu": None, "theta": None} == {**free, "mu": None, "theta": None}


def test_what_is_not_set_comes_from_the_prior():
    cells = simulate.grid(2, 2, 1)
    blank = problem.build(cells, BOXCOX, "hierarchical")
    drawn = [simulate.with_settings(blank, {}, np.random.default_rng(seed)) for seed in range(200)]
    lam = np.array([natural.lam for _, natural in drawn])
    assert kstest(lam, norm(*BOXCOX.lam).cdf).pvalue > 0.01
    gamma = next(term for term in BOXCOX.terms if term.name == "gamma")
    mu = np.array([b[blank.block("mu gamma").where][0] for b, _ in drawn])
    assert kstest(mu, norm(gamma.mean, gamma.sd).cdf).pvalue > 0.01


def test_the_same_seed_gives_the_same_cells_and_another_seed_others():
    one, same, other = (simulate.make(BOXCOX, families=2, seed=seed) for seed in (1, 1, 2))
    assert one.identical(same)
    assert not np.array_equal(one["qid"], other["qid"])


def test_cells_past_tenfold_perplexity_and_only_they_are_censored():
    cells = simulate.make(BOXCOX, ["log_k=0"], seed=0)
    np.testing.assert_array_equal(cells["censored"], cells["qid"] > np.log(10))
    assert 0 < int(cells["censored"].sum()) < cells.sizes["cell"]


def test_errors_of_ones_own_do_not_follow_the_data():
    template = simulate.grid(2, 2, 2)
    template["qid_se"] = ("cell", np.geomspace(0.001, 0.1, template.sizes["cell"]))
    p, b, phi = simulate.study(BOXCOX, "hierarchical", 5, template, own_error=True)
    np.testing.assert_array_equal(p.cells["qid_se"], template["qid_se"])
    assert b.shape == (p.size,)
    assert phi.shape == hyper.start(p).shape


def test_spreads_that_have_no_part_in_the_cells_are_drawn_from_their_prior_and_not_written():
    cells = simulate.grid(2, 2, 1)
    p = problem.build(cells, BOXCOX, "hierarchical")
    rng = np.random.default_rng(0)
    b, phi = hyper.draw_prior(p, 1, rng)
    natural = hyper.unpack(p, phi[0])
    named = [simulate.truth(p, b[0], natural, rng) for _ in range(150)]
    spread = np.array([float(one["spread"].sel(effect="source_level")[0, 0]) for one in named])
    assert spread.mean() == pytest.approx(0.3 * np.sqrt(2 / np.pi), abs=4 * 0.3 * 0.6 / np.sqrt(150))
    assert "source_level" not in simulate.record(p, named[0])["spread"]


def test_the_grid_takes_other_recipes():
    cells = simulate.grid(2, 3, 1, recipes=(("gptq", 4.125, 128),))
    assert cells.sizes["cell"] == 6
    assert set(cells["effective_bits"].values) == {4.125}
    assert not cells["per_channel"].any()


@pytest.mark.parametrize(("texts", "said"), [
    (["alpha"], "not NAME=NUMBER"), (["=1"], "not NAME=NUMBER"), (["alpha=x"], "not NAME=NUMBER"),
    (["alpha=nan"], "not NAME=NUMBER"), (["alpha=1", "alpha=2"], "twice"), (["delta=1"], "no parameter 'delta'"),
    (["tau=-1"], "not below zero"), (["sd_beta=-0.1"], "not below zero"), (["spread_source_level=1"], "no parameter"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_sentence(texts, said):
    with pytest.raises(BadInput, match=said) as caught:
        simulate.make(BOXCOX, texts, families=1, tokens=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("law", "published", "said"), [
    ("ouyang", "kumar", "do not fit law ouyang"), ("boxcox", "boxcox", "no published constants"),
    ("boxcox", "chinchilla", "There is no law"),
])  # fmt: skip
def test_constants_that_do_not_fit_the_law_are_refused(law, published, said):
    with pytest.raises(BadInput, match=said):
        simulate.make(laws.get(law), published=published)


def test_lam_cannot_be_set_where_the_law_fixes_it():
    with pytest.raises(BadInput, match="no parameter 'lam'"):
        simulate.make(laws.get("kumar"), ["lam=0.5"])


# The command


def call(*words: str):
    app = typer.Typer()
    app.command()(command.simulate)
    return CliRunner().invoke(app, words)


def test_the_command_writes_cells_that_inference_accepts_with_their_truth(tmp_path):
    path = tmp_path / "cells.nc"
    done = call("--set", "alpha=0.3", "--set", "tau=0.1", "--families", "2", "--tokens", "3", "--sizes", "1",
                "--seed", "7", "-o", str(path))  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "30 cells of 2 families" in done.stdout
    assert max(map(len, done.stdout.replace(str(path), "cells.nc").splitlines())) <= 80
    made = cells_module.check(files.open_dataset(path))
    again = simulate.make(BOXCOX, ["alpha=0.3", "tau=0.1"], None, 2, 3, 1, 7)
    np.testing.assert_array_equal(made["qid"], again["qid"])
    assert truth(made) == truth(again)


def test_the_published_law_is_the_one_that_makes_the_cells(tmp_path):
    done = call("--published", "kumar", "--families", "1", "--tokens", "2", "-o", str(tmp_path / "c.nc"))
    assert done.exit_code == 0, done.output
    known = json.loads(files.open_dataset(tmp_path / "c.nc").attrs["truth"])
    assert (known["law"], known["published"]) == ("kumar", "kumar")


def test_the_command_refuses_a_bad_law_and_a_bad_place(tmp_path):
    assert isinstance(call("--law", "nowhere", "-o", str(tmp_path / "c.nc")).exception, BadInput)
    assert isinstance(call("-o", str(tmp_path)).exception, BadInput)
    assert list(tmp_path.iterdir()) == []


def test_the_written_cells_are_data_that_sample_can_name(tmp_path):
    path = tmp_path / "cells.nc"
    assert call("--families", "2", "--tokens", "2", "-o", str(path)).exit_code == 0
    read = sources.read_cells(str(path))
    assert read.sizes["cell"] == 40
    source = json.loads(read.attrs["sources"])[0]
    assert (source["name"], source["sha256"]) == (str(path), files.sha256_file(path))
    problem.build(cells_module.check(cells_module.join([read])), BOXCOX, "hierarchical")


@pytest.mark.parametrize("lacking", ["qid", "qid_se", "censored", "family", "effective_bits", "loss16"])
def test_a_file_of_cells_that_lacks_something_is_refused(tmp_path, lacking):
    path = tmp_path / "cells.nc"
    files.write_netcdf(simulate.make(BOXCOX, families=1, tokens=2).drop_vars(lacking), path)
    with pytest.raises(BadInput, match=lacking):
        sources.read_cells(str(path))
