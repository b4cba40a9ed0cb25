import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tinymodels
from bayesqid.measure import activations, blocks, calibrate, layers, quantizers
from bayesqid.recipe import FORMATS, parse, spelled

RNG = np.random.default_rng(0)
# of different lengths: batches are padded
TEXTS = [RNG.integers(0, 256, size) for size in (9, 23, 40, 57, 64)]
CALIBRATION = torch.from_numpy(RNG.integers(0, 256, (4, 24)))
BOTH = [spelled(kind, bits) for kind, form in FORMATS.items() if form.inputs for bits in form.bits]


@pytest.mark.parametrize("name", BOTH)
def test_each_token_is_rounded_as_a_row_of_weights_and_alone(name):
    torch.manual_seed(0)
    recipe = parse(f"rtn-{name}-wa")
    inputs = torch.randn(2, 5, 48) * torch.randn(2, 5, 1).exp()
    rounded = activations.rounded_inputs(inputs, recipe)
    assert (rounded.shape, rounded.dtype) == (inputs.shape, torch.float32)
    assert not torch.equal(rounded, inputs)
    for row in range(2):
        for token in range(5):
            alone = quantizers.nearest(inputs[row, token][None], None, recipe).weight[0]
            assert torch.equal(rounded[row, token], alone)


def test_inputs_keep_their_dtype():
    inputs = torch.randn(3, 4, 32).bfloat16()
    rounded = activations.rounded_inputs(inputs, parse("rtn-mxfp8e4m3-wa"))
    # numbers of MXFP8 have at most 4 bits: bfloat16 holds them
    assert torch.equal(rounded.float(), activations.rounded_inputs(inputs.float(), parse("rtn-mxfp8e4m3-wa")))
    assert rounded.dtype == torch.bfloat16


class Rounded(nn.Module):
    """A linear layer whose weight and inputs are rounded, written out."""

    def __init__(self, layer: nn.Module, recipe) -> None:
        super().__init__()
        self.weight = nn.Parameter(quantizers.nearest(layers.matrix(layer), None, recipe).weight, requires_grad=False)
        self.bias, self.recipe = layer.bias, recipe

    def forward(self, inputs):
        flat = inputs.reshape(-1, inputs.shape[-1])
        return nn.functional.linear(quantizers.nearest(flat, None, self.recipe).weight, self.weight, self.bias).view(
            *inputs.shape[:-1], -1
        )


def nats_of(model: nn.Module) -> list[float]:
    """Nats of each text without its first token, one text at a time, by the whole model."""
    logits = [model(input_ids=torch.from_numpy(ids[None, :-1])).logits[0].float() for ids in TEXTS]
    return [
        cross_entropy(one, torch.from_numpy(ids[1:]), reduction="sum").item()
        for one, ids in zip(logits, TEXTS, strict=True)
    ]


@pytest.mark.parametrize("name", ["mxint4", "mxfp4", "fp8e5m2"])
@pytest.mark.parametrize("kind", tinymodels.CONFIGS)
def test_scores_are_those_of_a_model_whose_layers_round_what_they_are_fed(kind, name):
    model, recipe = tinymodels.model(kind), parse(f"rtn-{name}-wa")
    measured = tinymodels.scores(model, TEXTS, ["none", f"rtn-{name}", str(recipe)])
    plain = nats_of(model)
    for path, layer in layers.linears(model).items():
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, Rounded(layer, recipe))
    np.testing.assert_allclose(measured["none"].nats, plain, rtol=1e-5)
    np.testing.assert_allclose(measured[str(recipe)].nats, nats_of(model), rtol=2e-5)
    assert np.abs(measured[str(recipe)].nats - measured[f"rtn-{name}"].nats).max() > 1e-3


def test_recipes_side_by_side_give_what_each_gives_alone():
    model = tinymodels.model("llama")
    names = ["none", "rtn-mxint4-wa", "rtn-mxint4", "rtn-fp8e4m3-wa", "rtn-fp8e4m3", "gptq-mxint3-wa", "gptq-mxint3"]
    together = tinymodels.scores(model, TEXTS, names, CALIBRATION)
    for name in names[1:]:
        alone = tinymodels.scores(model, TEXTS, ["none", name], CALIBRATION)
        for which in ("none", name):
            assert np.array_equal(alone[which].nats, together[which].nats), (name, which)
    found = {tuple(one.nats) for one in together.values()}
    assert len(found) == len(names), "two recipes cannot be told apart"


@pytest.mark.parametrize("name", ["rtn-fp8e4m3-wa", "rtn-mxfp4-wa"])
def test_scores_do_not_depend_on_how_texts_are_put_into_batches(name):
    """One scale for a whole batch would see the padding and the other texts."""
    model = tinymodels.model("neox")
    all_at_once, one_by_one = (tinymodels.scores(model, TEXTS, ["none", name], most=most) for most in (4096, 1))
    np.testing.assert_allclose(all_at_once[name].nats, one_by_one[name].nats, rtol=1e-5)


@torch.inference_mode()
def test_calibration_sees_inputs_as_they_are():
    model = tinymodels.model("llama")
    found = tinymodels.ready(model, TEXTS, CALIBRATION)
    inputs = found.calibrated(0)
    lanes = [calibrate.Lane(parse(name), [], list(inputs.hidden)) for name in ("gptq-mxint3", "gptq-mxint3-wa")]
    plain, both = calibrate.in_turn(layers.blocks(model)[0], 0, found.inside[0], {0: inputs}, lanes)
    assert all(torch.equal(plain[name].weight, both[name].weight) for name in plain)
    assert all(torch.equal(*pair) for pair in zip(lanes[0].rows, lanes[1].rows, strict=True))


@torch.inference_mode()
def test_layers_fed_the_same_tensor_share_its_rounding(monkeypatch):
    model = tinymodels.model("llama")
    found = tinymodels.ready(model, [TEXTS[0]])
    calls, inner = [], activations.rounded_inputs
    monkeypatch.setattr(activations, "rounded_inputs", lambda *args: calls.append(args) or inner(*args))
    with activations.rounded(found.inside[0], parse("rtn-mxfp4-wa")):
        blocks.run(layers.blocks(model)[0], found.evaluation.hidden[0], found.evaluation.calls[0][0])
    # seven layers: queries, keys and values; output; gate and up; down
    assert (len(found.inside[0]), len(calls)) == (7, 4)


def test_nothing_is_left_behind_when_a_block_fails():
    layer = nn.Linear(32, 4)
    with pytest.raises(RuntimeError), activations.rounded({"one": layer}, parse("rtn-mxfp4-wa")):
        layer(torch.randn(2, 31))
    assert not layer._forward_pre_hooks
    with activations.rounded({"one": layer}, parse("rtn-mxfp4")):
        assert not layer._forward_pre_hooks
