"""Bring a checkpoint into memory, from a folder or the hub; safetensors only, no remote code."""

from pathlib import Path
from typing import Any

import torch

from bayesqid.errors import BadInput
from bayesqid.files import sha256_file

# Everything a model and its tokenizer need; pickles and Python files are never fetched
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def fetch(hub: str, revision: str) -> Path:
    """Folder with the files of a hub repository at a revision, downloaded once; `BadInput` if impossible."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{hub} at revision {revision} cannot be fetched from the hub: {reason}") from error


def folder(hub: str, revision: str) -> Path:
    """Where a checkpoint's files are: the folder `hub`, or its folder `revision`, else a download."""
    here = Path(hub)
    if here.is_dir():
        return here / revision if (here / revision).is_dir() else here
    if here.is_absolute() or hub.startswith("."):
        raise BadInput(f"There is no folder {hub}: name the folder that holds config.json.")
    return fetch(hub, revision)


def check(path: Path) -> None:
    """Refuse a folder without configuration, or with weights in a pickle only (which can run code)."""
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} holds no config.json: name the folder of one checkpoint.")
    if not list(path.glob("*.safetensors")):
        pickles = [file.name for file in sorted(path.iterdir()) if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        found = f"only pickled weights ({pickles[0]}), which can run code" if pickles else "no *.safetensors weights"
        raise BadInput(f"{path} holds {found}: convert them to safetensors.")


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


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

    check(path)
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

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as above
        raise BadInput(f"{path} holds no tokenizer that can be loaded: {_reason(error)}") from error
