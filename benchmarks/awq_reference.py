"""Compare our AWQ with GPTQModel's, layer by layer on the same inputs.

Run with a Python that has GPTQModel besides bayesqid's `measure` extra (its own environment is best):

    PYTHONPATH=src python benchmarks/awq_reference.py [MODEL_FOLDER]

Prints, as JSON lines, sum of tr((W - Q) H (W - Q)^T) over all layers, each judged alone, over that of round to
nearest: GPTQModel's search and ours, without and with clipping. `w` is asymmetric, where both have the same grid.
`x` is the paper's scale m^a (GPTQModel with duo_scaling off), `xw` GPTQModel's default, which also divides by the
weights' own magnitudes. 512 tokens, for GPTQModel judges clipping by no more. Ours clips a row only where that
lowers the row's whole error, GPTQModel wherever it lowers a group's own.
"""

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import torch
from gptqmodel.looper.awq_processor import AWQProcessor, _compute_awq_weight_mean
from torch import Tensor, nn

from bayesqid import bundled
from bayesqid.measure import layers, load, text
from bayesqid.measure.quantizers import awq, rtn
from bayesqid.measure.quantizers.outcome import Seen
from bayesqid.recipe import Recipe, parse

RECIPES, WINDOWS, CONTEXT = ("awq-w2-g32", "awq-w3", "awq-w3-g32", "awq-w4", "awq-w4-g32"), 2, 256


def inputs(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Inputs (tokens, columns) of every linear layer of the unquantized model."""
    found, kept = layers.linears(model), {}
    for name, module in found.items():

        def keep(_: nn.Module, args: tuple[Tensor], name: str = name) -> None:
            kept.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]))

        module.register_forward_pre_hook(keep)
    for batch in batches:
        model(input_ids=batch)
    return {name: torch.cat(parts) for name, parts in kept.items()}


def worker(recipe: Recipe, duo: bool) -> AWQProcessor:
    """GPTQModel's processor with what its two searches look at, and nothing of the model around them."""
    bare = AWQProcessor.__new__(AWQProcessor)
    bare.qcfg = SimpleNamespace(bits=recipe.bits, group_size=recipe.group_size, sym=recipe.symmetric)
    bare.gptq_model = SimpleNamespace(rotary_embedding=None)
    bare.model = SimpleNamespace()
    bare.max_chunk_memory, bare.duo_scaling, bare._quant_batch_size = 2**30, duo, None
    bare._scale_context, bare._module_forward_kwargs = threading.local(), {}
    return bare


def theirs(weight: Tensor, x: Tensor, recipe: Recipe, duo: bool) -> tuple[Tensor, Tensor]:
    """What GPTQModel's searches make of a layer: without and with clipping."""
    bare = worker(recipe, duo)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    means = _compute_awq_weight_mean([module], recipe.group_size), x.abs().mean(0)
    s = bare._compute_best_scale(x, *means, module, [module], [module(x)], {})[0]
    plain = bare.pseudo_quantize_tensor(weight * s)[0] / s
    limit = bare._compute_best_clip(weight * s, x / s)
    size = weight.shape[1] if recipe.group_size == -1 else recipe.group_size
    groups = (weight * s).view(len(weight), -1, size)
    return plain, bare.pseudo_quantize_tensor(groups.clamp(-limit, limit).view_as(weight))[0] / s


def loss(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    return awq.output_error((weight - quantized).double(), hessian).sum().item()


def compare(recipe: Recipe, weights: dict[str, Tensor], seen: dict[str, Tensor]) -> dict[str, float]:
    """Output errors over that of round to nearest, by who made the weights."""
    sums: dict[str, float] = {}
    for name, weight in weights.items():
        x, size = seen[name], weight.shape[1] if recipe.group_size == -1 else recipe.group_size
        what = Seen(2 / len(x) * x.double().T @ x.double(), x.abs().mean(0))
        ours = awq.quantize(weight, what, recipe)
        factor = awq.stretch(what.magnitude, float(ours.note.removeprefix("exponent ")))
        made = {
            "round to nearest": rtn.quantize(weight, None, recipe).weight,
            "ours, unclipped": awq.stretched(weight, factor, recipe, size),
            "ours": ours.weight,
        }
        for label, duo in (("x", False), ("xw", True)):
            made[f"gptqmodel {label}, unclipped"], made[f"gptqmodel {label}"] = theirs(weight, x, recipe, duo)
        for label, quantized in made.items():
            sums[label] = sums.get(label, 0.0) + loss(weight, quantized, what.hessian)
    base = sums.pop("round to nearest")
    return {label: round(total / base, 4) for label, total in sums.items()}


def main() -> None:
    tiny = bundled.models_dir() / "tiny"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else tiny / "tiny-neox-793k" / "step488"
    load.quiet()
    with torch.no_grad():
        model = load.model(folder, "float32", torch.device("cpu"))
        ids = text.tokenize(
            text.read(tiny / "text" / "calibration.jsonl"),
            load.tokenizer(tiny / "tokenizer"),
            len(model.get_input_embeddings().weight),
        )
        rows = torch.from_numpy(text.calibration(ids, CONTEXT, WINDOWS, seed=0))
        seen = inputs(model, list(rows.split(8)))
        weights = {name: layers.matrix(module).contiguous() for name, module in layers.linears(model).items()}
        worse = []
        for recipe in map(parse, RECIPES):
            row = compare(recipe, weights, seen)
            print(json.dumps({"recipe": str(recipe), "layers": len(weights), **row}), flush=True)
            worse += [str(recipe)] * (row["ours"] > 1.01 * row["gptqmodel x"])
    if worse:
        sys.exit(f"ours loses more than 1 % more than GPTQModel's search over the same scales: {', '.join(worse)}")


if __name__ == "__main__":
    main()
