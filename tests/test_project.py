"""Truth: posteriors of known numbers made by hand, for which every band has a closed form."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from bayesqid import cli, files, laws, methods
from bayesqid.answers import asking, draws, loss_laws, project, wording
from bayesqid.answers.draws import Target
from bayesqid.errors import BadInput
from bayesqid.inference import hyper, problem, simulate
from bayesqid.inference import posterior as named_posterior
from level_posterior import FAMILIES, TERMS, make, tree

MANY = 40_000
# 4 standard errors of a sample variance of 40000 normal draws, sqrt(2 / n) each
VARIANCE = 4 * math.sqrt(2 / MANY)
TARGET = Target("F0", 3e9, 1e12, 3.125, "gptq", bits=3.0)
X_N, X_D, U = math.log(3), math.log(10), math.log(3.125 / 3)


def log_raw(posterior, seen, params=3e9):
    """ln of the unbounded value behind a QiD that is seen."""
    headroom = draws.nearest_headroom(posterior, params)
    return np.log(-headroom * np.log1p(-seen / headroom))


def closed(log_k=-2.0, alpha=0.3, beta=0.4, gamma=5.0):
    return log_k - alpha * X_N + beta * X_D - gamma * U


def test_the_mean_band_is_the_law_under_its_ceiling():
    posterior = make()
    seen, fullness = project.qid_draws(posterior, [TARGET], "mean")
    headroom = draws.nearest_headroom(posterior, 3e9)
    raw = math.exp(closed())
    assert seen.item() == pytest.approx(headroom * (1 - math.exp(-raw / headroom)), rel=1e-12)
    assert fullness.item() == pytest.approx(raw / headroom, rel=1e-12)
    row = project.rows(project.project(posterior, [TARGET], "mean"))[0]
    assert {row[name] for name in project.quantile_names("")} == {row["median"]}


def test_covariates_and_effects_enter_as_the_law_says():
    """Each number apart, in the law with a free exponent: ln QiD is linear in all of them."""
    lam = 0.7
    scale = ((3.125 / 3) ** lam - 1) / lam
    target = replace(TARGET, per_channel=True, eval_dataset="c4", context=4096, lr_phase="constant")
    base = {"size": 1, "law": "boxcox", "lam": lam}
    start = float(draws.log_law(make(**base), [target], np.random.default_rng(0)).item())
    assert start == pytest.approx(-2.0 - 0.3 * X_N + 0.4 * X_D - 5.0 * scale)
    changes = {
        "per_channel": 1.0, "per_channel_slope": U, "c4": 1.0, "ptb": 0.0, "context": math.log(2), "undecayed": 1.0,
    }  # fmt: skip
    for name, factor in changes.items():
        moved = draws.log_law(make(**base, covariates={name: 0.5}), [target], np.random.default_rng(0)).item()
        assert moved - start == pytest.approx(0.5 * factor, abs=1e-12), name
    effects = {
        ("generation_level", "calibrated"): 1.0, ("generation_slope", "calibrated"): -scale,
        ("method_level", "gptq"): 1.0, ("method_slope", "gptq"): -scale,
        ("method_level", "rtn"): 0.0, ("generation_level", "rtn"): 0.0,
        ("checkpoint_level", "one"): 0.0, ("source_level", "a | rtn"): 0.0,
    }  # fmt: skip
    for level, factor in effects.items():
        moved = draws.log_law(make(**base, effects={level: 0.5}), [target], np.random.default_rng(0)).item()
        assert moved - start == pytest.approx(0.5 * factor, abs=1e-12), level


VARIANTS = [
    ("boxcox", "both", ()), ("ouyang", "both", ()), ("kumar", "tokens", ()), ("boxcox", "phase", ()),
    ("per-bit", "both", ()), ("per-bit", "phase", ("student-t",)), ("curved", "both", ("vocabulary", "loss")),
    ("curved", "phase", ()), ("curved", "tokens", ()),
]  # fmt: skip


@pytest.mark.parametrize("model", problem.MODELS)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join([*v[:2], *v[2]]))
def test_named_draws_mean_what_the_fitted_linear_block_meant(variant, model):
    """Random coefficients: the law rebuilt from names at every cell equals the sum that inference worked with.

    Some cells lie before the end of decay and vocabularies differ, so that bends, tilts and slopes all have to be
    carried from the centre of the data to the pivot.
    """
    rng = np.random.default_rng(3)
    law, grid = laws.variant(*variant), simulate.grid(families=3)
    young = grid["train_tokens"] < grid["train_tokens"].median()
    vocabulary = np.where(grid["family"] == "F0", 32000.0, 151936.0)
    grid = grid.assign_coords(lr_phase=("cell", np.where(young, "constant", "annealed").astype(object)),
                              vocab_size=("cell", vocabulary))  # fmt: skip
    blank = problem.build(grid, law, model)
    size = 4
    b = rng.normal(size=(1, size, blank.size))
    phi = rng.normal(size=(1, size, hyper.start(blank).size))
    natural = hyper.unpack(blank, phi)
    sample = named_posterior.named(blank, b, natural)
    made = xr.DataTree.from_dict({"posterior": sample, "cells": blank.cells})
    made.attrs = {"schema": draws.SCHEMA, "law": law.name, "drivers": law.drivers, "extras": ",".join(law.extras),
                  "model": model, "checks": "{}"}  # fmt: skip
    posterior = draws.Posterior(made, draws.flatten(sample), "x.nc", "", "file")
    assert posterior.law == law
    cells, flat = blank.cells, posterior.sample
    targets = [
        Target(str(one["family"].item()), float(one["n_params_nonembedding"]), float(one["train_tokens"]),
               float(one["effective_bits"]), str(one["quantizer"].item()), bool(one["per_channel"]),
               lr_phase=str(one["lr_phase"].item()), vocab_size=float(one["vocab_size"]), loss16=float(one["loss16"]))
        for one in (cells.isel(cell=i) for i in range(cells.sizes["cell"]))
    ]  # fmt: skip
    got = draws.log_law(posterior, targets, rng)
    got = got + flat["checkpoint_level"].sel(checkpoint=cells["checkpoint"].values).values
    got = got + flat["source_level"].sel(source_method=cells["source_method"].values).values
    for number in range(size):
        weights = blank.weights(natural.lam[0, number])
        want = (weights * b[0, number][blank.index]).sum(axis=1)
        np.testing.assert_allclose(got[number], want, rtol=1e-9, atol=1e-9)


SPREAD = {"checkpoint_level": 0.3, "source_level": 0.2}


def test_the_new_band_adds_the_variances_of_checkpoint_source_and_scatter():
    posterior = make(size=MANY, tau={"calibrated": 0.4, "rtn": 0.5}, spread=SPREAD)
    again = replace(TARGET, effective_bits=4.125, bits=4.0)
    other, rtn = replace(TARGET, params=6e9), replace(TARGET, method="rtn")
    seen, _ = project.qid_draws(posterior, [TARGET, again, other, rtn], "new")
    raw = np.column_stack([log_raw(posterior, seen[:, i], n) for i, n in enumerate((3e9, 3e9, 6e9, 3e9))])
    found = np.cov(raw.T)
    each = 0.3**2 + 0.2**2 + 0.4**2
    np.testing.assert_allclose(np.diag(found), [each, each, each, 0.3**2 + 0.2**2 + 0.5**2], rtol=VARIANCE)
    # recipes of one checkpoint share its deviation, different checkpoints nothing
    assert found[0, 1] == pytest.approx(0.3**2, abs=VARIANCE * each)
    assert found[0, 2] == pytest.approx(0, abs=VARIANCE * each)
    assert raw[:, 0].mean() == pytest.approx(closed(), abs=4 * math.sqrt(each / MANY))


def test_the_observed_band_adds_the_fitted_cells_median_error():
    posterior = make(size=MANY, tau=1e-9)
    seen, _ = project.qid_draws(posterior, [TARGET], "observed")
    assert seen.std() == pytest.approx(0.01, rel=VARIANCE)


def test_a_new_family_deviates_in_every_term_about_the_centre_of_the_fitted_ones():
    """var = sd^2 (1 + (x_N - c_N)^2 + (x_D - c_D)^2 + x_P^2): each slope's deviation counts from the centre."""
    made = tree(size=MANY, sd=0.2)
    centers = {"center_x_N": ("family", [0.5, 0.9]), "center_x_D": ("family", [-1.0, 0.4])}
    made["constant_data"] = xr.DataTree(xr.Dataset(centers, {"family": list(FAMILIES)}))
    posterior = draws.Posterior(made, draws.flatten(made["posterior"].to_dataset()), "x", "", "file")
    new = replace(TARGET, family=None)
    eta = draws.log_law(posterior, [new, replace(new, tokens=1e13)], np.random.default_rng(0))
    for column, x_d in enumerate((X_D, math.log(100))):
        want = 0.2**2 * (1 + (X_N - 0.7) ** 2 + (x_d + 0.3) ** 2 + U**2)
        assert eta[:, column].var() == pytest.approx(want, rel=VARIANCE)
    # one family, one draw of its exponent: the difference over tokens is beta's own spread
    assert (eta[:, 1] - eta[:, 0]).std() == pytest.approx(0.2 * math.log(10), rel=VARIANCE)


def test_an_unseen_quantizer_is_drawn_from_its_generation():
    spread = {"method_level": 0.25, "method_slope": 1e-9, "generation_level": 0.6}
    posterior = make(size=MANY, spread=spread, tau={"calibrated": 0.1, "rtn": 0.9})
    eta = draws.log_law(posterior, [replace(TARGET, method="awq")], np.random.default_rng(0))
    assert eta.std() == pytest.approx(0.25, rel=VARIANCE)
    # a generation that was never fitted too: its level comes on top
    eta = draws.log_law(posterior, [replace(TARGET, method="aqlm")], np.random.default_rng(0))
    assert eta.var() == pytest.approx(0.25**2 + 0.6**2, rel=VARIANCE)
    tau = draws.scatter(posterior, "vector", np.random.default_rng(0))
    assert sorted(set(tau)) == [0.1, 0.9]
    assert tau.mean() == pytest.approx(0.5, abs=4 * 0.4 / math.sqrt(MANY))


def test_headroom_is_the_median_of_the_tenth_that_is_nearest_in_size():
    posterior = make()
    size = np.log(posterior.cells["n_params_nonembedding"].to_numpy())
    ranked = sorted(range(size.size), key=lambda i: (abs(size[i] - math.log(1e6)), i))[: size.size // 10]
    want = np.median([float(posterior.cells["headroom"][i]) for i in ranked])
    assert draws.nearest_headroom(posterior, 1e6) == pytest.approx(want)


def test_a_coordinate_is_the_median_of_the_nearest_cells_that_have_it():
    posterior = make()
    values = np.full(posterior.cells.sizes["cell"], np.nan)
    for known, want in ((np.nan, np.nan), (32_000.0, 32_000.0)):
        # the nearest of all, at this size, are among those that do not tell
        values[np.argmax(posterior.cells["n_params_nonembedding"].values)] = known
        posterior.tree["cells"] = posterior.cells.assign_coords(vocab_size=("cell", values.copy()))
        np.testing.assert_equal(draws.nearest(replace(posterior), 1e6, "vocab_size"), want)


def test_the_same_seed_gives_the_same_answer_and_another_seed_does_not():
    posterior = make(size=500, spread=SPREAD)
    first, again = (project.project(posterior, [TARGET, replace(TARGET, family=None)]) for _ in range(2))
    assert first.identical(again)
    one, two = (project.qid_draws(posterior, [TARGET], "new", seed)[0] for seed in (1, 2))
    assert (one != two).all()


def test_bands_are_ordered_quantiles_of_the_draws():
    posterior = make(size=2000, spread=SPREAD)
    seen, _ = project.qid_draws(posterior, [TARGET], "new")
    row = project.rows(project.project(posterior, [TARGET]))[0]
    names = ["lower90", "lower50", "median", "upper50", "upper90"]
    assert [row[name] for name in names] == pytest.approx(np.quantile(seen[:, 0], [0.05, 0.25, 0.5, 0.75, 0.95]))
    for limit in (0.1, 0.2, 0.5):
        assert row[f"p_gt_{limit}"] == pytest.approx((seen > limit).mean())


def test_saturated_counts_draws_whose_unbounded_value_passes_a_uniform_guess():
    log_k = np.array([-2.0, -2.0, 3.0, 4.0])
    posterior = make(size=4, terms={"log_k": log_k})
    answer = project.project(posterior, [TARGET], "mean")
    headroom = draws.nearest_headroom(posterior, 3e9)
    raw = np.exp(log_k + closed(log_k=0.0))
    assert (raw > headroom).sum() == 2
    assert answer["p_saturated"].item() == 0.5
    assert answer["upper90"].item() < headroom


def test_how_far_beyond_the_data_a_target_lies():
    posterior = make()
    own = posterior.cells.isel(cell=(posterior.cells["family"] == "F0").values)
    most_n, most_d = float(own["n_params_nonembedding"].max()), float(own["train_tokens"].max())
    least_d = float(own["train_tokens"].min())

    def of(**change):
        return project.extrapolation(posterior, replace(TARGET, **change))

    assert of(params=2 * most_n, tokens=most_d) == {"n_ratio": pytest.approx(2), "d_ratio": 1, "p_outside": False}
    assert of(params=most_n, tokens=least_d / 5)["d_ratio"] == pytest.approx(5)
    assert of(effective_bits=1.5)["p_outside"]
    assert of(effective_bits=8.0)["p_outside"]
    everywhere = float(posterior.cells["n_params_nonembedding"].max())
    assert of(family=None, params=3 * everywhere)["n_ratio"] == pytest.approx(3)


GOOD, BAD = {"rhat": True}, {"rhat": False, "ess_bulk": True}
SURE, UNSURE = {"terms": {"beta": np.array([0.39, 0.41])}}, {"terms": {"beta": np.array([-0.6, 1.4])}}


@pytest.mark.parametrize(
    ("checks", "beta", "outside", "want"),
    [(GOOD, SURE, False, "ok"), (GOOD, SURE, True, "extrapolation"), (GOOD, UNSURE, False, "not identified"),
     (GOOD, UNSURE, True, "not identified"), (BAD, SURE, False, "checks failed"), (BAD, UNSURE, True, "checks failed")],
)  # fmt: skip
def test_the_verdict_is_the_first_that_holds(checks, beta, outside, want):
    assert project.verdict(make(size=2, checks=checks, **beta), [None], outside) == want


def test_contraction_compares_variances():
    """Prior draws -1 and 1: variance 1; posterior 0.4 -+ 0.3: 0.09."""
    posterior = make(size=2, terms={"beta": np.array([0.1, 0.7])})
    assert draws.contraction(posterior, "mu", "beta") == pytest.approx(1 - 0.09)
    assert project.informed(posterior, None)
    assert not project.informed(make(size=2, **UNSURE), None)


def test_the_object_has_the_keys_of_the_contract_and_no_nan():
    posterior = make(size=10)
    answer = project.as_json(project.project(posterior, asking.targets(posterior, 1e14)))
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert {"law", "model", "verdict", "band", "interval", "checks", "posterior", "assumptions", "excluded",
            "rows"} == set(answer)  # fmt: skip
    assert len(answer["rows"]) == 12
    assert set(answer["rows"][0]) == {
        "family", "params", "tokens", "bits", "method", "effective_bits", *project.quantile_names(""),
        "p_gt_0.1", "p_gt_0.2", "p_gt_0.5", "p_saturated", "extrapolation", "lr_phase", "shares",
    }  # fmt: skip
    assert answer["rows"][0]["family"] == "new"
    assert answer["interval"] == "eti"


@pytest.mark.parametrize("band", project.BANDS)
@pytest.mark.parametrize("checks", [GOOD, BAD])
def test_the_text_fits_a_terminal_of_80_columns(band, checks):
    posterior = make(size=100, checks=checks, spread=SPREAD, law="boxcox", tau=1.0)
    targets = [replace(TARGET, params=n, tokens=d, effective_bits=b, bits=b - 0.125)
               for n in (1.234e7, 4.05e11) for d in (1.5e9, 9.99e13, 3e16) for b in (2.125, 4.125, 6.625)]  # fmt: skip
    text = project.as_text(project.project(posterior, targets, band))
    assert max(map(len, text.splitlines())) <= 80
    assert len([line for line in text.splitlines() if line.startswith("F0")]) == 18
    assert text.startswith("Checks failed: rhat." if checks is BAD else "Verdict:")


def test_families_are_found_whatever_their_case_and_unknown_ones_refused():
    posterior = make()
    low = project.project(posterior, [replace(TARGET, family="f0")])
    assert low["family"].values.tolist() == ["F0"]
    with pytest.raises(BadInput, match=r"'FF0' is not in this posterior \(did you mean F0\?\): fitted are F0, F1"):
        project.project(posterior, [replace(TARGET, family="FF0")])
    with pytest.raises(BadInput, match="'magic' is not known: fitted are gptq, rtn"):
        project.project(posterior, [replace(TARGET, method="magic")])
    with pytest.raises(BadInput, match="no band 'wide': choose one of mean, new, observed"):
        project.project(posterior, [TARGET], "wide")


def test_a_recipe_and_bits_of_the_same_kind_are_one_target():
    rest = {"family": "F0", "params": 1e9, "tokens": 1e11}
    text, bits = asking.target_of("gptq-w4-g128", 0, "x", **rest), asking.target_of(None, 4, "gptq", **rest)
    assert text == bits
    assert text.effective_bits == 4.125
    assert asking.target_of("rtn-w3-g32-asym", 0, "x", **rest).effective_bits == 3 + 19 / 32
    assert asking.target_of("rtn-w3", 0, "x", **rest).per_channel
    # each column's group number stands once for all rows of a layer
    assert asking.target_of("gptq-w4-g128-act", 0, "x", **rest).effective_bits == 4 + 16 / 128 + 32 / 4096
    kinds = {name: asking.target_of(name, 0, "x", **rest) for name in ("gptq-w4-act", "rtn-nf4", "rtn-mxint4")}
    assert {name: methods.effect_key(*methods.canonical(one.method)) for name, one in kinds.items()} == {
        "gptq-w4-act": "gptq-actorder", "rtn-nf4": "bnb-nf4", "rtn-mxint4": "rtn-mxint"
    }  # fmt: skip
    for bad in (0.5, 17.0, math.nan, math.inf):
        with pytest.raises(BadInput, match="--bits"):
            asking.target_of(None, bad, "gptq", **rest)
    with pytest.raises(BadInput, match="baseline"):
        asking.target_of("none", 0, "x", **rest)


KNOWN = {"model": "M-7B", "family": "F1", "n_params_nonembedding": 6.5e9}


def test_a_question_takes_the_defaults_for_what_it_leaves_out():
    posterior = make()
    default = asking.targets(posterior, 1e14)
    assert {(t.family, t.tokens, t.method, t.effective_bits - t.bits) for t in default} == {(None, 1e14, "gptq", 0.125)}
    assert {(t.params, t.bits) for t in default} == {(n, b) for n in (1e9, 7e9, 70e9, 405e9) for b in (2, 3, 4)}
    named = asking.targets(posterior, 1e14, known=KNOWN, recipes="rtn-w3, gptq-w4-g128")
    assert [(t.family, t.params, t.method) for t in named] == [("F1", 6.5e9, "rtn"), ("F1", 6.5e9, "gptq")]
    assert asking.targets(posterior, 1e14, known=KNOWN, new_family=True)[0].family is None
    assert asking.targets(posterior, 1e14, known=KNOWN | {"family": "other"})[0].family is None


@pytest.mark.parametrize(
    ("asked", "why"),
    [({"params": 1e9, "known": KNOWN}, "--model-name"), ({"bits": 3, "recipes": "rtn-w3"}, "--recipes"),
     ({"family": "F0", "new_family": True}, "--new-family"), ({"lr_phase": "warm"}, "--lr-phase 'warm'"),
     ({"params": -1}, "--params is -1"), ({"params": math.nan}, "--params is nan"), ({"tokens": math.inf}, "--tokens"),
     ({"tokens": 10}, "--tokens is 10"), ({"known": KNOWN | {"n_params_nonembedding": math.nan}}, "--params is nan")],
)  # fmt: skip
def test_a_question_that_contradicts_itself_is_refused(asked, why):
    with pytest.raises(BadInput, match=why) as caught:
        asking.targets(make(), **({"tokens": 1e12} | asked))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "want"),
    [(7e9, "7B"), (6.98e9, "6.98B"), (1e14, "100T"), (2.5e5, "250k"), (12, "12"), (1.69e15, "1690T"), (1e16, "1e+16")],
)
def test_counts_in_short_form(value, want):
    assert wording.count_text(value) == want


def test_a_posterior_file_is_named_or_here_or_bundled_and_never_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert draws.locate(None)[1] == "bundled"
    files.write_netcdf(tree(size=3), tmp_path / "posterior.nc")
    here = draws.read()
    assert (here.path, here.origin, here.size) == ("posterior.nc", "file", 3)
    assert here.sha256 == files.sha256_file("posterior.nc")
    assert here.families == list(FAMILIES)
    assert here.sample["mu"].isel(draw=0).values.tolist() == list(TERMS.values())
    # a named file that is missing is an error although another one lies here
    with pytest.raises(BadInput, match="There is no posterior file"):
        draws.read("other.nc")
    files.write_netcdf(xr.DataTree(xr.Dataset(attrs={"schema": "other/1"})), tmp_path / "wrong.nc")
    with pytest.raises(BadInput, match="schema 'other/1'"):
        draws.read("wrong.nc")


def test_a_new_family_rests_on_the_prior_where_families_are_independent():
    posterior = make(size=400)
    tree = posterior.tree.copy()
    tree.attrs["model"] = "independent"
    independent = replace(posterior, tree=tree)
    assert not project.informed(independent, None)
    assert project.informed(posterior, None)


def test_the_population_mean_is_the_law_at_mu_without_any_family():
    posterior = make(size=MANY, sd=0.2)
    asked = asking.targets(posterior, 1e12, params=3e9, bits=3, population=True)
    eta = draws.log_law(posterior, asked, np.random.default_rng(0))
    np.testing.assert_allclose(eta, closed(), rtol=1e-12)
    drawn = draws.log_law(posterior, [replace(TARGET, family=None)], np.random.default_rng(0))
    assert drawn.std() > 0.2
    answer = project.project(posterior, [*asked, TARGET, replace(TARGET, family=None)], "mean")
    assert [row["family"] for row in project.rows(answer)] == ["population", "F0", "new"]
    assert project.rows(answer)[0]["lower90"] == pytest.approx(project.rows(answer)[0]["upper90"])
    text = project.as_text(answer)
    assert text.count("population ") == 1


def test_every_count_of_tokens_is_answered_as_if_asked_alone_and_curves_are_smooth():
    posterior = make(size=400, spread=SPREAD, tau=0.5, sd=0.2)
    asked = asking.targets(posterior, tokens_range="1e11:1e14", params=3e9, family="F0")
    found = project.rows(project.project(posterior, asked))
    assert len(found) == 3 * asking.POINTS
    for row in (found[0], found[20]):
        alone = project.project(posterior, asking.targets(posterior, row["tokens"], params=3e9, family="F0"))
        again = [one for one in project.rows(alone) if one["bits"] == row["bits"]]
        assert again == [row]
    # one law at every count: the logarithm of the median is straight but for the ceiling, without own draws' jitter
    medians = np.log([row["median"] for row in found if row["bits"] == 4])
    steps = np.diff(medians)
    assert (np.diff([row["tokens"] for row in found[:13]]) > 0).all()
    assert np.abs(np.diff(steps)).max() < 0.01
    jitter = [project.qid_draws(posterior, [one], "new", seed)[0] for seed, one in enumerate(asked[26:])]
    assert np.abs(np.diff(np.log(np.median(jitter, axis=(1, 2))), 2)).max() > 0.03


CERTAIN = loss_laws.LossLaw("own", "chinchilla", {"E": 1.5, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.28})


def test_the_quantized_loss_is_the_law_plus_qid():
    posterior = make(size=2000, spread=SPREAD)
    before = 1.5 + 400 * 3e9**-0.34 + 400 * 1e12**-0.28
    row = project.rows(project.project(posterior, [TARGET], "new", CERTAIN))[0]
    assert row["loss"]["loss16"] == pytest.approx(before)
    for name in project.quantile_names(""):
        assert row["loss"][name] == pytest.approx(before + row[name], rel=1e-9)
    # QiD itself is the same, whatever law of the loss is asked for
    plain = project.rows(project.project(posterior, [TARGET], "new"))[0]
    assert plain == {name: value for name, value in row.items() if name != "loss"}


def test_the_uncertainty_of_the_loss_law_is_independent_of_that_of_qid():
    """Variances add: of QiD with a known spread, and of an irreducible loss whose sd is 0.05."""
    posterior = make(size=MANY, terms={"log_k": np.random.default_rng(6).normal(-2, 0.3, MANY)})
    unsure = replace(CERTAIN, sd=dict.fromkeys(CERTAIN.mean, 0.0) | {"E": 0.05})
    qid, _ = project.qid_draws(posterior, [TARGET], "mean")
    answer = project.project(posterior, [TARGET], "mean", unsure)
    loss16 = loss_laws.draws(unsure, [3e9], [1e12], MANY, np.random.default_rng(0)).std()
    assert loss16 == pytest.approx(0.05, rel=VARIANCE)
    row = project.rows(answer)[0]["loss"]
    # both are nearly normal: half the central half is 0.6745 of a standard deviation
    width = (row["upper50"] - row["lower50"]) / (2 * 0.6745)
    alone = np.subtract(*np.quantile(qid, [0.75, 0.25])) / (2 * 0.6745)
    assert width == pytest.approx(math.hypot(alone, 0.05), rel=0.03)


def test_the_object_says_which_loss_law_and_not_by_which_command():
    posterior = make(size=10)
    answer = project.project(posterior, [TARGET], loss_law="chinchilla")
    answer.attrs["command"] = "bayesqid project"
    told = project.as_json(answer)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert "command" not in told
    assert told["loss_law"]["sd"]["A"] == 124.58
    assert "independent" in told["loss_law"]["uncertainty"]
    assert project.as_json(project.project(posterior, [TARGET], loss_law="ouyang"))["loss_law"]["sd"] is None
    with pytest.raises(BadInput, match="no loss law 'nobody'"):
        project.project(posterior, [TARGET], loss_law="nobody")


@pytest.mark.parametrize("law", loss_laws.LOSS_LAWS)
def test_the_text_with_loss_and_shares_fits_a_terminal_and_says_what_is_known(law):
    posterior = make(size=100, spread=SPREAD, law="boxcox", tau=1.0)
    targets = [replace(TARGET, family=None, population=True, params=4.05e11, tokens=3e16), TARGET]
    text = project.as_text(project.project(posterior, targets, loss_law=law), with_shares=True)
    assert max(map(len, text.splitlines())) <= 80
    flowing = " ".join(text.split())
    assert loss_laws.uncertainty(loss_laws.read(law)) in flowing
    assert loss_laws.read(law).citation in flowing
    assert "ceiling of QiD is that of the fitted models" in flowing
    assert len([line for line in text.splitlines() if line.startswith("F0")]) == 3


def test_rows_of_several_phases_say_which():
    posterior = make(size=10)
    answer = project.as_json(project.project(posterior, [TARGET, replace(TARGET, lr_phase="constant")]))
    assert [row["lr_phase"] for row in answer["rows"]] == ["annealed", "constant"]
    assert answer["assumptions"]["lr_phase"] == "annealed, constant"


def test_the_command_reads_a_table_and_prints_loss_and_shares(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("model,params,tokens,bits,family\nLLaMA-3-8B,,,4,\n,70e9,1e14,4,population\n")
    words = ["bayesqid", "project", "--targets", "t.csv", "--loss-law", "chinchilla", "--shares"]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
    text, last = capsys.readouterr().out.rsplit("\n{", 1)
    found = json.loads("{" + last)
    assert [(row["family"], row["tokens"]) for row in found["rows"]] == [("LLaMA-3", 15e12), ("population", 1e14)]
    for row in found["rows"]:
        assert row["loss"]["lower90"] < row["loss"]["median"] < row["loss"]["upper90"]
        assert sum(row["shares"].values()) == pytest.approx(1)
    assert found["rows"][1]["shares"]["family"] == 0
    assert found["loss_law"]["name"] == "chinchilla"
    assert len([line for line in text.splitlines() if line.startswith("LLaMA-3 ")]) == 3
