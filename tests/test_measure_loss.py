import json

import numpy as np
import pytest
import torch

import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import layers, load, text
from bayesqid.measure.quantizers import rtn
from bayesqid.recipe import parse


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tinymodels.tokenizer(tmp_path_factory.mktemp("tokenizer"))
    documents = [text.Document(*pair) for pair in tinymodels.documents(1)]
    return text.tokenize(documents, load.tokenizer(folder), tinymodels.VOCABULARY)


def baseline(model, tokens, most=None):
    return tinymodels.scores(model, tokens, ["none"], most=most)["none"]


@pytest.mark.parametrize("kind", sorted(tinymodels.CONFIGS))
def test_nats_are_transformers_own_cross_entropy(kind, tokens):
    model = tinymodels.model(kind)
    measured = baseline(model, tokens)
    for index in (0, 1):  # documents that fit into one window
        assert len(tokens[index]) <= tinymodels.CONTEXT
        ids = torch.from_numpy(tokens[index])[None]
        expected = model(input_ids=ids, labels=ids).loss.item() * (len(tokens[index]) - 1)
        assert measured.nats[index] == pytest.approx(expected, rel=1e-6)


def test_long_documents_score_every_token_once_window_by_window(tokens):
    model, ids = tinymodels.model("neox"), tokens[-1]
    assert len(ids) > 2 * tinymodels.CONTEXT
    expected = 0.0
    for start in range(0, len(ids) - 1, tinymodels.CONTEXT):
        end = min(start + tinymodels.CONTEXT, len(ids) - 1)
        # a short last window starts earlier, and its first tokens are not scored again
        inputs = torch.from_numpy(ids[max(0, end - tinymodels.CONTEXT) : end])[None]
        targets = torch.from_numpy(ids[start + 1 : end + 1])
        logits = model(input_ids=inputs).logits[0, start - end :].double()
        expected += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    assert baseline(model, tokens).nats[-1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", sorted(tinymodels.CONFIGS))
@pytest.mark.parametrize("most", [1, 100, 500])
def test_batch_size_does_not_matter(kind, most, tokens):
    model = tinymodels.model(kind)
    one, other = (tinymodels.scores(model, tokens, ["none", "rtn-w3"], most=size) for size in (None, most))
    total = sum(len(ids) - 1 for ids in tokens)
    for name in one:
        assert np.abs(one[name].nats - other[name].nats).sum() / total < 1e-6, "nats per token"
        assert np.abs(one[name].kl_base_q - other[name].kl_base_q).sum() / total < 1e-6
        assert np.abs(one[name].top1 - other[name].top1).max() <= 1


def test_divergences_and_agreement_are_those_computed_directly(tokens):
    model = tinymodels.model("opt")
    measured = tinymodels.scores(model, tokens, ["rtn-w3"])["rtn-w3"]
    ids = torch.from_numpy(tokens[1][:-1])[None]
    p = model(input_ids=ids).logits[0].double().softmax(-1).numpy()
    for module in layers.linears(model).values():
        module.weight.data = rtn.quantize(layers.matrix(module), None, parse("rtn-w3")).weight
    q = model(input_ids=ids).logits[0].double().softmax(-1).numpy()
    assert measured.kl_base_q[1] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-4)
    assert measured.kl_q_base[1] == pytest.approx((q * np.log(q / p)).sum(), rel=1e-4)
    assert measured.top1[1] == (p.argmax(-1) == q.argmax(-1)).sum()
    assert measured.top1[1] < len(p)


def test_the_original_against_itself_differs_by_nothing(tokens):
    measured = baseline(tinymodels.model("gpt2"), tokens)
    assert (measured.kl_base_q == 0).all()
    assert (measured.kl_q_base == 0).all()
    assert measured.top1.tolist() == [len(ids) - 1 for ids in tokens]


def test_windows_cover_each_target_once():
    ids = [np.arange(10), np.arange(1), np.arange(100, 109)]
    made = text.windows(ids, 4)
    assert [window.document for window in made] == [0, 0, 0, 2, 2]
    assert np.concatenate([w.targets for w in made if w.document == 0]).tolist() == list(range(1, 10))
    assert np.concatenate([w.targets for w in made if w.document == 2]).tolist() == list(range(101, 109))
    # the last window starts earlier: what it scores sees as much text as the rest
    assert [(len(w.inputs), len(w.targets)) for w in made] == [(4, 4), (4, 4), (4, 1), (4, 4), (4, 4)]
    assert all((w.inputs[-len(w.targets) :] + 1 == w.targets).all() for w in made)
    assert all((np.diff(w.inputs) == 1).all() for w in made)
    assert max(len(w.inputs) for w in made) == 4


def test_every_document_starts_with_the_separator(tokens, tmp_path):
    assert all(ids[0] == 256 for ids in tokens)
    texts = dict(tinymodels.documents(1))
    assert [len(ids) - 1 for ids in tokens] == [len(value.encode()) for value in texts.values()]


def test_documents_are_cut_at_whole_characters():
    cut = text.cut([text.Document("a", "naïve"), text.Document("b", "ok")], 3)
    assert [document.text for document in cut] == ["na", "ok"]


def test_calibration_rows_follow_the_seed_and_the_count(tokens):
    one = text.calibration(tokens, 32, 5, seed=0)
    assert one.shape == (5, 32)
    assert np.array_equal(one, text.calibration(tokens, 32, 5, seed=0))
    assert not np.array_equal(one, text.calibration(tokens, 32, 5, seed=1))
    whole = text.calibration(tokens, 32, 10_000, seed=0)
    assert len(whole) == sum(map(len, tokens)) // 32
    with pytest.raises(BadInput, match="fewer than one window"):
        text.calibration(tokens[:1], 4096, 5, seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no documents"),
        ('{"id": "a", "text": "x"}\nnot json\n', "Line 2 .* not a JSON object"),
        ('{"id": "a"}\n', "Line 1 .* not a JSON object"),
        ('{"id": "a", "text": ""}\n', "Line 1 .* no text"),
        ('["a"]\n', "Line 1 .* not a JSON object"),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', "share an id"),
    ],
)
def test_text_files_that_cannot_be_used_are_named(tmp_path, content, message):
    path = tmp_path / "text.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=message):
        text.read(path)
    with pytest.raises(BadInput, match="no text file"):
        text.read(tmp_path / "missing.jsonl")


def test_text_with_line_separators_inside_a_string_is_one_document(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [document.text for document in text.read(path)] == ["one\u2028two"]


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tokenizer = load.tokenizer(tinymodels.tokenizer(tmp_path))
    with pytest.raises(BadInput, match="embedding has 100 rows"):
        text.tokenize([text.Document("a", "text")], tokenizer, 100)
