import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import formats, layers, load, packing, save, saved
from bayesqid.measure.quantizers import QUANTIZERS, rtn
from bayesqid.measure.quantizers.outcome import Quantized, Seen
from bayesqid.recipe import Recipe, parse

FIXTURES = Path(__file__).parent / "fixtures"
BASELINE = FIXTURES / "baseline"


def quantized(recipe: Recipe, source: Path = BASELINE) -> dict[str, Quantized]:
    torch.manual_seed(0)
    made = {}
    for name, module in layers.linears(load.model(source, "float32", torch.device("cpu"))).items():
        weight = layers.matrix(module)
        inputs = torch.randn(200, weight.shape[1]) * torch.rand(weight.shape[1])
        seen = Seen(2 * (inputs.T @ inputs).double() / len(inputs), inputs.abs().mean(0))
        made[name] = QUANTIZERS[recipe.method](weight, [seen], [recipe])[0]
    return made


def on_grid(one: Quantized, recipe: Recipe) -> torch.Tensor:
    """The weight that codes, scale and zero mean, with scales of float16."""
    columns = one.codes.shape[1]
    size = columns if recipe.group_size == -1 else recipe.group_size
    group = torch.arange(columns) // size if one.group is None else one.group
    return one.scale.half().float()[:, group] * (one.codes.float() - one.zero[:, group])


@pytest.mark.parametrize("name", [
    "rtn-w2-g32", "rtn-w2-g32-asym", "rtn-w3", "rtn-w3-g32-asym", "rtn-w4-asym", "rtn-w5-g32", "rtn-w6-asym", "rtn-w8",
    "gptq-w3", "gptq-w4-g32", "gptq-w4-g32-act", "gptq-w2-g32-asym-act",
])  # fmt: skip
def test_what_was_saved_is_read_again(name, tmp_path):
    recipe = parse(name)
    made = quantized(recipe)
    folder = save.save_gptq(tmp_path / "made", BASELINE, recipe, made)
    model = load.model(BASELINE, "float32", torch.device("cpu"))
    read = saved.of(folder, model)
    assert str(saved.recipe_of(folder)) == f"{name}-saved"
    for layer, one in made.items():
        assert torch.equal(read[layer], on_grid(one, recipe))
        assert torch.allclose(read[layer], one.weight, rtol=2**-10, atol=1e-6)


def test_how_it_was_calibrated_stands_in_the_file_but_not_in_the_recipe_that_is_read(tmp_path):
    recipe = parse("gptq-w4-oneshot-s3")
    folder = save.save_gptq(tmp_path / "made", BASELINE, recipe, quantized(recipe))
    assert (saved.settings(folder) or {})["meta"]["recipe"] == "gptq-w4-oneshot-s3"
    assert parse(str(saved.recipe_of(folder))) == parse("gptq-w4-saved")


def test_zero_points_of_0_occur():
    recipe = parse("rtn-w2-g32-asym")
    assert any(bool((one.zero == 0).any()) for one in quantized(recipe).values())


@pytest.mark.parametrize(("fixture", "group"), [("gptq-w3", -1), ("gptq-w4-g32-act", 32), ("gptq-w5-g32", 32)])
def test_words_are_those_that_gptqmodel_writes(fixture, group):
    recipe = parse(fixture)
    content = load_file(FIXTURES / fixture / "model.safetensors")
    weights = saved.weights(FIXTURES / fixture)
    for name, weight in weights.items():
        theirs = {part: content[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
        scale, index = theirs["scales"].T.float(), theirs["g_idx"].long()
        middle = 2 ** (recipe.bits - 1)
        # codes by their meaning: GPTQModel's own reading is checked with its logits
        codes = torch.round(weight / scale[:, index]) + middle
        one = Quantized(weight, "", codes.to(torch.uint8), scale, torch.full_like(scale, middle), index)
        mine = save.tensors(name, one, recipe)
        assert all(torch.equal(mine[part], theirs[part]) for part in theirs)
        assert all(mine[part].dtype == theirs[part].dtype for part in theirs)


def test_everything_else_is_copied_as_it_is(tmp_path):
    source = Path(shutil.copytree(BASELINE, tmp_path / "source"))
    (source / "generation_config.json").write_text("{}")
    (source / "weights.bin").write_bytes(b"pickle")
    words = tinymodels.tokenizer(tmp_path / "words")
    recipe = parse("gptq-w4-g32")
    folder = save.save_gptq(tmp_path / "made", source, recipe, quantized(recipe), tokenizer=words)
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "quantize_config.json", "model.safetensors", "generation_config.json",
        *(file.name for file in words.iterdir()),
    }  # fmt: skip
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    kept = set(before) - {f"{name}.weight" for name in saved.weights(folder)}
    assert len(kept) == len(before) - 4
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in kept)
    said = json.loads((folder / "config.json").read_text())
    assert said.pop("quantization_config") == json.loads((folder / "quantize_config.json").read_text())
    assert said == json.loads((source / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as stream:
        assert stream.metadata() == {"format": "pt"}


def test_settings_name_the_format_that_libraries_load():
    assert save.settings(parse("gptq-w4-g128-act")) | {"meta": None} == {
        "quant_method": "gptq", "checkpoint_format": "gptq", "format": "gptq", "bits": 4, "group_size": 128,
        "sym": True, "desc_act": True, "lm_head": False, "pack_dtype": "int32", "meta": None,
    }  # fmt: skip
    # GPTQModel loads asymmetric checkpoints of the old format from nobody but itself
    assert save.form(parse("gptq-w4-asym")) == "gptq_v2"
    assert save.form(parse("gptq-w5")) == save.form(parse("rtn-w6-asym")) == "gptq_p"


def test_a_source_in_shards_is_saved_in_shards(tmp_path):
    source = Path(shutil.copytree(BASELINE, tmp_path / "source"))
    content = load_file(source / "model.safetensors")
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(content))}
    for file in set(where.values()):
        save_file({name: content[name] for name in where if where[name] == file}, source / file)
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    recipe = parse("rtn-w4")
    made = quantized(recipe)
    folder = save.save_gptq(tmp_path / "made", source, recipe, made)
    assert len(list(folder.glob("*.safetensors"))) == 2
    read = saved.of(folder, load.model(source, "float32", torch.device("cpu")))
    assert all(torch.equal(read[name], on_grid(made[name], recipe)) for name in made)
    total = json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total == sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())


@pytest.mark.parametrize("name", ["awq-w4", "hqq-w4-g64", "rtn-nf4", "rtn-fp4", "rtn-mxint4", "rtn-w4-saved", "none"])
def test_recipes_that_the_format_cannot_say_are_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(BadInput):
        save.save_gptq(tmp_path / "made", BASELINE, parse(name), {})
    assert list(tmp_path.iterdir()) == []


def test_gpt2_is_refused(tmp_path):
    source = tinymodels.save("gpt2", tmp_path / "gpt2")
    recipe = parse("rtn-w4")
    with pytest.raises(BadInput, match=r"(no transformer|other way round)"):
        save.save_gptq(tmp_path / "made", source, recipe, quantized(recipe, source))


def one(rows: int = 32, columns: int = 64, **changes: torch.Tensor) -> Quantized:
    torch.manual_seed(0)
    return rtn.quantize(torch.randn(rows, columns), None, parse("rtn-w4-g32-asym"))._replace(**changes)


@pytest.mark.parametrize(("layer", "sentence"), [
    (one(rows=33), "33 x 64"),
    (one(columns=48), "32 x 48"),
    (one(codes=None), "no uniform grid"),
    (one(scale=torch.full((32, 2), 1e6)), "float16"),
    (one(scale=torch.full((32, 2), 1e-12)), "float16"),
    (one(zero=torch.full((32, 2), 7.5)), "whole numbers"),
    (one(zero=torch.full((32, 2), 16.0)), "whole numbers"),
    (one(zero=torch.full((32, 2), -1.0)), "whole numbers"),
])  # fmt: skip
def test_layers_that_do_not_fit_are_refused(layer, sentence):
    with pytest.raises(BadInput, match=sentence):
        save.tensors("layer", layer, parse("rtn-w4-g32-asym"))


def test_a_symmetric_zero_point_is_stored_less_1_and_an_asymmetric_one_as_it_is():
    for name, stored in (("rtn-w4-g32", 7), ("rtn-w4-g32-asym", 8)):
        words = save.tensors("layer", one(zero=torch.full((32, 2), 8.0)), parse(name))["qzeros"]
        assert packing.unpack(words, 4, 32, 1).unique().tolist() == [stored]
        assert formats.zero_points(words, 4, 32, formats.GPTQ[save.form(parse(name))]).unique().tolist() == [8]


def test_other_models_are_refused(tmp_path):
    recipe = parse("rtn-w4")
    with pytest.raises(BadInput, match="holds no absent.weight"):
        save.save_gptq(tmp_path / "made", BASELINE, recipe, {"absent": one()})
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    recipe = parse("rtn-w4")
    made = quantized(recipe)

    def interrupted(*args: object) -> None:
        assert any(".made." in folder.name for folder in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save.save_gptq(tmp_path / "made", BASELINE, recipe, made)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_overwritten(tmp_path):
    recipe = parse("rtn-w4")
    (tmp_path / "made").mkdir()
    save.save_gptq(tmp_path / "made", BASELINE, recipe, quantized(recipe))
    with pytest.raises(BadInput, match="exists already"):
        save.save_gptq(tmp_path / "made", BASELINE, recipe, quantized(recipe))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(BadInput):
            save.save_gptq(place, BASELINE, recipe, quantized(recipe))
