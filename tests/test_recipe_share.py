import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesqid.errors import BadInput
from bayesqid.recipe import FORMATS, GRANULARITIES, METHODS, NONE, Recipe, effective_bits, parse, stored_bits

WHOLE = [Recipe(name, bits, group, format=kind, symmetric=kind != "int" or METHODS[name].grids[0] == "sym")
         for name, method in METHODS.items() for kind in method.formats
         for bits in FORMATS[kind].bits for group in FORMATS[kind].groups]  # fmt: skip


@st.composite
def shares(draw: st.DrawFn) -> Recipe:
    """A recipe for a share of the weights, any of the table."""
    one = draw(st.sampled_from(WHOLE))
    fraction = draw(st.integers(1, 999_999)) / 1_000_000
    unit = draw(st.sampled_from(sorted(GRANULARITIES.values())))
    return Recipe(one.method, one.bits, one.group_size, one.symmetric, one.format,
                  fraction=fraction, granularity=unit, draw=draw(st.integers(0, 999_999_999)))  # fmt: skip


@given(shares())
def test_text_form_of_a_share_round_trips(wanted):
    assert parse(str(wanted)) == wanted
    assert parse(str(wanted.whole)) == wanted.whole
    assert str(wanted).startswith(f"{wanted.whole}@0.")


@given(shares(), shares())
def test_text_forms_of_different_shares_differ(one, other):
    assert (str(one) == str(other)) == (one == other)


def test_every_whole_recipe_is_written_without_a_share():
    assert all("@" not in str(one) and parse(str(one)) == one and not one.partial for one in WHOLE)


@pytest.mark.parametrize(
    ("text", "want"),
    [("rtn-mxint4-wa@0.9m", Recipe("rtn", 4, 32, True, "mxint", ("wa",), 0, 0.9, "matmul")),
     ("rtn-mxint4-wa@0.9m17", Recipe("rtn", 4, 32, True, "mxint", ("wa",), 0, 0.9, "matmul", 17)),
     ("gptq-w3-g128-act-s2@0.975l3", Recipe("gptq", 3, 128, options=("act",), seed=2, fraction=0.975,
                                            granularity="layer", draw=3)),
     ("rtn-w3@0.000001l", Recipe("rtn", 3, fraction=1e-6, granularity="layer")),
     ("mix-best50@0a1b2c3d", Recipe("mix", 0, mix="best50@0a1b2c3d"))],
)  # fmt: skip
def test_text_form_of_a_share_by_hand(text, want):
    assert parse(text) == want
    assert str(want) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [("rtn-w3@1.5m", "between 0 and 1"), ("rtn-w3@-0.1m", "between 0 and 1"), ("rtn-w3@999999m", "between 0 and 1"),
     ("rtn-w3@1m", "all of the weights: write rtn-w3"), ("rtn-w3@1.0l", "all of the weights"),
     ("rtn-w3@0m", "none of the weights: write none"), ("rtn-w3@-0m", "none of the weights"),
     ("rtn-w3@0.90m", "without zeros at its end, 0.9"), ("rtn-w3@0.9", "write the share behind @"),
     ("rtn-w3@.9m", "write the share behind @"), ("rtn-w3@nanm", "write the share behind @"),
     ("rtn-w3@1e400m", "write the share behind @"), ("rtn-w3@0.9x", "write the share behind @"),
     ("rtn-w3@0.9m01", "write the share behind @"), ("rtn-w3@0.5m@0.5m", "write the share behind @"),
     ("rtn-w3@", "write the share behind @"), ("rtn-w7@0.5m", "7 bits"), ("none@0.5m", "none cannot be"),
     ("gptq-w4-saved@0.5m", "gptq-w4-saved cannot be"), ("mix-best50@0A1B2C3D", "is not a recipe"),
     ("mix-best50@0a1b2c3", "is not a recipe"), ("mix-best 50@0a1b2c3d", "is not a recipe")],
)  # fmt: skip
def test_a_bad_share_is_refused_in_one_sentence(text, why):
    with pytest.raises(BadInput, match=why) as caught:
        parse(text)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")


def test_bits_average_what_is_quantized_with_the_rest_at_16():
    assert effective_bits(parse("rtn-mxint4@0.9m"), [(512, 256)]) == pytest.approx(0.9 * 4.25 + 0.1 * 16, rel=1e-12)
    assert stored_bits(parse("rtn-mxint4@0.9m"), 512, 256) == stored_bits(parse("rtn-mxint4"), 512, 256)
    with pytest.raises(BadInput, match="give its file"):
        effective_bits(parse("mix-greedy@0a1b2c3d"), [(512, 256)])


def test_a_share_leaves_name_and_need_of_calibration_text_as_they_are():
    for text in ("rtn-mxint4-wa", "gptq-w3-act", "awq-w4", "hqq-w3"):
        one, part = parse(text), parse(f"{text}@0.5m3")
        for name in ("quantizer", "calibrated", "rounds_inputs"):
            assert getattr(one, name) == getattr(part, name)
        assert part.whole == one
    assert parse("mix-greedy@0a1b2c3d").quantizer == "mix"
    assert not parse("mix-greedy@0a1b2c3d").calibrated
    assert NONE.quantizer == "none"
