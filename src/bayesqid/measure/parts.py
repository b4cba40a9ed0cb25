"""Parts: one file per finished batch of recipes of a checkpoint; its presence marks the cells as done."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bayesqid import files, measurements
from bayesqid.errors import BadInput
from bayesqid.measure import assign
from bayesqid.measure.loss import Scores
from bayesqid.measure.plan import OWN, Plan
from bayesqid.measure.quantizers import QUANTIZERS
from bayesqid.recipe import FORMATS, NONE, Recipe, effective_bits, parse
from bayesqid.suite import Checkpoint


class Cell(NamedTuple):
    """What one recipe came to: scores, or the reason why there are none, and a note."""

    scores: Scores | None
    reason: str = ""
    note: str = ""


@dataclass
class Found:
    """What became known about a checkpoint once it was loaded."""

    facts: dict[str, Any] = field(default_factory=dict)
    tokens: np.ndarray | None = None
    shapes: list[tuple[int, int]] = field(default_factory=list)
    # the same by name, block after block
    blocks: assign.Blocks = ()


def stem(checkpoint: str) -> str:
    """Start of the names of a checkpoint's parts: readable, safe in file names, unique."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", checkpoint)[:100]
    return f"{readable}-{hashlib.sha256(checkpoint.encode()).hexdigest()[:8]}"


def part_path(folder: Path, checkpoint: str, recipes: list[str]) -> Path:
    """Where the part with these recipes of a checkpoint goes; the same cells always go to the same name."""
    return folder / f"{stem(checkpoint)}-{hashlib.sha256(' '.join(recipes).encode()).hexdigest()[:8]}.nc"


def facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the plan already knows of a checkpoint, by the names of the file's coordinates."""
    known = (*measurements.STATED, "n_params", "n_params_nonembedding", "vocab_size")
    return {name: getattr(checkpoint, name) for name in known}


def write_part(plan: Plan, folder: Path, checkpoint: Checkpoint, found: Found, cells: dict[str, Cell]) -> None:
    """Save finished cells of a checkpoint; the part's presence marks them as done."""
    recipes = [parse(name) for name in cells]
    sizes = {document.id: len(document.text.encode()) for document in plan.documents}
    known = {checkpoint.id: facts(checkpoint) | found.facts}
    part = measurements.empty(known, recipes, sizes, plan.manifest())
    if found.tokens is not None:
        part["tokens"].values[0] = found.tokens
    weights = sum(rows * columns for rows, columns in found.shapes)
    mixes = assign.by_recipe(plan.mixes)
    for column, cell in enumerate(cells.values()):
        part["reason"].values[0, column] = cell.reason
        part["note"].values[0, column] = cell.note
        part["status"].values[0, column] = measurements.FAILED if cell.scores is None else measurements.OK
        if cell.scores is not None:
            for name, values in cell.scores._asdict().items():
                part[name].values[0, column] = values
            own = assign.formats(recipes[column], found.blocks, mixes)
            bits = effective_bits(recipes[column], found.shapes) if own is None else assign.average(own, found.blocks)
            share = float(recipes[column] != NONE) if own is None else assign.low_share(own, found.blocks)
            part["effective_bits"].values[0, column] = bits
            part["quantized_fraction"].values[0, column] = weights / found.facts["n_params"] * share
            part["linear_fraction"].values[0, column] = share
    failed = any(cell.scores is None for cell in cells.values())
    path = part_path(folder, checkpoint.id, list(cells))
    # what is tried again and works stands beside what failed, and counts
    files.write_netcdf(part, path.with_suffix(".failed.nc") if failed else path)


def _settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Settings of a protocol, those of the landscape each by a name of its own."""
    protocol = dict(manifest["protocol"])
    inner = protocol.pop("landscape", {})
    return protocol | {f"landscape {key}": value for key, value in inner.items()}


def existing(output: Path, plan: Plan) -> Iterator[xr.Dataset]:
    """The file and the parts that are there already; `BadInput` if they are of another suite or protocol."""
    ours = plan.manifest()
    paths = [output] if output.exists() else []
    for path in [*paths, *sorted(parts_folder(output).glob("*.nc"))]:
        data = measurements.read(path)
        theirs = measurements.manifest(data)
        if theirs["suite"] != ours["suite"]:
            raise BadInput(
                f"{path} belongs to the suite {theirs['suite']}, not {ours['suite']}: choose another file with -o."
            )
        was, now = _settings(theirs), _settings(ours)
        # a landscape may be added to a file that has none, and cells to one that has
        free = set() if {"landscape"} <= set(theirs["protocol"]) & set(ours["protocol"]) else {"landscape"}
        keys = sorted(key for key in set(was) | set(now) if key.split()[0] not in free)
        changed = [key for key in keys if was.get(key) != now.get(key)]
        if changed:
            raise BadInput(
                f"{path} was measured with {changed[0]} = {was.get(changed[0])}, "
                f"not {now.get(changed[0])}: choose another file with -o."
            )
        stated = {checkpoint.id: checkpoint.train_tokens for checkpoint in plan.checkpoints}
        for name, tokens in zip(data["checkpoint"].values, data["train_tokens"].values, strict=True):
            if ours["suite"] == OWN and stated.get(name, tokens) != tokens:
                raise BadInput(
                    f"{path} holds {name} with {tokens:g} training tokens, not {stated[name]:g}: "
                    "give this model another --name or choose another file with -o."
                )
        yield data


def parts_folder(output: Path) -> Path:
    """Folder of the parts of a measurements file."""
    return output.with_name(output.name + ".parts")


def lock_path(output: Path, plan: Plan) -> Path:
    """The lock of the suite beside a measurements file; models of one's own are locked for that file only."""
    return output.with_name(f"{output.name if plan.suite == OWN else plan.suite}.lock")


Cells = set[tuple[str, str]]


def done(parts: list[xr.Dataset]) -> tuple[Cells, Cells, dict[str, str]]:
    """Measured and failed (checkpoint, recipe) pairs, and the weight hash of every checkpoint that has one."""
    cells: Cells = set()
    failed: Cells = set()
    hashes: dict[str, str] = {}
    for part in parts:
        for row, name in enumerate(part["checkpoint"].values.astype(str)):
            ok = part["status"].values[row] == measurements.OK
            lost = part["status"].values[row] == measurements.FAILED
            cells |= {(name, str(recipe)) for recipe in part["recipe"].values[ok]}
            failed |= {(name, str(recipe)) for recipe in part["recipe"].values[lost]}
            digest = str(part["weight_sha256"].values[row])
            if digest and (ok.any() or str(part["reason"].values[row, 0]).startswith("the same weights")):
                hashes[name] = digest
    return cells, failed - cells, hashes


def _place(recipe: Recipe) -> tuple:
    """Order of recipes in a file: it must not depend on which were measured first."""
    methods = list(QUANTIZERS)
    method = methods.index(recipe.method) if recipe.method in methods else len(methods) if recipe.mix else -1
    share = (recipe.partial, recipe.granularity, recipe.fraction, recipe.draw, recipe.mix)
    form = list(FORMATS).index(recipe.format) if recipe.format in FORMATS else -1
    return method, form, recipe.options, recipe.group_size, recipe.bits, not recipe.symmetric, recipe.seed, *share


def frame(plan: Plan, parts: list[xr.Dataset]) -> xr.Dataset:
    """Empty Dataset over everything already there and everything planned, the latter in the plan's order."""
    rows: dict[str, dict[str, Any]] = {}
    recipes = set(plan.recipes)
    for part in parts:
        for row, name in enumerate(part["checkpoint"].values.astype(str)):
            rows[str(name)] = {key: part[key].values[row] for key in measurements.STATED}
        recipes |= {parse(str(name)) for name in part["recipe"].values}
    planned = {checkpoint.id: facts(checkpoint) for checkpoint in plan.checkpoints}
    others = {name: known for name, known in rows.items() if name not in planned}
    sizes = {document.id: len(document.text.encode()) for document in plan.documents}
    manifest = plan.manifest()
    landscapes = [found for part in parts if (found := measurements.manifest(part)["protocol"].get("landscape"))]
    manifest["protocol"] |= {"landscape": landscapes[0]} if landscapes else {}
    return measurements.empty(others | planned, sorted(recipes, key=_place), sizes, manifest)
