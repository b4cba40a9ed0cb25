"""The law of the loss landscape: written out, refused without its features, recovered from simulated ones."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import k0
from scipy.stats import kstest
from threadpoolctl import threadpool_limits

from bayesqid import features, laws
from bayesqid.answers import baselines, choose, draws, identification, project, score, standing
from bayesqid.cells import FEATURES
from bayesqid.errors import BadInput
from bayesqid.inference import compare, hyper, laplace, posterior, predictive, problem, sample, sbc, simulate

LAW = laws.get("landscape")
SHRUNK = [effect.name for effect in LAW.shrunk]


@pytest.fixture(scope="module")
def fitted():
    """A posterior of 80 simulated cells of two architectures."""
    cells = simulate.make(LAW, ["tau=0.1"], families=2, tokens=4)
    tree = sample.sample(cells, LAW, engine="laplace", seed=1, chains=1, draws=600)
    return draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "made.nc", "0" * 64, "file")


def bare(cells):
    return cells.drop_vars([name for name in LAW.features if name != "loss16"])


def test_the_law_reads_what_is_measured_of_the_landscape_and_nothing_of_size_tokens_or_bits():
    measured = {"sqnr_db", "slope", "curvature", "taylor", "layer_error", "hessian_trace", "flatness_r"}
    assert set(LAW.features) == measured | {"loss16"}
    assert measured == set(FEATURES)
    assert set(laws.LAWS) - set(laws.PLAIN) == {"landscape", "mixed"}
    cells = simulate.grid(3, 3, 2)
    here = problem.build(cells, LAW, "hierarchical")
    other = cells.assign_coords(n_params_nonembedding=cells["n_params_nonembedding"] * 7,
                                train_tokens=cells["train_tokens"] ** 1.1, effective_bits=cells["effective_bits"] + 1)
    there = problem.build(other, LAW, "hierarchical")
    np.testing.assert_allclose(there.weights(0.0), here.weights(0.0), rtol=1e-12)


def test_features_stand_on_their_stated_scales():
    columns = {"taylor": [0.1, 1.0, -5.0], "sqnr_db": [14.0, 20.0, 8.0], "loss16": [2.0, 2.0 * np.exp(0.3), 2.0],
               "layer_error": [np.exp(3.0), np.exp(4.8), 0.0], "hessian_trace": [np.exp(6.0), np.exp(7.0), -3.0],
               "flatness_r": [np.exp(-4.0), np.exp(-2.5), -1e-5], "slope": [0.1, 0.0, -0.1],
               "curvature": [0.8, 0.3, 0.0]}  # fmt: skip
    columns = {name: np.array(values) for name, values in columns.items()}
    wanted = {"ln taylor": [0, np.log(10), np.log(0.01)], "sqnr": [0, 1, -1], "baseline": [0, 1, 0],
              "layer error": [0, 1, (np.log(0.05) - 3) / 1.8], "trace": [0, 1, np.log(20) - 6],
              "flatness": [0, 1, (np.log(2e-4) + 4) / 1.5], "curvature share": [0, 2 / 3, -8 / 3]}  # fmt: skip
    assert set(wanted) == set(features.FEATURES)
    for name, values in wanted.items():
        np.testing.assert_allclose(laws.factor(name, columns, 0.0), values, atol=1e-12, err_msg=name)


def test_eta_is_the_law_written_out():
    cells = simulate.grid(3, 3, 2)
    p = problem.build(cells, LAW, "hierarchical")
    b = np.zeros(p.size)
    own = np.random.default_rng(0).normal(size=len(SHRUNK))
    b[p.block("mu log_k").start], b[p.block("mu taylor").start] = -2.0, 0.9
    for name, value in zip(SHRUNK, own, strict=True):
        b[p.block(name).start] = value
    c = {name: cells[name].to_numpy() for name in LAW.features}
    share = c["curvature"] / 2 / (abs(c["slope"]) + abs(c["curvature"]) / 2)
    expected = -2.0 + 0.9 * np.log(np.maximum(c["taylor"], 1e-3) / 0.1) + own @ np.array([
        (c["sqnr_db"] - 14) / 6, np.log(c["loss16"] / 2) / 0.3, (np.log(np.maximum(c["layer_error"], 0.05)) - 3) / 1.8,
        np.log(np.maximum(c["hessian_trace"], 20)) - 6, (np.log(np.maximum(c["flatness_r"], 2e-4)) + 4) / 1.5,
        (share - 0.8) / 0.3])  # fmt: skip
    np.testing.assert_allclose((p.weights(0.0) * b[p.index]).sum(axis=1), expected, rtol=1e-10)


def test_the_shrinkage_prior_has_the_density_that_is_stated():
    p = problem.build(simulate.grid(2, 2, 2), LAW, "hierarchical")
    b, _ = hyper.draw_prior(p, 4000, np.random.default_rng(1))
    values = np.abs(b[:, p.block("trace").start]) / 0.3
    points = np.linspace(0, values.max() + 0.1, 400)
    mass = np.cumsum([0.0, *(quad(lambda x: 2 / np.pi * k0(x), low, high)[0]
                             for low, high in zip(points[:-1], points[1:], strict=True))])  # fmt: skip
    assert kstest(values, lambda x: np.interp(x, points, mass)).pvalue > 0.01
    # the sentence beside it: under a factor of 1.7 with 90 %
    assert np.exp(0.3 * np.interp(0.9, mass, points)) == pytest.approx(1.7, abs=0.1)


def test_a_tilt_about_the_centre_of_the_data_is_told_at_the_pivot():
    tilted = replace(LAW, covariates=(*LAW.covariates, laws.Covariate("tokens", "x_D", 0, 0.3, "x"),
                                           laws.Covariate("params", "-x_N", 0, 0.3, "x")))  # fmt: skip
    p = problem.build(simulate.grid(2, 3, 2), tilted, "hierarchical")
    b, phi = hyper.draw_prior(p, 3, np.random.default_rng(2))
    natural = hyper.unpack(p, phi[None])
    got = predictive.eta(p, predictive.thin(posterior.named(p, b[None], natural), 3))
    np.testing.assert_allclose(got, posterior.pointwise(p, b[None], natural)[1][0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [
    lambda cells: sample.sample(cells, LAW, engine="laplace"),
    lambda cells: compare.compare(cells, [laws.get("boxcox"), LAW], names=["family"]),
])  # fmt: skip
def test_cells_without_a_landscape_are_refused_in_one_sentence(make):
    with pytest.raises(BadInput, match="needs the loss landscape.*--landscape") as caught:
        make(bare(simulate.grid(2, 2, 2)))
    assert str(caught.value).count(". ") == 0


def test_the_cell_whose_landscape_is_missing_is_named():
    cells = simulate.grid(2, 2, 2)
    holes = cells["hessian_trace"].to_numpy().copy()
    holes[7] = np.nan
    with pytest.raises(BadInput, match=re.escape(f"hessian_trace of {cells['checkpoint'].to_numpy()[7]} with")):
        problem.build(cells.assign_coords(hessian_trace=("cell", holes)), LAW, "hierarchical")


def test_a_question_without_a_landscape_is_refused_and_told_where_to_ask(fitted):
    target = draws.Target(None, 1e9, 1e12, 3.0, "gptq")
    with pytest.raises(BadInput, match="choose --landscape"):
        project.project(fitted, [target])
    with pytest.raises(BadInput, match="choose --landscape"):
        project.project(fitted, [replace(target, features={"sqnr_db": 14.0})])
    with pytest.raises(BadInput, match="needs the loss landscape"):
        score.score(fitted, bare(simulate.grid(2, 2, 1, seed=9)))


def test_the_priors_alone_say_nothing_of_a_model_without_a_landscape():
    with pytest.raises(BadInput, match="--landscape"):
        laws.factor("sqnr", {"effective_bits": np.ones(2)}, 0.0)


def test_a_question_with_a_landscape_is_answered_by_the_law_written_out(fitted):
    family = fitted.families[0]
    asked = {"taylor": 0.3, "sqnr_db": 10.0, "loss16": 2.2, "layer_error": 30.0, "hessian_trace": 300.0,
             "flatness_r": 0.02, "slope": 0.02, "curvature": 0.56}  # fmt: skip
    target = draws.Target(family, 1e9, 1e12, 2.0, "gptq", features=asked)
    got = draws.log_law(fitted, [target], np.random.default_rng(0))[:, 0]
    s = fitted.sample
    columns = {name: np.array([value]) for name, value in asked.items()}
    want = s["log_k"].sel(family=family) + s["taylor"].sel(family=family) * np.log(3.0)
    for effect in LAW.shrunk:
        want = want + s[effect.name].isel(everything=0) * float(features.standard(effect.factor, columns)[0])
    want = want + s["generation_level"].sel(generation="calibrated") + s["method_level"].sel(quantizer="gptq")
    np.testing.assert_allclose(got, want.to_numpy(), rtol=1e-10)
    # size, tokens and bits move nothing
    other = draws.Target(family, 9e9, 1e13, 4.0, "gptq", features=asked)
    np.testing.assert_array_equal(got, draws.log_law(fitted, [other], np.random.default_rng(0))[:, 0])


def test_cells_that_were_not_fitted_are_scored_with_their_own_landscape(fitted):
    # the same truth, another study: what is scored is new in every level but the quantizers
    fresh = simulate.make(LAW, ["tau=0.1"], families=2, tokens=4).isel(cell=slice(0, 20))
    fresh = fresh.assign_coords(checkpoint=("cell", [f"new {name}" for name in fresh["checkpoint"].to_numpy()]))
    found = score.as_json(score.score(fitted, fresh))
    assert found["n"] == 20 - int(fresh["censored"].sum())
    assert set(found["baselines"]) == set(baselines.BASELINES)
    with_levels = baselines.hyper_mean(fitted, score.targets_of(fresh), fresh["headroom"].to_numpy())
    assert np.isfinite(with_levels).all()


def test_the_posterior_says_which_features_matter(fitted):
    rows = {row["name"]: row for row in identification.table(fitted) if row["kind"] == "feature"}
    assert list(rows) == SHRUNK
    for name, row in rows.items():
        after, before = fitted.sample[name].to_numpy(), fitted.tree["prior"].to_dataset()[name].to_numpy()
        assert row["contraction"] == pytest.approx(1 - after.var() / before.var())
        assert (row["lower90"], row["upper90"]) == pytest.approx(np.quantile(after, [0.05, 0.95]))
    text = standing.as_text(standing.of(fitted, 70e9, 1e14, 4.0))
    assert max(map(len, text.splitlines())) <= 80
    for name in SHRUNK:
        assert f"feature {name}" in text
    json.dumps(standing.of(fitted, 70e9, 1e14, 4.0), allow_nan=False)


def test_a_feature_can_be_set_in_a_simulation():
    cells = simulate.make(LAW, ["taylor=0.8", "log_k=-2", "sd_taylor=0"], families=2, tokens=2)
    known = json.loads(cells.attrs["truth"])["parameters"]
    assert known["mu"] == {"log_k": pytest.approx(-2.0), "taylor": pytest.approx(0.8)}
    assert set(SHRUNK) <= set(known)


def test_both_methods_on_one_grid_have_one_landscape():
    cells = simulate.grid(2, 2, 2)
    for _, own in cells.groupby("checkpoint"):
        pair = own.isel(cell=np.flatnonzero(own["effective_bits"].to_numpy() == 3.016))
        assert pair.sizes["cell"] == 2
        assert np.ptp(pair["taylor"].to_numpy()) == 0
        assert np.ptp(own["hessian_trace"].to_numpy()) == 0
    np.testing.assert_allclose(cells["taylor"], cells["slope"] + cells["curvature"] / 2)


@pytest.mark.slow
def test_known_parameters_are_recovered_by_the_fast_engine():
    """Ranks of the truth in 20 refits of simulated features: uniform if the posterior is right."""
    ranks: dict[str, list[int]] = {}
    for seed in range(20):
        p, b, phi = simulate.study(LAW, "hierarchical", 100 + seed, simulate.grid(3, 4, 2), own_error=True)
        with threadpool_limits(1):
            found = laplace.fit(p, 990, seed)
        true = posterior.named(p, b[None, None], hyper.unpack(p, phi[None, None])).isel(chain=0, draw=0)
        got = posterior.named(p, found.b[None], hyper.unpack(p, found.phi[None])).isel(chain=0)
        rng = np.random.default_rng(seed)
        pairs = {name: (got[name].isel(everything=0), true[name].isel(everything=0)) for name in SHRUNK}
        pairs |= {f"mu {t}": (got["mu"].sel(term=t), true["mu"].sel(term=t)) for t in LAW.term_names}
        for name, (after, truth) in pairs.items():
            ranks.setdefault(name, []).append(int(sbc.ranks(after.to_numpy(), float(truth), rng)))
    rows = sbc.verdict({name: np.array(values) for name, values in ranks.items()})
    assert not [row.name for row in rows if row.outside]
    held = np.array([[5 <= r <= 94 for r in values] for values in ranks.values()])
    assert 0.82 <= held.mean() <= 0.97


def test_bits_are_chosen_by_the_landscape_measured_on_a_model(fitted):
    cells = fitted.cells
    name = str(cells["checkpoint"].values[0])
    own = cells.isel(cell=np.flatnonzero(cells["checkpoint"].values == name))
    answer = choose.choose(fitted, tolerance=0.2, confidence=0.8, checkpoint=name, landscape=cells)
    assert answer.sizes["recipe"] == own.sizes["cell"]
    rows = choose.as_json(answer)["curve"]
    assert [row["bytes"] for row in rows] == sorted(row["bytes"] for row in rows)
    # the law with this checkpoint's own deviation, recipe by recipe
    names, targets, _ = choose.landscape_targets(fitted, cells, name)
    qid, _ = project.qid_draws(fitted, targets, "new")
    told = {row["recipe"]: row["median"] for row in rows}
    for text, target, median, measured in zip(names, targets, np.median(qid, axis=0), own["qid"].values, strict=True):
        assert target.features is not None
        assert told[text] == pytest.approx(median, rel=0.1)
        assert abs(np.log(told[text] / measured)) < 1.5 or measured < 0.01
    assert len(choose.as_text(answer).splitlines()) > 5
    if answer.attrs["choice"]:
        chosen = {row["recipe"]: row for row in rows}[answer.attrs["choice"]]
        assert chosen["p_under"] >= 0.8


def test_choosing_by_a_landscape_refuses_what_it_cannot_use(fitted):
    cells = fitted.cells
    name = str(cells["checkpoint"].values[0])
    with pytest.raises(BadInput, match="law landscape, and this is of boxcox"):
        choose.choose(draws.read(), checkpoint=name, landscape=cells)
    with pytest.raises(BadInput, match="measure with --landscape"):
        choose.choose(fitted, checkpoint=name, landscape=bare(cells))
    with pytest.raises(BadInput, match="leave --params out"):
        choose.choose(fitted, params=7e9, checkpoint=name, landscape=cells)
    with pytest.raises(BadInput, match="--checkpoint"):
        choose.choose(fitted, landscape=cells)
