"""What measuring costs on a GPU: cells per minute, share of the matrix ceiling, stages over their floor, memory.

    PYTHONPATH=src python benchmarks/gpu.py [--out FOLDER] [--small]

Models have random weights, so nothing is downloaded: GPT-NeoX shapes of 0.3M to 30M parameters and that of Pythia-1b
with 262k evaluation tokens, 18 recipes, half of them GPTQ. Needs torch >= 2.11, transformers >= 5.17, numpy, xarray.
`--small` shrinks everything, to try the script itself on a CPU. Prints JSON lines and writes them to FOLDER/gpu.jsonl.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measure import GPTQ, RTN
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from bayesqid.measure import blocks, calibrate, layers, loss, text, together
from bayesqid.measure.calibrate import Lane
from bayesqid.measure.quantizers import gptq
from bayesqid.recipe import NONE, parse

# non-embedding parameters -> width, layers, heads
SHAPES = {"0.3M": (96, 3, 3), "1M": (128, 5, 4), "3M": (256, 4, 4), "10M": (384, 6, 6), "30M": (512, 10, 8)}
PYTHIA_1B = (2048, 16, 8)


def model_of(shape: tuple[int, int, int], vocabulary: int, context: int, device: torch.device) -> GPTNeoXForCausalLM:
    width, depth, heads = shape
    config = GPTNeoXConfig(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
                           intermediate_size=4 * width, max_position_embeddings=context)  # fmt: skip
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(config).to(device, torch.bfloat16).eval().requires_grad_(False)


def ready_of(model: GPTNeoXForCausalLM, tokens: int, calibration: int, context: int) -> together.Ready:
    generator = torch.Generator().manual_seed(1)
    vocabulary, device = model.config.vocab_size, next(model.parameters()).device
    documents = [torch.randint(0, vocabulary, (context + 1,), generator=generator).numpy()
                 for _ in range(max(1, tokens // context))]  # fmt: skip
    rows = torch.randint(0, vocabulary, (max(1, calibration // context), context), generator=generator).to(device)
    linears = layers.linears(model)
    inside = [{id(module) for module in block.modules()} for block in layers.blocks(model)]
    by_block = [{name: layer for name, layer in linears.items() if id(layer) in members} for members in inside]
    windows = text.windows(documents, context)
    as_tuple = blocks.verify(model, torch.from_numpy(windows[0].inputs[None, :8]).to(device))
    found = together.Ready(model, device, as_tuple, by_block, windows, lambda seed: rows, len(documents))
    found.lay_out()
    return found


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ceiling(device: torch.device, size: int) -> float:
    """bf16 matrix FLOP per second that this device reaches on square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    start = wait(device)
    for _ in range(20):
        a @ b
    return 20 * 2 * size**3 / (wait(device) - start)


def measured(model: GPTNeoXForCausalLM, tokens: int, calibration: int, context: int, recipes: list[str]) -> dict:
    """Seconds of all recipes of one model, baseline included, and the peak of memory."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = wait(device)
    ready = ready_of(model, tokens, calibration, context)
    waiting = [NONE, *(parse(name) for name in recipes)]
    size, failed = together.lanes_at_once(ready, waiting), 0
    while waiting:
        done = together.measure(ready, waiting[:size], {}, False, lambda amount: None)
        failed += sum(score is None for _, score in done)
        del waiting[:size]
    seconds = wait(device) - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"cells": len(recipes) + 1, "failed": failed, "seconds": seconds, "at_once": size, "peak_gib": peak,
            "cells_per_minute": 60 * (len(recipes) + 1) / seconds}  # fmt: skip


def stages(model: GPTNeoXForCausalLM, tokens: int, calibration: int, context: int, top: float) -> dict:
    """Evaluation of the baseline as a share of the ceiling, and Hessians and GPTQ over the floor of their products."""
    device = next(model.parameters()).device
    ready = ready_of(model, tokens, calibration, context)
    weights = sum(layer.weight.numel() for found in ready.inside for layer in found.values())
    head = model.config.vocab_size * model.config.hidden_size
    attention = 2 * context * model.config.hidden_size * model.config.num_hidden_layers
    counted = len(ready.windows) * context
    lane = Lane(NONE, list(ready.evaluation.hidden))
    start = wait(device)
    together.through(ready, [lane], lambda: None)
    ready.baseline = lane.hidden
    together.scores(ready, [lane])
    evaluation = wait(device) - start
    found, block = ready.inside[0], layers.blocks(model)[0]
    inputs = ready.calibrated(0)
    rows = sum(state.shape[0] * state.shape[1] for state in inputs.hidden)
    modules = list(found.values())
    runs = [lambda row=row, call=call: blocks.run(block, row, call[0])
            for row, call in zip(inputs.hidden, inputs.calls, strict=True)]  # fmt: skip
    start = wait(device)
    for run in runs:
        run()
    forward = wait(device) - start
    start = wait(device)
    seens = calibrate.observe(modules, runs, stop=False)
    hessians = wait(device) - start - forward
    chosen = [parse(name) for name in GPTQ]
    start = wait(device)
    for module, seen in zip(modules, seens, strict=True):
        gptq.quantize(layers.matrix(module), [seen] * len(chosen), chosen)
    quantizing = wait(device) - start
    products = sum(2 * rows * module.weight.shape[1] ** 2 for module in modules)
    updates = sum(module.weight.numel() * module.weight.shape[1] for module in modules) * len(chosen)
    flops = counted * (2 * (weights + head) + 2 * attention)
    return {"tokens": counted, "evaluation_s": evaluation, "evaluation_share_of_ceiling": flops / evaluation / top,
            "batch_tokens": max(batch.inputs.numel() for batch in ready.work), "most_numbers": loss.BATCH_NUMBERS,
            "hessian_s_per_block": hessians, "hessian_over_floor": hessians / (products / top),
            "gptq_s_per_block": quantizing, "gptq_over_floor": quantizing / (updates / top)}  # fmt: skip


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    recipes, rows = list(RTN + GPTQ), []

    def say(row: dict) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    top = ceiling(device, 512 if given.small else 8192)
    say({"what": "ceiling", "device": name, "torch": torch.__version__, "bf16_flops": top})
    shapes = {"0.3M": SHAPES["0.3M"]} if given.small else SHAPES
    tokens, calibration = (2048, 1024) if given.small else (262_144, 32_768)
    for label, shape in shapes.items():
        model = model_of(shape, 256, 256, device)
        measured(model, 2048, 1024, 256, recipes[-1:])  # first calls are not what is timed
        say({"what": "ladder", "shape": label} | measured(model, tokens, calibration, 256, recipes))
    context = 256 if given.small else 2048
    large = model_of((64, 2, 2) if given.small else PYTHIA_1B, 512 if given.small else 50_304, context, device)
    measured(large, 2 * context, 2 * context, context, recipes[-1:])
    say({"what": "pythia-1b"} | measured(large, tokens, 2048 if given.small else 262_144, context, recipes))
    say({"what": "stages"} | stages(large, tokens, 2048 if given.small else 262_144, context, top))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "gpu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
