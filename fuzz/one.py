"""Fuzz one parser: `python fuzz/one.py NAME CRASHES [libFuzzer's options] CORPUS`; run.py calls it.

What a harness lets escape besides `BadInput` is written to the folder CRASHES, once for each kind and place, and
fuzzing goes on; what ends the process, takes too long or too much memory libFuzzer writes there itself.
"""

import hashlib
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import atheris

# the functions compiled by numba must stay as they are
with atheris.instrument_imports(include=["bayesqid", "tomllib"], exclude=["bayesqid.likelihood"]):
    from harnesses import HARNESSES

    from bayesqid.errors import BadInput

PLACE = "bayesqid"


def where(error: BaseException) -> str:
    """Kind of an exception and the last line of ours it came through: crashes alike in both are one."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if PLACE in one.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


def main() -> None:
    """Run until libFuzzer stops."""
    name, crashes = sys.argv[1], Path(sys.argv[2])
    harness, seen = HARNESSES[name], set()
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    warnings.simplefilter("ignore")

    def one(data: bytes) -> None:
        try:
            harness.call(data, folder)
        except BadInput:
            pass
        except Exception as error:
            kind = where(error)
            if kind not in seen:
                seen.add(kind)
                digest = hashlib.sha256(data).hexdigest()[:12]
                (crashes / f"{name}-{digest}").write_bytes(data)
                (crashes / f"{name}-{digest}.txt").write_text(f"{kind}\n{traceback.format_exc()}", encoding="utf-8")

    # what is loaded once, such as the suites behind names of models, is no part of an input's time
    for seed in harness.seeds():
        one(seed)
    atheris.Setup([sys.argv[0], *sys.argv[3:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
