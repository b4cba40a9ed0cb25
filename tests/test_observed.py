"""Observations from words and from files: the numbers are those written, what lacks is said in one sentence."""

import math

import numpy as np
import pytest

from bayesqid.answers import draws, observed
from bayesqid.answers.observed import Observed
from bayesqid.errors import BadInput
from bayesqid.importers import sources

ONE = "tiny-llama/tiny-llama-54k@step488"


@pytest.fixture(scope="module")
def tiny():
    return sources.read_cells("tiny")


@pytest.mark.parametrize(
    ("text", "want"),
    [("4=0.05:0.004", Observed(4.0, 0.05, 0.004)), ("2.5=-1e-3:4e-3", Observed(2.5, -1e-3, 4e-3)),
     ("gptq-w4-g128=0.05:0.004", Observed("gptq-w4-g128", 0.05, 0.004))],
)  # fmt: skip
def test_an_observation_is_read(text, want):
    assert observed.parse_qid(text) == want


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "malformed"), ("4", "malformed"), ("4=0.05", "malformed"), ("=0.05:0.1", "malformed"),
     ("4=:0.1", "malformed"), ("4=0.05:", "malformed"), ("4=a:0.1", "malformed"), ("4=0.05:0.1:3", "malformed"),
     ("4:0.05=0.1", "malformed"), ("4=nan:0.1", "QiD"), ("4=inf:0.1", "QiD"), ("4=0.05:nan", "error"),
     ("4=0.05:-0.1", "error"), ("4=0.05:0", "error"), ("4=500:0.1", "QiD")],
)  # fmt: skip
def test_a_bad_observation_is_refused(text, why):
    with pytest.raises(BadInput, match=why) as caught:
        observed.parse_qid(text)
    assert "\n" not in str(caught.value)


def test_the_bounds_of_the_prior_are_read_and_bad_ones_refused():
    assert observed.parse_tokens_prior("1e9:1e16") == (1e9, 1e16)
    for text in ("", "1e9", "1e9:", "a:b", "1e16:1e9", "1e9:1e9", "nan:1e16", "1e9:inf", "-1:1e16", "0:1e16"):
        with pytest.raises(BadInput, match="tokens-prior"):
            observed.parse_tokens_prior(text)




def rows_of(cells, name):
    return cells.isel(cell=np.flatnonzero(cells["checkpoint"].to_numpy() == name))


def test_a_checkpoint_s_cells_become_its_observations(tiny):
    qids, known = observed.from_cells(tiny, ONE.upper())
    own = rows_of(tiny, ONE)
    assert len(qids) == own.sizes["cell"] > 3
    np.testing.assert_array_equal([q.qid for q in qids], own["qid"])
    np.testing.assert_array_equal([q.se for q in qids], own["qid_se"])
    assert known == {"checkpoint": ONE, "model": "tiny-llama-54k", "family": "tiny-llama",
                     "params": float(own["n_params_nonembedding"][0]), "tokens": 1998848.0}  # fmt: skip
    targets = [q.target for q in qids if q.target is not None]
    assert len(targets) == len(qids)
    first = targets[0]
    assert first.lr_phase == "constant"
    assert first.context == float(own["ctx_len"][0])
    assert first.headroom == float(own["headroom"][0])
    assert first.eval_dataset == str(own["eval_dataset"].values[0])
    assert [t.effective_bits for t in targets] == own["effective_bits"].to_numpy().tolist()
    assert [t.method for t in targets] == own["quantizer"].to_numpy().tolist()
    assert [t.per_channel for t in targets] == own["per_channel"].to_numpy().tolist()


def test_a_file_of_several_checkpoints_asks_which(tiny):
    with pytest.raises(BadInput, match=r"44 checkpoints: choose one with --checkpoint NAME \(tiny-neox.*\.\.\.\)"):
        observed.from_cells(tiny)
    with pytest.raises(BadInput, match="no checkpoint 'tiny-llama-54k@step48'.*" + ONE) as caught:
        observed.from_cells(tiny, "tiny-llama-54k@step48")
    assert "\n" not in str(caught.value)
    assert observed.from_cells(rows_of(tiny, ONE))[1]["checkpoint"] == ONE


def test_undisclosed_tokens_are_no_hindrance_but_broken_numbers_are(tiny):
    own = rows_of(tiny, ONE)
    blank = own["train_tokens"] * np.nan
    qids, known = observed.from_cells(own.assign_coords(train_tokens=blank))
    assert math.isnan(known["tokens"])
    assert observed.targets_of(qids, "gptq", family=None, params=1e9, tokens=1e12)[0].tokens == 1e12
    with pytest.raises(BadInput, match="headroom"):
        observed.from_cells(own.assign_coords(headroom=own["headroom"] * 0))
    with pytest.raises(BadInput, match="standard error"):
        observed.from_cells(own.assign(qid_se=own["qid_se"] + 100))


def test_a_diverged_cell_without_a_value_is_kept_as_diverged(tiny):
    own = rows_of(tiny, ONE).copy(deep=True)
    own["qid"][0], own["censored"][0] = np.nan, True
    qids, _ = observed.from_cells(own)
    assert qids[0].censored
    assert math.isnan(qids[0].qid)
    assert not any(q.censored for q in qids[1:])


def test_two_cells_of_one_recipe_stand_in_a_file_but_not_in_words():
    atlas = sources.read_cells("atlas")
    qids, _ = observed.from_cells(atlas, "LLaMA-2-7B")
    targets = observed.targets_of(qids, "gptq", family=None, params=1e9, tokens=1e12)
    keys = [(t.method, t.effective_bits, t.per_channel) for t in targets]
    assert len(set(keys)) < len(keys)
    with pytest.raises(BadInput, match="twice"):
        observed.targets_of([Observed(4, 0.1, 0.1)] * 2, "gptq", family=None, params=1e9, tokens=1e12)


def test_one_recipe_is_known_again_on_layers_of_another_shape():
    def target(bits, effective, method="gptq", per_channel=False):
        return draws.Target(None, 1e9, 1e12, effective, method, per_channel, bits)

    assert observed.same_recipe(target(4, 4.125), target(4, 4.139))
    assert not observed.same_recipe(target(4, 4.125), target(4, 4.156))  # zero points of an asymmetric grid
    assert not observed.same_recipe(target(4, 4.125), target(4, 4.125, "rtn"))
    assert not observed.same_recipe(target(4, 4.0), target(4, 4.0, per_channel=True))


KNOWN = {"n_params_nonembedding": 6.5e9, "family": "LLaMA-2"}


def test_words_overrule_the_model_and_the_model_the_file(tiny):
    file = {"cells": tiny, "checkpoint": ONE}
    of_file = observed.question(**file)
    assert (of_file.params, of_file.family) == (observed.from_cells(tiny, ONE)[1]["params"], "tiny-llama")
    both = observed.question(["4=0.05:0.004"], **file)
    assert both.qids == (*of_file.qids, Observed(4.0, 0.05, 0.004))
    assert observed.question(**file, params=2e9).params == 2e9
    named = observed.question(**file, known=KNOWN)
    assert (named.params, named.family, named.wanted) == (6.5e9, "LLaMA-2", False)
    assert observed.question(**file, family="OPT").family == "OPT"
    assert observed.question(**file, new_family=True).family is None


@pytest.mark.parametrize(
    ("asked", "why"),
    [({"texts": ["4=0.05:0.004"]}, "size"), ({"params": 1e9, "known": KNOWN}, "--params and --model-name"),
     ({"params": 1e9, "family": "OPT", "new_family": True}, "contradict"),
     ({"params": 1e9, "checkpoint": "x"}, "--measurements")],
)  # fmt: skip
def test_half_a_question_is_refused(asked, why):
    with pytest.raises(BadInput, match=why) as caught:
        observed.question(**asked)
    assert "\n" not in str(caught.value)


def test_a_family_that_was_not_fitted_is_taken_as_new_unless_it_was_asked_for():
    fitted = ["OPT", "LLaMA-2"]
    assert observed.family_of(observed.question(params=1e9, known=None, family="Mistral"), fitted) == ("Mistral", "")
    known = {"n_params_nonembedding": 6.5e9, "family": "Mistral"}
    family, note = observed.family_of(observed.question(known=known), fitted)
    assert family is None
    assert "Mistral was not fitted" in note
    assert observed.family_of(observed.question(known=KNOWN), fitted) == ("LLaMA-2", "")
    assert observed.family_of(observed.question(params=1e9), fitted) == (None, "")
