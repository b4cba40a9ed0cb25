"""Truth: the formulas as the papers write them, their printed tables, and arithmetic with 50 digits."""

import json
import math
from decimal import Decimal, getcontext
from pathlib import Path

import numpy as np
import pytest

from bayesqid import laws
from bayesqid.errors import BadInput

TABLE = json.loads((Path(__file__).parent / "data" / "ouyang_table1.json").read_text())["rows"]
SIZES = {"1B": 1e9, "7B": 7e9, "70B": 7e10, "405B": 4.05e11}
ENTRIES = [(SIZES[size], float(qid), row) for size, rows in TABLE.items() for qid, row in rows.items()]
POINTS = [(3e7, 2.6e10, 3.0), (1e9, 1e11, 3.0), (7e9, 1.5e13, 4.25), (4.05e11, 1e14, 2.0), (85e6, 1e9, 6.6)]


def ouyang(params, tokens, bits, k=0.017, alpha=0.2261, beta=0.5251, gamma=5.4967):
    """Eq. 8 as printed, raw counts."""
    return k * tokens**beta / (params**alpha * bits**gamma)


def kumar(params, tokens, bits, c=0.0598, n=0.3439, d=0.5068, post=0.5907):
    """Eq. 2 with Table 2 as printed, raw counts."""
    return c * tokens**d / params**n * math.exp(-bits / post)


@pytest.mark.parametrize("point", POINTS)
def test_published_constants_reproduce_the_printed_formulas(point):
    assert laws.qid(*point, **laws.published_constants("ouyang")) == pytest.approx(ouyang(*point), rel=1e-12)
    assert laws.qid(*point, **laws.published_constants("kumar")) == pytest.approx(kumar(*point), rel=1e-12)


@pytest.mark.parametrize("point", POINTS)
def test_one_exponent_of_bits_nests_both_laws(point):
    assert laws.get("ouyang").lam == 0
    assert laws.get("kumar").lam == 1
    for name, formula in (("ouyang", ouyang), ("kumar", kumar)):
        constants = laws.published_constants(name) | {"lam": laws.get(name).lam}
        assert laws.qid(*point, **constants) == pytest.approx(formula(*point), rel=1e-12)


def test_the_pivot_is_the_law_of_a_billion_parameters_after_a_hundred_billion_tokens_at_three_bits():
    for lam in (0.0, 0.5, 1.0):
        assert laws.qid(1e9, 1e11, 3, -1.5, 0.3, 0.4, 5, lam) == pytest.approx(math.exp(-1.5), rel=1e-12)


def test_the_unified_law_reproduces_the_two_bit_column_of_table_1():
    """Within what printing allows: k to 3 decimals is 0.0165 to 0.0175, tokens to 4 decimals of a trillion."""
    constants = laws.published_constants("ouyang")
    lowest, highest = [], []
    for params, qid, row in ENTRIES:
        low, high = (row[0] - 5e-5) * 1e12, (row[0] + 5e-5) * 1e12
        at_low, at_high = (laws.qid(params, tokens, 2, **constants) for tokens in (low, high))
        assert at_low * 0.0165 / 0.017 < qid < at_high * 0.0175 / 0.017
        lowest.append(0.017 * qid / at_high)
        highest.append(0.017 * qid / at_low)
    # one k serves all 16 entries up to 4e-5, and it rounds to the printed one
    assert max(lowest) - min(highest) < 4e-5
    assert round(max(lowest), 3) == round(min(highest), 3) == 0.017


@pytest.mark.parametrize(
    ("bits", "params", "want"),
    [(3, 1e9, [0.234, 0.321, 0.401, 0.478]), (3, 4.05e11, [0.317, 0.435, 0.544, 0.648]),
     (4, 1e9, [0.187, 0.258, 0.325, 0.389]), (4, 4.05e11, [0.304, 0.421, 0.530, 0.634])],
)  # fmt: skip
def test_the_unified_law_misses_the_other_columns(bits, params, want):
    """Eq. 8 by hand at the printed tokens, where the table claims 0.2, 0.3, 0.4 and 0.5."""
    constants = laws.published_constants("ouyang")
    got = [laws.qid(params, row[bits - 2] * 1e12, bits, **constants) for n, _, row in ENTRIES if n == params]
    assert got == pytest.approx(want, abs=6e-4)
    assert max(abs(g / t - 1) for g, t in zip(got, (0.2, 0.3, 0.4, 0.5), strict=True)) > 0.15


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_each_column_of_table_1_is_a_power_law_of_its_own(bits):
    """Exponents of 4 decimals times ln D = 30 and ln N = 27 leave 0.3 %; tokens are printed to 4 decimals of 1e12."""
    constants = laws.published_constants("ouyang", f"{bits}-bit")
    slack = 0.003 if bits > 2 else 0.0
    for params, qid, row in ENTRIES:
        ends = ((row[bits - 2] + half) * 1e12 for half in (-5e-5, 5e-5))
        low, high = (laws.qid(params, tokens, float(bits), **constants) for tokens in ends)
        assert low * (1 - slack) < qid < high * (1 + slack)
        assert laws.qid(params, 1e12, 2.0, **constants) == laws.qid(params, 1e12, 6.0, **constants)


def test_kumar_at_the_largest_run():
    constants = laws.published_constants("kumar")
    at_3, at_4 = (laws.qid(3e7, 2.6e10, bits, **constants) for bits in (3, 4))
    assert at_3 == pytest.approx(0.19, abs=0.005)
    assert at_4 == pytest.approx(0.035, abs=0.0005)
    assert at_3 / at_4 == pytest.approx(5.4, abs=0.05)


@pytest.mark.parametrize("lam", [-0.5, -1e-3, -1.01e-4, -9.9e-5, -1e-6, 0.0, 1e-9, 9.9e-5, 1.01e-4, 1e-2, 0.5, 2.0])
@pytest.mark.parametrize("bits", [1.9, 3.0, 3.016, 6.7, 16.0])
def test_the_bit_scale_keeps_its_digits_near_zero(lam, bits):
    getcontext().prec = 50
    u = (Decimal(bits) / 3).ln()
    exact = u if lam == 0 else ((Decimal(lam) * u).exp() - 1) / Decimal(lam)
    # the series leaves out lam^3 u^4 / 24, at most 4e-13 here
    assert laws.bit_scale(bits, lam) == pytest.approx(float(exact), rel=1e-11, abs=1e-12)


def test_the_bit_scale_has_unit_slope_in_log_bits_at_three():
    width = 1e-5
    for lam in (-0.5, 0.0, 0.3, 1.0):
        rise = laws.bit_scale(3 * math.exp(width), lam) - laws.bit_scale(3 * math.exp(-width), lam)
        assert rise / (2 * width) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("name", laws.PLAIN)
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_qid_falls_with_size_and_bits_and_rises_with_tokens(name, lam):
    law = laws.get(name)
    constants = {term.name: term.mean for term in law.terms}
    assert min(constants[k] for k in ("alpha", "beta", "gamma")) > 0
    lam = lam if isinstance(law.lam, tuple) else law.lam
    for n, d, p in POINTS:
        here = laws.qid(n, d, p, **constants, lam=lam)
        assert laws.qid(2 * n, d, p, **constants, lam=lam) < here
        assert laws.qid(n, 2 * d, p, **constants, lam=lam) > here
        assert laws.qid(n, d, p + 0.5, **constants, lam=lam) < here


def test_qid_broadcasts_over_draws_and_targets():
    slopes = np.array([[0.3], [0.4]])
    got = laws.qid(np.array([1e9, 7e9, 7e10]), 1e12, np.array([2, 3, 4.0]), -1.5, 0.3, slopes, 5, 0.3)
    assert got.shape == (2, 3)
    assert got[1, 2] == pytest.approx(laws.qid(7e10, 1e12, 4.0, -1.5, 0.3, 0.4, 5, 0.3))


COLUMNS = {
    "n_params_nonembedding": np.array([1e9, 1e10]), "train_tokens": np.array([1e11, 1e12]),
    "effective_bits": np.array([3.0, 4.0]), "per_channel": np.array([False, True]),
    "eval_dataset": np.array(["wikitext2", "c4-new"], dtype=object), "ctx_len": np.array([2048.0, 4096.0]),
    "lr_phase": np.array(["annealed", "constant"], dtype=object),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "want"),
    [("1", 1.0), ("-x_N", -math.log(10)), ("x_D", math.log(10)), ("-x_P", -2 * (math.sqrt(4 / 3) - 1)),
     ("per_channel", 1.0), ("per_channel ln P", math.log(4 / 3)), ("c4", 1.0), ("ptb", 0.0),
     ("ln context", math.log(2)), ("undecayed", 1.0)],
)  # fmt: skip
def test_every_factor_is_zero_at_the_reference_and_known_elsewhere(name, want):
    reference, other = laws.factor(name, COLUMNS, 0.5)
    assert reference == (1.0 if name == "1" else 0.0)
    assert other == pytest.approx(want)


def test_every_term_of_every_law_names_a_factor_and_says_its_prior():
    for law in laws.LAWS.values():
        for item in (*law.terms, *law.covariates, *law.effects):
            assert item.factor in laws.FACTORS
            assert item.sentence
        usual = ("log_k", "alpha", "beta", "gamma")
        assert law.term_names == (("log_k", "taylor") if law.features else (*usual, "kappa") if law.mixed else usual)


def normal_range(item, scale):
    """exp of the 5 % and 95 % points of a normal prior times `scale`."""
    return math.exp((item.mean - 1.645 * item.sd) * scale), math.exp((item.mean + 1.645 * item.sd) * scale)


def test_the_priors_are_what_their_sentences_say():
    term = {item.name: item for item in laws.get("boxcox").terms}
    assert normal_range(term["log_k"], 1) == pytest.approx((0.02, 2.6), rel=0.06)
    assert normal_range(term["alpha"], math.log(10)) == pytest.approx((0.9, 4.3), rel=0.06)
    assert normal_range(term["beta"], math.log(10)) == pytest.approx((0.98, 6.5), rel=0.06)
    low, high = term["gamma"].mean - 1.645 * term["gamma"].sd, term["gamma"].mean + 1.645 * term["gamma"].sd
    assert (low, high) == pytest.approx((1.7, 8.3), rel=0.06)
    also = {item.name: item for item in laws.get("boxcox").covariates}
    assert normal_range(also["per_channel"], 1) == pytest.approx((0.7, 3.8), rel=0.06)
    assert normal_range(also["c4"], 1)[1] == pytest.approx(1.6, rel=0.06)
    assert normal_range(also["ptb"], 1)[1] == pytest.approx(1.6, rel=0.06)
    assert normal_range(also["undecayed"], 1)[1] == pytest.approx(2.3, rel=0.06)
    assert normal_range(also["context"], math.log(2))[1] == pytest.approx(1.26, rel=0.01)


def test_priors_are_replaced_where_named_and_nowhere_else():
    law = laws.get("boxcox")
    new = laws.with_priors(law, {"beta": {"mean": -0.5, "sd": 0.1}, "method_level": {"spread": 2},
                                 "c4": {"sd": 1.0}, "scatter": {"spread": 0.2}, "lam": {"sd": 0.01}})  # fmt: skip
    before = {item.name: item for item in (*law.terms, *law.covariates, *law.effects)}
    after = {item.name: item for item in (*new.terms, *new.covariates, *new.effects)}
    assert (after["beta"].mean, after["beta"].sd, after["beta"].spread) == (-0.5, 0.1, before["beta"].spread)
    assert after["method_level"].spread == 2
    assert (after["c4"].mean, after["c4"].sd) == (before["c4"].mean, 1.0)
    assert new.scatter == 0.2
    assert new.lam == (law.lam[0], 0.01)
    assert {name for name in after if after[name] != before[name]} == {"beta", "method_level", "c4"}
    assert laws.with_priors(law, {}) == law


@pytest.mark.parametrize(
    ("name", "priors", "why"),
    [("boxcox", {"delta": {"mean": 1}}, "'delta' cannot be set"), ("boxcox", {"beta": {"width": 1}}, "key 'width'"),
     ("boxcox", {"beta": {"sd": 0}}, "above zero"), ("boxcox", {"beta": {"sd": -1}}, "above zero"),
     ("boxcox", {"beta": {"mean": math.nan}}, "finite"), ("boxcox", {"beta": {"mean": math.inf}}, "finite"),
     ("boxcox", {"beta": {"mean": "x"}}, "finite"), ("boxcox", {"beta": {"sd": True}}, "finite"),
     ("boxcox", {"method_level": {"mean": 0.1}}, "key 'mean'"), ("boxcox", {"c4": {"spread": 1}}, "unknown key"),
     ("boxcox", {"scatter": {"sd": 1}}, "unknown key"), ("boxcox", {"scatter": {"spread": 0}}, "above zero"),
     ("boxcox", {"lam": {"spread": 1}}, "unknown key"), ("ouyang", {"lam": {"mean": 0.5}}, "'lam' cannot be set"),
     ("boxcox", {"beta": 0.5}, "give a table")],
)  # fmt: skip
def test_bad_priors_are_refused_in_one_sentence(name, priors, why):
    with pytest.raises(BadInput, match=why) as caught:
        laws.with_priors(laws.get(name), priors)
    assert "\n" not in str(caught.value)


def test_an_unknown_law_lists_the_known_ones():
    with pytest.raises(BadInput, match="boxcox, ouyang, kumar"):
        laws.get("chinchilla")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(("newton",), "no law 'newton'"), (("boxcox", "time"), "no drivers 'time': choose one of both, tokens, phase"),
     (("boxcox", "both", ["cauchy"]), "no extra 'cauchy': choose among student-t"),
     (("curved", "both", ["latent-tokens"]), "curved is not linear in ln D")],
)  # fmt: skip
def test_a_variant_that_is_not_known_is_refused_in_one_sentence(arguments, why):
    with pytest.raises(BadInput, match=why) as caught:
        laws.variant(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", laws.PLAIN)
def test_drivers_leave_out_what_the_other_one_does(name):
    both, tokens, phase = (laws.variant(name, drivers) for drivers in laws.DRIVERS)
    assert both == laws.get(name)
    assert tokens.terms == both.terms
    assert not [c.name for c in tokens.covariates if "undecayed" in c.name]
    assert len(both.covariates) - len(tokens.covariates) == 2
    # without tokens nothing at all may depend on D
    assert "beta" not in phase.term_names
    columns = {"n_params_nonembedding": np.array([1e9, 1e9]), "train_tokens": np.array([1e11, 7e12]),
               "effective_bits": np.array([3.0, 3.0]), "per_channel": np.array([True, True]),
               "eval_dataset": np.array(["c4", "c4"]), "ctx_len": np.array([512.0, 512.0]),
               "lr_phase": np.array(["constant", "constant"])}  # fmt: skip
    for item in (*phase.terms, *phase.covariates, *phase.effects):
        values = laws.factor(item.factor, columns, 0.5)
        assert values[0] == values[1], item.name
    assert any(c.name == "undecayed" for c in phase.covariates)


def test_extras_add_what_they_say_and_are_kept_in_order_without_repeats():
    law = laws.variant("boxcox", "both", ["loss", "student-t", "loss", "vocabulary", "latent-tokens"])
    assert law.extras == ("loss", "student-t", "vocabulary", "latent-tokens")
    assert [c.name for c in law.covariates[-2:]] == ["loss", "vocabulary"]
    assert law.tails == "student-t"
    assert law.latent_tokens == (pytest.approx(math.log(4e12)), 0.8)
    assert laws.variant("boxcox").latent_tokens is None
    assert laws.variant("curved", "phase", ["latent-tokens"]).latent_tokens


def test_bits_count_as_their_nearest_whole_width():
    bits = np.array([1.95, 2.14, 2.51, 3.125, 4.5, 4.51, 9.0])
    assert laws.width(bits).tolist() == ["2", "2", "3", "3", "4", "5", "8"]


def test_an_unknown_vocabulary_counts_as_the_usual_one():
    columns = {"vocab_size": np.array([np.nan, 50_000.0, 100_000.0])}
    np.testing.assert_allclose(laws.factor("ln V", columns, 0.0), [0, 0, math.log(2)])


def test_every_drivers_and_extra_is_described():
    text = laws.describe(laws.get("boxcox"))
    assert max(map(len, text.splitlines())) <= 80
    for name in (*laws.DRIVERS, *laws.EXTRAS):
        assert name in text
