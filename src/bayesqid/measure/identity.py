"""What a loaded model is: a hash of its weights, whether they are usable, and how many there are."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from transformers import PreTrainedModel

from bayesqid.errors import BadInput

# Values upcast at a time: 1 MiB of float32, which stays in a cache; never a second copy of a whole weight
CHUNK = 2**18


def _digest(name: str, tensor: torch.Tensor) -> bytes:
    """SHA-256 over the float32 values of a tensor, upcast chunk by chunk."""
    digest = hashlib.sha256()
    for chunk in tensor.detach().reshape(-1).split(CHUNK):
        values = chunk.float().cpu()
        # extremes tell of NaN and infinity too, ten times as fast as testing each value
        if values.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(values)):
            raise BadInput(f"The weights {name} hold values that are not finite: the checkpoint is broken.")
        digest.update(values.numpy().data)
    return digest.digest()


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the lines `NAME SHAPE HASH` of every tensor, sorted by name; HASH is over its float32 values.

    Values are hashed, not files: the same weights saved in another dtype or sharding are found out. Tensors are hashed
    in as many threads as torch may use. Raises `BadInput` when a weight is not finite.
    """
    tensors = sorted(model.state_dict().items())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        hashes = pool.map(lambda item: _digest(*item), tensors)
        lines = [
            f"{name} {tuple(tensor.shape)} {digest.hex()}\n"
            for (name, tensor), digest in zip(tensors, hashes, strict=True)
        ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
