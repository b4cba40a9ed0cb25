"""Cells: the long form that inference reads, one row per (checkpoint, recipe, evaluation), whatever its origin."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from bayesqid import methods
from bayesqid.errors import BadInput
from bayesqid.likelihood import LN10

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "bayesqid-cells/1"
# Outside these effective bits the laws do not hold: below, ternary and binary mixes; above, a floor near 1e-3 nats
BITS_RANGE = (1.9, 6.7)
# nats: what a paired standard error leaves out. Rounding moves the loss by a first-order term of either sign too,
# which the pairing over documents does not see: on the ladder QiDs of young models lie down to 2e-3 below zero
NOISE_FLOOR = 1e-3

TEXTS = ("family", "model", "checkpoint", "lr_phase", "method", "variant", "generation", "quantizer",
         "eval_dataset", "source", "source_method")  # fmt: skip
NUMBERS = ("n_params", "n_params_nonembedding", "train_tokens", "lr_fraction", "vocab_size", "bits", "group_size",
           "effective_bits", "ctx_len", "loss16", "headroom")  # fmt: skip
FLAGS = ("per_channel",)
VALUES = {"qid": float, "qid_se": float, "censored": bool}
LONG_NAMES = {
    "qid": "quantization-induced degradation, loss after minus loss before (nats per token)",
    "qid_se": "standard error of qid (nats per token)",
    "censored": "diverged: only qid > ln 10 is known",
}


def build(
    columns: Mapping[str, np.ndarray], excluded: Mapping[str, Mapping[str, int]], sources: list[dict]
) -> xr.Dataset:
    """Cells Dataset from columns of equal length; adds `quantizer` and `source_method`, the keys of the effects."""
    columns = dict(columns)
    quantizer = [methods.effect_key(m, v) for m, v in zip(columns["method"], columns["variant"], strict=True)]
    columns["quantizer"] = np.array(quantizer)
    columns["source_method"] = np.array([f"{s} | {q}" for s, q in zip(columns["source"], quantizer, strict=True)])
    coords = {name: ("cell", np.asarray(columns[name], dtype=str).astype(object)) for name in TEXTS}
    coords |= {name: ("cell", np.asarray(columns[name], dtype=float)) for name in NUMBERS}
    coords |= {name: ("cell", np.asarray(columns[name], dtype=bool)) for name in FLAGS}
    values = {name: ("cell", np.asarray(columns[name], dtype=kind), {"long_name": LONG_NAMES[name]})
              for name, kind in VALUES.items()}  # fmt: skip
    attrs = {"schema": SCHEMA, "excluded": json.dumps(excluded, sort_keys=True), "sources": json.dumps(sources)}
    return xr.Dataset(values, coords, attrs)


def count_by_family(reasons: Iterable[str], families: Iterable[str]) -> dict[str, dict[str, int]]:
    """{reason: {family: rows}} for the rows with a reason that is not empty."""
    counts: dict[str, dict[str, int]] = {}
    for reason, family in zip(reasons, families, strict=True):
        if reason:
            counts.setdefault(reason, {}).setdefault(family, 0)
            counts[reason][family] += 1
    return counts


def from_table(table: "pd.DataFrame", source: Mapping[str, object]) -> xr.Dataset:
    """Cells of a derived table (`bayesqid.importers.tables.derive`); only its default rows, the others counted."""
    keep = table["default"].astype(bool).to_numpy()
    excluded = count_by_family(table["default_reason"].fillna("").where(~keep, ""), table["family"])
    rows: pd.DataFrame = table.loc[keep]
    columns = {name: rows[name].fillna("").to_numpy() for name in TEXTS if name in rows}
    columns |= {name: rows[name].to_numpy(dtype=float) for name in NUMBERS}
    nominal = np.isnan(columns["effective_bits"])
    columns["effective_bits"] = np.where(nominal, columns["bits"], columns["effective_bits"])
    columns |= {"per_channel": rows["per_channel"].to_numpy(dtype=bool), "qid": rows["qid"].to_numpy(float),
                "qid_se": rows["qid_se_total"].to_numpy(float),
                "censored": rows["censored"].to_numpy(bool)}  # fmt: skip
    return build(columns, excluded, [{**source, "rows_at_nominal_bits": int(nominal.sum())}])


def from_measurements(data: xr.Dataset, source: Mapping[str, object]) -> xr.Dataset:
    """Cells of a measurement file: paired QiD with its clustered standard error, one cell per measured recipe.

    Recipes outside the range of bits in which the laws hold and cells that failed are left out and counted.
    """
    from bayesqid import measurements

    try:
        manifest = json.loads(data.attrs["manifest"])
        suite, protocol = manifest["suite"], manifest["protocol"]
        text, context = protocol["text"], float(protocol["context"])
    except (ValueError, KeyError, TypeError):
        raise BadInput("The measurements lack suite, text or context in their manifest: measure again.") from None
    qid = measurements.qid(data)
    grid = xr.Dataset({"qid": qid, "qid_se": measurements.qid_se(data), "status": data["status"],
                       "effective_bits": data["effective_bits"]})  # fmt: skip
    grid["loss16"] = measurements.loss16(data).broadcast_like(qid)
    frame = grid.drop_sel(recipe="none").stack(cell=("checkpoint", "recipe")).reset_index("cell")

    def of(name: str) -> np.ndarray:
        return frame[name].to_numpy()

    checkpoint = dict(zip(data["checkpoint"].to_numpy().astype(str), range(data.sizes["checkpoint"]), strict=True))
    row = np.array([checkpoint[str(name)] for name in of("checkpoint")])
    per_checkpoint = {
        name: data[name].to_numpy()[row]
        for name in ("family", "model", "n_params", "n_params_nonembedding", "train_tokens", "lr_phase", "lr_fraction",
                     "vocab_size")  # fmt: skip
    }
    recipe = data.sel(recipe=of("recipe"))
    method = recipe["method"].to_numpy().astype(str)
    bits = of("effective_bits").astype(float)
    reasons = np.where(of("status") == 2, "measurement failed", np.where(of("status") != 1, "not measured", ""))
    outside = (bits < BITS_RANGE[0]) | (bits > BITS_RANGE[1])
    reasons = np.where((reasons == "") & outside, "effective bits outside 1.9 to 6.7", reasons)
    keep = reasons == ""
    columns = {
        **per_checkpoint,
        "checkpoint": of("checkpoint").astype(str),
        "method": method,
        "variant": np.full(method.size, ""),
        "generation": np.array([methods.generation(m) for m in method]),
        "bits": recipe["bits"].to_numpy(),
        "group_size": recipe["group_size"].to_numpy(),
        "effective_bits": bits,
        "per_channel": recipe["group_size"].to_numpy() == -1,
        "eval_dataset": np.full(method.size, text),
        "ctx_len": np.full(method.size, context),
        "source": np.full(method.size, f"measured: {suite}"),
        "loss16": of("loss16"),
        "headroom": np.log(per_checkpoint["vocab_size"].astype(float)) - of("loss16"),
        "qid": of("qid"),
        "qid_se": np.hypot(of("qid_se"), NOISE_FLOOR),
        "censored": of("qid") > LN10,
    }
    excluded = count_by_family(reasons, per_checkpoint["family"].astype(str))
    return build({name: values[keep] for name, values in columns.items()}, excluded, [dict(source)])


def join(parts: list[xr.Dataset]) -> xr.Dataset:
    """All cells of several sets one after another; exclusions add up; `BadInput` if a checkpoint occurs twice."""
    seen: dict[str, int] = {}
    for number, part in enumerate(parts):
        for name in set(part["checkpoint"].to_numpy() + "\n" + part["source"].to_numpy()):
            if seen.setdefault(name, number) != number:
                label = name.split("\n")[0]
                raise BadInput(f"Checkpoint {label} stands in two of the data sets given: leave one of them out.")
    excluded: dict[str, dict[str, int]] = {}
    for part in parts:
        for reason, families in json.loads(part.attrs["excluded"]).items():
            for family, count in families.items():
                excluded.setdefault(reason, {}).setdefault(family, 0)
                excluded[reason][family] += count
    sources = [source for part in parts for source in json.loads(part.attrs["sources"])]
    joined = xr.concat(parts, dim="cell", combine_attrs="drop") if len(parts) > 1 else parts[0].copy()
    joined.attrs = {"schema": SCHEMA, "excluded": json.dumps(excluded, sort_keys=True), "sources": json.dumps(sources)}
    return joined


def check(cells: xr.Dataset) -> xr.Dataset:
    """The same cells if inference can use them; `BadInput` names what is not a positive finite number."""
    if cells.attrs.get("schema") != SCHEMA:
        raise BadInput(f"The data have schema {cells.attrs.get('schema')!r}, not {SCHEMA}: make the file again.")
    if cells.sizes["cell"] == 0:
        raise BadInput("No cell is left after the exclusions: measure or import some first.")
    for name in ("n_params_nonembedding", "train_tokens", "effective_bits", "qid_se", "headroom", "ctx_len"):
        bad = np.flatnonzero(~(cells[name].to_numpy() > 0) | ~np.isfinite(cells[name].to_numpy()))
        if bad.size:
            where = f"{cells['checkpoint'].to_numpy()[bad[0]]} ({cells['quantizer'].to_numpy()[bad[0]]})"
            raise BadInput(f"{name} of {where} is {cells[name].to_numpy()[bad[0]]}: give a number above zero.")
    bad = np.flatnonzero(~np.isfinite(cells["qid"].to_numpy()) & ~cells["censored"].to_numpy())
    if bad.size:
        raise BadInput(f"qid of {cells['checkpoint'].to_numpy()[bad[0]]} is not a finite number: leave the row out.")
    return cells
