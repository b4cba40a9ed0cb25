"""Tables of what a posterior records about its own making: checks, exclusions, sources."""

import json

from bayesqid.answers.draws import Posterior
from bayesqid.report.blocks import Column, Table


def checks(posterior: Posterior) -> Table:
    """The sampler's own checks: worst value, limit, passed or failed."""
    engine = json.loads(posterior.tree.attrs.get("engine", "{}"))
    limits = json.loads(posterior.tree.attrs.get("check_limits", "{}"))
    tries = engine.get("tries") or [{}]
    values = {**engine, **tries[-1].get("diagnostics", {})}
    rows = [{"check": name, "value": values.get(name), "limit": limits.get(name), "passed": good,
             "says": CHECK_WORDS.get(name, "")} for name, good in posterior.checks.items()]  # fmt: skip
    columns = (
        Column("check", lambda row: row["check"], number=False),
        Column("worst value", lambda row: f"{row['value']:.4g}" if row["value"] is not None else "not recorded"),
        Column("limit", limit_words),
        Column("result", lambda row: "passed" if row["passed"] else "FAILED", number=False),
        Column("what it says", lambda row: row["says"], number=False),
    )
    return Table("checks", "Checks of the run", columns, rows)


CHECK_WORDS = {
    "divergences": "steps at which the sampler lost the posterior's shape",
    "rhat": "disagreement between chains, 1 is none",
    "ess_bulk": "independent draws behind the centre of the worst parameter",
    "ess_tail": "independent draws behind its tails",
    "ebfmi": "how freely the sampler moves between energies",
    "importance_ess": "independent draws behind the importance weights of the fast engine",
}
AT_MOST = {"divergences": "at most", "rhat": "below"}


def limit_words(row: dict) -> str:
    """The limit with its direction."""
    if row["limit"] is None:
        return "not recorded"
    return f"{AT_MOST.get(row['check'], 'above')} {row['limit']:g}"


def excluded(posterior: Posterior) -> Table:
    """Rows that were left out before the fit, by reason and family."""
    counts = json.loads(posterior.cells.attrs.get("excluded", "{}"))
    rows = [
        {
            "reason": reason,
            "rows": sum(families.values()),
            "families": ", ".join(f"{family} {count}" for family, count in sorted(families.items())),
        }
        for reason, families in sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    ]
    columns = (
        Column("reason", lambda row: row["reason"], number=False),
        Column("rows", lambda row: f"{row['rows']:,}"),
        Column("by family", lambda row: row["families"], number=False),
    )  # fmt: skip
    return Table("excluded", "Rows left out before the fit", columns, rows)


def sources(posterior: Posterior) -> Table:
    """Where the fitted cells come from."""
    cells = posterior.cells
    source, family = cells["source"].to_numpy().astype(str), cells["family"].to_numpy().astype(str)
    rows = [{"source": name, "cells": int((source == name).sum()),
             "families": ", ".join(sorted(set(family[source == name])))} for name in sorted(set(source))]  # fmt: skip
    columns = (
        Column("source", lambda row: row["source"], number=False),
        Column("cells", lambda row: f"{row['cells']:,}"),
        Column("families", lambda row: row["families"], number=False),
    )
    return Table("sources", "Sources of the fitted cells", columns, rows)
