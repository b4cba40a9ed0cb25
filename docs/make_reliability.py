"""Write the table of fuzzing runs in docs/reliability.md from benchmarks/results/fuzz.jsonl; nothing is run."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.jsonl"
BETWEEN = re.compile(r"(?<=<!-- fuzz -->\n).*?(?=<!-- /fuzz -->)", re.DOTALL)


def table() -> str:
    """One line per parser: minutes and executions over all runs, the last run's features, crashes ever found."""
    rows: dict[str, list[dict]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        rows.setdefault(record["parser"], []).append(record)
    lines = ["| parser | minutes | executions | features | crashes in the last run | in all |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, runs in sorted(rows.items()):
        crashes = [len(run["crashes"]) + run["ended"] for run in runs]
        lines.append(f"| {name} | {sum(run['seconds'] for run in runs) / 60:.1f} "
                     f"| {sum(run['executions'] for run in runs):,} | {runs[-1]['features']:,} | {crashes[-1]} "
                     f"| {sum(crashes)} |")  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BETWEEN.sub(lambda _: table(), page), encoding="utf-8")
