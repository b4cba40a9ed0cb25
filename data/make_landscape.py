"""Make data/landscape.nc: cells of the bundled ladder with the loss landscape of every checkpoint and recipe.

python data/make_landscape.py     measures and writes the file: ten minutes of one core
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bayesqid import cells, files, measurements

RECIPES = (
    *(f"{method}-w{bits}" for method in ("rtn", "gptq") for bits in (2, 3, 4)),
    *(f"rtn-mxint{bits}{group}" for bits in (2, 3, 4, 6) for group in ("", "-g128")),
    "rtn-mxfp4", "rtn-fp8e4m3",
    *(f"{name}-w{bits}-{group}" for bits in (2, 3, 4) for name, group in
      (("rtn", "g32"), ("rtn", "g128"), ("gptq", "g32"))),
)  # fmt: skip
COMMAND = ("measure", "tiny", "--recipes", ",".join(RECIPES), "--landscape", "--jobs", "1", "-o", "landscape.nc")


def main() -> None:
    """Measure in a folder of its own; only the cells are kept, the losses of documents take ten times the space."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(sys.executable).with_name("bayesqid")
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run([program, *COMMAND], cwd=folder, env=env, check=True)
        measured = Path(folder) / "landscape.nc"
        source = {"name": "landscape", "sha256": files.sha256_file(measured), "command": " ".join(COMMAND)}
        found = cells.from_measurements(measurements.read(measured), source)
    files.write_netcdf(found, Path(__file__).with_name("landscape.nc"))


if __name__ == "__main__":
    main()
