"""Where the weights that get quantized are: the linear layers inside a language model's blocks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bayesqid.errors import BadInput

Layer = nn.Linear | Conv1D
Weights = Mapping[str, Tensor]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's stack of transformer blocks: its ModuleList with the most parameters.

    Raises `BadInput` when there is none.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        raise BadInput(f"{type(model).__name__} has no list of blocks: bayesqid measures transformers only.")
    # max() keeps the first of equals, and modules() lists parents before their children
    return max(stacks, key=_parameters)


def linears(model: nn.Module) -> dict[str, Layer]:
    """Every linear layer inside the blocks by its full name, in the order of definition.

    Raises `BadInput` when a block keeps matrices elsewhere, as fused mixtures of experts do: quantizing
    only the rest would be reported as if it were the whole model.
    """
    stack = blocks(model)
    inside = {id(module) for module in stack.modules()}
    found = {
        name: module for name, module in model.named_modules() if id(module) in inside and isinstance(module, Layer)
    }
    taken = {id(module.weight) for module in found.values()}
    matrices = [(name, p) for name, p in stack.named_parameters() if p.ndim >= 2]
    loose = [name for name, parameter in matrices if id(parameter) not in taken]
    total = sum(parameter.numel() for _, parameter in matrices)
    outside = sum(parameter.numel() for _, parameter in matrices if id(parameter) not in taken)
    if not matrices:
        raise BadInput(f"{type(model).__name__} has no linear layers inside its blocks: there is nothing to quantize.")
    if not found or outside > 0.01 * total:
        raise BadInput(
            f"{type(model).__name__} keeps {outside / max(total, 1):.0%} of its block weights outside linear "
            f"layers (e.g. {loose[0] if loose else 'none found'}), as fused mixtures of experts do: "
            "such models cannot be measured."
        )
    return found


def matrix(module: Layer) -> Tensor:
    """A layer's weight as (outputs, inputs), whatever way round the layer keeps it."""
    weight = module.weight.detach()
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def native(module: Layer, weight: Tensor) -> Tensor:
    """A matrix (outputs, inputs) in the layout and dtype of the layer that it is meant for."""
    weight = weight.to(module.weight.dtype)
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def install(layers: Mapping[str, Layer], weights: Weights) -> None:
    """Let each named layer use the given tensor as its weight; nothing is copied."""
    for name, weight in weights.items():
        layers[name].weight.data = weight


def originals(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """The tensors the layers use now, to be installed again later."""
    return {name: module.weight.data for name, module in layers.items()}


@contextmanager
def lent(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module's tensors on `device` for a while; where they lie there already nothing happens."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.device.type != device.type]
    homes = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device, non_blocking=True)
        yield
    finally:
        # weights are only lent: what is at home is still right, and copying back would cost as much again
        for tensor, home in zip(tensors, homes, strict=True):
            tensor.data = home


def size(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(parameter.nbytes for parameter in module.parameters())


def shapes(layers: Mapping[str, Layer]) -> list[tuple[int, int]]:
    """(outputs, inputs) of each layer."""
    return [(rows, columns) for rows, columns in (matrix(module).shape for module in layers.values())]


def shapes_by_block(inside: Sequence[Mapping[str, Layer]]) -> list[dict[str, tuple[int, int]]]:
    """(outputs, inputs) of each layer by name, block after block."""
    return [dict(zip(found, shapes(found), strict=True)) for found in inside]


def largest_context(model: PreTrainedModel) -> int | None:
    """Most tokens the model's positions allow, None when its configuration does not say."""
    config = model.config
    for key in ("max_position_embeddings", "n_positions"):
        if getattr(config, key, None):
            return int(getattr(config, key))
    return None


def best_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one; `BadInput` when `cuda` is asked for and missing."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"There is no device {name!r}: choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("No CUDA device is available here: use --device cpu or --device auto.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(name: str) -> str:
    """What `best_device` gives, in words."""
    device = best_device(name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
