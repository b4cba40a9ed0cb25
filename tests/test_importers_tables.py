import math

import pytest

from bayesqid.errors import BadInput
from bayesqid.importers import tables


@pytest.fixture
def table(tmp_path):
    def write(*lines):
        path = tmp_path / "mine.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


HEAD = "family,model,method,bits,group_size,ppl_fp,ppl_q,n_params_nonembedding,train_tokens,vocab_size"
ROW = "mine,my-1B,GPTQ,4,128,10.00,11.00,1e9,3e11,50000"


def test_a_short_table_gains_every_column_that_cells_need(table):
    row = tables.read_table(table(HEAD, ROW)).iloc[0]
    assert row["qid"] == pytest.approx(math.log(1.1))
    assert row["loss16"] == pytest.approx(math.log(10))
    assert row["headroom"] == pytest.approx(math.log(50000 / 10))
    assert row["effective_bits"] == pytest.approx(4 + 20 / 128, abs=1e-4)
    assert row["generation"] == "calibrated"
    assert not row["per_channel"]
    assert not row["censored"]
    assert row["default"]
    assert row["default_reason"] == ""
    assert (row["ctx_len"], row["lr_phase"], row["checkpoint"]) == (2048, "annealed", "my-1B")


def test_the_standard_error_is_floor_and_rounding_in_quadrature(table):
    # a spreadsheet made 12.30 of one value: the source still prints two decimals
    frame = tables.read_table(table(HEAD, ROW, ROW.replace("11.00", "12.3")))
    for value, printed in zip(frame["qid_se_total"], (11.00, 12.3), strict=True):
        rounding = math.hypot(0.01 / printed, 0.01 / 10) / math.sqrt(12)
        assert value == pytest.approx(math.hypot(rounding, 1e-3))


def test_a_paired_standard_error_replaces_the_floor(table):
    frame = tables.read_table(
        table("family,model,method,bits,qid,qid_se", "LLaMA-2,LLaMA-2-7B,RTN,4,0.1,0.0002")
    )
    assert frame["qid_se_total"][0] == pytest.approx(2e-4)


def test_known_models_are_completed_whatever_way_the_name_is_written(table):
    frame = tables.read_table(
        table("family,model,method,bits,qid", "LLaMA-2,meta-llama/Llama-2-7b-hf,awq,4,0.02")
    )
    row = frame.iloc[0]
    assert (row["n_params_nonembedding"], row["train_tokens"], row["vocab_size"]) == (6476271616, 2e12, 32000)
    assert (row["model"], row["checkpoint"]) == ("LLaMA-2-7B", "meta-llama/Llama-2-7b-hf")
    assert row["default"]


def test_point_releases_join_their_family(table):
    frame = tables.read_table(table("family,model,method,bits,qid", "LLaMA-3.1,LLaMA-3.1-8B,awq,4,0.02"))
    assert (frame["family"][0], frame["family_printed"][0]) == ("LLaMA-3", "LLaMA-3.1")


def test_broken_models_are_kept_but_censored(table):
    frame = tables.read_table(table(HEAD, ROW.replace("11.00", "5000"), ROW))
    assert frame["censored"][0]
    assert frame["default"][0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("3e11", "", "training tokens not disclosed"),
        ("1e9", "", "non-embedding parameter count unknown"),
        ("my-1B", "my-1B-Instruct", "instruction-tuned model"),
        ("GPTQ", "BiLLM", "mixed binarization, nominal bits"),
        ("GPTQ,4", "GPTQ,8", "effective bits outside 1.9 to 6.7"),
        ("10.00", "60000", "baseline no better than guessing"),
        ("11.00", "11.0", "perplexities printed to one decimal"),
    ],
)
def test_unusable_rows_stay_with_a_reason(table, old, new, reason):
    row = tables.read_table(table(HEAD, ROW.replace(old, new))).iloc[0]
    assert not row["default"]
    assert row["default_reason"] == reason


def test_an_unknown_method_is_kept_without_generation(table):
    row = tables.read_table(table(HEAD, ROW.replace("GPTQ", "WonderQuant"))).iloc[0]
    assert (row["method"], row["variant"], row["generation"]) == ("wonderquant", "", "unknown")
    assert math.isnan(row["effective_bits"])
    assert "bits_nominal" in row["flags"].split(";")
    assert row["default"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([HEAD.replace("family,", ""), ROW.replace("mine,", "")], ["mine.csv", "'family'"]),
        # pandas alone would take the first values for names of rows and move every column by one
        ([HEAD.replace("family,", ""), ROW], ["mine.csv", "more values than its header"]),
        ([HEAD, ROW + ",7,8"], ["mine.csv", "more values than its header"]),
        ([HEAD + ", bits", ROW + ",4"], ["mine.csv", "'bits' twice"]),
        (["family,model,method,bits", "a,b,rtn,4"], ["mine.csv", "'qid'", "ppl_fp"]),
        ([HEAD], ["mine.csv", "no rows"]),
        ([HEAD, ROW, ROW.replace("3e11", "-3e11")], ["row 2", "line 3", "train_tokens", "-3e11"]),
        ([HEAD, ROW.replace("3e11", "nan")], ["row 1", "train_tokens", "nan", "empty"]),
        ([HEAD, ROW.replace("3e11", "300B")], ["train_tokens", "300B"]),
        ([HEAD, ROW.replace("1e9", "0")], ["n_params_nonembedding", "positive"]),
        ([HEAD, ROW.replace("1e9", "inf")], ["n_params_nonembedding", "inf"]),
        ([HEAD, ROW.replace("GPTQ,4", "GPTQ,")], ["bits"]),
        ([HEAD, ROW.replace("GPTQ,4", "GPTQ,32")], ["bits", "32"]),
        ([HEAD, ROW.replace("mine,", " ,")], ["family", "empty"]),
        ([HEAD, ROW.replace("11.00", "")], ["qid", "perplexity"]),
        ([HEAD, ROW.replace("128", "0")], ["group_size", "-1"]),
        ([HEAD + ",qid", ROW + ",0.9"], ["qid", "0.9", "ppl_q"]),
        ([HEAD + ",qid_se", ROW + ",-1"], ["qid_se", "negative"]),
        ([HEAD, ROW.replace("3e11", "x"), ROW.replace("3e11", "y")], ["1 more row"]),
    ],
)
def test_bad_tables_are_refused_in_one_sentence_that_names_the_place(table, lines, words):
    with pytest.raises(BadInput) as caught:
        tables.read_table(table(*lines))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match="nowhere.csv"):
        tables.read_table(tmp_path / "nowhere.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(BadInput, match="empty.csv"):
        tables.read_table(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80,\x81\n")
    with pytest.raises(BadInput, match="binary.csv"):
        tables.read_table(tmp_path / "binary.csv")
    (tmp_path / "ragged.csv").write_text("family,model\na,b\na,b,c,d\n")
    with pytest.raises(BadInput, match="ragged.csv"):
        tables.read_table(tmp_path / "ragged.csv")


def test_uniform_bits_count_scales_and_zero_points():
    assert tables.uniform_bits(4, 128) == 4.15625
    assert tables.uniform_bits(3, 32, symmetric=True) == 3.5


def test_models_are_found_in_atlas_and_suites():
    assert tables.lookup_model("llama-3-8b") == pytest.approx(
        {"model": "LLaMA-3-8B", "family": "LLaMA-3", "n_params": 8030261248, "vocab_size": 128256,
         "n_params_nonembedding": 6979588096, "train_tokens": 1.5e13, "width": 4096}
    )  # fmt: skip
    found = tables.lookup_model("allenai/OLMo-2-1124-7B")
    assert (found["family"], found["train_tokens"]) == ("OLMo-2", 928646 * 4194304)
    assert math.isnan(tables.lookup_model("Mistral-7B")["train_tokens"])


def test_an_unknown_model_is_answered_with_close_ones():
    with pytest.raises(BadInput, match="LLaMA-3-8B"):
        tables.lookup_model("LLaMA-4-8B")
    with pytest.raises(BadInput, match="No model 'zzz'"):
        tables.lookup_model("zzz")


EXTRA = """family,model,method,bits,group_size,ppl_fp,ppl_q,n_params_nonembedding,train_tokens,vocab_size
one,A-1B,GPTQ,4,128,10.000,11.000,1e9,3e11,50000
two,B-7B,GPTQ,4,128,6.000,6.100,6.5e9,,32000
two,B-7B,GPTQ,8,128,6.000,6.001,6.5e9,,32000
"""


def test_rows_of_undisclosed_tokens_are_kept_where_asked_but_for_their_other_faults(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(EXTRA)
    plain = tables.read_table(path)
    assert plain["default"].tolist() == [True, False, False]
    kept = tables.with_extras(plain, ["latent-tokens"])
    assert kept["default"].tolist() == [True, True, False]
    assert kept["train_tokens"].isna().tolist() == [False, True, True]
    assert "bits" in kept["default_reason"][2]
    # the table given is not changed, and without the extra nothing is
    assert plain["default"].tolist() == [True, False, False]
    assert tables.with_extras(plain, []).equals(plain)


def test_unique_tokens_replace_repeated_ones_where_the_table_has_them(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(EXTRA)
    plain = tables.read_table(path)
    told = plain.assign(unique_tokens=[1.8e11, math.nan, 1e11])
    unique = tables.with_extras(told, ["unique-tokens"])
    assert unique["train_tokens"][0] == 1.8e11
    # tokens that are not disclosed stay so
    assert unique["train_tokens"].isna().tolist() == [False, True, True]
    assert tables.with_extras(told, [])["train_tokens"][0] == 3e11
    assert tables.with_extras(plain, ["unique-tokens"])["train_tokens"][0] == 3e11
