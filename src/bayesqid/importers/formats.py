"""What the importers share: what a person adds, reading files nobody vouches for, and rows made into cells."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xarray as xr

from bayesqid import cells, files, recipe, suite
from bayesqid.errors import BadInput
from bayesqid.importers import mixed, tables

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 2**30  # of any file: more is another kind of file, or an attack on the memory
MOST_TEXT = 2**26  # of what is read in one piece: results of many tasks take about a megabyte
MOST_LINE = 10 * 2**20

# what must be known of a model -> what it is called, and the option that tells it
NEEDED = {
    "family": ("family", "--family"),
    "n_params_nonembedding": ("count of non-embedding parameters", "--params"),
    "train_tokens": ("count of training tokens", "--tokens"),
}
_MAIN = ("", "main", "None", "local")
# columns beyond those of the atlas that a table made of cells may bring back
CARRIED = ("calibration_sd", *cells.FEATURES)


@dataclass(frozen=True)
class Given:
    """What a person says besides the files: facts of the model, the recipe, the baseline, how to count tokens.

    `params` counts non-embedding parameters; `count_tokens` tokenizes a text; `BadInput` names a number that is none.
    """

    model: str | None = None
    family: str | None = None
    params: float | None = None
    tokens: float | None = None
    lr_phase: str | None = None
    vocabulary: float | None = None
    recipe: str | None = None
    effective_bits: float | None = None
    baseline: Path | None = None
    mapping: Path | None = None
    ppl: str | None = None
    text: str | None = None
    context: float | None = None
    source: str | None = None
    tokens_per_byte: float | None = None
    count_tokens: Callable[[str], int] | None = None

    def __post_init__(self) -> None:
        for name in ("params", "tokens", "vocabulary", "effective_bits", "context", "tokens_per_byte"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadInput(f"--{name.replace('_', '-')} {value} is not a positive number: mend it.")
        if self.lr_phase not in (None, *suite.PHASES):
            raise BadInput(f"--lr-phase {self.lr_phase!r} is unknown: choose one of {', '.join(suite.PHASES)}.")
        if self.recipe is not None:
            recipe.parse(self.recipe)


class Found(NamedTuple):
    """Rows in the atlas's columns (or cells), (reason, family) of what was left out, sentences to print, files read."""

    rows: "pd.DataFrame | list[dict[str, Any]] | xr.Dataset"
    left_out: list[tuple[str, str]]
    notes: list[str]
    files: list[Path]


def text_of(path: Path, most: int = MOST_TEXT) -> str:
    """A file as text, bytes that are no UTF-8 replaced; `BadInput` when it is missing or too large."""
    if not path.is_file():
        raise BadInput(f"There is no file {path}: name an existing one.")
    if path.stat().st_size > most:
        raise BadInput(f"{path} has more than {most / 2**20:.0f} MiB, too much to be such a file: name another.")
    return path.read_text(encoding="utf-8", errors="replace")


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `BadInput` when it is no JSON, too deep, or something else than an object."""
    return _object(text_of(path), str(path))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line of a JSON-lines file, read line by line; `BadInput` names the bad one."""
    if path.stat().st_size > MOST_BYTES:
        raise BadInput(f"{path} has more than {MOST_BYTES / 2**20:.0f} MiB: import fewer documents.")
    with open(path, encoding="utf-8", errors="replace") as stream:
        number = 0
        while line := stream.readline(MOST_LINE):
            number += 1
            if len(line) == MOST_LINE:
                raise BadInput(f"{path}, line {number} has more than {MOST_LINE / 2**20:.0f} million characters.")
            if line.strip():
                yield number, _object(line, f"{path}, line {number}")


def _object(content: str, where: str) -> dict[str, Any]:
    try:
        found = files.json_of(content, where)
    except BadInput as error:
        reason = str(error).partition("(")[2].rpartition(")")[0]
        raise BadInput(f"{where} is not valid JSON ({reason[:80]}): was it cut off?") from None
    if not isinstance(found, dict):
        raise BadInput(f"{where} holds a {type(found).__name__}, not a JSON object.")
    return found


def dig(data: Any, where: str, *keys: str, kind: Any = dict) -> Any:
    """What stands under nested keys; `BadInput` names the key that is missing or of another type than `kind`."""
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            raise BadInput(f"{where} lacks {'.'.join(keys)}: it is no such result, or of another version.")
        data = data[key]
    if not isinstance(data, kind) or isinstance(data, bool):
        raise BadInput(f"{where}: {'.'.join(keys)} is {str(data)[:40]!r}, which cannot be read.")
    return data


def number(value: Any, where: str) -> float:
    """A finite number from JSON or text; `BadInput` names the place."""
    try:
        found = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise BadInput(f"{where} is {str(value)[:40]!r}, not a finite number.")
    return found


def identify(given: Given, name: str, revision: str = "main") -> dict[str, Any]:
    """Facts of a model at a revision in the atlas's columns: what is given, else what is known under its name.

    The tokens and the learning-rate phase of a final model do not stand for those of another revision. `BadInput`
    names the option that tells a missing fact.
    """
    name = given.model or name
    facts = _known(name, revision)
    stated = {"family": given.family, "n_params_nonembedding": given.params, "train_tokens": given.tokens,
              "lr_phase": given.lr_phase, "vocab_size": given.vocabulary}  # fmt: skip
    facts |= {key: value for key, value in stated.items() if value is not None}
    for key, (what, option) in NEEDED.items():
        if facts.get(key) is None or facts[key] != facts[key]:
            raise BadInput(f"The {what} of {name}{_at(revision)} is not known: give {option}.")
    return {"lr_phase": "unknown", **facts, "model": facts.get("model", name),
            "checkpoint": f"{name.rstrip('/').rsplit('/', 1)[-1]}{_at(revision)}"}  # fmt: skip


def _at(revision: str) -> str:
    return "" if revision in _MAIN else f"@{revision}"


def _known(name: str, revision: str) -> dict[str, Any]:
    if revision not in _MAIN:
        for one in (one for title in suite.names() for one in suite.load(title).checkpoints):
            if one.revision == revision and name in (one.hub, one.model):
                keys = ("family", "model", *tables.LOOKED_UP, "lr_phase", "lr_fraction")
                return {key: getattr(one, key) for key in keys if getattr(one, key, None) is not None}
    try:
        final = tables.lookup_model(name)
    except BadInput:
        return {}
    if revision in _MAIN:
        return {**final, "lr_phase": "annealed"}
    return {key: value for key, value in final.items() if key != "train_tokens"}


def quantizer(text: str, width: float | None = None) -> dict[str, Any]:
    """Columns of a recipe in text form: method, bits, group size, effective bits where they follow from those.

    One scale per row costs 16 bits over the width of the matrix; where `width` is not known the bits stay nominal.
    """
    one = recipe.parse(text)
    if one.method == "none":
        raise BadInput("Recipe 'none' is the baseline: name the recipe of the quantized model.")
    wide = 4096 if one.group_size > 0 else int(width) if width and width == width else 0
    bits = recipe.effective_bits(one, [(wide, wide)]) if wide else None
    return {"method": one.quantizer, "bits": one.bits, "group_size": one.group_size, "effective_bits": bits}


def written(value: Any) -> str:
    """A value as a table has it: numbers in all their digits, nothing for what is unknown."""
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def of_one(given: Given, runs: int) -> None:
    """`BadInput` where something is stated of one quantization and there are several runs."""
    if runs > 1 and (given.recipe or given.effective_bits):
        raise BadInput(f"--recipe and --effective-bits are of one quantization, and there are {runs} runs: import them "
                       "one by one.")  # fmt: skip


def protocol(given: Given, importer: str, text: str | None, context: Any) -> dict[str, Any]:
    """Columns of text, window and source, and effective bits if stated: what is given, else what the results say."""
    bits = {} if given.effective_bits is None else {"effective_bits": given.effective_bits}
    return {"eval_dataset": given.text or text, "ctx_len": given.context or context,
            "source": given.source or f"imported: {importer}", **bits}  # fmt: skip


def to_cells(found: Found, name: str) -> xr.Dataset:
    """Cells of the rows an importer found, by the atlas's own rules; what was left out is counted by reason.

    `BadInput` when no cell is left, or one stands there twice.
    """
    import pandas as pd

    first = found.files[0]
    digests = {f"{path.absolute().parent.name}/{path.name}": files.sha256_file(path) for path in found.files}
    source = {"name": first.name, "importer": name, "sha256": files.sha256_file(first), "files": digests}
    if isinstance(found.rows, xr.Dataset):
        return found.rows
    if not len(found.rows):
        reasons = ", ".join(sorted({reason for reason, _ in found.left_out})) or "there are no results in it"
        raise BadInput(f"Nothing in {first.name} can be used: {reasons}.")
    text = pd.DataFrame(found.rows).map(written)
    derived = tables.read_rows(text, first.name)
    made = mixed.with_shares(cells.from_table(derived, source), derived, first.name)
    kept = derived["default"].astype(bool).to_numpy()
    for column in (column for column in CARRIED if column in text):
        known: tables.Column = pd.to_numeric(text[column].where(text[column] != ""), errors="coerce")
        values = known.to_numpy(float)[kept]
        put = made.assign if column in made.data_vars else made.assign_coords
        made = put({column: ("cell", values, made[column].attrs if column in made else {})})
    excluded = json.loads(made.attrs["excluded"])
    for reason, family in found.left_out:
        excluded.setdefault(reason, {}).setdefault(family, 0)
        excluded[reason][family] += 1
    if derived.loc[kept, "vocab_size"].isna().any():
        found.notes.append(f"A vocabulary is not known: {tables.VOCABULARY:,.0f} is assumed; --vocabulary tells it.")
    made.attrs["excluded"] = json.dumps(excluded, sort_keys=True)
    if made.sizes["cell"] == 0:
        reasons = ", ".join(sorted(excluded))
        raise BadInput(f"No cell of {first.name} can be used ({reasons}): mend that or import something else.")
    return cells.check(made) if (made["qid"] > 0).any() else made


def table(made: xr.Dataset, most: int = 24) -> str:
    """Text table of cells and of the counts of what was left out."""
    lines = [f"{'checkpoint':<34}{'quantizer':<20}{'bits':>6}{'QiD':>10}{'s.e.':>9}"]
    for at in range(min(made.sizes["cell"], most)):
        one = made.isel(cell=at)
        qid = f"> {math.log(10):.4g}" if one["censored"] else f"{one['qid'].item():.4f}"
        lines.append(f"{str(one['checkpoint'].item())[:33]:<34}{str(one['quantizer'].item())[:19]:<20}"
                     f"{one['effective_bits'].item():>6.2f}{qid:>10}{one['qid_se'].item():>9.4f}")  # fmt: skip
    if made.sizes["cell"] > most:
        lines.append(f"... and {made.sizes['cell'] - most} more")
    excluded = {reason: sum(counts.values()) for reason, counts in json.loads(made.attrs["excluded"]).items()}
    lines += [f"left out: {count} x {reason}" for reason, count in sorted(excluded.items())]
    return "\n".join(lines)
