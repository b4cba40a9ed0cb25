"""The projection as a LaTeX table in the style of booktabs."""

import json
import re

import xarray as xr

from bayesqid.answers import project, wording
from bayesqid.report import words
from bayesqid.report.blocks import chance, number
from bayesqid.report.tables import COUNTED, DESTROYED

# one pass over the text, so that what an escape puts in is not escaped again
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "–": "--", "−": r"\ensuremath{-}", "×": r"\ensuremath{\times}",
    "“": "``", "”": "''",
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL)))
COLUMNS = {"family": ("Family", "l"), "lr_phase": ("Learning rate", "l"), "method": ("Quantizer", "l")}
_PERCENT = re.compile(r"(?<=\d) (?=\\%)")


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return _PERCENT.sub(r"\\,", _SPECIAL.sub(lambda found: SPECIAL[found[0]], plain))


def table(projection: xr.Dataset) -> str:
    """A `table` environment with one row per target; needs the package booktabs.

    The caption defines QiD, N and D, and names band, kind and mass of the intervals, failed checks and the verdict.
    """
    rows = project.rows(projection)
    varies = [name for name in COLUMNS if len({row[name] for row in rows}) > 1]
    heads = [COLUMNS[name][0] for name in varies] + ["$N$", "$D$", "Bits", "Median", r"50\,\% interval",
                                                     r"90\,\% interval", "$P(>0.2)$"]  # fmt: skip
    spec = "".join(COLUMNS[name][1] for name in varies) + "rrrrccr"
    lines = []
    for before, row in zip([None, *rows], rows, strict=False):
        if before and (before["params"], before["family"]) != (row["params"], row["family"]):
            lines.append(r"    \addlinespace")
        lines.append("    " + " & ".join([*(escaped(row[name]) for name in varies), *_cells(row)]) + r" \\")
    return "\n".join([
        f"% bayesqid; posterior {_posterior(projection)}",
        r"\begin{table}", r"  \centering", f"  \\caption{{{caption(projection)}}}", r"  \label{tab:qid}",
        f"  \\begin{{tabular}}{{{spec}}}", r"    \toprule", f"    {' & '.join(heads)} \\\\", r"    \midrule",
        *lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def _cells(row: dict) -> list[str]:
    first = [COUNTED(row["params"]), COUNTED(row["tokens"]), f"{row['bits']:g}"]
    last = escaped(chance(row["p_gt_0.2"]))
    if row["p_saturated"] > DESTROYED:
        return [*first, r"\multicolumn{3}{c}{loss destroyed}", last]
    spans = [f"{_number(row[f'lower{mass}'])}--{_number(row[f'upper{mass}'])}" for mass in (50, 90)]
    return [*first, _number(row["median"]), *spans, last]


def _number(value: float) -> str:
    return escaped(number(value))


def _posterior(projection: xr.Dataset) -> str:
    told = json.loads(projection.attrs["posterior"])
    return f"SHA-256 {told['sha256']}"


def caption(projection: xr.Dataset) -> str:
    """What the table shows, as LaTeX."""
    attrs, rows = projection.attrs, project.rows(projection)
    takes = json.loads(attrs["assumptions"])
    failed = [name for name, good in json.loads(attrs["checks"]).items() if not good]
    shared = [f"{COLUMNS[name][0].casefold()} {rows[0][name]}" for name in COLUMNS
              if len({row[name] for row in rows}) == 1]  # fmt: skip
    text = [f"Checks failed: {', '.join(failed)}."] if failed else []
    text += [
        "Projected QiD, the loss after quantization minus the loss before, in nats per token: posterior median and "
        f"equal-tailed 50 % and 90 % credible intervals of the band “{attrs['band']}” ({words.BANDS[attrs['band']]}).",
    ]
    head = escaped(" ".join(text))
    defined = r"$N$: non-embedding parameters; $D$: training tokens; $P(>0.2)$: probability that QiD exceeds 0.2."
    rest = [f"{words.sentence('; '.join([*shared, takes['text']]))}",
            f"Law {attrs['law']}, model {attrs['model']}.",
            f"Verdict: {wording.VERDICTS[attrs['verdict']]}."]  # fmt: skip
    if any(row["p_saturated"] > DESTROYED for row in rows):
        rest.insert(0, "Loss destroyed: the law without a ceiling passes the loss of a uniform guess with a "
                       "probability above 50 %.")  # fmt: skip
    return " ".join([head, defined, escaped(" ".join(rest))])
