import json
import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import posteriors
from bayesqid import laws, likelihood, suite
from bayesqid.answers import draws, drivers, project, separation
from bayesqid.errors import BadInput

NO_SUITE = ["smollm3"]


def mixed(**wanted) -> draws.Posterior:
    """A posterior of cells whose shortest runs stand before the end of decay."""
    data = posteriors.cells()
    early = data["train_tokens"].to_numpy() == 3e11
    phase = np.where(early, "constant", data["lr_phase"].to_numpy()).astype(object)
    return posteriors.posterior(data=data.assign_coords(lr_phase=("cell", phase)), **wanted)


def moved(posterior: draws.Posterior, **covariates: np.ndarray) -> draws.Posterior:
    """The same posterior with other draws of some covariates."""
    sample = posterior.sample.copy(deep=True)
    for name, values in covariates.items():
        sample["covariate"].loc[{"covariate_name": name}] = values
    return replace(posterior, sample=sample)


def variant(which: str) -> draws.Posterior:
    """A posterior fitted with --drivers tokens or phase."""
    made = posteriors.tree()
    law = laws.variant("boxcox", which)
    for group in ("posterior", "prior"):
        data = made[group].to_dataset().sel(
            term=list(law.term_names), covariate_name=[c.name for c in law.covariates])  # fmt: skip
        made[group] = xr.DataTree(data.drop_vars([] if which == "tokens" else ["beta"]))
    made.attrs["drivers"] = which
    return draws.Posterior(made, draws.flatten(made["posterior"].to_dataset()), "x.nc", "0" * 64, "file")


def points(rows: list[tuple]) -> separation.Points:
    """Checkpoints of (family, run, N, D, rate)."""
    family, run, params, tokens, rate = (np.array(column) for column in zip(*rows, strict=True))
    return separation.Points(family, run, params.astype(float), tokens.astype(float), rate.astype(float),
                             (rate > 0).astype(float))  # fmt: skip


def random_points(seed: int, size: int = 90) -> separation.Points:
    rng = np.random.default_rng(seed)
    return points([
        (f"f{rng.integers(2)}", f"r{rng.integers(6)}", 10.0 ** rng.integers(7, 9), np.exp(rng.uniform(0, 4)) * 1e10,
         rng.choice([1.0, 0.95, 0.4, 0.0, np.nan])) for _ in range(size)
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_contrasts_are_those_that_looking_at_every_pair_finds(seed):
    found = random_points(seed)
    rows = list(zip(found.family, found.params, found.tokens, found.rate, found.run, strict=True))
    phase = {id(row): "full" if row[3] >= 0.9 else "over" if row[3] == 0 else "else" for row in rows}
    pairs = sum(
        phase[id(a)] == "over" and any(
            phase[id(b)] == "full" and a[:2] == b[:2] and abs(math.log(a[2] / b[2])) < math.log(1.25) for b in rows)
        for a in rows
    )  # fmt: skip
    spans = {}
    for row in rows:
        if phase[id(row)] != "else":
            spans.setdefault((row[:2], phase[id(row)]), []).append(row[2])
    ratios = [max(tokens) / min(tokens) for tokens in spans.values()]
    told = separation.contrasts(found)
    assert told["phase_pairs"] == pairs > 0
    assert told["tokens_spans"] == sum(ratio > 1.25 for ratio in ratios) > 0
    assert told["widest_span"] == pytest.approx(max(ratios))


def test_another_run_at_the_same_point_is_a_replicate_and_no_contrast():
    told = separation.contrasts(points([("f", "a", 1e8, 1e10, 1), ("f", "b", 1e8, 1e10, 1), ("f", "a", 1e8, 5e10, 1)]))
    assert (told["replicates"], told["phase_pairs"], told["tokens_spans"]) == (2, 0, 1)


def test_inflation_is_one_over_the_share_that_nothing_else_explains():
    rng = np.random.default_rng(3)
    rows = [(f"f{k % 3}", "r", np.exp(rng.normal() + k % 3), 0, float(rng.random() < 0.5)) for k in range(60)]
    rows = [(f, r, n, np.exp(0.8 * np.log(n) + u + rng.normal()), u) for f, r, n, _, u in rows]
    design = points(rows)
    dummies = [(design.family == f"f{k}").astype(float) for k in range(3)]
    others = np.stack([np.log(design.params), design.rate, *dummies], axis=1)
    x_d = np.log(design.tokens)
    # the diagonal of the inverse of X'X, which is where a coefficient's variance comes from
    full = np.column_stack([x_d, others])
    share = np.linalg.inv(full.T @ full)[0, 0] * ((x_d - x_d.mean()) ** 2).sum()
    told = separation.inflation(design)
    assert told["tokens"]["vif"] == pytest.approx(share)
    assert told["decay"]["vif"] > 1
    alike = separation.inflation(points([(f, r, n, d, 0.0) for f, r, n, d, _ in rows]))
    assert alike["decay"] == {"varies": False, "vif": None, "left_sd": 0.0, "left_between": 0.0, "within": None}


def test_log_factors_are_differences_of_the_law_itself():
    posterior = posteriors.posterior()
    target = draws.Target("crossed", 1e9, 2e11, 3.0, "gptq")
    at = [target, replace(target, tokens=5e12), replace(target, tokens=5e12, lr_phase="constant")]
    low, high, undecayed = draws.log_law(posterior, at, np.random.default_rng(0)).T
    along = separation.directions(posterior, 1e9, 2e11, 5e12)
    known = separation.coefficients(posterior.sample)
    np.testing.assert_allclose(known.log_factor(along["tokens"], "crossed"), high - low, atol=1e-12)
    np.testing.assert_allclose(known.log_factor(along["decay"], "crossed"), high - undecayed, atol=1e-12)


def test_rows_are_ten_to_the_beta_and_the_coefficients_of_decay():
    posterior = posteriors.posterior()
    told = drivers.as_json(drivers.drivers(posterior, (1e11, 1e13), suite=NO_SUITE))
    beta = posterior.sample["mu"].sel(term="beta").to_numpy()
    slopes = [posterior.sample["covariate"].sel(covariate_name=n).to_numpy() for n in ("undecayed", "undecayed_slope")]
    first, last = told["effects"][0], told["effects"][-1]
    assert (first["kind"], first["family"], last["kind"], last["tokens"]) == ("tokens", "population", "decay", 1e13)
    assert first["upper90"] == pytest.approx(10 ** np.quantile(beta, 0.95))
    decay = -(slopes[0] + slopes[1] * np.log(100))
    assert last["median"] == pytest.approx(np.exp(np.quantile(decay, 0.5)))
    assert told["correlation"]["factors"] == pytest.approx(np.corrcoef(beta, decay)[0, 1])
    assert told["correlation"]["beta_undecayed"] == pytest.approx(np.corrcoef(beta, slopes[0])[0, 1])
    prior = posterior.tree["prior"]["mu"].sel(term="beta").to_numpy().ravel()
    assert first["contraction"] == pytest.approx(1 - beta.var() / prior.var())


def test_effects_that_the_data_inform_and_that_do_not_correlate_are_separated():
    told = drivers.as_json(drivers.drivers(mixed(), suite=NO_SUITE))
    assert told["verdict"] == "separated"
    assert drivers.as_text(drivers.drivers(mixed(), suite=NO_SUITE)).startswith("Verdict: separated:")


def test_an_effect_at_its_prior_is_not_identified():
    posterior = mixed()
    rng = np.random.default_rng(5)
    wide = moved(posterior, undecayed=0.5 * rng.normal(size=200), undecayed_slope=0.3 * rng.normal(size=200))
    told = drivers.as_json(drivers.drivers(wide, suite=NO_SUITE))
    assert told["verdict"] == "not identified"
    assert "decay is the prior's" in told["findings"][0]
    flat = drivers.as_json(drivers.drivers(mixed(beta_sd=0.25), suite=NO_SUITE))
    assert flat["verdict"] == "not identified"
    assert "tokens is the prior's" in flat["findings"][0]


def test_what_the_checkpoints_do_not_vary_is_not_identified_however_much_the_posterior_contracted():
    one_phase = drivers.as_json(drivers.drivers(posteriors.posterior(), suite=NO_SUITE))
    assert (one_phase["verdict"], one_phase["findings"][0][:23]) == ("not identified", "Nothing tells of decay:")
    data = mixed().cells
    one_count = data.assign_coords(train_tokens=("cell", np.full(data.sizes["cell"], 1e12)))
    told = drivers.as_json(drivers.drivers(posteriors.posterior(data=one_count), suite=NO_SUITE))
    assert (told["verdict"], told["findings"][0][:24]) == ("not identified", "Nothing tells of tokens:")
    assert told["tokens_low"] == pytest.approx(1e12 / math.sqrt(10))


@pytest.mark.parametrize("sign", [1, -1])
def test_effects_known_only_by_their_sum_are_not_identified(sign):
    posterior = mixed()
    beta = posterior.sample["mu"].sel(term="beta").to_numpy()
    other = sign * (beta - beta.mean()) + 1e-3 * np.random.default_rng(1).normal(size=beta.size)
    told = drivers.as_json(drivers.drivers(moved(posterior, undecayed=other, undecayed_slope=0 * beta), suite=NO_SUITE))
    assert told["verdict"] == "not identified"
    assert told["correlation"]["factors"] == pytest.approx(-sign, abs=0.01)
    assert "correlate" in told["findings"][0]


@pytest.mark.parametrize(("which", "verdict", "kinds"), [("tokens", "tokens only", {"tokens"}),
                                                        ("phase", "phase only", {"decay"})])  # fmt: skip
def test_a_fit_that_assumed_the_answer_says_so(which, verdict, kinds):
    found = drivers.drivers(variant(which), suite=["gemstones"])
    told = drivers.as_json(found)
    assert told["verdict"] == verdict
    assert {row["kind"] for row in told["effects"]} == kinds
    assert told["correlation"]["factors"] is None
    assert told["suites"][0]["parts"] == "no"
    assert "the fit assumed" in " ".join(drivers.as_text(found).split())
    json.dumps(told, allow_nan=False)


def test_failed_checks_come_first():
    found = drivers.drivers(posteriors.posterior(checks={"rhat": False}), suite=NO_SUITE)
    assert found.attrs["verdict"] == "checks failed"
    assert drivers.as_text(found).startswith("Checks failed: rhat.")


def kalman(posterior, used, low, high, seed=1):
    """What `after_measuring` says, by adding one checkpoint after another to the covariance."""
    rng = np.random.default_rng(seed)
    names = sorted(set(used.family))
    parts = [draws.family_terms(posterior, n if n in posterior.families else None, rng) for n in names]
    sample = np.hstack([*parts, posterior.sample["covariate"].transpose("draw", "covariate_name").to_numpy()])
    knots = {}
    for name in names:
        x = np.log(used.tokens[used.family == name]) if len(names) == 1 else np.log(used.tokens)
        knots[name] = np.arange(x.min(), x.max() + np.log(3), np.log(3))
    sizes = [len(knots[name]) for name in names]
    covariance = np.zeros((sample.shape[1] + sum(sizes),) * 2)
    covariance[: sample.shape[1], : sample.shape[1]] = np.cov(sample, rowvar=False)
    covariance[sample.shape[1] :, sample.shape[1] :] = 0.25 * np.eye(sum(sizes))
    tau = float(np.median(posterior.sample["tau"].sel(generation="calibrated")))
    own = float(np.median(posterior.sample["spread"].sel(effect="checkpoint_level")))
    order = [c.name for c in posterior.law.covariates]

    def row(family, params, tokens, rate):
        out = np.zeros(sample.shape[1])
        place = 4 * names.index(family)
        x_d = np.log(tokens / 1e11)
        out[place : place + 4] = [1, -np.log(params / 1e9), x_d, 0]
        out[4 * len(names) + order.index("undecayed")] = rate
        out[4 * len(names) + order.index("undecayed_slope")] = rate * x_d
        return out

    for family, params, tokens, rate in zip(used.family, used.params, used.tokens, used.rate, strict=True):
        plain = row(family, params, tokens, rate)
        log_qid = plain @ sample.mean(axis=0)
        if log_qid >= np.log(np.log(10)):
            continue
        bend = [np.interp(np.log(tokens), knots[n], np.eye(len(knots[n]))[k]) * (n == family)
                for n in names for k in range(len(knots[n]))]  # fmt: skip
        h = np.concatenate([plain, bend])
        gain = covariance @ h / (h @ covariance @ h + tau**2 + own**2 + (1e-3 / np.exp(log_qid)) ** 2)
        covariance = covariance - np.outer(gain, h @ covariance)
    first = max(names, key=lambda n: (used.family == n).sum())
    zero = np.zeros(sum(sizes))
    tokens = np.concatenate([row(first, 1e9, high, 0) - row(first, 1e9, low, 0), zero])
    decay = np.concatenate([row(first, 1e9, high, 0) - row(first, 1e9, high, 1), zero])
    both = tokens @ covariance @ decay
    variances = tokens @ covariance @ tokens, decay @ covariance @ decay
    return *variances, both / np.sqrt(variances[0] * variances[1])


@pytest.mark.parametrize("names", [("crossed",), ("elsewhere",), ("crossed", "elsewhere")])
def test_the_downdate_is_that_of_one_checkpoint_after_another(names):
    posterior = posteriors.posterior()
    some = points([
        (name, f"{name} {n:g}", n, d, rate) for name in names for n in (1e8, 1e9)
        for d, rate in ((1e9, 1), (3e9, 1), (1e10, 1), (1.1e10, 0), (9e10, 1), (1e11, 0), (1.2e11, 0.4))
    ] + [("crossed" if "crossed" in names else names[0], "late", 1e9, 1e17, 1)])  # fmt: skip
    told = separation.after_measuring(posterior, some, 1e9, 1e11, 1e13)["after"]
    expected = kalman(posterior, separation.thinned(some), 1e11, 1e13)
    assert (told["tokens"], told["decay"], told["correlation"]) == pytest.approx(expected, rel=1e-6)


def test_pairs_at_equal_tokens_teach_more_of_decay_than_one_schedule_in_which_it_follows_from_tokens():
    posterior = draws.read(None, brief=True)
    tokens = np.geomspace(1e10, 3e11, 12)
    cosine = [("g", f"g{n:g}", n, d, 0.5 * (1 + math.cos(math.pi * d / 3e11))) for n in (1e8, 1e9) for d in tokens]
    cosine = [(*row[:4], row[4] if row[4] > 1e-9 else 0.0) for row in cosine]
    paired = [("g", f"g{n:g}{rate}", n, d, rate) for n in (1e8, 1e9) for d in tokens[::2] for rate in (0.0, 1.0)]
    left = {}
    for name, rows in (("cosine", cosine), ("paired", paired)):
        found = separation.after_measuring(posterior, points(rows), 1e9, 1e11, 1e12)
        left[name] = found["after"]["decay"] / found["before"]["decay"]
        assert 0 < left[name] < 1
    assert left["paired"] < 0.6 * left["cosine"]


def test_thinning_keeps_one_checkpoint_of_a_run_and_phase_in_every_quarter():
    kept = separation.thinned(points([("f", "a", 1e8, d, r) for d, r in
                                      ((1.0e10, 1), (1.01e10, 1), (1.02e10, 0), (9e10, 1))]))  # fmt: skip
    assert sorted(zip(kept.tokens, kept.rate, strict=True)) == [(1.01e10, 1), (1.02e10, 0), (9e10, 1)]


def test_the_bundled_posterior_cannot_tell_and_says_which_suites_could():
    found = drivers.drivers(draws.read(None, brief=True))
    told = drivers.as_json(found)
    json.dumps(told, allow_nan=False)
    assert told["verdict"] == "not identified"
    assert "None of the 33 fitted checkpoints stands before the end of decay." in told["findings"]
    rows = {row["name"]: row for row in told["suites"]}
    assert list(rows) == suite.names()
    # ten cool-downs of each of the 15 shapes, each beside the checkpoint it left from
    assert rows["gemstones"]["phase_pairs"] == 150
    assert (rows["pythia"]["phase_pairs"], rows["pythia"]["parts"]) == (0, "by the law")
    assert (rows["smollm3"]["phase_pairs"], rows["smollm3"]["parts"]) == (1, "yes")
    assert rows["gemstones"]["decay_variance_left"] < rows["smollm3"]["decay_variance_left"] < 1
    assert rows["pythia"]["replicates"] > 5000
    assert all(len(line) <= 80 for line in drivers.as_text(found).splitlines())


def test_a_family_can_be_judged_instead_of_the_population():
    told = drivers.as_json(drivers.drivers(mixed(), family="CROSSED", suite=NO_SUITE))
    assert (told["family"], told["verdict"]) == ("crossed", "separated")


def test_independent_families_have_no_population():
    posterior = posteriors.posterior()
    posterior.tree.attrs["model"] = "independent"
    with pytest.raises(BadInput, match="name one with --family"):
        drivers.drivers(posterior, suite=NO_SUITE)
    told = drivers.as_json(drivers.drivers(posterior, family="fixed", suite=NO_SUITE))
    assert "population" not in {row["family"] for row in told["effects"] if row["kind"] == "tokens"}


@pytest.mark.parametrize("tokens", [(1e13, 1e11), (0.0, 1e12), (-1e11, 1e12), (math.nan, 1e12), (1e11, math.inf)])
def test_unbelievable_tokens_are_refused(tokens):
    with pytest.raises(BadInput, match="--tokens"):
        drivers.drivers(posteriors.posterior(), tokens, suite=NO_SUITE)


@pytest.mark.parametrize("text", ["", "1e11", "a:b", "1e11:", "1e11:1e12:1e13"])
def test_malformed_tokens_are_refused(text):
    with pytest.raises(BadInput, match="LOW:HIGH"):
        drivers.parse_tokens(text)
    assert drivers.parse_tokens("1e11:1e13") == (1e11, 1e13)


def test_unknown_names_are_refused():
    with pytest.raises(BadInput, match="nobody"):
        drivers.drivers(posteriors.posterior(), family="nobody", suite=NO_SUITE)
    with pytest.raises(BadInput, match="nothing"):
        drivers.drivers(posteriors.posterior(), suite=["nothing"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_known_effects_are_found_where_the_design_tells_them_apart_and_not_where_decay_follows_from_tokens():
    from bayesqid.inference import sample

    rng = np.random.default_rng(0)
    sizes, tokens = (1e8, 1e9, 1e10), (1e11, 3e11, 1e12, 3e12)

    def fitted(places: dict[str, list[tuple[float, float]]]) -> dict:
        parts = []
        for phase, rows in places.items():
            made = posteriors.cells(dict.fromkeys(("a", "b", "c"), rows), phase)
            label = np.array([f"{c} {phase}" for c in made["checkpoint"].values], dtype=object)
            # decay multiplies by 1.8
            shift = np.log(1.8) * (phase == "annealed") + 0.1 * rng.normal(size=label.size)
            seen = likelihood.saturate(made["qid"].to_numpy() * np.exp(shift), 8.5)
            made = made.assign_coords(checkpoint=("cell", label)).assign(qid=("cell", seen))
            parts.append(made.isel(cell=made["bits"].to_numpy() > 2))
        joined = xr.concat(parts, "cell", combine_attrs="override")
        tree = sample.sample(joined, laws.get("boxcox"), engine="laplace", draws=200)
        posterior = draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "x", "0" * 64, "file")
        return drivers.as_json(drivers.drivers(posterior, (1e11, 1e12), suite=NO_SUITE))

    both = [(n, d) for n in sizes for d in tokens]
    apart = fitted({"annealed": both, "constant": both})
    assert apart["verdict"] == "separated"
    told = {row["kind"]: row for row in apart["effects"] if row["family"] == "population"}
    for kind, truth in (("decay", 1.8), ("tokens", 10 ** posteriors.TRUTH["beta"])):
        error = np.log(told[kind]["upper90"] / told[kind]["lower90"]) / 3.29
        assert abs(np.log(told[kind]["median"] / truth)) < 3 * error < 0.3
    # one constant run of two near counts, then the end of decay
    alike = fitted({"constant": [(n, 2.9e12) for n in sizes], "annealed": [(n, 3e12) for n in sizes]})
    assert alike["verdict"] == "not identified"


def test_the_factor_of_decay_is_the_ratio_of_the_projections_with_and_without_it():
    posterior = posteriors.posterior()
    target = draws.Target("crossed", 1e9, 1e12, 3.0, "gptq")
    both = [target, replace(target, lr_phase="constant")]
    annealed, constant = np.log(project.qid_draws(posterior, both, "mean")[1]).T
    row = drivers.as_json(drivers.drivers(posterior, (1e11, 1e12), suite=NO_SUITE))["effects"][-1]
    assert row["median"] == pytest.approx(np.exp(np.median(annealed - constant)), rel=1e-6)
