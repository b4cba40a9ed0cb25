"""Decay and tokens on the controlled ladder without a law: pairs of checkpoints, and slopes of constant runs.

    python benchmarks/phase_pairs.py     seconds: benchmarks/results/phase_pairs.json, tables of docs/tokens-or-decay.md

Pairs: `bayesqid.answers.pairs`, for all recipes and by bits, size and quantizer. Slopes: d ln QiD / d ln D between
checkpoints of one run at the peak learning rate whose tokens double, so that neither N nor the phase moves; of the
recipes for which the two have a mean QiD above 0.02 nats, as in the pairs. Everything is remade from data/ladder.nc,
whatever runs it holds by now; docs/make_tokens_or_decay.py draws what is stored.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import xarray as xr
from resumable import ROOT, put

from bayesqid import cells as cells_module
from bayesqid import files
from bayesqid.answers import pairs, separation, wording

CELLS = ROOT / "data" / "ladder.nc"
STORED = Path(__file__).parent / "results" / "phase_pairs.json"
PAGE = ROOT / "docs" / "tokens-or-decay.md"
# tokens are whole optimizer steps, so a doubling is not quite one
ROUNDING = 0.02
CURVE = 41
NAMED = {"bits": "{:g} bits".format, "quantizer": str, "size": lambda size: f"N = {wording.count_text(size)}"}
BAND = {"lower90": 0.05, "lower50": 0.25, "median": 0.5, "upper50": 0.75, "upper90": 0.95}


def read() -> xr.Dataset:
    """The ladder's cells."""
    return cells_module.from_file(files.open_dataset(CELLS), {"name": CELLS.name})


def quantiles(draws: np.ndarray, digits: int = 4) -> dict[str, float]:
    """Those of the bands, rounded."""
    return {name: round(float(np.quantile(draws, q)), digits) for name, q in BAND.items()}


def told(seen: pairs.Pairs, low: float, high: float) -> dict:
    """What some of the recipes say at the fewest and the most tokens of all pairs."""
    fitted = pairs.fit(seen)
    ends = {name: quantiles(np.exp(fitted.at(tokens))) | {"raises": round(float((fitted.at(tokens) > 0).mean()), 3)}
            for name, tokens in (("low", low), ("high", high))}  # fmt: skip
    return {"pairs": len(seen.tokens), "recipes": len(seen.pair), "reaches": float(seen.tokens.max()), **ends,
            "slope": quantiles(fitted.line[:, 1]), "tau": quantiles(fitted.tau), "omega": quantiles(fitted.omega)}


def of_pairs(cells: xr.Dataset) -> dict:
    """The fit of all pairs, each of them, its line, and the fits of parts."""
    seen = pairs.matched(cells)
    fitted, ends = pairs.fit(seen), (float(seen.tokens.min()), float(seen.tokens.max()))
    each = [{"model": str(seen.model[i]), "params": float(seen.params[i]), "tokens": float(seen.tokens[i]),
             "recipes": int((seen.pair == i).sum()), "ratio": quantiles(np.exp(fitted.pair[:, i])),
             "mean": round(float(np.exp(seen.log_ratio[seen.pair == i].mean())), 4)} for i in range(len(seen.tokens))]
    grid = np.geomspace(*ends, CURVE)
    line = [{"tokens": float(tokens)} | quantiles(np.exp(fitted.at(tokens))) for tokens in grid]
    parts = {"all": told(seen, *ends)}
    column = {"bits": cells["bits"].to_numpy()[seen.after], "quantizer": cells["quantizer"].to_numpy()[seen.after],
              "size": seen.params[seen.pair]}  # fmt: skip
    for name, values in column.items():
        for value in sorted(set(values.tolist())):
            own = seen.at(values == value)
            if len(own.tokens) >= pairs.FEWEST:
                parts[NAMED[name](value)] = told(own, *ends)
    return {"tokens": ends, "each": each, "line": line, "parts": parts}


def doublings(cells: xr.Dataset) -> list[dict]:
    """One row per recipe and doubling of a run at the peak learning rate: run, N, bits, tokens and the slope."""
    rate = separation.rate_left(cells["lr_phase"].to_numpy().astype(str), cells["lr_fraction"].to_numpy())
    cells = cells.isel(cell=np.flatnonzero((rate >= separation.FULL) & ~cells["censored"].to_numpy()))
    names = ("quantizer", "variant", "bits", "effective_bits", "group_size", "eval_dataset", "ctx_len")
    recipe = list(zip(*(cells[name].to_numpy().tolist() for name in names), strict=True))
    model, tokens = cells["model"].to_numpy().astype(str), cells["train_tokens"].to_numpy()
    qid, se, params = (cells[name].to_numpy() for name in ("qid", "qid_se", "n_params_nonembedding"))
    rows = []
    for run in sorted(set(model)):
        own = np.flatnonzero(model == run)
        step = np.log2(tokens[own] / tokens[own].min())
        on = own[np.abs(step - np.rint(step)) < ROUNDING]
        at = {(int(np.rint(np.log2(tokens[i] / tokens[own].min()))), recipe[i]): i for i in on}
        for (power, what), first in sorted(at.items(), key=lambda item: item[0][0]):
            if (second := at.get((power + 1, what))) is None:
                continue
            y, error, good = pairs.ratio(qid[[second]], qid[[first]], se[[second]], se[[first]])
            if good[0]:
                span = float(np.log(tokens[second] / tokens[first]))
                rows.append({"run": run, "params": float(params[first]), "bits": float(what[2]),
                             "low": float(tokens[first]), "high": float(tokens[second]),
                             "slope": float(y[0]) / span, "se": float(error[0]) / span})  # fmt: skip
    return rows


def of_slopes(rows: list[dict]) -> list[dict]:
    """Per doubling: the mean over runs of the mean over recipes, its standard error and the spread between runs."""
    out = []
    for low in sorted({round(row["low"], -4) for row in rows}):
        own = [row for row in rows if round(row["low"], -4) == low]
        line: dict = {"low": own[0]["low"], "high": own[0]["high"]}
        for name, some in (("all", own), *((f"{bits:g}", [r for r in own if r["bits"] == bits]) for bits in (2, 3, 4))):
            by_run = [np.mean([row["slope"] for row in some if row["run"] == run])
                      for run in sorted({row["run"] for row in some})]  # fmt: skip
            several = len(by_run) > 1
            sd = float(np.std(by_run, ddof=1)) if several else None
            line[name] = {"runs": len(by_run), "recipes": len(some),
                          "mean": round(float(np.mean(by_run)), 4) if by_run else None,
                          "sd": None if sd is None else round(sd, 4),
                          "se": None if sd is None else round(sd / len(by_run) ** 0.5, 4)}  # fmt: skip
        out.append(line)
    return out


def span(row: dict, digits: int = 2) -> str:
    """Median and 90 % interval."""
    return f"{row['median']:.{digits}f} ({row['lower90']:.{digits}f} - {row['upper90']:.{digits}f})"


def pairs_table(found: dict) -> str:
    low, high = (wording.count_text(tokens) for tokens in found["tokens"])
    out = [f"| recipes | pairs | cells | at {low} | at {high} | P(> 1) at {high} | slope per ln D | sd of pairs |"
           " sd of recipes |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, row in found["parts"].items():
        whole = row["reaches"] > 0.99 * found["tokens"][1]
        beyond = "" if whole else f" (data to {wording.count_text(row['reaches'])})"
        out.append(f"| {name} | {row['pairs']} | {row['recipes']} | {span(row['low'])} | {span(row['high'])}{beyond} | "
                   f"{row['high']['raises']:.3f} | {span(row['slope'])} | {row['tau']['median']:.2f} | "
                   f"{row['omega']['median']:.2f} |")  # fmt: skip
    return "\n".join(out)


def slopes_table(found: list[dict]) -> str:
    out = ["| tokens | runs | cells | slope, all recipes | sd between runs | 2 bits | 3 bits | 4 bits |",
           "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in found:
        cut = {name: _mean(row[name]) for name in ("all", "2", "3", "4")}
        sd = row["all"]["sd"]
        out.append(f"| {wording.count_text(row['low'])} - {wording.count_text(row['high'])} | {row['all']['runs']} | "
                   f"{row['all']['recipes']} | {cut['all']} | {'' if sd is None else f'{sd:.2f}'} | {cut['2']} | "
                   f"{cut['3']} | {cut['4']} |")  # fmt: skip
    return "\n".join(out)


def _mean(row: dict) -> str:
    if row["mean"] is None:
        return ""
    return f"{row['mean']:.2f}" + ("" if row["se"] is None else f" +- {row['se']:.2f}")


def main() -> None:
    cells = read()
    found = {"pairs": of_pairs(cells), "slopes": of_slopes(doublings(cells))}
    files.write_text(STORED, json.dumps(found, indent=1) + "\n")
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    for mark, text in (("pairs", pairs_table(found["pairs"])), ("slopes", slopes_table(found["slopes"]))):
        if f"<!-- begin: {mark} -->" in page and f"<!-- end: {mark} -->" in page:
            put(PAGE, mark, text)
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
