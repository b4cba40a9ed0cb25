"""A checkpoint's quantize_config.json with perplexities that were reported for it."""

from pathlib import Path
from typing import Any

from bayesqid.errors import BadInput
from bayesqid.importers import formats, tables
from bayesqid.importers.formats import Found, Given

NAMES = ("quantize_config.json", "config.json")
# what a configuration calls its method -> printed name; with activation order GPTQ has another
METHODS = {"gptq": "gptq", "awq": "awq"} | dict.fromkeys(("autoround", "auto-round", "intel/auto-round"), "autoround")
# where a model's config.json has its width
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")


def recognises(path: Path) -> bool:
    """Whether a path is a quantization configuration or a folder that has one."""
    return _configuration(path) is not None


def _configuration(path: Path) -> Path | None:
    options = [path] if path.is_file() and path.suffix == ".json" else [path / name for name in NAMES]
    for file in (file for file in options if file.is_file()):
        try:
            held = formats.json_object(file)
        except BadInput:
            continue
        if "bits" in _settings(held) and ("group_size" in _settings(held) or "quant_method" in _settings(held)):
            return file
    return None


def _settings(held: dict[str, Any]) -> dict[str, Any]:
    inner = held.get("quantization_config")
    return inner if isinstance(inner, dict) else held


def read(paths: list[Path], given: Given) -> Found:
    """One row per configuration: QiD = ln(quantized / baseline) of the perplexities after --ppl.

    Effective bits are b + (16 + b)/g, symmetric b + 16/g, as of all uniform grids. `BadInput` when the perplexities
    or a fact of the model are missing, or the configuration mixes bit widths.
    """
    if given.ppl is None or given.ppl.count(":") != 1:
        raise BadInput("Give the perplexities that were reported as --ppl BASELINE:QUANTIZED, e.g. --ppl 5.47:5.63.")
    before, after = (part.strip() for part in given.ppl.split(":"))
    for part in (before, after):
        if formats.number(part, "--ppl") <= 1:
            raise BadInput(f"--ppl {given.ppl}: a perplexity is above 1: mend it.")
    if len(paths) > 1:
        raise BadInput("One --ppl is of one checkpoint: import the configurations one by one, or as a table.")
    file = _configuration(paths[0])
    if file is None:
        raise BadInput(f"{paths[0]} holds no quantization configuration: name a quantize_config.json or its folder.")
    held = formats.json_object(file)
    facts = formats.identify(given, file.absolute().parent.name)
    row = {**facts, **_columns(_settings(held), held, facts, str(file)), "ppl_fp": before, "ppl_q": after,
           **formats.protocol(given, "gptq", "", None)}  # fmt: skip
    notes = [] if given.text else ["The text of the perplexities is not told: --text does, e.g. --text wikitext2."]
    return Found([row], [], notes, [file])


def _columns(said: dict[str, Any], held: dict[str, Any], facts: dict[str, Any], where: str) -> dict[str, Any]:
    if said.get("dynamic"):
        raise BadInput(f"{where} gives some layers other bits (dynamic), so it has no one recipe: import it as a table "
                       "with the column effective_bits.")  # fmt: skip
    meta = said.get("meta")
    own = meta.get("recipe") if isinstance(meta, dict) else None
    if isinstance(own, str):  # bayesqid wrote it: the format says gptq of rtn too
        return formats.quantizer(own, _width(held, facts))
    bits = _whole(said.get("bits", said.get("w_bit")), f"{where}: bits")
    group = _whole(said.get("group_size", said.get("q_group_size", -1)), f"{where}: group_size")
    name = str(said.get("quant_method", "gptq")).casefold()
    if name not in METHODS:
        raise BadInput(f"{where} is of the method {name!r}: known are {', '.join(METHODS)}; import it as a table.")
    symmetric = bool(said.get("sym", name != "awq")) and not said.get("zero_point")
    span = group if group > 0 else _width(held, facts)
    stored = tables.uniform_bits(bits, span, symmetric) if span else None
    method = "gptq-actorder" if METHODS[name] == "gptq" and said.get("desc_act") else METHODS[name]
    return {"method": method, "bits": bits, "group_size": group, "effective_bits": stored}


def _whole(value: Any, where: str) -> int:
    found = formats.number(value, where)
    if found != int(found):
        raise BadInput(f"{where} is {value}, not a whole number.")
    return int(found)


def _width(held: dict[str, Any], facts: dict[str, Any]) -> float | None:
    found = [held[key] for key in WIDTH_KEYS if isinstance(held.get(key), int) and held[key] > 0]
    known = facts.get("width")
    return found[0] if found else known if known == known else None
