import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesqid import recipe
from bayesqid.errors import BadInput
from bayesqid.recipe import NONE, Recipe, effective_bits, parse, stored_bits

RECIPES = st.builds(Recipe, st.sampled_from(sorted(recipe.DEFAULT_SYMMETRIC)), st.sampled_from(recipe.BITS),
                    st.sampled_from(recipe.GROUPS), st.booleans())  # fmt: skip


@given(RECIPES)
def test_text_form_round_trips(wanted):
    assert parse(str(wanted)) == wanted


def test_the_baseline_round_trips():
    assert str(NONE) == "none"
    assert parse("none") == NONE


@pytest.mark.parametrize(
    ("text", "want", "again"),
    [("rtn-w3", Recipe("rtn", 3, -1, True), "rtn-w3"), ("gptq-w4-g128", Recipe("gptq", 4, 128, True), "gptq-w4-g128"),
     ("gptq-w4-g128-sym", Recipe("gptq", 4, 128, True), "gptq-w4-g128"),
     ("rtn-w2-g32-asym", Recipe("rtn", 2, 32, False), "rtn-w2-g32-asym"),
     ("rtn-w8-asym", Recipe("rtn", 8, -1, False), "rtn-w8-asym")],
)  # fmt: skip
def test_text_form_by_hand(text, want, again):
    assert parse(text) == want
    assert str(want) == again


@pytest.mark.parametrize(
    ("text", "bits"),
    [("gptq-w4-g128", 4 + 16 / 128), ("gptq-w4-g128-asym", 4 + (16 + 4) / 128), ("rtn-w3-g32", 3 + 16 / 32),
     ("rtn-w3-g32-asym", 3 + 19 / 32), ("rtn-w2", 2 + 16 / 256), ("rtn-w2-asym", 2 + 18 / 256), ("none", 16)],
)  # fmt: skip
def test_effective_bits_by_hand(text, bits):
    assert effective_bits(parse(text), [(512, 256)]) == bits


def test_the_printed_example():
    assert effective_bits(Recipe("gptq", 4, 128, False), [(4096, 4096)]) == 4.15625
    assert effective_bits(Recipe("gptq", 4, 128, True), [(4096, 4096)]) == 4.125


def test_a_last_group_that_is_not_full_still_has_its_scale():
    assert stored_bits(parse("rtn-w4-g128"), 10, 130) == 4 * 1300 + 10 * 2 * 16
    assert stored_bits(parse("rtn-w4-g128"), 10, 100) == 4 * 1000 + 10 * 16


def test_effective_bits_weigh_layers_by_their_weights():
    """Per channel: 10 rows of 100 cost 16/100 a weight, 100 rows of 1000 cost 16/1000."""
    shapes = [(10, 100), (100, 1000)]
    want = 3 + (10 * 16 + 100 * 16) / (1000 + 100_000)
    assert effective_bits(parse("rtn-w3"), shapes) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "not a recipe"), ("rtn", "not a recipe"), ("rtn-3", "not a recipe"), ("RTN-w3", "not a recipe"),
     ("rtn-w3-", "not a recipe"), ("rtn-w3-g", "not a recipe"), ("rtn-w3-sym-g32", "not a recipe"),
     ("rtn-w3-g32-both", "not a recipe"), ("rtn-w3 ", "not a recipe"), ("rtn-w-3", "not a recipe"),
     ("rtn-w3.5", "not a recipe"), ("magic-w3", "unknown method 'magic'"), ("none-w16", "unknown method"),
     ("rtn-w7", "7 bits"), ("rtn-w0", "0 bits"), ("rtn-w16", "16 bits"), ("rtn-w3-g100", "groups of 100"),
     ("rtn-w3-g0", "groups of 0")],
)  # fmt: skip
def test_bad_text_is_refused_in_one_sentence(text, why):
    with pytest.raises(BadInput, match=why) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
