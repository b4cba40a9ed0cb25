"""The loss landscape of a checkpoint for all its recipes: computed, saved as a part, put among the measurements."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from bayesqid import files, measurements
from bayesqid.measure import landscape, layers, load, loss, text
from bayesqid.measure.landscape import Along, Point
from bayesqid.measure.parts import facts, part_path
from bayesqid.measure.plan import Landscape, Plan
from bayesqid.recipe import NONE, Recipe
from bayesqid.suite import Checkpoint

Text = Callable[[Sequence[int]], Point]


class Direction(NamedTuple):
    """What was found along the rounding error of one grid: derivatives by document, noise by layer."""

    along: Along
    slope: float
    sqnr_db: float
    layer_sqnr_db: np.ndarray
    layer_error: float


@dataclass
class Features:
    """What was found of a checkpoint's landscape: variables of its recipes, its own, and why any are missing."""

    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def read(plan: Plan, source: Path) -> Text:
    """Function that puts documents of the plan, by number, before a checkpoint loaded in float32."""
    device = layers.best_device(plan.device)
    model = load.model(source, "float32", device)
    tokenizer = load.tokenizer(Path(plan.tokenizer) if plan.tokenizer else source)
    rows = len(model.get_input_embeddings().weight)
    found = layers.linears(model)

    def at(numbers: Sequence[int]) -> Point:
        tokens = text.tokenize([plan.documents[number] for number in numbers], tokenizer, rows)
        windows = text.windows(tokens, plan.protocol.context)
        return Point(model, found, loss.batches(windows, model.config.vocab_size, device), len(numbers))

    return at


def along_recipe(
    point: Point, recipe: Recipe, here: np.ndarray, gradient: Mapping[str, torch.Tensor], settings: Landscape,
    products: tuple[landscape.Vector, dict[str, int]],
) -> Direction:  # fmt: skip
    """Everything along the rounding error of a recipe's grid."""
    direction = landscape.rounding_error(point.found, recipe)
    pooled, by_layer = landscape.sqnr_db(point.found, direction)
    return Direction(
        landscape.along(point, direction, here, settings.step), landscape.inner(gradient, direction), pooled, by_layer,
        landscape.layer_error(point.found, direction, *products),
    )  # fmt: skip


def variables(direction: Direction, tokens: np.ndarray, share: float) -> dict[str, Any]:
    """Variables of one recipe, nats per token; documents are the clusters of the standard errors.

    The slope is taken on more text than its standard error, which is made smaller by sqrt(`share`): the tokens of the
    documents that show how slopes differ over those on which the slope is taken.
    """
    counted = xr.DataArray(tokens, dims="document")
    slopes, curvatures = (xr.DataArray(sums, dims="document") for sums in direction.along)
    curvature = float(curvatures.sum() / counted.sum())
    return {
        "sqnr_db": direction.sqnr_db,
        "layer_sqnr_db": direction.layer_sqnr_db,
        "slope": direction.slope,
        "slope_se": float(measurements.ratio_se(slopes, counted)) * share**0.5,
        "curvature": curvature,
        "curvature_se": float(measurements.ratio_se(curvatures, counted)),
        "taylor": direction.slope + curvature / 2,
        "layer_error": direction.layer_error,
    }


def of_checkpoint(point: Point, here: np.ndarray, settings: Landscape, tick: Callable[[], object]) -> dict[str, Any]:
    """Variables of the checkpoint itself: Hessian trace, flatness."""
    numbers = range(settings.probes)
    probes = [partial(landscape.probe, point.found, number, settings.seed) for number in numbers]
    forms = landscape.second_order(point, probes)[1] if probes else np.empty(0)
    tick()
    flat = landscape.flatness(point, here, settings.radii, settings.directions, settings.seed, tick)
    trace, trace_se = landscape.mean_and_error(forms)
    steps = [landscape.mean_and_error(column) for column in flat.T]
    return {
        "hessian_trace": trace,
        "hessian_trace_se": trace_se,
        "flatness": [mean for mean, _ in steps],
        "flatness_se": [error for _, error in steps],
    }


def features(
    at: Text, documents: int, settings: Landscape, recipes: Iterable[Recipe], whole: bool, tick: Callable[[], object]
) -> Features:
    """Landscape of a model for some recipes, and, with `whole`, of the model itself.

    Recipes that share a grid share their direction. One that cannot be rounded has no features, and `reason` says why.
    """
    found = Features()
    point, wide = at(settings.chosen(documents)), at(settings.chosen_for_slopes(documents))
    here, tokens = landscape.nats(point), point.tokens
    if not np.isfinite(here).all():
        return Features(reason="its loss is not finite before any quantization")
    if whole:
        found.whole = of_checkpoint(point, here, settings, tick)
    recipes = [recipe for recipe in recipes if recipe != NONE]
    if not recipes:
        return found
    gradient = landscape.second_order(wide, [])[0]
    products = landscape.input_products(point)
    done: dict[Recipe, dict[str, Any] | None] = {}
    for recipe in recipes:
        own = landscape.twin(recipe)
        if own not in done:
            tick()
            try:
                one = along_recipe(point, own, here, gradient, settings, products)
            except Exception as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                found.reason = found.reason or f"{recipe}: {_text(error)}"
                done[own] = None
            else:
                done[own] = variables(one, tokens, tokens.sum() / wide.tokens.sum())
        if (values := done[own]) is not None:
            found.recipes[str(recipe)] = values
    return found


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def measure(
    plan: Plan, checkpoint: Checkpoint, source: Path, recipes: Sequence[Recipe], folder: Path,
    tick: Callable[[], object],
) -> None:  # fmt: skip
    """Save the landscape of a checkpoint in a folder as a part; among `recipes`, `none` asks for the model's own.

    Raises OSError when the part cannot be written; what else goes wrong is saved as the reason.
    """
    assert plan.landscape is not None
    try:
        whole = NONE in recipes
        found = features(read(plan, source), len(plan.documents), plan.landscape, recipes, whole, tick)
    except OSError:
        raise
    except Exception as error:
        found = Features(reason=_text(error))
    write(plan, folder, checkpoint, recipes, found)


def write(plan: Plan, folder: Path, checkpoint: Checkpoint, recipes: Sequence[Recipe], found: Features) -> None:
    """Save features as a part without cells; what is tried again stands beside what failed."""
    assert plan.landscape is not None
    sizes = {document.id: len(document.text.encode()) for document in plan.documents}
    part = measurements.empty({checkpoint.id: facts(checkpoint)}, recipes, sizes, plan.manifest())
    depth = max((len(values["layer_sqnr_db"]) for values in found.recipes.values()), default=0)
    part = blank(part, plan.landscape.radii, depth)
    for name, values in found.whole.items():
        part[name].values[0] = values
    for column, recipe in enumerate(recipes):
        for name, values in found.recipes.get(str(recipe), {}).items():
            part[name].values[0, column] = values
    part["landscape_reason"].values[0] = found.reason
    path = part_path(folder, checkpoint.id, [str(recipe) for recipe in recipes])
    files.write_netcdf(part, path.with_suffix(".landscape.failed.nc" if found.reason else ".landscape.nc"))


def blank(data: xr.Dataset, radii: Sequence[float], depth: int) -> xr.Dataset:
    """Measurements with every variable of the landscape, all unknown, for models of at most `depth` linear layers."""
    sizes = {**data.sizes, "radius": len(radii), "layer": depth}
    unknown = {
        name: (dims, np.full([sizes[dim] for dim in dims], np.nan), {"long_name": long_name, "units": units})
        for name, (dims, long_name, units) in measurements.LANDSCAPE.items()
    }
    reasons = ("checkpoint", np.full(sizes["checkpoint"], "", dtype=object))
    return data.assign(unknown | {"landscape_reason": reasons}).assign_coords(radius=list(radii))


def filled(data: xr.Dataset, parts: Iterable[xr.Dataset]) -> xr.Dataset:
    """Measurements with the landscape of every part that has one; unchanged where none does."""
    parts = [part for part in parts if "landscape_reason" in part]
    if not parts:
        return data
    merged = blank(data, parts[0]["radius"].values.tolist(), max(part.sizes["layer"] for part in parts))
    rows, columns = merged.indexes["checkpoint"], merged.indexes["recipe"]
    for part in parts:
        row, column = rows.get_indexer(part.indexes["checkpoint"]), columns.get_indexer(part.indexes["recipe"])
        for name, (dims, _, _) in measurements.LANDSCAPE.items():
            here = (row, column) if "recipe" in dims else (row,)
            where = (*np.ix_(*here), slice(part.sizes["layer"])) if "layer" in dims else np.ix_(*here)
            values, known = part[name].values, merged[name].values
            known[where] = np.where(np.isnan(values), known[where], values)
        for i, there in enumerate(row):
            reason = str(part["landscape_reason"].values[i])
            merged["landscape_reason"].values[there] = reason or merged["landscape_reason"].values[there]
    merged["landscape_reason"].values[_complete(merged)] = ""
    return merged


def _complete(data: xr.Dataset) -> np.ndarray:
    """Checkpoints that lack nothing of their landscape, (checkpoint,)."""
    rounded = data["recipe"].values != str(NONE)
    whole = data["flatness"].notnull().all("radius").values
    return whole & data["sqnr_db"].notnull().values[:, rounded].all(1)


def missing(plan: Plan, parts: Iterable[xr.Dataset], again: bool) -> dict[str, list[Recipe]]:
    """Recipes whose features are still to be found, by checkpoint; `none` stands for the model's own.

    Checkpoints whose landscape, or whose baseline, failed are left out but `again`.
    """
    if plan.landscape is None:
        return {}
    known: set[tuple[str, str]] = set()
    failed: set[str] = set()
    for part in parts:
        names, recipes = (part[dim].values.astype(str) for dim in ("checkpoint", "recipe"))
        status, base = part["status"].values, recipes == str(NONE)
        failed |= set(names[(status[:, base] == measurements.FAILED).any(1)])
        if "landscape_reason" in part:
            failed |= set(names[part["landscape_reason"].values != ""])
            row, column = np.nonzero(part["sqnr_db"].notnull().values)
            known |= set(zip(names[row].tolist(), recipes[column].tolist(), strict=True))
            whole = names[part["flatness"].notnull().all("radius").values]
            known |= {(str(name), str(NONE)) for name in whole}
    wanted = {checkpoint.id: [recipe for recipe in plan.recipes if (checkpoint.id, str(recipe)) not in known]
              for checkpoint in plan.checkpoints if again or checkpoint.id not in failed}  # fmt: skip
    return {name: recipes for name, recipes in wanted.items() if recipes}


def reasons(data: xr.Dataset) -> dict[str, str]:
    """Why landscapes are missing, by checkpoint."""
    if "landscape_reason" not in data:
        return {}
    found = zip(data["checkpoint"].values, data["landscape_reason"].values, strict=True)
    return {f"landscape of {name}": str(reason) for name, reason in found if reason}
