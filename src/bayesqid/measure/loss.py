"""How much each document costs a model, and how far quantized predictions are from the original's."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bayesqid.measure.text import Window

# Log-probabilities of one batch hold at most this many numbers (256 MiB in float32)
BATCH_NUMBERS = 2**26
BATCH_TOKENS = 4096
# Baseline log-probabilities kept between recipes; what does not fit is computed again for each recipe
KEPT_BYTES = 2**30


class Batch(NamedTuple):
    """Right-padded windows: inputs and which are real (windows, tokens); targets and their documents."""

    inputs: Tensor
    real: Tensor
    targets: Tensor
    documents: np.ndarray


class Scores(NamedTuple):
    """Sums over each document's targets, float64 (documents,): nats, two KLs, equal top choices."""

    nats: np.ndarray
    kl_base_q: np.ndarray
    kl_q_base: np.ndarray
    top1: np.ndarray


def batches(windows: list[Window], vocabulary: int, device: torch.device, most: int | None = None) -> list[Batch]:
    """Windows by length in batches of at most `most` tokens (at least one window).

    Padding is on the right only: in a causal model no real token sees it, so no mask is needed.
    """
    most = most or min(BATCH_TOKENS, max(1, BATCH_NUMBERS // vocabulary))
    ordered = sorted(windows, key=lambda window: len(window.inputs))
    groups: list[list[Window]] = []
    for window in ordered:
        if groups and (len(groups[-1]) + 1) * len(window.inputs) <= most:
            groups[-1].append(window)
        else:
            groups.append([window])
    return [_pad(group, device) for group in groups]


def _pad(group: list[Window], device: torch.device) -> Batch:
    longest = len(group[-1].inputs)
    inputs = np.zeros((len(group), longest), dtype=np.int64)
    real = np.zeros((len(group), longest), dtype=bool)
    for row, window in enumerate(group):
        inputs[row, : len(window.inputs)] = window.inputs
        real[row, : len(window.inputs)] = True
    return Batch(
        torch.from_numpy(inputs).to(device),
        torch.from_numpy(real).to(device),
        torch.from_numpy(np.concatenate([window.targets for window in group])).to(device),
        np.concatenate([np.full(len(window.targets), window.document) for window in group]),
    )


def log_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability of every token at every target, float32 (targets, vocabulary)."""
    logits = model(input_ids=batch.inputs, use_cache=False).logits
    # picking all of them would copy for nothing
    flat = logits.flatten(0, 1) if len(batch.targets) == batch.real.numel() else logits[batch.real]
    return flat.float().log_softmax(-1)


def baseline(model: nn.Module, work: list[Batch]) -> Iterator[Tensor]:
    """Log-probabilities of the unquantized model for batch after batch."""
    return (log_probabilities(model, batch) for batch in work)


def _per_document(values: Tensor, batch: Batch, documents: int) -> np.ndarray:
    return np.bincount(batch.documents, weights=values.double().cpu().numpy(), minlength=documents)


def compare(base: Tensor, other: Tensor, batch: Batch, documents: int) -> Scores:
    """Scores of `other` against `base`, log-probabilities (targets, vocabulary) of one batch.

    KL(base || other) = sum_v p_v (ln p_v - ln q_v), summed over targets, and the reverse.
    """
    gap = base - other
    values = (
        -other.gather(1, batch.targets[:, None])[:, 0],
        torch.linalg.vecdot(base.exp(), gap),
        -torch.linalg.vecdot(other.exp(), gap),
        other.gather(1, base.argmax(-1, keepdim=True))[:, 0] == other.amax(-1),
    )
    return Scores(*(_per_document(value, batch, documents) for value in values))


def add(parts: list[Scores]) -> Scores:
    """Scores of all batches together."""
    return Scores(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))


def keep(stream: Iterator[Tensor], most: int = KEPT_BYTES) -> list[Tensor]:
    """The first baseline batches, as many as fit into `most` bytes."""
    kept: list[Tensor] = []
    held = 0
    for values in stream:
        held += values.nbytes
        if held > most:
            break
        kept.append(values)
    return kept


def score(
    model: nn.Module,
    work: list[Batch],
    kept: list[Tensor],
    documents: int,
    quantized: Callable[[], object] | None,
    original: Callable[[], object],
) -> Scores:
    """Scores of the quantized model, batch by batch against the original's predictions.

    `quantized` and `original` put the respective weights into the model; the original's are put back at
    the end. Without `quantized` the original is scored against itself. Baseline batches that were not
    `kept` are computed again.
    """
    parts = []
    try:
        for index, batch in enumerate(work):
            original()
            base = other = kept[index] if index < len(kept) else log_probabilities(model, batch)
            if quantized is not None:
                quantized()
                other = log_probabilities(model, batch)
            parts.append(compare(base, other, batch, documents))
    finally:
        original()
    return add(parts)
