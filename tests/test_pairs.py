import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import posteriors
from bayesqid.answers import draws, drivers, pairs, separation

NO_SUITE = ["smollm3"]
TOKENS = (1e11, 3e11, 1e12, 3e12)


def made(effect=lambda tokens: np.log(1.5), scatter: float = 0.0, seed: int = 0, se: float = 1e-3) -> xr.Dataset:
    """Cells of three sizes and four token counts, each checkpoint after decay beside an undecayed one."""
    rng, parts = np.random.default_rng(seed), []
    places = {"crossed": [(n, d) for n in (1e9, 7e9, 70e9) for d in TOKENS]}
    for phase in ("annealed", "constant"):
        one = posteriors.cells(places, phase)
        label = np.array([f"{name} {phase}" for name in one["checkpoint"].values], dtype=object)
        tokens = one["train_tokens"].to_numpy()
        shift = (phase == "annealed") * effect(tokens) + scatter * rng.normal(size=tokens.size)
        left = np.where(phase == "annealed", 0.0, 1.0) * np.ones(tokens.size)
        qid = one["qid"].to_numpy() * np.exp(shift)
        one = one.assign_coords(checkpoint=("cell", label), lr_fraction=("cell", left))
        parts.append(one.assign(qid=("cell", qid), qid_se=("cell", np.full(qid.size, se)),
                                censored=("cell", np.zeros(qid.size, dtype=bool))))  # fmt: skip
    joined = xr.concat(parts, "cell", combine_attrs="override")
    assert isinstance(joined, xr.Dataset)
    return joined


def simulated(m: float, s: float, tau: float, omega: float, rng, count: int = 8, recipes: int = 6) -> pairs.Pairs:
    tokens = np.repeat(np.geomspace(1e6, 2e7, count // 2), 2)
    d = m + s * (np.log(tokens) - np.log(tokens).mean()) + tau * rng.normal(size=count)
    place = np.repeat(np.arange(count), recipes)
    se = rng.uniform(0.02, 0.2, place.size)
    y = d[place] + np.hypot(se, omega) * rng.normal(size=place.size)
    blank = np.full(count, "", dtype=object)
    return pairs.Pairs(blank, blank, np.ones(count), tokens, place, y, se, place, place)


def test_the_posterior_is_that_of_weighted_draws_of_the_prior_under_the_whole_covariance_matrix():
    rng = np.random.default_rng(3)
    seen = simulated(0.2, 0.15, 0.15, 0.2, rng, count=4, recipes=2)
    fitted = pairs.fit(seen, size=20000)
    size = 40_000
    m, s = rng.normal(0, 0.5, size), rng.normal(0, 0.3, size)
    tau, omega = np.abs(rng.normal(0, 0.3, (2, size)))
    x = np.log(seen.tokens) - np.log(seen.tokens).mean()
    line = m[:, None] + s[:, None] * x
    shared = (seen.pair[:, None] == seen.pair).astype(float)
    covariance = tau[:, None, None] ** 2 * shared + (seen.se**2 + omega[:, None] ** 2)[:, None] * np.eye(8)
    off = seen.log_ratio - line[:, seen.pair]
    solved = np.linalg.solve(covariance, off[..., None])[..., 0]
    log_weight = -0.5 * (np.linalg.slogdet(covariance)[1] + (off * solved).sum(1))
    weight = np.exp(log_weight - log_weight.max())
    enough = weight.sum() ** 2 / (weight**2).sum()
    assert enough > 500
    for own, other in (*zip(fitted.line.T, (m, s), strict=True), (fitted.tau, tau), (fitted.omega, omega)):
        mean = np.average(other, weights=weight)
        sd = np.sqrt(np.average((other - mean) ** 2, weights=weight))
        assert own.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(enough))
        assert own.std() == pytest.approx(sd, rel=4 / np.sqrt(enough))
    d = line + tau[:, None] ** 2 * (solved @ (seen.pair[:, None] == np.arange(4)))
    np.testing.assert_allclose(fitted.pair.mean(0), np.average(d, axis=0, weights=weight), atol=0.03)


def test_intervals_cover_what_the_prior_drew():
    rng, inside, many = np.random.default_rng(5), [], 80
    for _ in range(many):
        m, s = rng.normal(0, pairs.PRIOR_SD)
        tau, omega = np.abs(rng.normal(0, pairs.SCATTER_SD, 2))
        seen = simulated(m, s, tau, omega, rng)
        fitted = pairs.fit(seen, size=1000)
        high = m + s * (np.log(seen.tokens[-1]) - fitted.center)
        for truth, got in ((high, fitted.at(seen.tokens[-1])), (tau, fitted.tau), (omega, fitted.omega)):
            low, up = np.quantile(got, [0.05, 0.95])
            inside.append(low <= truth <= up)
    share = np.reshape(inside, (many, 3)).mean(0)
    # three standard errors of a binomial share of 0.9
    assert np.all(np.abs(share - 0.9) < 3 * np.sqrt(0.09 / many)), share


def test_pairs_that_contain_nothing_leave_the_prior():
    seen = simulated(0.0, 0.0, 0.1, 0.1, np.random.default_rng(0))
    fitted = pairs.fit(replace(seen, se=np.full(seen.se.size, 1e4)))
    assert fitted.line.std(axis=0) == pytest.approx(pairs.PRIOR_SD, rel=0.05)
    assert (fitted.line[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert np.median(fitted.tau) == pytest.approx(0.6745 * pairs.SCATTER_SD, rel=0.06)


def test_recipes_of_one_pair_are_no_further_pairs():
    seen = simulated(0.3, 0.0, 0.2, 0.05, np.random.default_rng(1), count=6, recipes=4)
    many = replace(seen, pair=np.tile(seen.pair, 30), log_ratio=np.tile(seen.log_ratio, 30), se=np.tile(seen.se, 30))
    few, more = pairs.fit(seen).line[:, 0].std(), pairs.fit(many).line[:, 0].std()
    assert 0.7 * few < more < 1.1 * few


def test_only_exact_pairs_of_one_run_and_recipe_above_the_floor_count():
    data = made()
    full = pairs.matched(data)
    assert (len(full.tokens), full.pair.max()) == (12, 11)
    np.testing.assert_allclose(full.log_ratio, np.log(1.5))
    qid = data["qid"].to_numpy()
    mean = (qid[full.after] + qid[full.before]) / 2
    assert mean.min() > pairs.FLOOR
    at = full.se[0] ** 2
    assert at == pytest.approx((1e-3 / qid[full.after[0]]) ** 2 + (1e-3 / qid[full.before[0]]) ** 2)
    undecayed = data["lr_phase"].to_numpy() == "constant"
    swapped = data.assign(qid=("cell", np.roll(qid, qid.size // 2)))
    assert len(pairs.matched(swapped).pair) == len(full.pair)

    def off(name, value):
        return pairs.matched(data.assign_coords({name: ("cell", np.where(undecayed, value, data[name].to_numpy()))}))

    tokens = data["train_tokens"].to_numpy()
    assert len(off("train_tokens", 1.009 * tokens).tokens) == 12
    for name, value in (("train_tokens", 1.02 * tokens), ("model", "seed2"), ("family", "other"), ("ctx_len", 256.0),
                        ("n_params_nonembedding", 5e8), ("group_size", 32.0), ("eval_dataset", "c4")):  # fmt: skip
        assert len(off(name, value).tokens) == 0, name
    falling = off("lr_phase", "decaying")
    assert len(falling.tokens) == 12  # its rate is still the peak's
    low = data.assign_coords(lr_fraction=("cell", np.where(undecayed, 0.5, 0.0)))
    low = low.assign_coords(lr_phase=("cell", np.where(undecayed, "decaying", "annealed").astype(object)))
    assert len(pairs.matched(low).tokens) == 0
    below = data.assign(qid=("cell", np.where(undecayed, -0.5, qid)))
    assert len(pairs.matched(below).tokens) == 0
    assert len(pairs.matched(data.assign(censored=("cell", undecayed))).tokens) == 0


def test_a_choice_of_recipes_keeps_their_pairs():
    seen = pairs.matched(made())
    some = seen.at(seen.tokens[seen.pair] > 5e11)
    assert sorted(set(some.tokens)) == [1e12, 3e12]
    np.testing.assert_array_equal(some.tokens[some.pair], seen.tokens[seen.pair][seen.tokens[seen.pair] > 5e11])


def with_law(data: xr.Dataset, factor: float, **wanted) -> draws.Posterior:
    """A posterior whose law says that decay multiplies by `factor`, give or take 5 %."""
    posterior = posteriors.posterior(data=data, **wanted)
    sample, rng = posterior.sample.copy(deep=True), np.random.default_rng(2)
    for name, center, sd in (("undecayed", -np.log(factor), 0.05), ("undecayed_slope", 0.0, 0.001)):
        sample["covariate"].loc[{"covariate_name": name}] = center + sd * rng.normal(size=posterior.size)
    return replace(posterior, sample=sample)


def test_a_law_that_its_own_pairs_contradict_is_not_called_separated():
    data = made(lambda tokens: 0.1 + 0.1 * np.log(tokens / 1e12), scatter=0.05)
    agrees = drivers.as_json(drivers.drivers(with_law(data, 1.2), suite=NO_SUITE))
    assert agrees["verdict"] == "separated"
    assert agrees["pairs"]["pairs"] == 12
    high = agrees["pairs"]["at"][-1]
    assert high["ratio"]["lower90"] < np.exp(0.1 + 0.1 * np.log(3)) < high["ratio"]["upper90"]
    assert agrees["pairs"]["tail"] > 0.2
    found = drivers.drivers(with_law(data, 0.6), suite=NO_SUITE)
    told, text = drivers.as_json(found), drivers.as_text(found)
    json.dumps(told, allow_nan=False)
    assert told["verdict"] == pairs.CONTRADICTED
    assert told["pairs"]["at"][-1]["law"]["median"] == pytest.approx(0.6, rel=0.02)
    assert told["pairs"]["tail"] < agrees["pairs"]["tail"]
    assert text.startswith("Verdict: law contradicted: ")
    assert "Matched pairs: 12 checkpoints" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    failed = with_law(data, 0.6, checks={"rhat": False})
    assert drivers.drivers(failed, suite=NO_SUITE).attrs["verdict"] == "checks failed"


def test_the_tail_area_counts_the_scatter_of_checkpoints_that_the_law_has():
    data = made(scatter=0.05)
    posterior = with_law(data, 1.1)
    seen = pairs.matched(data)
    fitted, decay = pairs.fit(seen), np.full((posterior.size, 12), np.log(1.1))
    wide = posterior.sample.copy(deep=True)
    wide["spread"] = 5 + 0 * wide["spread"]
    narrow = posterior.sample.copy(deep=True)
    narrow["spread"], narrow["tau"] = 0 * narrow["spread"], 0 * narrow["tau"]
    areas = [pairs.tail(replace(posterior, sample=one), seen, fitted, decay, 3e12) for one in (narrow, wide)]
    assert areas[0] < 0.02
    assert areas[1] > 0.5


def test_data_without_pairs_say_nothing_of_them():
    posterior = posteriors.posterior()
    after = separation.coefficients(posterior.sample)
    assert pairs.beside_the_law(posterior, after, 1e9, True) is None
    found = drivers.drivers(posterior, suite=NO_SUITE)
    assert "pairs" not in drivers.as_json(found)
    assert "Matched pairs" not in drivers.as_text(found)
    few = made().isel(cell=np.flatnonzero(made()["n_params_nonembedding"].to_numpy() == 1e9))
    few = few.isel(cell=np.flatnonzero(few["train_tokens"].to_numpy() < 3e12))
    assert len(pairs.matched(few).tokens) == 3
    assert pairs.beside_the_law(posteriors.posterior(data=few), after, 1e9, True) is None


def test_a_fit_that_gave_decay_no_effect_is_shown_the_pairs_and_not_judged_by_them():
    data = made()
    posterior = with_law(data, 0.6)
    after = separation.coefficients(posterior.sample)
    told = pairs.beside_the_law(posterior, after, 1e9, False)
    assert told is not None
    assert (told["contradicted"], told["tail"], told["at"][0]["law"]) == (False, None, None)
    assert told["at"][0]["raises"] > 0.99
    assert "law makes up" not in " ".join(pairs.lines(told))
