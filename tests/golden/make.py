"""Measure cells of the bundled ladder in float32 on the CPU and store them in `ladder.json`, with how it was done.

    OMP_NUM_THREADS=1 python tests/golden/make.py

Run it again only where a change of the numbers is meant, and say in the commit why they changed.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from bayesqid import files, measurements
from bayesqid.measure import plan, run

STORED = Path(__file__).with_name("ladder.json")
# three architectures, smallest and largest, early, late and cooled down
CHECKPOINTS = (
    "tiny-neox/tiny-neox-25k@step122", "tiny-neox/tiny-neox-25k@step1953",
    "tiny-neox/tiny-neox-100k@step586-cooldown", "tiny-neox/tiny-neox-224k@step977",
    "tiny-neox/tiny-neox-793k@step61", "tiny-neox/tiny-neox-793k@step488",
    "tiny-llama/tiny-llama-27k@step244", "tiny-llama/tiny-llama-54k@step977",
    "tiny-opt/tiny-opt-25k@step977", "tiny-opt/tiny-opt-51k@step244",
)  # fmt: skip
# uncalibrated ones first; the last two of those need packages of the extra `quantizers`
PLAIN = ("rtn-w2", "rtn-w3-g32", "rtn-w4-asym", "rtn-mxint4", "rtn-nf4", "hqq-w4-g64")
CALIBRATED = ("gptq-w2", "gptq-w3-g32", "gptq-w4-act", "gptq-w3-oneshot", "awq-w3-g32")
PACKAGES = ("bayesqid", "torch", "transformers", "numpy", "hqq", "bitsandbytes")


def measure(checkpoints: Sequence[str], recipes: Sequence[str]) -> xr.Dataset:
    """Measurements of some of the ladder's checkpoints under its own protocol, on the CPU."""
    facts = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}
    whole = plan.make("tiny", list(recipes), "cpu", {}, facts)
    chosen = tuple(one for one in whole.checkpoints if one.id in checkpoints)
    if len(chosen) != len(checkpoints):
        raise SystemExit(f"The ladder lacks {sorted(set(checkpoints) - {one.id for one in chosen})}.")
    with tempfile.TemporaryDirectory() as folder:
        return run.run(replace(whole, checkpoints=chosen), Path(folder) / "m.nc", jobs=1)


def results(data: xr.Dataset) -> dict[str, dict[str, Any]]:
    """What is stored of measurements, by checkpoint; losses, QiD and KL in nats per token."""
    columns = {
        "qid": measurements.qid(data), "qid_se": measurements.qid_se(data),
        "kl_base_q": measurements.kl(data), "kl_q_base": measurements.kl(data, "q_base"),
        "top1": measurements.top1_agreement(data), "effective_bits": data["effective_bits"],
    }  # fmt: skip
    before = measurements.loss16(data)
    return {
        str(name): {
            "weight_sha256": str(data["weight_sha256"].values[row]),
            "tokens": int(data["tokens"].values[row].sum()),
            "loss16": before.values[row].item(),
            "recipes": {
                str(recipe): {key: values.values[row, column].item() for key, values in columns.items()}
                for column, recipe in enumerate(data["recipe"].values)
            },
        }
        for row, name in enumerate(data["checkpoint"].values)
    }


def main() -> None:
    data = measure(CHECKPOINTS, [*PLAIN, *CALIBRATED])
    if (data["status"] != measurements.OK).any():
        raise SystemExit(f"These cells failed: {measurements.failures(data)}")
    manifest = measurements.manifest(data)
    made = {
        "protocol": manifest["protocol"],
        "versions": {name: version(name) for name in PACKAGES},
        "device": manifest["device"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    files.write_text(STORED, json.dumps({"made": made, "checkpoints": results(data)}, indent=1) + "\n")
    print(f"{STORED}: {int((data['status'] == measurements.OK).sum())} cells")


if __name__ == "__main__":
    main()
