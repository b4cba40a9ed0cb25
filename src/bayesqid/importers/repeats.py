"""Rows of different sources that hold one configuration: copies, repetitions and independent re-runs."""

from typing import Any

# a DataFrame and a column of it: pandas' own hints cannot tell one column of a table from several
Table = Any
Column = Any

SAME_RUN = ("model", "name", "bits", "eval_dataset", "ctx_len", "kind")
# bits by which one recipe may differ between sources that count its scales differently
SAME_BITS = 0.05
MOST_ROUNDING = 0.25
ROUND_OFF = 1e-9


def pairs(table: Table, atlas: Table) -> Table:
    """Pairs of a row of a table and a row of another source, here or in the atlas, with the same configuration.

    Both typed by `check`; `at`, `source`, `ppl_q`, ... are of the row, `..._other` of the other, whose `at` is -1 if it
    is of the atlas. Of two rows of the table the later one is the row.
    """
    import pandas as pd

    here: Table = table.reset_index(names="at")
    # a table of several sources, the atlas for one, is compared with itself too
    there = pd.concat([atlas.assign(at=-1), here])
    keep = ["at", "source", "group_size", "effective_bits", "ppl_fp", "ppl_q", "ppl_q_decimals", "duplicate_kind"]
    both = here[[*keep, *SAME_RUN]].merge(there[[*keep, *SAME_RUN]], on=list(SAME_RUN), suffixes=("", "_other"))
    # a group or a number of bits that one of the two leaves out may be the other's
    group = both["group_size"].eq(both["group_size_other"]) | both[["group_size", "group_size_other"]].isna().any(
        axis=1)  # fmt: skip
    bits = ~((both["effective_bits"] - both["effective_bits_other"]).abs() > SAME_BITS)
    once = (both["at_other"] < both["at"]) & (both["source"] != both["source_other"])
    return both[group & bits & once]


def alike(pairs: Table) -> Column:
    """Whether two printed perplexities are one number: the same digits, or within a rounding that is small enough.

    Where rounding is more than `MOST_ROUNDING` of the rise of the perplexity, agreement says nothing.
    """
    width = 0.5 * (10.0 ** -pairs["ppl_q_decimals"] + 10.0 ** -pairs["ppl_q_decimals_other"])
    rise = pairs["ppl_q"] - pairs["ppl_fp"]
    near = ((pairs["ppl_q"] - pairs["ppl_q_other"]).abs() < width - ROUND_OFF) & (width < MOST_ROUNDING * rise)
    same = (pairs["ppl_q"] == pairs["ppl_q_other"]) & (pairs["ppl_q_decimals"] == pairs["ppl_q_decimals_other"])
    return near | same
