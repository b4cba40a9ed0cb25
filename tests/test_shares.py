"""Truth: posteriors of independent normals of known variances, and correlated terms worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

import posteriors
from bayesqid.answers import asking, project, shares
from bayesqid.answers.draws import Target
from level_posterior import make

MANY = 40_000
TARGET = Target("F0", 3e9, 1e12, 3.125, "gptq", bits=3.0, lr_phase="constant", eval_dataset="c4")
X_N, X_D, U = math.log(3), math.log(10), math.log(3.125 / 3)
SPREAD = {"checkpoint_level": 0.3, "source_level": 0.2}
# of shares whose variances are known: 4 standard errors of the ratio of variances of normals, and of covariances
CLOSE = 0.015


def independent():
    """log_k, the phase, the text and GPTQ's level vary apart from each other."""
    rng = np.random.default_rng(5)

    def normal(width):
        return width * rng.normal(size=MANY)

    covariates = {"undecayed": normal(0.3), "c4": normal(0.2)}
    return make(size=MANY, terms={"log_k": -2.0 + normal(0.5)}, covariates=covariates,
                effects={("method_level", "gptq"): normal(0.25)}, spread=SPREAD, tau=0.4, sd=0.2)  # fmt: skip


def share_of(posterior, target, band="new"):
    found = project.project(posterior, [target], band)
    return dict(zip(found["part"].values.tolist(), found["shares"].values[:, 0].tolist(), strict=True))


def parts(**variances):
    whole = dict.fromkeys(shares.PARTS, 0.0) | variances
    total = sum(whole.values())
    return {name: value / total for name, value in whole.items()}


FITTED = {"quantizer": 0.25**2, "checkpoint": 0.3**2, "source": 0.2**2, "scatter": 0.4**2, "phase": 0.3**2}


@pytest.fixture(scope="module")
def posterior():
    return independent()


def test_independent_parts_take_their_own_variance(posterior):
    known = share_of(posterior, TARGET)
    assert known == pytest.approx(parts(**FITTED, family=0.5**2, law=0.2**2), abs=CLOSE)
    # a new family: the population's level is the law's, the differences between families grow with the distance
    spread = 0.2**2 * (1 + X_N**2 + X_D**2 + U**2)
    new = share_of(posterior, replace(TARGET, family=None))
    assert new == pytest.approx(parts(**FITTED, family=spread, law=0.5**2 + 0.2**2), abs=CLOSE)
    mean = share_of(posterior, replace(TARGET, family=None, population=True))
    assert mean == pytest.approx(parts(**FITTED, family=0.0, law=0.5**2 + 0.2**2), abs=CLOSE)
    assert mean["family"] == 0


def test_the_mean_band_has_no_checkpoint_source_or_scatter(posterior):
    found = share_of(posterior, TARGET, "mean")
    assert [found[name] for name in ("checkpoint", "source", "scatter")] == [0, 0, 0]
    kept = {name: FITTED[name] for name in ("quantizer", "phase")}
    assert found == pytest.approx(parts(**kept, family=0.5**2, law=0.2**2), abs=CLOSE)


def test_a_phase_or_text_that_is_not_asked_about_has_no_share(posterior):
    found = share_of(posterior, replace(TARGET, lr_phase="annealed", eval_dataset="wikitext2"))
    assert (found["phase"], found["law"]) == (0, 0)


def test_an_unseen_quantizer_is_drawn_and_a_fitted_checkpoint_is_not():
    own = np.random.default_rng(1).normal(size=MANY)
    made = make(size=MANY, spread=SPREAD | {"method_level": 0.25, "generation_level": 0.6}, tau=0.4,
                effects={("checkpoint_level", "one"): 0.1 * own})  # fmt: skip
    drawn = {"checkpoint": 0.3**2, "source": 0.2**2, "scatter": 0.4**2}
    plain = replace(TARGET, lr_phase="annealed", eval_dataset="wikitext2")
    unseen = share_of(made, replace(plain, method="aqlm"))
    assert unseen == pytest.approx(parts(**drawn, quantizer=0.25**2 + 0.6**2), abs=CLOSE)
    fitted = share_of(made, replace(plain, checkpoint="one"))
    assert fitted == pytest.approx(parts(**drawn | {"checkpoint": 0.1**2}), abs=CLOSE)


def test_covariance_is_halved_between_two_parts_and_a_share_may_be_below_zero():
    """Family a, quantizer -a / 2: the sum varies by a quarter; shares (1 - 1/2) / (1/4) = 2 and (1/4 - 1/2) / (1/4)."""
    level = np.random.default_rng(2).normal(size=1000)
    made = make(size=1000, terms={"log_k": -2.0 + level}, effects={("method_level", "gptq"): -level / 2})
    found = share_of(made, replace(TARGET, lr_phase="annealed", eval_dataset="wikitext2"), "mean")
    assert found == pytest.approx(dict.fromkeys(shares.PARTS, 0.0) | {"family": 2.0, "quantizer": -1.0}, abs=1e-9)


def test_what_the_exponent_of_bits_adds_is_the_laws():
    """Only lam varies: gamma times the bit scale moves, of a fitted family too."""
    lam = np.random.default_rng(3).normal(0.5, 0.2, size=1000)
    made = make(size=1000, law="boxcox", lam=lam)
    plain = replace(TARGET, lr_phase="annealed", eval_dataset="wikitext2", effective_bits=4.125, bits=4.0)
    found = share_of(made, plain, "mean")
    assert found == pytest.approx(dict.fromkeys(shares.PARTS, 0.0) | {"law": 1.0}, abs=1e-9)


def test_shares_sum_to_one_and_one_draw_has_none():
    full = posteriors.posterior()
    targets = [*asking.targets(full, 1e14), *asking.targets(full, 1e12, family="crossed")]
    for band in project.BANDS:
        found = project.project(full, targets, band)
        np.testing.assert_allclose(found["shares"].sum("part"), 1, rtol=1e-12)
    assert set(share_of(make(size=1), TARGET, "mean").values()) == {0.0}


def test_the_table_fits_80_columns_whatever_the_numbers():
    row = {"family": "population", "params": 4.05e11, "tokens": 1.69e15, "bits": 6.62,
           "extrapolation": {"n_ratio": 12345.0, "d_ratio": 99999.0},
           "shares": dict.fromkeys(shares.PARTS, -0.999) | {"scatter": -0.001}}  # fmt: skip
    inside = row | {"family": "F0", "extrapolation": {"n_ratio": 1.0, "d_ratio": 9.96}}
    lines = shares.as_text([row, inside])
    assert max(map(len, lines)) == 80
    heads = "family params tokens bits N D family law phase quant ckpt source scatter"
    assert lines[-3].split() == heads.split()
    assert lines[-2].split()[:6] == ["popula.", "405B", "1690T", "6.62", ">99", ">999"]
    assert lines[-1].split() == ["F0", "405B", "1690T", "6.62", "-", "10", *["-100"] * 6, "0"]
