"""Measure one checkpoint: fetch and load it, take its recipes through it, save what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bayesqid.errors import BadInput
from bayesqid.measure import assign, blocks, identity, landscape_run, layers, load, save, saved, text, together
from bayesqid.measure.calibrate import Lane
from bayesqid.measure.parts import Cell, Found, lock_path, parts_folder, stem, write_part
from bayesqid.measure.plan import Plan
from bayesqid.measure.together import Progress, Ready
from bayesqid.recipe import Recipe, parse
from bayesqid.suite import Checkpoint

# A model is kept on the GPU whole up to this share of its memory; else its blocks are lent to it one by one
WHOLE_SHARE = 0.5


def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on a device; one too big for a GPU keeps its blocks in the host's memory, ready to be lent."""
    room = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else float("inf")
    if layers.size(model) > WHOLE_SHARE * room:
        stack = layers.blocks(model)
        inside = {id(tensor) for tensor in (*stack.parameters(), *stack.buffers())}
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.pin_memory() if id(tensor) in inside else tensor.data.to(device)
        return model
    return model.to(device)  # type: ignore[arg-type]


def prepare(plan: Plan, checkpoint: Checkpoint, folder: Path, known: Mapping[str, str], found: Found) -> Ready:
    """Load a checkpoint from its folder and note what it is in `found`; `BadInput` when it is unfit."""
    device = layers.best_device(plan.device)
    model = load.model(folder, plan.protocol.dtype, torch.device("cpu"))
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
    linears = layers.linears(model)
    found.shapes = layers.shapes(linears)
    tokenizer = load.tokenizer(Path(plan.tokenizer) if plan.tokenizer else folder)
    tokens = text.tokenize(list(plan.documents), tokenizer, len(embedding))
    windows = text.windows(tokens, plan.protocol.context)
    counted = [len(window.targets) for window in windows]
    placed = [window.document for window in windows]
    found.tokens = np.bincount(placed, weights=counted, minlength=len(tokens)).astype(np.int64)

    def rows(seed: int) -> Tensor:
        ids = text.tokenize(list(plan.calibration), tokenizer, len(embedding))
        drawn = text.calibration(ids, plan.protocol.context, plan.protocol.calibration_windows, seed)
        return torch.from_numpy(drawn).to(device)

    # before it is placed: a big model is never on the GPU as a whole
    as_tuple = blocks.verify(model, torch.from_numpy(windows[0].inputs[None, :16]))
    place(model, device)
    ready = Ready(model, device, as_tuple, _by_block(model, linears), windows, rows, len(plan.documents),
                  mixes=assign.by_recipe(plan.mixes))  # fmt: skip
    found.blocks = ready.shapes
    ready.lay_out()
    return ready


def _by_block(model: nn.Module, linears: Mapping[str, layers.Layer]) -> list[dict[str, layers.Layer]]:
    """Linear layers by name for block after block."""
    inside = [{id(module) for module in block.modules()} for block in layers.blocks(model)]
    return [{name: layer for name, layer in linears.items() if id(layer) in members} for members in inside]


def _why(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if isinstance(error, BadInput) else f"{type(error).__name__}: {message}"


def _save_quantized(plan: Plan, checkpoint: Checkpoint, source: Path, lane: Lane) -> str:
    """Save what a lane quantized where the plan wants it; why it could not be, else nothing."""
    if plan.save_to is None or lane.kept is None:
        return ""
    folder = Path(plan.save_to) / stem(checkpoint.id) / str(lane.recipe)
    try:
        save.save_gptq(folder, source, lane.recipe, lane.kept, Path(plan.tokenizer) if plan.tokenizer else None)
    except BadInput as error:
        return f"measured but not saved: {error}"
    return ""


@torch.inference_mode()
def measure_recipes(
    plan: Plan, checkpoint: Checkpoint, source: Path, waiting: list[Recipe], known: Mapping[str, str], folder: Path,
    found: Found, failed: dict[str, Cell], tick: Progress,
) -> None:  # fmt: skip
    """Measure recipes of a checkpoint in a folder; save what was measured and put what was not into `failed`.

    Recipes leave `waiting` when they are done.
    """
    ready = prepare(plan, checkpoint, source, known, found)
    weights = {name: saved.of(Path(place), ready.model, parse(name).method)
               for name, place in plan.saved if parse(name) in waiting}  # fmt: skip
    size = together.lanes_at_once(ready, waiting)
    while waiting:
        fresh = {}
        for lane, scores in together.measure(ready, waiting[:size], weights, plan.save_to is not None, tick):
            reason = lane.failed or _save_quantized(plan, checkpoint, source, lane)
            cell = Cell(None if reason else scores, reason, "; ".join(lane.notes))
            (failed if reason else fresh)[str(lane.recipe)] = cell
        if fresh:
            write_part(plan, folder, checkpoint, found, fresh)
        del waiting[:size]


def measure_checkpoint(
    plan: Plan, checkpoint: Checkpoint, recipes: list[Recipe], known: Mapping[str, str], output: Path,
    tick: Progress = lambda amount: None, charted: Sequence[Recipe] = (),
) -> None:  # fmt: skip
    """Fetch a checkpoint, measure recipes and save them as parts of `output`; what fails is saved as failed.

    Likewise the loss landscape for the recipes `charted`, once the checkpoint is known to be sound. Raises OSError
    when a part cannot be written: no other checkpoint's could be either.
    """
    found, failed, waiting = Found(), {}, list(recipes)
    parts = parts_folder(output)
    try:
        with load.brought(checkpoint, lock_path(output, plan), plan.keep) as source:
            if waiting:
                measure_recipes(plan, checkpoint, source, waiting, known, parts, found, failed, tick)
            if charted:
                landscape_run.measure(plan, checkpoint, source, charted, parts, lambda: tick(0.0))
    except OSError:
        raise
    except Exception as error:  # one bad checkpoint must not end a sweep
        failed |= {str(recipe): Cell(None, _why(error)) for recipe in waiting}
        if charted and not recipes:
            landscape_run.write(plan, parts, checkpoint, charted, landscape_run.Features(reason=_why(error)))
    if failed:
        write_part(plan, parts, checkpoint, found, failed)
