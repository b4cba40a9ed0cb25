"""Tables that answer: QiD by size, bits and budget, tokens to a threshold, recipes and their sizes."""

import json

import xarray as xr

from bayesqid.answers import candidates, project, tokens
from bayesqid.report.blocks import Column, Table, chance, number, span
from bayesqid.report.tables import COUNTED, DESTROYED, FAMILY

QUANTILES = tuple(project.quantile_names(""))


def budgets(counts: list[float], projection: xr.Dataset) -> Table:
    """QiD of each model at each count of training tokens, a column each; `asked.at_counts` gives both."""
    found = project.rows(projection)
    models = found[: len(found) // len(counts)]
    rows = []
    for number_, model in enumerate(models):
        row = {name: model[name] for name in ("family", "params", "method", "bits", "effective_bits", "lr_phase")}
        for place, count in enumerate(counts):
            there = found[place * len(models) + number_]
            row |= {f"{name}_at_{COUNTED(count)}": there[name] for name in (*QUANTILES, "p_saturated")}
        rows.append(row)
    several = {name: len({row[name] for row in rows}) > 1 for name in ("family", "method")}
    columns = (
        *([FAMILY] if several["family"] else []),
        Column("parameters", lambda row: COUNTED(row["params"])),
        *([Column("method", lambda row: row["method"], number=False)] if several["method"] else []),
        Column("bits", lambda row: f"{row['bits']:g}"),
        *(Column(f"{COUNTED(count)} tokens: median (90 % ETI)", _at(COUNTED(count))) for count in counts),
    )  # fmt: skip
    note = (
        "Medians and 90 % equal-tailed intervals in nats per token. 2T and 15T tokens are today's budgets: what "
        "open-weight models of LLaMA-2's and LLaMA-3's generations were trained on."
    )
    return Table("budgets", "QiD by size, bits and training tokens", columns, rows, note)


def _at(where: str):
    def show(row: dict) -> str:
        if row[f"p_saturated_at_{where}"] > DESTROYED:
            return "loss destroyed"
        return f"{number(row[f'median_at_{where}'])} ({span(row[f'lower90_at_{where}'], row[f'upper90_at_{where}'])})"

    return show


def thresholds(answer: xr.Dataset) -> Table:
    """Tokens at which QiD reaches thresholds (`answers.tokens`), beside the printed ones."""
    limits = json.loads(answer.attrs["limits"])
    rows = [{name: value for name, value in row.items() if name != "extrapolation"} | row["extrapolation"]
            for row in tokens.rows(answer)]  # fmt: skip
    columns = (
        Column("parameters", lambda row: COUNTED(row["params"])),
        Column("bits", lambda row: f"{row['bits']:g}"),
        Column("QiD", lambda row: f"{row['threshold']:g}"),
        Column("median tokens", lambda row: counted(row["median"], limits)),
        Column("90 % ETI", lambda row: f"{counted(row['lower90'], limits)} to {counted(row['upper90'], limits)}"),
        Column("never", lambda row: "0 %" if row["p_never"] == 0 else chance(row["p_never"])),
        Column("printed, Table 1", lambda row: "–" if row["printed"] is None else COUNTED(row["printed"])),
        Column("their Eq. 8", lambda row: COUNTED(row["printed_law"])),
        Column("median beyond the data", lambda row: _times(row["d_ratio"])),
    )
    above = ""
    if any(row["p_always"] > 0 for row in rows):
        above = f" Draws whose QiD is above the threshold at {limits['lower']:g} tokens already count as that."
    note = (
        "Training tokens at which QiD reaches the threshold, in nats per token. never: share of the draws that stay "
        f"below it up to {counted(None, limits)[1:]} tokens; quantiles that fall among them are not finite.{above} "
        "Table 1 and Eq. 8: Ouyang et al. 2024, arXiv 2411.17691, GPTQ, point values without intervals."
    )
    return Table("tokens", "Tokens to a threshold", columns, rows, note, grouped=True)


def counted(value: float | None, limits: dict[str, float]) -> str:
    """A count of tokens, or that it lies beyond the limits within which one is looked for."""
    if value is None:
        return f">{limits['upper']:.0e}".replace("+", "")
    return COUNTED(value).replace("e+", "e") if value > limits["lower"] else f"≤{COUNTED(value)}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else "no" if ratio <= 1 else f"{number(ratio)}×" if ratio < 1e4 else f"{ratio:.0e}×"


def choice(told: dict) -> Table:
    """The recipes that are likelier and of lower median than all that cost no more, and the choice.

    `told`: `choose.as_json`.
    """
    named = told["choice"] or told["nearest"]
    rows = [row | {"chosen": row["recipe"] == told["choice"]} for row in told["curve"]
            if row["efficient"] or row["recipe"] == named]  # fmt: skip
    columns = (
        Column("recipe", lambda row: row["recipe"] + ("" if row["fitted"] else " *"), number=False, one_line=True),
        Column("bits", lambda row: f"{row['effective_bits']:.3g}"),
        Column("GB", lambda row: candidates.size_text(row["bytes"])),
        Column("median QiD", lambda row: number(row["median"])),
        Column("90 % ETI", lambda row: span(row["lower90"], row["upper90"])),
        Column(f"P(QiD ≤ {told['tolerance']:g})", lambda row: chance(row["p_under"])),
        Column("chosen", lambda row: "chosen" if row["chosen"] else "", number=False),
    )
    note = f"GB: 1e9 bytes; {told['assumptions']['bytes']}."
    hidden = len(told["curve"]) - len(rows)
    if hidden:
        note += f" {hidden} more recipes are not both likelier and of lower median than all that cost no more."
    if not all(row["fitted"] for row in rows):
        note += f" * {told['assumptions']['quantizers']}."
    return Table("recipes", "Recipes by size", columns, rows, note)


def choice_words(told: dict) -> str:
    """What is chosen, or that nothing is, as a sentence."""
    asked = (f"For a model of {COUNTED(told['params'])} parameters after {COUNTED(told['tokens'])} tokens "
             f"({'a new family' if told['family'] == 'new' else told['family']}) that should lose at most "
             f"{told['tolerance']:g} nats per token with a probability of {told['confidence']:g},")  # fmt: skip
    named = told["choice"] or told["nearest"]
    row = next(row for row in told["curve"] if row["recipe"] == named)
    if told["choice"] is None:
        return (f"{asked} no recipe qualifies; {named} comes nearest with {chance(row['p_under'])}. What remains is 16 "
                "bits.")  # fmt: skip
    text = (f"{asked} the cheapest recipe is {named} with {row['effective_bits']:.3g} bits per weight: it stays below "
            f"with a probability of {chance(row['p_under'])}.")  # fmt: skip
    if told["close"]:
        text += " Monte Carlo error leaves open whether the next cheaper or the next dearer one would be chosen."
    return text
