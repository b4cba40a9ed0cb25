"""llama.cpp: logs made from losses that are known, and published ones."""

import math

import numpy as np
import pytest

from bayesqid.errors import BadInput
from bayesqid.importers import llama_cpp
from importing import HERE, excluded, read, write_log

KL = HERE / "llama.cpp" / "llama-3-8b-q4_k_m-kl.log"
F16 = HERE / "llama.cpp" / "pythia-2.8b-f16.log"
Q4 = HERE / "llama.cpp" / "pythia-2.8b-q4_0.log"


def test_a_kl_divergence_log_gives_its_paired_error_and_the_models_facts():
    made = read(KL)
    assert made["qid"].item() == 0.027771
    assert made["qid_se"].item() == pytest.approx(math.hypot(0.000723, 1e-3))
    assert made["loss16"].item() == pytest.approx(math.log(6.231633))
    assert (made["family"].item(), made["train_tokens"].item()) == ("LLaMA-3", 1.5e13)
    assert (made["quantizer"].item(), made["bits"].item(), made["effective_bits"].item()) == ("llamacpp-k", 4, 4.89)
    assert made["ctx_len"].item() == 512


def test_plain_logs_give_the_ratio_that_their_final_estimates_give():
    made = read(F16, Q4, model="pythia-2.8b")
    assert made["qid"].item() == pytest.approx(math.log(10.9657 / 10.3475), abs=1e-5)
    assert made["loss16"].item() == pytest.approx(math.log(10.3475), abs=1e-5)
    # the printed errors, taken for independent, are more than ten times as wide
    unpaired = math.hypot(0.42292 / 10.3475, 0.44766 / 10.9657)
    assert made["qid_se"].item() * 10 < unpaired
    assert made.identical(read(Q4, baseline=F16, model="pythia-2.8b").assign_attrs(made.attrs))


def test_chunks_are_paired_to_what_rounding_leaves(tmp_path):
    rng = np.random.default_rng(3)
    base = rng.normal(2.0, 0.4, 60)
    change = rng.normal(0.05, 0.02, 60)
    logs = write_log(tmp_path / "b.log", base, "F16"), write_log(tmp_path / "q.log", base + change)
    made = read(*logs)
    assert made["qid"].item() == pytest.approx(change.mean(), abs=2e-5)
    error = change.std(ddof=1) / math.sqrt(60)
    assert made["qid_se"].item() == pytest.approx(math.hypot(error, 1e-3), rel=0.02)
    assert made["effective_bits"].item() == 4.89


@pytest.mark.parametrize(
    ("printed", "kind", "quantizer"),
    [
        ("Q4_K - Medium", "Q4_K_M", "llamacpp-k"),
        ("Q2_K - Medium", "Q2_K", "llamacpp-k"),
        ("Q2_K - Small", "Q2_K_S", "llamacpp-k"),
        ("Q3_K - Large", "Q3_K_L", "llamacpp-k"),
        ("mostly Q5_K - Small", "Q5_K_S", "llamacpp-k"),
        ("(guessed) Q6_K", "Q6_K", "llamacpp-k"),
        ("IQ2_XS - 2.3125 bpw", "IQ2_XS", "llamacpp-iq"),
        ("IQ3_S mix - 3.66 bpw", "IQ3_M", "llamacpp-iq"),
        ("IQ4_NL - 4.5 bpw", "IQ4_NL", "llamacpp-iq"),
        ("Q5_1", "Q5_1", "llamacpp-legacy"),
    ],
)
def test_types_are_read_in_the_programs_words(tmp_path, printed, kind, quantizer):
    losses = np.array([2.0, 2.1, 1.9, 2.2])
    logs = write_log(tmp_path / "b.log", losses, "all F32"), write_log(tmp_path / "q.log", losses + 0.1, printed)
    assert llama_cpp._log(logs[1]).type == kind
    assert read(*logs)["quantizer"].item() == quantizer


@pytest.mark.parametrize(
    ("line", "kind", "bits"),
    [
        ("file size   = 4.58 GiB (4.89 BPW)", "Q4_K - Medium", 4.89),
        ("file size   = 780.1 MiB (5.21 BPW) ", "Q4_K - Medium", 5.21),
        ("nothing", "Q4_K - Medium", 4.84),
        ("nothing", "IQ2_XS - 2.3125 bpw", 2.3125),
        ("repeating layers = 1.923 GiB (2.366 BPW, 6.980 B parameters)", "IQ2_XS - 2.3125 bpw", 2.366),
    ],
)
def test_effective_bits_are_the_layers_else_the_files_else_the_types(tmp_path, line, kind, bits):
    losses = np.array([2.0, 2.1, 1.9, 2.2])
    logs = write_log(tmp_path / "b.log", losses, "BF16"), write_log(tmp_path / "q.log", losses + 0.1, kind, line)
    assert read(*logs)["effective_bits"].item() == bits


def test_activation_weighting_is_seen(tmp_path):
    path = tmp_path / "i.log"
    path.write_text("llama_model_loader: - kv 31: quantize.imatrix.file str = x.dat\n" + KL.read_text())
    assert read(path)["quantizer"].item() == "llamacpp-k-imatrix"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("564 chunks", "564 chunks", None),
        ("±", "+/-", None),
        ("Mean PPL(base)", "Mean", None),
        ("file type|ftype", "", None),
        ("ftype      = Q4_K - Medium", "size is unknown", "lost the line with the file type"),
        ("ftype      = Q4_K - Medium", "ftype = unknown, may not work", "bits are not known"),
        ("0.027771 ±   0.000723", "1e999 ±   0.000723", "not a number"),
        ("0.027771 ±   0.000723", "0.000000 ±       -nan", "not a number"),
        ("Mean ln(PPL(Q)/PPL(base))", "Mean", "0 final results"),
        ("(4.89 BPW)", "(489 BPW)", "bits outside"),
    ],
)
def test_logs_with_lines_changed(tmp_path, old, new, words):
    path = tmp_path / "x.log"
    path.write_text(KL.read_text().replace(old, new))
    if words is None:
        assert read(path)["qid"].item() == 0.027771
    else:
        with pytest.raises(BadInput, match=words):
            read(path, kind="llama.cpp")


def test_logs_that_do_not_pair_are_refused(tmp_path):
    losses = np.array([2.0, 2.1, 1.9, 2.2])
    base = write_log(tmp_path / "b.log", losses, "F16")
    long = write_log(tmp_path / "long.log", [*losses, 2.0])
    wide = write_log(tmp_path / "wide.log", losses + 0.1, context=2048)
    cut = write_log(tmp_path / "cut.log", losses + 0.1)
    cut.write_text(cut.read_text().replace("[2]", "[7]"))
    for other, words in ((long, "chunks"), (wide, "context.*512 and 2048"), (cut, "lost running perplexities")):
        with pytest.raises(BadInput, match=words):
            read(base, other)
    with pytest.raises(BadInput, match="0 logs of unquantized models"):
        read(write_log(tmp_path / "q.log", losses + 0.1))
    with pytest.raises(BadInput, match="2 logs of unquantized models"):
        read(base, write_log(tmp_path / "b2.log", losses, "BF16"), tmp_path / "q.log")
    with pytest.raises(BadInput, match="Only logs of unquantized"):
        read(base)
    two = tmp_path / "two.log"
    two.write_text(base.read_text() * 2)
    with pytest.raises(BadInput, match="2 final results"):
        read(two, kind="llama.cpp")


def test_one_chunk_has_no_error_and_is_left_out(tmp_path):
    base = write_log(tmp_path / "b.log", [2.0], "F16")
    one = write_log(tmp_path / "q.log", [2.1])
    with pytest.raises(BadInput, match="fewer than two chunks"):
        read(base, one)
    both = read(base, one, KL)
    assert excluded(both) == {"fewer than two chunks, so no error": 1}


def test_a_coloured_log_with_foreign_bytes_is_read(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(b"\x1b[32m\xff\xfe\x1b[0m\n" + KL.read_bytes().replace(b"Mean ln", b"\x1b[0mMean ln"))
    assert read(path)["qid"].item() == 0.027771
