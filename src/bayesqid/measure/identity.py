"""What a loaded model is: a hash of its weights, whether they are usable, and how many there are."""

import hashlib

import torch
from torch import nn
from transformers import PreTrainedModel

from bayesqid.errors import BadInput


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over name, shape and float32 values of every tensor, sorted by name.

    Values are hashed, not files: the same weights saved in another dtype or sharding are found out.
    Raises `BadInput` when a weight is not finite.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().float().cpu().contiguous()
        if not torch.isfinite(values).all():
            raise BadInput(f"The weights {name} hold values that are not finite: the checkpoint is broken.")
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def counts(model: PreTrainedModel) -> tuple[int, int]:
    """Number of parameters, and of those outside embeddings (of tokens and positions) and output head."""
    total = {id(p): p.numel() for p in model.parameters()}
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings()
    apart = {
        id(parameter)
        for module in [*tables, *([head] if head is not None else [])]
        for parameter in module.parameters()
    }
    return sum(total.values()), sum(size for key, size in total.items() if key not in apart)
