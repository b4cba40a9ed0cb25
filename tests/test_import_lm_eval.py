"""lm-evaluation-harness: against bayesqid's own engine, sums done by hand, and runs that do not pair."""

import json
import math

import numpy as np
import pytest

from bayesqid import cells
from bayesqid.errors import BadInput
from importing import HERE, MINE, TINY, excluded, read, size, write_run

BASE = [6.0, 11.5, 5.25, 16.0]
WORSE = [6.5, 13.5, 6.0, 18.0]
TEXTS = ["one text", "another text, longer", "a third", "and the last of these texts"]


@pytest.fixture
def runs(tmp_path):
    """Folders of a baseline and of a run whose name tells its recipe."""
    base = write_run(tmp_path / "base", BASE, texts=TEXTS)
    return base, write_run(tmp_path / "q", WORSE, "my-1B-gptq-w4-g128", texts=TEXTS)


def test_a_real_run_agrees_with_our_own_measurement_of_the_same_texts():
    truth = json.loads((HERE / "lm-eval" / "measured.json").read_text())
    made = read(HERE / "lm-eval", **TINY, tokens_per_byte=1)
    assert made.sizes["cell"] == 2
    for one, name in ((made.isel(cell=0), "rtn-w3"), (made.isel(cell=1), "gptq-w4-g32")):
        assert one["quantizer"].item() == name.split("-")[0]
        assert one["qid"].item() == pytest.approx(truth["qid"][name], abs=2e-5)
        assert one["qid_se"].item() == pytest.approx(math.hypot(truth["paired_se"][name], cells.NOISE_FLOOR), rel=1e-3)
        assert one["loss16"].item() == pytest.approx(truth["loss16"], abs=2e-5)
    assert made["effective_bits"].values.tolist() == [3.0, truth["effective_bits"]["gptq-w4-g32"]]
    assert (made["eval_dataset"] == "snippets").all()
    assert (made["ctx_len"] == 256).all()
    assert excluded(made) == {"word_perplexity: a word is not a token": 2}


def test_documents_are_paired_by_the_ratio_estimator_done_by_hand(runs):
    made = read(*runs, **MINE, tokens_per_byte=0.25)
    tokens = np.array([len(text) for text in TEXTS]) / 4
    change = np.array(WORSE) - np.array(BASE)
    qid = change.sum() / tokens.sum()
    error = np.sqrt(4 / 3 * ((change - qid * tokens) ** 2).sum()) / tokens.sum()
    assert made["qid"].item() == pytest.approx(qid, rel=1e-12)
    assert made["qid_se"].item() == pytest.approx(math.hypot(error, 1e-3), rel=1e-12)
    assert made["loss16"].item() == pytest.approx(sum(BASE) / tokens.sum(), rel=1e-12)
    assert (made["method"].item(), made["bits"].item(), made["group_size"].item()) == ("gptq", 4, 128)
    assert made["effective_bits"].item() == pytest.approx(4.125)


def test_the_order_of_documents_does_not_matter(runs):
    first = read(*runs, **MINE, tokens_per_byte=0.25)
    (file,) = runs[1].glob("samples_*")
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    assert read(*runs, **MINE, tokens_per_byte=0.25)["qid"].item() == pytest.approx(first["qid"].item(), rel=1e-12)


def test_without_samples_the_loss_per_byte_serves_and_the_error_is_the_floor(runs):
    paired = read(*runs, **MINE, tokens_per_byte=0.25)
    next(runs[0].glob("samples_*")).unlink()
    made = read(*runs, **MINE, tokens_per_byte=0.25)
    assert made["qid"].item() == pytest.approx(paired["qid"].item(), rel=1e-9)
    assert made["qid_se"].item() == pytest.approx(math.hypot(1e-3, 6e-4))
    assert made["loss16"].item() == pytest.approx(sum(BASE) / size(TEXTS) / 0.25, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {"texts": 2.0}}, "version.*2.0"),
        ({"n-samples": {"texts": {"original": 4, "effective": 3}}}, "documents"),
        ({"n-shot": {"texts": 5}}, "shots"),
        ({"max_length": 4096}, "longest input.*2048 and 4096"),
        ({"chat_template_sha": "abc"}, "chat template"),
        ({"task_hashes": {"texts": "abc"}}, "hashes"),
        ({"configs": {"texts": {"output_type": "loglikelihood_rolling", "doc_to_text": "Say: "}}}, "configuration"),
        ({"results": {"other": {}}, "configs": {"other": {"output_type": "loglikelihood_rolling"}}}, "can be used"),
    ],
)
def test_runs_that_were_not_evaluated_alike_are_refused(tmp_path, change, words):
    base = write_run(tmp_path / "base", BASE, texts=TEXTS)
    other = write_run(tmp_path / "q", WORSE, "my-1B-rtn-w4", texts=TEXTS, **change)
    with pytest.raises(BadInput, match=words):
        read(base, other, **MINE, tokens_per_byte=1)


def test_another_revision_of_the_same_model_is_refused(tmp_path):
    base = write_run(tmp_path / "base", BASE, texts=TEXTS)
    args = {"model_args": {"pretrained": "my-1B", "load_in_4bit": True}, "model_revision": "step3"}
    other = write_run(tmp_path / "q", WORSE, texts=TEXTS, config=args)
    with pytest.raises(BadInput, match="revision step3.*main"):
        read(base, other, **MINE, tokens_per_byte=1)


def test_mixed_baselines_are_refused_until_one_is_named(tmp_path, runs):
    second = write_run(tmp_path / "base2", BASE, "my-1B-copy", texts=TEXTS)
    with pytest.raises(BadInput, match=r"2 .*--baseline"):
        read(*runs, second, **MINE, tokens_per_byte=1)
    assert read(runs[1], **MINE, tokens_per_byte=1, baseline=runs[0]).sizes["cell"] == 1
    with pytest.raises(BadInput, match="quantized runs"):
        read(runs[0], **MINE, tokens_per_byte=1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda lines: [*lines, lines[0]], "stands there twice"),
        (lambda lines: lines[:-1], "are not the 3"),
        (lambda lines: [line.replace("hash of one", "hash of none") for line in lines], "another text"),
        (lambda lines: [*lines[:-1], lines[-1][:40]], "line 4 is not valid JSON"),
        (lambda lines: [line.replace('"filtered_resps": ["', '"filtered_resps": ["x') for line in lines], "log-likeli"),
        (lambda lines: [line.replace("filtered_resps", "resp") for line in lines], "lacks filtered_resps"),
        (lambda lines: [line.replace("arguments", "args") for line in lines], "log_samples"),
        (lambda lines: ["[" * 5000], "line 1 is not valid JSON"),
        (lambda lines: ["7"], "holds a int"),
        (lambda lines: ["x" * (10 * 2**20 + 5)], "million characters"),
    ],
)
def test_spoilt_samples_are_refused(runs, spoil, words):
    (file,) = runs[1].glob("samples_*")
    file.write_text("\n".join(spoil(file.read_text().splitlines())) + "\n")
    with pytest.raises(BadInput, match=words):
        read(*runs, **MINE, tokens_per_byte=1)


@pytest.mark.parametrize("loss", ["nan", "-inf", "inf"])
def test_a_diverged_run_is_left_out_with_its_reason(runs, tmp_path, loss):
    (file,) = runs[1].glob("samples_*")
    file.write_text(file.read_text().replace('"-6.5"', f'"{loss}"'))
    other = write_run(tmp_path / "q2", WORSE, "my-1B-rtn-w4-g32", texts=TEXTS)
    made = read(*runs, other, **MINE, tokens_per_byte=1)
    assert made["quantizer"].values.tolist() == ["rtn"]
    assert excluded(made)["a loss that is not finite"] == 1


def test_tasks_without_a_loss_of_text_are_refused_with_the_reason(tmp_path):
    results = {"arc": {"acc,none": 0.5}, "lambada": {"perplexity,none": 5.0, "acc,none": 0.6}, "wiki": {
        "word_perplexity,none": 10.0}}  # fmt: skip
    configs = {"arc": {"output_type": "multiple_choice"}, "lambada": {"output_type": "loglikelihood"},
               "wiki": {"output_type": "loglikelihood_rolling"}}  # fmt: skip
    folders = [write_run(tmp_path / name, BASE, name, results=results, configs=configs) for name in ("m", "m-rtn-w4")]
    with pytest.raises(BadInput, match=r"can be used.*running text.*perplexity of target words.*a word is not a token"):
        read(*folders, **MINE, tokens_per_byte=1)


def test_bitsandbytes_is_read_from_the_models_arguments_and_others_are_asked_for(tmp_path):
    base = write_run(tmp_path / "base", BASE, texts=TEXTS)
    args = {"pretrained": "my-1B", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    four = write_run(tmp_path / "q", WORSE, texts=TEXTS, config={"model_args": args, "model_revision": "main"})
    made = read(base, four, **MINE, tokens_per_byte=1)
    assert (made["quantizer"].item(), made["effective_bits"].item()) == ("bnb-nf4", 4.5)
    args = {"pretrained": "my-1B-int4", "gptqmodel": True}
    told = write_run(tmp_path / "q2", WORSE, texts=TEXTS, config={"model_args": args, "model_revision": "main"})
    with pytest.raises(BadInput, match="--recipe"):
        read(base, told, **MINE, tokens_per_byte=1)
    made = read(base, told, **MINE, tokens_per_byte=1, recipe="gptq-w4-g128-act", effective_bits=4.2)
    assert (made["quantizer"].item(), made["effective_bits"].item()) == ("gptq-actorder", 4.2)


def test_arguments_in_the_older_form_and_older_results_of_a_run(tmp_path, runs):
    args = {"model_args": "pretrained=my-1B-gptq-w4-g128,dtype=float32", "model_revision": "main", "limit": None}
    write_run(runs[1], BASE, texts=TEXTS, config=args, date="2025-01-01")
    old = next(runs[1].glob("results_2025*"))
    data = json.loads(old.read_text())
    data["config"]["model_args"] = {"pretrained": "my-1B-gptq-w4-g128"}
    data["date"] = 0.5
    old.write_text(json.dumps(data))
    made = read(*runs, **MINE, tokens_per_byte=1)
    assert made.sizes["cell"] == 1
    assert made["qid"].item() > 0
    assert excluded(made)["an older result of the same run"] == 1
    # the arguments as one text, as they were written before 0.4.10
    for file in (old, *runs[1].glob("results_2026*")):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"config": args}))
    assert read(*runs, **MINE, tokens_per_byte=1).drop_attrs().identical(made.drop_attrs())
    data["date"] = "yesterday"
    old.write_text(json.dumps(data))
    with pytest.raises(BadInput, match="date"):
        read(*runs, **MINE, tokens_per_byte=1)


@pytest.mark.parametrize(
    "spoil", [{"results": []}, {"configs": 3}, {"config": {}}, {"config": {"model_args": 7}}, {"results": {"texts": 1}},
              {"results": {"texts": {"bits_per_byte,none": "x"}}},
              {"results": {"texts": {"bits_per_byte,none": 1e999}}}]
)  # fmt: skip
def test_results_of_wrong_types_are_refused(tmp_path, spoil):
    base = write_run(tmp_path / "base", BASE, texts=TEXTS)
    other = write_run(tmp_path / "q", WORSE, "my-1B-rtn-w4", texts=TEXTS, **spoil)
    next(other.glob("samples_*")).unlink()
    with pytest.raises(BadInput):
        read(base, other, **MINE, tokens_per_byte=1)


def test_what_is_stated_of_one_run_is_not_put_on_two():
    with pytest.raises(BadInput, match="2 runs: import them one by one"):
        read(HERE / "lm-eval", **TINY, tokens_per_byte=1, recipe="rtn-w4")
    (base,) = (HERE / "lm-eval").glob("*25k")
    (other,) = (HERE / "lm-eval").glob("*w3")
    made = read(other, baseline=base, **TINY, tokens_per_byte=1, effective_bits=3.375)
    assert made["effective_bits"].item() == 3.375
