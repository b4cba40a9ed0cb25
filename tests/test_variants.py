"""Every variant of the law from a fit to its answers: what has no term beta, other tails or more cells."""

import json

import numpy as np
import pytest

from bayesqid import cells as cells_module
from bayesqid import files, laws
from bayesqid.answers import asking, draws, level, project
from bayesqid.answers.level import Observed
from bayesqid.errors import BadInput
from bayesqid.inference import problem, sample, simulate
from bayesqid.report import write

SIZE = {"families": 3, "tokens": 3, "sizes": 2}


def fitted(law, path, cells=None):
    if cells is None:
        cells = simulate.make(laws.get("boxcox"), published="ouyang", seed=4, **SIZE)
    tree = sample.sample(cells, law, engine="laplace", seed=1, chains=2, draws=100)
    files.write_netcdf(tree, path)
    return draws.read(str(path))


@pytest.fixture(scope="module")
def phase(tmp_path_factory):
    return fitted(laws.variant("boxcox", "phase"), tmp_path_factory.mktemp("phase") / "phase.nc")


def test_a_law_without_tokens_projects_and_no_tokens_move_it(phase):
    assert phase.law == laws.variant("boxcox", "phase")
    assert "beta" not in phase.sample["term"].values
    made = [project.project(phase, asking.targets(phase, tokens, params=3e9), "mean") for tokens in (1e11, 1e14)]
    np.testing.assert_array_equal(made[0]["median"], made[1]["median"])
    assert made[0].attrs["verdict"] != "not identified"
    assert json.dumps(project.as_json(made[1]), allow_nan=False)


def test_a_law_without_tokens_has_its_report(phase, tmp_path):
    asked = project.project(phase, asking.targets(phase, 1e12))
    page = write(phase, asked, tmp_path / "report")
    assert "beta" not in json.dumps(phase.law.term_names)
    assert page.read_text().startswith("<!")


def test_a_law_without_tokens_cannot_say_how_many_there_were(phase):
    with pytest.raises(BadInput, match="no effect of tokens.*sample one that has") as caught:
        level.level(phase, 3e9, [Observed(4, 0.05, 0.004)])
    assert "\n" not in str(caught.value)


def test_student_t_tails_and_covariates_of_the_model_reach_the_answers(tmp_path):
    law = laws.variant("boxcox", "both", ["student-t", "vocabulary", "loss"])
    posterior = fitted(law, tmp_path / "p.nc")
    assert posterior.law == law
    found = project.project(posterior, asking.targets(posterior, 1e12, params=3e9), "new")
    assert (found["upper90"] > found["median"]).all()
    tokens = level.as_json(level.level(posterior, 3e9, [Observed(4, 0.05, 0.004)]))
    assert json.dumps(tokens, allow_nan=False)


def test_undisclosed_tokens_are_inferred_under_their_checkpoint_s_name(tmp_path):
    """The largest models keep their tokens secret, which lie where the prior expects them: QiDs tell how many."""
    law = laws.variant("boxcox", "both", ["latent-tokens"])
    cells = simulate.make(laws.get("boxcox"), ["tau=0.05"], published="ouyang", seed=4, **SIZE)
    names = np.unique(cells["checkpoint"].values[abs(np.log(cells["train_tokens"] / 4e12)) < 1.6])
    assert names.size >= 2
    hidden = np.isin(cells["checkpoint"].values, names)
    told = dict(zip(cells["checkpoint"].values, cells["train_tokens"].values, strict=True))
    secret = cells.assign_coords(train_tokens=cells["train_tokens"].where(~hidden))
    with pytest.raises(BadInput, match="train_tokens of"):
        sample.sample(secret, laws.get("boxcox"), engine="laplace")
    posterior = fitted(law, tmp_path / "p.nc", cells_module.check(secret, True))
    found = np.log(posterior.sample["undisclosed_tokens"])
    assert found["undisclosed"].values.tolist() == names.tolist()
    truth = np.log([told[name] for name in names])
    z = (found.mean("draw") - truth) / found.std("draw")
    assert np.abs(z).max() < 4
    # the prior's sd of ln D is 0.8
    assert found.std("draw").max() < 0.8


def test_the_shift_of_undisclosed_tokens_is_that_of_disclosing_them():
    """eta with latent ln D equals eta of the same coefficients where the table says that D."""
    law = laws.variant("per-bit", "both", ["latent-tokens"])
    cells = simulate.grid(**SIZE)
    names = np.unique(cells["checkpoint"].values)[[1, 8]]
    silent = np.isin(cells["checkpoint"].values, names)
    hidden = problem.build(cells.assign_coords(train_tokens=cells["train_tokens"].where(~silent)), law, "hierarchical")
    assert hidden.latent_names == tuple(names)
    rng = np.random.default_rng(0)
    b, shift = rng.normal(size=hidden.size), np.array([0.7, -1.2])
    got = (hidden.weights(0.5, shift) * b[hidden.index]).sum(axis=1)

    def eta(extra):
        """The same model by its own centres, with D of the two models given."""
        moved = hidden.cells["train_tokens"].to_numpy().copy()
        for name, value in zip(names, extra, strict=True):
            moved[cells["checkpoint"].values == name] *= np.exp(value)
        columns = {name: hidden.cells[name].to_numpy() for name in (*hidden.cells.coords, *hidden.cells.data_vars)}
        columns |= {"train_tokens": moved, **laws.crossed(columns)}
        parts = [problem._touched(block, columns, hidden.centers, hidden.center, "hierarchical")
                 for block in hidden.blocks]  # fmt: skip
        index, plain, slope = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return ((plain - laws.bit_scale(hidden.bits, 0.5)[:, None] * slope) * b[index]).sum(axis=1)

    np.testing.assert_allclose(got, eta(shift), rtol=1e-10, atol=1e-10)
    assert np.abs(got - eta([0.0, 0.0])).max() > 0.1


def test_a_part_of_a_problem_keeps_the_model_and_predicts_the_rest():
    law = laws.variant("boxcox", "both", ["latent-tokens"])
    cells = simulate.grid(**SIZE)
    names = np.unique(cells["checkpoint"].values)[[1, 8]]
    silent = np.isin(cells["checkpoint"].values, names)
    p = problem.build(cells.assign_coords(train_tokens=cells["train_tokens"].where(~silent)), law, "hierarchical")
    keep = p.cells["family"].values != "F1"
    part = problem.part(p, keep)
    for name in ("law", "model", "blocks", "apart", "size", "spread_names", "generations", "centers", "center",
                 "latent_names"):  # fmt: skip
        assert getattr(part, name) is getattr(p, name) or getattr(part, name) == getattr(p, name), name
    assert part.data.back.size == keep.sum() == part.cells.sizes["cell"]
    shift = np.array([0.3, 0.4])
    np.testing.assert_array_equal(part.weights(0.4, shift), p.weights(0.4, shift)[keep])
    np.testing.assert_array_equal(part.mean, p.mean)
    eta, tau = np.full(p.bits.size, -2.0), np.array([0.3, 0.5])
    np.testing.assert_allclose(part.log_likelihood(eta[keep], tau)[0], p.log_likelihood(eta, tau)[0][keep])


def test_a_posterior_from_before_variants_reads_as_the_law_alone(tmp_path):
    tree = sample.sample(simulate.make(laws.get("boxcox"), seed=4, **SIZE), laws.get("boxcox"), engine="laplace",
                         chains=1, draws=50)  # fmt: skip
    assert (tree.attrs["drivers"], tree.attrs["extras"]) == ("both", "")
    for name in ("drivers", "extras"):
        del tree.attrs[name]
    files.write_netcdf(tree, tmp_path / "old.nc")
    assert draws.read(str(tmp_path / "old.nc")).law == laws.get("boxcox")
    # a file whose labels are not those of the law of today is no traceback either
    tree.attrs["drivers"] = "phase"
    files.write_netcdf(tree, tmp_path / "other.nc")
    with pytest.raises(BadInput, match=r"other\.nc is damaged.*sample it again"):
        draws.read(str(tmp_path / "other.nc"))
    tree.attrs["drivers"] = "weather"
    files.write_netcdf(tree, tmp_path / "unknown.nc")
    with pytest.raises(BadInput, match=r"unknown\.nc is damaged"):
        draws.read(str(tmp_path / "unknown.nc"))


def test_one_bit_width_is_fitted_with_a_warning_in_the_file():
    cells = simulate.make(laws.get("boxcox"), seed=4, **SIZE)
    three = cells.isel(cell=np.flatnonzero(np.rint(cells["effective_bits"]) == 3))
    tree = sample.sample(three, laws.get("boxcox"), engine="laplace", chains=1, draws=50)
    assert "about 3 bits, so gamma and the bit scale are the prior's" in tree.attrs["warning"]
    assert tree["prior"]["mu"].sel(term="gamma").std() * 0.8 < tree["posterior"]["mu"].sel(term="gamma").std()


def test_no_published_constants_are_listed_twice():
    from bayesqid.answers import curves

    rows = [(row["alpha"], row["beta"]) for row in curves.published_slopes()]
    assert len(rows) == len(set(rows)) == 5
