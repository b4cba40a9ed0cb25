"""Compare our MX and NVFP4 rounding with torchao's, value by value, and time it beside round to nearest.

Run with a Python that has torchao besides bayesqid's `measure` extra:

    PYTHONPATH=src python benchmarks/formats_reference.py > benchmarks/results/formats_reference.jsonl

Prints a JSON line per format and block: values compared, and how many differ. The weights are normal with rows of very
different size, and multiples of a quarter, many of which lie half-way between two numbers of a format. torchao gives
NVFP4 blocks scales of at least 2^-6, the specification's subnormal ones being ours as well, and multiplies by a
reciprocal, so that ties may fall otherwise: its normal weights are compared alone. Then milliseconds per format of a
2048 x 2048 weight on one thread, the least of seven.
"""

import json
import time

import torch
from torch import Tensor
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, unpack_uint4
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

from bayesqid.measure.quantizers import nearest
from bayesqid.recipe import FORMATS, parse

ELEMENTS = {
    "mxfp4": torch.float4_e2m1fn_x2,
    "mxfp6e2m3": DTYPE_FP6_E2M3,
    "mxfp6e3m2": DTYPE_FP6_E3M2,
    "mxfp8e4m3": torch.float8_e4m3fn,
    "mxfp8e5m2": torch.float8_e5m2,
}
TIMED = ("w4", "w4-g32", "mxint4", "mxfp4", "mxfp6e2m3", "mxfp8e4m3", "fp8e4m3", "nvfp4")
REPEATS = 7


def nvfp4(weight: Tensor) -> Tensor:
    """Torchao's NVFP4 as ordinary numbers."""
    whole = per_tensor_amax_to_scale(weight.abs().max())
    scale, codes = nvfp4_quantize(weight, 16, whole)
    numbers = f4_unpacked_to_f32(unpack_uint4(codes)).view(len(weight), -1, 16)
    return (numbers * (scale.float() * whole)[..., None]).view_as(weight)


def differing(name: str, weight: Tensor, theirs: Tensor) -> None:
    ours = nearest(weight, None, parse(f"rtn-{name}")).weight
    print(json.dumps({"format": name, "values": weight.numel(), "differ": int((ours != theirs).sum())}), flush=True)


def milliseconds(name: str, weight: Tensor) -> float:
    recipe, taken = parse(f"rtn-{name}"), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        nearest(weight, None, recipe)
        taken.append(time.perf_counter() - start)
    return min(taken) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    normal = torch.randn(512, 1024)
    weight = torch.cat([normal * (3 * torch.randn(512, 1)).exp(), torch.randint(-64, 64, (512, 1024)) / 4])
    for name, element in ELEMENTS.items():
        for block in FORMATS["mxfp"].groups:
            differing(f"{name}-g{block}", weight, MXTensor.to_mx(weight, element, block).dequantize(torch.float32))
    differing("nvfp4", normal, nvfp4(normal))
    big = torch.randn(2048, 2048)
    for name in TIMED:
        print(json.dumps({"format": name, "milliseconds": round(milliseconds(name, big), 1)}), flush=True)


if __name__ == "__main__":
    main()
