"""Seconds that measuring takes per checkpoint and recipe of the bundled ladder, one checkpoint of each model.

PYTHONPATH=src python benchmarks/measure.py [THREADS] [MAX_BYTES] [CALIBRATION_WINDOWS]
"""

import sys
import time

import torch

from bayesqid.measure import calibrate, load, plan
from bayesqid.measure.checkpoint import measure_cell, prepare
from bayesqid.measure.parts import Found

FACTS = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}


@torch.inference_mode()
def main() -> None:
    threads, max_bytes, windows = (int(given) for given in (sys.argv[1:] + ["1", "128", "16"][len(sys.argv) - 1 :]))
    torch.set_num_threads(threads)
    load.quiet()
    made = plan.make("tiny", None, "cpu", {"max_bytes": max_bytes, "calibration_windows": windows}, FACTS)
    largest = {checkpoint.model: checkpoint for checkpoint in made.checkpoints}
    prepare(made, made.checkpoints[0], {}, Found())  # imports and first calls are not what is timed
    print("process seconds".ljust(18), "load+base", *(str(recipe).rjust(10) for recipe in made.recipes[1:]))
    for name, checkpoint in largest.items():
        start = time.process_time()
        ready = prepare(made, checkpoint, {}, Found())
        inputs: calibrate.Inputs = ready.calibration()
        times = [time.process_time() - start]
        for recipe in made.recipes[1:]:
            start = time.process_time()
            measure_cell(ready, recipe, inputs, len(made.documents))
            times.append(time.process_time() - start)
        print(name.ljust(18), *(f"{value:9.2f} " for value in times), flush=True)


if __name__ == "__main__":
    main()
