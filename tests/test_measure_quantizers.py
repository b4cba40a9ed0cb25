import numpy as np
import pytest
import torch

from bayesqid.measure.quantizers import QUANTIZERS, gptq, rtn
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe, effective_bits, parse

METHODS = ("rtn", "gptq")
GRIDS = [(group, symmetric) for group in (-1, 32) for symmetric in (True, False)]


def correlated(columns: int, seed: int = 0, samples: int = 400) -> torch.Tensor:
    """A Hessian 2/n sum x x^T of inputs with strong correlations."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns)) * 0.9 ** np.arange(columns)
    inputs = rng.normal(size=(samples, columns)) @ mixing.T + 0.05 * rng.normal(size=(samples, columns))
    return torch.from_numpy(2 / samples * inputs.T @ inputs)


def once(w: torch.Tensor, hessian: torch.Tensor | None, recipe: Recipe) -> Quantized:
    """One recipe's quantization by its method."""
    seen = None if hessian is None else Seen(hessian)
    return QUANTIZERS[recipe.method](w, [seen], [recipe])[0]


def weight(rows: int = 24, columns: int = 160, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator)


def error(original: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    gap = (original - quantized).double()
    return torch.trace(gap @ hessian @ gap.T).item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("group", "symmetric"), GRIDS)
def test_error_falls_with_every_bit_and_shape_is_kept(method, group, symmetric):
    w, hessian = weight(), correlated(160)
    kept = w.clone()
    losses = []
    for bits in (2, 3, 4, 5, 6, 8):
        result, note, codes, scale, zero, _ = once(w, hessian, Recipe(method, bits, group, symmetric))
        assert (result.shape, result.dtype, note) == (w.shape, torch.float32, "")
        losses.append(error(w, result, hessian))
        size = 160 if group == -1 else group
        scale, zero = (lie.repeat_interleave(size, 1) for lie in (scale, zero))
        assert torch.equal(result, scale * (codes - zero)), "weights are where the codes say"
        for chunk in result.split(160 if group == -1 else group, dim=1):
            assert max(len(row.unique()) for row in chunk) <= 2**bits
    assert all(later < 0.6 * earlier for earlier, later in zip(losses, losses[1:], strict=False))
    assert torch.equal(w, kept), "the quantizer changed its input"


@pytest.mark.parametrize("symmetric", [True, False])
def test_points_of_the_grid_stay_where_they_are(symmetric):
    w, recipe = weight(), Recipe("rtn", 3, -1, symmetric)
    scale, zero = rtn.grid(w, recipe)
    once = rtn.snap(w, scale, zero, 3)
    assert torch.equal(rtn.snap(once, scale, zero, 3), once)
    levels = once / scale + zero
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert levels.min() >= -1e-4
    assert levels.max() <= 7 + 1e-4


def test_symmetric_values_by_hand():
    # max|w| = 3, 2 bits: s = 2 * 3 / 3 = 2, z = 2, values -4, -2, 0, 2; 3 / 2 rounds to 2, clipped to 1
    w = torch.tensor([[3.0, 0.9, -0.9, -1.1, 1.1, -2.9]])
    result = rtn.quantize(w, None, Recipe("rtn", 2)).weight
    assert result.tolist() == [[2.0, 0.0, 0.0, -2.0, 2.0, -2.0]]


def test_asymmetric_values_by_hand():
    # range [0, 6] for 0 is always inside: s = 6 / 3 = 2, z = 0, values 0, 2, 4, 6
    w = torch.tensor([[6.0, 1.1, 0.9, 4.9, 5.1]])
    result = rtn.quantize(w, None, Recipe("rtn", 2, -1, False)).weight
    assert result.tolist() == [[6.0, 2.0, 0.0, 4.0, 6.0]]
    # range [-3, 6]: s = 3, z = 1, values -3, 0, 3, 6
    result = rtn.quantize(torch.tensor([[6.0, -3.0, 1.4, 1.6]]), None, Recipe("rtn", 2, -1, False)).weight
    assert result.tolist() == [[6.0, -3.0, 0.0, 3.0]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("group", "symmetric"), GRIDS)
def test_rows_of_zeros_stay_zero(method, group, symmetric):
    w = weight()
    w[3] = 0
    result = once(w, correlated(160), Recipe(method, 2, group, symmetric)).weight
    assert torch.isfinite(result).all()
    assert (result[3] == 0).all()


def test_each_group_has_its_own_scale():
    w = torch.cat([weight(4, 32), 1000 * weight(4, 32, seed=1)], dim=1)
    fine = rtn.quantize(w, None, parse("rtn-w4-g32")).weight
    coarse = rtn.quantize(w, None, parse("rtn-w4")).weight
    assert (fine[:, :32] - w[:, :32]).abs().max() < 0.5
    assert (coarse[:, :32] == 0).all()


def test_a_last_group_may_be_short():
    w = weight(4, 40)
    result = rtn.quantize(w, None, parse("rtn-w3-g32")).weight
    assert torch.equal(result[:, 32:], rtn.quantize(w[:, 32:], None, parse("rtn-w3")).weight)
    assert once(w, correlated(40), parse("gptq-w3-g32")).weight.shape == w.shape


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group", "symmetric"), GRIDS)
def test_gptq_without_correlations_is_round_to_nearest_to_the_bit(bits, group, symmetric):
    w = weight(24, 300)
    ours = once(w, torch.eye(300), Recipe("gptq", bits, group, symmetric)).weight
    plain = rtn.quantize(w, None, Recipe("rtn", bits, group, symmetric)).weight
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [-1, 32])
def test_gptq_beats_round_to_nearest_where_inputs_are_correlated(bits, group):
    w, hessian = weight(), correlated(160)
    ours = once(w, hessian, Recipe("gptq", bits, group)).weight
    plain = rtn.quantize(w, None, Recipe("rtn", bits, group)).weight
    assert error(w, ours, hessian) < 0.5 * error(w, plain, hessian)


def brain_surgeon(w: np.ndarray, hessian: np.ndarray, recipe: Recipe, damp: float) -> np.ndarray:
    """Optimal brain quantization in column order: after each column the inverse of what is left is taken anew.

    Scales of groups are fitted to the weights at the start of their block of 128 columns, as GPTQModel does.
    """
    w, columns = w.astype(np.float64).copy(), w.shape[1]
    hessian = hessian + damp * np.diag(hessian).mean() * np.eye(columns)
    top = 2**recipe.bits - 1
    scale = zero = np.zeros(0)
    begun = w
    for q in range(columns):
        if q % 128 == 0:
            begun = w.copy()
        if q == 0 or (recipe.group_size != -1 and q % recipe.group_size == 0):
            part = w if recipe.group_size == -1 else begun[:, q : q + recipe.group_size]
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            if recipe.symmetric:
                high = np.maximum(-low, high)
                low = -high
            scale = (high - low) / top
            zero = np.full_like(scale, (top + 1) / 2) if recipe.symmetric else np.round(-low / scale)
        inverse = np.linalg.inv(hessian[q:, q:])
        rounded = scale * (np.clip(np.round(w[:, q] / scale) + zero, 0, top) - zero)
        w[:, q:] -= np.outer((w[:, q] - rounded) / inverse[0, 0], inverse[0])
        w[:, q] = rounded
    return w


@pytest.mark.parametrize("recipe", ["gptq-w2", "gptq-w3-asym", "gptq-w4-g32", "gptq-w2-g64-asym"])
def test_gptq_agrees_with_brain_surgery_by_explicit_inverses(recipe):
    # 160 columns: more than one block of 128, so the lazy update counts
    parsed, w, hessian = parse(recipe), weight(16, 160), correlated(160)
    ours = once(w, hessian, parsed).weight
    naive = brain_surgeon(w.double().numpy(), hessian.numpy(), parsed, damp=gptq.DAMP)
    same = np.isclose(ours.numpy(), naive, atol=1e-4).mean()
    assert same > 0.97, "float32 may tip a tie and what follows it, no more"
    naive_error = error(w, torch.from_numpy(naive), hessian)
    assert error(w, ours, hessian) == pytest.approx(naive_error, rel=0.02)


def test_recipes_in_lockstep_give_what_each_gives_alone():
    w, shared = weight(16, 160), Seen(correlated(160))
    texts = ("gptq-w2", "gptq-w3-g32", "gptq-w4-g64-asym", "gptq-w3-act", "gptq-w8-g128-act")
    recipes = [parse(text) for text in texts]
    own = [Seen(correlated(160, seed)) for seed in range(len(recipes))]
    for seens in (own, [shared] * len(recipes)):
        for recipe, seen, made in zip(recipes, seens, gptq.quantize(w, seens, recipes), strict=True):
            (alone,) = gptq.quantize(w, [seen], [recipe])
            same = torch.isclose(made.weight, alone.weight, atol=1e-6).float().mean()
            assert same > 0.99, f"{recipe}: float32 may tip a tie, no more"


def test_a_weight_that_does_not_fit_into_memory_is_taken_in_rows(monkeypatch):
    w, seens = weight(50, 96), [Seen(correlated(96, seed)) for seed in range(3)]
    recipes = [parse(text) for text in ("gptq-w3", "gptq-w3-g32-asym", "gptq-w4-act")]
    whole = gptq.quantize(w, seens, recipes)
    monkeypatch.setattr(gptq, "NUMBERS", 3 * 96 * 96)  # one recipe and 96 rows of one, that is 32 of three
    for one, other in zip(whole, gptq.quantize(w, seens, recipes), strict=True):
        assert torch.allclose(one.weight, other.weight, atol=1e-6)
        assert one.codes.shape == other.codes.shape
        assert one.scale.shape == other.scale.shape


@pytest.mark.parametrize("group", [-1, 32])
def test_act_order_is_gptq_on_columns_by_falling_diagonal(group):
    w, hessian = weight(16, 96), correlated(96)
    order = torch.argsort(hessian.diagonal(), descending=True)
    made = once(w, hessian, parse("gptq-w3-act" if group == -1 else "gptq-w3-g32-act"))
    plain = once(w[:, order], hessian[order][:, order], Recipe("gptq", 3, group))
    assert torch.equal(made.weight[:, order], plain.weight)
    size = 96 if group == -1 else group
    assert made.group[order].tolist() == [position // size for position in range(96)]
    rebuilt = made.scale[:, made.group] * (made.codes - made.zero[:, made.group])
    assert torch.equal(rebuilt, made.weight), "codes with the groups of their columns give the weights"


def test_inputs_that_never_fire_get_no_weight():
    w, hessian = weight(8, 64), correlated(64)
    hessian[5], hessian[:, 5] = 0, 0
    result = once(w, hessian, parse("gptq-w3")).weight
    assert (result[:, 5] == 0).all()
    assert torch.isfinite(result).all()


def test_damp_rises_until_a_broken_hessian_has_a_factor_and_is_noted():
    hessian = correlated(32)
    low = torch.linalg.eigvalsh(hessian)[0]
    # indefinite by 3 % of the mean diagonal: 1 % damp fails, 10 % does not
    hessian = hessian - torch.eye(32) * (low + 0.03 * hessian.diagonal().mean())
    assert once(weight(8, 32), hessian, parse("gptq-w4")).note == "damp 0.1"
    with pytest.raises(ValueError, match="Hessian"):
        gptq.inverse_factor(torch.full((4, 4), torch.nan))


def test_factor_is_that_of_the_damped_inverse():
    hessian = correlated(48)
    factor, damp = gptq.inverse_factor(hessian)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(48)
    assert damp == 0.01
    assert torch.equal(factor, factor.triu())
    assert torch.allclose((factor.T @ factor).double() @ damped, torch.eye(48).double(), atol=1e-3)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [("rtn-w3", 3 + 16 / 64), ("rtn-w4-g32", 4 + 16 / 32), ("rtn-w2-g32-asym", 2 + 18 / 32), ("none", 16)],
)
def test_effective_bits_by_hand(recipe, expected):
    assert effective_bits(parse(recipe), [(10, 64), (7, 64)]) == pytest.approx(expected)
