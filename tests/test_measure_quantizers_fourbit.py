import sys

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bayesqid.errors import BadInput
from bayesqid.measure.quantizers import fourbit
from bayesqid.recipe import FORMATS, Recipe, parse

pytest.importorskip("bitsandbytes")

# Dettmers et al. (2023), arXiv:2305.14314, appendix E
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# bitsandbytes' documentation of get_4bit_type: (1 + f/2) 2^e with e = 1, 2, 3, and 1/16 below them, all over 12
FP4 = sorted({sign * size / 12 for sign in (-1, 1) for size in (0, 1 / 16, 2, 3, 4, 6, 8, 12)})
LEVELS = {"nf": np.array(NF4), "fp": np.array(FP4)}
RECIPES = [Recipe("rtn", 4, group, True, kind) for kind in LEVELS for group in FORMATS[kind].groups]


def by_levels(weight: np.ndarray, levels: np.ndarray, block: int) -> np.ndarray:
    """Every block of the flattened weight over its largest magnitude, to the nearest level and back, in float64."""
    flat, result = weight.astype(float).ravel(), np.empty(weight.size)
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        largest = np.abs(part).max()
        nearest = np.abs(part[:, None] / (largest or 1) - levels).argmin(1)
        result[start : start + block] = levels[nearest] * largest
    return result.reshape(weight.shape)


def test_nf4_levels_are_quantiles_of_the_normal_distribution():
    """Sixteen quantiles: eight below zero from the outer one up, zero, and seven above, over the outermost."""
    outer = 0.9677083
    below, above = norm.ppf(np.linspace(outer, 0.5, 8)[:-1]), norm.ppf(np.linspace(outer, 0.5, 9)[:-1])
    levels = np.sort(np.concatenate([-below, [0.0], above])) / norm.ppf(outer)
    assert np.allclose(levels, NF4, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("shape", [(32, 192), (7, 100), (5, 33)])
def test_it_agrees_with_rounding_to_the_published_levels(recipe, shape):
    """Float32 against float64: alike to six digits, for no weight here lies that near the middle of two levels."""
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = fourbit.quantize(torch.from_numpy(weight), None, recipe)
    want = by_levels(weight, LEVELS[recipe.format], recipe.group_size)
    assert (ours.weight.dtype, ours.weight.shape, ours.note) == (torch.float32, shape, "")
    assert np.allclose(ours.weight.numpy(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_stay_where_they_are(kind):
    weight = torch.tensor(np.tile(3 * LEVELS[kind], (4, 8)), dtype=torch.float32)
    assert torch.allclose(fourbit.quantize(weight, None, parse(f"rtn-{kind}4")).weight, weight, rtol=1e-6)


def test_blocks_run_over_the_ends_of_rows():
    # rows of 32, blocks of 64: the large weight of row 0 coarsens row 1, not row 2
    weight = torch.full((4, 32), 0.01)
    weight[0, 0] = 1.0
    ours = fourbit.quantize(weight, None, parse("rtn-nf4")).weight
    assert (ours[1] == 0).all()
    assert torch.allclose(ours[2:], weight[2:], rtol=1e-6)


@pytest.mark.parametrize("recipe", ["rtn-nf4", "rtn-fp4"])
def test_zeros_stay_zero_and_the_input_is_kept(recipe):
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    kept = weight.clone()
    assert (fourbit.quantize(weight, None, parse(recipe)).weight[2] == 0).all()
    assert torch.equal(weight, kept)


def test_a_transposed_weight_is_read_row_by_row():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    ours = fourbit.quantize(weight.T, None, parse("rtn-nf4")).weight
    assert torch.equal(ours, fourbit.quantize(weight.T.contiguous(), None, parse("rtn-nf4")).weight)


def test_a_missing_package_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(BadInput, match=r"rtn-nf4 .*bitsandbytes.*bayesqid\[quantizers\]") as caught:
        fourbit.quantize(torch.ones(2, 64), None, parse("rtn-nf4"))
    assert "\n" not in str(caught.value)
