"""Bring a checkpoint into memory, from a folder or the hub; safetensors only, no remote code."""

import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bayesqid.errors import BadInput
from bayesqid.files import MOST_JSON, printable, read_json, read_text, sha256_file
from bayesqid.measure import hub, lock
from bayesqid.measure.patience import Sleep
from bayesqid.suite import Checkpoint

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# keys of config.json by which transformers fetches kernels, that is code
_NAMED = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
# keys of config.json -> there are as many tensors, or values in them
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers")
_WIDTHS = ("vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "n_inner",
           "word_embed_proj_dim", "num_attention_heads", "n_head", "num_experts", "num_local_experts")  # fmt: skip
DEPTH = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def local(place: str, revision: str) -> Path | None:
    """The folder `place`, or its folder `revision`; None for what must be a hub id."""
    here = Path(place)
    if here.is_dir():
        if Path(revision).is_absolute() or ".." in Path(revision).parts:
            raise BadInput(f"The revision {revision!r:.80} leads out of {place}: name a folder in it.")
        return here / revision if (here / revision).is_dir() else here
    if here.is_absolute() or place.startswith("."):
        raise BadInput(f"There is no folder {place}: name the folder that holds config.json.")
    return None


def folder(place: str, revision: str, commit: str | None = None) -> Path:
    """Where a checkpoint's files are: the folder `place`, or its folder `revision`, else a download of `commit`."""
    return local(place, revision) or hub.download(hub.resolve(place, revision, commit))


def check(path: Path) -> None:
    """Refuse a folder without configuration, or with weights in a pickle only (which can run code)."""
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} holds no config.json: name the folder of one checkpoint.")
    if not list(path.glob("*.safetensors")):
        raise BadInput(hub.no_weights(str(path), [file.name for file in path.iterdir()]))


def fit(path: Path) -> None:
    """Refuse a checkpoint whose files would have others read, code run or the memory filled by loading it.

    The configuration may name no code, kernel, file or quantizer, and no more layers or wider ones than the weights
    have; an index may name safetensors beside it only.
    """
    check(path)
    try:
        config = read_json(path / "config.json")
    except BadInput as error:
        raise BadInput(f"{path} cannot be loaded: {error}") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path / 'config.json'} holds no JSON object: restore it.")
    shards = weight_files(path)
    if (path / "adapter_config.json").exists():
        raise BadInput(f"{path} holds an adapter of another model (adapter_config.json): merge it and save the whole.")
    told = {key: config[key] for key in _NAMED if config.get(key) is not None}
    kernel = [value for value in told.values() if not isinstance(value, str) or "/" in value or ":" in value]
    if "transformers_weights" in config or kernel:
        key = "transformers_weights" if "transformers_weights" in config else next(iter(told))
        raise BadInput(f"{path / 'config.json'} names code or files of elsewhere ({key}): remove that key.")
    if config.get("quantization_config") is not None:
        raise BadInput(f"{path} was saved quantized, so it is no baseline: name the checkpoint it was made from.")
    _bounded(path, config, shards)


def _bounded(path: Path, config: dict[str, Any], shards: Iterable[str]) -> None:
    """Refuse sizes in a configuration, at any depth, that the weights cannot have."""
    shapes = [shape for name in shards for shape in saved_shapes(path / name)]
    total = sum(math.prod(shape) for shape in shapes)
    queue = [(config, 0)]
    while queue:
        table, depth = queue.pop()
        for key, value in table.items():
            if isinstance(value, dict) and depth < DEPTH:
                queue.append((value, depth + 1))
            most = len(shapes) if key in _LAYERS else total if key in _WIDTHS else None
            if most is not None and isinstance(value, int | float) and value > most:
                raise BadInput(f"{path}: config.json has {key} = {value:.4g}, more than its weights hold: restore it.")


def saved_shapes(file: Path) -> list[tuple[int, ...]]:
    """Shapes of all tensors of a safetensors file, from its header; `BadInput` when that is broken."""
    try:
        with safe_open(file, "pt") as stream:
            return [tuple(stream.get_slice(name).get_shape()) for name in stream.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} cannot be loaded as safetensors ({_reason(error)}): restore it.") from error


def hashes(path: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of files in a folder, several at once: reading and hashing leave Python's lock."""
    names = list(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_file(path / name), names), strict=True))


def contents(path: Path) -> dict[str, str]:
    """SHA-256 by name of what the model in a folder is made of: its weight files and config.json."""
    return hashes(path, ["config.json", *weight_files(path)])


def weight_files(path: Path) -> tuple[str, ...]:
    """Names of the weight files in a folder; `BadInput` when they are not there, or the index leads elsewhere."""
    check(path)
    names = [file.name for file in path.iterdir() if file.is_file()]
    return hub.weights(str(path), names, lambda: read_text(path / hub.INDEX, MOST_JSON, "index"))


@contextmanager
def brought(checkpoint: Checkpoint, lock_path: Path, keep: bool = False, sleep: Sleep = time.sleep) -> Iterator[Path]:
    """Context with the folder of a checkpoint's files, as the lock has them; enters them into the lock if it does not.

    For the hub: resolve the revision (the locked commit if there is one), refuse other bytes and duplicates, only then
    download, and remove at the end what was not in the cache before, unless `keep`. An interrupt leaves the files for
    the run that goes on; another failure takes a new entry back. `BadInput` when the files cannot be had, or are not
    those of the lock or of the suite.
    """
    name, revision = checkpoint.id, checkpoint.revision
    here = local(checkpoint.hub, revision)
    if here is not None:
        with lock.claimed(lock_path, name, lock.Entry(here.name, revision, None, contents(here))):
            verify(here, checkpoint.sha256)
            yield here
        return
    locked = lock.read(lock_path).get(name)
    commit = locked.commit if locked and locked.hub == checkpoint.hub else None
    remote = hub.resolve(checkpoint.hub, revision, commit, sleep)
    told = {file: digest for file, digest in remote.weights.items() if digest}
    entry = lock.Entry(remote.hub, revision, remote.commit, told)
    with ExitStack() as stack:
        known = told.keys() == remote.weights.keys()
        if known:
            stack.enter_context(lock.claimed(lock_path, name, entry))
        path = stack.enter_context(hub.lent(remote, keep, sleep))
        if not known:
            found = replace(entry, files=hashes(path, remote.weights))
            stack.enter_context(lock.claimed(lock_path, name, found))
        verify(path, checkpoint.sha256)
        yield path


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return printable(lines[0].strip() if lines else type(error).__name__)


def verify(path: Path, sha256: str | None) -> None:
    """Refuse a model.safetensors whose SHA-256 is not the one that the suite lists, if it does."""
    file = path / "model.safetensors"
    if sha256 is not None and file.is_file() and sha256_file(file) != sha256:
        raise BadInput(f"{file} is not the file that the suite lists (SHA-256 differs): restore it.")


def quiet() -> None:
    """No bars and notes of transformers between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def model(path: Path, dtype: str, device: torch.device) -> Any:
    """The causal language model in a folder, ready to evaluate; `BadInput` when it cannot be loaded."""
    from transformers import AutoModelForCausalLM

    fit(path)
    try:
        both: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises whatever a broken file leads to
        raise BadInput(f"{path} cannot be loaded as a causal language model: {_reason(error)}") from error
    loaded, report = both
    # transformers fills what a file lacks with random numbers, which would be measured as a model
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadInput(f"{path} lacks the weights {missing[0]}: its files are not complete.")
    return loaded.to(device).eval().requires_grad_(False)


def tokenizer(path: Path) -> Any:
    """The tokenizer in a folder; `BadInput` when transformers cannot load it."""
    from transformers import AutoTokenizer

    # without any of these transformers would make up an empty tokenizer
    if not any((path / name).is_file() for name in VOCABULARIES):
        raise BadInput(f"{path} holds no tokenizer: name the folder that does with --tokenizer.")

    large = [name for name in VOCABULARIES if (path / name).is_file() and (path / name).stat().st_size > MOST_JSON]
    if large:
        raise BadInput(f"{path / large[0]} has more than {MOST_JSON / 2**20:g} MiB: it is no tokenizer's.")
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as above
        raise BadInput(f"{path} holds no tokenizer that can be loaded: {_reason(error)}") from error
