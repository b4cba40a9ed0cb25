import json

import numpy as np
import pytest

import posteriors
from bayesqid import laws
from bayesqid.answers import draws, identification, information


def only(*names):
    return posteriors.posterior(data=posteriors.cells({name: posteriors.FAMILIES[name] for name in names}))


def test_only_tokens_that_vary_apart_from_size_count():
    rows = {row["family"]: row for row in identification.families(posteriors.posterior())}
    assert {name: row["varies"] for name, row in rows.items()} == {"crossed": True, "fixed": False, "lockstep": False}
    # crossed: ln D takes -ln 10, 0, ln 10 at every size, so its rms is ln 10 sqrt(2/3)
    assert rows["crossed"]["left_sd"] == pytest.approx(np.log(10) * np.sqrt(2 / 3))
    assert rows["lockstep"]["left_sd"] == pytest.approx(0, abs=1e-9)
    assert rows["lockstep"]["tokens_ratio"] == pytest.approx(70)
    assert rows["fixed"]["tokens_counts"] == 1
    assert rows["crossed"]["checkpoints"] == 9


def test_the_best_error_of_beta_is_that_of_least_squares():
    posterior = posteriors.posterior()
    row = next(row for row in identification.families(posterior) if row["family"] == "crossed")
    sd = np.median(posterior.sample["spread"].sel(effect="checkpoint_level"))
    n, d = np.log(np.array(posteriors.FAMILIES["crossed"])).T
    design = np.column_stack([np.ones(9), n, d])
    assert row["error"] == pytest.approx(float(sd * np.sqrt(np.linalg.inv(design.T @ design)[2, 2])), rel=1e-6)
    assert row["within"] > 0.2
    assert next(r for r in identification.families(posterior) if r["family"] == "fixed")["error"] is None


def test_contractions_follow_from_the_draws():
    posterior = posteriors.posterior()
    rows = {row["family"]: row for row in identification.families(posterior)}
    after = posterior.sample["theta"].sel(term="beta", family="fixed").values
    before = posterior.tree["prior"]["theta"].sel(term="beta", family="fixed").values
    assert rows["fixed"]["contraction"] == pytest.approx(1 - after.var() / before.var())
    # posterior spread between families is a fifth of the prior's: little of the variance of a deviation is left
    assert rows["fixed"]["contraction_deviation"] > 0.8


def test_every_term_has_its_rows_and_tokens_are_the_default():
    posterior = posteriors.posterior()
    assert identification.families(posterior) == identification.families(posterior, "beta")
    for term in ("log_k", "alpha", "gamma"):
        rows = identification.families(posterior, term)
        assert [row["term"] for row in rows] == [term] * 3
        # in lockstep size cannot be told from tokens either
        assert [row["varies"] for row in rows] == [True, True, term != "alpha"]
        assert json.dumps(rows, allow_nan=False)


def test_the_size_of_a_family_with_one_size_does_not_vary():
    data = posteriors.cells({"one": [(7e9, 1e12), (7e9, 2e12)], "two": posteriors.FAMILIES["crossed"]})
    rows = {row["family"]: row for row in identification.families(posteriors.posterior(data=data), "alpha")}
    assert not rows["one"]["varies"]
    assert rows["one"]["error"] is None
    assert rows["one"]["within"] == 0
    assert rows["two"]["left_sd"] == pytest.approx(np.log([1, 7, 70]).std())


def test_the_best_error_of_gamma_is_that_of_the_cells_of_each_checkpoint():
    posterior = posteriors.posterior()
    row = identification.families(posterior, "gamma")[1]
    assert row["family"] == "fixed"
    # three checkpoints, two methods each at 2, 3 and 4 bits
    x = laws.bit_scale(np.array([2.0, 3.0, 4.0]), float(np.median(posterior.sample["lam"])))
    squares = 6 * ((x - x.mean()) ** 2).sum()
    assert row["error"] == pytest.approx(float(np.median(posterior.sample["tau"])) / np.sqrt(squares), rel=1e-9)


def test_the_table_holds_every_shared_parameter_with_its_contraction():
    posterior, law = posteriors.posterior(beta_sd=0.25), laws.get("boxcox")
    rows = identification.table(posterior)
    names = [(row["kind"], row["name"]) for row in rows]
    assert len(set(names)) == len(names) == 2 * 4 + 1 + len(law.covariates) + len(law.effects) + 2
    beta = next(row for row in rows if (row["kind"], row["name"]) == ("population mean", "beta"))
    assert beta["contraction"] == pytest.approx(draws.contraction(posterior, "mu", "beta"))
    assert beta["informed"] is False
    sample = posterior.sample["mu"].sel(term="beta").to_numpy()
    assert [beta["lower90"], beta["upper90"]] == pytest.approx(np.quantile(sample, [0.05, 0.95]))
    assert beta["prior_sd"] == pytest.approx(0.25, rel=0.2)
    text = identification.as_text(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert next(line for line in text.splitlines() if line.startswith("beta ")).endswith("prior")


def test_what_a_model_keeps_fixed_has_no_row():
    posterior = posteriors.posterior()
    posterior.sample["sd"][:] = 0.0
    assert not [row for row in identification.table(posterior) if row["kind"] == "family spread"]


def share(families, term="beta"):
    return information.of_term(posteriors.posterior(data=posteriors.cells(families)), term)


def test_where_the_information_about_tokens_comes_from_follows_the_design():
    same = {name: [(n, d) for n in (1e9, 7e9, 70e9)] for name, d in (("a", 3e11), ("b", 3e12), ("c", 3e13))}
    between = share(same)
    assert between["within"] == 0
    assert between["between"] > 0
    assert between["within_share"] == 0
    crossed = share(dict.fromkeys("abc", posteriors.FAMILIES["crossed"]))
    assert crossed["within_share"] > 0.99
    mixed = share(same | {"d": posteriors.FAMILIES["crossed"]})
    assert 0.3 < mixed["within_share"] < 1
    # the level of a family is one number: within it nothing is left of a constant
    assert share(same, "log_k")["within_share"] == 0


def test_independent_families_share_no_mean():
    made = posteriors.posterior()
    made.tree.attrs["model"] = "independent"
    assert information.of_term(made, "beta") == {"within": None, "between": None, "within_share": None}
    assert identification.as_text(identification.table(made))


def test_precisions_are_those_of_simulated_estimates():
    """Cells simulated effect by effect, estimated by generalised least squares with the covariance of the cells."""
    data = posteriors.cells({"a": [(1e9, 3e11), (7e9, 3e11), (7e9, 3e12)], "b": [(1e9, 1e12), (70e9, 3e12)],
                             "c": [(1e9, 3e13), (3e9, 3e13), (9e9, 1e13)]})  # fmt: skip
    posterior = posteriors.posterior(data=data)
    law, prior, rng = laws.get("boxcox"), json.loads(posterior.tree.attrs["priors"]), np.random.default_rng(0)
    lam = float(np.median(posterior.sample["lam"]))
    keep = ~data["censored"].to_numpy()
    columns = {str(k): data[k].to_numpy()[keep] for k in (*data.coords, *data.data_vars)}
    family, checkpoint = columns["family"].astype(str), columns["checkpoint"].astype(str)

    def centred(x):
        mean = {f: np.mean([x[checkpoint == c].mean() for c in np.unique(checkpoint[family == f])])
                for f in np.unique(family)}  # fmt: skip
        return x - np.array([mean[f] for f in family])

    def median(name, **where):
        return float(np.median(posterior.sample[name].sel(where)))

    parts = []  # value per cell, label per cell, sd
    for term in law.terms:
        x = np.asarray(laws.factor(term.factor, columns, lam), dtype=float)
        own = centred(x) if term.factor in ("-x_N", "x_D") else x
        parts.append((own, family, median("sd", term=term.name)))
        if term.name != "beta":
            parts.append((x, np.full(x.size, ""), prior[term.name]["sd"]))
    for covariate in law.covariates:
        x, sd = laws.factor(covariate.factor, columns, lam), prior[covariate.name]["sd"]
        parts.append((x, np.full(family.size, ""), sd))
    zero_sum = []
    for effect in law.effects:
        x, sd = laws.factor(effect.factor, columns, lam), median("spread", effect=effect.name)
        (zero_sum if effect.zero_sum else parts).append((x, columns[effect.by].astype(str), sd))
    raw = -columns["headroom"] * np.log1p(-columns["qid"] / columns["headroom"])
    error = columns["qid_se"] / (raw * np.exp(-raw / columns["headroom"]))
    tau = np.array([median("tau", generation=g) for g in columns["generation"]])

    def drawn():
        v = np.hypot(tau, error) * rng.normal(size=family.size)
        for parts_, shift in ((parts, False), (zero_sum, True)):
            for x, label, sd in parts_:
                levels = np.unique(label)
                value = sd * rng.normal(size=levels.size)
                v = v + x * (value - shift * value.mean())[np.searchsorted(levels, label)]
        return v

    cov = np.diag(tau**2 + error**2)
    for x, label, sd in parts:
        cov = cov + sd**2 * np.outer(x, x) * np.equal.outer(label, label)
    for x, label, sd in zero_sum:
        cov = cov + sd**2 * np.outer(x, x) * (np.equal.outer(label, label) - 1 / np.unique(label).size)
    x_d = np.log(columns["train_tokens"] / 1e11)
    design = np.column_stack([centred(x_d), x_d - centred(x_d)])
    whitened = np.linalg.solve(cov, design)
    estimator = np.linalg.solve(design.T @ whitened, whitened.T)
    found = information.of_term(posterior, "beta")
    size = 4000
    spread = np.array([estimator @ drawn() for _ in range(size)]).var(axis=0)
    # four standard errors of a variance
    np.testing.assert_allclose(1 / spread, [found["within"], found["between"]], rtol=4 * np.sqrt(2 / size))


@pytest.mark.parametrize(
    ("families", "says", "says_not"),
    [
        (("fixed", "lockstep"), "no family varies its tokens apart from its size", "enough to inform"),
        (("crossed", "fixed", "lockstep"), "crossed varies its tokens apart from size enough", "no family varies"),
        (("crossed",), "one family, crossed; it varies", "differences between families"),
        (("lockstep",), "cannot tell the effect of tokens from that of size", "it varies"),
    ],
)
def test_the_sentence_says_where_beta_comes_from(families, says, says_not):
    text = " ".join(identification.sentences(only(*families)))
    assert says in text
    assert says_not not in text


def test_a_little_variation_is_not_sold_as_information():
    data = posteriors.cells({"a": [(1e9, 1e12), (7e9, 1.4e12), (70e9, 1e12)], "b": posteriors.FAMILIES["fixed"]})
    made = posteriors.posterior(data=data)
    made.sample["spread"][:] = 0.5
    text = " ".join(identification.sentences(made))
    assert "too little to inform a beta" in text
    assert "differences between families only" in text


def test_tokens_that_go_with_decay_are_told():
    crossed = [(n, d) for n in (1e9, 7e9) for d in (1e11, 1e12)]
    data = posteriors.cells({"a": crossed, "b": posteriors.FAMILIES["fixed"]})
    data["lr_phase"] = ("cell", np.where(data["train_tokens"] < 5e11, "decaying", "annealed").astype(object))
    assert "In a tokens and learning-rate decay go together" in " ".join(
        identification.sentences(posteriors.posterior(data=data)))  # fmt: skip
    data["lr_phase"] = ("cell", np.full(data.sizes["cell"], "annealed", dtype=object))
    assert "decay go together" not in " ".join(identification.sentences(posteriors.posterior(data=data)))


def test_the_correlation_of_centres_is_that_of_the_family_means():
    posterior = posteriors.posterior()
    means = np.array([np.log(np.array(points)).mean(axis=0) for points in posteriors.FAMILIES.values()])
    found = identification.centre_correlation(posterior)
    # all families have the same mean size here: no correlation exists
    assert np.ptp(means[:, 0]) < 1e-9
    assert found is None
    data = posteriors.cells({"a": [(1e9, 1e11)], "b": [(2e9, 3e11)], "c": [(9e9, 3e12)]})
    x, y = np.log([1e9, 2e9, 9e9]), np.log([1e11, 3e11, 3e12])
    assert identification.centre_correlation(posteriors.posterior(data=data)) == pytest.approx(np.corrcoef(x, y)[0, 1])
