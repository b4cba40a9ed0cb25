"""How an answer stands: the fit group by group, and how the projection moves with the priors."""

import json

from bayesqid.answers import sensitivity, wording
from bayesqid.answers.draws import Posterior
from bayesqid.report.blocks import Column, Table, chance, share, span

SCALES = {1.0: "as fitted", 0.5: "halved", 2.0: "doubled"}
COUNTED = wording.count_text


def diagnosis(posterior: Posterior) -> tuple[Table, ...]:
    """The fit by groups of cells, as `sample` found it; nothing for a file without it."""
    found = json.loads(posterior.tree.attrs.get("diagnosis", "{}"))
    if not found:
        return ()
    columns = (
        Column("by", lambda row: row["by"], number=False),
        Column("group", lambda row: row["level"], number=False, one_line=True),
        Column("cells", lambda row: str(row["cells"])),
        Column("in 50 %", lambda row: share(row["coverage50"])),
        Column("in 90 %", lambda row: share(row["coverage90"])),
        Column("in 50 %, left out", lambda row: share(row["loo_coverage50"])),
        Column("in 90 %, left out", lambda row: share(row["loo_coverage90"])),
        Column("tail area of the mean", lambda row: _area(row["p_mean"])),
        Column("of the sd", lambda row: _area(row["p_sd"])),
        Column("LOO-PIT uniform, p", lambda row: _area(row["p_loo_pit"])),
    )
    loo = found["loo"]
    # none where copies of one draw fill a cell's tail
    largest = "" if loo["pareto_k_max"] is None else f", the largest is {loo['pareto_k_max']:.2f}"
    note = (
        "Left out: each cell predicted from all others by Pareto-smoothed importance sampling; "
        f"{loo['cells_above_limit']} cells have a Pareto k above {loo['pareto_k_limit']:.2f}{largest}. "
        "Tail areas near 0 or 1: the group's normal scores lie off, or spread otherwise than the law says. "
        "Among many groups one in twenty falls under 0.05 by chance."
    )
    return (Table("diagnosis", "The fit by groups of cells", columns, found["groups"], note, grouped=True),)


def priors(posterior: Posterior) -> tuple[Table, ...]:
    """How the projection moves when prior scales of the tokens exponent change, and its power-scaling sensitivity."""
    found = sensitivity.answer(posterior)
    scaling = found["power_scaling"]
    out = []
    if found["prior_scale"]:
        first = found["prior_scale"][0]
        columns = (
            Column("family", lambda row: row["family"], number=False, one_line=True),
            Column(f"prior scales of {first['term']}", lambda row: SCALES.get(row["factor"], str(row["factor"])),
                   number=False),
            Column("median QiD", lambda row: "" if row["median"] is None else wording.short(row["median"])),
            Column("90 % ETI", _band),
            Column("effective draws", lambda row: f"{row['effective']:.0f}"),
        )  # fmt: skip
        note = (
            f"At {COUNTED(first['params'])} parameters, {COUNTED(first['tokens'])} tokens, {first['bits']:.3g} bits; "
            "both scales of the prior change. By reweighting the draws, nothing is sampled again: where too few would "
            f"carry the answer (Pareto k above {found['pareto_k_limit']:.2f}), `sample --prior` answers it."
        )
        rows = sorted(found["prior_scale"], key=lambda row: (row["family"] != "new", row["family"], row["factor"]))
        title = "Had the prior of the tokens exponent been narrower or wider"
        out.append(Table("prior-scale", title, columns, rows, note, grouped=True))
    columns = (
        Column("family", lambda row: row["family"], number=False, one_line=True),
        Column("prior", lambda row: _scaled(row, "prior")),
        Column("likelihood", lambda row: _scaled(row, "likelihood")),
    )
    note = (
        f"Distance between the projections under slightly stronger and weaker parts, per log2 of the power; above "
        f"{found['threshold']:g} and above the noise of the draws (*) the projection moves with that part. "
        f"The likelihood of the draws is {found['likelihood']}."
    )
    out.append(Table("power-scaling", "What the projection is sensitive to", columns, scaling, note))
    return tuple(out)


def _band(row: dict) -> str:
    return "too few draws" if row["median"] is None else span(row["lower90"], row["upper90"])


def _area(value: float | None) -> str:
    return "" if value is None else chance(value)


def _scaled(row: dict, part: str) -> str:
    return "" if row[part] is None else f"{row[part]:.2f}" + ("*" if row[f"{part}_sensitive"] else "")
