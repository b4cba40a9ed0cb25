"""Cells: the long form that inference reads, one row per (checkpoint, recipe, evaluation), whatever its origin."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from bayesqid import files, measurements, methods
from bayesqid.errors import BadInput
from bayesqid.likelihood import LN10
from bayesqid.quantized_share import PLAIN
from bayesqid.recipe import BASELINE_BITS, METHODS, Recipe, parse

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "bayesqid-cells/1"
# Outside these effective bits the laws do not hold: below, ternary and binary mixes; above, a floor near 1e-3 nats
BITS_RANGE = (1.9, 6.7)
# nats: what a paired standard error leaves out. Rounding moves the loss by a first-order term of either sign too,
# which the pairing over documents does not see: on the ladder QiDs of young models lie down to 2e-3 below zero
NOISE_FLOOR = 1e-3
# nats: the QiD at which the absolute and the relative part of calibration noise are equal (docs/calibration-noise.md)
EVEN_QID = 0.015
# what other cells say of a cell's calibration noise counts as much as this many more draws of its own (same place)
POOLED_DRAWS = 4
# draws below which a cell's own spread says nothing
FEWEST_DRAWS = 3

TEXTS = ("family", "model", "checkpoint", "lr_phase", "method", "variant", "generation", "quantizer",
         "eval_dataset", "source", "source_method")  # fmt: skip
NUMBERS = ("n_params", "n_params_nonembedding", "train_tokens", "lr_fraction", "vocab_size", "bits", "group_size",
           "effective_bits", "ctx_len", "loss16", "headroom")  # fmt: skip
FLAGS = ("per_channel",)
# the loss landscape, for cells of measurements that have it: unknown (NaN) where it was not measured
FEATURES = ("sqnr_db", "slope", "curvature", "taylor", "layer_error", "hessian_trace", "flatness_r")
VALUES = {"qid": float, "qid_se": float, "censored": bool, "calibration_sd": float}
LONG_NAMES = {
    "qid": "quantization-induced degradation, loss after minus loss before (nats per token)",
    "qid_se": "standard error of qid (nats per token)",
    "censored": "diverged: only qid > ln 10 is known",
    "calibration_sd": "standard deviation of qid over draws of the calibration text, one draw; NaN: unknown",
}


def build(
    columns: Mapping[str, np.ndarray], excluded: Mapping[str, Mapping[str, int]], sources: list[dict]
) -> xr.Dataset:
    """Cells Dataset from columns of equal length; adds `quantizer` and `source_method`, the keys of the effects.

    `calibration_sd` may be left out: unknown.
    """
    columns = {"calibration_sd": np.full(len(columns["qid"]), np.nan), **columns}
    quantizer = [methods.effect_key(m, v) for m, v in zip(columns["method"], columns["variant"], strict=True)]
    columns["quantizer"] = np.array(quantizer)
    columns["source_method"] = np.array([f"{s} | {q}" for s, q in zip(columns["source"], quantizer, strict=True)])
    coords = {name: ("cell", np.asarray(columns[name], dtype=str).astype(object)) for name in TEXTS}
    coords |= {name: ("cell", np.asarray(columns[name], dtype=float)) for name in NUMBERS}
    coords |= {name: ("cell", np.asarray(columns[name], dtype=bool)) for name in FLAGS}
    coords |= {name: ("cell", np.asarray(columns[name], dtype=float)) for name in FEATURES if name in columns}
    coords |= {name: ("cell", np.asarray(columns[name], dtype=object if isinstance(plain, str) else float))
               for name, plain in PLAIN.items() if name in columns}  # fmt: skip
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


def _over_draws(data: xr.Dataset) -> xr.Dataset:
    """Recipes that differ only in their calibration seed made one, by the mean of each document's nats over draws.

    Draws that were not measured are left out; they share their landscape, if it was measured. Adds over (checkpoint,
    recipe) `draws`, those that count, `lost`, those that failed, and `spread`, the standard deviation of their QiD.
    """
    groups: dict[Recipe, list[int]] = {}
    for index, name in enumerate(data["recipe"].to_numpy()):
        groups.setdefault(replace(parse(str(name)), seed=0), []).append(index)
    kept = ["nats", "effective_bits", "linear_fraction",
            *(name for name in FEATURES if name in data and "recipe" in data[name].dims)]  # fmt: skip
    data = data[[*kept, "tokens", "status"]].assign(qid=measurements.qid(data))
    merged: list[xr.Dataset] = []
    for recipe, members in groups.items():
        drawn = data.isel(recipe=members)
        ok = drawn["status"] == measurements.OK
        # the baseline is no draw and stands as it is
        mean = drawn[kept].where(ok | (recipe.method == "none")).mean("recipe")
        status = xr.where(ok.any("recipe"), measurements.OK, drawn["status"].max("recipe"))
        draws, qid = ok.sum("recipe"), drawn["qid"].where(ok)
        one = {"status": status, "draws": draws, "lost": (drawn["status"] == measurements.FAILED).sum("recipe"),
               "spread": np.sqrt(((qid - qid.mean("recipe")) ** 2).sum("recipe") / (draws - 1).where(draws > 1))}
        merged.append(mean.assign(one).expand_dims(recipe=[str(recipe)]))
    return xr.concat(merged, "recipe").assign(tokens=data["tokens"])


def calibration_sd(qid: np.ndarray, spread: np.ndarray, draws: np.ndarray, quantizer: np.ndarray) -> np.ndarray:
    """Standard deviation of QiD over draws of the calibration text, one draw, nats per token, by cell; NaN: unknown.

    sd^2 = (m k^2 (q^2 + q0^2) + (S - 1) s^2) / (m + S - 1), where a cell has S draws of mean q and standard deviation
    s; k^2 is the mean of s^2 / (q^2 + q0^2), weighted by S - 1, over the cells of its quantizer in the same file; m is
    `POOLED_DRAWS`, q0 is `EVEN_QID`. Cells of fewer than `FEWEST_DRAWS` draws or past ln 10 have no say (S - 1 = 0).
    A few draws alone will not do: with three, intervals of 90 % held 76 % of further draws, with the pooled part 90 %
    (docs/calibration-noise.md). A quantizer without a cell of enough draws stays unknown.
    """
    counts = (draws >= FEWEST_DRAWS) & ~(qid > LN10)
    own, freedom = np.where(counts, spread, 0.0) ** 2, np.where(counts, draws - 1.0, 0.0)
    scale = qid**2 + EVEN_QID**2
    pooled = np.full(qid.size, np.nan)
    for name in np.unique(quantizer[counts]):
        of = quantizer == name
        pooled[of] = scale[of] * (freedom * own / scale)[of].sum() / freedom[of].sum()
    return np.sqrt((POOLED_DRAWS * pooled + freedom * own) / (POOLED_DRAWS + freedom))


def _shares(recipes: list[Recipe], share: np.ndarray) -> dict[str, np.ndarray]:
    """Columns that tell which part of the weights was quantized; none where all recipes are for all of them."""
    if not any(recipe.partial for recipe in recipes):
        return {}
    texts = {"granularity": [recipe.granularity for recipe in recipes],
             "assignment": ["random" if recipe.partial else "" for recipe in recipes]}  # fmt: skip
    return {"quantized_fraction": np.where([recipe.partial for recipe in recipes], share, 1.0),
            **{name: np.array(values, dtype=object) for name, values in texts.items()}}  # fmt: skip


def _drawn_twice(checkpoint: np.ndarray, recipes: list[Recipe], qid: np.ndarray) -> np.ndarray:
    """Cells of recipes for a share of the weights whose draw took the layers of an earlier one, (cell,).

    Few layers have few assignments; the same one has the same QiD to the bit.
    """
    seen: set[tuple] = set()
    again = np.zeros(qid.size, dtype=bool)
    for cell, (name, recipe, value) in enumerate(zip(checkpoint, recipes, qid, strict=True)):
        key = (str(name), recipe.whole, float(value))
        again[cell] = recipe.partial and key in seen
        seen |= {key} if recipe.partial else set()
    return again


def _landscape(data: xr.Dataset, row: np.ndarray, frame: xr.Dataset) -> dict[str, np.ndarray]:
    """`FEATURES` by cell, of checkpoints in the given rows; nothing where the landscape was not measured.

    `flatness_r` is the flatness at the relative radius r = `measurements.FLATNESS_RADIUS`, NaN where that is not among
    those measured.
    """
    if "flatness" not in data:
        return {}
    near = data["flatness"].where(np.isclose(data["radius"], measurements.FLATNESS_RADIUS)).max("radius")
    own = {"hessian_trace": data["hessian_trace"].to_numpy()[row], "flatness_r": near.to_numpy()[row]}
    return own | {name: frame[name].to_numpy() for name in FEATURES if name in frame}


def from_measurements(data: xr.Dataset, source: Mapping[str, object]) -> xr.Dataset:
    """Cells of a measurement file, one per checkpoint and recipe; recipes of several calibration seeds are one.

    qid is the mean over the S draws of calibration text and qid_se^2 = paired^2 + calibration_sd^2 / S + floor^2:
    the pairing sees how documents differ, not how another calibration text would have set the weights, which moves
    all of them together. `calibration_sd` is 0 for quantizers without calibration text; where it is unknown (a
    file with one draw each, checkpoints saved quantized) it is NaN and missing from qid_se. What documents and draws
    do together is in both terms (4 to 11 % of the variance over draws): qid_se is that much too wide.
    effective_bits of a recipe for a share Qr of the weights are those of that share alone, (P - 16 (1 - Qr)) / Qr.
    Recipes outside the range of bits in which the laws hold, draws that took the same layers as another, assignments
    with formats that differ from layer to layer, and cells that failed are left out and counted.
    """
    try:
        manifest = files.json_of(str(data.attrs["manifest"]), "The manifest")
        suite, protocol = manifest["suite"], manifest["protocol"]
        text, context = protocol["text"], float(protocol["context"])
        if not (isinstance(text, str) and isinstance(suite, str)):
            raise TypeError("no texts")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise BadInput("The measurements lack suite, text or context in their manifest: measure again.") from None
    merged = _over_draws(data)
    grid = merged.drop_vars(("nats", "tokens")).assign(qid=measurements.qid(merged), paired=measurements.qid_se(merged))
    grid["loss16"] = measurements.loss16(merged).broadcast_like(grid["qid"])
    frame = grid.drop_sel(recipe="none").stack(cell=("checkpoint", "recipe")).reset_index("cell")

    def of(name: str) -> np.ndarray:
        return frame[name].to_numpy()

    row = data.indexes["checkpoint"].get_indexer(of("checkpoint"))
    per_checkpoint = {
        name: data[name].to_numpy()[row]
        for name in ("family", "model", "n_params", "n_params_nonembedding", "train_tokens", "lr_phase", "lr_fraction",
                     "vocab_size")  # fmt: skip
    }
    recipes = [parse(str(name)) for name in of("recipe")]
    method, variant = np.array([methods.canonical(r.quantizer) for r in recipes], dtype=object).reshape(-1, 2).T
    group = np.array([r.group_size for r in recipes])
    bits = of("effective_bits").astype(float)
    reasons = np.where(of("status") == measurements.FAILED, "measurement failed",
                       np.where(of("status") != measurements.OK, "not measured", ""))  # fmt: skip
    share = np.where([r.partial for r in recipes], of("linear_fraction").astype(float), 1.0)
    # the law reads the bits of what is quantized: how coarsely it is rounded does not depend on what is left out
    bits = np.where(share < 1, (bits - (1 - share) * BASELINE_BITS) / share, bits)
    mixed = np.array([bool(r.mix) for r in recipes], dtype=bool)
    reasons = np.where((reasons == "") & mixed, "formats differ from layer to layer", reasons)
    again = _drawn_twice(of("checkpoint"), recipes, of("qid"))
    reasons = np.where((reasons == "") & again, "a draw of the same layers as another", reasons)
    outside = (bits < BITS_RANGE[0]) | (bits > BITS_RANGE[1])
    reasons = np.where((reasons == "") & outside, "effective bits outside 1.9 to 6.7", reasons)
    keep = reasons == ""
    noise = np.where([r.method in METHODS and METHODS[r.method].calibrated for r in recipes], np.nan, 0.0)
    ours = np.flatnonzero(keep & np.array([r.calibrated for r in recipes], dtype=bool))
    keys = np.array([methods.effect_key(m, v) for m, v in zip(method, variant, strict=True)])
    noise[ours] = calibration_sd(of("qid")[ours], of("spread")[ours], of("draws")[ours], keys[ours])
    columns = {
        **per_checkpoint,
        "checkpoint": of("checkpoint").astype(str),
        "method": method,
        "variant": variant,
        "generation": np.array([methods.generation(m, v) for m, v in zip(method, variant, strict=True)]),
        "bits": np.array([r.bits for r in recipes]),
        "group_size": group,
        "effective_bits": bits,
        "per_channel": np.array([methods.is_per_channel(*one) for one in zip(method, variant, group, strict=True)]),
        "eval_dataset": np.full(method.size, text),
        "ctx_len": np.full(method.size, context),
        "source": np.full(method.size, f"measured: {suite}"),
        "loss16": of("loss16"),
        "headroom": np.log(per_checkpoint["vocab_size"].astype(float)) - of("loss16"),
        "qid": of("qid"),
        "qid_se": np.hypot(np.hypot(of("paired"), np.nan_to_num(noise) / np.sqrt(of("draws").clip(1))), NOISE_FLOOR),
        "censored": of("qid") > LN10,
        "calibration_sd": noise,
        **_landscape(data, row, frame),
        **_shares(recipes, share),
    }
    family = per_checkpoint["family"].astype(str)
    lost = np.repeat(family[keep], of("lost")[keep])
    excluded = count_by_family([*reasons, *["one draw of the calibration text failed"] * lost.size], [*family, *lost])
    return build({name: values[keep] for name, values in columns.items()}, excluded, [dict(source)])


def from_file(data: xr.Dataset, source: Mapping[str, object]) -> xr.Dataset:
    """Cells of a file of cells, with their source; `BadInput` names what the file lacks."""
    needed = (*TEXTS, *NUMBERS, *FLAGS, *(name for name in VALUES if name != "calibration_sd"))
    absent = [name for name in needed if name not in data.variables]
    absent += [] if "excluded" in data.attrs else ["excluded"]
    if absent:
        raise BadInput(f"{source['name']} lacks {absent[0]}: make it again.")
    excluded = files.json_of(str(data.attrs["excluded"]), f"What {source['name']} says of rows left out")
    if not isinstance(excluded, dict) or not all(
        isinstance(counts, dict) and all(type(count) is int and 0 <= count < 2**63 for count in counts.values())
        for counts in excluded.values()
    ):
        raise BadInput(f"{source['name']} does not count the rows left out by reason and family: make it again.")
    held = data.variables  # thirty arrays with coordinates of their own take a hundredth of a second
    flat = [name for name in needed if held[name].dims != ("cell",)]
    texts = [name for name in TEXTS if held[name].dtype.kind not in "OUT"]
    numbers = [name for name in (*NUMBERS, *VALUES) if name in held and held[name].dtype.kind not in "biuf"]
    truths = [name for name in (*FLAGS, "censored") if held[name].dtype.kind != "b"]
    odd = [*flat, *texts, *numbers, *truths]
    if odd:
        raise BadInput(f"{source['name']} holds {odd[0]} in another form than cells have: make it again.")
    return data.assign_attrs(sources=json.dumps([dict(source)]))


def join(parts: list[xr.Dataset]) -> xr.Dataset:
    """All cells of several sets one after another; exclusions add up; `BadInput` if a checkpoint occurs twice.

    Sets made before `calibration_sd` was kept have it unknown, as those without a loss landscape have its features;
    those that do not say which share of the weights was quantized are of recipes for all of them.
    """
    parts = [part if "calibration_sd" in part else part.assign(calibration_sd=part["qid"] * np.nan) for part in parts]
    for name in FEATURES if any("flatness_r" in part.variables for part in parts) else ():
        nothing = [("cell", np.full(part.sizes["cell"], np.nan)) for part in parts]
        parts = [part if name in part.variables else part.assign_coords({name: blank})
                 for part, blank in zip(parts, nothing, strict=True)]  # fmt: skip
    for name, plain in PLAIN.items() if any("quantized_fraction" in part.variables for part in parts) else ():
        parts = [part if name in part.variables else part.assign_coords(
                     {name: ("cell", np.full(part.sizes["cell"], plain, dtype=object if plain == "" else float))})
                 for part in parts]  # fmt: skip
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


def check(cells: xr.Dataset, latent_tokens: bool = False) -> xr.Dataset:
    """The same cells if inference can use them; `BadInput` names what is not a positive finite number.

    Training tokens may be missing where they are `latent_tokens`. Cells that repeat each other are refused, and data
    without a single QiD above zero, which no law in ln QiD can follow.
    """
    if (found := files.schema_of(cells)) != SCHEMA:
        raise BadInput(f"The data have schema {found!r}, not {SCHEMA}: make the file again.")
    if cells.sizes["cell"] == 0:
        raise BadInput("No cell is left after the exclusions: measure or import some first.")
    for name in ("n_params_nonembedding", "train_tokens", "effective_bits", "qid_se", "headroom", "ctx_len"):
        values = cells[name].to_numpy()
        unknown = np.isnan(values) & (latent_tokens and name == "train_tokens")
        bad = np.flatnonzero((~(values > 0) | ~np.isfinite(values)) & ~unknown)
        if bad.size:
            where = f"{cells['checkpoint'].to_numpy()[bad[0]]} ({cells['quantizer'].to_numpy()[bad[0]]})"
            raise BadInput(f"{name} of {where} is {cells[name].to_numpy()[bad[0]]}: give a number above zero.")
    bad = np.flatnonzero(~np.isfinite(cells["qid"].to_numpy()) & ~cells["censored"].to_numpy())
    if bad.size:
        raise BadInput(f"qid of {cells['checkpoint'].to_numpy()[bad[0]]} is not a finite number: leave the row out.")
    if not ((cells["qid"].to_numpy() > 0) | cells["censored"].to_numpy()).any():
        raise BadInput("No QiD is above zero, so there is nothing to fit a law to: check the sign of the losses.")
    names = ("checkpoint", "source", "quantizer", "group_size", "effective_bits", "eval_dataset", "ctx_len", "qid",
             *(name for name in PLAIN if name in cells.variables))  # fmt: skip
    keys = list(zip(*(cells[name].to_numpy().astype(str) for name in names), strict=True))
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        model, _, quantizer, *_ = twice[0]
        raise BadInput(f"{model} with {quantizer} stands twice among the cells, with the same QiD: leave one out.")
    return cells


def warnings_of(cells: xr.Dataset) -> list[str]:
    """What these cells cannot say, as sentences: where a fit is meaningful but a term is its prior."""
    found = []
    bits = np.unique(np.rint(cells["effective_bits"].to_numpy()))
    if bits.size == 1:
        found.append(f"All cells are at about {bits[0]:g} bits, so gamma and the bit scale are the prior's.")
    if np.unique(cells["train_tokens"].to_numpy()).size == 1:
        found.append("All cells have the same training tokens, so beta is the prior's.")
    return found
