"""Formats of quantized checkpoints: what a configuration says, and how a layer's tensors become a weight."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesqid import files
from bayesqid.errors import BadInput
from bayesqid.measure import packing
from bayesqid.recipe import METHODS, Recipe, parse

Settings = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


class Packed(NamedTuple):
    """How GPTQ's format packs codes, and what it takes off zero points before."""

    layout: str
    less: int


# checkpoint_format -> how it packs; the first stores z - 1, because old kernels added 1
GPTQ = {"gptq": Packed("stream", 1), "gptq_v2": Packed("stream", 0), "gptq_p": Packed("planes", 0)}
# llm-compressor's name for what quantized the weights -> method
MODIFIERS = {"GPTQModifier": "gptq", "QuantizationModifier": "rtn", "AWQModifier": "awq"}
# bytes of a recipe.yaml
MOST_RECIPE = 2**20
# settings that other algorithms than GPTQ leave in files of GPTQ's format
OTHERS = ("autoround_version", "auto_round_version", "iters", "provider")
OTHERS_META = ("gptaq", "foem", "weight_only", "preprocessors")
# settings that are read further, and what they must be
FORMS = {"meta": dict, "dynamic": dict, "config_groups": dict, "sparsity_config": dict, "transform_config": dict,
         "quant_method": str, "format": str, "checkpoint_format": str}  # fmt: skip


def _recipe(where: Path, method: str, bits: Any, group: Any, symmetric: bool, act: bool) -> Recipe:
    """The recipe of a saved checkpoint, `BadInput` when no recipe can be written like it."""
    for what, value in (("bits", bits), ("group size", group)):
        if type(value) is not int:
            raise BadInput(f"{where} has {value!r} for its {what} in its quantization settings: restore them.")
    try:
        return parse(str(Recipe(method, bits, group, symmetric, options=("act", "saved") if act else ("saved",))))
    except BadInput as error:
        raise BadInput(f"{where} is quantized in a way that no recipe names: {error}") from None
    except KeyError:
        raise BadInput(f"There is no method {method!r}: name one of {', '.join(METHODS)}.") from None


def _unknown(where: Path, why: str) -> BadInput:
    return BadInput(f"{where} {why}: say which method made it with --quantized-method, one of {', '.join(METHODS)}.")


def gptq_recipe(where: Path, settings: Settings, method: str | None) -> Recipe:
    """Recipe of a checkpoint in GPTQ's format, which bayesqid also saves weights in that were rounded to nearest."""
    meta, layout = settings.get("meta") or {}, gptq_format(where, settings).layout
    signs = [key for key in OTHERS if key in settings] + [key for key in OTHERS_META if meta.get(key)]
    if signs and not method:
        raise _unknown(where, f"has the setting {signs[0]!r}, which GPTQ does not have")
    if any(not rule.startswith("-") for rule in settings.get("dynamic") or {}):
        raise BadInput(f"{where} has other settings for some layers (`dynamic`): recipes have one for all layers.")
    if str(settings.get("pack_dtype", "int32")).removeprefix("torch.") != "int32":
        raise BadInput(f"{where} packs codes into {settings['pack_dtype']}: only words of 32 bits can be read.")
    if settings.get("bits") in (5, 6) and layout != "planes":
        raise BadInput(f"{where} has {settings['bits']} bits, which only the checkpoint_format gptq_p has: correct it.")
    if meta.get("recipe") and not method:
        method = parse(str(meta["recipe"])).method
    symmetric, act = bool(settings.get("sym", True)), bool(settings.get("desc_act"))
    return _recipe(where, method or "gptq", settings.get("bits"), settings.get("group_size"), symmetric, act)


def gptq_format(where: Path, settings: Settings) -> Packed:
    """How a checkpoint in GPTQ's format packs; `BadInput` for repacked ones (marlin, bitblas) and unknown ones."""
    name = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if settings.get("is_marlin_format") or name not in GPTQ:
        name = "marlin" if settings.get("is_marlin_format") else name
        raise BadInput(f"{where} is packed for {name}, which cannot be read: only {', '.join(GPTQ)} can.")
    return GPTQ[name]


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
    odd = zeros[zeros != middle]
    if recipe.symmetric and len(odd):
        raise BadInput(
            f"{where} is said to be symmetric but has zero points of {int(odd[0])}, not {middle}, in {name}: correct "
            "`sym` or `checkpoint_format`, for gptq stores zero points less 1 and gptq_v2 stores them as they are."
        )
    makers = (settings.get("meta") or {}).get("quantizer") or []
    if form.less and bool((zeros == 0).any()) and "gptqmodel" not in str(makers):
        raise BadInput(f"{where} has zero points of 0 in {name}, which others than GPTQModel did not store reliably.")
    group = tensors.get("g_idx")
    if group is None and "act" in recipe.options:
        raise BadInput(f"{where} lacks {name}.g_idx, which tells the groups of reordered columns: restore it.")
    index = _groups(name, where, group, inputs, groups, recipe)
    return (scales[index] * (codes - zeros[index])).T.contiguous()


def zero_points(packed: Tensor, bits: int, outputs: int, form: Packed) -> Tensor:
    """Zero points (groups, outputs) as ints, from their words.

    Where z - 1 is stored, libraries take the 1 off all codes of a word by one subtraction from the word, so that
    z = 0 borrows from the code above it, and adding the same number gives all of them back. Where codes
    straddle words (3 bits) they subtract code by code, modulo 2^b.
    """
    if form.less and packing.WORD % bits == 0:
        ones = packing.pack(torch.full((1, packing.WORD // bits), form.less, device=packed.device), bits)
        # words without sign, for the sum may overflow an int32
        total = (packed.long() + ones.long() + 2**31) % 2**32 - 2**31
        return packing.unpack(total.int(), bits, outputs, 1, form.layout)
    return (packing.unpack(packed, bits, outputs, 1, form.layout) + form.less) % 2**bits


def _groups(name: str, where: Path, given: Tensor | None, inputs: int, groups: int, recipe: Recipe) -> Tensor:
    """Group of every input column; consecutive ones when the file does not tell."""
    size = inputs if recipe.group_size == -1 else recipe.group_size
    index = torch.arange(inputs) // size if given is None else given.long()
    if len(index) != inputs or int(index.min()) < 0 or int(index.max()) >= groups or groups != -(-inputs // size):
        raise BadInput(f"{where} has {groups} groups of scales for {name}, unfit for its {inputs} inputs: restore it.")
    return index


def compressed_recipe(where: Path, settings: Settings, method: str | None) -> Recipe:
    """Recipe of a checkpoint of compressed-tensors with integer weights.

    Its algorithm stands in llm-compressor's recipe.yaml, and only GPTQ orders columns; else `method` must tell it.
    """
    if settings.get("format") not in COMPRESSED:
        known = ", ".join(COMPRESSED)
        raise BadInput(f"{where} has the format {settings.get('format')!r}, which cannot be read: only {known} can.")
    schemes = list((settings.get("config_groups") or {}).values())
    weights = [scheme["weights"] for scheme in schemes if isinstance(scheme, dict) and scheme.get("weights")]
    keys = ("num_bits", "type", "symmetric", "strategy", "group_size", "actorder")
    found = [[one.get(key) for key in keys] for one in weights if isinstance(one, dict)]
    if len(found) != len(schemes) or not found or any(one != found[0] for one in found):
        raise BadInput(f"{where} has other settings for some layers: recipes have one for all layers.")
    bits, kind, symmetric, strategy, group, actorder = found[0]
    strategy = strategy or ("group" if type(group) is int and group > 0 else "channel")
    if kind != "int" or strategy not in ("group", "channel"):
        raise BadInput(f"{where} has {kind} weights scaled per {strategy}: only int per group or channel can be read.")
    more = {
        "activations": any(one.get(key) for one in schemes for key in ("input_activations", "output_activations")),
        "its cache": settings.get("kv_cache_scheme"),
        "pruned weights": (settings.get("sparsity_config") or {}).get("format", "dense") != "dense",
        "rotated weights": (settings.get("transform_config") or {}).get("config_groups"),
    }
    for what, found in more.items():
        if found:
            raise BadInput(f"{where} quantizes {what}, which no recipe names: bayesqid measures plain weights only.")
    method = method or _modifier(where) or ("gptq" if actorder else None)
    if method is None:
        raise _unknown(where, "does not say how it was made")
    size = group if strategy == "group" else -1
    return _recipe(where, method, bits, size, symmetric is not False, bool(actorder))


def _modifier(where: Path) -> str | None:
    """Method that llm-compressor's recipe.yaml names, None without that file; `BadInput` for ones we do not know."""
    file = where / "recipe.yaml"
    if not file.is_file():
        return None
    named = set(re.findall(r"\b(\w+Modifier)\b", files.read_text(file, MOST_RECIPE)))
    if len(named) != 1 or not named <= set(MODIFIERS):
        raise _unknown(where, f"was made by {' and '.join(sorted(named)) or 'nothing'}, as its recipe.yaml says")
    return MODIFIERS[named.pop()]


def compressed_weight(name: str, where: Path, tensors: Tensors, recipe: Recipe, settings: Settings) -> Tensor:
    """Weight s (q - z), float32 (outputs, inputs); codes and zero points have signs, packed ones are 2^(b-1) more."""
    scale, zero = tensors["weight_scale"].float(), tensors.get("weight_zero_point")
    scale = scale.reshape(len(scale), -1)
    if zero is None and not recipe.symmetric:
        raise BadInput(f"{where} lacks {name}.weight_zero_point, which an asymmetric grid needs: restore it.")
    if "weight_packed" in tensors:
        outputs, inputs = (int(size) for size in tensors["weight_shape"])
        packed = {1: (tensors["weight_packed"], inputs)}
        # older versions left zero points as they are
        if zero is not None and zero.dtype == torch.int32:
            packed[0] = (zero, outputs)
        layout, less = _layout(name, where, packed, recipe.bits), 2 ** (recipe.bits - 1)
        codes = packing.unpack(tensors["weight_packed"], recipe.bits, inputs, 1, layout) - less
        if 0 in packed:
            zero = packing.unpack(packed[0][0], recipe.bits, outputs, 0, layout) - less
    else:
        codes = tensors["weight"]
        inputs = codes.shape[1]
    given = tensors.get("weight_g_idx")
    # -1 stands for groups that nobody set
    given = None if given is None or int(given.min()) < 0 else given
    index = _groups(name, where, given, inputs, scale.shape[1], recipe)
    zero = torch.zeros_like(scale) if zero is None else zero.float().reshape(scale.shape)
    return scale[:, index] * (codes.float() - zero[:, index])


def _layout(name: str, where: Path, packed: Mapping[int, tuple[Tensor, int]], bits: int) -> str:
    """How words along a dimension hold so many codes: densely or, in older versions, padded; their number tells."""
    fits = [
        layout
        for layout in ("stream", "padded")
        if all(words.shape[dim] == packing.words(size, bits, layout) for dim, (words, size) in packed.items())
    ]
    straddle = packing.WORD % bits and any(size > packing.WORD // bits for _, size in packed.values())
    if not fits or (len(fits) > 1 and straddle):
        raise BadInput(f"{where} has words of {bits}-bit codes for {name} whose layout is not known: save it anew.")
    return fits[0]


class Kind(NamedTuple):
    """One way to store quantized layers: tensors they must and may have, first the one that tells them."""

    must: tuple[str, ...]
    may: tuple[str, ...]
    recipe: Callable[[Path, Settings, str | None], Recipe]
    weight: Callable[[str, Path, Tensors, Recipe, Settings], Tensor]


_MAY = ("weight_zero_point", "weight_g_idx")
_UNPACKED = Kind(("weight_scale", "weight"), _MAY, compressed_recipe, compressed_weight)
_PACKED = Kind(("weight_packed", "weight_scale", "weight_shape"), _MAY, compressed_recipe, compressed_weight)
# format of compressed-tensors -> how it stores layers
COMPRESSED = {"pack-quantized": _PACKED, "int-quantized": _UNPACKED, "naive-quantized": _UNPACKED}
_GPTQ = Kind(("qweight", "qzeros", "scales"), ("g_idx",), gptq_recipe, gptq_weight)


def kind(where: Path, settings: Settings) -> Kind:
    """How a quantized checkpoint stores its layers; `BadInput` for formats that cannot be read."""
    odd = [key for key, form in FORMS.items() if settings.get(key) is not None and not isinstance(settings[key], form)]
    if odd:
        raise BadInput(f"{where} has {str(settings[odd[0]])[:60]!r} for {odd[0]} in its quantization settings: "
                       "restore them.")  # fmt: skip
    method = settings.get("quant_method", "gptq" if "bits" in settings else None)
    if method == "gptq":
        return _GPTQ
    if method != "compressed-tensors":
        raise BadInput(f"{where} is quantized by {method}, which cannot be read: only gptq and compressed-tensors can.")
    # an unknown format is refused by what reads the recipe
    return COMPRESSED.get(str(settings.get("format")), _PACKED)
