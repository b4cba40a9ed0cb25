"""Formats of quantized checkpoints: what a configuration says, and how a layer's tensors become a weight."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesqid.errors import BadInput
from bayesqid.measure import packing
from bayesqid.recipe import METHODS, Recipe, parse

Settings = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


class Packed(NamedTuple):
    """How GPTQ's format packs codes, and what it takes off zero points before."""

    layout: str
    less: int


# checkpoint_format -> how it packs; the first stores z - 1, for old kernels added 1
GPTQ = {"gptq": Packed("stream", 1), "gptq_v2": Packed("stream", 0), "gptq_p": Packed("planes", 0)}
# llm-compressor's name for what quantized the weights -> method
MODIFIERS = {"GPTQModifier": "gptq", "QuantizationModifier": "rtn", "AWQModifier": "awq"}
# settings that other algorithms than GPTQ leave in files of GPTQ's format
OTHERS = ("autoround_version", "auto_round_version", "iters", "provider")
OTHERS_META = ("gptaq", "foem", "weight_only", "preprocessors")


def recipe(text: str, where: Path, symmetric: bool, method: str, bits: int, group: int, act: bool) -> Recipe:
    """The recipe of a saved checkpoint if it can be written as one, else `BadInput` naming `text`, its format."""
    options = ("act", "saved") if act else ("saved",)
    made = Recipe(method, bits, group, symmetric, options=options)
    try:
        return parse(str(made))
    except BadInput as error:
        raise BadInput(f"{where} is {text} of a kind that no recipe names: {error}") from None


def _ask(where: Path, why: str) -> BadInput:
    return BadInput(f"{where} {why}: say it with --quantized-method, one of {', '.join(METHODS)}.")


def gptq_recipe(where: Path, settings: Settings, method: str | None) -> Recipe:
    """Recipe of a checkpoint in GPTQ's format; what bayesqid saved tells it itself."""
    meta = settings.get("meta") or {}
    form = gptq_format(where, settings)
    if meta.get("recipe") and not method:
        own = parse(str(meta["recipe"]))
        method = own.method
    signs = [key for key in OTHERS if key in settings] + [key for key in OTHERS_META if meta.get(key)]
    if signs and not method:
        raise _ask(where, f"is in GPTQ's format but its setting {signs[0]!r} is not GPTQ's, so its method is unknown")
    if any(not rule.startswith("-") for rule in settings.get("dynamic") or {}):
        raise BadInput(f"{where} has layers of different settings (`dynamic`): recipes have one setting for all layers.")
    if settings.get("pack_dtype", "int32") not in ("int32", "torch.int32"):
        raise BadInput(f"{where} packs codes into {settings['pack_dtype']}: only words of 32 bits can be read.")
    bits, group = (_number(where, settings, key) for key in ("bits", "group_size"))
    if bits in (5, 6) and form.layout != "planes":
        raise BadInput(f"{where} has {bits} bits, which only the checkpoint_format gptq_p stores: correct its settings.")
    act, symmetric = bool(settings.get("desc_act")), bool(settings.get("sym", True))
    return recipe("in GPTQ's format", where, symmetric, method or "gptq", bits, group, act)


def gptq_format(where: Path, settings: Settings) -> Packed:
    """How a checkpoint in GPTQ's format packs; `BadInput` for repacked ones (marlin, bitblas) and unknown ones."""
    name = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if settings.get("is_marlin_format") or name not in GPTQ:
        name = "marlin" if settings.get("is_marlin_format") else name
        raise BadInput(f"{where} is packed for {name}, which cannot be read: only {', '.join(GPTQ)} can.")
    return GPTQ[name]


def _number(where: Path, settings: Settings, key: str) -> int:
    if type(settings.get(key)) is not int:
        raise BadInput(f"{where} does not say its {key} in its quantization settings: restore them.")
    return settings[key]


def gptq_weight(name: str, where: Path, tensors: Tensors, recipe: Recipe, settings: Settings) -> Tensor:
    """Weight s_g(i) (q - z_g(i)), float32 (outputs, inputs), from qweight, qzeros, scales and g_idx.

    qweight packs the codes along inputs, qzeros the zero points along outputs; scales are (groups, outputs).
    """
    form, scales = gptq_format(where, settings), tensors["scales"].float()
    groups, outputs = scales.shape
    inputs = tensors["qweight"].shape[0] * packing.WORD // recipe.bits
    codes = packing.unpack(tensors["qweight"], recipe.bits, inputs, 0, form.layout)
    zeros = zero_points(tensors["qzeros"], recipe.bits, outputs, form)
    middle = 2 ** (recipe.bits - 1)
    if recipe.symmetric and not bool((zeros == middle).all()):
        raise BadInput(
            f"{where} is said to be symmetric but zero points of {name} are {int(zeros[zeros != middle][0])} instead "
            f"of {middle}: correct `sym`, or `checkpoint_format`, for gptq stores zero points less 1 and gptq_v2 does not."
        )
    group = tensors.get("g_idx")
    if group is None and "act" in recipe.options:
        raise BadInput(f"{where} lacks {name}.g_idx, which tells the groups of reordered columns: restore it.")
    index = _groups(name, where, group, inputs, groups, recipe)
    return (scales[index] * (codes - zeros[index])).T.contiguous()


def zero_points(packed: Tensor, bits: int, outputs: int, form: Packed) -> Tensor:
    """Zero points (groups, outputs) as ints, from their words.

    Formats that store z - 1 take 1 off every code of a word by one subtraction from the word, so that z = 0
    borrows from the code above it; adding the same number gives all of them back. Where codes straddle words
    (3 bits) libraries subtract code by code, modulo 2^b.
    """
    if not form.less:
        return packing.unpack(packed, bits, outputs, 1, form.layout)
    if bits == 3:
        return (packing.unpack(packed, bits, outputs, 1, form.layout) + form.less) % 2**bits
    ones = packing.pack(torch.full_like(packed[:1, :1], form.less).expand(1, packing.WORD // bits), bits)
    # int64 and back by hand, for the sum may overflow a word
    total = (packed.long() + ones.long() + 2**31) % 2**32 - 2**31
    return packing.unpack(total.int(), bits, outputs, 1, form.layout)


def _groups(name: str, where: Path, given: Tensor | None, inputs: int, groups: int, recipe: Recipe) -> Tensor:
    """Group of every input column; consecutive ones when the file does not tell."""
    size = inputs if recipe.group_size == -1 else recipe.group_size
    index = torch.arange(inputs) // size if given is None else given.long()
    if len(index) != inputs or int(index.min()) < 0 or int(index.max()) >= groups or groups != -(-inputs // size):
        raise BadInput(f"{where} holds {groups} groups of scales for {name}, which do not fit its {inputs} inputs.")
    return index


def compressed_recipe(where: Path, settings: Settings, method: str | None) -> Recipe:
    """Recipe of a compressed-tensors checkpoint with integer weights; its algorithm stands in recipe.yaml or nowhere."""
    if settings.get("format") not in COMPRESSED:
        raise BadInput(f"{where} has the format {settings.get('format')!r}, which cannot be read: "
                       f"only {', '.join(COMPRESSED)} can.")  # fmt: skip
    schemes = list((settings.get("config_groups") or {}).values())
    weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, dict)]
    kinds = {tuple((one or {}).get(key) for key in ("num_bits", "type", "symmetric", "strategy", "group_size", "actorder"))
             for one in weights}  # fmt: skip
    if len(kinds) != 1 or len(weights) != len(schemes):
        raise BadInput(f"{where} has layers of different settings: recipes have one setting for all layers.")
    bits, kind, symmetric, strategy, group, actorder = kinds.pop()
    strategy = strategy or ("group" if group and group > 0 else "channel")
    if kind != "int" or strategy not in ("group", "channel"):
        raise BadInput(f"{where} has {kind} weights with one scale per {strategy}: only int per group or channel is known.")
    acts = any(scheme.get(key) for scheme in schemes for key in ("input_activations", "output_activations"))
    sparse = (settings.get("sparsity_config") or {}).get("format", "dense") != "dense"
    turned = (settings.get("transform_config") or {}).get("config_groups")
    for what, found in (("activations", acts), ("a cache", settings.get("kv_cache_scheme"))):
        if found:
            raise BadInput(f"{where} quantizes {what} as well as weights: bayesqid measures quantized weights only.")
    if sparse or turned:
        raise BadInput(f"{where} is {'pruned' if sparse else 'rotated'} as well as quantized: no recipe names that.")
    found = method or _modifier(where) or ("gptq" if actorder else None)
    if found is None:
        raise _ask(where, "does not say which method made it")
    size = group if strategy == "group" else -1
    return recipe("in compressed-tensors' format", where, symmetric is not False, found, bits, size, bool(actorder))


def _modifier(where: Path) -> str | None:
    """Method that llm-compressor's recipe.yaml names, None without that file; `BadInput` for others than we know."""
    file = where / "recipe.yaml"
    if not file.is_file():
        return None
    named = set(re.findall(r"\b(\w+Modifier)\b", file.read_text(encoding="utf-8")))
    if len(named) != 1 or not named <= set(MODIFIERS):
        raise _ask(where, f"was made by {' and '.join(sorted(named)) or 'nothing that its recipe.yaml names'}")
    return MODIFIERS[named.pop()]


def compressed_weight(name: str, where: Path, tensors: Tensors, recipe: Recipe, settings: Settings) -> Tensor:
    """Weight s (q - z), float32 (outputs, inputs); codes and zero points have signs, packed ones 2^(b-1) more."""
    scale = tensors["weight_scale"].float()
    if "weight_packed" in tensors:
        outputs, inputs = (int(size) for size in tensors["weight_shape"])
        codes = _signed(name, where, tensors["weight_packed"], recipe.bits, inputs, 1)
    else:
        codes = tensors["weight"]
        outputs, inputs = codes.shape
    scale = scale.reshape(len(scale), -1)
    zero = tensors.get("weight_zero_point")
    if zero is None:
        zero = torch.zeros((), dtype=torch.int32)
        if not recipe.symmetric:
            raise BadInput(f"{where} lacks {name}.weight_zero_point, which an asymmetric grid needs: restore it.")
    elif zero.dtype == torch.int32 and "weight_packed" in tensors:
        zero = _signed(name, where, zero, recipe.bits, outputs, 0)
    zero = zero.expand(scale.shape) if zero.ndim == 0 else zero.reshape(scale.shape)
    given = tensors.get("weight_g_idx")
    # -1 stands for groups that nobody set
    given = None if given is None or int(given.min()) < 0 else given
    index = _groups(name, where, given, inputs, scale.shape[1], recipe)
    return scale[:, index] * (codes.float() - zero.float()[:, index])


def _signed(name: str, where: Path, packed: Tensor, bits: int, size: int, dim: int) -> Tensor:
    """Codes with signs from words, which are packed densely or, by older versions, padded: their number tells."""
    fits = [layout for layout in ("stream", "padded") if packing.words(size, bits, layout) == packed.shape[dim]]
    straddles = packing.WORD % bits and size > packing.WORD // bits
    if not fits or (len(fits) > 1 and straddles):
        raise BadInput(f"{where} has {packed.shape[dim]} words for {size} codes of {name}: which of them is unclear.")
    return packing.unpack(packed, bits, size, dim, fits[0]) - 2 ** (bits - 1)


class Kind(NamedTuple):
    """One way to store quantized layers: tensors they must and may have, first the one that tells them."""

    must: tuple[str, ...]
    may: tuple[str, ...]
    recipe: Callable[[Path, Settings, str | None], Recipe]
    weight: Callable[[str, Path, Tensors, Recipe, Settings], Tensor]


_UNPACKED = Kind(("weight_scale", "weight"), ("weight_zero_point", "weight_g_idx"), compressed_recipe, compressed_weight)
_PACKED = Kind(("weight_packed", "weight_scale", "weight_shape"), _UNPACKED.may, compressed_recipe, compressed_weight)
# format of compressed-tensors -> how it stores layers
COMPRESSED = {"pack-quantized": _PACKED, "int-quantized": _UNPACKED, "naive-quantized": _UNPACKED}
_GPTQ = Kind(("qweight", "qzeros", "scales"), ("g_idx",), gptq_recipe, gptq_weight)


def kind(where: Path, settings: Settings) -> Kind:
    """How a quantized checkpoint stores its layers; `BadInput` for formats that cannot be read."""
    method = settings.get("quant_method", "gptq" if "bits" in settings else None)
    if method == "gptq":
        return _GPTQ
    if method != "compressed-tensors":
        raise BadInput(f"{where} is quantized by {method}, which cannot be read: only gptq and compressed-tensors can.")
    # an unknown format is refused by what reads the recipe
    return COMPRESSED.get(str(settings.get("format")), _PACKED)
