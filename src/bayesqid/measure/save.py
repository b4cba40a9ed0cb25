"""Write a quantized checkpoint in GPTQ's format, which GPTQModel, transformers and inference servers load."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bayesqid.errors import BadInput
from bayesqid.measure import formats, hub, packing, saved
from bayesqid.measure.quantizers.outcome import Quantized
from bayesqid.recipe import Recipe

# methods whose weights lie on a grid that the format can say; AWQ's lie on it only with its scales in other layers
METHODS = ("rtn", "gptq")
# what stands beside the weights but is written anew
NOT_COPIED = ("config.json", "quantize_config.json", hub.INDEX)


def form(recipe: Recipe) -> str:
    """The checkpoint_format for a recipe, `BadInput` when there is none.

    Symmetric grids go into `gptq`, which everything reads. It stores z - 1, and what becomes of z = 0, which only
    asymmetric grids have, depends on the reader: they go into `gptq_v2`, which stores z. 5 and 6 bits exist in
    GPTQModel's `gptq_p` only.
    """
    if recipe.method not in METHODS or recipe.format != "int":
        raise BadInput(f"GPTQ's format cannot store the grid of {recipe}: save a recipe such as rtn-w4 or gptq-w4.")
    if recipe.saved:
        raise BadInput(f"The weights of {recipe} come from a saved checkpoint: copy that one.")
    return "gptq_p" if recipe.bits in (5, 6) else "gptq" if recipe.symmetric else "gptq_v2"


def settings(recipe: Recipe) -> dict[str, Any]:
    """What config.json and quantize_config.json say about a recipe."""
    try:
        maker = f"bayesqid:{version('bayesqid')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        maker = "bayesqid:0"
    name = form(recipe)
    return {
        "quant_method": "gptq",
        "checkpoint_format": name,
        "format": name,
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "sym": recipe.symmetric,
        "desc_act": "act" in recipe.options,
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": [maker], "recipe": str(recipe)},
    }


def tensors(name: str, layer: Quantized, recipe: Recipe) -> dict[str, Tensor]:
    """qweight, qzeros, scales (float16) and g_idx of a layer from its codes (rows, columns), scale and zero.

    `BadInput` when the sizes are no multiples of 32 or of the group, or a scale does not fit into float16.
    """
    if layer.codes is None or layer.scale is None or layer.zero is None:
        raise BadInput(f"The weights of {name} lie on no uniform grid: save an rtn or gptq recipe.")
    rows, columns = layer.codes.shape
    size = columns if recipe.group_size == -1 else recipe.group_size
    if rows % packing.WORD or columns % packing.WORD or columns % size:
        raise BadInput(
            f"The layer {name} has {rows} x {columns} weights: GPTQ's format needs multiples of {packing.WORD} "
            f"and whole groups of {size}, so choose another group size or model."
        )
    scales = layer.scale.T.half()
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise BadInput(f"The scales of {name} do not fit into float16: this model cannot be saved in GPTQ's format.")
    packed = formats.GPTQ[form(recipe)]
    zeros = layer.zero.T.long() - packed.less
    whole = bool((zeros == layer.zero.T - packed.less).all())
    if not (whole and 0 <= int(zeros.min()) <= int(zeros.max()) < 2**recipe.bits):
        raise BadInput(f"Zero points of {name} are no whole numbers of {recipe.bits} bits: save another recipe.")
    group = torch.arange(columns) // size if layer.group is None else layer.group
    return {
        "qweight": packing.pack(layer.codes.T, recipe.bits, 0, packed.layout),
        "qzeros": packing.pack(zeros, recipe.bits, 1, packed.layout),
        "scales": scales.contiguous(),
        "g_idx": group.int().contiguous(),
    }


def save_gptq(
    folder: Path, source: Path, recipe: Recipe, layers: Mapping[str, Quantized], tokenizer: Path | None = None
) -> Path:
    """Write a checkpoint in GPTQ's format: `layers` quantized, all else as it is in the folder `source`.

    The folder appears when it is complete. `tokenizer` is a folder whose tokenizer is added. Codes must be those
    of `recipe`; scales are rounded to float16, as the format has them. `BadInput` when the recipe, the model or
    the place is unfit.
    """
    form(recipe)
    config = saved._json(source / "config.json")
    where = saved.files(source)
    lost = sorted(name for name in layers if f"{name}.weight" not in where)
    if lost:
        raise BadInput(f"{source} holds no {lost[0]}.weight: name the folder of the model that was quantized.")
    turned = [name for name in layers if saved.shape(where[f"{name}.weight"], f"{name}.weight") != _shape(layers[name])]
    if turned:
        raise BadInput(f"{source} keeps {turned[0]} the other way round, as GPT-2 does: such models cannot be saved.")
    said = settings(recipe)

    def write(aside: Path) -> None:
        copied = (source,) if tokenizer is None else (source, tokenizer)
        for file in (file for place in copied for pattern in hub.COMPANIONS for file in sorted(place.glob(pattern))):
            if file.name not in NOT_COPIED:
                shutil.copyfile(file, aside / file.name)
        placed: dict[str, str] = {}
        total = 0
        for shard in sorted(set(where.values())):
            content: dict[str, Tensor] = {}
            for name in (name for name, file in where.items() if file == shard):
                layer = name.removesuffix(".weight")
                if layer in layers and layer != name:
                    parts = tensors(layer, layers[layer], recipe)
                    content |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
                else:
                    content[name] = saved.read(shard, name)
            save_file(content, aside / shard.name, {"format": "pt"})
            placed |= dict.fromkeys(content, shard.name)
            total += sum(tensor.nbytes for tensor in content.values())
        if len(set(placed.values())) > 1:
            _write(aside / hub.INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
        _write(aside / "quantize_config.json", said)
        _write(aside / "config.json", config | {"quantization_config": said})

    return folder_aside(folder, write)


def _shape(layer: Quantized) -> tuple[int, ...]:
    return tuple((layer.weight if layer.codes is None else layer.codes).shape)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def folder_aside(folder: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `folder`, flush it to disk, then rename it to `folder`.

    `BadInput` when the folder exists already and is not empty, or cannot be made.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} exists already: name a new folder.")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
    except OSError as error:
        raise BadInput(f"{folder} cannot be made ({error.strerror}): name another place.") from error
    try:
        write(aside)
        for file in aside.iterdir():
            with open(file, "rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
