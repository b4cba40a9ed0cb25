"""Fuzz parsers and note what came of it: `python fuzz/run.py [NAME...] --minutes 10 [--jobs 2]`.

Needs atheris (`pip install atheris`). Each run adds a line to benchmarks/results/fuzz.jsonl, from which
docs/make_reliability.py makes the table of docs/reliability.md. Exit status 1 when something crashed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "benchmarks" / "results" / "fuzz.jsonl"
# an input may take so long and so much before it counts as a crash: the 4 GiB that a netCDF file may take, and what is
# loaded besides
SECONDS, MEGABYTES = 20, 5632
LONGEST = 20_000
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def ran(command: list[str]) -> tuple[int, str, float]:
    """Exit status of a command, what it wrote to stderr and the seconds of processor time it took."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, env=os.environ | ONE_THREAD | {"HF_HUB_OFFLINE": "1"},
                                   stdout=subprocess.DEVNULL, stderr=errors)  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    return process.returncode, said, usage.ru_utime + usage.ru_stime


def fuzz(name: str, seconds: float, crashes: Path) -> dict:
    """Fuzz one parser for some seconds; a process that ends before is counted and started again."""
    from harnesses import HARNESSES

    with tempfile.TemporaryDirectory(prefix="corpus-") as corpus:
        for number, seed in enumerate(HARNESSES[name].seeds()):
            (Path(corpus) / f"seed{number}").write_bytes(seed)
        begin, runs, ended, features, processor = time.monotonic(), 0, 0, 0, 0.0
        while (left := seconds - (time.monotonic() - begin)) > 1:
            options = [f"-max_total_time={left:.0f}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}",
                       f"-max_len={LONGEST}", f"-artifact_prefix={crashes}/{name}-",
                       "-print_final_stats=1"]  # fmt: skip
            command = [sys.executable, "-W", "ignore", str(HERE / "one.py"), name, str(crashes), *options, corpus]
            status, said, took = ran(command)
            if "libfuzzer" not in said.casefold():
                raise SystemExit(f"{name} did not start:\n{said[-3000:]}")
            counts = re.findall(r"^#(\d+)\s.*?\bft: (\d+)", said, re.MULTILINE)
            stats = re.findall(r"number_of_executed_units: (\d+)", said)
            runs += int([*stats, *(one for one, _ in counts[-1:]), 0][0])
            features = max(features, *(int(found) for _, found in counts), 0)
            processor += took
            ended += status != 0
            if status:
                (crashes / f"{name}-ended-{ended}.txt").write_text(said[-20_000:], encoding="utf-8")
    found = sorted(path.read_text(encoding="utf-8").splitlines()[0] for path in crashes.glob(f"{name}-*.txt")
                   if "-ended-" not in path.name)  # fmt: skip
    return {"parser": name, "date": datetime.now(UTC).strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - begin),
            "cpu_seconds": round(processor), "executions": runs, "features": features, "crashes": found,
            "ended": ended}  # fmt: skip


def main() -> None:
    """Fuzz, print, add to the results."""
    sys.path.insert(0, str(HERE))
    from harnesses import HARNESSES

    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("names", nargs="*", metavar="NAME", help=", ".join(HARNESSES))
    words.add_argument("--minutes", type=float, default=10.0, help="of each parser, by the wall's clock")
    words.add_argument("--jobs", type=int, default=1, help="parsers fuzzed at once")
    words.add_argument("--crashes", type=Path, default=Path("crashes"), help="folder for inputs that crash")
    words.add_argument("--results", type=Path, default=RESULTS)
    given = words.parse_args()
    given.crashes.mkdir(parents=True, exist_ok=True)
    bad = False
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = [pool.submit(fuzz, name, 60 * given.minutes, given.crashes) for name in given.names or HARNESSES]
        for run in as_completed(runs):
            record = run.result()
            with given.results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            print(f"{record['parser']}: {record['executions']} executions in {record['seconds']} s, features "
                  f"{record['features']}, crashes {record['crashes']}, ended {record['ended']}",
                  flush=True)  # fmt: skip
            bad |= bool(record["crashes"] or record["ended"])
    sys.exit(bad)


if __name__ == "__main__":
    main()
