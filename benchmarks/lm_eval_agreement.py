"""Compare our losses with lm-evaluation-harness's rolling log-likelihood, document by document.

lm-eval runs in an environment of its own. Give it our torch and transformers, else their versions are compared too:

    python3.12 -m venv lmenv
    lmenv/bin/pip install -c constraints.txt "lm-eval[hf]==0.4.13"
    PYTHONPATH=src python benchmarks/lm_eval_agreement.py lmenv/bin/python > lm_eval_agreement.jsonl

We measure checkpoints of the bundled ladder as `bayesqid measure` does and save each quantized model as an ordinary
folder. lm-eval scores the same documents with it, a `loglikelihood_rolling` task in float32. Each text comes at three
lengths, so that there are documents shorter than the context, of whole windows, and with a part of a window at the end.
Differences are lm-eval minus ours in nats per token. Prints a JSON line per checkpoint and recipe and one for all; exit
1 when a document is further apart than `TOLERANCE`. 3 minutes on one core.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # nats per token, of any document
# shorter than the context of 256; three whole windows; what the measurement's default is, mostly not whole
LENGTHS = (128, 768, 1024)
EVERY = 4  # of the ladder's 192 texts one in so many is used
RECIPES = ("none", "rtn-w3", "gptq-w4", "rtn-w3-g32")
CHECKPOINTS = (
    "tiny-neox/tiny-neox-25k@step122",
    "tiny-neox/tiny-neox-25k@step1953",
    "tiny-neox/tiny-neox-100k@step1172-cooldown",
    "tiny-neox/tiny-neox-224k@step244",
    "tiny-neox/tiny-neox-793k@step488",
    "tiny-llama/tiny-llama-27k@step977",
    "tiny-llama/tiny-llama-54k@step244",
    "tiny-opt/tiny-opt-25k@step977",
    "tiny-opt/tiny-opt-51k@step488",
)
TASK = "same_documents"


def ours(checkpoints: tuple[str, ...], text: Path, work: Path) -> tuple[Any, dict[str, str], int, dict]:
    """Measurements (a Dataset), folders of the saved models by "checkpoint recipe", the context, versions."""
    import dataclasses

    import torch

    from bayesqid.measure import calibrate, layers, load, plan, run
    from bayesqid.measure.checkpoint import prepare
    from bayesqid.measure.parts import Found
    from bayesqid.measure.together import quantize_block

    facts = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}
    whole = plan.make("tiny", list(RECIPES), "cpu", {"max_bytes": max(LENGTHS)}, facts, evaluation=text)
    chosen = tuple(checkpoint for checkpoint in whole.checkpoints if checkpoint.id in checkpoints)
    made = dataclasses.replace(whole, checkpoints=chosen)
    data = run.run(made, work / "measurements.nc", jobs=1)
    tokenizer, folders = load.tokenizer(Path(str(made.tokenizer))), {}
    with torch.inference_mode():
        for checkpoint in made.checkpoints:
            ready = prepare(made, checkpoint, load.folder(checkpoint.hub, checkpoint.revision), {}, Found())
            rows = {one: list(ready.calibrated(one.seed).hidden) for one in made.recipes if calibrate.sequential(one)}
            lanes = [calibrate.Lane(recipe, [], rows.get(recipe)) for recipe in made.recipes]
            quantized = [quantize_block(ready, depth, lanes, {}) for depth in range(len(ready.inside))]
            for lane, blocks in zip(lanes, zip(*quantized, strict=True), strict=True):
                folder = work / f"model{len(folders)}"
                before = [layers.originals(inside) for inside in ready.inside]
                for inside, block in zip(ready.inside, blocks, strict=True):
                    calibrate.install(inside, block)
                ready.model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                for inside, weights in zip(ready.inside, before, strict=True):
                    layers.install(inside, weights)
                folders[f"{checkpoint.id} {lane.recipe}"] = str(folder)
    return data, folders, made.protocol.context, made.manifest()["versions"]


def theirs(job: dict[str, Any]) -> dict[str, Any]:
    """What lm-eval makes of each folder: nats of every document, and its bits per byte.

    Runs in lm-eval's environment and imports nothing of ours.
    """
    from importlib.metadata import version

    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=job["tasks"], include_defaults=False)

    def score(model: HFLM) -> dict[str, Any]:
        found: Any = simple_evaluate(model, tasks=[TASK], task_manager=tasks, log_samples=True, bootstrap_iters=0)
        samples = found["samples"][TASK]
        return {
            "nats": {sample["doc"]["id"]: -float(sample["filtered_resps"][0]) for sample in samples},
            "bits_per_byte": found["results"][TASK]["bits_per_byte,none"],
        }

    answers = {}
    for name, folder in job["folders"].items():
        # no special token in the text; before it the prefix token, by default bos, else eos: our separator
        model = HFLM(
            folder, device="cpu", dtype="float32", max_length=job["context"], add_bos_token=False, batch_size=16
        )
        answers[name] = score(model)
    versions = {package: version(package) for package in ("lm_eval", "torch", "transformers", "datasets")}
    return {"answers": answers, "versions": versions}


def write_texts(work: Path) -> dict[str, str]:
    """Write every text at each length for us, and for lm-eval with a task around it; the texts by their names."""
    from bayesqid import bundled
    from bayesqid.measure import text

    documents = text.read(bundled.models_dir() / "tiny" / "text" / "eval.jsonl")[::EVERY]
    texts = {f"{one.id} {most}": one.text for most in LENGTHS for one in text.cut(documents, most)}
    lines = [json.dumps({"id": name, "text": content}) for name, content in texts.items()]
    (work / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (work / "tasks").mkdir()
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(work / "text.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    # JSON is YAML
    (work / "tasks" / f"{TASK}.yaml").write_text(json.dumps(task), encoding="utf-8")
    return texts


def ask(python: str, job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Run `theirs` under another Python, offline and with its caches in `work`."""
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    offline = {"HF_HOME": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [python, __file__, "--theirs", str(work / "job.json"), str(work / "answer.json")]
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"lm-eval under {python} failed:\n{done.stderr}")
    return json.loads((work / "answer.json").read_text(encoding="utf-8"))


def compare(mine: np.ndarray, other: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Differences lm-eval minus ours in nats per token: the largest of a document's, and that of all together."""
    apart = other - mine
    return {
        "loss": float(mine.sum() / tokens.sum()),
        "documents": len(tokens),
        "tokens": int(tokens.sum()),
        "largest": float(np.abs(apart / tokens).max()),
        "together": float(apart.sum() / tokens.sum()),
    }


def main() -> None:
    if sys.argv[1:2] == ["--theirs"]:
        job = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        Path(sys.argv[3]).write_text(json.dumps(theirs(job)), encoding="utf-8")
        return
    if len(sys.argv) != 2:
        sys.exit("give the Python of an environment that has lm-eval, see the first lines of this file")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        texts = write_texts(work)
        data, folders, context, versions = ours(CHECKPOINTS, work / "text.jsonl", work)
        there = ask(sys.argv[1], {"folders": folders, "tasks": str(work / "tasks"), "context": context}, work)
    names = [str(name) for name in data["document"].values]
    size = sum(len(texts[name].encode()) for name in names)
    rows = []
    for name, answer in there["answers"].items():
        checkpoint, recipe = name.split()
        mine = data["nats"].sel(checkpoint=checkpoint, recipe=recipe).values
        tokens = data["tokens"].sel(checkpoint=checkpoint).values
        other = np.array([answer["nats"][one] for one in names])
        bits = abs(answer["bits_per_byte"] - mine.sum() / np.log(2) / size)
        rows.append(compare(mine, other, tokens) | {"bits_per_byte_apart": bits})
        print(json.dumps({"checkpoint": checkpoint, "recipe": recipe} | rows[-1]), flush=True)
    # numpy's max keeps a nan, which then fails below; Python's loses it
    total = {key: float(np.max([row[key] for row in rows])) for key in ("largest", "bits_per_byte_apart")}
    print(json.dumps({"cells": len(rows)} | total | {"ours": versions, "lm_eval": there["versions"]}))
    if len(rows) != len(CHECKPOINTS) * len(RECIPES) or not all(value <= TOLERANCE for value in total.values()):
        sys.exit(f"the two differ by more than {TOLERANCE} or a cell is missing")


if __name__ == "__main__":
    main()
