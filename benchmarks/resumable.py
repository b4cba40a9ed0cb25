"""Many fits, each kept as it finishes: what the benchmarks that refit have in common. Nothing runs from here."""

import ast
import hashlib
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

from tqdm import tqdm

from bayesqid import files

ROOT = Path(__file__).resolve().parents[1]
INFERENCE = ("problem", "hyper", "laplace", "compiled", "model", "posterior", "sample", "simulate", "sbc")
DECIDING = ("laws", "features", "likelihood", *(f"inference/{name}" for name in INFERENCE))


@cache
def code() -> str:
    """Short hash of the modules that decide a fit (`DECIDING`), without comments: tells old results from new."""
    package = ROOT / "src" / "bayesqid"
    paths = [path for name in DECIDING if (path := package / f"{name}.py").is_file()]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return files.sha256_bytes("\n".join(map(ast.dump, trees)).encode())[:12]


def load(path: Path) -> list[dict]:
    """Finished lines; half a line at the end, left by a kill, is cut off the file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        files.write_text(path, whole)
    return [json.loads(line) for line in whole.splitlines()]


def attempt(work: Callable[..., dict], config: str, seed: int, *rest) -> dict:
    """One line of results; an engine that breaks down is a result as well, and counts against it."""
    start = time.perf_counter()
    try:
        line = work(*rest, seed)
    except (ArithmeticError, ValueError) as error:
        line = {"failed": f"{type(error).__name__}: {error}"[:300]}
    seconds = round(time.perf_counter() - start, 2)
    return {"config": config, "seed": seed, "code": code(), "seconds": seconds} | line


def finished(tasks: list[tuple], jobs: int) -> Iterator[dict]:
    """Results of `attempt` for each tuple of arguments, as they come."""
    if jobs == 1:
        yield from (attempt(*task) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(attempt, *task) for task in tasks]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def run(path: Path, tasks: Iterable[tuple], jobs: int = 1) -> list[dict]:
    """All lines of the file after the tasks (work, config, seed, ...) that it lacks are done, one line each."""
    lines = load(path)
    there = {(line["config"], line["seed"]) for line in lines}
    missing = [task for task in tasks if (task[1], task[2]) not in there]
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in tqdm(finished(missing, jobs), total=len(missing), disable=not missing):
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        lines.append(line)
    return lines


def seeds(name: str, fits: int) -> list[int]:
    """Seeds of a configuration, the same in every run and shared with no other configuration."""
    start = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16) * 1000
    return [start + k for k in range(fits)]


def put(page: Path, mark: str, text: str) -> None:
    """Replace what stands between the comments `begin: mark` and `end: mark` of a page."""
    begin, end = f"<!-- begin: {mark} -->", f"<!-- end: {mark} -->"
    shown = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page.read_text(encoding="utf-8"),
                   count=1, flags=re.DOTALL)  # fmt: skip
    files.write_text(page, shown)
