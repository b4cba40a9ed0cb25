"""Truth: questions written out by hand; a sentence that names line and column for all that cannot be meant."""

import math

import numpy as np
import pytest

from bayesqid.answers import asking
from bayesqid.answers.draws import Target
from bayesqid.errors import BadInput
from level_posterior import make

POSTERIOR = make()
KNOWN = {
    "M-7B": {"model": "M-7B", "family": "F1", "n_params_nonembedding": 6.5e9, "train_tokens": 2e12},
    "Secret-7B": {"model": "Secret-7B", "family": "other", "n_params_nonembedding": 6e9, "train_tokens": math.nan},
}


def lookup(name):
    if name in KNOWN:
        return KNOWN[name]
    raise BadInput(f"No model {name!r} is known.")


def read(tmp_path, text, **words):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return asking.asked(POSTERIOR, path, lookup, **words)


def test_a_range_of_tokens_is_evenly_spaced_in_its_logarithm_and_holds_its_ends():
    counts = asking.token_counts(None, "1e11:1e14", 4)
    assert counts == pytest.approx([1e11, 1e12, 1e13, 1e14], rel=1e-12)
    counts = asking.token_counts(None, (3e11, 7e13))
    assert (len(counts), counts[0], counts[-1]) == (13, 3e11, 7e13)
    assert np.ptp(np.diff(np.log(counts))) < 1e-12
    assert asking.token_counts(None) == [1e14]
    assert asking.token_counts(2e12) == [2e12]


def test_rows_run_over_sizes_then_bits_then_tokens():
    found = asking.targets(POSTERIOR, tokens_range="1e11:1e12", points=2)
    assert [(t.params, t.bits, t.tokens) for t in found[:7]] == [
        (1e9, 2, 1e11), (1e9, 2, 1e12), (1e9, 3, 1e11), (1e9, 3, 1e12), (1e9, 4, 1e11), (1e9, 4, 1e12), (7e9, 2, 1e11)
    ]  # fmt: skip
    assert len(found) == 24


@pytest.mark.parametrize(
    ("words", "why"),
    [({"tokens": 1e12, "tokens_range": "1e11:1e12"}, "--tokens and --tokens-range both"),
     ({"points": 5}, "--points counts the tokens of --tokens-range"),
     *(({"tokens_range": text}, "--tokens-range is .*: write LOW:HIGH")
       for text in ("1e11", "1e11:1e12:1e13", "a:b", ":", "", "1e11:", (1e11,), (None, 1e12))),
     ({"tokens_range": "1e12:1e11"}, "runs from 1e.12 to 1e.11: give the smaller"),
     ({"tokens_range": "1e12:1e12"}, "give the smaller"),
     *(({"tokens_range": f"1e11:{end}"}, "An end of --tokens-range is") for end in ("inf", "nan", "1e400", "-5", "0")),
     *(({"tokens_range": "1e11:1e12", "points": n}, f"--points is {n}: give a number from 2") for n in (1, 0, -3, 201)),
     ({"population": True, "new_family": True}, "--new-family and --population contradict"),
     ({"population": True, "family": "F0"}, "--family and --population contradict")],
)  # fmt: skip
def test_a_question_that_cannot_be_meant_is_refused(words, why):
    with pytest.raises(BadInput, match=why) as caught:
        asking.targets(POSTERIOR, **words)
    assert "\n" not in str(caught.value)


def test_the_population_goes_before_the_family_of_a_known_model():
    found = asking.targets(POSTERIOR, known=KNOWN["M-7B"], population=True)
    assert {(t.family, t.population, t.of) for t in found} == {(None, True, "population")}
    assert {(t.family, t.of) for t in asking.targets(POSTERIOR, known=KNOWN["M-7B"])} == {("F1", "F1")}


def test_a_table_of_targets_is_read_row_by_row(tmp_path):
    text = """params, tokens,bits,recipe,family,method,lr_phase,model
70e9,1e14,4,,,,,

3e9,1e12,,rtn-w3-g32,f0,,constant,
1e9,1e12,2.5,,new,rtn,,
1e9,1e12,3,,population,,,
,,3,,,,,M-7B
,5e12,3,,new,,,Secret-7B
"""
    rest = {"lr_phase": "annealed"}
    assert read(tmp_path, text) == [
        Target(None, 70e9, 1e14, 4.125, "gptq", bits=4.0, **rest),
        Target("F0", 3e9, 1e12, 3.5, "rtn", bits=3, lr_phase="constant"),
        Target(None, 1e9, 1e12, 2.625, "rtn", bits=2.5, **rest),
        Target(None, 1e9, 1e12, 3.125, "gptq", bits=3.0, population=True, **rest),
        Target("F1", 6.5e9, 2e12, 3.125, "gptq", bits=3.0, **rest),
        Target(None, 6e9, 5e12, 3.125, "gptq", bits=3.0, **rest),
    ]  # fmt: skip


def test_words_fill_what_a_table_leaves_empty(tmp_path):
    text = "params,tokens,bits,family\n1e9,1e12,3,\n1e9,1e12,3,F0\n"
    found = read(tmp_path, text, family="f1", method="rtn", lr_phase="decaying")
    assert [(t.family, t.method, t.lr_phase) for t in found] == [("F1", "rtn", "decaying"), ("F0", "rtn", "decaying")]
    assert [t.of for t in read(tmp_path, text, population=True)] == ["population", "F0"]
    model = "model,bits\nM-7B,3\n"
    assert [t.of for t in read(tmp_path, model)] == ["F1"]
    assert [t.of for t in read(tmp_path, model, new_family=True)] == ["new"]
    # a spreadsheet's byte-order mark and quotes are no part of a name or a number
    assert read(tmp_path, '\ufeff"params","tokens","bits"\r\n"1e9","1e12","3"\r\n')[0].params == 1e9


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "line 1 has .* no header: use model, params"),
     ("params,tokens,bits\n", "t.csv has a header but no rows"),
     ("params,tokens,bitz\n1,2,3\n", "line 1 has the unknown column 'bitz'"),
     ("params,tokens,bits,bits\n1,2,3,3\n", "line 1 has a column twice"),
     ("params,tokens,bits\n1e9,1e12,3\n1e9,1e12\n", "t.csv, line 3, column bits: give either bits or recipe"),
     ("params,tokens,bits\n1e9,1e12,3,4\n", "line 2 has more cells than the header"),
     ("params,tokens,bits\n1e9,1e12,3\n\n-5,1e12,3\n", "t.csv, line 4, column params: it is -5: give a number between"),
     ("params,tokens,bits\n1e9,inf,3\n", "line 2, column tokens: it is inf: give a number"),
     ("params,tokens,bits\n1e9,1e400,3\n", "column tokens: it is inf"),
     ("params,tokens,bits\n1e9,many,3\n", "line 2, column tokens: 'many' is not a number"),
     ("params,tokens,bits\n1e9,,3\n", "line 2, column tokens: it is empty"),
     ("params,tokens,bits\n1e9,1e12,17\n", "line 2, column bits: bits is 17: give a number from 1 to 16"),
     ("params,tokens,bits\n1e9,1e12,nan\n", "column bits: bits is nan"),
     ("params,tokens,recipe\n1e9,1e12,rtn-w7\n", "line 2, column recipe: Recipe 'rtn-w7' asks for 7 bits"),
     ("params,tokens,recipe\n1e9,1e12,none\n", "column recipe: Recipe 'none' is the baseline"),
     ("params,tokens,bits,recipe\n1e9,1e12,3,rtn-w3\n", "column bits: give either bits or recipe"),
     ("params,tokens,recipe,method\n1e9,1e12,rtn-w3,gptq\n", "column method: the recipe names its method"),
     ("params,tokens,bits,method\n1e9,1e12,3,magic\n", "line 2, column method: The quantizer 'magic' is not known"),
     ("params,tokens,bits,family\n1e9,1e12,3,FF0\n", "line 2, column family: Family 'FF0' is not in this posterior"),
     ("params,tokens,bits,lr_phase\n1e9,1e12,3,warm\n", "line 2, column lr_phase: --lr-phase 'warm' is not known"),
     ("model,tokens,bits\nNobody,1e12,3\n", "line 2, column model: No model 'Nobody' is known"),
     ("model,bits\nSecret-7B,3\n", "line 2, column tokens: it is empty, and no model tells them"),
     ("model,params,tokens,bits\nM-7B,1e9,1e12,3\n", "column params: give either params or model"),
     ("tokens,bits\n1e12,3\n", "column params: give either params or model"),
     ('params,tokens,bits\n"1e9,1e12,3\n', "cannot be read as CSV"),
     ("params,tokens,bits\n" + "1e9,1e12,3\n" * 1001, "has more than 1000 rows: split it")],
)  # fmt: skip
def test_a_bad_line_is_one_sentence_that_names_it(tmp_path, text, why):
    with pytest.raises(BadInput, match=why) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "t.csv" in str(caught.value)


def test_a_table_and_words_that_say_the_same_contradict_each_other(tmp_path):
    text = "params,tokens,bits\n1e9,1e12,3\n"
    for name, value, option in (("tokens", 1e12, "--tokens"), ("tokens_range", "1e9:1e10", "--tokens-range"),
                                ("known", KNOWN["M-7B"], "--model-name"), ("recipes", "rtn-w3", "--recipes"),
                                ("points", 3, "--points"), ("bits", 3.0, "--bits")):  # fmt: skip
        with pytest.raises(BadInput, match=f"--targets and {option} both"):
            read(tmp_path, text, **{name: value})
    with pytest.raises(BadInput, match="There is no file .*nowhere.csv"):
        asking.asked(POSTERIOR, tmp_path / "nowhere.csv", lookup)
    (tmp_path / "t.csv").write_bytes(b"params,tokens,bits\n\xff\xfe,1,2\n")
    with pytest.raises(BadInput, match=r"t.csv cannot be read as CSV"):
        asking.asked(POSTERIOR, tmp_path / "t.csv", lookup)
