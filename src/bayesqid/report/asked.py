"""What a report asks beside its projection: the same models at today's budgets, and the panels of its curves."""

import json
from collections.abc import Sequence
from dataclasses import replace

import xarray as xr

from bayesqid.answers import project
from bayesqid.answers.draws import Posterior, Target

# tokens that open-weight models of LLaMA-2's and LLaMA-3's generations were trained on
BUDGETS = (2e12, 15e12)
PANELS_SIZES = (7e9, 70e9)
PANELS_BITS = 3
CHOSEN_PARAMS, CHOSEN_TOKENS = 8e9, 15e12


def targets(projection: xr.Dataset) -> list[Target]:
    """The targets of a projection, one per row."""
    text, context = json.loads(projection.attrs["assumptions"])["text"].rsplit(", context ", 1)
    names = ("family", "params", "tokens", "bits", "effective_bits", "method", "per_channel", "lr_phase")
    columns = {name: projection[name].to_numpy().tolist() for name in names}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [
        Target(**row | {"family": _family(row["family"]), "population": row["family"] == "population",
                        "eval_dataset": text, "context": float(context)})
        for row in rows
    ]  # fmt: skip


def _family(name: str) -> str | None:
    return None if name in ("new", "population") else name


def family(projection: xr.Dataset) -> str | None:
    """The fitted family that a projection asks about first, None for a new one."""
    return _family(str(projection["family"].values[0]))


def at_counts(posterior: Posterior, projection: xr.Dataset) -> tuple[list[float], xr.Dataset]:
    """Training tokens, today's budgets and the most that was asked for, and the projection's models at each of them.

    The rows run over counts, then over models.
    """
    counts = sorted({*BUDGETS, float(projection["tokens"].max())})
    models = list(dict.fromkeys(replace(target, tokens=counts[0]) for target in targets(projection)))
    asked = [replace(model, tokens=count) for count in counts for model in models]
    return counts, project.project(posterior, asked, projection.attrs["band"])


def panels(projection: xr.Dataset) -> list[Target]:
    """Targets of the fan chart: two sizes, 7B and 70B where asked, and up to three bit widths of the projection.

    All are of the projection's first family; their tokens are those of the first row and stand for none.
    """
    every = targets(projection)
    own = [target for target in every if target.of == every[0].of]
    sizes = sorted({target.params for target in own})
    chosen = [size for size in sizes if size in PANELS_SIZES] or sorted({sizes[0], sizes[-1]})
    widths: dict[float, Target] = {}
    for target in own:
        widths.setdefault(float(target.bits or target.effective_bits), target)
    return [replace(one, params=size) for size in chosen for _, one in sorted(widths.items())[:PANELS_BITS]]


def headline(rows: Sequence[dict]) -> dict:
    """The row that the report states first: most tokens, the size nearest 70e9 parameters, the bits nearest 4."""

    def distance(row: dict) -> tuple:
        size = max(row["params"] / PANELS_SIZES[1], PANELS_SIZES[1] / row["params"])
        return -row["tokens"], size, abs(row["bits"] - 4), row["params"]

    return min(rows, key=distance)
