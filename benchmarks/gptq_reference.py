"""Compare our GPTQ with GPTQModel's, layer by layer on the same Hessians.

Run with a Python that has GPTQModel besides bayesqid's `measure` extra (its own environment is best):

    PYTHONPATH=src python benchmarks/gptq_reference.py [MODEL_FOLDER]

Prints sum of tr((W - Q) H (W - Q)^T) over all layers for round to nearest, GPTQModel and ours.
"""

import copy
import json
import sys
import time
from pathlib import Path

import torch
from gptqmodel.quantization.config import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from torch import nn

from bayesqid import bundled
from bayesqid.measure import blocks, calibrate, layers, load, text
from bayesqid.measure.quantizers import gptq, rtn
from bayesqid.measure.quantizers.outcome import Seen
from bayesqid.recipe import Recipe

BITS, WINDOWS, CONTEXT = (2, 3, 4), 32, 256
GROUPS = (-1, 32)


def hessians(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """H = 2/n sum x x^T of every linear layer of the unquantized model."""
    inputs = blocks.capture(model, batches, blocks.returns_tuple(model, batches[0]))
    found, result = layers.linears(model), {}
    hidden = inputs.hidden
    for depth, block in enumerate(layers.blocks(model)):
        behind: list[torch.Tensor] = []
        runs = [lambda state=state, call=call, block=block, depth=depth, behind=behind:
                behind.append(blocks.run(block, state, call[depth]))
                for state, call in zip(hidden, inputs.calls, strict=True)]  # fmt: skip
        inside = [name for name, module in found.items() if any(module is inner for inner in block.modules())]
        seens = calibrate.observe([found[name] for name in inside], runs, stop=False)
        result |= {name: seen.hessian for name, seen in zip(inside, seens, strict=True) if seen}
        hidden = behind
    return result


def theirs(module: nn.Module, hessian: torch.Tensor, recipe: Recipe, damp: float) -> torch.Tensor:
    """What GPTQModel's class makes of a layer with a given Hessian, with every later refinement off."""
    config = QuantizeConfig(
        bits=recipe.bits, group_size=recipe.group_size, sym=recipe.symmetric, desc_act=False,
        act_group_aware=False, damp_percent=damp, mse=0.0,
    )  # fmt: skip
    worker = GPTQ(copy.deepcopy(module), config)
    worker.quantizer.configure(perchannel=True)
    worker.H = hessian.float().clone()
    worker.nsamples = WINDOWS * CONTEXT
    worker.fwd_counter = 1
    worker.finalize_hessian = lambda target_device=None: worker.H
    return worker.quantize()[0].float()


def weighted(original: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    gap = (original - quantized).double()
    return torch.trace(gap @ hessian @ gap.T).item()


def main() -> None:
    default = bundled.models_dir() / "tiny" / "tiny-neox-793k" / "step488"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    load.quiet()
    tokenizer = load.tokenizer(bundled.models_dir() / "tiny" / "tokenizer")
    documents = text.read(bundled.models_dir() / "tiny" / "text" / "calibration.jsonl")
    with torch.inference_mode(False), torch.no_grad():
        model = load.model(folder, "float32", torch.device("cpu"))
        ids = text.tokenize(documents, tokenizer, len(model.get_input_embeddings().weight))
        rows = torch.from_numpy(text.calibration(ids, CONTEXT, WINDOWS, seed=0))
        curvature = hessians(model, list(rows.split(16)))
        found, table = layers.linears(model), []
        for bits in BITS:
            for group in GROUPS:
                recipe = Recipe("gptq", bits, group)
                sums, worst, differing, entries = {"rtn": 0.0, "gptqmodel": 0.0, "ours": 0.0}, 0.0, 0, 0
                seconds = {"gptqmodel": 0.0, "ours": 0.0}
                for name, module in found.items():
                    w, h = layers.matrix(module), curvature[name]
                    start = time.process_time()
                    other = theirs(module, h, recipe, gptq.DAMP)
                    middle = time.process_time()
                    mine = gptq.quantize(w, [Seen(h)], [recipe])[0].weight
                    seconds["gptqmodel"] += middle - start
                    seconds["ours"] += time.process_time() - middle
                    errors = {
                        "rtn": weighted(w, rtn.quantize(w, None, recipe).weight, h),
                        "gptqmodel": weighted(w, other, h),
                        "ours": weighted(w, mine, h),
                    }
                    sums = {key: sums[key] + errors[key] for key in sums}
                    worst = max(worst, abs(errors["ours"] / errors["gptqmodel"] - 1))
                    differing += int((~torch.isclose(mine, other, rtol=1e-3, atol=1e-6)).sum())
                    entries += w.numel()
                row = {"recipe": str(recipe), "layers": len(found), **sums,
                       "ours/gptqmodel": sums["ours"] / sums["gptqmodel"], "worst layer": worst,
                       "entries differing": differing / entries, "seconds": seconds}  # fmt: skip
                table.append(row)
                print(json.dumps(row), flush=True)
    if any(abs(row["ours/gptqmodel"] - 1) > 0.01 for row in table):
        sys.exit("the two differ by more than 1 %")


if __name__ == "__main__":
    main()
