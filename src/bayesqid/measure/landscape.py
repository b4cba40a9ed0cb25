"""The loss around a model's weights: along rounding errors, along random directions, and on average.

L(w) is the mean loss, nats per token, over some documents, as a function of the quantized weights w only: those of the
linear layers inside the blocks. Everything is computed in the model's own precision (float32 when measured) and summed
in float64. Xu et al. relate these quantities to quantization in arXiv:2410.12119.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from bayesqid.measure import blocks, layers
from bayesqid.measure.loss import Batch
from bayesqid.measure.quantizers import nearest
from bayesqid.recipe import Recipe

Vector = dict[str, Tensor]
# What draws of probes and of directions are kept apart by
PROBES, DIRECTIONS = 1, 2


@dataclass(frozen=True)
class Point:
    """A model at its weights with the text on which its loss is taken, in batches, and the number of documents."""

    model: PreTrainedModel
    found: Mapping[str, layers.Layer]
    work: Sequence[Batch]
    documents: int

    @property
    def weights(self) -> list[Tensor]:
        """The quantized weights, layer after layer."""
        return [module.weight for module in self.found.values()]

    @property
    def tokens(self) -> np.ndarray:
        """Scored tokens of every document, (documents,)."""
        where = np.concatenate([batch.documents for batch in self.work])
        return np.bincount(where, minlength=self.documents)


class Along(NamedTuple):
    """First and second derivative of a document's summed nats along a direction, each float64 (documents,)."""

    slope: np.ndarray
    curvature: np.ndarray


def _losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Nats of every scored token of a batch, (targets,)."""
    logits = model(input_ids=batch.inputs, use_cache=False).logits[batch.scored]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]


@torch.no_grad()
def nats(point: Point) -> np.ndarray:
    """Nats of every document at the model's present weights, float64 (documents,)."""
    total = np.zeros(point.documents)
    for batch in point.work:
        losses = _losses(point.model, batch).double().cpu().numpy()
        total += np.bincount(batch.documents, weights=losses, minlength=point.documents)
    return total


def norm(vector: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all layers."""
    return sum(part.double().square().sum().item() for part in vector.values()) ** 0.5


def weights(found: Mapping[str, layers.Layer]) -> Vector:
    """The layers' weights as they lie in the layers."""
    return {name: module.weight.detach() for name, module in found.items()}


def twin(recipe: Recipe) -> Recipe:
    """The recipe that rounds to nearest on another one's grid: same format, bits, groups and symmetry."""
    return replace(recipe, method="rtn", options=(), seed=0)


def rounding_error(found: Mapping[str, layers.Layer], recipe: Recipe) -> Vector:
    """d = Q(w) - w of rounding to nearest on a recipe's grid, as the weights lie in the layers.

    Methods that choose better codes (GPTQ, AWQ, HQQ) have the direction of their grid: it is known without
    calibration text.
    """
    own = twin(recipe)
    rounded = {name: nearest(layers.matrix(module), None, own).weight for name, module in found.items()}
    return {name: layers.native(module, rounded[name]) - module.weight.detach() for name, module in found.items()}


@contextmanager
def moved(found: Mapping[str, layers.Layer], direction: Mapping[str, Tensor], step: float) -> Iterator[None]:
    """Layers whose weights are w + step * direction for a while."""
    before = layers.originals(found)
    try:
        layers.install(found, {name: before[name].add(part, alpha=step) for name, part in direction.items()})
        yield
    finally:
        layers.install(found, before)


def _there(point: Point, direction: Mapping[str, Tensor], step: float) -> np.ndarray:
    with moved(point.found, direction, step):
        return nats(point)


def along(point: Point, direction: Mapping[str, Tensor], here: np.ndarray, radius: float) -> Along:
    """Derivatives of every document's nats along a direction d, from two forward passes at w + h d and w - h d.

    slope = (L(w + h d) - L(w - h d)) / 2h, curvature = (L(w + h d) - 2 L(w) + L(w - h d)) / h^2, both with an error
    O(h^2) and `here` = L(w). The step is h = radius ||w|| / ||d||, so that every format is probed at one relative
    distance; zero for a direction of zero.
    """
    length = norm(direction)
    if not length:
        return Along(np.zeros(point.documents), np.zeros(point.documents))
    step = radius * norm(weights(point.found)) / length
    ahead, behind = _there(point, direction, step), _there(point, direction, -step)
    return Along((ahead - behind) / (2 * step), (ahead - 2 * here + behind) / step**2)


def inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Inner product over all layers, summed in float64."""
    return sum((part.double() * other[name].double()).sum().item() for name, part in one.items())


def second_order(point: Point, vectors: Sequence[Callable[[], Mapping[str, Tensor]]]) -> tuple[Vector, np.ndarray]:
    """Gradient g of L at w by layer, and v'Hv for each vector v, float64 (vectors,), exact up to rounding.

    H = d2L/dw2. Every batch is taken forward and backward once, and backward through that once more for each vector
    (Pearlmutter 1994); vectors are made anew for each batch, so that one at a time is in memory.
    """
    tokens, names = int(point.tokens.sum()), list(point.found)
    gradient = {name: torch.zeros_like(weight) for name, weight in weights(point.found).items()}
    forms = np.zeros(len(vectors))
    parameters = point.weights
    # attention by plain products: fused kernels cannot be differentiated twice
    with torch.enable_grad(), _differentiable(parameters), sdpa_kernel(SDPBackend.MATH):
        for batch in point.work:
            loss = _losses(point.model, batch).sum() / tokens
            slopes = torch.autograd.grad(loss, parameters, create_graph=bool(vectors), materialize_grads=True)
            for name, slope in zip(names, slopes, strict=True):
                gradient[name] += slope.detach()
            live = [index for index, slope in enumerate(slopes) if slope.requires_grad]
            for number, make in enumerate(vectors):
                vector = make()
                product = torch.autograd.grad(
                    [slopes[index] for index in live], parameters, [vector[names[index]] for index in live],
                    retain_graph=number + 1 < len(vectors), materialize_grads=True,
                )  # fmt: skip
                forms[number] += inner(dict(zip(names, product, strict=True)), vector)
    return gradient, forms


@contextmanager
def _differentiable(parameters: Sequence[Tensor]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)


def _generator(kind: int, number: int, seed: int) -> torch.Generator:
    # on the CPU wherever the model is, so that every device draws the same
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, kind, number)).generate_state(1)[0]))


def probe(found: Mapping[str, layers.Layer], number: int, seed: int) -> Vector:
    """Hutchinson's probe of a number: +1 or -1 for every quantized weight, each as likely."""
    draw = _generator(PROBES, number, seed)
    return {name: torch.randint(0, 2, weight.shape, generator=draw).to(weight).mul_(2).sub_(1)
            for name, weight in weights(found).items()}  # fmt: skip


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error sd / sqrt(n) of independent draws; NaN where there are too few."""
    count = len(values)
    return (float(values.mean()) if count else np.nan, float(values.std(ddof=1) / count**0.5) if count > 1 else np.nan)


def random_direction(found: Mapping[str, layers.Layer], number: int, seed: int) -> Vector:
    """Gaussian u scaled layer by layer to the weights' norm, ||u_l|| = ||w_l||.

    r u then is at the relative distance r of every layer, whatever the layers' scales: rescaling a layer and what
    undoes it changes nothing (Li et al. 2018, arXiv:1712.09913, with layers for filters).
    """
    draw = _generator(DIRECTIONS, number, seed)
    drawn = {name: torch.randn(weight.shape, generator=draw).to(weight) for name, weight in weights(found).items()}
    return {name: part * (found[name].weight.detach().norm() / part.norm()) for name, part in drawn.items()}


def flatness(
    point: Point, here: np.ndarray, radii: Sequence[float], directions: int, seed: int,
    tick: Callable[[], object] = lambda: None,
) -> np.ndarray:  # fmt: skip
    """(L(w + r u) + L(w - r u)) / 2 - L(w), nats per token, (directions, radii), `random_direction` for every u.

    The mean over u and -u takes out the slope: to second order it is r^2 u'Hu / 2.
    """
    found = np.empty((directions, len(radii)))
    for number in range(directions):
        direction = random_direction(point.found, number, seed)
        for column, radius in enumerate(radii):
            both = _there(point, direction, radius) + _there(point, direction, -radius)
            found[number, column] = (both / 2 - here).sum() / point.tokens.sum()
            tick()
    return found


@torch.no_grad()
def input_products(point: Point) -> tuple[Vector, dict[str, int]]:
    """X'X over the inputs X (tokens, columns) of every layer, float32, and how many tokens reached it.

    Padding is left out. Layers that are fed one tensor share one result.
    """
    products: Vector = {}
    counts: dict[str, int] = {}
    real = torch.empty(0, dtype=torch.bool)
    last: list[tuple[Tensor, Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple], None]:
        def note(_: nn.Module, args: tuple) -> None:
            if not (last and last[-1][0] is args[0]):
                # some models put the tokens of all sequences into one row after another
                rows = args[0].flatten(0, -2)[real.flatten()].float()
                last[:] = [(args[0], rows.T @ rows)]
            products[name] = products[name] + last[-1][1] if name in products else last[-1][1]
            counts[name] = counts.get(name, 0) + int(real.sum())

        return note

    with blocks.hooks([module.register_forward_pre_hook(hook(name)) for name, module in point.found.items()]):
        for batch in point.work:
            # the last input of every window is scored, so what comes behind the last scored one is padding
            real = batch.scored.flip(1).cumsum(1).flip(1) > 0
            point.model(input_ids=batch.inputs, use_cache=False)
    return products, counts


def layer_error(found: Mapping[str, layers.Layer], direction: Mapping[str, Tensor], products: Mapping[str, Tensor],
                counts: Mapping[str, int]) -> float:  # fmt: skip
    """H-weighted layer error sum_l tr(dW_l X_l'X_l dW_l') / tokens: what GPTQ makes small, layer by layer.

    It is the sum over layers of the mean squared norm of the change of a layer's output, in squared units of the
    activations. Layers that no token reaches count nothing.
    """
    total = 0.0
    for name, product in products.items():
        gap = _matrix(found[name], direction[name]).float()
        total += ((gap @ product) * gap).sum(dtype=torch.float64).item() / counts[name]
    return total


def _matrix(module: layers.Layer, part: Tensor) -> Tensor:
    return part if isinstance(module, nn.Linear) else part.T


def sqnr_db(found: Mapping[str, layers.Layer], direction: Mapping[str, Tensor]) -> tuple[float, np.ndarray]:
    """Signal to quantization noise 10 log10(sum w^2 / sum d^2) in dB, over all layers and by layer (layers,).

    Infinite where nothing is changed.
    """
    signal, noise = (np.array([part.double().square().sum().item() for part in vector.values()])
                     for vector in (weights(found), direction))  # fmt: skip
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(signal.sum() / noise.sum())), 10 * np.log10(signal / noise)
