"""How long a question takes from the shell, beside `python -c "import xarray"`: whole processes, taken in turns.

python benchmarks/start.py [--rounds 9]

Prints a Markdown table: the least wall and CPU time of each command and its ratio to the import, all from one run.
The least of many rounds is what the command costs; more than that is what else the machine was doing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

COMMANDS = {
    "import xarray": ["-c", "import xarray"],
    "project": ["-m", "bayesqid", "project"],
    "choose": ["-m", "bayesqid", "choose", "--params", "8e9", "--tokens", "15e12", "--tolerance", "0.05"],
    "tokens": ["-m", "bayesqid", "tokens"],
    "level": ["-m", "bayesqid", "level", "--params", "7e9", "--qid", "4=0.05:0.004", "--qid", "3=0.21:0.01"],
    "drivers": ["-m", "bayesqid", "drivers"],
    "next": ["-m", "bayesqid", "next"],
    "--help": ["-m", "bayesqid", "--help"],
}


def timed(words: list[str], folder: str) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], cwd=folder, env=env, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with exit {process.returncode}")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


def main() -> None:
    """Run all commands in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, words in COMMANDS.items():
                found[name].append(timed(words, folder))
    least = {name: [min(column) for column in zip(*times, strict=True)] for name, times in found.items()}
    base = least["import xarray"]
    print(f"| command | wall, s | CPU, s | wall ratio | CPU ratio |\n|{'---|' * 5}")
    for name, (wall, cpu) in least.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {wall / base[0]:.2f} | {cpu / base[1]:.2f} |")


if __name__ == "__main__":
    main()
