"""Tables of two posteriors side by side: each a pure function of both sides or of rows of `beside`."""

from bayesqid.report import beside, tables
from bayesqid.report.beside import Side
from bayesqid.report.blocks import Column, Table, number, span
from bayesqid.report.tables import COUNTED


def answers(rows: list[dict]) -> Table:
    """The same targets answered by both."""
    first = rows[0]
    one_count = len({row["tokens"] for row in rows}) == 1
    columns = (
        Column("parameters", lambda row: COUNTED(row["params"])),
        *([] if one_count else [Column("tokens", lambda row: COUNTED(row["tokens"]))]),
        Column("bits", lambda row: f"{row['bits']:g}"),
        Column("A: median QiD", lambda row: _median(row, "a")),
        Column("A: 90 % ETI", lambda row: _span(row, "a")),
        Column("B: median QiD", lambda row: _median(row, "b")),
        Column("B: 90 % ETI", lambda row: _span(row, "b")),
        Column("medians, B − A", lambda row: number(row["difference"])),
        Column("medians, B / A", lambda row: number(row["ratio"])),
        Column("widths, B / A", lambda row: number(row["width_ratio"])),
        Column("ETIs overlap", overlap_words, number=False, one_line=True),
    )
    note = (
        "QiD in nats per token. ETI: equal-tailed credible interval. Widths: of the 90 % intervals of ln QiD. The "
        "twins hold the 50 % intervals, the exceedance probabilities and twice the Monte Carlo standard error of the "
        "log ratio too."
    )
    if any(row["ratio"] is None for row in rows):
        note += " “Loss destroyed”: the law passes the loss of a uniform guess with a probability above 50 %."
    common = f": {COUNTED(first['tokens'])} tokens, {first['method']}" if one_count else ""
    return Table("answer", f"Projected QiD of A and B{common}", columns, rows, note)


def overlap_words(row: dict) -> str:
    """Which of the two intervals overlap."""
    if row["overlap90"] is None:
        return "–"
    return "50 % and 90 %" if row["overlap50"] else "90 % only" if row["overlap90"] else "neither"


def _median(row: dict, side: str) -> str:
    if row[f"{side}_median"] is None:
        return "not fitted"
    return "loss destroyed" if row[f"{side}_p_saturated"] > tables.DESTROYED else number(row[f"{side}_median"])


def _span(row: dict, side: str) -> str:
    if row[f"{side}_median"] is None or row[f"{side}_p_saturated"] > tables.DESTROYED:
        return "–"
    return span(row[f"{side}_lower90"], row[f"{side}_upper90"])


def families(left: Side, right: Side) -> Table:
    """The headline target of every family that either knows."""
    rows = beside.families(left, right)

    def far(row: dict, side: str) -> str:
        if row[f"{side}_median"] is None:
            return "–"
        return tables.beyond_words({name: row[f"{side}_{name}"] for name in ("n_ratio", "d_ratio", "p_outside")})

    columns = (
        Column("family", lambda row: row["family"], number=False, one_line=True),
        Column("A: median QiD", lambda row: _median(row, "a")),
        Column("A: 90 % ETI", lambda row: _span(row, "a")),
        Column("A: beyond the data", lambda row: far(row, "a"), number=False),
        Column("B: median QiD", lambda row: _median(row, "b")),
        Column("B: 90 % ETI", lambda row: _span(row, "b")),
        Column("B: beyond the data", lambda row: far(row, "b"), number=False),
    )
    first = rows[0]
    title = (f"Every family at {COUNTED(first['params'])} parameters, {COUNTED(first['tokens'])} tokens and "
             f"{first['bits']:g} bits")  # fmt: skip
    note = "Not fitted: that posterior has no cell of the family. ETI: equal-tailed interval."
    return Table("families", title, columns, rows, note)


def facts(left: Side, right: Side) -> Table:
    """How each was made."""
    columns = (
        Column("", lambda row: row["fact"], number=False, one_line=True),
        Column("A", lambda row: row["a"], number=False),
        Column("B", lambda row: "the same" if row["same"] else row["b"], number=False),
    )
    return Table("differences", "How A and B were made", columns, beside.facts(left, right))


def cells(left: Side, right: Side) -> Table:
    """The cells of both by family."""
    names = {"a_cells": "cells of A", "b_cells": "cells of B", "shared": "in both", "changed": "in both, another QiD",
             "only_a": "only in A", "only_b": "only in B"}  # fmt: skip
    columns = (
        Column("family", lambda row: row["family"], number=False, one_line=True),
        *(Column(label, lambda row, name=name: f"{row[name]:,}") for name, label in names.items()),
    )
    note = (
        "Cells are the same where checkpoint, quantizer, bits, group, text, context, source, parameters, tokens and "
        f"QiD (to {beside.DIGITS} digits) are."
    )
    return Table("cells", "Fitted cells", columns, beside.cells(left, right), note)


def parameters(rows: list[dict]) -> Table:
    """Terms of both laws side by side."""
    columns = (
        Column("term", lambda row: row["term"], number=False),
        Column("of", lambda row: row["family"] or row["scope"], number=False, one_line=True),
        *_two_sided(),
    )
    note = (
        "Contraction is 1 − var(posterior) / var(prior); below 0.2 it reads “prior”: there the data did not speak. A "
        "dash: that posterior has no such family or term. log_k is ln QiD at 1e9 parameters, 1e11 tokens and 3 bits, "
        "gamma the exponent of bits at 3 bits in every law. ETI: equal-tailed interval."
    )
    return Table("parameters", "Parameters of A and B", columns, rows, note, grouped=True)


def _two_sided() -> list[Column]:
    out = []
    for side in "ab":
        out += [
            Column(f"{side.upper()}: mean", lambda row, s=side: number(row[f"{s}_mean"])),
            Column(f"{side.upper()}: 90 % ETI", lambda row, s=side: (
                "–" if row[f"{s}_mean"] is None else span(row[f"{s}_lower90"], row[f"{s}_upper90"]))),
            Column(f"{side.upper()}: contraction", lambda row, s=side: _reads(row, s)),
        ]  # fmt: skip
    return out


def _reads(row: dict, side: str) -> str:
    if row[f"{side}_mean"] is None:
        return "–"
    return tables.reads({name: row[f"{side}_{name}"] for name in ("informed", "contraction")})


def effects(left: Side, right: Side) -> Table:
    """Covariates, spreads and scatter of both."""
    columns = (
        Column("kind", lambda row: row["kind"], number=False),
        Column("name", lambda row: row["name"], number=False),
        *_two_sided(),
    )
    note = (
        "On the scale of ln QiD: 0.1 is about 10 %. lam: 0 is a power of bits, 1 an exponential. "
        "ETI: equal-tailed interval."
    )
    return Table("effects", "Covariates, effects and scatter of A and B", columns, beside.effects(left, right), note,
                 grouped=True)  # fmt: skip


def checks(left: Side, right: Side) -> Table:
    """The sampler's own checks of both."""
    rows = beside.checks(left, right)

    def result(row: dict, side: str) -> str:
        passed = row[f"{side}_passed"]
        return "–" if passed is None else "passed" if passed else "FAILED"

    columns = [Column("check", lambda row: row["check"], number=False)]
    for side in "ab":
        columns += [
            Column(f"{side.upper()}: worst value", lambda row, s=side: number(row[f"{s}_value"])),
            Column(f"{side.upper()}: limit", lambda row, s=side: number(row[f"{s}_limit"])),
            Column(f"{side.upper()}: result", lambda row, s=side: result(row, s), number=False),
        ]  # fmt: skip
    return Table("checks", "Checks of both runs", tuple(columns), rows)
