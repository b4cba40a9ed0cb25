"""How much each document costs a model, and how far quantized predictions are from the original's."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayesqid.measure.text import Window

# Log-probabilities of one batch hold at most this many numbers (256 MiB in float32)
BATCH_NUMBERS = 2**26
BATCH_TOKENS = 4096


class Batch(NamedTuple):
    """Right-padded windows: inputs, and which of them score the token behind; targets, and their documents."""

    inputs: Tensor
    scored: Tensor
    targets: Tensor
    documents: np.ndarray


class Scores(NamedTuple):
    """Sums over each document's targets, float64 (documents,): nats, two KLs, equal top choices."""

    nats: np.ndarray
    kl_base_q: np.ndarray
    kl_q_base: np.ndarray
    top1: np.ndarray


class Reference(NamedTuple):
    """The unquantized model's predictions for one batch: log-probabilities, probabilities, likeliest tokens."""

    log: Tensor
    probabilities: Tensor
    likeliest: Tensor


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
    scored = np.zeros((len(group), longest), dtype=bool)
    for row, window in enumerate(group):
        inputs[row, : len(window.inputs)] = window.inputs
        scored[row, len(window.inputs) - len(window.targets) : len(window.inputs)] = True
    return Batch(
        torch.from_numpy(inputs).to(device),
        torch.from_numpy(scored).to(device),
        torch.from_numpy(np.concatenate([window.targets for window in group])).to(device),
        np.concatenate([np.full(len(window.targets), window.document) for window in group]),
    )


def log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """Log-probability of every token at every target, float32 (targets, vocabulary), from a batch's logits."""
    # picking all of them would copy for nothing
    flat = logits.flatten(0, 1) if len(batch.targets) == batch.scored.numel() else logits[batch.scored]
    return flat.float().log_softmax(-1)


def reference(log: Tensor) -> Reference:
    """What every recipe is compared with, from the unquantized model's log-probabilities."""
    return Reference(log, log.exp(), log.argmax(-1, keepdim=True))


def _per_document(values: Tensor, batch: Batch, documents: int) -> np.ndarray:
    return np.bincount(batch.documents, weights=values.double().cpu().numpy(), minlength=documents)


def compare(base: Reference, other: Tensor, batch: Batch, documents: int) -> Scores:
    """Scores of log-probabilities `other` (targets, vocabulary) of one batch against the reference.

    KL(base || other) = sum_v p_v (ln p_v - ln q_v), summed over targets, and the reverse.
    """
    gap = base.log - other
    values = (
        -other.gather(1, batch.targets[:, None])[:, 0],
        torch.linalg.vecdot(base.probabilities, gap),
        -torch.linalg.vecdot(other.exp(), gap),
        other.gather(1, base.likeliest)[:, 0] == other.amax(-1),
    )
    return Scores(*(_per_document(value, batch, documents) for value in values))


def add(parts: list[Scores]) -> Scores:
    """Scores of all batches together."""
    return Scores(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))
