import math

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from compressed_tensors.quantization.utils.fp6_utils import cast_to_fp6

from bayesqid.measure.quantizers import floats
from bayesqid.recipe import parse


def from_torch(dtype: torch.dtype) -> list[float]:
    """Every finite number >= 0 of a type, by its code."""
    every = torch.arange(128, dtype=torch.uint8).view(dtype).float()
    return every[every.isfinite()].tolist()


# numbers >= 0 in the order of their codes: FP4 and FP6 as printed in the MX specification's section 5.3, FP8 as torch
# has it
TABLES = {
    "E2M1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "E2M3": [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875,
             2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5],
    "E3M2": [0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.625, 0.75, 0.875, 1, 1.25, 1.5, 1.75,
             2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28],
    "E4M3": from_torch(torch.float8_e4m3fn),
    "E5M2": from_torch(torch.float8_e5m2),
}  # fmt: skip
SIZES = {"E2M1": 8, "E2M3": 32, "E3M2": 32, "E4M3": 127, "E5M2": 124}
BOTH_SIGNS = [1.0, -1.0]


def element(name: str) -> floats.Element:
    return getattr(floats, name)


@pytest.mark.parametrize("sign", BOTH_SIGNS)
@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_format_is_kept(name, sign):
    assert len(TABLES[name]) == SIZES[name]
    every = sign * torch.tensor(TABLES[name])
    assert torch.equal(floats.snap(every, element(name)), every)


@pytest.mark.parametrize("sign", BOTH_SIGNS)
@pytest.mark.parametrize("name", TABLES)
def test_half_way_between_two_numbers_the_even_code_is_taken_and_beside_it_the_nearest(name, sign):
    levels = torch.tensor(TABLES[name])
    middle, code = (levels[1:] + levels[:-1]) / 2, torch.arange(len(levels) - 1)
    expected = {
        "at": levels[code + code % 2],
        "below": levels[:-1],
        "above": levels[1:],
    }
    numbers = {
        "at": middle,
        "below": torch.nextafter(middle, torch.tensor(0.0)),
        "above": torch.nextafter(middle, torch.tensor(math.inf)),
    }
    for where, want in expected.items():
        assert torch.equal(floats.snap(sign * numbers[where], element(name)), sign * want), where


@pytest.mark.parametrize("name", TABLES)
def test_numbers_beyond_the_largest_saturate_and_what_is_none_stays_so(name):
    high = TABLES[name][-1]
    beyond = torch.tensor([high * 1.01, -high * 3, 3e38, -math.inf, math.inf, 1e-45, -1e-40, math.nan])
    got = floats.snap(beyond, element(name)).tolist()
    assert got[:7] == [high, -high, high, -high, high, 0, 0]
    assert math.isnan(got[7])


@pytest.mark.parametrize(("name", "dtype"), [("E4M3", torch.float8_e4m3fn), ("E5M2", torch.float8_e5m2)])
def test_any_number_in_range_becomes_what_torch_casts_it_to(name, dtype):
    torch.manual_seed(0)
    high = TABLES[name][-1]
    numbers = torch.cat([torch.randn(20_000) * scale for scale in (1e-6, 1e-4, 1e-2, 1, 100, 1e4)]).clamp(-high, high)
    assert torch.equal(floats.snap(numbers, element(name)), numbers.to(dtype).float())


@pytest.mark.parametrize(("name", "cast"), [("E2M1", cast_to_fp4), ("E2M3", cast_to_fp6)])
def test_any_number_becomes_what_compressed_tensors_casts_it_to(name, cast):
    torch.manual_seed(0)
    numbers = torch.cat([torch.randn(20_000) * 3, torch.arange(-200, 200) / 16, torch.randn(1000) / 50])
    assert torch.equal(floats.snap(numbers, element(name)), cast(numbers.clone()))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("E2M1", "float4_e2m1fn"), ("E2M3", "float6_e2m3fn"), ("E3M2", "float6_e3m2fn"), ("E4M3", "float8_e4m3fn"),
     ("E5M2", "float8_e5m2")],
)  # fmt: skip
def test_any_number_in_range_becomes_what_ml_dtypes_casts_it_to(name, kind):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    high = TABLES[name][-1]
    numbers = np.random.default_rng(0).normal(size=20_000).astype(np.float32) * np.float32(high / 3)
    numbers = np.clip(np.concatenate([numbers, numbers / 30]), -high, high)
    theirs = numbers.astype(getattr(ml_dtypes, kind)).astype(np.float32)
    assert np.array_equal(floats.snap(torch.from_numpy(numbers), element(name)).numpy(), theirs)


def quantized(rows: list[list[float]], recipe: str) -> list[list[float]]:
    wanted = parse(recipe)
    return (floats.nvfp4 if wanted.format == "nvfp" else floats.fp8)(torch.tensor(rows), None, wanted).weight.tolist()


def test_fp8_has_one_scale_per_row_that_takes_the_largest_weight_to_the_largest_number():
    # scales 1 and 1/448: 100 lies between 96 and 104, 0.3 is 134.4 / 448 and lies between 128 and 144
    got = quantized([[448.0, 100.1, -1.06, 0.0], [-1.0, 0.3, 0.25, 0.0]], "rtn-fp8e4m3")
    assert got[0] == [448.0, 104.0, -1.0, 0.0]
    assert got[1] == pytest.approx([-1.0, 128 / 448, 112 / 448, 0.0], rel=1e-7)
    assert quantized([[57344.0, 1.1, 1.2, -0.7]], "rtn-fp8e5m2") == [[57344.0, 1.0, 1.25, -0.75]]


def test_rows_without_a_scale_become_zeros():
    assert quantized([[0.0, 0.0], [1e-45, 0.0], [448.0, 1.0]], "rtn-fp8e4m3") == [[0, 0], [0, 0], [448.0, 1.0]]


def test_a_weight_that_is_no_number_spoils_its_own_fp8_row_only():
    got = quantized([[1.0, math.nan], [1.0, math.inf], [448.0, 2.0]], "rtn-fp8e4m3")
    assert np.isnan(got[:2]).all()
    assert got[2] == [448.0, 2.0]


def by_compressed_tensors(weight: torch.Tensor, args: QuantizationArgs, whole: torch.Tensor | None) -> torch.Tensor:
    size = args.group_size or weight.shape[1]
    blocks = weight.view(len(weight), -1, size)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, whole)
    return fake_quantize(weight, scale, zero, args, global_scale=whole)


def test_fp8_rows_are_those_of_compressed_tensors_to_the_bit():
    torch.manual_seed(0)
    weight = torch.randn(64, 96) * torch.randn(64, 1).exp()
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
    ours = floats.fp8(weight, None, parse("rtn-fp8e4m3")).weight
    assert torch.equal(ours, by_compressed_tensors(weight, args, None))


def test_nvfp4_is_that_of_compressed_tensors():
    """It multiplies by a reciprocal where we divide: the last digit of a scale may differ."""
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
                            scale_dtype=torch.float8_e4m3fn)  # fmt: skip
    whole = generate_gparam(weight.amin(), weight.amax())
    ours = floats.nvfp4(weight, None, parse("rtn-nvfp4")).weight
    torch.testing.assert_close(ours, by_compressed_tensors(weight, args, whole), rtol=1e-6, atol=0)


def test_nvfp4_by_hand():
    # largest 2688 = 448 6: the matrix's scale is 1. Block scales 448, 2 (12 / 6) and 0.9375, the number next to 5.5 / 6
    rows = [[2688.0, 600.0, -700.0, *[0.0] * 13, 12.0, 5.1, -1.1, 0.4, *[0.0] * 12, 5.5, 1.4]]
    want = [[2688.0, 1.5 * 448, -1.5 * 448, *[0.0] * 13, 12.0, 6.0, -1.0, 0.0, *[0.0] * 12, 6 * 0.9375, 1.5 * 0.9375]]
    assert quantized(rows, "rtn-nvfp4") == want


def test_nvfp4_blocks_far_below_the_largest_have_subnormal_scales_and_then_become_zeros():
    smallest = 2.0**-9
    rows = [[2688.0, *[0.0] * 15, 6 * smallest, 2 * smallest, *[0.0] * 14, 6 * smallest * 0.49, *[0.0] * 15]]
    got = quantized(rows, "rtn-nvfp4")[0]
    assert (got[16:18], got[32]) == ([6 * smallest, 2 * smallest], 0.0)


def test_nvfp4_of_zeros_is_zeros():
    assert quantized([[0.0] * 20] * 2, "rtn-nvfp4") == [[0.0] * 20] * 2


def test_scaling_a_matrix_scales_what_nvfp4_makes_of_it():
    """The matrix's scale is a float32: only powers of two are exact."""
    torch.manual_seed(1)
    weight = torch.randn(8, 48)
    one, other = (floats.nvfp4(weight * by, None, parse("rtn-nvfp4")).weight for by in (1.0, 2.0**-20))
    assert torch.equal(one * 2.0**-20, other)


def test_half_precision_weights_are_rounded_in_float32():
    weight = torch.randn(4, 32).bfloat16()
    for name in ("rtn-fp8e4m3", "rtn-nvfp4"):
        quantize = floats.nvfp4 if "nv" in name else floats.fp8
        ours = quantize(weight, None, parse(name)).weight
        assert ours.dtype == torch.float32
        assert torch.equal(ours, quantize(weight.float(), None, parse(name)).weight)
