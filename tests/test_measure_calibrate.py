import numpy as np
import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import blocks, calibrate, layers, together
from bayesqid.measure.quantizers import QUANTIZERS, gptq, rtn
from bayesqid.measure.quantizers.outcome import Seen
from bayesqid.recipe import parse

KINDS = sorted(tinymodels.CONFIGS)
# linear layers of one block in the order they run; those that share an input stand together
STAGES = {
    "neox": [["query_key_value"], ["dense"], ["dense_h_to_4h"], ["dense_4h_to_h"]],
    "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "opt": [["q_proj", "k_proj", "v_proj"], ["out_proj"], ["fc1"], ["fc2"]],
    "gpt2": [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]],
}
BATCHES = [torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(i)) for i in range(2)]


def last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_layers_of_the_blocks_and_no_others_are_found(kind):
    model = tinymodels.model(kind)
    found = layers.linears(model)
    assert [last(name) for name in found] != []
    assert sorted(map(last, found)) == sorted(2 * sum(STAGES[kind], []))
    assert model.get_output_embeddings() not in found.values()
    inside = {id(parameter) for parameter in layers.blocks(model).parameters() if parameter.ndim >= 2}
    assert {id(module.weight) for module in found.values()} == inside


def test_fused_mixtures_of_experts_are_refused():
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(BadInput, match="mixtures of experts"):
        layers.linears(MixtralForCausalLM(config))


def test_a_model_without_blocks_is_refused():
    with pytest.raises(BadInput, match="no list of blocks"):
        layers.linears(nn.Linear(4, 4))


def test_conv1d_matrices_round_trip():
    model = tinymodels.model("gpt2")
    module = layers.linears(model)["transformer.h.0.mlp.c_fc"]
    assert layers.matrix(module).shape == (128, 32)
    assert torch.equal(layers.native(module, layers.matrix(module)), module.weight)


def apart(model):
    """What enters the blocks of a model, and its linear layers block by block."""
    found = tinymodels.ready(model, [np.arange(9)], torch.cat(BATCHES))
    return blocks.capture(model, BATCHES, found.as_tuple), found.inside


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_stages_follow_the_order_of_execution(kind):
    model = tinymodels.model(kind)
    inputs, inside = apart(model)
    block = layers.blocks(model)[0]
    run = calibrate.stages(inside[0], lambda: blocks.run(block, inputs.hidden[0], inputs.calls[0][0]))
    assert [[last(name) for name in stage] for stage in run] == STAGES[kind]


def quantized(model, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Weights of all layers by recipe, all recipes taken through the blocks side by side."""
    inputs, inside = apart(model)
    lanes = [calibrate.Lane(parse(text), [], list(inputs.hidden)) for text in texts]
    turn = [lane for lane in lanes if calibrate.sequential(lane.recipe)]
    once = [lane for lane in lanes if not calibrate.sequential(lane.recipe)]
    rows, weights = list(inputs.hidden), {id(lane): {} for lane in lanes}
    for depth, block in enumerate(layers.blocks(model)):
        made = calibrate.in_turn(block, depth, inside[depth], {0: inputs}, turn) if turn else []
        pairs = list(zip(turn, made, strict=True))
        if once:
            made, rows = calibrate.at_once(block, depth, inside[depth], rows, inputs, once)
            pairs += zip(once, made, strict=True)
        for lane, one in pairs:
            weights[id(lane)] |= {name: layers.native(inside[depth][name], layer.weight) for name, layer in one.items()}
    assert not any(lane.failed or (lane.notes and lane.recipe.method == "gptq") for lane in lanes)
    return [weights[id(lane)] for lane in lanes]


def members(kind: str, stage: int, names: list[str]) -> list[str]:
    """Layers of one stage; GPT-2 uses one name twice."""
    chosen = [name for name in names if last(name) in STAGES[kind][stage]]
    twice = kind == "gpt2" and stage in (1, 3)
    return [name for name in chosen if not twice or ("attn" in name) == (stage == 1)]


def reached(model, module) -> Seen:
    """H = 2/n sum x x^T and mean |x| of what reaches a layer in whole forward passes."""
    rows: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: rows.append(args[0].reshape(-1, args[0].shape[-1])))
    for batch in BATCHES:
        model(input_ids=batch, use_cache=False)
    handle.remove()
    inputs = torch.cat(rows).double()
    return Seen(2 / len(inputs) * inputs.T @ inputs, inputs.abs().mean(0).float())


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_sequential_gptq_agrees_with_whole_forward_passes(kind):
    # the plain way: for every stage of every block, run the whole model as quantized so far
    recipes, model = ["gptq-w3", "gptq-w4-g32-asym"], tinymodels.model(kind)
    several, found = quantized(model, recipes), layers.linears(model)
    original = layers.originals(found)
    for text, weights in zip(recipes, several, strict=True):
        assert set(weights) == set(found)
        layers.install(found, original)
        for block in layers.blocks(model):
            inside = {id(module) for module in block.modules()}
            names = [name for name, module in found.items() if id(module) in inside]
            for stage in range(4):
                seen = reached(model, found[members(kind, stage, names)[0]])
                for name in members(kind, stage, names):
                    (expected,) = gptq.quantize(layers.matrix(found[name]), [seen], [parse(text)])
                    close = torch.isclose(weights[name], layers.native(found[name], expected.weight), atol=1e-5)
                    assert close.float().mean() > 0.98, name
                    layers.install(found, {name: weights[name]})


@torch.inference_mode()
@pytest.mark.parametrize("recipe", ["gptq-w3-oneshot", "awq-w3-g32"])
def test_one_shot_methods_see_the_unquantized_model(recipe):
    model, parsed = tinymodels.model("llama"), parse(recipe)
    (weights,), found = quantized(model, [recipe]), layers.linears(model)
    for name, module in found.items():
        stage = next(s for s in STAGES["llama"] if last(name) in s)
        prefix = name.rsplit(".", 1)[0]
        shared = [f"{prefix}.{part}" for part in stage]
        whole = torch.cat([layers.matrix(found[part]) for part in shared])
        (expected,) = QUANTIZERS[parsed.method](whole, [reached(model, module)], [parsed])
        rows = [len(layers.matrix(found[part])) for part in shared]
        mine = expected.weight.split(rows)[shared.index(name)]
        assert torch.isclose(weights[name], mine, atol=1e-5).float().mean() > 0.98, name


@torch.inference_mode()
def test_recipes_side_by_side_give_what_each_gives_alone():
    texts = ["gptq-w2", "gptq-w4-g32", "gptq-w3-asym-act", "gptq-w3-oneshot", "awq-w4-g32"]
    several = quantized(tinymodels.model("neox"), texts)
    for text, weights in zip(texts, several, strict=True):
        (alone,) = quantized(tinymodels.model("neox"), [text])
        assert all(torch.allclose(weights[name], alone[name], atol=1e-6) for name in alone), text


@torch.inference_mode()
@pytest.mark.parametrize("fails", [None, "gptq-w3", "rtn-w3-g32"])
def test_the_model_is_left_as_it_was_even_when_a_recipe_fails(monkeypatch, fails):
    model = tinymodels.model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []

    def faulty(method):
        def quantize(weight, seens, recipes):
            calls.extend(map(str, recipes))
            if fails in map(str, recipes) and calls.count(fails) >= 3:
                raise ValueError("no factor")
            return method(weight, seens, recipes)

        return quantize

    for name, method in list(calibrate.QUANTIZERS.items()):
        monkeypatch.setitem(calibrate.QUANTIZERS, name, faulty(method))
    names = ["none", "rtn-w3-g32", "rtn-w4", "gptq-w3", "gptq-w4"]
    found = tinymodels.ready(model, [np.arange(40)], torch.cat(BATCHES))
    measured = together.measure(found, [parse(name) for name in names], {}, False, lambda amount: None)
    assert {str(lane.recipe): lane.failed for lane, _ in measured} == {
        name: "no factor" if name == fails else "" for name in names
    }, "one recipe's failure is its own"
    assert {str(lane.recipe) for lane, scores in measured if scores is None} == ({fails} - {None})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())


@torch.inference_mode()
def test_layers_that_calibration_never_reaches_are_rounded_and_noted_or_fail():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, hidden):
            return self.used(hidden)

    block = Skips()
    found = {"used": block.used, "idle": block.idle}
    rows = [torch.randn(2, 5, 32)]
    inputs = blocks.Inputs(rows, [[blocks.Call((), {})]])
    lane = calibrate.Lane(parse("gptq-w4"), [], rows)
    calibrate.in_turn(block, 0, found, {0: inputs}, [lane])
    assert "never reaches idle" in lane.failed
    lane = calibrate.Lane(parse("gptq-w4"), [], [torch.zeros(2, 5, 32)])
    (made,) = calibrate.in_turn(block, 0, {"used": block.used}, {0: inputs}, [lane])
    assert lane.notes == ["used: no input reached it: rounded to nearest"]
    assert torch.equal(made["used"].weight, rtn.quantize(block.used.weight.detach(), None, parse("rtn-w4")).weight)
