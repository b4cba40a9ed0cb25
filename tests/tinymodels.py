"""Tiny random models, tokenizers, texts and suites for the tests: made from configurations, nothing downloaded."""

import json
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY = 288
CONTEXT = 64
# what a person says of a model besides its files: nothing
NO_FACTS = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
CONFIGS = {
    "neox": lambda: GPTNeoXConfig(
        **_COMMON, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=CONTEXT, initializer_range=0.2,
    ),
    "llama": lambda: LlamaConfig(
        **_COMMON, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, max_position_embeddings=CONTEXT, initializer_range=0.2,
    ),
    "opt": lambda: OPTConfig(
        **_COMMON, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
        max_position_embeddings=CONTEXT, word_embed_proj_dim=32, init_std=0.2,
    ),
    "gpt2": lambda: GPT2Config(
        **_COMMON, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, initializer_range=0.2,
    ),
}  # fmt: skip


def model(kind: str, seed: int = 0) -> torch.nn.Module:
    """A random causal language model, spread out enough for quantization to hurt; biases are random too."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(CONFIGS[kind]())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return made.eval().requires_grad_(False)


def tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer without merges: 256 bytes and `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>").save_pretrained(folder)
    return folder


def save(kind: str, folder: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """A random model with its tokenizer in a folder; weights times `scale`."""
    made = model(kind, seed)
    for parameter in made.parameters():
        parameter.mul_(scale)
    made.save_pretrained(folder)
    return tokenizer(folder)


def documents(seed: int, count: int = 12) -> list[tuple[str, str]]:
    """Names and texts of different lengths, one shorter and most longer than a window, not all ASCII."""
    rng = np.random.default_rng(seed)
    words = ["déjà", "quant", "bits", "of", "weights", "loss", "Größe", "42", "(x)", "the", "\n"]
    return [(f"d{seed}-{i}", " ".join(rng.choice(words, size=3 + 5 * i))) for i in range(count)]


def write_text(path: Path, seed: int, count: int = 12) -> Path:
    """A JSON-lines file of `documents`."""
    lines = [json.dumps({"id": name, "text": text}) for name, text in documents(seed, count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def suite(folder: Path, models: dict[str, tuple[str, int]], recipes: list[str], name: str = "toy") -> Path:
    """A suite file over random models {revision: (kind, seed)}, with texts and a shared tokenizer."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number, (revision, (kind, seed)) in enumerate(models.items()):
        place = folder / revision
        if not place.exists():
            model(kind, seed).save_pretrained(place)
        rows.append({
            "family": kind, "model": f"toy-{kind}", "path": revision, "revision": revision, "n_params": 50_000,
            "n_params_nonembedding": 30_000, "train_tokens": 1000 * (number + 1), "lr_phase": "constant",
            "lr_fraction": 1.0, "vocab_size": VOCABULARY, "seed": seed, "sha256": None,
        })  # fmt: skip
    (folder / "checkpoints.json").write_text(json.dumps(rows))
    tokenizer(folder / "tokenizer")
    write_text(folder / "eval.jsonl", 1)
    write_text(folder / "calibration.jsonl", 2)
    path = folder / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\ntitle = "Toys"\ncheckpoints = "checkpoints.json"\nrecipes = {json.dumps(recipes)}\n'
        f'[text]\nevaluation = "eval.jsonl"\ncalibration = "calibration.jsonl"\ncontext = {CONTEXT}\n'
        'tokenizer = "tokenizer"\n'
    )
    return path


def ready(made, tokens: list[np.ndarray], rows: torch.Tensor | None = None, most: int | None = None):
    """A model taken apart, with evaluation windows of some documents and calibration rows for every seed."""
    from bayesqid.measure import blocks, layers, text, together

    inside = [{id(module) for module in block.modules()} for block in layers.blocks(made)]
    linears = layers.linears(made)
    by_block = [{name: layer for name, layer in linears.items() if id(layer) in members} for members in inside]
    windows = text.windows(tokens, CONTEXT)
    as_tuple = blocks.verify(made, torch.from_numpy(windows[0].inputs[None, :8]))
    found = together.Ready(
        made, torch.device("cpu"), as_tuple, by_block, windows, lambda seed: rows, len(tokens), most,
    )  # fmt: skip
    found.lay_out()
    return found


def scores(made, tokens: list[np.ndarray], recipes: list[str], rows=None, most: int | None = None) -> dict:
    """Scores of a model's recipes over some documents, by recipe."""
    from bayesqid.measure import together
    from bayesqid.recipe import parse

    with torch.inference_mode():
        found = ready(made, tokens, rows, most)
        measured = together.measure(found, [parse(name) for name in recipes], {}, False, lambda amount: None)
    return {str(lane.recipe): score for lane, score in measured}


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    """Identical but for how the measuring was called."""
    xr.testing.assert_identical(one.drop_attrs(deep=False), other.drop_attrs(deep=False))
