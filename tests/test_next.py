"""Truth here is conditioning of a Gaussian written out cell by cell, the law evaluated directly, and simulation."""

import json
import math
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

import posteriors
from bayesqid import laws, likelihood, suite
from bayesqid.answers import asking, design, draws, measurable, plan_file
from bayesqid.answers import next as answer
from bayesqid.cli import next as cli_next
from bayesqid.errors import BadInput

RECIPES = ("rtn-w3", "gptq-w4-g128", "gptq-w2-g128")
SIZES, TOKENS = (1e8, 1e9, 1e10), (1e10, 1e11, 1e12)


def made(family="crossed", sizes=SIZES, tokens=TOKENS, recipes=RECIPES, phase="annealed"):
    """A suite in memory: one run per size."""
    checkpoints = tuple(
        suite.Checkpoint(family, f"m-{n:g}", f"hub/m-{n:g}", f"{d:g}", int(n), int(n), int(d), phase, 0.1, 32000)
        for n in sizes for d in tokens
    )  # fmt: skip
    return suite.Suite("made", "", checkpoints, recipes, suite.Text("", "", 2048), Path("made.toml"))


def bent():
    """A posterior of the law `curved`: the same draws with bends of their own."""
    fitted = posteriors.posterior()
    tree = fitted.tree.copy()
    tree.attrs = fitted.tree.attrs | {"law": "curved"}
    names = [c.name for c in laws.get("curved").covariates]
    further = 0.01 * np.random.default_rng(3).normal(size=(fitted.size, 3))
    values = np.concatenate([fitted.sample["covariate"].to_numpy(), further], axis=1)
    sample = fitted.sample.drop_vars(["covariate", "covariate_name"]).assign(
        covariate=xr.DataArray(values, dims=("draw", "covariate_name"), coords={"covariate_name": names})
    )
    return replace(fitted, tree=tree, sample=sample)


def a_pool(posterior=None, plan=None, family="crossed"):
    """(pool, its rows, the posterior with the suite's families)."""
    posterior = posteriors.posterior() if posterior is None else posterior
    plan = made() if plan is None else plan
    aim = asking.target_of(None, 4.0, "gptq", family=family, params=70e9, tokens=1e14)
    rows, _ = measurable.usable(posterior, plan)
    fuller = measurable.with_families(posterior, [*(r.first.family for r in rows), family], 1)
    return measurable.pool(fuller, plan, rows, plan.recipes, aim, 0.002, 2e13, 1), rows, fuller


def left(pool, scenario, chosen):
    """Variance of the target given every measured QiD at once, from the joint covariance written out."""
    cells = [(number, row, r) for number, (row, recipes) in enumerate(chosen) for r in recipes]
    columns = [pool.target, *(pool.nodes[:, pool.group[row], r, :] @ pool.weights[row] for _, row, r in cells)]
    features = np.array([pool.target_features, *(pool.features[row, r] for _, row, r in cells)])
    cov = np.atleast_2d(np.cov(np.array(columns))) + features @ np.diag(pool.variances[scenario]) @ features.T
    for i, (number, row, r) in enumerate(cells, 1):
        cov[i, i] += pool.noise[row, r]
        for j, (other, _, _) in enumerate(cells, 1):
            cov[i, j] += pool.shared * (number == other)
    if not cells:
        return cov[0, 0]
    return cov[0, 0] - cov[0, 1:] @ np.linalg.solve(cov[1:, 1:], cov[1:, 0])


@pytest.mark.parametrize("scenario", [0, 1])
def test_variance_after_several_checkpoints_is_that_of_conditioning_on_all_at_once(scenario):
    pool, *_ = a_pool()
    chosen = [(0, (0, 2)), (4, (1,)), (6, (0, 1, 2)), (0, (1,))]
    assert design.after(pool, chosen, scenario) == pytest.approx(left(pool, scenario, chosen), rel=1e-8)


def falls(pool, chosen):
    """How far ln var(target) falls, by scenario."""
    return np.array([math.log(left(pool, s, []) / left(pool, s, chosen)) for s in (0, 1)])


@pytest.mark.parametrize("per_hour", [False, True])
def test_first_pick_is_the_best_of_all_checkpoints_and_all_bundles(per_hour):
    pool, *_ = a_pool()
    every = [(row, b) for row in range(len(pool.group)) for size in (1, 2, 3) for b in combinations(range(3), size)]
    fall = np.array([falls(pool, [one]) for one in every])
    cost = np.array([pool.first[row] + pool.hours[row, list(b)].sum() if per_hour else 1.0 for row, b in every])
    alone = fall[(fall / cost[:, None]).argmax(axis=0), (0, 1)]
    worth = (fall / alone).mean(axis=1) / cost
    pick = design.choose(pool, 1, per_hour=per_hour)[0]
    # bundles grow recipe by recipe, so that the very best may be missed, but by little
    assert worth[every.index((pick.row, pick.recipes))] >= 0.98 * worth.max()
    assert pick.variance == pytest.approx([left(pool, s, [(pick.row, pick.recipes)]) for s in (0, 1)])


def test_a_compound_choice_gives_up_neither_scenario():
    pool, *_ = a_pool(plan=made(sizes=np.geomspace(1e8, 1e10, 6), tokens=np.geomspace(1e10, 2.5e11, 6)))
    both = falls(pool, [(pick.row, pick.recipes) for pick in design.choose(pool, 3, per_hour=False)])
    for own, other in ((0, 1), (1, 0)):
        alone = design.greedy(pool, {own: 1.0}, 3, np.inf, False, 0.0)
        reached = falls(pool, [(pick.row, pick.recipes) for pick in alone])
        assert both[own] <= reached[own] * 1.02
        assert both[own] > 0.7 * reached[own]
        assert both[other] > 0.95 * reached[other]


@pytest.mark.parametrize("law", ["boxcox", "curved"])
def test_draws_of_every_candidate_are_those_of_the_law(law):
    fitted = bent() if law == "curved" else posteriors.posterior()
    pool, rows, fuller = a_pool(fitted, made(tokens=(1e9, 3e10, 1e15), phase="decaying"))
    for number, row in enumerate(rows):
        for r, kind in enumerate(measurable.recipes_of(fitted, RECIPES)):
            there = replace(kind, family="crossed", params=row.first.n_params, tokens=row.first.train_tokens,
                            lr_phase="decaying")  # fmt: skip
            direct = draws.log_law(fuller, [there], np.random.default_rng(1))[:, 0]
            by_nodes = pool.nodes[:, pool.group[number], r, :] @ pool.weights[number]
            np.testing.assert_allclose(by_nodes, direct, rtol=1e-7, atol=1e-7)


def test_a_fitted_source_moves_its_candidates_and_a_new_one_is_an_unknown_of_its_own():
    data = posteriors.cells()
    known = data.assign_coords(source_method=("cell", [f"measured: made | {m}" for m in data["method"].values]))
    fresh, told = a_pool()[0], a_pool(posteriors.posterior(data=known))[0]
    assert fresh.features.shape[2] == told.features.shape[2] + 2
    assert fresh.variances[0].max() > 0
    assert not told.variances[0].any()


def test_families_that_nobody_measured_share_one_draw_and_the_target_may_be_one_of_them():
    same, *_ = a_pool(plan=made("unseen"), family="unseen")
    other, *_ = a_pool(plan=made("unseen"), family="another")
    everything = [(row, (0, 1, 2)) for row in range(9)]
    shrink_same, shrink_other = (design.after(p, everything) / design.start(p, 0).variance for p in (same, other))
    assert shrink_same < 0.5 * shrink_other


def test_a_law_with_bends_of_its_own_has_no_second_scenario():
    assert list(answer.next_(bent(), made(), "2")["scenario"].values) == ["fitted"]
    assert list(answer.next_(posteriors.posterior(), made(), "2")["scenario"].values) == ["fitted", "bent"]


def test_bends_widen_the_target_by_their_priors_far_from_the_data():
    fitted = posteriors.posterior()
    centre = fitted.tree["constant_data"].to_dataset()
    n = math.log(70) - float(centre["center_x_N"].mean())
    d = math.log(1000) - float(centre["center_x_D"].mean())
    plain, wide = (design.start(a_pool(fitted)[0], s).variance for s in (0, 1))
    assert wide - plain == pytest.approx(0.02**2 * (n**4 + d**4 + (n * d) ** 2), rel=1e-9)


def test_noise_of_a_sharp_measurement_is_the_scatter_and_of_a_hopeless_one_is_endless():
    fitted = posteriors.posterior()
    kinds = measurable.recipes_of(fitted, ("gptq-w4",))
    tau2 = float((fitted.sample["tau"].sel(generation="calibrated") ** 2).mean())
    headroom = np.array([8.5])

    def at(log_qid, error):
        return measurable.noise(fitted, np.array([[log_qid]]), np.zeros((1, 1)), kinds, headroom, error).item()

    assert at(-2.0, 1e-6) == pytest.approx(tau2, rel=1e-6)
    # far below what can be seen only the error counts; past ten-fold perplexity nothing is told
    assert at(-9.0, 0.01) > 50 * tau2
    assert at(float(likelihood.censoring_point(8.5)) + 3, 1e-6) > 1e6


def test_hours_grow_with_parameters_and_a_loaded_checkpoint_is_cheaper():
    plan = made()
    rows, _ = measurable.usable(posteriors.posterior(), plan)
    first, each = measurable.hours(plan, rows, RECIPES, 2e13)
    size = np.array([row.first.n_params for row in rows])
    tokens = measurable.COST["text_bytes"] / measurable.COST["text_bytes_per_token"]
    assert first * 3600 == pytest.approx(60 + size * (2 / 2e8 + 2 * tokens / 2e13))
    assert each[:, 0] * 3600 == pytest.approx(2 * size * tokens / 2e13)
    assert (each[:, 1] > each[:, 0]).all()
    assert measurable.hours(plan, rows, RECIPES, 4e13)[1] == pytest.approx(each / 2)


def test_no_checkpoint_is_picked_twice_nor_its_neighbour_in_one_run():
    plan = made(sizes=(1e9,), tokens=(1e10, 1.2e10, 1.4e10, 1e11))
    found = answer.next_(posteriors.posterior(), plan, "8")
    low, high = sorted(found["tokens"].values)
    assert low in (1e10, 1.2e10, 1.4e10)
    assert high == 1e11
    twice = answer.next_(posteriors.posterior(), made(), "100")
    assert len(set(twice["checkpoint"].values)) == twice.sizes["pick"]


def test_other_seeds_of_a_checkpoint_are_picked_beside_it():
    plan = made(sizes=(1e9,), tokens=(1e11,))
    seeds = [replace(plan.checkpoints[0], hub=f"hub/m-seed{k}", model=f"m-seed{k}", seed=k) for k in (1, 2)]
    found = answer.next_(posteriors.posterior(), replace(plan, checkpoints=(*seeds, *plan.checkpoints)), "8")
    assert found["model"].values.tolist() == ["m-1e+09", "m-seed1", "m-seed2"]


def test_what_is_fitted_is_not_measured_again_nor_what_a_law_has_no_words_for():
    # the cells hold the family crossed at 1e9 parameters after 3e11, 3e12 and 3e13 tokens
    plan = made(sizes=(1e9,), tokens=(1e11, 2.9e11, 3e12))
    rows, out = measurable.usable(posteriors.posterior(), plan)
    assert [row.first.train_tokens for row in rows] == [1e11]
    assert list(out.values()) == [2]
    seeded = replace(plan, checkpoints=tuple(replace(c, seed=3) for c in plan.checkpoints))
    assert len(measurable.usable(posteriors.posterior(), seeded)[0]) == 3
    warm = replace(plan.checkpoints[0], lr_phase="unknown")
    broken = replace(plan.checkpoints[0], excluded="wrong weights")
    rows, out = measurable.usable(posteriors.posterior(), replace(plan, checkpoints=(warm, broken)))
    assert (rows, out) == ([], {"learning-rate phase unknown": 1, "wrong weights": 1})


def test_a_budget_of_hours_is_kept():
    whole = answer.next_(posteriors.posterior(), made(), "100")
    some = answer.next_(posteriors.posterior(), made(), f"{float(whole['hours'].sum()) / 2}h")
    assert 0 < some["hours"].sum() <= whole["hours"].sum() / 2
    assert some.sizes["pick"] < whole.sizes["pick"]


def test_uncertainty_falls_with_every_pick_and_the_band_with_it():
    found = answer.next_(posteriors.posterior(), made(), "5")
    assert (np.diff(found["sd"].to_numpy(), axis=1) < 0).all()
    now, after = (found[name].to_numpy() for name in ("band_now", "band_after"))
    assert now[0] < after[0] < after[1] < now[1]
    kept = np.log(after[1] / after[0]) / np.log(now[1] / now[0])
    assert kept == pytest.approx(float(found["sd"][0, -1] / found["sd"][0, 0]), rel=0.05)


def test_greedy_choice_beats_random_ones_of_as_many_checkpoints_and_recipes():
    pool, rows, _ = a_pool(plan=made(sizes=np.geomspace(1e8, 1e10, 6), tokens=np.geomspace(1e10, 2.5e11, 6)))
    picks = design.choose(pool, 4, per_hour=False)
    rng = np.random.default_rng(0)
    for scenario in (0, 1):
        sets = [rng.choice(len(rows), 4, replace=False).tolist() for _ in range(40)]
        blind = [design.after(pool, [(row, (0, 1, 2)) for row in one], scenario) for one in sets]
        assert picks[-1].variance[scenario] < np.median(blind)


@pytest.mark.parametrize("text", ["0", "-3", "nan", "1e400", "2.5", "101", "h", "0h", "-1h", "1e400h", "nanh", "many"])
def test_budgets_that_make_no_sense_are_refused(text):
    with pytest.raises(BadInput, match="--budget"):
        answer.parse_budget(text)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"suite": "pythis"}, "Did you mean pythia"),
    ({"candidates": "gptq-w4,gptq-w4"}, "twice"),
    ({"candidates": "none"}, "baseline"),
    ({"candidates": ""}, "not a recipe"),
    ({"per": "day"}, "--per"),
    ({"error": math.nan}, "--error"),
    ({"flops": 0.0}, "--flops"),
    ({"tokens": math.inf}, "--tokens"),
    ({"params": -1.0}, "--params"),
    ({"bits": math.nan}, "--bits"),
    ({"recipes": "rtn-w3,rtn-w4"}, "one recipe"),
    ({"family": "crosed"}, "did you mean crossed"),
    ({"family": "crossed", "new_family": True}, "contradict"),
    ({"budget": "1e-9h"}, "pays for no checkpoint"),
])  # fmt: skip
def test_bad_input_is_said_in_one_sentence(wrong, said):
    with pytest.raises(BadInput, match=said):
        answer.next_(posteriors.posterior(), **{"suite": made(), **wrong})


def test_record_and_table_say_the_same_in_80_columns():
    found = answer.next_(posteriors.posterior(checks={"rhat": False}), made(), "3")
    told = answer.as_json(found)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    text = answer.as_text(found)
    assert text.startswith("Checks failed: rhat.")
    assert max(map(len, text.splitlines())) <= 80
    for row in told["rows"]:
        assert f"{row['model']}@{row['revision']}" in text
        assert f"{row['sd_bent']['after']:.3f}" in text
    assert told["rows"][-1]["gpu_hours_so_far"] == pytest.approx(sum(row["gpu_hours"] for row in told["rows"]))


def same(one, other):
    """Whether two checkpoints agree in all that a measurement rests on."""
    a, b = (asdict(c) | {"status": ""} for c in (one, other))
    return all(a[key] == b[key] or (isinstance(a[key], float) and a[key] == pytest.approx(b[key])) for key in a)


@pytest.mark.parametrize("name", suite.names())
def test_the_written_suite_has_the_very_checkpoints(name, tmp_path):
    plan = suite.load(name)
    usable = [c for c in plan.checkpoints if not c.excluded]
    chosen = [usable[i] for i in np.linspace(0, len(usable) - 1, 17).astype(int)]
    written = plan_file.texts(plan, chosen, ["rtn-w3"], tmp_path / "next.toml")
    for place, text in written.items():
        place.write_text(text, encoding="utf-8")
    back = suite.load(tmp_path / "next.toml")
    assert (back.name, back.recipes, back.text) == (plan.name, ("rtn-w3",), plan.text)
    assert len(back.checkpoints) == len(chosen)
    by_id = {c.id: c for c in back.checkpoints}
    assert all(same(c, by_id[c.id]) for c in chosen)


def test_command_prints_the_picks_and_writes_them_as_a_suite(tmp_path):
    app, place = typer.Typer(), tmp_path / "next.toml"
    app.command()(cli_next.next_)
    done = CliRunner().invoke(app, ["--suite", "tiny", "--budget", "3", "--json", "-o", str(place)])
    assert done.exit_code == 0
    told, plan = json.loads(done.stdout), suite.load(place)
    assert {c.id for c in plan.checkpoints} == {row["checkpoint"] for row in told["rows"]}
    assert set(plan.recipes) == {recipe for row in told["rows"] for recipe in row["recipes"]}
    assert all(Path(c.hub).is_dir() for c in plan.checkpoints)
