"""Foreign checkpoints: made by GPTQModel (fixtures/make.py) and, here, by compressed-tensors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import formats, layers, load, packing, saved

FIXTURES = Path(__file__).parent / "fixtures"
INDEX = "model.safetensors.index.json"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
RECIPES = {
    "gptq-w2-g32-asym": "gptq-w2-g32-asym-saved",
    "gptq-w3": "gptq-w3-saved",
    "gptq-w3-asym": "gptq-w3-asym-saved",
    "gptq-w4-g32-act": "gptq-w4-g32-act-saved",
    "gptq-w4-g32-asym-v2": "gptq-w4-g32-asym-saved",
    "gptq-w5-g32": "gptq-w5-g32-saved",
    "gptq-w8-asym": "gptq-w8-asym-saved",
    "pack-w3-padded": "rtn-w3-asym-saved",
    "pack-w4-g32-act": "gptq-w4-g32-act-saved",
}
# format of compressed-tensors, bits, group size, symmetric
COMPRESSED = [
    ("pack-quantized", 4, 32, True),
    ("pack-quantized", 4, 32, False),
    ("pack-quantized", 3, -1, False),
    ("pack-quantized", 3, 32, True),
    ("pack-quantized", 6, -1, True),
    ("pack-quantized", 8, 32, False),
    ("naive-quantized", 4, 32, False),
    ("naive-quantized", 8, -1, True),
    ("int-quantized", 8, -1, False),
]


def baseline() -> torch.nn.Module:
    return load.model(FIXTURES / "baseline", "float32", torch.device("cpu"))


def logits(model: torch.nn.Module, weights) -> torch.Tensor:
    found = layers.linears(model)
    layers.install(found, {name: layers.native(found[name], weights[name]) for name in found})
    return model(input_ids=torch.arange(0, 24, 3)[None] % 32).logits


def config(folder: Path, **changes: object) -> None:
    """Change quantization settings of a checkpoint; None removes one."""
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    settings = whole["quantization_config"] | changes
    whole["quantization_config"] = {key: value for key, value in settings.items() if value is not None}
    file.write_text(json.dumps(whole))


def tensors(folder: Path, change) -> None:
    """Change the tensors of a checkpoint."""
    content = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(content)
    save_file(content, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def copied(tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(FIXTURES / name, tmp_path / name))

    return copy


def compress(folder: Path, form: str, bits: int, group: int, symmetric: bool) -> dict[str, torch.Tensor]:
    """Save a random Llama as compressed-tensors does, and return what it itself reads from it."""
    source = tinymodels.save("llama", folder / "source").parent / "source"
    model = load.model(source, "float32", torch.device("cpu"))
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="channel" if group == -1 else "group",
                            group_size=None if group == -1 else group)  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    inside = layers.linears(model)
    state = model.state_dict()
    content = {name: tensor for name, tensor in state.items() if name.removesuffix(".weight") not in inside}
    expected = {}
    for name, module in inside.items():
        weight = module.weight.detach()
        parts = weight.unflatten(1, (-1, weight.shape[1] if group == -1 else group))
        scale, zero = calculate_qparams(parts.amin(2), parts.amax(2), args)
        plain = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
        packed = compressor.compress(plain, scheme)
        expected[name] = compressor.decompress(packed, scheme)["weight"]
        content |= {f"{name}.{part}": tensor.contiguous() for part, tensor in packed.items()}
    made = Path(shutil.copytree(source, folder / "made"))
    save_file(content, made / "model.safetensors", {"format": "pt"})
    whole = json.loads((made / "config.json").read_text())
    said = QuantizationConfig(config_groups={"group_0": scheme}, format=form, ignore=["lm_head"],
                              quantization_status="compressed")  # fmt: skip
    (made / "config.json").write_text(json.dumps(whole | {"quantization_config": said.model_dump(mode="json")}))
    return expected


@pytest.mark.parametrize("name", RECIPES)
@torch.inference_mode()
def test_logits_are_those_that_the_maker_computes(name):
    method = "rtn" if name == "pack-w3-padded" else None
    mine = logits(baseline(), saved.of(FIXTURES / name, baseline(), method))[0]
    assert torch.allclose(mine, EXPECTED[name], rtol=0, atol=1e-5)
    assert str(saved.recipe_of(FIXTURES / name, method)) == RECIPES[name]
    assert saved.is_quantized(FIXTURES / name)


def test_fixtures_hold_the_zero_points_that_wrap_around():
    file = FIXTURES / "gptq-w2-g32-asym" / "model.safetensors"
    found = [formats.zero_points(load_file(file)[f"gpt_neox.layers.0.{name}.qzeros"], 2, outputs, formats.GPTQ["gptq"])
             for name, outputs in (("mlp.dense_h_to_4h", 64), ("mlp.dense_4h_to_h", 32))]  # fmt: skip
    assert all(bool((zeros == 0).any()) for zeros in found)


def test_a_dense_checkpoint_is_not_taken_for_a_quantized_one():
    assert not saved.is_quantized(FIXTURES / "baseline")
    with pytest.raises(BadInput, match="no quantization settings"):
        saved.recipe_of(FIXTURES / "baseline")


@pytest.mark.parametrize("case", COMPRESSED, ids=str)
@torch.inference_mode()
def test_weights_are_those_that_compressed_tensors_reads(case, tmp_path):
    expected = compress(tmp_path, *case)
    found = saved.weights(tmp_path / "made", "gptq")
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, rtol=1e-6, atol=0)
    recipe = saved.recipe_of(tmp_path / "made", "gptq")
    assert (recipe.bits, recipe.group_size, recipe.symmetric, recipe.options) == (*case[1:], ("saved",))


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("case", [COMPRESSED[1], COMPRESSED[4], COMPRESSED[-2]], ids=str)
@torch.inference_mode()
def test_logits_are_those_of_the_model_that_transformers_loads(case, tmp_path):
    compress(tmp_path, *case)
    whole = CompressedTensorsConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32, quantization_config=whole)
    model = load.model(tmp_path / "source", "float32", torch.device("cpu"))
    ids = torch.arange(0, 24, 3)[None]
    mine = logits(model, saved.of(tmp_path / "made", model, "rtn"))
    assert torch.allclose(mine, theirs(input_ids=ids % 32).logits, rtol=0, atol=1e-4)


def test_the_method_of_compressed_tensors_is_asked_for_or_read_from_recipe_yaml(tmp_path):
    compress(tmp_path, *COMPRESSED[0])
    made = tmp_path / "made"
    with pytest.raises(BadInput, match="--quantized-method"):
        saved.recipe_of(made)
    assert str(saved.recipe_of(made, "rtn")) == "rtn-w4-g32-saved"
    recipes = {"GPTQModifier": "gptq-w4-g32-saved", "QuantizationModifier": "rtn-w4-g32-saved",
               "AWQModifier": "awq-w4-g32-sym-saved"}  # fmt: skip
    for modifier, recipe in recipes.items():
        (made / "recipe.yaml").write_text(f"default_stage:\n  default_modifiers:\n    {modifier}:\n      ignore: []\n")
        assert str(saved.recipe_of(made)) == recipe
    (made / "recipe.yaml").write_text("default_stage:\n  default_modifiers:\n    SmoothQuantModifier: {}\n")
    with pytest.raises(BadInput, match="SmoothQuantModifier"):
        saved.recipe_of(made)
    with pytest.raises(BadInput, match="no method 'magic'"):
        saved.recipe_of(made, "magic")


def test_the_order_of_columns_tells_that_it_was_gptq():
    with pytest.raises(BadInput, match="no option 'act'"):
        saved.recipe_of(FIXTURES / "pack-w4-g32-act", "rtn")


def scheme(**changes: object) -> dict:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | changes
    return {"group_0": {"targets": ["Linear"], "weights": weights}}


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"format": "marlin-24"}, "format 'marlin-24'"),
    ({"format": "float-quantized"}, "format 'float-quantized'"),
    ({"config_groups": scheme() | {"group_1": {"weights": scheme(num_bits=8)["group_0"]["weights"]}}}, "some layers"),
    ({"config_groups": {}}, "some layers"),
    ({"config_groups": scheme(type="float")}, "float weights"),
    ({"config_groups": scheme(strategy="block")}, "scaled per block"),
    ({"config_groups": scheme(group_size=48)}, "groups of 48"),
    ({"config_groups": scheme(num_bits=7)}, "7 bits"),
    ({"config_groups": {"group_0": scheme()["group_0"] | {"input_activations": {"num_bits": 8}}}}, "activations"),
    ({"kv_cache_scheme": {"num_bits": 8}}, "its cache"),
    ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "pruned weights"),
    ({"transform_config": {"config_groups": {"R1": {}}}}, "rotated weights"),
])  # fmt: skip
def test_compressed_checkpoints_that_no_recipe_names_are_refused(changes, sentence, copied):
    folder = copied("pack-w3-padded")
    config(folder, **changes)
    with pytest.raises(BadInput, match=sentence) as error:
        saved.recipe_of(folder, "rtn")
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"quant_method": "awq"}, "quantized by awq"),
    ({"quant_method": "bitsandbytes"}, "quantized by bitsandbytes"),
    ({"checkpoint_format": "marlin"}, "packed for marlin"),
    ({"is_marlin_format": True}, "packed for marlin"),
    ({"dynamic": {"+:.*mlp.*": {"bits": 8}}}, "`dynamic`"),
    ({"pack_dtype": "int16"}, "packs codes into int16"),
    ({"bits": None}, "None for its bits"),
    ({"bits": 7}, "7 bits"),
    ({"bits": 5, "checkpoint_format": "gptq"}, "gptq_p"),
    ({"group_size": 48}, "groups of 48"),
    ({"group_size": None}, "None for its group size"),
    ({"autoround_version": "0.9"}, "autoround_version"),
    ({"meta": {"gptaq": {"alpha": 0.25}}}, "gptaq"),
    ({"meta": {"recipe": "magic-w4"}}, "'magic'"),
])  # fmt: skip
def test_gptq_checkpoints_that_no_recipe_names_are_refused(changes, sentence, copied):
    folder = copied("gptq-w4-g32-act")
    config(folder, **changes)
    with pytest.raises(BadInput, match=sentence) as error:
        saved.recipe_of(folder)
    assert str(error.value).count(". ") == 0


def drop(*names: str):
    def change(content: dict) -> None:
        for name in names:
            del content[name]

    return change


def put(name: str, value):
    def change(content: dict) -> None:
        content[name] = value(content[name]) if callable(value) else value

    return change


DENSE = "gpt_neox.layers.0.attention.dense"


@pytest.mark.parametrize(("change", "sentence"), [
    (drop(f"{DENSE}.scales"), "lacks .*dense.scales"),
    (drop(f"{DENSE}.qzeros"), "lacks .*dense.qzeros"),
    (drop(f"{DENSE}.g_idx"), "lacks .*dense.g_idx"),
    (put(f"{DENSE}.scales", lambda t: t * float("nan")), "not finite"),
    (put(f"{DENSE}.scales", lambda t: torch.cat([t, t])), "groups of scales"),
    (put(f"{DENSE}.g_idx", lambda t: t + 7), "groups of scales"),
    (put(f"{DENSE}.qweight", lambda t: t[:3]), "groups of scales"),
    (put(f"{DENSE}.qzeros", lambda t: t[:, :2]), "unfit shapes"),
    (put(f"{DENSE}.qzeros", lambda t: t + 1), "said to be symmetric"),
    (drop(*(f"{DENSE}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))), "leaves .*dense unquantized"),
    (drop(f"{DENSE}.bias"), "lacks .*dense.bias"),
    (drop("gpt_neox.embed_in.weight"), "lacks .*embed"),
    (put(f"{DENSE}.bias", lambda t: t + 1e-2), "another .*dense.bias"),
    (put("gpt_neox.final_layer_norm.weight", lambda t: t * 1.02), "another .*final_layer_norm.weight"),
    (put("gpt_neox.embed_in.weight", lambda t: t[:16]), "another .*embed_in.weight"),
    (put("gpt_neox.extra.weight", torch.ones(3)), "has gpt_neox.extra.weight"),
])  # fmt: skip
def test_broken_checkpoints_and_those_of_other_models_are_refused(change, sentence, copied):
    folder = copied("gptq-w4-g32-act")
    tensors(folder, change)
    with pytest.raises(BadInput, match=sentence) as error:
        list(saved.of(folder, baseline()).values())
    assert str(error.value).count(". ") == 0


def test_a_quantized_head_is_refused(copied):
    folder = copied("gptq-w4-g32-act")
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def add(content: dict) -> None:
        content |= {f"lm_head.{part}": content[f"{DENSE}.{part}"].clone() for part in parts}

    tensors(folder, add)
    with pytest.raises(BadInput, match="quantizes lm_head"):
        saved.of(folder, baseline())


def test_zero_points_of_old_formats_are_said_to_be_mislabelled(copied):
    folder = copied("gptq-w4-g32-act")
    config(folder, checkpoint_format="gptq_v2")
    with pytest.raises(BadInput, match="zero points of 7, not 8.*checkpoint_format"):
        list(saved.weights(folder).values())


def test_zero_points_of_0_are_read_only_where_it_is_known_how_they_were_stored(copied):
    folder = copied("gptq-w2-g32-asym")
    config(folder, meta={"quantizer": ["optimum:2.0"]})
    with pytest.raises(BadInput, match="zero points of 0"):
        list(saved.weights(folder).values())


def test_idle_biases_and_buffers_that_no_model_reads_are_no_difference(copied):
    folder = copied("gptq-w4-g32-act")
    inside = layers.linears(baseline())
    tensors(folder, put("gpt_neox.layers.0.attention.rotary_emb.inv_freq", torch.ones(4)))
    assert set(saved.of(folder, baseline())) == set(inside)
    without = baseline()
    without.get_submodule(DENSE).register_parameter("bias", None)
    with pytest.raises(BadInput, match="dense.bias, which the model has not"):
        saved.of(folder, without)
    tensors(folder, put(f"{DENSE}.bias", torch.zeros(32)))
    assert set(saved.of(folder, without)) == set(inside)


def test_rounding_to_bfloat16_is_no_difference(copied):
    folder = copied("gptq-w2-g32-asym")

    def halve(content: dict) -> None:
        content |= {name: tensor.bfloat16() for name, tensor in content.items() if tensor.dtype == torch.float32}

    tensors(folder, halve)
    assert len(saved.of(folder, baseline())) == 4


def shards(folder: Path) -> None:
    content = load_file(folder / "model.safetensors")
    names = sorted(content)
    where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: content[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_shards_are_read_as_one_file(copied):
    folder = copied("gptq-w8-asym")
    shards(folder)
    whole, split = saved.weights(FIXTURES / "gptq-w8-asym"), saved.weights(folder)
    assert all(torch.equal(whole[name], split[name]) for name in whole)
    assert set(saved.others(folder)) == set(saved.others(FIXTURES / "gptq-w8-asym"))


@pytest.mark.parametrize(("spoil", "sentence"), [
    (lambda folder: (folder / "model-00001-of-00002.safetensors").unlink(), "cannot be read"),
    (lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"\0" * 7), "cannot be read"),
    (lambda folder: (folder / INDEX).write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / INDEX).write_text("[]"), "no JSON object"),
    (lambda folder: (folder / INDEX).write_text('{"weight_map": {"x": "../x"}}'), "weight_map"),
    (lambda folder: (folder / INDEX).write_text(
        '{"weight_map": {"x": "model-00001-of-00002.safetensors"}}'), "lacks x"),
    (lambda folder: (folder / INDEX).unlink() or save_file(
        {DENSE + ".bias": torch.zeros(32)}, folder / "other.safetensors"), "twice"),
    (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    (lambda folder: [file.unlink() for file in folder.glob("*.safetensors")], "no .*safetensors"),
])  # fmt: skip
def test_broken_folders_are_refused(spoil, sentence, copied):
    folder = copied("gptq-w8-asym")
    shards(folder)
    spoil(folder)
    with pytest.raises(BadInput, match=sentence):
        list(saved.weights(folder).values())


def test_a_layout_that_two_versions_of_compressed_tensors_read_differently_is_refused(copied):
    assert packing.words(16, 3) == packing.words(16, 3, "padded")
    folder = copied("pack-w3-padded")
    settings, recipe = saved.settings(folder) or {}, saved.recipe_of(folder, "rtn")

    def weight(outputs: int, words_of_zero_points: int) -> torch.Tensor:
        narrow = {"weight_packed": torch.zeros(outputs, 2, dtype=torch.int32), "weight_scale": torch.ones(outputs, 1),
                  "weight_zero_point": torch.zeros(words_of_zero_points, 1, dtype=torch.int32),
                  "weight_shape": torch.tensor([outputs, 16])}  # fmt: skip
        return formats.compressed_weight("layer", folder, narrow, recipe, settings)

    # the zero points of 32 outputs tell how codes are packed, those of 16 do not
    assert weight(32, 3).shape == weight(32, 4).shape == (32, 16)
    with pytest.raises(BadInput, match="layout is not known"):
        weight(16, 2)
