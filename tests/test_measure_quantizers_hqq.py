import sys

import numpy as np
import pytest
import torch

from bayesqid.errors import BadInput
from bayesqid.measure.quantizers import hqq
from bayesqid.recipe import FORMATS, Recipe, parse

pytest.importorskip("hqq")

BITS = FORMATS["int"].bits


def weight(rows: int = 48, columns: int = 192, size: float = 0.05) -> torch.Tensor:
    """Heavy-tailed weights, as HQQ expects them."""
    return torch.from_numpy(np.random.default_rng(0).standard_t(5, size=(rows, columns)) * size).float()


def half_quadratic(w: np.ndarray, bits: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """HQQ by its definition in float64: values and codes, scales and zero points of the groups.

    Minimises sum |w - s (q - z)|^p over z by e <- shrink(w - s (q - z)), z <- mean(q - (w - e) / s), where shrink is
    the proximal step of |.|^p, sign(x) max(|x| - |x|^(p - 1) / beta, 0), p = 0.7, beta = 10; it ends after 20 steps
    or with the step whose mean |w - s (q - z)| has not fallen. The authors' article lets beta grow by 1 % a step,
    their package does not: the two differ only where errors exceed 0.17, since smaller ones are all shrunk to zero.
    """
    groups, top = w.astype(float).reshape(-1, size), 2**bits - 1
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    inverse = np.minimum(top / (high - low), 2e4)
    zero, least = -low * inverse, np.inf
    for _ in range(20):
        codes = np.clip(np.round(groups * inverse + zero), 0, top)
        gap = groups - (codes - zero) / inverse
        with np.errstate(divide="ignore"):
            shrunk = np.sign(gap) * np.maximum(np.abs(gap) - np.abs(gap) ** -0.3 / 10, 0)
        zero = (codes - (groups - shrunk) * inverse).mean(1, keepdims=True)
        if (error := np.abs(gap).mean()) >= least:
            break
        least = error
    codes = np.clip(np.round(groups * inverse + zero), 0, top)
    return (codes - zero) / inverse, codes, 1 / inverse, zero


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("group", "largeness"), [(-1, 0.05), (32, 0.05), (64, 1.0)])
def test_it_agrees_with_the_half_quadratic_definition(bits, group, largeness):
    """Errors below 0.17 are all shrunk to zero, so that weights of usual size would leave shrinking untested."""
    w = weight(size=largeness)
    ours = hqq.quantize(w, None, Recipe("hqq", bits, group, False))
    size = 192 if group == -1 else group
    values, codes, scale, zero = half_quadratic(w.numpy(), bits, size)
    mine = [part.numpy().reshape(len(scale), -1) for part in (ours.weight, ours.codes, ours.scale, ours.zero)]
    same = (mine[1] == codes).all(1)
    assert same.mean() > 0.95, "a last digit may tip a tie, and what follows of its group"
    for part, want in zip(mine, (values, codes, scale, zero), strict=True):
        assert np.allclose(part[same], want[same], rtol=1e-4, atol=1e-4)
    losses = [(np.abs(w.numpy().reshape(-1, size) - q) ** 0.7).mean() for q in (mine[0], values)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("group", [-1, 64])
def test_the_values_are_those_of_the_returned_grid(group):
    w = weight()
    ours = hqq.quantize(w, None, Recipe("hqq", 3, group, False))
    size = 192 if group == -1 else group
    scale, zero = (found.repeat_interleave(size, 1) for found in (ours.scale, ours.zero))
    assert torch.allclose(scale * (ours.codes - zero), ours.weight, atol=1e-7)
    assert (ours.codes.min(), ours.codes.max()) == (0, 7)
    assert (ours.weight.dtype, ours.weight.shape, ours.note) == (torch.float32, w.shape, "")


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fitted_zero_points_lower_the_typical_error(bits):
    """Against the same ranges with the zero point that covers them, in mean |error|^0.7."""
    w = weight()
    ours = hqq.quantize(w, None, Recipe("hqq", bits, 64, False)).weight
    groups = w.view(-1, 64)
    low, high = groups.aminmax(dim=1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    plain = (torch.round((groups - low) / scale) * scale + low).view_as(w)
    losses = [(w - q).abs().pow(0.7).mean().item() for q in (ours, plain)]
    assert losses[0] < 0.985 * losses[1]


def test_a_last_group_may_be_short():
    w = weight(8, 80)
    ours = hqq.quantize(w, None, parse("hqq-w3-g32"))
    assert ours.scale.shape == ours.zero.shape == (8, 3)
    assert torch.equal(ours.weight[:, 64:], hqq.quantize(w[:, 64:], None, parse("hqq-w3")).weight)
    assert torch.equal(ours.weight[:, :64], hqq.quantize(w[:, :64], None, parse("hqq-w3-g32")).weight)


def test_rows_of_one_number_stay_and_the_input_is_kept():
    w = weight()
    w[3], w[4] = 0, 0.5
    kept = w.clone()
    ours = hqq.quantize(w, None, parse("hqq-w2")).weight
    assert torch.equal(ours[3:5], w[3:5])
    assert torch.equal(w, kept)


def test_what_it_returns_can_be_changed_and_trained_on():
    """The package computes in inference mode, whose tensors can neither."""
    ours = hqq.quantize(weight(), None, parse("hqq-w4-g64"))
    assert not any(part.is_inference() for part in (ours.weight, ours.codes, ours.scale, ours.zero))


def test_the_package_knows_the_bits_of_our_recipes():
    from hqq.core.quantize import Quantizer

    assert set(BITS) <= set(Quantizer.SUPPORTED_BITS)


def test_a_missing_package_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "hqq.core.quantize", None)
    with pytest.raises(BadInput, match=r"hqq-w4 .*bayesqid\[quantizers\]") as caught:
        hqq.quantize(weight(), None, parse("hqq-w4"))
    assert "\n" not in str(caught.value)
