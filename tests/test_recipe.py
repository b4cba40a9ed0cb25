import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesqid.errors import BadInput
from bayesqid.recipe import FORMATS, METHODS, NONE, Recipe, effective_bits, options, parse, spelled, stored_bits


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Every legal recipe: what the two tables and the options allow."""
    name = draw(st.sampled_from(sorted(METHODS)))
    method = METHODS[name]
    kind = draw(st.sampled_from(method.formats))
    form = FORMATS[kind]
    symmetric = kind != "int" or draw(st.sampled_from(method.grids)) == "sym"
    saved = draw(st.booleans())
    # a saved checkpoint does not tell how it was calibrated
    known = [option for option in options(name, kind) if not (saved and option == "oneshot")]
    said = tuple(option for option in known if draw(st.booleans())) + ("saved",) * saved
    seed = draw(st.integers(0, 999_999_999)) if method.calibrated and not saved else 0
    return Recipe(
        name, draw(st.sampled_from(form.bits)), draw(st.sampled_from(form.groups)), symmetric, kind, said, seed
    )


@given(recipes())
def test_text_form_round_trips(wanted):
    assert parse(str(wanted)) == wanted


@given(recipes(), recipes())
def test_text_forms_of_different_recipes_differ(one, other):
    assert (str(one) == str(other)) == (one == other)


def test_every_number_format_is_written_in_its_own_way():
    written = [spelled(kind, bits) for kind, form in FORMATS.items() for bits in form.bits]
    assert len(set(written)) == len(written)
    assert set(written) == {
        "w2", "w3", "w4", "w5", "w6", "w8", "mxint2", "mxint3", "mxint4", "mxint6", "mxint8", "mxfp4", "mxfp6e2m3",
        "mxfp6e3m2", "mxfp8e4m3", "mxfp8e5m2", "fp8e4m3", "fp8e5m2", "nvfp4", "nf4", "fp4",
    }  # fmt: skip
    assert [parse(f"rtn-{name}").number for name in written] == written


@given(recipes(), st.integers(1, 300), st.integers(1, 300))
def test_a_weight_takes_its_codes_and_at_least_one_scale(recipe, rows, columns):
    bits = stored_bits(recipe, rows, columns)
    assert bits == int(bits)
    assert bits >= recipe.bits * rows * columns + FORMATS[recipe.format].scale_bits


def test_the_baseline_round_trips():
    assert str(NONE) == "none"
    assert parse("none") == NONE
    assert not NONE.calibrated


@pytest.mark.parametrize(
    ("text", "want", "again"),
    [("rtn-w3", Recipe("rtn", 3, -1, True), "rtn-w3"), ("gptq-w4-g128", Recipe("gptq", 4, 128, True), "gptq-w4-g128"),
     ("gptq-w4-g128-sym", Recipe("gptq", 4, 128, True), "gptq-w4-g128"),
     ("rtn-w2-g32-asym", Recipe("rtn", 2, 32, False), "rtn-w2-g32-asym"),
     ("rtn-w8-asym", Recipe("rtn", 8, -1, False), "rtn-w8-asym"),
     ("awq-w4-g128", Recipe("awq", 4, 128, False), "awq-w4-g128"),
     ("awq-w4-asym", Recipe("awq", 4, -1, False), "awq-w4"),
     ("awq-w4-sym", Recipe("awq", 4, -1, True), "awq-w4-sym"),
     ("hqq-w3-g64", Recipe("hqq", 3, 64, False), "hqq-w3-g64"),
     ("rtn-mxint4", Recipe("rtn", 4, 32, True, "mxint"), "rtn-mxint4"),
     ("rtn-mxint8-g32", Recipe("rtn", 8, 32, True, "mxint"), "rtn-mxint8"),
     ("rtn-mxint8-g16", Recipe("rtn", 8, 16, True, "mxint"), "rtn-mxint8-g16"),
     ("rtn-mxint3-g64", Recipe("rtn", 3, 64, True, "mxint"), "rtn-mxint3-g64"),
     ("rtn-mxfp4-g32", Recipe("rtn", 4, 32, True, "mxfp"), "rtn-mxfp4"),
     ("rtn-mxfp6e2m3", Recipe("rtn", 6, 32, True, "mxfp-e2m3"), "rtn-mxfp6e2m3"),
     ("rtn-mxfp6e3m2-g128-wa", Recipe("rtn", 6, 128, True, "mxfp-e3m2", ("wa",)), "rtn-mxfp6e3m2-g128-wa"),
     ("rtn-mxfp8e5m2", Recipe("rtn", 8, 32, True, "mxfp-e5m2"), "rtn-mxfp8e5m2"),
     ("rtn-fp8e4m3-wa", Recipe("rtn", 8, -1, True, "fp-e4m3", ("wa",)), "rtn-fp8e4m3-wa"),
     ("rtn-nvfp4-g16", Recipe("rtn", 4, 16, True, "nvfp"), "rtn-nvfp4"),
     ("rtn-fp8e5m2-wa-saved", Recipe("rtn", 8, -1, True, "fp-e5m2", ("wa", "saved")), "rtn-fp8e5m2-wa-saved"),
     ("gptq-mxint4", Recipe("gptq", 4, 32, True, "mxint"), "gptq-mxint4"),
     ("gptq-mxint2-g16-oneshot-wa-s3", Recipe("gptq", 2, 16, True, "mxint", ("oneshot", "wa"), 3),
      "gptq-mxint2-g16-oneshot-wa-s3"),
     ("rtn-nf4", Recipe("rtn", 4, 64, True, "nf"), "rtn-nf4"),
     ("rtn-fp4-g128", Recipe("rtn", 4, 128, True, "fp"), "rtn-fp4-g128"),
     ("gptq-w4-g128-act", Recipe("gptq", 4, 128, True, options=("act",)), "gptq-w4-g128-act"),
     ("gptq-w2-asym-act-oneshot-s7", Recipe("gptq", 2, -1, False, "int", ("act", "oneshot"), 7),
      "gptq-w2-asym-act-oneshot-s7"),
     ("gptq-w4-saved", Recipe("gptq", 4, options=("saved",)), "gptq-w4-saved"),
     ("gptq-w4-g32-act-saved", Recipe("gptq", 4, 32, options=("act", "saved")), "gptq-w4-g32-act-saved"),
     ("awq-w4-g128-asym-saved", Recipe("awq", 4, 128, False, options=("saved",)), "awq-w4-g128-saved"),
     ("rtn-mxint8-saved", Recipe("rtn", 8, 32, True, "mxint", ("saved",)), "rtn-mxint8-saved")],
)  # fmt: skip
def test_text_form_by_hand(text, want, again):
    assert parse(text) == want
    assert str(want) == again


@pytest.mark.parametrize(
    ("text", "printed", "calibrated"),
    [("rtn-w3", "rtn", False), ("rtn-mxint4", "rtn-mxint", False), ("rtn-nf4-g128", "nf4", False),
     ("rtn-fp4", "fp4", False), ("gptq-w4-g128-asym", "gptq", True), ("gptq-w4-act", "gptq-actorder", True),
     ("gptq-w4-oneshot-s3", "gptq", True), ("awq-w4", "awq", True), ("hqq-w4", "hqq", False),
     ("awq-w4-saved", "awq", False), ("rtn-mxint3-g64-wa", "rtn-mxint-wa", False),
     ("rtn-mxfp4", "rtn-mxfp4", False), ("rtn-mxfp6e2m3-wa", "rtn-mxfp6e2m3-wa", False),
     ("rtn-fp8e5m2", "rtn-fp8e5m2", False), ("rtn-nvfp4", "rtn-nvfp4", False),
     ("gptq-mxint3-g128", "gptq-mxint", True), ("gptq-mxint3-oneshot-wa-s1", "gptq-mxint-wa", True)],
)  # fmt: skip
def test_printed_name_and_need_of_calibration_text(text, printed, calibrated):
    assert (parse(text).quantizer, parse(text).calibrated) == (printed, calibrated)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("gptq-w4-g128", 4 + 16 / 128), ("gptq-w4-g128-asym", 4 + (16 + 4) / 128), ("rtn-w3-g32", 3 + 16 / 32),
     ("rtn-w3-g32-asym", 3 + 19 / 32), ("rtn-w2", 2 + 16 / 256), ("rtn-w2-asym", 2 + 18 / 256), ("none", 16),
     ("awq-w4-g128", 4 + 20 / 128), ("awq-w3-sym", 3 + 16 / 256),
     # zero points of HQQ are 16-bit numbers
     ("hqq-w4-g64", 4 + 32 / 64), ("hqq-w2", 2 + 32 / 256),
     # one byte per block
     ("rtn-mxint4", 4.25), ("rtn-mxint8", 8.25), ("rtn-mxint4-g16", 4.5), ("rtn-mxint8-g128", 8 + 1 / 16),
     ("rtn-mxint2-g64", 2.125), ("rtn-mxint6", 6.25), ("gptq-mxint3-g128", 3.0625), ("rtn-mxfp4", 4.25),
     ("rtn-mxfp6e3m2-g16", 6.5), ("rtn-mxfp8e4m3", 8.25),
     # what is rounded on the way is not stored
     ("rtn-mxfp8e5m2-g64-wa", 8.125),
     # one float32 per row; one byte per block and one float32 per matrix
     ("rtn-fp8e4m3", 8 + 32 / 256), ("rtn-fp8e5m2-wa", 8 + 32 / 256), ("rtn-nvfp4", 4.5 + 32 / (512 * 256)),
     # one float32 per block
     ("rtn-nf4", 4.5), ("rtn-nf4-g256", 4 + 32 / 256), ("rtn-fp4-g128", 4.25),
     # each of 256 columns names its group in 32 bits, once for 512 rows; a single group needs no name
     ("gptq-w4-g128-act", 4 + 16 / 128 + 32 / 512), ("gptq-w4-act", 4 + 16 / 256),
     ("gptq-w4-g128-act-oneshot-s3", 4 + 16 / 128 + 32 / 512), ("gptq-w4-g128-saved", 4 + 16 / 128)],
)  # fmt: skip
def test_effective_bits_by_hand(text, bits):
    assert effective_bits(parse(text), [(512, 256)]) == bits


def test_the_printed_example():
    assert effective_bits(Recipe("gptq", 4, 128, False), [(4096, 4096)]) == 4.15625
    assert effective_bits(Recipe("gptq", 4, 128, True), [(4096, 4096)]) == 4.125


def test_a_last_group_that_is_not_full_still_has_its_scale():
    assert stored_bits(parse("rtn-w4-g128"), 10, 130) == 4 * 1300 + 10 * 2 * 16
    assert stored_bits(parse("rtn-w4-g128"), 10, 100) == 4 * 1000 + 10 * 16
    assert stored_bits(parse("rtn-mxint4"), 10, 40) == 4 * 400 + 10 * 2 * 8
    assert stored_bits(parse("hqq-w3-g64"), 10, 70) == 3 * 700 + 10 * 2 * 32


def test_blocks_of_nf4_run_over_the_ends_of_rows():
    # 10 rows of 40 are 400 weights: 7 blocks of 64, not 10
    assert stored_bits(parse("rtn-nf4"), 10, 40) == 4 * 400 + 7 * 32


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
     ("rtn-w3.5", "not a recipe"), ("rtn-w03", "not a recipe"), ("rtn-w3-g032", "not a recipe"),
     ("gptq-w4-s01", "not a recipe"), ("rtn-w3\n", "not a recipe"), ("gptq-w4-s1-act", "not a recipe"),
     ("gptq-w4-saved-s1", "not a recipe"), ("rtn-bf16", "not a recipe"), ("rtn-w٣", "not a recipe"),
     ("rtn-w" + "3" * 5000, "not a recipe"), ("gptq-w4-s1234567890", "not a recipe"),
     ("magic-w3", "unknown method 'magic'"), ("none-w16", "unknown method"),
     ("rtn-w7", "7 bits"), ("rtn-w0", "0 bits"), ("rtn-w16", "16 bits"),
     ("rtn-mxint5", "5 bits: choose one of mxint2, mxint3, mxint4, mxint6, mxint8"),
     ("rtn-nf3", "3 bits"), ("rtn-fp8", "8 bits: choose one of fp8e4m3, fp8e5m2, fp4"),
     ("rtn-mxfp6", "6 bits: choose one of mxfp4, mxfp6e2m3, mxfp6e3m2, mxfp8e4m3, mxfp8e5m2"),
     ("rtn-mxfp6e4m3", "asks for mxfp6e4m3: choose one of mxfp4"), ("rtn-mxfp8e3m4", "asks for mxfp8e3m4"),
     ("rtn-mxfp4e2m1", "asks for mxfp4e2m1"), ("rtn-w4e2m1", "asks for w4e2m1: choose one of w2"),
     ("rtn-nvfp8", "8 bits: choose one of nvfp4"), ("rtn-fp8e4m", "not a recipe"), ("rtn-fp8e4m3fn", "not a recipe"),
     ("rtn-fp8e4m3-g128", "groups of 128: fp8e4m3 has none, leave -g out"),
     ("rtn-nvfp4-g32", "groups of 32: choose 16 or leave -g out"), ("rtn-mxfp4-g256", "groups of 256"),
     ("rtn-fp8e5m2-asym", "one grid only"), ("gptq-mxfp4", "gptq does not round to mxfp4, only rtn can"),
     ("awq-mxint4-wa", "awq does not round to mxint4, only rtn and gptq can"),
     ("gptq-mxint4-act", "gptq has no option 'act' with mxint4"), ("rtn-w4-wa", "rtn has no option 'wa' with w4"),
     ("rtn-nvfp4-wa", "no option 'wa' with nvfp4"), ("rtn-nf4-wa", "no option 'wa' with nf4"),
     ("gptq-mxint4-wa-oneshot", "in the order oneshot, wa"), ("rtn-mxfp4-wa-wa", "once and in the order wa"),
     ("rtn-mxint4-s1-wa", "not a recipe"), ("rtn-mxfp4-wa-s1", "rtn draws no calibration text"),
     ("rtn-w3-g100", "groups of 100"), ("rtn-w3-g0", "groups of 0"), ("rtn-w3-g16", "groups of 16"),
     ("rtn-nf4-g32", "groups of 32: choose 64, 128, 256"), ("rtn-mxint4-g256", "groups of 256"),
     ("gptq-nf4", "gptq does not round to nf4"), ("awq-mxint4", "awq does not round to mxint4"),
     ("hqq-fp4", "hqq does not round to fp4"),
     ("hqq-w4-sym", "one grid only: leave -sym out"), ("rtn-nf4-asym", "one grid only: leave -asym out"),
     ("rtn-mxint4-sym", "one grid only: leave -sym out"),
     ("rtn-w4-act", "rtn has no option 'act'"), ("awq-w4-oneshot", "awq has no option 'oneshot'"),
     ("gptq-w4-act-act", "once and in the order"), ("gptq-w4-oneshot-act", "in the order act, oneshot"),
     ("gptq-w4-oneshot-saved", "does not tell how it was calibrated"),
     ("gptq-w4-act-oneshot-saved", "does not tell how it was calibrated"),
     ("awq-w4-s12-saved", "does not tell how it was calibrated"), ("rtn-w4-s3-saved", "does not tell how"),
     ("rtn-w4-s3", "rtn draws no calibration text"), ("hqq-w4-s3", "hqq draws no calibration text")],
)  # fmt: skip
def test_bad_text_is_refused_in_one_sentence(text, why):
    with pytest.raises(BadInput, match=why) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
