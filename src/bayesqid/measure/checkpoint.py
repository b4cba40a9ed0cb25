"""Measure one checkpoint: load it, score its baseline, then quantize and score it recipe by recipe."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from bayesqid.errors import BadInput
from bayesqid.measure import calibrate, identity, layers, load, loss, text
from bayesqid.measure.parts import Cell, Found, failed_path, write_part
from bayesqid.measure.plan import Plan
from bayesqid.recipe import Recipe
from bayesqid.suite import Checkpoint

# A part is written when this much work would be lost otherwise, and at the end of every checkpoint
FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class Ready:
    """A loaded checkpoint with everything its recipes share."""

    model: PreTrainedModel
    layers: Mapping[str, layers.Layer]
    original: Mapping[str, torch.Tensor]
    work: list[loss.Batch]
    kept: list[torch.Tensor]
    calibration: Callable[[], calibrate.Inputs]


def prepare(plan: Plan, checkpoint: Checkpoint, known: Mapping[str, str], found: Found) -> Ready:
    """Load a checkpoint, note what it is in `found`, and score its baseline; `BadInput` when it is unfit."""
    device = layers.best_device(plan.device)
    folder = load.folder(checkpoint.hub, checkpoint.revision)
    load.verify(folder, checkpoint.sha256)
    model = load.model(folder, plan.protocol.dtype, device)
    digest = identity.weights_sha256(model)
    total, nonembedding = identity.counts(model)
    embedding = model.get_input_embeddings().weight
    found.facts = {
        "n_params": total,
        "n_params_nonembedding": nonembedding,
        "vocab_size": checkpoint.vocab_size or model.config.vocab_size,
        "weight_sha256": digest,
    }
    twins = [name for name, other in known.items() if other == digest and name != checkpoint.id]
    if twins:
        raise BadInput(f"the same weights as {twins[0]}")
    if known.get(checkpoint.id, digest) != digest:
        raise BadInput("its weights changed since its earlier recipes were measured: measure it into another file")
    most = layers.largest_context(model)
    if most is not None and most < plan.protocol.context:
        raise BadInput(f"it holds at most {most} tokens, fewer than the context of {plan.protocol.context}")
    inside = layers.linears(model)
    found.shapes = layers.shapes(inside)
    tokenizer = load.tokenizer(Path(plan.tokenizer) if plan.tokenizer else folder)
    tokens = text.tokenize(list(plan.documents), tokenizer, len(embedding))
    windows = text.windows(tokens, plan.protocol.context)
    counted = [len(window.targets) for window in windows]
    placed = [window.document for window in windows]
    found.tokens = np.bincount(placed, weights=counted, minlength=len(tokens)).astype(np.int64)
    work = loss.batches(windows, model.config.vocab_size, device)

    def calibration() -> calibrate.Inputs:
        ids = text.tokenize(list(plan.calibration), tokenizer, len(embedding))
        agreed = plan.protocol
        rows = text.calibration(ids, agreed.context, agreed.calibration_windows, agreed.seed)
        most_rows = max(1, loss.BATCH_TOKENS // agreed.context)
        return calibrate.capture(model, list(torch.from_numpy(rows).to(device).split(most_rows)))

    kept = loss.keep(loss.baseline(model, work))
    return Ready(model, inside, layers.originals(inside), work, kept, calibration)


def measure_cell(ready: Ready, recipe: Recipe, inputs: calibrate.Inputs | None, documents: int) -> Cell:
    """Quantize a loaded checkpoint by one recipe, score it against its baseline, and put its weights back."""
    weights, note = calibrate.quantize(ready.model, recipe, inputs)
    scores = loss.score(
        ready.model,
        ready.work,
        ready.kept,
        documents,
        quantized=(lambda: layers.install(ready.layers, weights)) if weights else None,
        original=lambda: layers.install(ready.layers, ready.original),
    )
    if not all(np.isfinite(values).all() for values in scores):
        return Cell(None, "its loss is not finite", note)
    return Cell(scores, note=note)


def _why(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if isinstance(error, BadInput) else f"{type(error).__name__}: {message}"


@torch.inference_mode()
def measure_checkpoint(
    plan: Plan,
    checkpoint: Checkpoint,
    recipes: list[Recipe],
    known: Mapping[str, str],
    folder: Path,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Measure recipes of one checkpoint and save them as parts in `folder`; what fails is saved as failed."""
    found, fresh, failed = Found(), {}, {}
    inputs, ready, since = None, None, time.monotonic()
    failed_path(folder, checkpoint.id).unlink(missing_ok=True)
    try:
        for recipe in recipes:
            try:
                ready = ready or prepare(plan, checkpoint, known, found)
                if inputs is None and calibrate.needs_inputs(recipe):
                    inputs = ready.calibration()
                cell = measure_cell(ready, recipe, inputs, len(plan.documents))
            except Exception as error:  # one bad checkpoint must not end a sweep; files are written outside
                cell = Cell(None, _why(error))
            (fresh if cell.scores else failed)[str(recipe)] = cell
            tick()
            if ready is None:
                failed = {str(name): cell for name in recipes}
                break
            if fresh and time.monotonic() - since > FLUSH_SECONDS:
                write_part(plan, folder, checkpoint, found, fresh)
                fresh, since = {}, time.monotonic()
    finally:
        for cells in (fresh, failed):
            if cells:
                write_part(plan, folder, checkpoint, found, cells)
