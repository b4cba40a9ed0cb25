"""Write the table of fuzzing runs in docs/reliability.md from benchmarks/results/fuzz.jsonl; nothing is run."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.jsonl"
LONG = 600
BETWEEN = re.compile(r"(?<=<!-- fuzz -->\n).*?(?=<!-- /fuzz -->)", re.DOTALL)


def table() -> str:
    """One line per parser: its last run of ten minutes, or its last one, and what was found in all of them."""
    rows: dict[str, list[dict]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        rows.setdefault(record["parser"], []).append(record)
    lines = ["| parser | minutes | of a processor | executions | features | crashes | in earlier runs |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, runs in sorted(rows.items()):
        last = ([run for run in runs if run["seconds"] >= LONG] or runs)[-1]
        lines.append(f"| {name} | {last['seconds'] / 60:.1f} | {last.get('cpu_seconds', 0) / 60:.1f} "
                     f"| {last['executions']:,} | {last['features']:,} "
                     f"| {len(last['crashes']) + last['ended']} "
                     f"| {sum(len(run['crashes']) + run['ended'] for run in runs if run is not last)} |")  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BETWEEN.sub(lambda _: table(), page), encoding="utf-8")
