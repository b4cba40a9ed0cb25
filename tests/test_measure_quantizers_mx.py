import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesqid.measure.quantizers import mx
from bayesqid.recipe import FORMATS, Recipe, parse

# the specification's floating-point elements: e_min, e_max, bits of the fraction, largest number
FLOATS = {
    "fp4_e2m1": mx.Element(0, 2, 1, -6, 6),
    "fp6_e2m3": mx.Element(0, 2, 3, -7.5, 7.5),
    "fp6_e3m2": mx.Element(-2, 4, 2, -28, 28),
    "fp8_e4m3": mx.Element(-6, 8, 3, -448, 448),
    "fp8_e5m2": mx.Element(-14, 15, 2, -57344, 57344),
}


def rounded(rows: list[list[float]], recipe: str) -> list[list[float]]:
    return mx.quantize(torch.tensor(rows), None, parse(recipe)).weight.tolist()


def by_fractions(row: list[float], bits: int, block: int) -> list[float]:
    """MXINT in exact arithmetic; round() of a Fraction rounds halves to even."""
    result = []
    for start in range(0, len(row), block):
        part = [Fraction(number) for number in row[start : start + block]]
        largest = max(abs(number) for number in part)
        power = min(max(math.frexp(largest)[1] - 1, -127), 127) if largest else -127
        unit = Fraction(2) ** (power - (bits - 2))
        codes = [min(max(round(number / unit), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) for number in part]
        result += [float(code * unit) for code in codes]
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


@pytest.mark.parametrize("bits", FORMATS["mxint"].bits)
@pytest.mark.parametrize("block", FORMATS["mxint"].groups)
def test_every_recipe_agrees_with_exact_arithmetic_to_the_bit(bits, block):
    rng = np.random.default_rng(bits)
    weight = (rng.normal(size=(16, 200)) * 10.0 ** rng.integers(-6, 6, size=(16, 1))).astype(np.float32)
    ours = mx.quantize(torch.from_numpy(weight), None, Recipe("rtn", bits, block, True, "mxint"))
    assert ours.weight.tolist() == [by_fractions(row, bits, block) for row in weight.tolist()]
    assert (ours.note, ours.weight.dtype, ours.weight.is_contiguous()) == ("", torch.float32, True)


@settings(max_examples=300, deadline=None)
@given(
    # above 2^127 the most negative number of a block is no float32
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40),
    st.sampled_from([("rtn-mxint4-g16", 4, 16), ("rtn-mxint8", 8, 32)]),
)
def test_any_numbers_agree_with_exact_arithmetic_to_the_bit(row, how):
    recipe, bits, block = how
    assert rounded([row], recipe) == [by_fractions(row, bits, block)]


def test_powers_of_two_are_exact_down_to_the_smallest_number():
    exponents = torch.arange(-149, 128, dtype=torch.int32)
    powers = mx.power(exponents)
    assert powers.tolist() == [2.0**e for e in range(-149, 128)]
    assert torch.equal(mx.floor_log2(powers), exponents)
    assert torch.equal(mx.floor_log2(torch.nextafter(powers[30:], torch.tensor(0.0))), exponents[30:] - 1)


@pytest.mark.parametrize(("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)])
def test_a_row_of_the_table_is_enough_for_a_floating_point_element(name, dtype):
    """Torch's own conversion rounds halves to even as well."""
    element = FLOATS[name]
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    levels = every[torch.isfinite(every)].sort().values
    between = torch.cat([levels, (levels[1:] + levels[:-1]) / 2, torch.randn(5000) * 10, torch.randn(5000) / 50])
    assert torch.equal(mx.snap(between, element), between.to(dtype).float())
    assert mx.snap(torch.tensor([1e9, -1e9]), element).tolist() == [element.high, element.low]


@pytest.mark.parametrize(
    ("name", "exponents", "fraction"), [("fp4_e2m1", 2, 1), ("fp6_e2m3", 2, 3), ("fp6_e3m2", 3, 2)]
)
def test_small_floating_point_elements_take_their_nearest_level(name, exponents, fraction):
    bias = 2 ** (exponents - 1) - 1
    levels = [
        (m / 2**fraction + (e > 0)) * 2.0 ** (max(e, 1) - bias) for e in range(2**exponents) for m in range(2**fraction)
    ]
    numbers = torch.linspace(-1.2, 1.2, 4001) * max(levels)
    signed = torch.tensor(sorted({-level for level in levels} | set(levels)))
    nearest = (numbers[:, None] - signed).abs().min(1).values
    ours = mx.snap(numbers, FLOATS[name])
    assert set(ours.tolist()) == set(signed.tolist())
    assert torch.equal((ours - numbers).abs(), nearest)


def test_every_mx_recipe_has_an_element():
    assert set(mx.ELEMENTS) == {f"mxint{bits}" for bits in FORMATS["mxint"].bits}
