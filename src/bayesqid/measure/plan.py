"""What is to be measured: a suite or one model of your own, its recipes, and the protocol with its texts."""

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bayesqid import suite
from bayesqid.errors import BadInput
from bayesqid.measure import assign, save, saved, text
from bayesqid.measure.layers import device_name
from bayesqid.measure.load import DTYPES
from bayesqid.measure.quantizers.gptq import DAMP
from bayesqid.recipe import NONE, Recipe, parse
from bayesqid.suite import Checkpoint, Suite

RECIPES = ("rtn-w2", "rtn-w3", "rtn-w4", "rtn-w3-g32", "gptq-w2", "gptq-w3", "gptq-w4")
# Protocol settings that a suite's [text] may hold
PER_SUITE = ("context", "max_bytes", "documents", "calibration_windows")
# Models of one's own go into a suite of this name, so that several can share one file
OWN = "own"


@dataclass(frozen=True)
class Protocol:
    """How losses are taken; two cells compare only when this is the same.

    Documents are cut to `max_bytes`, put behind the tokenizer's separator and scored in windows of
    `context` tokens that do not overlap. Calibration: `calibration_windows` windows of `context` tokens,
    drawn with the recipe's seed.
    """

    context: int = 256
    max_bytes: int = 1024
    documents: int = 0
    calibration_windows: int = 128
    dtype: str = "float32"


@dataclass(frozen=True)
class Landscape:
    """How the loss landscape is taken (`bayesqid.measure.landscape`): on one in sixteen documents, at least twelve.

    The slope, of which documents differ most, is taken on four times as many. `step` and `radii` are distances
    relative to the weights' norm. `documents` is 0 for the usual share.
    """

    documents: int = 0
    probes: int = 4
    directions: int = 4
    radii: tuple[float, ...] = (0.03, 0.1, 0.3)
    step: float = 0.03
    seed: int = 0

    def chosen(self, count: int) -> list[int]:
        """Numbers of the documents used, out of `count`: evenly spaced among those for slopes."""
        wide = self.chosen_for_slopes(count)
        return [wide[number] for number in _spaced(len(wide), self._size(count))]

    def chosen_for_slopes(self, count: int) -> list[int]:
        """Numbers of the documents used for slopes, evenly spaced in the order of the text."""
        return _spaced(count, min(count, 4 * self._size(count)))

    def _size(self, count: int) -> int:
        return min(count, self.documents or max(12, -(-count // 16)))

    def manifest(self, count: int) -> dict[str, Any]:
        """What stands in the file, for a text of `count` documents."""
        small, wide = self.chosen(count), self.chosen_for_slopes(count)
        return {"documents": len(small), "slope_documents": len(wide), "of_documents": count,
                "choice": "evenly spaced in the order of the text", "probes": self.probes,
                "directions": self.directions, "radii": list(self.radii), "step": self.step,
                "seed": self.seed, "dtype": "float32"}  # fmt: skip


def _spaced(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `count`, evenly spaced."""
    return [(2 * number + 1) * count // (2 * wanted) for number in range(wanted)]


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs besides the checkpoint; plain values, so that it can be sent to a process."""

    suite: str
    checkpoints: tuple[Checkpoint, ...]
    excluded: dict[str, str]
    recipes: tuple[Recipe, ...]
    protocol: Protocol
    documents: tuple[text.Document, ...]
    calibration: tuple[text.Document, ...]
    text: str
    calibration_text: str
    tokenizer: str | None
    device: str
    # recipes saved quantized with their folders, and where to save what is quantized here
    saved: tuple[tuple[str, str], ...] = ()
    save_to: str | None = None
    # whether what was downloaded stays in the cache
    keep: bool = False
    landscape: Landscape | None = None
    mixes: assign.Given = ()

    def manifest(self) -> dict[str, Any]:
        """What stands in the file: suite, protocol with the texts' hashes, versions, device, command."""
        more = {} if self.landscape is None else {"landscape": self.landscape.manifest(len(self.documents))}
        return {
            "suite": self.suite,
            "protocol": asdict(self.protocol)
            | {
                "stride": self.protocol.context,
                "separator": "the tokenizer's bos token, else its eos token, before every document",
                "boundaries": "windows never cross documents; a short last one starts earlier and scores the rest",
                "text": self.text,
                "text_sha256": text.digest(list(self.documents)),
                "calibration": self.calibration_text,
                "calibration_sha256": text.digest(list(self.calibration)),
                "calibration_documents": len(self.calibration),
                "gptq_damp": DAMP,
            }
            | more,
            "excluded": self.excluded,
            "versions": {name: _version(name) for name in ("bayesqid", "torch", "transformers", "numpy")},
            "device": device_name(self.device),
            "command": " ".join(["bayesqid", *sys.argv[1:]]),
        }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "not installed"


def recipes(names: list[str], seeds: Sequence[int] = ()) -> tuple[Recipe, ...]:
    """Recipes by name, each once, with the baseline `none` first; calibrated ones once for each of `seeds`."""
    if any(seed < 0 for seed in seeds):
        raise BadInput(f"The calibration seed {min(seeds)} is negative: give 0 or more.")
    parsed = [assign.read(item.strip()).recipe if assign.is_file(item) else parse(item.strip()) for item in names]
    drawn = [[replace(one, seed=seed) for seed in seeds] if one.calibrated and seeds else [one] for one in parsed]
    return tuple(dict.fromkeys([NONE, *(one for several in drawn for one in several)]))


def seeds(text: str | None) -> tuple[int, ...]:
    """Calibration seeds from text such as `0,1,2`; none from None."""
    try:
        return () if text is None else tuple(dict.fromkeys(int(item) for item in text.split(",")))
    except ValueError:
        raise BadInput(f"--calibration-seeds {text!r} is no list of numbers: write e.g. 0,1,2.") from None


def shard(text: str | None) -> tuple[int, int]:
    """Number and count of shards from text such as `2/8`; 1 of 1 from None."""
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise BadInput(f"--shard {text!r} is no share: write I/N with I from 1 to N, e.g. 2/8.")
    return number, count


def protocol(*layers: dict[str, Any]) -> Protocol:
    """The default protocol with later settings over earlier ones; None leaves a setting as it is."""
    known = {field.name for field in fields(Protocol)}
    settings: dict[str, Any] = {}
    for layer in layers:
        unknown = sorted(set(layer) - known)
        if unknown:
            raise BadInput(f"The protocol has no setting {unknown[0]!r}: known are {', '.join(sorted(known))}.")
        settings |= {key: value for key, value in layer.items() if value is not None}
    result = Protocol(**settings)
    for key in ("context", "max_bytes", "calibration_windows"):
        if getattr(result, key) < 1:
            raise BadInput(f"The setting {key} is {getattr(result, key)}: give a positive number.")
    if result.dtype not in DTYPES:
        raise BadInput(f"The dtype {result.dtype!r} is unknown: choose one of {', '.join(DTYPES)}.")
    return result


def landscape(wanted: bool, documents: int | None, probes: int | None) -> Landscape | None:
    """Settings of the loss landscape, None where it is not wanted; `BadInput` for ones that cannot be used."""
    given = {name: value for name, value in (("documents", documents), ("probes", probes)) if value is not None}
    if not wanted and given:
        option = "--landscape-documents" if "documents" in given else "--probes"
        raise BadInput(f"{option} belongs to --landscape: give that as well.")
    if documents is not None and documents < 2:
        raise BadInput(f"--landscape-documents is {documents}: give at least 2, for they give the standard errors.")
    if probes is not None and (probes < 0 or probes == 1):
        raise BadInput(f"--probes is {probes}: give 0 for none, or at least 2 for a standard error.")
    return replace(Landscape(), **given) if wanted else None


def is_own(target: str) -> bool:
    """Whether a target is a folder or `hub/id@revision` rather than a suite's name or file."""
    if target.endswith(".toml") or target in suite.names():
        return False
    return "/" in target or "@" in target or Path(target).is_dir()


def own(target: str, family: str | None, tokens: float | None, lr_phase: str, called: str | None) -> Checkpoint:
    """The checkpoint that a folder or `hub/id@revision` names; `BadInput` without its family or tokens."""
    if family is None or tokens is None:
        lacking = [name for name, value in (("--family", family), ("--tokens", tokens)) if value is None]
        absent = f"{' and '.join(lacking)} {'are' if lacking[1:] else 'is'} missing"
        raise BadInput(
            f"{target} is a model of your own and {absent}: say which family it belongs to and on how many "
            "tokens it was trained, e.g. --family mine --tokens 3e11."
        )
    if not tokens >= 1:
        raise BadInput(f"--tokens {tokens:g} is no number of training tokens: give at least 1.")
    if lr_phase not in suite.PHASES:
        raise BadInput(f"--lr-phase {lr_phase!r} is unknown: choose one of {', '.join(suite.PHASES)}.")
    path = Path(target).expanduser()
    if path.is_dir() and saved.is_quantized(path):
        raise BadInput(f"{target} is quantized already: name its baseline and give this folder with --quantized.")
    if path.is_dir():
        hub, revision = str(path.resolve()), "local"
    elif target.startswith((".", "/", "~")):
        raise BadInput(f"There is no folder {target}: name the folder that holds config.json, or hub/id@revision.")
    else:
        hub, _, revision = target.partition("@")
    return Checkpoint(
        family=family,
        model=called or Path(hub).name,
        hub=hub,
        revision=revision or "main",
        n_params=0,
        n_params_nonembedding=0,
        train_tokens=int(tokens),
        lr_phase=lr_phase,
        lr_fraction=math.nan,
    )


def make(
    target: str,
    names: list[str] | None,
    device: str,
    settings: dict[str, Any],
    facts: dict[str, Any],
    evaluation: Path | None = None,
    calibration: Path | None = None,
    tokenizer: Path | None = None,
    seeds: Sequence[int] = (),
    quantized: Sequence[Path] = (),
    quantized_method: str | None = None,
    save_to: Path | None = None,
    keep: bool = False,
    landscape: Landscape | None = None,
) -> Plan:
    """Plan for a suite (name or TOML file) or for one model of one's own.

    `quantized` are folders of checkpoints saved quantized whose baseline the target is, a single model, and
    `quantized_method` how they were made if they do not say; `save_to` is a folder for what is quantized
    here, `keep` leaves downloads in the cache, and `landscape` asks for the loss landscape too.

    `facts` are those a model of one's own needs (family, tokens, lr_phase, called); `settings` overrule the
    suite's protocol; texts default to the suite's, and to the bundled ladder's for a model of one's own.
    """
    single = is_own(target)
    source: Suite = suite.load("tiny" if single else target)
    if single:
        checkpoints: tuple[Checkpoint, ...] = (own(target, **facts),)
    else:
        stated = [key for key in ("family", "tokens") if facts.get(key) is not None]
        if stated:
            raise BadInput(f"--{stated[0]} is for a model of your own, but {target} is a suite, which says it itself.")
        checkpoints = source.checkpoints
    if quantized and not single:
        raise BadInput(f"--quantized needs one baseline, but {target} is a suite: name the model that was quantized.")
    given = tuple((str(saved.recipe_of(folder, quantized_method)), str(folder)) for folder in quantized)
    default = [] if quantized else list(RECIPES if single else source.recipes)
    wanted = recipes([*(default if names is None else names), *(name for name, _ in given)], seeds)
    for recipe in wanted if save_to or landscape else ():
        if recipe.partial or recipe.mix:
            asked = "saved in GPTQ's format" if save_to else "given a loss landscape"
            raise BadInput(f"{recipe} is for a part of the layers and cannot be {asked}: leave it out.")
        if save_to and recipe != NONE:
            save.form(recipe)
    usual = {} if single else {key: getattr(source.text, key, None) for key in PER_SUITE}
    agreed = protocol(usual, settings)
    ids = [checkpoint.id for checkpoint in checkpoints]
    if len(set(ids)) < len(ids):
        raise BadInput(f"The suite {source.name} lists a checkpoint twice: remove one of them.")
    path = evaluation or source.text.evaluation
    drawn = calibration or source.text.calibration
    documents = text.cut(text.read(path), agreed.max_bytes)
    return Plan(
        suite=OWN if single else source.name,
        checkpoints=tuple(checkpoint for checkpoint in checkpoints if not checkpoint.excluded),
        excluded={checkpoint.id: checkpoint.excluded for checkpoint in checkpoints if checkpoint.excluded},
        recipes=wanted,
        protocol=agreed,
        documents=tuple(documents[: agreed.documents or None]),
        calibration=tuple(text.read(drawn)),
        text=Path(path).stem if evaluation else f"{source.name} ladder's {Path(path).stem}",
        calibration_text=Path(drawn).stem if calibration else f"{source.name} ladder's {Path(drawn).stem}",
        tokenizer=str(tokenizer) if tokenizer else None if single else source.text.tokenizer,
        device=device,
        saved=given,
        save_to=str(save_to) if save_to else None,
        keep=keep,
        landscape=landscape,
        mixes=assign.of_files(names or (), wanted),
    )
