import json

import numpy as np
import pytest
import torch

import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import calibrate, layers, load, loss, text
from bayesqid.recipe import parse

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tinymodels.tokenizer(tmp_path_factory.mktemp("tokenizer"))
    documents = [text.Document(*pair) for pair in tinymodels.documents(1)]
    return text.tokenize(documents, load.tokenizer(folder), tinymodels.VOCABULARY)


def scores(model, weights, tokens, most=None, kept_bytes=2**30):
    windows = text.windows(tokens, tinymodels.CONTEXT)
    with torch.inference_mode():
        work = loss.batches(windows, tinymodels.VOCABULARY, CPU, most)
        kept = loss.keep(loss.baseline(model, work), kept_bytes)
        inside = layers.linears(model)
        before = layers.originals(inside)
        return loss.score(
            model, work, kept, len(tokens),
            quantized=(lambda: layers.install(inside, weights)) if weights else None,
            original=lambda: layers.install(inside, before),
        )  # fmt: skip


def quantized(model, recipe="rtn-w3"):
    return calibrate.quantize(model, parse(recipe), None)[0]


@pytest.mark.parametrize("kind", sorted(tinymodels.CONFIGS))
def test_nats_are_transformers_own_cross_entropy(kind, tokens):
    model = tinymodels.model(kind)
    measured = scores(model, {}, tokens)
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
        inputs = torch.from_numpy(ids[start : min(start + tinymodels.CONTEXT, len(ids) - 1)])[None]
        targets = torch.from_numpy(ids[start + 1 : start + 1 + inputs.shape[1]])
        logits = model(input_ids=inputs).logits[0].double()
        expected += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    assert scores(model, {}, tokens).nats[-1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", sorted(tinymodels.CONFIGS))
@pytest.mark.parametrize("most", [1, 100, 500])
def test_batch_size_does_not_matter(kind, most, tokens):
    model = tinymodels.model(kind)
    weights = quantized(model)
    one, other = scores(model, weights, tokens), scores(model, weights, tokens, most)
    assert np.allclose(one.nats, other.nats, rtol=1e-6)
    assert np.allclose(one.kl_base_q, other.kl_base_q, rtol=1e-4)
    assert np.abs(one.top1 - other.top1).max() <= 1


def test_baseline_that_is_not_kept_is_computed_again_to_the_same(tokens):
    model = tinymodels.model("llama")
    weights = quantized(model)
    kept, again = scores(model, weights, tokens), scores(model, weights, tokens, kept_bytes=0)
    assert all(np.array_equal(a, b) for a, b in zip(kept, again, strict=True))


def test_divergences_and_agreement_are_those_computed_directly(tokens):
    model = tinymodels.model("opt")
    before, weights = layers.originals(layers.linears(model)), quantized(model)
    measured = scores(model, weights, tokens)
    ids = torch.from_numpy(tokens[1][:-1])[None]
    p = model(input_ids=ids).logits[0].double().softmax(-1).numpy()
    layers.install(layers.linears(model), weights)
    q = model(input_ids=ids).logits[0].double().softmax(-1).numpy()
    layers.install(layers.linears(model), before)
    assert measured.kl_base_q[1] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-4)
    assert measured.kl_q_base[1] == pytest.approx((q * np.log(q / p)).sum(), rel=1e-4)
    assert measured.top1[1] == (p.argmax(-1) == q.argmax(-1)).sum()
    assert measured.top1[1] < len(p)


def test_the_original_against_itself_differs_by_nothing(tokens):
    measured = scores(tinymodels.model("gpt2"), {}, tokens)
    assert (measured.kl_base_q == 0).all()
    assert (measured.kl_q_base == 0).all()
    assert measured.top1.tolist() == [len(ids) - 1 for ids in tokens]


def test_weights_are_put_back_after_scoring(tokens):
    model = tinymodels.model("neox")
    before = model.state_dict()["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"].clone()
    scores(model, quantized(model), tokens)
    assert torch.equal(model.state_dict()["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"], before)


def test_windows_cover_each_target_once():
    ids = [np.arange(10), np.arange(1), np.arange(100, 109)]
    made = text.windows(ids, 4)
    assert [window.document for window in made] == [0, 0, 0, 2, 2]
    assert np.concatenate([w.targets for w in made if w.document == 0]).tolist() == list(range(1, 10))
    assert np.concatenate([w.targets for w in made if w.document == 2]).tolist() == list(range(101, 109))
    assert all((w.inputs + 1 == w.targets).all() for w in made)
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
