import numpy as np
import pytest

import posteriors
from bayesqid.answers import identification


def only(*names):
    return posteriors.posterior(data=posteriors.cells({name: posteriors.FAMILIES[name] for name in names}))


def test_only_tokens_that_vary_apart_from_size_count():
    rows = {row["family"]: row for row in identification.families(posteriors.posterior())}
    assert {name: row["varies"] for name, row in rows.items()} == {"crossed": True, "fixed": False, "lockstep": False}
    # crossed: ln D takes -ln 10, 0, ln 10 at every size, so its rms is ln 10 sqrt(2/3)
    assert rows["crossed"]["x_D_sd"] == pytest.approx(np.log(10) * np.sqrt(2 / 3))
    assert rows["lockstep"]["x_D_sd"] == pytest.approx(0, abs=1e-9)
    assert rows["lockstep"]["tokens_ratio"] == pytest.approx(70)
    assert rows["fixed"]["tokens_counts"] == 1
    assert rows["crossed"]["checkpoints"] == 9


def test_the_best_error_of_beta_is_that_of_least_squares():
    posterior = posteriors.posterior()
    row = next(row for row in identification.families(posterior) if row["family"] == "crossed")
    sd = np.median(posterior.sample["spread"].sel(effect="checkpoint_level"))
    n, d = np.log(np.array(posteriors.FAMILIES["crossed"])).T
    design = np.column_stack([np.ones(9), n, d])
    assert row["beta_error"] == pytest.approx(float(sd * np.sqrt(np.linalg.inv(design.T @ design)[2, 2])), rel=1e-6)
    assert row["within"] > 0.2
    assert next(r for r in identification.families(posterior) if r["family"] == "fixed")["beta_error"] is None


def test_contractions_follow_from_the_draws():
    posterior = posteriors.posterior()
    rows = {row["family"]: row for row in identification.families(posterior)}
    after = posterior.sample["theta"].sel(term="beta", family="fixed").values
    before = posterior.tree["prior"]["theta"].sel(term="beta", family="fixed").values
    assert rows["fixed"]["contraction"] == pytest.approx(1 - after.var() / before.var())
    # posterior spread between families is a fifth of the prior's: little of the variance of a deviation is left
    assert rows["fixed"]["contraction_deviation"] > 0.8


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
