"""A CSV or Parquet table of anyone's, its columns named by a mapping file.

A mapping is TOML: `[columns]` says which of their columns is ours, `[constants]` what holds for every row, `[units]`
what a loss is in and by what a number is to be multiplied, `[baseline]` which rows are the unquantized models,
`[values]` what a value is to be called.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesqid import files
from bayesqid.errors import BadInput
from bayesqid.importers import formats, tables
from bayesqid.importers.formats import Found, Given
from bayesqid.quantized_share import PLAIN

if TYPE_CHECKING:
    import pandas as pd

MOST_VALUES = 10_000_000  # of a Parquet table
SUFFIXES = (".csv", ".tsv", ".parquet")
PARTS = ("columns", "constants", "units", "scale", "baseline", "values")
# unit of a loss per token -> perplexity
LOSSES: dict[str, Callable[[float], float]] = {
    "ppl": lambda x: x, "nats": math.exp, "bits": lambda x: 2.0**x, "log10": lambda x: 10.0**x,
}  # fmt: skip
# unit of a difference of losses -> nats
DIFFERENCES = {"nats": 1.0, "bits": math.log(2), "log10": math.log(10)}
# our column -> the table of units it may be in
UNITS: dict[str, dict[str, Any]] = {"loss": LOSSES, "loss_fp": LOSSES, "qid": DIFFERENCES, "qid_se": DIFFERENCES}
COLUMNS = (
    *tables.REQUIRED, *tables.NUMBERS, *tables.BOOLEANS, *formats.CARRIED, *PLAIN, "loss", "loss_fp", "checkpoint",
    "source", "eval_dataset", "lr_phase", "notes", "kind", "flags", "duplicate_kind",
)  # fmt: skip


def recognises(path: Path) -> bool:
    """Whether a file ends in .csv, .tsv or .parquet."""
    return path.is_file() and path.suffix.casefold() in SUFFIXES


def read(paths: list[Path], given: Given) -> Found:
    """Rows of the tables in our columns; without a mapping they must have ours already.

    Facts given on the command line fill rows that have none. `BadInput` names the table, and the column or row.
    """
    import pandas as pd

    mapping = {} if given.mapping is None else _mapping(given.mapping)
    parts = [_table(path) for path in paths]
    frames = [_renamed(part, mapping, path.name) if given.mapping else part
              for part, path in zip(parts, paths, strict=True)]  # fmt: skip
    text = pd.concat(frames, ignore_index=True).fillna("") if len(frames) > 1 else frames[0]
    if text.empty:
        raise BadInput(f"{paths[0].name} has a header but no rows.")
    stated = {"model": given.model, "family": given.family, "n_params_nonembedding": given.params,
              "train_tokens": given.tokens, "lr_phase": given.lr_phase, "vocab_size": given.vocabulary,
              "effective_bits": given.effective_bits, "eval_dataset": given.text, "ctx_len": given.context,
              "source": given.source}  # fmt: skip
    for column, value in ((column, value) for column, value in stated.items() if value is not None):
        before = text[column] if column in text else pd.Series("", index=text.index)
        text[column] = before.where(before.str.strip() != "", str(value))
    return Found(text, [], [], list(paths))


def _mapping(path: Path) -> dict[str, dict[str, Any]]:
    held = files.read_toml(path)
    for name, part in held.items():
        if name not in PARTS or not isinstance(part, dict):
            raise BadInput(f"{path} has no use for {name!r}: a mapping has the tables {', '.join(PARTS)}.")
    for part in ("columns", "constants", "units", "scale"):
        for column, value in held.get(part, {}).items():
            if column not in COLUMNS:
                raise BadInput(f"{path}, [{part}]: {column!r} is no column of ours: known are {', '.join(COLUMNS)}.")
            if isinstance(value, dict | list) or (part == "columns" and not isinstance(value, str)):
                raise BadInput(f"{path}, [{part}]: {column} = {value!r} cannot be used: write one value.")
            if part == "units" and value not in UNITS.get(column, {}):
                known = ", ".join(UNITS.get(column, {"none": 1}))
                raise BadInput(f"{path}, [units]: {column} = {value!r} is unknown: {column} may be in {known}.")
            if part == "scale" and (column not in tables.NUMBERS or formats.number(value, f"{path}, {column}") <= 0):
                raise BadInput(f"{path}, [scale]: {column} = {value!r} cannot be: multiply a number by a positive one.")
    return held


def _table(path: Path) -> "pd.DataFrame":
    import pandas as pd

    if path.suffix.casefold() != ".parquet":
        return tables.read_csv(path, formats.MOST_BYTES, "\t" if path.suffix == ".tsv" else ",")
    files.sized(path, formats.MOST_BYTES, "table")
    try:
        from pyarrow import parquet

        held = parquet.read_metadata(path)
        # columns packed to nothing on disk take their room in memory
        if held.num_rows * held.num_columns > MOST_VALUES:
            raise BadInput(f"{path} has more than {MOST_VALUES} values: import fewer rows.")
        frame = pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise BadInput(f"{path.name} is Parquet, which pyarrow reads: pip install pyarrow, or give a CSV.") from None
    except BadInput:
        raise
    except (ValueError, OSError) as fault:
        raise BadInput(f"{path.name} cannot be read as a table: {str(fault).splitlines()[0][:120]}.") from None
    # what was the index of a table when it was saved is a column to read
    frame = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    text = frame.astype(object).map(formats.written).rename(columns=str)
    if not text.columns.is_unique:
        raise BadInput(f"{path.name} names the column {text.columns[text.columns.duplicated()][0]!r} twice.")
    return text


def _renamed(text: "pd.DataFrame", mapping: dict[str, dict[str, Any]], name: str) -> "pd.DataFrame":
    import pandas as pd

    columns = mapping.get("columns", {})
    absent = [theirs for theirs in columns.values() if theirs not in text]
    if absent:
        raise BadInput(f"{name} has no column {absent[0]!r}, which the mapping names: it has {', '.join(text)[:200]}.")
    ours = pd.DataFrame({mine: text[theirs].str.strip() for mine, theirs in columns.items()}, index=text.index)
    for column, value in mapping.get("constants", {}).items():
        ours[column] = formats.written(value)
    for column, factor in mapping.get("scale", {}).items():
        if column not in ours:
            raise BadInput(f"[scale] names {column}, which neither [columns] nor [constants] has.")
        ours[column] = _each(ours[column], lambda x, factor=factor: x * factor, f"{name}: {column}")
    ours = _losses(ours, mapping.get("units", {}), name)
    if "baseline" in mapping:
        ours = _without_baselines(ours, text, mapping["baseline"], name)
    for column, names in mapping.get("values", {}).items():
        if column not in ours or not isinstance(names, dict):
            raise BadInput(f"[values.{column}] must rename values of a column that [columns] or [constants] has.")
        ours[column] = [formats.written(names.get(value, value)) for value in ours[column]]
    return ours.reset_index(drop=True)


def _each(values: tables.Column, into: Callable[[float], float], where: str) -> list[str]:
    """Numbers in text turned by `into`; what is empty stays so, and what overflows or is no number is refused."""
    turned = []
    for row, value in enumerate(values, 1):
        try:
            turned.append(repr(into(formats.number(value, f"{where}, row {row}"))) if value.strip() else "")
        except OverflowError:
            raise BadInput(f"{where}, row {row} = {value[:40]} is too large a loss: is its unit right?") from None
    return turned


def _losses(ours: "pd.DataFrame", units: dict[str, str], name: str) -> "pd.DataFrame":
    """Losses as perplexities and differences in nats, numbers in text; what is empty stays so."""
    for column, into in (("loss", "ppl_q"), ("loss_fp", "ppl_fp")):
        if column in ours:
            if column not in units:
                raise BadInput(f"The mapping has {column} without its unit: add it to [units] ({', '.join(LOSSES)}).")
            if units[column] == "ppl":  # as printed: its decimals tell how far it is rounded
                ours[into] = ours[column]
                continue
            ours[into] = _each(ours[column], LOSSES[units[column]], f"{name}: {column}")
            if "0.0" in ours[into].tolist():
                raise BadInput(f"{name}: {column} holds a loss far below zero: is its sign right?")
            # a step of the last decimal, as decimals of the perplexity: 10^-d unit = 10^-decimals / ppl
            shift = math.log10(DIFFERENCES[units[column]])
            printed = tables.decimals(ours, column)
            ours[f"{into}_decimals"] = [repr(d - shift - math.log10(float(value))) if value else ""
                                        for d, value in zip(printed, ours[into], strict=True)]  # fmt: skip
    for column in ("qid", "qid_se"):
        if column in ours and units.get(column, "nats") != "nats":
            factor = DIFFERENCES[units[column]]
            ours[column] = _each(ours[column], lambda x, factor=factor: x * factor, f"{name}: {column}")
    return ours.drop(columns=[column for column in ("loss", "loss_fp") if column in ours])


def _without_baselines(ours: "pd.DataFrame", text: "pd.DataFrame", said: dict[str, Any], name: str) -> "pd.DataFrame":
    """The other rows with `ppl_fp` from the baseline row that agrees with them in the columns of `match`."""
    column, value, match = said.get("column"), said.get("value"), said.get("match", ["model"])
    named = isinstance(column, str) and isinstance(match, list) and all(isinstance(one, str) for one in match)
    if not named or column not in text or value is None or not match:
        raise BadInput("[baseline] needs column (theirs), value, and match, a list of our columns that a row shares "
                       "with its baseline, e.g. match = [\"model\", \"eval_dataset\"].")  # fmt: skip
    lacking = [one for one in match if one not in ours]
    if lacking or "ppl_q" not in ours:
        raise BadInput(f"[baseline] needs {(lacking or ['loss or ppl_q'])[0]} in [columns] or [constants].")
    base = (text[column].str.strip() == str(value)).to_numpy()
    keys = list(zip(*(ours[one] for one in match), strict=True))
    known: dict[tuple, int] = {}
    loss = ours["ppl_q"].tolist()
    for row in base.nonzero()[0]:
        if loss[known.setdefault(keys[row], row)] != loss[row]:
            raise BadInput(f"{name}: {', '.join(keys[row])} has two baselines, of perplexity {loss[known[keys[row]]]} "
                           f"and {loss[row]}: add a column to match.")  # fmt: skip
    for row in (~base).nonzero()[0]:
        if keys[row] not in known:
            raise BadInput(f"{name}, row {row + 1}: {', '.join(keys[row])} has no row with {column} = {value}.")
    of_base = {f"ppl_fp{end}": [ours[f"ppl_q{end}"].iloc[known[key]] for key in keys]
               for end in ("", "_decimals") if f"ppl_q{end}" in ours}  # fmt: skip
    return ours.assign(**of_base).loc[~base]
