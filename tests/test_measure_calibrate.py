import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import calibrate, layers
from bayesqid.measure.quantizers import gptq
from bayesqid.recipe import NONE, parse

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


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_stages_follow_the_order_of_execution(kind):
    model = tinymodels.model(kind)
    inputs = calibrate.capture(model, BATCHES)
    block = layers.blocks(model)[0]
    names = {n: m for n, m in layers.linears(model).items() if any(m is inner for inner in block.modules())}
    run = calibrate.stages(names, lambda: calibrate._run(block, inputs.hidden[0], inputs.calls[0][0]))
    assert [[last(name) for name in stage] for stage in run] == STAGES[kind]


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_one_by_one_reproduce_the_whole_model(kind):
    model = tinymodels.model(kind)
    inputs = calibrate.capture(model, BATCHES)
    seen = []
    handle = layers.blocks(model)[-1].register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model(input_ids=BATCHES[1], use_cache=False)
    handle.remove()
    hidden = inputs.hidden[1]
    for depth, block in enumerate(layers.blocks(model)):
        hidden = calibrate._run(block, hidden, inputs.calls[1][depth])
    assert torch.allclose(hidden, seen[0], atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_sequential_gptq_agrees_with_whole_forward_passes(kind):
    # the plain way: for every stage of every block, run the whole model as quantized so far
    recipe = parse("gptq-w3")
    model = tinymodels.model(kind)
    weights, note = calibrate.quantize(model, recipe, calibrate.capture(model, BATCHES))
    found = layers.linears(model)
    assert (set(weights), note) == (set(found), "")
    for block in layers.blocks(model):
        inside = {id(module) for module in block.modules()}
        names = [name for name, module in found.items() if id(module) in inside]
        for stage in STAGES[kind]:
            members = [name for name in names if last(name) in stage]
            if kind == "gpt2" and stage == ["c_proj"]:
                members = [name for name in members if ("attn" in name) == (stage is STAGES[kind][1])]
            rows: list[torch.Tensor] = []
            handle = found[members[0]].register_forward_pre_hook(
                lambda module, args, rows=rows: rows.append(args[0].reshape(-1, args[0].shape[-1]))
            )
            for batch in BATCHES:
                model(input_ids=batch, use_cache=False)
            handle.remove()
            inputs = torch.cat(rows).double()
            hessian = 2 / len(inputs) * inputs.T @ inputs
            for name in members:
                expected, _ = gptq.quantize(layers.matrix(found[name]), hessian, recipe)
                expected = layers.native(found[name], expected)
                assert torch.isclose(weights[name], expected, atol=1e-5).float().mean() > 0.98, name
                layers.install(found, {name: weights[name]})


@torch.inference_mode()
@pytest.mark.parametrize("recipe", ["rtn-w3-g32", "gptq-w4"])
def test_the_model_is_left_as_it_was(recipe):
    model = tinymodels.model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights, _ = calibrate.quantize(model, parse(recipe), calibrate.capture(model, BATCHES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not torch.equal(tensor, before[f"{name}.weight"]) for name, tensor in weights.items())
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert calibrate.quantize(model, NONE, None) == ({}, "")


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch):
    model = tinymodels.model("neox")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []

    def fails_later(weight, hessian, recipe):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return weight * 0, ""

    quantizer = calibrate.QUANTIZERS["gptq"]._replace(quantize=fails_later)
    monkeypatch.setitem(calibrate.QUANTIZERS, "gptq", quantizer)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="out of memory"):
        calibrate.quantize(model, parse("gptq-w4"), calibrate.capture(model, BATCHES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_calibrated_methods_refuse_to_go_without_inputs():
    with pytest.raises(ValueError, match="needs calibration"):
        calibrate.quantize(tinymodels.model("neox"), parse("gptq-w4"), None)
