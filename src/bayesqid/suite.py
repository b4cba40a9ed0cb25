"""Suites: which checkpoints, which recipes, which text; one TOML file each, expanded the same way every time.

D is always step x tokens per step or an explicit table: labels on the hub are rounded and sometimes wrong.
"""

import difflib
import fnmatch
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesqid import bundled, files
from bayesqid.errors import BadInput

PHASES = ("constant", "decaying", "annealed", "unknown")
MOST_STEPS = 100_000  # per run and model; more is a slip of the pen and would fill the memory
MOST_CHECKPOINTS = 200_000  # of a suite, for the same reason
LARGEST = 2**63  # of any number; nothing here counts further
ANNEALED = 0.999  # share of the decay done: the last public checkpoint often lies a step before the end


@dataclass(frozen=True)
class Checkpoint:
    """A model at a revision: sizes in parameters, tokens seen, where it stands in its learning-rate schedule.

    `hub` is a hub id or a folder; `lr_fraction` is the learning rate over its run's peak (NaN: unknown);
    `excluded` says why it must not be measured; `status` which of these facts were verified or derived.
    """

    family: str
    model: str
    hub: str
    revision: str
    n_params: int
    n_params_nonembedding: int
    train_tokens: int
    lr_phase: str
    lr_fraction: float
    vocab_size: int | None = None
    seed: int | None = None
    excluded: str | None = None
    status: str = ""
    sha256: str | None = None

    @property
    def id(self) -> str:
        """Name in every file: family/model@revision."""
        return f"{self.family}/{self.model}@{self.revision}"


@dataclass(frozen=True)
class Text:
    """Files of evaluation and calibration documents, tokens per window, the tokenizer's folder if shared.

    Bytes kept of a document, documents used and calibration windows overrule the defaults of `measure`.
    """

    evaluation: str
    calibration: str
    context: int
    tokenizer: str | None = None
    max_bytes: int | None = None
    documents: int | None = None
    calibration_windows: int | None = None


@dataclass(frozen=True)
class Suite:
    """Checkpoints, recipes (text form) and text of one manifest, with what its facts rest on."""

    name: str
    title: str
    checkpoints: tuple[Checkpoint, ...]
    recipes: tuple[str, ...]
    text: Text
    source: Path
    notes: tuple[str, ...] = ()
    schedules: tuple[tuple[str, str], ...] = ()
    exclusions: tuple[tuple[str, str], ...] = ()


_NUMBER = (int, float)
# table of the manifest -> key -> (type, whether it must be there)
_KEYS: dict[str, dict[str, tuple[Any, bool]]] = {
    "": {"name": (str, True), "title": (str, True), "recipes": (list, True), "text": (dict, True),
         "notes": (list, False), "checkpoints": (str, False), "schedule": (dict, False),
         "model": (list, False), "run": (list, False), "exclude": (list, False)},
    "text": {"evaluation": (str, True), "calibration": (str, True), "context": (int, True),
             "tokenizer": (str, False), "max_bytes": (int, False), "documents": (int, False),
             "calibration_windows": (int, False)},
    "schedule": {"kind": (str, True), "unit": (str, False), "warmup": (_NUMBER, False),
                 "end": (_NUMBER, False), "floor": (_NUMBER, False), "decay_start": (_NUMBER, False),
                 "status": (str, True)},
    "model": {"hub": (str, True), "n_params": (int, True), "n_params_nonembedding": (int, True),
              "vocab_size": (int, True), "tokens_per_step": (int, True), "last": (int, False),
              "every": (int, False), "schedule": (str, False), "status": (str, True)},
    "run": {"family": (str, True), "suffix": (str, False), "revision": (str, True), "steps": (dict, True),
            "schedule": (str, True), "models": (list, False), "seeds": (list, False), "status": (str, False)},
    "steps": {"list": (list, False), "ends": (list, False), "start": (int, False), "stop": (int, False),
              "every": (int, False), "offset": (int, False)},
    "exclude": {"hub": (str, True), "steps": (dict, True), "reason": (str, True), "source": (str, True)},
}  # fmt: skip

# lists of whole numbers
_COUNTS = ("list", "ends", "seeds")
# key of a table of checkpoints -> type
_LISTED: dict[str, Any] = {
    "path": str, "family": str, "model": str, "revision": str, "n_params": int, "n_params_nonembedding": int,
    "train_tokens": _NUMBER, "lr_phase": str, "lr_fraction": _NUMBER, "vocab_size": (int, type(None)),
    "seed": (int, type(None)), "sha256": (str, type(None)),
}  # fmt: skip
# what is filled into names: a field, with as many leading zeros as two digits can say
_FIELD = re.compile(r"\{(?P<field>[^{}:]*)(?::0(?P<width>[1-9]\d?)d)?\}")
_NAME = re.compile(r"[\w.-][\w./-]{0,199}", re.ASCII)

# kind -> (keys it needs, in words)
KINDS = {
    "constant": ((), "constant after warm-up"),
    "cosine": (("end", "floor"), "cosine to {floor:g} of the peak at {unit} {end:,.0f}"),
    "linear": (("end", "floor", "decay_start"),
               "constant, then linear from {unit} {decay_start:,.0f} to {floor:g} of the peak at {end:,.0f}"),
    "sqrt": (("end", "floor", "decay_start"),
             "constant, then as 1 - sqrt from {unit} {decay_start:,.0f} to {floor:g} of the peak at {end:,.0f}"),
    "cooldown": ((), "constant, then linear to 0 at the end of each branch"),
}  # fmt: skip

# kind -> share of the fall of the learning rate that is still to come, at a share of its time
SHAPES = {
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2, "linear": lambda t: 1 - t, "sqrt": lambda t: 1 - math.sqrt(t),
}  # fmt: skip


def names() -> list[str]:
    """Names of the suites that ship with bayesqid."""
    return sorted(path.stem for path in bundled.models_dir().glob("*.toml"))


def load(name_or_path: str | Path) -> Suite:
    """Suite of a bundled name or a TOML file; BadInput names file and key where the manifest is wrong."""
    text = str(name_or_path)
    if text in names():
        return _load(bundled.models_dir() / f"{text}.toml")
    path = Path(text)
    if path.suffix == ".toml" and path.is_file():
        return _load(path.resolve())
    near = difflib.get_close_matches(text, names(), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise BadInput(f"There is no suite {text!r}: name one of {', '.join(names())}, or a TOML file.{hint}")


def _load(path: Path) -> Suite:
    raw = files.toml_of(files.read_text(path, files.MOST_TOML, "suite"), path.name)
    _check(raw, path.name)
    folder = path.parent
    text = raw["text"]
    places = {
        key: str(_inside(folder, text[key], f"{path.name}, [text]"))
        for key in ("evaluation", "calibration", "tokenizer") if key in text
    }  # fmt: skip
    schedules = raw.get("schedule", {})
    listed = _listed(_inside(folder, raw["checkpoints"], path.name), folder) if "checkpoints" in raw else ()
    try:
        generated = _generated(raw, path.name)
        words = tuple((f"{name}: {_in_words(s)}", s["status"]) for name, s in schedules.items())
    except BadInput:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as fault:
        # the types of the keys are checked, not every combination of their values
        raise BadInput(f"{path.name} cannot be expanded into checkpoints ({fault!r}): mend its numbers.") from None
    return Suite(
        name=raw["name"],
        title=raw["title"],
        checkpoints=listed + generated,
        recipes=tuple(raw["recipes"]),
        text=Text(**(text | places)),
        source=path,
        notes=tuple(raw.get("notes", ())),
        schedules=words,
        exclusions=tuple((f"{e['hub']}: {e['reason']}", e["source"]) for e in raw.get("exclude", ())),
    )


def _short(value: Any) -> str:
    # Python refuses to write whole numbers of thousands of digits
    large = isinstance(value, int) and abs(value) > 2**99
    return f"a number of {value.bit_length()} bits" if large else f"{value!r:.40}"


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file of that name below a suite's folder, or what ships with bayesqid; `BadInput` for any other place.

    Suites are handed around: one must not have other files of its reader's opened. Who wants that puts a link there.
    """
    given = Path(name)
    ships = given.is_absolute() and given.is_relative_to(bundled.models_dir())
    if not name or "\0" in name or (given.is_absolute() and not ships) or ".." in given.parts:
        raise BadInput(f"{where} names {name!r:.80}, which is not inside the suite's folder: move or link it there.")
    return folder / name


def _fill(template: str, where: str, **values: int | None) -> str:
    """A name with {step}, {end}, {billions} and {seed} filled in, at most with leading zeros: {step:08d}.

    `str.format` would reach into objects and write a billion blanks. `BadInput` for anything else.
    """
    def put(match: re.Match) -> str:
        field, width = match["field"], match["width"]
        if values.get(field) is None:
            known = ", ".join(f"{{{name}}}" for name, value in values.items() if value is not None)
            raise BadInput(f"{where}: {template!r:.80} cannot be filled in: {match[0]!r:.40} is none of {known}.")
        return f"{values[field]:0{int(width or 0)}d}"

    return _FIELD.sub(put, template)


def _place(name: str, where: str, what: str) -> str:
    """A hub id or revision as it is; `BadInput` for one that leads out of a folder."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise BadInput(f"{where}: the {what} {name!r:.80} is no name on a hub: use letters, digits and . _ - / only.")
    return name


def _check(raw: dict, file: str) -> None:
    _check_table(raw, "", file, "the top")
    _check_table(raw["text"], "text", file, "[text]")
    for name, schedule in raw.get("schedule", {}).items():
        where = f"[schedule.{name}]"
        _check_table(schedule, "schedule", file, where)
        if schedule["kind"] not in KINDS:
            raise BadInput(f"{file}, {where}: kind {schedule['kind']!r} is none of {', '.join(KINDS)}.")
        for key in KINDS[schedule["kind"]][0]:
            if key not in schedule:
                raise BadInput(
                    f"{file}, {where}: a schedule of kind {schedule['kind']} needs the key {key!r}."
                )
    for kind in ("model", "run", "exclude"):
        for number, table in enumerate(raw.get(kind, ()), 1):
            _check_table(table, kind, file, f"[[{kind}]] {number}")
            if "steps" in table:
                _check_table(table["steps"], "steps", file, f"steps of [[{kind}]] {number}")
    for item in raw["recipes"]:
        if not isinstance(item, str):
            raise BadInput(f"{file}: recipes holds {item!r:.40}, which is no text such as \"rtn-w3\".")
    used = [t["schedule"] for kind in ("model", "run") for t in raw.get(kind, ()) if "schedule" in t]
    for name in used:
        if name not in raw.get("schedule", {}):
            raise BadInput(f"{file} uses the schedule {name!r} but has no table [schedule.{name}].")


def _check_table(table: Any, kind: str, file: str, where: str) -> None:
    keys = _KEYS[kind]
    if not isinstance(table, dict):
        raise BadInput(f"{file}, {where}: expected a table, found {table!r:.40}.")
    for key, value in table.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0)[0]
            raise BadInput(f"{file}, {where}: unknown key {key!r}; the closest known one is {near!r}.")
        expected = keys[key][0]
        if not isinstance(value, expected) or isinstance(value, bool):
            value = value if not isinstance(value, int) or isinstance(value, bool) else _short(value)
            kinds = expected if isinstance(expected, tuple) else (expected,)
            words = " or ".join(k.__name__ for k in kinds)
            raise BadInput(f"{file}, {where}: {key} must be of type {words}, not {value!r:.40}.")
        for one in [value] if isinstance(value, _NUMBER) else value if key in _COUNTS else ():
            if not isinstance(one, int if key in _COUNTS else _NUMBER) or not abs(one) < LARGEST:
                raise BadInput(f"{file}, {where}: {key} holds {_short(one)}: give a number below 2^63.")
    missing = [key for key, (_, needed) in keys.items() if needed and key not in table]
    if missing:
        raise BadInput(f"{file}, {where}: the key {missing[0]!r} is missing.")


def _listed(table: Path, folder: Path) -> tuple[Checkpoint, ...]:
    """Checkpoints of an explicit table: JSON, one object per checkpoint, paths relative to the manifest."""
    if not table.is_file():
        raise BadInput(f"The suite's table of checkpoints {table} is missing: restore or rebuild it.")
    fields = ("family", "model", "revision", "n_params", "n_params_nonembedding", "train_tokens", "lr_phase",
              "lr_fraction", "vocab_size", "seed", "sha256")  # fmt: skip
    rows = files.read_json(table, "table of checkpoints")
    made = []
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        where = f"{table.name}, checkpoint {number}"
        if not isinstance(row, dict) or not {"path", *fields} <= row.keys():
            absent = [key for key in ("path", *fields) if not isinstance(row, dict) or key not in row]
            raise BadInput(f"{where} has no {absent[0]!r}: it is no table of checkpoints, mend it.")
        for key, kind in _LISTED.items():
            number_like = isinstance(row[key], _NUMBER)
            if not isinstance(row[key], kind) or isinstance(row[key], bool) or number_like and abs(row[key]) >= LARGEST:
                raise BadInput(f"{where}: {key} = {_short(row[key])} cannot be used: mend it.")
        place = _inside(folder, row["path"], where)
        _place(row["revision"], where, "revision")
        made.append(Checkpoint(hub=str(place), status="trained here", **{key: row[key] for key in fields}))
    return tuple(made)


def _generated(raw: dict, file: str) -> tuple[Checkpoint, ...]:
    made = []
    for run in raw.get("run", ()):
        for model in raw.get("model", ()):
            base = model["hub"].rsplit("/", 1)[-1]
            if "models" not in run or base in run["models"]:
                for seed in run.get("seeds", (None,)):
                    made += _of_run(raw, run, model, seed, file)
                    if len(made) > MOST_CHECKPOINTS:
                        raise BadInput(f"{file} stands for more than {MOST_CHECKPOINTS} checkpoints: list fewer.")
    return tuple(made)


def _of_run(raw: dict, run: dict, model: dict, seed: int | None, file: str) -> list[Checkpoint]:
    hub = _place(model["hub"] + _fill(run.get("suffix", ""), file, seed=seed), file, "hub id")
    rate = raw["schedule"][model.get("schedule", run["schedule"])]
    per_step = model["tokens_per_step"]
    status = "; ".join(filter(None, (model["status"], run.get("status", ""), f"schedule {rate['status']}")))
    faults = [e for e in raw.get("exclude", ()) if fnmatch.fnmatch(hub, e["hub"])]
    reasons = {step: e["reason"] for e in reversed(faults) for step in _steps(e["steps"], {})}
    ends = dict(zip(run["steps"].get("list", ()), run["steps"].get("ends", ()), strict=False))
    offset = run["steps"].get("offset", 0)  # where names count from 0 what was seen after the first
    shared = {key: model[key] for key in ("n_params", "n_params_nonembedding", "vocab_size")}
    shared |= {"family": run["family"], "model": hub.rsplit("/", 1)[-1], "hub": hub, "seed": seed, "status": status}
    name = run["revision"]
    # once for all of them; then str.format, which is faster, meets nothing but known fields
    _place(_fill(name, file, step=0, end=0, billions=0, seed=seed), file, "revision")
    made: list[Checkpoint] = []
    for step in _steps(run["steps"], model):
        end = ends.get(step, step + offset)
        tokens = end * per_step
        phase, fraction = lr_at(rate, end, tokens, branch=step in ends)
        revision = name.format(step=step, end=end, billions=math.ceil(tokens / 1e9), seed=seed)
        excluded = reasons.get(step, None if tokens > 0 else "untrained: no tokens seen")
        # a frozen dataclass sets its fields one by one, which takes most of the time for ten thousand of them
        made.append(checkpoint := object.__new__(Checkpoint))
        checkpoint.__dict__.update(
            shared, revision=revision, train_tokens=tokens, lr_phase=phase, lr_fraction=fraction, excluded=excluded
        )
    return made


def _steps(spec: dict, model: dict) -> list[int]:
    """Steps listed one by one, then those at regular distance; a model's own `every` and `last` overrule."""
    steps = list(spec.get("list", ()))
    if "start" in spec:
        every = model.get("every", spec.get("every", 1))
        stop = model.get("last", spec.get("stop", spec["start"]))
        regular = range(max(spec["start"], every) if "every" in model else spec["start"], stop + 1, every)
        if regular[MOST_STEPS:]:
            raise BadInput(f"Steps {spec['start']} to {stop} by {every} are more than {MOST_STEPS}: list fewer.")
        steps += regular
    if "last" in model and model["last"] not in steps:
        steps.append(model["last"])
    return steps


def lr_at(rate: dict, step: int, tokens: int, branch: bool = False) -> tuple[str, float]:
    """Phase and learning rate over peak at a step of a schedule; `branch` marks the end of a cool-down.

    f + (1 - f) s, t from 0 at the end of warm-up (`decay_start`, if there is one) to 1 at the schedule's end:
    cosine s = (1 + cos(pi t)) / 2, linear s = 1 - t, sqrt s = 1 - sqrt(t). Warm-up is linear; its phase reads
    "unknown", since none of the four describes it.
    """
    now = tokens if rate.get("unit", "step") == "token" else step
    warmup, floor = rate.get("warmup", 0), rate.get("floor", 0.0)
    if branch:
        return "annealed", 0.0
    if now < warmup:
        return "unknown", now / warmup
    start = rate.get("decay_start", warmup)
    if rate["kind"] in ("constant", "cooldown") or now <= start and rate["kind"] in ("linear", "sqrt"):
        return "constant", 1.0
    progress = min(1.0, (now - start) / (rate["end"] - start))
    left = SHAPES[rate["kind"]](progress)
    return ("annealed" if progress > ANNEALED else "decaying"), floor + (1 - floor) * left


def _in_words(rate: dict) -> str:
    words = KINDS[rate["kind"]][1].format(**{"unit": "step", **rate})
    warmup = rate.get("warmup")
    return words + (f"; warm-up {warmup:,.0f} {rate.get('unit', 'step')}s" if warmup else "")
