"""Cells per second of a sweep on Ray with one and two workers, beside the same sweep in one and two processes.

    python benchmarks/ray_sweep.py [--every 8] [--repeats 3]

A part of the bundled ladder with its suite's recipes, float32, one thread for each worker. The four ways take turns, so
that other load on the machine hits all; cells are recipes and baseline, seconds are those of the wall from the call of
`run` to the merged file, with workers that start anew, as they do for a command. Writes benchmarks/results/ray.json.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ray.json"
NOBODY = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}
WAYS = {"one process": (1, 0), "two processes": (2, 0), "Ray, one worker": (0, 1), "Ray, two workers": (0, 2)}


def seconds(plan, jobs: int, workers: int) -> float:
    """Wall seconds of a sweep in so many processes, or on a Ray cluster here with so many workers."""
    from bayesqid.measure import ray_engine, run

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "m.nc"
        if not workers:
            start = time.perf_counter()
            run.run(plan, output, jobs=jobs)
            return time.perf_counter() - start
        from ray.cluster_utils import Cluster

        node = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            start = time.perf_counter()
            run.run(plan, output, cluster=ray_engine.Cluster(cluster.address, 0.0))
            return time.perf_counter() - start
        finally:
            cluster.shutdown()


def main() -> None:
    """Take the ways in turn and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=8, help="take each n-th checkpoint of the ladder")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import torch

    from bayesqid.measure import plan as planning

    torch.set_num_threads(1)
    whole = planning.make("tiny", None, "cpu", {}, NOBODY)
    plan = replace(whole, checkpoints=whole.checkpoints[:: asked.every])
    cells = len(plan.checkpoints) * len(plan.recipes)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    load = [os.getloadavg()[0]]
    for _ in range(asked.repeats):
        for name, (jobs, workers) in WAYS.items():
            taken[name].append(round(seconds(plan, jobs, workers), 2))
            load.append(os.getloadavg()[0])
            print(name, taken[name][-1], flush=True)
    rates = {name: round(cells / statistics.median(values), 3) for name, values in taken.items()}
    record = {
        "cells": cells, "checkpoints": len(plan.checkpoints), "cores": os.cpu_count(), "load": [min(load), max(load)],
        "seconds": taken, "cells_per_second": rates,
        "ratio_ray_two_to_one": round(rates["Ray, two workers"] / rates["Ray, one worker"], 3),
        "ratio_processes_two_to_one": round(rates["two processes"] / rates["one process"], 3),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
