"""Measurements: what was measured for every checkpoint, recipe and document, and what follows from it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bayesqid import files
from bayesqid.errors import BadInput
from bayesqid.recipe import Recipe

SCHEMA = "bayesqid-measurements/1"
MISSING, OK, FAILED = 0, 1, 2

# name -> (kind, what stands for unknown); the first ones are known before measuring, the last ones after
STATED = {
    "family": (object, ""),
    "model": (object, ""),
    "revision": (object, ""),
    "train_tokens": (float, np.nan),
    "lr_phase": (object, "unknown"),
    "lr_fraction": (float, np.nan),
    "seed": (int, -1),
}
FOUND = {
    "n_params": (int, 0),
    "n_params_nonembedding": (int, 0),
    "vocab_size": (int, 0),
    "weight_sha256": (object, ""),
}
CHECKPOINT = STATED | FOUND
RECIPE = {"method": object, "format": object, "bits": int, "group_size": int, "symmetric": bool, "options": object}
# which calibration text a recipe saw: its name, its windows, the seed that drew them; "", 0 and -1 for none
CALIBRATION = {"calibration": object, "calibration_windows": int, "calibration_seed": int}
# name -> (kind, value when missing) over (checkpoint, recipe)
CELL = {"status": (np.int8, MISSING), "reason": (object, ""), "note": (object, ""),
        "effective_bits": (float, np.nan), "quantized_fraction": (float, np.nan),
        "linear_fraction": (float, np.nan)}  # fmt: skip
# what files made before it was kept lack
LATER = ("linear_fraction",)
# name -> what it is, over (checkpoint, recipe, document)
SCORES = {
    "nats": ("loss summed over the document's tokens", "nats"),
    "kl_base_q": ("KL divergence of the quantized from the baseline predictions, summed over tokens", "nats"),
    "kl_q_base": ("KL divergence of the baseline from the quantized predictions, summed over tokens", "nats"),
    "top1": ("tokens at which baseline and quantized model agree on the likeliest token", "tokens"),
}
DIMS = ("checkpoint", "recipe", "document")
_CELL = ("checkpoint", "recipe")
# name -> (dims, what it is, unit): the loss landscape, in files for which it was asked; formulas in measure.landscape
LANDSCAPE = {
    "sqnr_db": (_CELL, "weights over their error when rounded to nearest on the recipe's grid, all layers", "dB"),
    "slope": (_CELL, "change of the loss along that error, first order", "nats"),
    "slope_se": (_CELL, "its standard error over documents", "nats"),
    "curvature": (_CELL, "second derivative of the loss along that error", "nats"),
    "curvature_se": (_CELL, "its standard error over documents", "nats"),
    "taylor": (_CELL, "slope + curvature / 2", "nats"),
    "layer_error": (_CELL, "mean squared change of the layers' outputs, summed over layers", "1"),
    "layer_sqnr_db": ((*_CELL, "layer"), "sqnr_db by layer, in the order of definition", "dB"),
    "hessian_trace": (("checkpoint",), "trace of the loss's Hessian in the quantized weights", "nats"),
    "hessian_trace_se": (("checkpoint",), "its standard error over probes", "nats"),
    "flatness": (("checkpoint", "radius"), "mean rise of the loss at a relative distance in random directions", "nats"),
    "flatness_se": (("checkpoint", "radius"), "its standard error over directions", "nats"),
}
# which radius of the profile stands for a model's flatness: about the distance of rounding to 4 bits per row
FLATNESS_RADIUS = 0.1


def empty(
    checkpoints: Mapping[str, Mapping[str, Any]],
    recipes: Iterable[Recipe],
    documents: Mapping[str, int],
    manifest: Mapping[str, Any],
) -> xr.Dataset:
    """A Dataset in which every cell is still missing.

    `checkpoints` maps an id to what is known of it, `documents` a document's id to its bytes.
    """
    recipes = list(recipes)
    size = (len(checkpoints), len(recipes), len(documents))
    coords: dict[str, Any] = {
        "checkpoint": np.array(list(checkpoints), dtype=object),
        "recipe": np.array([str(recipe) for recipe in recipes], dtype=object),
        "document": np.array(list(documents), dtype=object),
    }
    for name, (kind, unknown) in CHECKPOINT.items():
        values = [facts.get(name) for facts in checkpoints.values()]
        filled = [unknown if value is None else value for value in values]
        coords[name] = ("checkpoint", np.array(filled, dtype=kind))
    drawn = [_calibration(recipe, manifest.get("protocol", {})) for recipe in recipes]
    columns = [{name: getattr(recipe, name) for name in RECIPE} | {"options": " ".join(recipe.options)} | one
               for recipe, one in zip(recipes, drawn, strict=True)]  # fmt: skip
    for name, kind in (RECIPE | CALIBRATION).items():
        coords[name] = ("recipe", np.array([column[name] for column in columns], dtype=kind))
    data: dict[str, Any] = {
        name: (DIMS, np.full(size, np.nan), {"long_name": text, "units": units})
        for name, (text, units) in SCORES.items()
    }
    data["tokens"] = (("checkpoint", "document"), np.zeros((size[0], size[2]), dtype=np.int64))
    data["bytes"] = ("document", np.array(list(documents.values()), dtype=np.int64))
    for name, (kind, missing) in CELL.items():
        data[name] = (("checkpoint", "recipe"), np.full(size[:2], missing, dtype=kind))
    return xr.Dataset(data, coords, {"schema": SCHEMA, "manifest": json.dumps(manifest, sort_keys=True)})


def _calibration(recipe: Recipe, protocol: Mapping[str, Any]) -> dict[str, Any]:
    values = (protocol.get("calibration", ""), protocol.get("calibration_windows", 0), recipe.seed)
    return dict(zip(CALIBRATION, values if recipe.calibrated else ("", 0, -1), strict=True))


# how a variable may lie in memory, by what stands for it in the tables above
KINDS = {object: "OUT", int: "biu", float: "biuf", bool: "biu", np.int8: "biu"}


def _forms() -> dict[str, tuple[tuple[str, ...], str]]:
    """Dims and letters of numpy's kinds of every variable that a file may hold."""
    by_dims = {("checkpoint",): CHECKPOINT, ("recipe",): RECIPE | CALIBRATION, _CELL: CELL}
    kinds = {name: (dims, kind[0] if isinstance(kind, tuple) else kind)
             for dims, table in by_dims.items() for name, kind in table.items()}  # fmt: skip
    kinds |= dict.fromkeys(SCORES, (DIMS, float)) | {name: ((name,), object) for name in DIMS}
    kinds |= {name: (dims, float) for name, (dims, *_) in LANDSCAPE.items()}
    kinds |= {"tokens": (("checkpoint", "document"), int), "bytes": (("document",), int)}
    return {name: (dims, KINDS[kind]) for name, (dims, kind) in kinds.items()}


def validate(data: xr.Dataset, where: str | Path = "the dataset") -> xr.Dataset:
    """The same Dataset if it is one of measurements, else `BadInput` naming `where`."""
    if (found := files.schema_of(data)) != SCHEMA:
        raise BadInput(f"{where} is not a measurements file (schema {found!r}): make it anew.")
    needed = {*SCORES, *CELL, *CHECKPOINT, *RECIPE, *CALIBRATION, "tokens", "bytes", *DIMS} - {*LATER}
    absent = sorted(needed - set(map(str, data.variables)))
    if absent or "manifest" not in data.attrs:
        raise BadInput(f"{where} lacks {(absent or ['its manifest'])[0]}: measure it again.")
    held = data.variables
    odd = [name for name, (dims, kinds) in _forms().items()
           if name in held and (held[name].dims != dims or held[name].dtype.kind not in kinds)]  # fmt: skip
    if odd:
        raise BadInput(f"{where} holds {odd[0]} in another form than measurements have: measure it again.")
    if not data.sizes["recipe"]:
        raise BadInput(f"{where} holds no recipe: measure it again.")
    manifest(data, where)
    ids = data.indexes["checkpoint"]
    if not ids.is_unique or not data.indexes["recipe"].is_unique:
        raise BadInput(f"{where} holds a checkpoint or recipe twice: measure it again.")
    scored = np.isfinite(data["nats"].values).all(axis=2)
    if ((data["status"].values == OK) & ~scored).any():
        raise BadInput(f"{where} marks cells as measured that hold no loss: measure it again.")
    return data


def read(path: str | Path) -> xr.Dataset:
    """Measurements from a file; `BadInput` when it is missing, corrupt or something else.

    Scores that a file keeps in fewer digits, to be small, come in float64 as all others: sums over documents need it.
    """
    data = _plain_texts(validate(files.open_dataset(path), path))
    if "linear_fraction" not in data:
        quantized = data["quantized_fraction"]
        data = data.assign(linear_fraction=(quantized > 0).astype(float).where(quantized.notnull()))
    short = [name for name in SCORES if data[name].dtype != float]
    return data.assign({name: data[name].astype(float) for name in short})


def _plain_texts(data: xr.Dataset) -> xr.Dataset:
    """The Dataset with Python strings only: numpy's own kind among them cannot be written."""
    for name, variable in data.variables.items():
        if variable.dtype == object and name not in data.indexes:
            texts = np.array([str(text) for text in variable.values.flat], dtype=object)
            data[name] = (variable.dims, texts.reshape(variable.shape), variable.attrs)
    return data


def manifest(data: xr.Dataset, where: str | Path = "the dataset") -> dict[str, Any]:
    """How the measurements were made: suite, protocol, versions, device."""
    told = files.json_of(str(data.attrs["manifest"]), f"The manifest of {where}")
    kinds = {"suite": str, "protocol": dict, "device": str}
    odd = [name for name, kind in kinds.items() if not isinstance(told, dict) or not isinstance(told.get(name), kind)]
    if odd or not isinstance(told["protocol"].get("landscape", {}), dict):
        raise BadInput(f"The manifest of {where} does not tell its {[*odd, 'landscape'][0]}: measure it again.")
    return told


def merge(frame: xr.Dataset, parts: Iterable[xr.Dataset]) -> xr.Dataset:
    """`frame` (from `empty`) with every measured or failed cell of the parts filled in.

    A measured cell is never replaced by a failed one. The same weights under two names fail both: which
    of them is mislabelled cannot be told.
    """
    merged = frame.copy(deep=True)
    rows, columns = merged.indexes["checkpoint"], merged.indexes["recipe"]
    for part in parts:
        row, column = (
            rows.get_indexer(part.indexes["checkpoint"]),
            columns.get_indexer(part.indexes["recipe"]),
        )
        if not part.indexes["document"].equals(merged.indexes["document"]):
            raise BadInput("A part was measured on other documents: measure into another file.")
        for i, here in enumerate(row):
            known = str(part["weight_sha256"].values[i]) != ""
            for name in FOUND if known else ():
                merged[name].values[here] = part[name].values[i]
            if known:
                merged["tokens"].values[here] = part["tokens"].values[i]
            for j, there in enumerate(column):
                status = part["status"].values[i, j]
                if status == OK or (status == FAILED and merged["status"].values[here, there] != OK):
                    for name in (*CELL, *SCORES):
                        merged[name].values[here, there] = part[name].values[i, j]
    return _plain_texts(refuse_duplicates(merged))


def refuse_duplicates(data: xr.Dataset) -> xr.Dataset:
    """The Dataset with all cells of checkpoints that share their weights marked as failed, and why."""
    named: dict[str, list[str]] = {}
    for name, digest in zip(data["checkpoint"].values, data["weight_sha256"].values, strict=True):
        named.setdefault(str(digest), []).append(str(name))
    shared = {digest: names for digest, names in named.items() if digest and len(names) > 1}
    return refuse(data, {name: next(other for other in names if other != name)
                         for names in shared.values() for name in names})  # fmt: skip


def refuse(data: xr.Dataset, twins: Mapping[str, str]) -> xr.Dataset:
    """The Dataset with all cells of checkpoints marked as failed that are copies, by the id of the other one."""
    data = data.copy(deep=True)
    for row, name in enumerate(data["checkpoint"].values.astype(str)):
        if name in twins:
            data["status"].values[row] = FAILED
            data["reason"].values[row] = f"the same weights as {twins[name]}"
            for scores in SCORES:
                data[scores].values[row] = np.nan
    return data


def _tokens(data: xr.Dataset) -> xr.DataArray:
    """Tokens per checkpoint, NaN where none were counted."""
    total = data["tokens"].sum("document")
    return total.where(total > 0)


def loss(data: xr.Dataset) -> xr.DataArray:
    """Mean loss sum(nats) / sum(tokens), nats per token, (checkpoint, recipe); NaN where not measured."""
    return data["nats"].sum("document", skipna=False) / _tokens(data)


def loss16(data: xr.Dataset) -> xr.DataArray:
    """Mean loss of the unquantized model, nats per token, (checkpoint)."""
    return _baseline(loss(data))


def _baseline(values: xr.DataArray) -> xr.DataArray:
    if "none" not in values.indexes["recipe"]:
        raise BadInput("The measurements lack the recipe 'none', the model unquantized: measure it as well.")
    return values.sel(recipe="none", drop=True)


def _differences(data: xr.Dataset) -> xr.DataArray:
    return data["nats"] - _baseline(data["nats"])


def qid(data: xr.Dataset) -> xr.DataArray:
    """QiD = sum(nats_q - nats_none) / sum(tokens), nats per token, (checkpoint, recipe)."""
    return _differences(data).sum("document", skipna=False) / _tokens(data)


def ratio_se(sums: xr.DataArray, tokens: xr.DataArray) -> xr.DataArray:
    """Standard error of R = sum_i d_i / sum_i t_i with documents as clusters, over all but `document`.

    se^2 = n/(n-1) sum_i (d_i - R t_i)^2 / (sum_i t_i)^2 over n documents with sum d_i and tokens t_i.
    """
    total = tokens.sum("document").where(lambda count: count > 0)
    residual = sums - sums.sum("document", skipna=False) / total * tokens
    clusters = (tokens > 0).sum("document")
    correction = (clusters / (clusters - 1)).where(clusters > 1)
    return (correction * (residual**2).sum("document", skipna=False)) ** 0.5 / total


def qid_se(data: xr.Dataset) -> xr.DataArray:
    """Standard error of `qid` from the pairs, same shape."""
    return ratio_se(_differences(data), data["tokens"])


def kl_se(data: xr.Dataset, direction: str = "base_q") -> xr.DataArray:
    """Standard error of `kl`, same shape."""
    return ratio_se(data[f"kl_{direction}"], data["tokens"])


def top1_agreement_se(data: xr.Dataset) -> xr.DataArray:
    """Standard error of `top1_agreement`, same shape."""
    return ratio_se(data["top1"], data["tokens"])


def kl(data: xr.Dataset, direction: str = "base_q") -> xr.DataArray:
    """Mean KL(baseline || quantized), or the reverse for `q_base`, nats per token, (checkpoint, recipe)."""
    return data[f"kl_{direction}"].sum("document", skipna=False) / _tokens(data)


def top1_agreement(data: xr.Dataset) -> xr.DataArray:
    """Share of tokens at which both models hold the same token for the likeliest, (checkpoint, recipe)."""
    return data["top1"].sum("document", skipna=False) / _tokens(data)


def bits_per_byte(data: xr.Dataset) -> xr.DataArray:
    """Loss sum(nats) / (ln 2 sum(bytes)), comparable across tokenizers, (checkpoint, recipe)."""
    return data["nats"].sum("document", skipna=False) / (np.log(2) * data["bytes"].sum("document"))


def failures(data: xr.Dataset) -> dict[str, str]:
    """Why cells failed: {checkpoint: reason} if all of its cells did for one reason, else per cell."""
    found: dict[str, str] = {}
    for row, name in enumerate(data["checkpoint"].values):
        failed = data["status"].values[row] == FAILED
        reasons = data["reason"].values[row][failed]
        if failed.all() and len(set(reasons)) == 1:
            found[str(name)] = str(reasons[0])
        else:
            labels = data["recipe"].values[failed]
            found |= {f"{name} {label}": str(why) for label, why in zip(labels, reasons, strict=True)}
    return found


def table(data: xr.Dataset) -> str:
    """Text table of QiD in nats per token, checkpoints by recipes, with the loss before quantization."""
    values = qid(data)
    recipes = [str(name) for name in data["recipe"].values if name != "none"]
    wide = max((len(str(name)) for name in data["checkpoint"].values), default=10)
    lines = ["  ".join(["checkpoint".ljust(wide), "loss16".rjust(7), *(name.rjust(10) for name in recipes)])]
    for name, before in zip(data["checkpoint"].values, loss16(data).values, strict=True):
        row = [f"{values.sel(checkpoint=name, recipe=recipe).item():.4f}".rjust(10) for recipe in recipes]
        lines.append("  ".join([str(name).ljust(wide), f"{before:7.4f}", *row]).replace("nan", "  -"))
    return "\n".join(lines)
