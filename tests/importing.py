"""What the tests of importers share: the fixtures, a way to import, results of lm-eval and llama.cpp made to order."""

import json
from pathlib import Path

import numpy as np

from bayesqid import importers
from bayesqid.importers.formats import Given

HERE = Path(__file__).parent / "fixtures" / "import"
TINY = {"family": "tiny-neox", "params": 25472, "tokens": 7999488, "vocabulary": 256, "lr_phase": "constant"}
MINE = {"model": "my-1B", "family": "mine", "params": 1e9, "tokens": 3e11, "vocabulary": 50000}


def read(*paths, kind=None, **given):
    """Cells of some results."""
    return importers.read([Path(path) for path in paths], Given(**given), kind)[0]


def excluded(made):
    """{reason: rows} of what was left out."""
    return {reason: sum(counts.values()) for reason, counts in json.loads(made.attrs["excluded"]).items()}


def write_run(folder, nats, model="my-1B", texts=None, date="2026-01-01", **changes):
    """A results folder in lm-eval's layout with a loss per document; `changes` overrule keys of the results."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = texts or [f"text number {place} " * (place + 1) for place in range(len(nats))]
    task = {"task": "texts", "output_type": "loglikelihood_rolling", "metadata": {"pretrained": model}}
    data = {
        "results": {"texts": {"word_perplexity,none": 20.0, "bits_per_byte,none": sum(nats) / np.log(2) / size(texts)}},
        "configs": {"texts": task}, "versions": {"texts": 1.0}, "n-shot": {"texts": 0},
        "n-samples": {"texts": {"original": len(nats), "effective": len(nats)}}, "date": 1.0, "max_length": 2048,
        "config": {"model_args": {"pretrained": model}, "model_revision": "main", "model_sha": "", "limit": None},
    } | changes  # fmt: skip
    (folder / f"results_{date}.json").write_text(json.dumps(data))
    lines = [json.dumps({"doc_id": place, "doc_hash": f"hash of {text}", "filtered_resps": [str(-loss)],
                         "arguments": {"gen_args_0": {"arg_0": text}}})
             for place, (loss, text) in enumerate(zip(nats, texts, strict=True))]  # fmt: skip
    (folder / f"samples_texts_{date}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def size(texts):
    """Bytes of some texts."""
    return sum(len(text.encode()) for text in texts)


def write_log(path, nats, kind="Q4_K - Medium", size_line="file size   = 4.58 GiB (4.89 BPW)", context=512):
    """A plain llama-perplexity log with a loss per chunk, in nats per token."""
    running = np.exp(np.cumsum(nats) / np.arange(1, len(nats) + 1))
    lines = [
        f"print_info: file type   = {kind}", f"print_info: {size_line}", "print_info: general.name     = LLaMA-3-8B",
        "print_info: n_vocab          = 128256",
        f"perplexity: calculating perplexity over {len(nats)} chunks, n_ctx={context}, batch_size=512, n_seq=1",
        "".join(f"[{place}]{value:.4f}," for place, value in enumerate(running, 1)),
        f"Final estimate: PPL = {running[-1]:.4f} +/- 0.03"]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path
