"""The published atlas as a table to look at: chosen rows, what they hold, and as text."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from bayesqid import bundled, methods
from bayesqid.errors import BadInput
from bayesqid.importers import schema

# a DataFrame: pandas' own hints cannot tell one column of a table from several
Table = Any

WIDTH = 80
NUMBERS = ("n_params_nonembedding", "train_tokens", "bits", "effective_bits", "qid", "qid_se_total")
BY = ("family", "method")
AXES = ("params", "tokens", "bits")
DIVERGED = "diverged"


def read() -> Table:
    """The atlas with every column as its text and, beside them, what is shown as numbers.

    Numbers end in `_value`; P (`effective_bits_value`) falls back on the nominal bits, as in inference. `quantizer` is
    the key of the effect, `counts` whether the row enters inference by default, `beyond` whether it is right-censored.
    """
    import pandas as pd

    table = pd.read_csv(bundled.data_dir() / "published_qid.csv", dtype=str, keep_default_na=False)
    made: dict[str, Any] = {f"{name}_value": pd.to_numeric(table[name]) for name in NUMBERS}
    made["effective_bits_value"] = made["effective_bits_value"].fillna(made["bits_value"])
    made["quantizer"] = [methods.effect_key(*pair) for pair in zip(table["method"], table["variant"], strict=True)]
    made |= {"counts": table["default"] == "True", "beyond": table["censored"] == "True"}
    return table.assign(**made)


def select(
    table: Table, family: Sequence[str] = (), method: Sequence[str] = (), bits: Sequence[float] = (),
    source: str | None = None, text: str | None = None, default: bool = True,
) -> Table:  # fmt: skip
    """Rows of the table of `read` that every filter given keeps; `default`: only those that enter inference.

    Families by either name; methods by method, quantizer, printed name or generation; bits by their nominal number;
    sources by any part of their name, texts by their beginning. Case is ignored. `BadInput` names what no row has.
    """
    names = {"--family": (family, ("family", "family_printed")),
             "--method": (method, ("method", "quantizer", "method_printed", "generation"))}  # fmt: skip
    for option, (wanted, columns) in names.items():
        if wanted:
            low = [table[column].str.casefold() for column in columns]
            known = sorted({value for column in low[:2] for value in column})
            for name in wanted:
                if not any((column == name.casefold()).any() for column in low):
                    raise BadInput(f"The atlas has no {option[2:]} {name!r}: {_close(name, known)}.")
            chosen = {name.casefold() for name in wanted}
            table = table[[any(pair) for pair in zip(*(column.isin(chosen) for column in low), strict=True)]]
    if bits:
        widths = sorted(table["bits_value"].unique())
        if not set(bits) & set(widths):
            raise BadInput(f"No row has {', '.join(f'{b:g}' for b in bits)} bits: there are "
                           f"{', '.join(f'{b:g}' for b in widths)}.")  # fmt: skip
        table = table[table["bits_value"].isin(list(bits))]
    if source is not None:
        holds = table["source"].str.casefold().str.contains(source.casefold(), regex=False)
        table = _held(table, "source", holds, source)
    if text is not None:
        starts = table["eval_dataset"].str.casefold().str.startswith(text.casefold())
        table = _held(table, "eval_dataset", starts, text)
    table = table[table["counts"]] if default else table
    if table.empty:
        raise BadInput("No row is left: drop a filter, or add --all for rows that stay out of inference.")
    return table


def summary(table: Table, by: str = "family") -> list[dict[str, Any]]:
    """Per family or method: rows, models, ranges of N, D, P and of QiD where it is known, and rows that diverged."""
    key = "quantizer" if by == "method" else by
    return [{by: name, "rows": len(rows), "models": int(rows["model"].nunique()),
             "params": _range(rows["n_params_nonembedding_value"]), "tokens": _range(rows["train_tokens_value"]),
             "bits": _range(rows["effective_bits_value"]), "qid": _range(rows.loc[~rows["beyond"], "qid_value"]),
             DIVERGED: int(rows["beyond"].sum())}
            for name, rows in sorted(table.groupby(key), key=lambda item: (-len(item[1]), item[0]))]  # fmt: skip


def as_json(table: Table, of: int, by: str = "family", rows: bool = False) -> dict[str, Any]:
    """The selection as one object; `cells` with every column as its text only where `rows` are wanted."""
    record = {"atlas": schema.VERSION, "schema": schema.SCHEMA, "rows": len(table), "of": of,
              DIVERGED: int(table["beyond"].sum()), "by": by, "summary": summary(table, by)}  # fmt: skip
    columns = [column.name for column in schema.COLUMNS]
    return record | ({"cells": table[columns].to_dict("records")} if rows else {})


def as_csv(table: Table) -> str:
    """The rows as they stand in the atlas's own CSV."""
    return table[[column.name for column in schema.COLUMNS]].to_csv(index=False, lineterminator="\n")


def as_text(table: Table, of: int, count: Any, by: str = "family", rows: bool = False) -> str:
    """The same for a terminal of 80 columns; `count` shortens counts (`bayesqid.answers.wording.count_text`)."""
    found = summary(table, by)
    known = int((~table["beyond"]).sum())
    opening = [f"{len(table):,} of {of:,} rows of atlas {schema.VERSION}: {table['model'].nunique()} models, "
               f"{table['quantizer'].nunique()} quantizers, {table['source'].nunique()} sources.",
               f"{known:,} with a QiD; {len(table) - known} diverged (QiD > ln 10, no more is known)."]  # fmt: skip

    def counted(value: float) -> str:
        return count(float(f"{value:.2g}"))

    def short(value: float) -> str:
        return f"{value:.2g}"

    cells = [{by: row[by], "rows": str(row["rows"]), "models": str(row["models"]), "N": _span(row["params"], counted),
              "D": _span(row["tokens"], counted), "P": _span(row["bits"], short),
              "QiD (nats)": _span(row["qid"], short), "div": str(row[DIVERGED])} for row in found]  # fmt: skip
    # the names of methods are long
    lines = [tuple(name for name in cells[0] if by != "method" or name != "models")]
    lines += [tuple(cell[name] for name in lines[0]) for cell in cells]
    legend = "N, D, P: least to most; QiD likewise, of rows that did not diverge (div did)."
    parts = ["\n".join(opening), f"{_columns(lines)}\n\n{legend}"]
    if rows:
        shown = [("model", "quantizer", "P", "text", "QiD", "source")]
        shown += [
            (row["model"][:20], row["quantizer"][:16], f"{row['effective_bits_value']:.3g}", row["eval_dataset"][:13],
             "> 2.3" if row["beyond"] else f"{row['qid_value']:.3g}", row["source"])
            for row in table.to_dict("records")
        ]  # fmt: skip
        parts.append("\n".join(line[:WIDTH].rstrip() for line in _columns(shown, left=(0, 1, 3, 5)).splitlines()))
    return "\n\n".join(parts)


def points(table: Table, by: str = "family") -> dict[str, list]:
    """Columns of what a figure draws: params, tokens, bits, qid, beyond, and the name that colours them."""
    names = {"params": "n_params_nonembedding_value", "tokens": "train_tokens_value", "bits": "effective_bits_value",
             "qid": "qid_value", "beyond": "beyond", "name": "quantizer" if by == "method" else by}  # fmt: skip
    return {name: table[column].tolist() for name, column in names.items()}


def _held(table: Table, column: str, keep: Any, wanted: str) -> Table:
    if not keep.any():
        raise BadInput(f"No row has the {column} {wanted!r}: {_close(wanted, sorted(set(table[column])))}.")
    return table[keep]


def _close(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name.casefold(), known, 4, 0.5)
    return f"close are {', '.join(close)}" if close else f"there are {', '.join(known[:12])}"


def _range(values: Any) -> list[float] | None:
    held = values.dropna()
    return None if held.empty else [float(held.min()), float(held.max())]


def _span(limits: list[float] | None, show: Any) -> str:
    if limits is None:
        return "-"
    low, high = (show(value) for value in limits)
    return low if low == high else f"{low}..{high}" if low.startswith("-") else f"{low}-{high}"


def _columns(rows: list[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if place in left else cell.rjust(width)
                  for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )  # fmt: skip
