"""A table of losses checked as a source of the atlas: what is wrong with it, in sentences, with the rows."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bayesqid import bundled, methods
from bayesqid.errors import BadInput
from bayesqid.importers import repeats, schema, tables

# a DataFrame and a column of it: pandas' own hints cannot tell one column of a table from several
Table = Any
Column = Any

SHOWN = 6
# whose baseline is one; what tells two rows of one source apart
PLACE = ("source", "model", "eval_dataset", "ctx_len")
APART = ("source", *repeats.SAME_RUN, "group_size", "effective_bits", "notes", "qid_se")
FACTS = ("family", "n_params", "n_params_nonembedding", "train_tokens", "vocab_size")
# flags that already say that a row's baseline is not the usual one
ODD_BASELINE = ("suspect", "baseline_elsewhere")
BASELINE_AGREES = 0.01
ROUND_OFF = 1e-9


@dataclass(frozen=True)
class Found:
    """A table as text and typed, the atlas without the table's own sources, and what is known already.

    `described`: sources with a complete row of the datasheet; `families`: those of the atlas.
    """

    text: Table
    typed: Table
    atlas: Table
    described: frozenset[str]
    families: frozenset[str]


def check(path: str | Path, data: str | Path | None = None) -> list[str]:
    """What keeps a CSV from being a source of the atlas; empty if nothing does.

    Looked at: columns, types, ranges and allowed values; qid against ln(ppl_q / ppl_fp) within what rounding allows;
    one baseline per source, model, text and context; rows that stand twice; rows that repeat the atlas unmarked;
    facts of known models; a row in sources.csv for every source. `data`: folder of the atlas, the bundled one by
    default. Rows count from 1 below the header. `BadInput` if the file is no CSV.
    """
    text = _read(Path(path))
    problems = _columns(text)
    return problems or _all(_STEPS, text, data)


def notes(path: str | Path, data: str | Path | None = None) -> list[str]:
    """What to know of a table that passes: names to be drawn from the population, re-runs of what the atlas has."""
    text = _read(Path(path))
    return [] if _columns(text) else _all((_unknown_names, _reruns), text, data)


def _all(steps: Iterable[Callable[["Found"], list[str]]], text: Table, data: str | Path | None) -> list[str]:
    found = _found(text, bundled.data_dir() if data is None else Path(data))
    return [sentence for step in steps for sentence in step(found)]


def _read(path: Path) -> Table:
    text = tables.read_csv(path)
    return text.apply(lambda column: column.str.strip())


def _columns(text: Table) -> list[str]:
    required = [c.name for c in schema.COLUMNS if c.given == schema.REQUIRED]
    problems = [f"The column {name} is missing: {schema.BY_NAME[name].meaning}." for name in required
                if name not in text]  # fmt: skip
    if "qid" not in text and not {"ppl_fp", "ppl_q"} <= set(text):
        problems.append("There is no loss: give the columns ppl_fp and ppl_q, or qid.")
    for name in [name for name in text if name not in schema.BY_NAME]:
        close = difflib.get_close_matches(str(name), schema.BY_NAME, 1)
        meant = f": is {close[0]} meant?" if close else "; what a row says besides belongs in notes."
        problems.append(f"The column {name} is not one of the schema{meant}")
    return problems + (["There are no rows below the header."] if text.empty else [])


def _found(text: Table, data: Path) -> Found:
    import pandas as pd

    whole = data / "published_qid.csv"
    atlas = _atlas(whole, whole.stat().st_mtime_ns)
    sheet = pd.read_csv(data / "sources.csv", dtype=str, keep_default_na=False)
    complete = (sheet[list(schema.READ_SOURCES)] != "").all(axis=1)
    own = atlas["source"].isin(set(text["source"]))
    families = frozenset(atlas["family"]) | frozenset(atlas["family_printed"])
    return Found(text, _typed(text), atlas[~own], frozenset(sheet.loc[complete, "source"]), families)


@cache
def _atlas(path: Path, _changed: int) -> Table:
    return _typed(_read(path))


def _typed(text: Table) -> Table:
    """Numbers where the schema has them (NaN for what is none), texts elsewhere; what is left out as it counts."""
    import numpy as np
    import pandas as pd

    left_out = {"kind": "weight_only", "notes": "", "flags": "", "duplicate_kind": ""}
    frame = pd.DataFrame(index=text.index)
    for column in schema.COLUMNS:
        values: Column = text[column.name] if column.name in text else pd.Series("", text.index)
        if column.kind == schema.NUMBER:
            numbers: Column = pd.to_numeric(values, errors="coerce")
            values = numbers.astype(float)
        frame[column.name] = values.replace("", left_out[column.name]) if column.name in left_out else values
    for column in ("ppl_fp", "ppl_q"):
        if f"{column}_decimals" not in text:
            frame[f"{column}_decimals"] = tables.decimals(text, column) if column in text else np.nan
    frame["qid_decimals"] = tables.decimals(text, "qid") if "qid" in text else np.nan
    frame["name"] = frame["method_printed"].where(frame["method_printed"] != "", frame["method"]).str.casefold()
    frame["ctx_len"] = frame["ctx_len"].fillna(tables.CONTEXT)
    return frame


def _values(found: Found) -> list[str]:
    problems = []
    for column in [schema.BY_NAME[name] for name in found.text]:
        text, typed = found.text[column.name], found.typed[column.name]
        filled = text != ""
        if column.given == schema.REQUIRED:
            problems += _say(~filled, f"{column.name} is empty")
        if column.kind == schema.NUMBER:
            inside = typed.between(column.low, column.high)
            problems += _say(filled & ~inside, f"{column.name} is not a number between {column.low:g} and "
                                               f"{column.high:g}")  # fmt: skip
        if column.kind == schema.BOOLEAN:
            problems += _say(filled & ~text.str.casefold().isin(["true", "false"]), f"{column.name} is neither True "
                                                                                   "nor False")  # fmt: skip
        if column.values:
            problems += _say(filled & ~text.isin(column.values), f"{column.name} is none of {', '.join(column.values)}")
    group = found.typed["group_size"]
    problems += _say((group < 1) & (group != -1), "group_size is neither -1 nor a number of weights")
    return problems


def _losses(found: Found) -> list[str]:
    """QiD must be there and, with a perplexity p printed to d decimals, agree within 10^-d / 2p of each and its own."""
    import numpy as np

    frame = found.typed
    half = {name: 0.5 * 10.0 ** -frame[f"{name}_decimals"] for name in ("ppl_fp", "ppl_q", "qid")}
    # of a bound of the perplexities, not of their standard deviation: what rounding can do, it may
    width: Column = half["ppl_fp"] / frame["ppl_fp"] + half["ppl_q"] / frame["ppl_q"] + half["qid"] + ROUND_OFF
    # a spreadsheet's own digits stop at six
    ratio = frame["ppl_q"] / frame["ppl_fp"]
    printed: Column = np.log(ratio.where(ratio > 0))
    off = (frame["qid"] - printed).abs() > width + 5e-7
    absent = frame["qid"].isna() & (frame["ppl_q"].isna() | frame["ppl_fp"].isna())
    loss = frame["qid"].fillna(printed)
    said = found.typed["diverged"].astype(str).str.casefold()
    wrong = (said != "") & ((said == "true") != (loss > tables.DIVERGED))
    return [
        *_say(absent, "there is no loss, neither qid nor both perplexities"),
        *_say(off, "qid is not ln(ppl_q / ppl_fp) within rounding"),
        *_say(wrong & loss.notna(), "diverged disagrees with qid > ln 10"),
    ]


def _baselines(found: Found) -> list[str]:
    frame = found.typed[found.typed["ppl_fp"].notna()]
    problems = []
    for place, rows in frame.groupby(list(PLACE)):
        values = sorted(set(rows["ppl_fp"]))
        if len(values) > 1:
            fewer = rows["ppl_fp"] != rows["ppl_fp"].mode()[0]
            problems += _say(fewer, f"{place[0]} has {len(values)} baselines ({_list(values)}) of {place[1]} on "
                                    f"{place[2]} at context {place[3]:.0f}, this one in fewer rows")  # fmt: skip
    return problems + _foreign_baselines(found, frame)


def _foreign_baselines(found: Found, frame: Table) -> list[str]:
    """Baselines that lie off those of other sources by over a hundredth and rounding, unless a flag explains it."""
    import pandas as pd

    problems, everywhere = [], pd.concat([found.atlas, found.typed])
    usual: Table = everywhere[~_flagged(everywhere, ODD_BASELINE)]
    usual = usual.drop_duplicates([*PLACE, "ppl_fp"])
    usual = usual.groupby(list(PLACE[1:]))["ppl_fp"].agg(["median", "nunique", "size"])
    for place, rows in frame[~_flagged(frame, ODD_BASELINE)].groupby(list(PLACE)):
        here = usual.loc[place[1:]] if place[1:] in usual.index else None
        if here is None or here["size"] < 2:
            continue
        allowed = BASELINE_AGREES * here["median"] + 0.5 * 10.0 ** -rows["ppl_fp_decimals"]
        off = (rows["ppl_fp"] - here["median"]).abs() > allowed
        problems += _say(off, f"{place[0]} has {_list(sorted(set(rows['ppl_fp'])))} as baseline of {place[1]} on "
                              f"{place[2]} at context {place[3]:.0f} where other sources have "
                              f"{here['median']:g}: another slice or protocol")  # fmt: skip
    return problems


def _twice(found: Found) -> list[str]:
    frame = found.typed.reset_index(names="at")
    again = frame[frame.duplicated(list(APART), keep=False)]
    problems = []
    for _, rows in again.groupby(list(APART), dropna=False):
        alike = rows["ppl_q"].nunique() <= 1 and rows["qid"].nunique() <= 1
        what = "are one row" if alike else "are one configuration with different losses; tell them apart in notes"
        problems.append(f"{_rows(rows['at'])} {what}.")
    return problems


def _repeats(found: Found) -> list[str]:
    pairs = repeats.pairs(found.typed, found.atlas)
    pairs = pairs[repeats.alike(pairs) & (pairs["duplicate_kind"] == "")]
    problems = []
    for (source, other), rows in pairs.groupby(["source", "source_other"]):
        kind = schema.SAME if rows["name"].str.startswith("rtn").all() else schema.QUOTED
        problems.append(
            f"{_rows(rows['at'].unique())}: {source} prints the perplexity that {other} prints for the same model and "
            f"recipe; say in duplicate_kind what it is, e.g. 'repeat: {kind}' or 'repeat: {schema.RERUN}'."
        )
    return problems


def _reruns(found: Found) -> list[str]:
    pairs = repeats.pairs(found.typed, found.atlas)
    pairs = pairs[~repeats.alike(pairs)]
    return [f"{_rows(rows['at'].unique())}: {source} measures again what {other} has, with another result; "
            "re-runs stay." for (source, other), rows in pairs.groupby(["source", "source_other"])]  # fmt: skip


def _facts(found: Found) -> list[str]:
    """One model has one family and one size, in the table and in the atlas."""
    import pandas as pd

    everywhere: Table = pd.concat([found.atlas, found.typed])
    problems = []
    for name in [name for name in FACTS if name in found.text]:
        held = everywhere[everywhere[name].notna() & (everywhere[name] != "")]
        first = held.drop_duplicates("model").set_index("model")[name]
        values, known = found.typed[name], found.typed["model"].map(first)
        given = (found.text[name] != "") & known.notna() & (values.notna())
        problems += _say(given & (values != known), f"{name} is not what other rows have for that model")
    return problems


def _described(found: Found) -> list[str]:
    source = found.typed["source"]
    unknown = (source != "") & ~source.isin(found.described)
    return [f"The source {name!r} has no complete row in sources.csv: {', '.join(schema.READ_SOURCES)} are needed."
            for name in source[unknown].unique()]  # fmt: skip


def _unknown_names(found: Found) -> list[str]:
    frame = found.typed
    said = [f"The family {name!r} is new: it will be drawn from the population of families."
            for name in frame.loc[~frame["family"].isin(found.families), "family"].unique()]  # fmt: skip
    for name in frame["model"].unique():
        try:
            tables.lookup_model(name)
        except BadInput:
            said.append(f"The model {name!r} is not known: its sizes and tokens must stand in the table.")
    for name in frame["name"].unique():
        if methods.generation(*methods.canonical(name)) == "unknown":
            said.append(f"The method {name!r} is not known: its effect will be drawn from the population of all.")
    return said


def _flagged(frame: Table, flags: Iterable[str]) -> Column:
    wanted = set(flags)
    # a table without rows would give a column of objects, which picks columns, not rows
    return frame["flags"].str.split(";").map(lambda held: bool(wanted & set(held))).astype(bool)


def _say(bad: Column, what: str) -> list[str]:
    """One sentence on the rows for which something holds, none if there are none."""
    return [f"{_rows(bad.index[bad])}: {what}."] if bad.any() else []


def _rows(at: Iterable[int]) -> str:
    """Row 3; Rows 3, 4 and 9; Rows 1, 2, 3, 4, 5, 6 and 20 more: counted from 1 below the header."""
    numbers = [str(int(place) + 1) for place in sorted(at)]
    if len(numbers) == 1:
        return f"Row {numbers[0]}"
    listed = numbers[:-1] if len(numbers) <= SHOWN else numbers[:SHOWN]
    return f"Rows {', '.join(listed)} and {numbers[-1] if len(numbers) <= SHOWN else f'{len(numbers) - SHOWN} more'}"


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


_STEPS: tuple[Callable[[Found], list[str]], ...] = (
    _values, _losses, _baselines, _twice, _repeats, _facts, _described,
)  # fmt: skip
