"""Own measurements: what does `sample atlas mine.nc` cost beside `sample atlas`?

    python benchmarks/own.py                          both engines, two runs each; about five minutes on two cores
    python benchmarks/own.py --engines laplace --repeats 3
    python benchmarks/own.py --report                 only the table

`mine.nc` is one checkpoint of the bundled ladder under its seven recipes: a family that the atlas does not have, far
outside its sizes. Whole processes as a person starts them, one with and one without it in turn, so that a busy machine
slows both alike; CPU seconds are of the process and its children. A ratio is taken inside a pair; one line a pair is
appended to results/own.jsonl.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bayesqid import bundled, files, measurements

RESULTS = Path(__file__).resolve().parent / "results" / "own.jsonl"
ENGINES = ("laplace", "nuts")
OWN = "tiny-neox/tiny-neox-25k@step1953"
LIMIT = 1.2


def mine(folder: Path) -> Path:
    """A measurement file of one model."""
    path = folder / "mine.nc"
    files.write_netcdf(measurements.read(bundled.data_dir() / "tiny.nc").sel(checkpoint=[OWN]), path)
    return path


def timed(data: list[str], engine: str, seed: int, folder: Path) -> dict:
    """One `bayesqid sample` as a process: wall and CPU seconds, the work of the engine, whether its checks passed."""
    output = folder / "posterior.nc"
    command = [sys.executable, "-m", "bayesqid", "sample", *data, "--engine", engine, "--seed", str(seed),
               "-o", str(output)]  # fmt: skip
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with exit {done.returncode}:\n{done.stderr}")
    record = json.loads(files.open_tree(output).attrs["engine"])
    work = {"proposals": record["proposals"], "ess": record["importance_ess"]} if engine == "laplace" else {
        "compile_s": record["compile_s"], "sample_s": [one["sample_s"] for one in record["tries"]],
        "tries": len(record["tries"]), "ess": record["tries"][-1]["diagnostics"]["ess_bulk"],
    }  # fmt: skip
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(wall, 2), "cpu": round(cpu, 2), "passed": done.returncode == 0, **work}


def pair(engine: str, seed: int, swap: bool) -> dict:
    """One run without and one with the own measurements, in that order or the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {"atlas": ["atlas"], "both": ["atlas", str(mine(folder))]}
        order = ("both", "atlas") if swap else ("atlas", "both")
        found = {kind: timed(data[kind], engine, seed, folder) for kind in order}
    ratio = {key: round(found["both"][key] / found["atlas"][key], 3) for key in ("cpu", "wall")}
    return {"engine": engine, "seed": seed, "first": order[0], **found, "ratio": ratio,
            "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count(), "nutpie": version("nutpie")}  # fmt: skip


def report() -> str:
    """Medians over the pairs of each engine, as a table."""
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    lines = ["| engine | pairs | atlas, CPU s (wall s) | with mine.nc, CPU s (wall s) | ratio of CPU | of wall |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for engine in ENGINES:
        own = [row for row in rows if row["engine"] == engine]
        if own:
            def median(*keys: str, of: list[dict] = own) -> float:
                return float(np.median([row[keys[0]][keys[1]] for row in of]))

            spent = [f"{median(kind, 'cpu'):.1f} ({median(kind, 'wall'):.1f})" for kind in ("atlas", "both")]
            ratio = [f"{median('ratio', key):.2f}" for key in ("cpu", "wall")]
            lines.append(f"| {engine} | {len(own)} | {' | '.join([*spent, *ratio])} |")
    return "\n".join([*lines, f"\nAt most {LIMIT} is asked for."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only the table")
    args = parser.parse_args()
    if not args.report:
        for engine in args.engines:
            for number in range(args.repeats):
                found = pair(engine, args.seed + number, swap=number % 2 == 1)
                with RESULTS.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(found) + "\n")
                print(json.dumps(found), flush=True)
    print(report())


if __name__ == "__main__":
    main()
