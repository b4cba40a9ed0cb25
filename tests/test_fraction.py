"""How much of a model may be quantized: the inverse of the law against the law, and the claims against known truth."""

import json
import math

import numpy as np
import pytest

import mixedcells
import posteriors
from bayesqid import likelihood
from bayesqid.answers import candidates, draws, fraction, mixing, project
from bayesqid.answers.draws import Target
from bayesqid.errors import BadInput
from bayesqid.inference import simulate

TRUE = {"alpha": 0.35, "sd_alpha": 0.02, "kappa": 0.9, "sd_kappa": 0.2, "kappa_params": 0.0, "matmul": 0.7,
        "searched": 1.2, "block": 0.3, "tau": 0.1, "spread_checkpoint_level": 0.02,
        "log_k": -1.0, "beta": 0.3, "gamma": 5.0}  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    return mixedcells.fitted(mixedcells.simulated(TRUE))


@pytest.fixture(scope="module")
def contrary():
    """Where smaller models and whole layers tolerate more."""
    return mixedcells.fitted(mixedcells.simulated(TRUE | {"alpha": -0.2, "matmul": -0.7}))


def target(posterior, family="F0", size=3e9):
    one = Target(family, size, 1e12, 4.25, "rtn", bits=4.0, features={"group_size": 32})
    return candidates.filled(posterior, [one])


def test_the_largest_share_is_the_largest_on_a_grid():
    rng = np.random.default_rng(0)
    a, k = rng.normal(-2, 1, 300), rng.normal(1.5, 1.5, 300)
    shares = np.linspace(1e-4, 1, 10_000)
    fits = a[:, None] + k[:, None] * np.log(shares) <= math.log(0.1)
    by_hand = np.where(fits.any(axis=1), shares[::-1][fits[:, ::-1].argmax(axis=1)], 0.0)
    # where leaving weights out harms, smaller shares are no way to stay under
    got = mixing.largest(a, k, np.full(300, math.log(0.1)))
    np.testing.assert_allclose(got, by_hand, atol=2e-4)
    assert (got == 1).any()
    assert (got == 0).any()


@pytest.mark.parametrize("family", ["F0", None])
@pytest.mark.parametrize("band", ["mean", "new"])
def test_at_the_largest_share_the_law_meets_the_tolerance_draw_by_draw(fitted, family, band):
    one = target(fitted, family)
    a, k = mixing.line(fitted, one, "matmul", "best of 50", 64, band)
    rise, top = math.log(1.1), one[0].headroom
    q = mixing.largest(a, k, np.log(likelihood.unsaturate(rise, top)))
    inside = (q > 0) & (q < 1)
    assert inside.mean() > 0.1
    seen = likelihood.saturate(np.exp(a + k * np.log(np.where(inside, q, 1.0))), top)
    np.testing.assert_allclose(seen[inside], rise, rtol=1e-9)
    assert (seen[q == 1] <= rise).all()


def test_with_all_quantized_it_is_what_project_says(fitted):
    one = target(fitted)
    a, _ = mixing.line(fitted, one, "layer", "random", 32, "new")
    _, fullness = project.qid_draws(fitted, one, "new")
    np.testing.assert_allclose(np.exp(a), fullness * one[0].headroom, rtol=1e-10)


def test_the_exponent_and_the_block_are_the_coefficients_of_the_family(fitted):
    one = target(fitted, "F1", 7e9)
    own = {name: fitted.sample["covariate"].sel(covariate_name=name).to_numpy()
           for name in ("kappa_params", "matmul", "searched", "block")}  # fmt: skip
    kappa = fitted.sample["theta"].sel(term="kappa", family="F1").to_numpy() + own["kappa_params"] * math.log(7)
    at_32, k = mixing.line(fitted, one, "matmul", "best of 50", 32, "mean")
    np.testing.assert_allclose(k[:, 0], kappa + own["matmul"] + own["searched"], rtol=1e-10)
    at_64, _ = mixing.line(fitted, one, "matmul", "best of 50", 64, "mean")
    np.testing.assert_allclose((at_64 - at_32)[:, 0], own["block"] * math.log(2), rtol=1e-8, atol=1e-12)
    _, k = mixing.line(fitted, one, "layer", "random", 32, "mean")
    np.testing.assert_allclose(k[:, 0], kappa, rtol=1e-10)


def test_a_new_family_has_an_exponent_of_its_own(fitted):
    _, k = mixing.line(fitted, target(fitted, None), "layer", "random", 32, "mean")
    mu, sd = (fitted.sample[name].sel(term="kappa").to_numpy() for name in ("mu", "sd"))
    assert k.var() == pytest.approx((mu.var() + (sd**2).mean()), rel=0.25)


def test_more_is_tolerated_at_a_higher_rise_and_bits_follow_the_share(fitted):
    told = fraction.fraction(fitted, (2, 10, 40), (1e9, 1e10), bits=3, family="F0", granularity="m")
    q = told["median"].to_numpy().reshape(2, 3)
    assert (np.diff(q, axis=1) >= 0).all()
    assert q.min() < 0.9
    for end, other in (("lower90", "upper90"), ("median", "median"), ("upper50", "lower50")):
        share = told[end].to_numpy()
        np.testing.assert_allclose(told[f"bits_{other}"], share * 3.5 + (1 - share) * 16, rtol=1e-3)
    assert told["effective_bits"].item() == 3.5  # 16-bit scales of integers in blocks of 32


def test_shares_that_are_asked_for_rise_as_the_law_says(fitted):
    told = fraction.fraction(fitted, params=3e9, tokens=1e12, family="F0", at="0,0.5,1", granularity="layer",
                             method="rtn", assignment="random", band="mean")  # fmt: skip
    one = candidates.filled(fitted, [Target("F0", 3e9, 1e12, 4.5, "rtn", bits=4.0)])
    a, k = mixing.line(fitted, one, "layer", "random", 32, "mean")
    seen = [likelihood.saturate(np.exp(a + k * math.log(share)), one[0].headroom) for share in (0.5, 1.0)]
    assert told["rise_median"].values.tolist() == pytest.approx([0, *(100 * np.median(np.expm1(s)) for s in seen)])
    assert told["asked_share"].values.tolist() == [0, 0.5, 1]


def probability(posterior, claim):
    return next(c for c in mixing.claims(posterior, 4.0, 8.0, "best of 50") if c["claim"] == claim)


@pytest.mark.parametrize("claim", ["size", "granularity"])
def test_the_claims_follow_the_truth_either_way(fitted, contrary, claim):
    assert probability(fitted, claim)["probability"] > 0.95
    assert probability(contrary, claim)["probability"] < 0.05
    assert probability(fitted, claim)["prior"] == pytest.approx(probability(contrary, claim)["prior"], abs=0.1)


def test_the_claim_of_granularity_is_even_before_the_data(fitted):
    found = probability(fitted, "granularity")
    assert found["prior"] == pytest.approx(0.5, abs=0.05)
    # whole layers cost (1 / 0.9)^matmul as much
    assert found["median"] == pytest.approx(0.7 * -math.log(0.9), abs=0.03)
    assert found["contraction"] > 0.8


def test_law_1_and_law_2_by_hand():
    table = mixing.published()
    one = table["law1"]["rows"]
    # 5 %: 0.5 = exp(-11.68 x + 4.83), x = 0.4729
    assert mixing.by_law_1(5e8, 0.05, one) == pytest.approx(1 - (4.83 - math.log(0.5)) / 11.68, abs=1e-12)
    assert mixing.by_law_1(5e8, 0.05, one) == pytest.approx(0.527, abs=1e-3)
    assert mixing.by_law_1(7e10, 0.2, one) == 1
    assert mixing.by_law_1(1.0, 0.05, one) == 0
    assert math.isnan(mixing.by_law_1(1e9, 0.07, one))
    row = next(r for r in table["law2"]["rows"] if r["model"] == "Qwen-1.5-7B" and r["q_r"] == 0.9)
    assert mixing.by_law_2(32, row) == pytest.approx(0.0165 * 32**0.62)


def test_the_answer_is_told_in_80_columns_and_in_json_without_nan(fitted):
    told = fraction.fraction(fitted, at=(0.5, 1))
    text = fraction.as_text(told)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("Verdict: extrapolation")
    assert "Larger models tolerate more" in text
    record = json.loads(json.dumps(fraction.as_json(told), allow_nan=False))
    assert len(record["rows"]) == 18
    assert len(record["asked"]) == 12
    assert {row["law_1"] is None for row in record["rows"] if row["granularity"] == "layer"} == {True}
    assert {c["claim"] for c in record["claims"]} == {"share", "size", "granularity", "block"}
    row = record["rows"][0]
    assert row["lower90"] <= row["lower50"] <= row["median"] <= row["upper50"] <= row["upper90"]


def test_data_without_shares_say_that_they_do_not_inform_them():
    plain = simulate.make(mixedcells.LAW, ["tau=0.1"], families=2, tokens=2)
    told = fraction.fraction(mixedcells.fitted(plain, size=300), params=3e9)
    assert told.attrs["verdict"] == "not identified"
    assert "the interval is the prior's" in " ".join(fraction.as_text(told).split())


def test_a_posterior_of_another_law_is_refused_in_one_sentence():
    with pytest.raises(BadInput, match="boxcox takes all weights as quantized.*--law mixed") as caught:
        fraction.fraction(posteriors.posterior())
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [({"at": 1.2}, "--at is 1.2.*between 0 and 1"), ({"at": "-0.1"}, "--at is -0.1"), ({"at": math.nan}, "--at is nan"),
     ({"increase": "0"}, "--increase is 0"), ({"increase": "5,x"}, "--increase is '5,x'"),
     ({"increase": ()}, "is empty"), ({"increase": "1e400"}, "--increase is inf"),
     ({"increase": 1e3}, "up to 900"), ({"params": "-1"}, "params is -1"),
     ({"params": 1e9, "known": {"n_params_nonembedding": 1e9}}, "both set the size"), ({"bits": 0}, "--bits is 0"),
     ({"bits": 17}, "--bits is 17"), ({"block": 0}, "--block is 0"), ({"block": 2.5}, "whole number"),
     ({"granularity": "x"}, "give l .whole layers. or m"), ({"band": "observed"}, "choose one of mean, new"),
     ({"assignment": "worst"}, "choose one of random"), ({"tokens": 0.0}, "tokens is 0"),
     ({"family": "F9"}, "not in this posterior"), ({"family": "F0", "new_family": True}, "contradict"),
     ({"lr_phase": "warm"}, "not known"), ({"method": "magic"}, "'magic' is not known"),
     ({"params": tuple(range(1000, 2000))}, "More than 1000")],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_sentence(fitted, words, why):
    with pytest.raises(BadInput, match=why) as caught:
        fraction.fraction(fitted, **words)
    assert "\n" not in str(caught.value)


def test_both_granularities_and_their_letters(fitted):
    assert fraction.granularities(None) == ("layer", "matmul")
    assert fraction.granularities("M") == fraction.granularities("matmul") == ("matmul",)
    assert draws.require_family(fitted, "f0") == "F0"
