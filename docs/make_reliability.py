"""Write the table of fuzzing runs in docs/reliability.md from benchmarks/results/fuzz.jsonl; nothing is run."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.jsonl"
BETWEEN = re.compile(r"(?<=<!-- fuzz -->\n).*?(?=<!-- /fuzz -->)", re.DOTALL)


def table() -> str:
    """One line per parser: its longest run, and the crashes ever found."""
    rows: dict[str, list[dict]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        rows.setdefault(record["parser"], []).append(record)
    lines = ["| parser | minutes | of a processor | executions | features | crashes | ever found |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, runs in sorted(rows.items()):
        longest = max(runs, key=lambda run: run["seconds"])
        lines.append(f"| {name} | {longest['seconds'] / 60:.1f} | {longest.get('cpu_seconds', 0) / 60:.1f} "
                     f"| {longest['executions']:,} | {longest['features']:,} "
                     f"| {len(longest['crashes']) + longest['ended']} "
                     f"| {sum(len(run['crashes']) + run['ended'] for run in runs)} |")  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BETWEEN.sub(lambda _: table(), page), encoding="utf-8")
