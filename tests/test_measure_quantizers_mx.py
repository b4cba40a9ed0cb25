import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesqid.measure.quantizers import gptq, mx
from bayesqid.measure.quantizers.outcome import Seen
from bayesqid.recipe import FORMATS, parse, spelled

# numbers >= 0 of the specification's floating-point elements, in the order of their codes
LEVELS = {
    f"{kind}{bits}{name if bits != 4 else ''}": sorted(
        Fraction(m + (e > 0) * 2**fraction, 2**fraction) * Fraction(2) ** (max(e, 1) - bias)
        for e in range(2**exponents)
        for m in range(2**fraction)
    )[: -1 if name == "e4m3" else -4 if name == "e5m2" else None]
    for kind, bits, name, exponents, fraction, bias in [
        ("mxfp", 4, "e2m1", 2, 1, 1), ("mxfp", 6, "e2m3", 2, 3, 1), ("mxfp", 6, "e3m2", 3, 2, 3),
        ("mxfp", 8, "e4m3", 4, 3, 7), ("mxfp", 8, "e5m2", 5, 2, 15),
    ]  # fmt: skip
}
INTEGERS = tuple(f"mxint{bits}" for bits in FORMATS["mxint"].bits)


def rounded(rows: list[list[float]], recipe: str) -> list[list[float]]:
    return mx.quantize(torch.tensor(rows), None, parse(recipe)).weight.tolist()


def nearest_level(number: Fraction, name: str) -> Fraction:
    """Nearest number of an element by name, ties to the even code, saturated; round() of a Fraction does so too."""
    if name in INTEGERS:
        bits = int(name.removeprefix("mxint"))
        code = round(number * 2 ** (bits - 2))
        return Fraction(min(max(code, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1), 2 ** (bits - 2))
    levels = LEVELS[name]
    code = min(range(len(levels)), key=lambda i: (abs(levels[i] - abs(number)), i % 2))
    return levels[code] * (1 if number >= 0 else -1)


def by_fractions(row: list[float], name: str, block: int) -> list[float]:
    """An MX format in exact arithmetic."""
    largest_power = 0 if name in INTEGERS else math.floor(math.log2(LEVELS[name][-1]))
    result = []
    for start in range(0, len(row), block):
        part = [Fraction(number) for number in row[start : start + block]]
        largest = max(abs(number) for number in part)
        power = math.frexp(largest)[1] - 1 - largest_power if largest else -127
        scale = Fraction(2) ** min(max(power, -127), 127)
        result += [float(nearest_level(number / scale, name) * scale) for number in part]
    return result


def test_mxint4_by_hand():
    # largest 3 -> scale 2, levels half a unit apart from -4 to 3.5
    row = [3.0, 0.25, 0.75, 0.26, -0.3, -2.9, 1.2, 0.0]
    assert rounded([row], "rtn-mxint4-g16") == [[3.0, 0.0, 1.0, 0.5, -0.5, -3.0, 1.0, 0.0]]
    # 1.9 rounds to 2, which the format lacks above zero and has below
    assert rounded([[1.9, -1.9, 1.8, 1.0]], "rtn-mxint4-g16") == [[1.75, -2.0, 1.75, 1.0]]


def test_mxint8_by_hand():
    # largest 100 -> scale 64, levels one apart from -128 to 127
    row = [100.0, 0.5, 1.5, 2.5, -2.5, 63.4, -99.6]
    assert rounded([row], "rtn-mxint8") == [[100.0, 0.0, 2.0, 2.0, -2.0, 63.0, -100.0]]
    assert rounded([[127.6, -127.6]], "rtn-mxint8") == [[127.0, -128.0]]


def test_each_block_has_its_own_scale_and_the_last_may_be_short():
    row = [8.0] + [0.1] * 31 + [0.1, 0.03]
    # second block: largest 0.1 -> scale 2^-4, unit 2^-6
    assert rounded([row], "rtn-mxint4") == [[8.0] + [0.0] * 31 + [6 / 64, 2 / 64]]


def test_blocks_of_zeros_stay_zero():
    assert rounded([[0.0] * 40, [0.0] * 32 + [1.0] * 8], "rtn-mxint4")[0] == [0.0] * 40


def test_narrow_mxint_by_hand():
    # largest 3.5 -> scale 2; levels of 3 bits are one apart from -4 to 3, of 2 bits two apart from -4 to 2
    row = [3.5, 0.5, 1.5, -2.4, -3.6, 0.0]
    assert rounded([row], "rtn-mxint3") == [[3.0, 0.0, 2.0, -2.0, -4.0, 0.0]]
    assert rounded([row], "rtn-mxint2") == [[2.0, 0.0, 2.0, -2.0, -4.0, 0.0]]
    # unit 2 / 16
    assert rounded([[3.5, 0.07, -3.99]], "rtn-mxint6") == [[3.5, 0.125, -4.0]]


def test_floating_point_blocks_by_hand():
    # largest 6 -> scale 2^(2 - 2) = 1: the levels of E2M1 themselves; 5 is half-way, and 4 has the even code
    assert rounded([[6.0, 5.0, 2.4, -0.25, 0.75, 0.3]], "rtn-mxfp4") == [[6.0, 4.0, 2.0, 0.0, 1.0, 0.5]]
    # 7.9 -> scale 1 as well, and saturates; 8 -> scale 2
    assert rounded([[7.9, 1.0]], "rtn-mxfp4") == [[6.0, 1.0]]
    assert rounded([[8.0, 1.0, 0.4]], "rtn-mxfp4") == [[8.0, 1.0, 0.0]]
    # 0.1 -> floor(log2) = -4, scale 2^-6: 6.4 becomes 6
    assert rounded([[0.1]], "rtn-mxfp4") == [[6 / 64]]
    # E4M3's largest power is 2^8: 500 -> scale 1, saturates at 448; E5M2's is 2^15: 500 -> scale 2^-7
    assert rounded([[500.0, 0.0175, 17.0]], "rtn-mxfp8e4m3") == [[448.0, 9 / 512, 16.0]]
    assert rounded([[500.0, 70.0]], "rtn-mxfp8e5m2") == [[448.0, 64.0]]
    # 30 -> scales 2^(4 - 2) and 2^(4 - 4)
    assert rounded([[30.0, 1.2]], "rtn-mxfp6e2m3") == [[30.0, 1.0]]
    assert rounded([[30.0, 1.2]], "rtn-mxfp6e3m2") == [[28.0, 1.25]]


def test_scales_end_at_the_ends_of_e8m0():
    # 2^-126 would need a scale of 2^-128, and 2^-140 is less than half the smallest number of a block of scale 2^-127
    assert rounded([[2.0**-126]], "rtn-mxfp4") == [[2.0**-126]]
    assert rounded([[2.0**-126, 1.4 * 2.0**-127]], "rtn-mxfp4") == [[2.0**-126, 1.5 * 2.0**-127]]
    assert rounded([[2.0**-140]], "rtn-mxfp4") == [[0.0]]
    assert rounded([[2.0**-140]], "rtn-mxfp8e5m2") == [[2.0**-140]]
    assert rounded([[3e38]], "rtn-mxfp8e4m3") == [[1.75 * 2.0**127]]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_spoils_its_own_block_only(wrong):
    for name in mx.ELEMENTS:
        got = rounded([[1.0, wrong, *[0.5] * 14, 1.0, -1.0]], f"rtn-{name}-g16")[0]
        assert np.isnan(got[:16]).all(), name
        assert got[16:] == [1.0, -1.0], name


@pytest.mark.parametrize("name", mx.ELEMENTS)
@pytest.mark.parametrize("block", FORMATS["mxint"].groups)
def test_every_recipe_agrees_with_exact_arithmetic_to_the_bit(name, block):
    rng = np.random.default_rng(block)
    weight = (rng.normal(size=(2, 200)) * 10.0 ** rng.integers(-6, 6, size=(2, 1))).astype(np.float32)
    ours = mx.quantize(torch.from_numpy(weight), None, parse(f"rtn-{name}-g{block}"))
    assert ours.weight.tolist() == [by_fractions(row, name, block) for row in weight.tolist()]
    assert (ours.note, ours.weight.dtype, ours.weight.is_contiguous()) == ("", torch.float32, True)


@settings(max_examples=300, deadline=None)
@given(
    # above 2^127 the most negative number of a block of integers is no float32
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=20),
    st.sampled_from([*mx.ELEMENTS]),
)
def test_any_numbers_agree_with_exact_arithmetic_to_the_bit(row, name):
    assert rounded([row], f"rtn-{name}-g16") == [by_fractions(row, name, 16)]


def test_powers_of_two_are_exact_down_to_the_smallest_number():
    exponents = torch.arange(-149, 128, dtype=torch.int32)
    powers = mx.power(exponents)
    assert powers.tolist() == [2.0**e for e in range(-149, 128)]
    assert torch.equal(mx.floor_log2(powers), exponents)
    assert torch.equal(mx.floor_log2(torch.nextafter(powers[30:], torch.tensor(0.0))), exponents[30:] - 1)


def test_every_mx_recipe_has_an_element_of_its_bits():
    kinds = {spelled(kind, bits) for kind, form in FORMATS.items() if kind.startswith("mx") for bits in form.bits}
    assert set(mx.ELEMENTS) == kinds
    assert set(LEVELS) | set(INTEGERS) == kinds


def seen(columns: int, seed: int = 0) -> Seen:
    """A Hessian of inputs whose columns go together."""
    inputs = np.random.default_rng(seed).normal(size=(400, columns)) @ np.random.default_rng(seed + 1).normal(
        size=(columns, columns)
    )
    return Seen(torch.from_numpy(2 / len(inputs) * inputs.T @ inputs))


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("block", FORMATS["mxint"].groups)
def test_gptq_without_correlations_rounds_to_nearest(name, block):
    torch.manual_seed(0)
    weight, alone = torch.randn(6, 200), Seen(torch.eye(200, dtype=torch.float64))
    recipe = parse(f"gptq-{name}-g{block}")
    made = gptq.quantize(weight, [alone], [recipe])[0]
    assert torch.equal(made.weight, mx.quantize(weight, None, recipe).weight)


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_on_mx_blocks_keeps_to_their_grid_and_lowers_the_output_error(bits, block):
    torch.manual_seed(0)
    weight, hessian, recipe = torch.randn(16, 192), seen(192), parse(f"gptq-mxint{bits}-g{block}")
    made = gptq.quantize(weight, [hessian], [recipe])[0]
    assert torch.equal(torch.frexp(made.scale).mantissa, torch.full_like(made.scale, 0.5)), "a scale is no power of two"
    per_column = [part.repeat_interleave(block, 1) for part in (made.scale, made.zero)]
    assert torch.equal(per_column[0] * (made.codes - per_column[1]), made.weight)
    assert int(made.codes.max()) < 2**bits
    # the first block is fitted to the weights as they were
    first = mx.shared_scale(weight[:, :block].abs().amax(1), mx.ELEMENTS[recipe.number]) / 2 ** (bits - 2)
    assert torch.equal(made.scale[:, 0], first)

    def error(values: torch.Tensor) -> float:
        gap = (weight - values).double()
        return ((gap @ hessian.hessian) * gap).sum().item()

    assert error(made.weight) < 0.9 * error(mx.quantize(weight, None, recipe).weight)


def test_gptq_takes_mx_blocks_and_other_grids_side_by_side():
    torch.manual_seed(0)
    weight, hessian = torch.randn(8, 160), seen(160)
    recipes = [parse(name) for name in ("gptq-mxint3-g16", "gptq-w3-g32", "gptq-mxint4", "gptq-w4")]
    together = gptq.quantize(weight, [hessian] * len(recipes), recipes)
    for recipe, one in zip(recipes, together, strict=True):
        assert torch.equal(one.weight, gptq.quantize(weight, [hessian], [recipe])[0].weight), recipe


def test_gptq_rounds_a_layer_that_no_input_reached_to_its_mx_format():
    weight, recipe = torch.randn(4, 64), parse("gptq-mxint3")
    made = gptq.quantize(weight, [Seen(torch.zeros(64, 64, dtype=torch.float64))], [recipe])[0]
    assert torch.equal(made.weight, mx.quantize(weight, None, recipe).weight)
    assert "no input reached it" in made.note
