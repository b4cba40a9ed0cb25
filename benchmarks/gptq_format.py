"""Do GPTQModel, transformers and bayesqid read one another's checkpoints in GPTQ's format alike?

Needs GPTQModel 7 and optimum besides bayesqid's `measure` extra; its own environment is best:

    OMP_NUM_THREADS=1 GPTQMODEL_CPU_WORKERS=2 PYTHONPATH=src python benchmarks/gptq_format.py [MODEL ...]

Checkpoints of the bundled ladder are quantized and saved by bayesqid and loaded by GPTQModel and by transformers,
then quantized and saved by GPTQModel and read by bayesqid. Every line of JSON holds the largest difference of logits
in float32 from those of the dense model with bayesqid's weights, and the largest logit.
"""

import json
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
# GPTQModel writes to stdout, which is for the answer
ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, GPTQConfig  # noqa: E402

from bayesqid import bundled  # noqa: E402
from bayesqid.measure import formats, layers, load, save, saved, text  # noqa: E402
from bayesqid.measure.quantizers import QUANTIZERS  # noqa: E402
from bayesqid.measure.quantizers.outcome import Quantized, Seen  # noqa: E402
from bayesqid.recipe import Recipe, parse  # noqa: E402

LADDER = bundled.models_dir() / "tiny"
# the last one with zero points of 0
MODELS = ("tiny-neox-100k/step488", "tiny-llama-27k/step244", "tiny-opt-25k/step488", "tiny-neox-25k/step488")
OURS = ("rtn-w2-g32", "rtn-w2-g32-asym", "rtn-w3", "gptq-w3-g32-asym", "gptq-w4-g32", "gptq-w4-g32-act", "gptq-w4-asym",
        "gptq-w5-g32", "rtn-w6-asym", "rtn-w8")  # fmt: skip
# bits, group size, symmetric, desc_act
THEIRS = ((2, 32, True, False), (2, 32, False, False), (3, -1, True, False), (3, 32, False, False),
          (4, 32, True, True), (4, 32, False, False), (5, 32, True, False), (6, -1, False, False),
          (8, -1, False, False))  # fmt: skip
WINDOWS, CONTEXT = 4, 256


def say(**row: object) -> None:
    print(json.dumps(row), file=ANSWER, flush=True)


def rows() -> torch.Tensor:
    tokenizer = load.tokenizer(LADDER / "tokenizer")
    documents = text.read(LADDER / "text" / "calibration.jsonl")
    return torch.from_numpy(text.calibration(text.tokenize(documents, tokenizer, 256), CONTEXT, WINDOWS, 0))


def quantized(model: torch.nn.Module, recipe: Recipe) -> dict[str, Quantized]:
    """Every layer quantized, with Hessians of made-up inputs: what is tested is what becomes of the codes."""
    torch.manual_seed(0)
    made = {}
    for name, module in layers.linears(model).items():
        weight = layers.matrix(module)
        inputs = torch.randn(512, weight.shape[1]) * torch.rand(weight.shape[1])
        seen = Seen(2 * (inputs.T @ inputs).double() / len(inputs), inputs.abs().mean(0))
        made[name] = QUANTIZERS[recipe.method](weight, [seen], [recipe])[0]
    return made


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits.float()


def dense(folder: Path, weights: dict, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the unquantized checkpoint with other weights."""
    model = load.model(folder, "float32", torch.device("cpu"))
    found = layers.linears(model)
    layers.install(found, {name: layers.native(found[name], weights[name]) for name in found})
    return logits(model, tokens)


def by_gptqmodel(folder: Path, tokens: torch.Tensor, **choice: object) -> torch.Tensor:
    # the scales are float16 in the file: loaded as that and then made float32 they stay what they are
    choice = choice or {"dtype": torch.float16, "backend": BACKEND.GPTQ_TORCH}
    return logits(GPTQModel.load(str(folder), device="cpu", **choice).model.float(), tokens)


def by_transformers(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    kernel = GPTQConfig(saved.recipe_of(folder).bits, backend="gptq_torch")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, device_map="cpu", quantization_config=kernel
    )
    # transformers forbids it to quantized models, whose kernels may need float16: this one does not
    return logits(torch.nn.Module.float(model), tokens)


READERS = {
    "gptqmodel": by_gptqmodel,
    "transformers": by_transformers,
    # the kernel that GPTQModel itself chooses on a CPU
    "gptqmodel, its kernel": partial(by_gptqmodel, dtype=torch.bfloat16),
}


def compare(folder: Path, mine: torch.Tensor, tokens: torch.Tensor) -> dict[str, object]:
    """Largest difference from our logits for every reader, or why it does not load the checkpoint."""
    found: dict[str, object] = {"largest logit": mine.abs().max().item()}
    for reader, read in READERS.items():
        try:
            found[reader] = (read(folder, tokens) - mine).abs().max().item()
        except Exception as error:
            found[reader] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return found


def zeros(folder: Path) -> int:
    """How many zero points are 0, the ones that storing z - 1 lets wrap around."""
    recipe, where = saved.recipe_of(folder), saved.files(folder)
    packed = formats.gptq_format(folder, saved.settings(folder))
    total = 0
    for name in (name for name in where if name.endswith(".qzeros")):
        outputs = saved.read(where[name.replace("qzeros", "scales")], name.replace("qzeros", "scales")).shape[1]
        points = formats.zero_points(saved.read(where[name], name), recipe.bits, outputs, packed)
        total += int((points == 0).sum())
    return total


def ours(source: Path, recipe: Recipe, tokens: torch.Tensor, place: Path) -> None:
    made = quantized(load.model(source, "float32", torch.device("cpu")), recipe)
    folder = save.save_gptq(place / "ours", source, recipe, made)
    read = saved.weights(folder)
    mine = dense(source, read, tokens)
    apart = (dense(source, {name: one.weight for name, one in made.items()}, tokens) - mine).abs().max().item()
    say(**{"saved by": "bayesqid", "model": source.name, "recipe": str(recipe), "format": save.form(recipe),
           "read as": str(saved.recipe_of(folder)), "zero points of 0": zeros(folder), "float32 scales": apart},
        **compare(folder, mine, tokens))  # fmt: skip


def theirs(source: Path, case: tuple, tokens: torch.Tensor, place: Path) -> None:
    bits, group, symmetric, act = case
    config = QuantizeConfig(bits=bits, group_size=group, sym=symmetric, desc_act=act, act_group_aware=False,
                            damp_percent=0.01, offload_to_disk=False)  # fmt: skip
    model = GPTQModel.load(str(source), config, dtype=torch.float32, device="cpu")
    examples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in tokens]
    model.quantize(examples, batch_size=1, calibration_data_min_length=1)
    folder = place / "theirs"
    model.save(str(folder))
    weights = saved.weights(folder)
    mine = dense(source, weights, tokens)
    baseline = load.model(source, "float32", torch.device("cpu"))
    belongs = set(saved.of(folder, baseline)) == set(layers.linears(baseline))
    said = saved.settings(folder) or {}
    say(**{"saved by": "gptqmodel", "model": source.name, "settings": list(case), "format": said["checkpoint_format"],
           "read as": str(saved.recipe_of(folder)), "zero points of 0": zeros(folder), "of the baseline": belongs},
        **compare(folder, mine, tokens))  # fmt: skip


def lift(source: Path) -> None:
    """Make every fourth output's weights positive, so that asymmetric zero points become 0."""
    content = {name: tensor.clone() for name, tensor in load_file(source / "model.safetensors").items()}
    for name, tensor in content.items():
        if ".layers." in name and tensor.ndim == 2:
            tensor[::4].abs_()
    save_file(content, source / "model.safetensors", {"format": "pt"})


def main() -> None:
    load.quiet()
    tokens = rows()
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as made:
            source = Path(made) / name.replace("/", "-")
            shutil.copytree(LADDER / name, source)
            shutil.copytree(LADDER / "tokenizer", source, dirs_exist_ok=True)
            if name == MODELS[-1]:
                lift(source)
            for recipe in OURS:
                with tempfile.TemporaryDirectory() as place:
                    ours(source, parse(recipe), tokens, Path(place))
            for case in THEIRS:
                with tempfile.TemporaryDirectory() as place:
                    theirs(source, case, tokens, Path(place))


if __name__ == "__main__":
    main()
