"""Read a checkpoint that was saved quantized, and see that it is the quantization of a given model."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from bayesqid.errors import BadInput
from bayesqid.files import printable, read_json
from bayesqid.measure import formats, hub, layers, load
from bayesqid.recipe import Recipe

# saved once more in half precision: a relative rounding of 2^-8 and the least float16
ROUNDING = (2.0**-8, 2.0**-24)
# buffers that older libraries saved and that no model reads
_FORGOTTEN = r"rotary_emb\.inv_freq$|masked_bias$|attn\.bias$|attention\.bias$"


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for, so that a model need not fit into memory twice."""

    def __init__(self, names: list[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])


def _json(file: Path) -> dict[str, Any]:
    found = read_json(file)
    if not isinstance(found, dict):
        raise BadInput(f"{file} holds no JSON object: restore it.")
    return found


def settings(folder: Path) -> dict[str, Any] | None:
    """How a checkpoint was quantized, as its config.json or quantize_config.json says; None when neither does."""
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for key in ("quantization_config", "compression_config"):
        if isinstance(config.get(key), dict):
            return config[key]
    apart = folder / "quantize_config.json"
    return _json(apart) if apart.is_file() else None


def is_quantized(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that was saved quantized."""
    return settings(folder) is not None


def _settings(folder: Path) -> dict[str, Any]:
    load.check(folder)
    found = settings(folder)
    if found is None:
        raise BadInput(f"{folder} has no quantization settings in config.json: name a checkpoint saved quantized.")
    return found


def recipe_of(folder: Path, method: str | None = None) -> Recipe:
    """The recipe of a checkpoint that was saved quantized, with the option `saved`.

    Formats do not always tell the algorithm: `method` says or overrules it. `BadInput` when it stays unknown, and
    for everything that no recipe names.
    """
    found = _settings(folder)
    return formats.kind(folder, found).recipe(folder, found, method)


def files(folder: Path) -> dict[str, Path]:
    """In which safetensors file of a folder each tensor is; `BadInput` when files or tensors are missing."""
    index = folder / hub.INDEX
    if index.is_file():
        listed = _json(index).get("weight_map")
        # a shard beside the index and nowhere else
        if not isinstance(listed, dict) or not all(
            isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file
            for file in listed.values()
        ):
            raise BadInput(f"{index} holds no usable `weight_map`: restore it.")
        where = {str(name): folder / str(file) for name, file in listed.items()}
        held = {file: set(_names(file)) for file in set(where.values())}
        lost = sorted(name for name, file in where.items() if name not in held[file])
        if lost:
            raise BadInput(f"{where[lost[0]]} lacks {lost[0]}, which {hub.INDEX} promises: its files are not complete.")
        return where
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name in _names(file):
            if name in found:
                raise BadInput(f"{folder} holds {name} twice, in {found[name].name} and {file.name}: remove one file.")
            found[name] = file
    return found


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as stream:
            return list(stream.keys())
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} cannot be read as safetensors ({reason(error)}): restore it.") from error


def read(file: Path, name: str) -> Tensor:
    """One tensor of a safetensors file."""
    try:
        with safe_open(file, "pt") as stream:
            return stream.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} cannot be read as safetensors ({reason(error)}): restore it.") from error


def shape(file: Path, name: str) -> tuple[int, ...]:
    """Shape of a tensor of a safetensors file, without reading it."""
    try:
        with safe_open(file, "pt") as stream:
            return tuple(stream.get_slice(name).get_shape())
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} cannot be read as safetensors ({reason(error)}): restore it.") from error


def _parts(folder: Path) -> tuple[dict[str, Path], list[str], formats.Kind]:
    """Files of all tensors, names of the quantized layers, and how these are stored."""
    where, how = files(folder), formats.kind(folder, _settings(folder))
    names = [name.removesuffix(f".{how.must[0]}") for name in where if name.endswith(f".{how.must[0]}")]
    for name in names:
        lost = [part for part in how.must if f"{name}.{part}" not in where]
        if lost:
            raise BadInput(f"{folder} lacks {name}.{lost[0]}: its files are not complete.")
    if not names:
        raise BadInput(f"{folder} says it is quantized but no layer has {how.must[0]}: name another checkpoint.")
    return where, names, how


def weights(folder: Path, method: str | None = None) -> Mapping[str, Tensor]:
    """Dense float32 weights (outputs, inputs) of the quantized layers by module name, each decoded when asked for.

    `BadInput` when the folder's files are broken, incomplete, of an unknown format or hold numbers that are not
    finite.
    """
    recipe, found = recipe_of(folder, method), _settings(folder)
    where, names, how = _parts(folder)

    def decode(name: str) -> Tensor:
        parts = [part for part in (*how.must, *how.may) if f"{name}.{part}" in where]
        tensors = {part: read(where[f"{name}.{part}"], f"{name}.{part}") for part in parts}
        try:
            weight = how.weight(name, folder, tensors, recipe, found)
        except BadInput:
            raise
        except (ValueError, RuntimeError, IndexError) as error:
            raise BadInput(f"{folder} holds {name} in unfit shapes ({reason(error)}): make it anew.") from error
        if not bool(torch.isfinite(weight).all()):
            raise BadInput(f"{folder} holds scales of {name} that are not finite: the checkpoint is broken.")
        return weight

    return Lazy(names, decode)


def others(folder: Path) -> Mapping[str, Tensor]:
    """Tensors of a quantized checkpoint that are not quantized, by name, each read when asked for."""
    where, names, how = _parts(folder)
    taken = {f"{name}.{part}" for name in names for part in (*how.must, *how.may)}
    return Lazy([name for name in where if name not in taken], lambda name: read(where[name], name))


def of(folder: Path, model: PreTrainedModel, method: str | None = None) -> Mapping[str, Tensor]:
    """`weights` of a checkpoint if it is a quantization of this model, else `BadInput`.

    All linear layers inside the blocks must be quantized, and nothing else; every other tensor must be the
    model's own, up to a rounding to half precision. So methods that move scales into norms are refused, and a
    checkpoint of another model is found out unless it has the same embeddings and norms.
    """
    found, inside = weights(folder, method), layers.linears(model)
    dense, more = sorted(set(inside) - set(found)), sorted(set(found) - set(inside))
    if dense or more:
        raise BadInput(
            f"{folder} leaves {dense[0]} unquantized: recipes quantize all linear layers of the blocks."
            if dense
            else f"{folder} quantizes {more[0]}, which is no linear layer in the model's blocks: it cannot be measured."
        )
    state = {name: tensor for name, tensor in model.state_dict().items() if name.removesuffix(".weight") not in inside}
    plain = others(folder)
    given = {tensor.data_ptr() for name, tensor in state.items() if name in plain}
    lost = sorted(name for name, tensor in state.items() if name not in plain and tensor.data_ptr() not in given)
    if lost:
        raise BadInput(f"{folder} lacks {lost[0]}, which the model has: it is no quantization of that model.")
    unread = [_FORGOTTEN, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])]
    for name, tensor in plain.items():
        known = state.get(name)
        if known is None:
            # AutoGPTQ gave every layer a bias
            idle = name.removesuffix(".bias") in inside and not tensor.any()
            if not idle and not any(re.search(pattern, name) for pattern in unread):
                raise BadInput(f"{folder} has {name}, which the model has not: it is no quantization of that model.")
        elif known.shape != tensor.shape or not _same(known, tensor):
            raise BadInput(f"{folder} has another {name} than the model: it is no quantization of that model.")
    return found


def _same(known: Tensor, tensor: Tensor) -> bool:
    relative, absolute = ROUNDING
    mine, saved = known.detach().cpu().float(), tensor.float()
    return bool(((mine - saved).abs() <= relative * mine.abs() + absolute).all())
