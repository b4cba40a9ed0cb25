"""Result folders of lm-evaluation-harness (0.4 and later): losses of documents, paired with those of a baseline run.

The harness reports a loss per word or per byte; QiD is per token, and tokens are not in its files. So they are counted
here, by a tokenizer or by a rate per byte, over the text that the model was given.
"""

import json
import re
from pathlib import Path
from typing import Any

from bayesqid import recipe
from bayesqid.errors import BadInput
from bayesqid.importers import formats
from bayesqid.importers.formats import Found, Given, dig, number
from bayesqid.importers.lm_eval_losses import PER_BYTE, Run, paired, samples

MOST_FILES = 10_000
# metric -> why it is no loss per token
REFUSED = {
    "word_perplexity": "word_perplexity: a word is not a token",
    "perplexity": "perplexity of target words only, not of text",
}
NO_LOSS = "a task without a loss of running text"
# options of the harness that quantize, or load what is quantized, without saying how
UNTOLD = ("autogptq", "gptqmodel", "load_in_8bit", "gguf_file")


def recognises(path: Path) -> bool:
    """Whether a path is a results file or a folder with one somewhere in it."""
    if path.is_dir():
        return next(path.rglob("results_*.json"), None) is not None
    return path.name.startswith("results_") and path.suffix == ".json"


def read(paths: list[Path], given: Given) -> Found:
    """One row per quantized run and task of running text, against the one baseline run.

    QiD = sum(nats_q - nats_base) / sum(tokens), its error by documents as clusters; without samples QiD is the change
    of the loss per byte over the tokens per byte, its error unknown. `BadInput` where the runs cannot be paired.
    """
    runs, older = _latest([run for path in paths for run in _runs(path)])
    bases = _latest(_runs(given.baseline))[0] if given.baseline else [run for run in runs if not _told(run)]
    if len(bases) != 1:
        named = ", ".join(f"{run.model}@{run.revision}" for run in bases) or "none"
        raise BadInput(f"There must be one baseline run, but there are {len(bases)} ({named}): "
                       "name its folder with --baseline, and the recipe of the others with --recipe.")  # fmt: skip
    base = bases[0]
    facts = formats.identify(given, base.model, base.revision)
    family = str(facts["family"])
    rows, left_out, notes, used = [], [("an older result of the same run", family)] * older, [], [base.file]
    others = [run for run in runs if run.file.resolve() != base.file.resolve()]
    formats.of_one(given, len(others))
    for run in others:
        used.append(run.file)
        for task in dig(run.data, str(run.file), "results"):
            left_out += [(reason, family) for reason in _refusals(run, task)]
            if not _has_loss(run, task):
                continue
            _alike(base, run, task)
            loss, why = paired(base, run, task, given)
            if why:
                left_out.append((why, family))
                continue
            notes.append(f"{task}, {run.model}: {loss.pop('note')}")
            rows.append({**facts, **_quantizer(run, given, facts.get("width")), **loss,
                         **formats.protocol(given, "lm-eval", task, _context(run))})  # fmt: skip
    if len(used) == 1:
        raise BadInput(f"Only the baseline {base.model} was found: name the folders of quantized runs as well.")
    return Found(rows, left_out, notes, used)


def _runs(path: Path) -> list[Run]:
    if not path.exists():
        raise BadInput(f"There is no folder or file {path}: name results of lm-evaluation-harness.")
    found = sorted(path.rglob("results_*.json")) if path.is_dir() else [path]
    if not found or len(found) > MOST_FILES:
        raise BadInput(f"{path} holds {len(found)} files results_*.json: name a folder with 1 to {MOST_FILES}.")
    return [_run(file) for file in found]


def _run(file: Path) -> Run:
    data = formats.json_object(file)
    dig(data, str(file), "results")
    dig(data, str(file), "configs")
    said = dig(data, str(file), "config", "model_args", kind=(dict, str, type(None)))
    if isinstance(said, str):  # before 0.4.10
        said = {key: value for key, _, value in (part.partition("=") for part in said.split(","))}
    said = said or {}
    model = str(said.get("pretrained") or data.get("model_name") or file.parent.name).rstrip("/")
    revision = data["config"].get("model_revision") or said.get("revision") or "main"
    return Run(file, data, model, str(revision), said)


def _latest(runs: list[Run]) -> tuple[list[Run], int]:
    """Of runs of one model with the same arguments and tasks the last, and how many others there are."""
    last: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (number(run.data.get("date") or 0, f"date of {run.file}"), str(run.file))):
        last[json.dumps([run.model, run.revision, run.arguments, sorted(run.data["results"])], default=str)] = run
    return list(last.values()), len({run.file.resolve() for run in runs}) - len(last)


def _on(value: Any) -> bool:
    return value is not None and str(value).casefold() not in ("", "false", "0", "none")


def _ending(name: str) -> tuple[str, str] | None:
    """(model, recipe) of a name that ends in a recipe, e.g. pythia-1b-gptq-w4-g128."""
    parts = name.rsplit("/", 1)[-1].split("-")
    for cut in range(1, len(parts)):
        try:
            return "-".join(parts[:cut]), str(recipe.parse("-".join(parts[cut:])))
        except BadInput:
            continue
    return None


def _told(run: Run) -> bool:
    """Whether something says that a run is of a quantized model."""
    return _ending(run.model) is not None or any(_on(run.arguments.get(key)) for key in (*UNTOLD, "load_in_4bit"))


def _quantizer(run: Run, given: Given, width: float | None) -> dict[str, Any]:
    ending = _ending(run.model)
    if given.recipe or ending:
        return formats.quantizer(given.recipe or (ending or ("", ""))[1], width)
    if _on(run.arguments.get("load_in_4bit")):  # bitsandbytes: blocks of 64, its default type is fp4
        kind = str(run.arguments.get("bnb_4bit_quant_type", "fp4"))
        double = _on(run.arguments.get("bnb_4bit_use_double_quant"))
        bits = 4.127 if double else 4.5
        return {"method": f"bnb-{kind}{'-dq' * double}", "bits": 4, "group_size": 64, "effective_bits": bits}
    raise BadInput(f"How {run.model} was quantized does not stand in {run.file.name}: give --recipe, e.g. gptq-w4.")


def _refusals(run: Run, task: str) -> list[str]:
    metrics = [str(key).partition(",")[0] for key in dig(run.data, str(run.file), "results", task)]
    refused = [why for metric, why in REFUSED.items() if metric in metrics]
    return refused if refused or _has_loss(run, task) else [NO_LOSS]


def _has_loss(run: Run, task: str) -> bool:
    found = dig(run.data, str(run.file), "results", task)
    rolling = run.data["configs"].get(task, {}).get("output_type") == "loglikelihood_rolling"
    return rolling and (any(key in found for key in PER_BYTE) or samples(run, task).is_file())


def _context(run: Run) -> float | None:
    found = run.data.get("max_length")
    return float(found) if isinstance(found, int) and found > 0 else None


def _alike(base: Run, run: Run, task: str) -> None:
    """`BadInput` where two runs did not evaluate a task in the same way, or are revisions of one model."""
    if task not in base.data["results"]:
        raise BadInput(f"The baseline {base.model} has no results of {task}: evaluate it too.")
    if base.model == run.model and base.revision != run.revision:
        raise BadInput(f"{run.model} is of revision {run.revision}, its baseline of {base.revision}: evaluate one.")

    def said(one: Run) -> dict[str, Any]:
        settings = {key: value for key, value in one.data["configs"].get(task, {}).items() if key != "metadata"}
        text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(settings, sort_keys=True, default=str))
        by_task = {what: (one.data.get(key) or {}).get(task) if isinstance(one.data.get(key), dict) else None
                   for what, key in (("version", "versions"), ("shots", "n-shot"), ("documents", "n-samples"),
                                     ("documents' hashes", "task_hashes"))}  # fmt: skip
        return {**by_task, "longest input": one.data.get("max_length"), "limit": one.data["config"].get("limit"),
                "chat template": one.data.get("chat_template_sha"), "configuration": text}  # fmt: skip

    first, second = said(base), said(run)
    for what, before in first.items():
        if before != second[what]:
            shown = "" if what == "configuration" else f" ({str(before)[:40]} and {str(second[what])[:40]})"
            raise BadInput(f"The {what} of {task} for the baseline and {run.model} differ{shown}: evaluate both alike.")
