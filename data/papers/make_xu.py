"""Store what the measured ladder says of Xu et al.'s claims, for `bayesqid replicate xu`: writes xu_here.json.

    python data/papers/make_xu.py

Figures are those of benchmarks/landscape_claims.py on data/landscape.nc and benchmarks/results/landscape_contest.jsonl:
its sentences, whose numbers are read out of them with the decimals that docs/landscape.md shows, and its comparisons.
"""

import json
import re
import sys
from pathlib import Path

from scipy import stats

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NUMBER = r"([-+]?\d+\.\d+)"
SLOPE = re.compile(rf"(?P<of>[^;]+?): slope {NUMBER} in ln N \(90 %: {NUMBER} to {NUMBER}\), P\(flatter\) {NUMBER}, "
                   r"(\d+) checkpoints of (\d+) runs")  # fmt: skip
TURN = re.compile(rf"(?P<of>[^;]+?): rounding costs .*?P\(not monotone\) {NUMBER}.*?(\d+) checkpoints of (\d+) runs")
ERROR = re.compile(rf"(?P<of>\w+): median abs\. ln error {NUMBER} \({NUMBER} to {NUMBER} over (\d+) architectures\) "
                   rf"against {NUMBER} for unseen sizes, at least (\d+)% inside")  # fmt: skip
MEASURE = {"rise along random directions": "random", "trace of the Hessian": "trace",
           "curvature along rounding errors of one size": "rounding"}  # fmt: skip


def slopes(figures: str) -> list[dict]:
    """Rows of the claim that larger models are flatter: slope of ln curvature in ln N, at equal tokens and loss."""
    found = []
    for match in SLOPE.finditer(figures):
        of, value, low, high, p, checkpoints, runs = match.groups()
        measure, given = of.strip().rsplit(" at equal ", 1)
        found.append({"of": f"{MEASURE[measure]}, equal {given}", "value": float(value), "lower90": float(low),
                      "upper90": float(high), "p": float(p),
                      "units": f"{checkpoints} checkpoints, {runs} runs"})  # fmt: skip
    return found


def comparisons(claims, lines: list[dict]) -> list[dict]:
    """Rows of the claim on two features: CRPS of a contestant less that of all features, t interval over folds."""
    found = []
    for split in ("size", "architecture"):
        for name, words in (("two", "two only"), ("without two", "all but 2")):
            gap, error, folds, less = claims.compared(lines, split, name, "landscape")
            width = error * stats.t.ppf(0.95, folds - 1)
            # alone they must not lose, without them something must be lost
            p = less if name == "two" else 1 - less
            found.append({"of": f"{words}, {split}", "value": round(gap, 2), "lower90": round(gap - width, 2),
                          "upper90": round(gap + width, 2), "p": round(p, 3), "units": f"{folds} folds"})  # fmt: skip
    return found


def turns(figures: str) -> list[dict]:
    """Rows of the claim that the gain is not monotone, one for each group size."""
    return [{"of": m["of"].strip(), "p": float(m[2]), "units": f"{m[3]} checkpoints, {m[4]} runs"}
            for m in TURN.finditer(figures)]  # fmt: skip


def errors(figures: str) -> list[dict]:
    """Rows of the claim that prediction transfers: worst left-out architecture over the mean of left-out sizes."""
    return [{"of": m["of"], "value": round(float(m[4]) / float(m[6]), 2), "inside90": int(m[7]) / 100,
             "units": f"{m[5]} architectures"} for m in ERROR.finditer(figures) if m["of"] != "boxcox"]  # fmt: skip


def made() -> dict:
    """The results by claim: its answer, its figures in words and as rows."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import landscape_claims as claims
    import landscape_contest as contest
    from resumable import load

    from bayesqid import files

    path = ROOT / "data" / "landscape.nc"
    digest = files.sha256_file(path)
    lines = [line for line in load(contest.RESULTS) if "error" in line]
    cells = contest.cells_of(str(path))
    told = {"flatter": claims.flatter(cells), "carried": claims.carried(lines, cells),
            "monotone": claims.monotone(cells), "transfers": claims.transfers(lines, cells)}  # fmt: skip
    rows = {"flatter": slopes(told["flatter"][1]), "carried": comparisons(claims, lines),
            "monotone": turns(told["monotone"][1]), "transfers": errors(told["transfers"][1])}  # fmt: skip
    return {
        "what": "claims judged on the tiny ladder, whose runs are units; made by make_xu.py",
        "measurements": {"file": "data/landscape.nc", "sha256": digest},
        "folds": {"file": "benchmarks/results/landscape_contest.jsonl", "lines": len(lines)},
        "results": [{"name": name, "answer": told[name][0], "rows": rows[name]} for name in told],
    }


if __name__ == "__main__":
    (HERE / "xu_here.json").write_text(json.dumps(made(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
