"""Tables with a mapping, quantization configurations with reported perplexities, and round trips."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayesqid import cells, quantized_share
from bayesqid.errors import BadInput
from bayesqid.importers import sources, tables
from importing import HERE, excluded, read

THEIRS = HERE / "table" / "theirs.csv"
MAPPING = HERE / "table" / "mapping.toml"
# what brings cells that were written as a CSV back: the effect key names the quantizer, the loss is in nats
BACK = """
[columns]
family = "family"
model = "model"
checkpoint = "checkpoint"
method = "quantizer"
bits = "bits"
group_size = "group_size"
effective_bits = "effective_bits"
n_params = "n_params"
n_params_nonembedding = "n_params_nonembedding"
train_tokens = "train_tokens"
lr_phase = "lr_phase"
lr_fraction = "lr_fraction"
vocab_size = "vocab_size"
eval_dataset = "eval_dataset"
ctx_len = "ctx_len"
source = "source"
loss_fp = "loss16"
qid = "qid"
qid_se = "qid_se"
calibration_sd = "calibration_sd"
[units]
loss_fp = "nats"
"""


@pytest.mark.parametrize(
    ("name", "ending"), [("atlas", ".csv"), ("atlas", ".parquet"), pytest.param("tiny", ".tsv", marks=pytest.mark.slow)]
)
def test_cells_survive_a_table_and_its_mapping(tmp_path, name, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    before = sources.read_cells(name)
    frame = before.reset_coords().to_dataframe().reset_index(drop=True)
    write = {".csv": lambda path: frame.to_csv(path, index=False), ".tsv": lambda path: frame.to_csv(
        path, index=False, sep="\t"), ".parquet": frame.to_parquet}[ending]  # fmt: skip
    write(tmp_path / f"cells{ending}")
    (tmp_path / "map.toml").write_text(BACK)
    after = read(tmp_path / f"cells{ending}", mapping=tmp_path / "map.toml")
    assert after.sizes == before.sizes
    for column in (*cells.TEXTS, *cells.FLAGS):
        np.testing.assert_array_equal(after[column], before[column], err_msg=column)
    for column in (*cells.NUMBERS, *cells.VALUES):
        # the headroom is derived anew, and the atlas keeps it to six digits only
        close = 1e-5 if column == "headroom" and name == "atlas" else 1e-9
        np.testing.assert_allclose(after[column], before[column], rtol=close, atol=1e-12, err_msg=column)


@pytest.mark.parametrize("name", ["mixed", "mixed-tiny"])
def test_the_share_of_the_weights_comes_back_from_a_table(tmp_path, name):
    before = sources.read_cells(name)
    before.reset_coords().to_dataframe().to_csv(tmp_path / "cells.csv", index=False)
    more = "".join(f'{column} = "{column}"\n' for column in quantized_share.PLAIN)
    (tmp_path / "map.toml").write_text(BACK.replace("[units]", f"{more}[units]"))
    after = read(tmp_path / "cells.csv", mapping=tmp_path / "map.toml")
    assert after.sizes == before.sizes
    np.testing.assert_allclose(after["quantized_fraction"], before["quantized_fraction"], rtol=1e-12)
    assert (before["quantized_fraction"] < 1).any()
    for column in ("granularity", "assignment"):
        np.testing.assert_array_equal(after[column], before[column], err_msg=column)


def test_an_unknown_granularity_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text(
        "family,model,method,bits,qid,n_params_nonembedding,train_tokens,quantized_fraction,granularity\n"
        "mine,m1,rtn,3,0.2,1e9,1e11,0.9,matmul\nmine,m1,rtn,3,0.1,1e9,1e11,0.5,matmuls\n"
    )
    with pytest.raises(BadInput, match=r"t\.csv, row 2 \(line 3\): granularity = matmuls is unknown.*layer or matmul"):
        read(tmp_path / "t.csv")
    with pytest.raises(BadInput, match="granularity = matmuls"):
        sources.read_cells(str(tmp_path / "t.csv"))


def test_a_mapping_brings_bits_per_token_and_its_baselines_into_place():
    made = read(THEIRS, mapping=MAPPING)
    expected = np.array([2.4955 - 2.4516, 2.6714 - 2.4516, 2.3081 - 2.2870]) * math.log(2)
    np.testing.assert_allclose(made["qid"], expected, rtol=1e-9)
    np.testing.assert_allclose(made["loss16"], np.array([2.4516, 2.4516, 2.2870]) * math.log(2), rtol=1e-9)
    assert made["bits"].values.tolist() == [4, 3, 4]
    assert made["model"].values.tolist() == ["LLaMA-2-7B", "LLaMA-2-7B", "LLaMA-2-13B"]
    np.testing.assert_allclose(made["effective_bits"], [4 + 20 / 128, 3 + 19 / 128, 4 + 20 / 128], atol=1e-4)
    # four decimals of bits round by 1e-4 ln 2 / sqrt 12 on either side
    rounding = 1e-4 * math.log(2) / math.sqrt(12) * math.sqrt(2)
    np.testing.assert_allclose(made["qid_se"], math.hypot(1e-3, rounding), rtol=1e-6)


def table(tmp_path, text, mapping=None):
    (tmp_path / "t.csv").write_text(text)
    if mapping is not None:
        (tmp_path / "m.toml").write_text(mapping)
    return {"mapping": None if mapping is None else tmp_path / "m.toml"}


PLAIN = "family,model,method,bits,group_size,ppl_fp,ppl_q\nLLaMA-2,LLaMA-2-7B,GPTQ,4,128,5.47,5.63\n"


@pytest.mark.parametrize(("unit", "turn"), [("nats", math.log), ("bits", math.log2), ("log10", math.log10)])
def test_losses_in_any_unit_are_the_same_cell(tmp_path, unit, turn):
    text = f"who,how,b,before,after\nLLaMA-2-7B,GPTQ-g128,4,{turn(5.47)!r},{turn(5.63)!r}\n"
    mapping = (
        '[columns]\nmodel = "who"\nmethod = "how"\nbits = "b"\nloss_fp = "before"\nloss = "after"\n'
        f'[constants]\nfamily = "LLaMA-2"\ngroup_size = 128\n[units]\nloss = "{unit}"\nloss_fp = "{unit}"\n'
        '[values.method]\n"GPTQ-g128" = "gptq"\n'
    )
    made = read(tmp_path / "t.csv", **table(tmp_path, text, mapping))
    assert made["qid"].item() == pytest.approx(math.log(5.63 / 5.47), rel=1e-9)
    assert made["quantizer"].item() == "gptq"


def test_a_table_in_our_columns_needs_no_mapping_and_facts_can_be_added(tmp_path):
    made = read(tmp_path / "t.csv", **table(tmp_path, PLAIN), text="wikitext2", context=4096, source="me")
    truth = cells.from_table(tables.read_table(tmp_path / "t.csv"), {})
    for column in cells.VALUES:
        xr.testing.assert_equal(made[column].variable, truth[column].variable)
    assert (made["eval_dataset"].item(), made["ctx_len"].item(), made["source"].item()) == ("wikitext2", 4096, "me")
    unknown = PLAIN.replace("LLaMA-2-7B", "mine-1B").replace("LLaMA-2", "mine")
    with pytest.raises(BadInput, match="training tokens not disclosed"):
        read(tmp_path / "t.csv", **table(tmp_path, unknown))
    told = read(tmp_path / "t.csv", **table(tmp_path, unknown), params=1e9, tokens=2e11)
    assert told["train_tokens"].item() == 2e11


def test_scales_turn_billions_into_numbers(tmp_path):
    text = "model,method,bits,group,N,qid\nmine-1B,gptq,4,128,1.1,0.05\nmine-7B,gptq,4,128,,0.04\n"
    mapping = (
        '[columns]\nmodel = "model"\nmethod = "method"\nbits = "bits"\ngroup_size = "group"\nqid = "qid"\n'
        'n_params_nonembedding = "N"\n[constants]\nfamily = "mine"\ntrain_tokens = 3e11\n'
        "[scale]\nn_params_nonembedding = 1e9\n"
    )
    made = read(tmp_path / "t.csv", **table(tmp_path, text, mapping))
    assert made["n_params_nonembedding"].values.tolist() == [1.1e9]
    assert excluded(made) == {"non-embedding parameter count unknown": 1}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"Model"', '"Modell"', "no column 'Modell'.*it has Model"),
        ("[columns]\n", "[columns]\ncolour = 'Model'\n", "'colour' is no column"),
        ("[columns]\n", "[columns]\ncheckpoint = 3\n", "cannot be used"),
        ("[units]", "[unit]", "no use for 'unit'"),
        ('loss = "bits"', 'loss = "bytes"', "'bytes' is unknown.*ppl, nats, bits"),
        ('loss = "bits"', "", "without its unit"),
        ('value = "fp16"', 'value = "bf16"', "no row with Quantizer = bf16"),
        ('column = "Quantizer"\n', "", "needs column"),
        ('match = ["model"]', 'match = ["checkpoint"]', "needs checkpoint"),
        ("ctx_len = 2048", "ctx_len = -1", "ctx_len"),
        ("[columns]", "[scale]\nbits = -1\n[columns]", "positive"),
        ("[columns]", "[values.kind]\na = 'b'\n[columns]", "rename values"),
        ('family = "LLaMA-2"', "family = [1]", "cannot be used"),
        ("[columns]", "[columns", "not valid TOML"),
    ],
)
def test_bad_mappings_are_refused_with_their_place(tmp_path, old, new, words):
    mapping = MAPPING.read_text()
    assert old in mapping
    (tmp_path / "m.toml").write_text(mapping.replace(old, new))
    with pytest.raises(BadInput, match=words):
        read(THEIRS, mapping=tmp_path / "m.toml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("2.4955", "", "qid|perplexity"),
        ("2.4955", "nan", "row 2.*nan"),
        ("2.4955", "1e999", "row 2.*1e999"),
        ("2.4955", "99999", "row 2.*too large"),
        ("2.4955", "two", "row 2.*two"),
        ("2.4955", "-99999", "far below zero"),
        ("GPTQ,4,128", "GPTQ,4,0", "group_size"),
        ("GPTQ,4,128", "GPTQ,=cmd(),128", "bits"),
        ("Llama-2-13b-hf,fp16,16,,2.2870", "Llama-2-7b-hf,fp16,16,,2.9870", "two baselines"),
        ("Llama-2-13b-hf,fp16,16,,2.2870,2.6913\n", "", "13b.*no row with"),
        ("group", "wbits", "'wbits' twice|wbits"),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path, old, new, words):
    text = THEIRS.read_text()
    assert old in text
    (tmp_path / "t.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=words):
        read(tmp_path / "t.csv", mapping=MAPPING)


def test_a_row_that_stands_twice_is_refused(tmp_path):
    lines = PLAIN.splitlines()
    with pytest.raises(BadInput, match="twice"):
        read(tmp_path / "t.csv", **table(tmp_path, "\n".join([*lines, lines[1]])))


def test_a_spoilt_parquet_file_is_refused_and_nothing_in_a_good_one_runs(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + b"\x00" * 40 + b"PAR1")
    with pytest.raises(BadInput, match=r"t\.parquet cannot be read"):
        read(tmp_path / "t.parquet")
    frame = pd.read_csv(THEIRS)
    frame["nested"] = [[{"a": 1}]] * len(frame)
    frame.to_parquet(tmp_path / "t.parquet")
    xr.testing.assert_equal(read(tmp_path / "t.parquet", mapping=MAPPING), read(THEIRS, mapping=MAPPING))


GPTQ = json.loads((HERE / "gptq" / "quantize_config.json").read_text())


def gptq(tmp_path, content, **given):
    (tmp_path / "quantize_config.json").write_text(json.dumps(content))
    return read(tmp_path, **{"model": "LLaMA-2-7B", "ppl": "5.47:5.63", **given})


@pytest.mark.parametrize(
    ("changes", "quantizer", "bits"),
    [
        ({}, "gptq-actorder", 4 + 16 / 128),
        ({"desc_act": False}, "gptq", 4 + 16 / 128),
        ({"desc_act": False, "sym": False}, "gptq", 4 + 20 / 128),
        ({"desc_act": False, "group_size": 32, "bits": 3}, "gptq", 3 + 16 / 32),
        ({"desc_act": False, "group_size": -1}, "gptq", 4 + 16 / 4096),
        ({"quant_method": "awq", "zero_point": True, "sym": False}, "awq", 4 + 20 / 128),
        ({"quant_method": "auto-round"}, "autoround", 4 + 16 / 128),
        ({"meta": {"recipe": "rtn-w4-g64"}}, "rtn", 4 + 16 / 64),
    ],
)
def test_a_configuration_gives_quantizer_and_stored_bits(tmp_path, changes, quantizer, bits):
    made = gptq(tmp_path, GPTQ | changes)
    assert made["quantizer"].item() == quantizer
    assert made["effective_bits"].item() == pytest.approx(bits, abs=1e-9)
    assert made["qid"].item() == pytest.approx(math.log(5.63 / 5.47))
    rounding = math.hypot(0.01 / 5.63, 0.01 / 5.47) / math.sqrt(12)
    assert made["qid_se"].item() == pytest.approx(math.hypot(1e-3, rounding))


def test_a_configuration_inside_a_models_own_is_found_with_its_width(tmp_path):
    inside = {"hidden_size": 64, "quantization_config": {**GPTQ, "group_size": -1, "desc_act": False}}
    (tmp_path / "config.json").write_text(json.dumps(inside))
    made = read(tmp_path, model="m", family="f", params=1e6, tokens=1e9, ppl="5.47:5.63")
    assert made["effective_bits"].item() == 4 + 16 / 64
    assert made["per_channel"].item()


def test_what_our_own_checkpoints_say_is_read(tmp_path):
    folders = sorted((HERE.parent).glob("gptq-w*"))
    assert folders
    for folder in folders:
        bits, facts = int(folder.name.split("-")[1][1:]), {"model": "m", "family": "f", "params": 1e6, "tokens": 1e9}
        if bits == 8:  # beyond the bits in which the laws hold
            with pytest.raises(BadInput, match="effective bits outside"):
                read(folder, **facts, ppl="5.47:5.63")
        else:
            assert read(folder, **facts, ppl="5.47:5.63")["bits"].item() == bits


@pytest.mark.parametrize(
    ("changes", "given", "words"),
    [
        ({"dynamic": {"+:.*": {"bits": 8}}}, {}, "dynamic"),
        ({"bits": "four"}, {}, "bits is 'four'"),
        ({"bits": 1e999}, {}, "bits"),
        ({"bits": 32}, {}, "bits"),
        ({"bits": 4.5}, {}, "whole number"),
        ({"group_size": 0}, {}, "group_size"),
        ({"quant_method": "bitnet"}, {}, "'bitnet'"),
        ({}, {"ppl": None}, "--ppl"),
        ({}, {"ppl": "5.47"}, "--ppl"),
        ({}, {"ppl": "5.47:nan"}, "nan"),
        ({}, {"ppl": "5.47:0.3"}, "above 1"),
        ({}, {"ppl": "5.4:5.6"}, "one decimal"),
        ({}, {"model": "my own"}, "--family"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, changes, given, words):
    with pytest.raises(BadInput, match=words):
        gptq(tmp_path, GPTQ | changes, **given)


