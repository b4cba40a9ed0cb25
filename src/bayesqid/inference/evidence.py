"""Evidences of sets of cells under one model, by the fast engine, each kept as it is found."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from tqdm import tqdm

from bayesqid import laws
from bayesqid.inference import checks, laplace
from bayesqid.inference.problem import Problem, part

# fits of the same cells at most, and the error of a sum of scores, in nats, that needs no further one
MOST_FITS, TOLERANCE = 8, 0.3
LEDGER = "fits.jsonl"


@dataclass(frozen=True)
class Candidate:
    """A law with a model of its families, its arrays for all cells and what identifies its fits of them."""

    label: str
    law: laws.Law
    model: str
    cells: xr.Dataset
    problem: Problem
    key: str


@dataclass(frozen=True)
class Ledger:
    """Finished fits by key, and the file, if any, that each is appended to as it finishes."""

    path: Path | None
    known: dict[str, dict]


def read_ledger(folder: Path | None) -> Ledger:
    """Finished fits of an earlier run in that folder; a line torn by a kill is a fit not finished."""
    if folder is None:
        return Ledger(None, {})
    path, known = folder / LEDGER, {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                known[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                continue
    return Ledger(path, known)


def keep(ledger: Ledger, key: str, row: dict) -> dict:
    """Remember a finished fit, on disk too; returns it."""
    ledger.known[key] = {"key": key, **row}
    if ledger.path is not None:
        ledger.path.parent.mkdir(parents=True, exist_ok=True)
        with open(ledger.path, "ab") as stream:
            # after a torn line the next one must start on its own
            stream.write(("\n" if stream.tell() else "").encode() + json.dumps(ledger.known[key]).encode())
            stream.flush()
            os.fsync(stream.fileno())
    return ledger.known[key]


def fingerprint(cells: xr.Dataset) -> str:
    """SHA-256 of every column of the cells, names and values."""
    digest = hashlib.sha256()
    for name in sorted(map(str, (*cells.coords, *cells.data_vars))):
        values = cells[name].to_numpy()
        content = "\0".join(values.astype(str)).encode() if values.dtype == object else values.tobytes()
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def fit(candidate: Candidate, mask: np.ndarray, seed: int, ledger: Ledger) -> dict:
    """Log evidence of the cells in the mask under the model of all of them, with effective and all proposals."""
    key = hashlib.sha256(json.dumps([candidate.key, seed]).encode() + np.packbits(mask).tobytes()).hexdigest()
    if key in ledger.known:
        return ledger.known[key]
    found = laplace.fit(part(candidate.problem, mask), 1, seed)
    row = {"candidate": candidate.label, "cells": int(mask.sum()), "seed": seed, "log_evidence": found.log_evidence,
           "ess": found.ess, "proposals": found.proposals}  # fmt: skip
    return keep(ledger, key, row)


def pool(rows: Sequence[dict]) -> tuple[float, float, float]:
    """Log evidence, its Monte Carlo standard error and the effective draws of several fits of the same cells.

    Evidences are averaged. One has the relative error sqrt(1 / ess - 1 / proposals), that of a mean of weights.
    """
    logs = np.array([row["log_evidence"] for row in rows])
    ess, proposals = (np.array([row[name] for row in rows], dtype=float) for name in ("ess", "proposals"))
    share = np.exp(logs - logs.max())
    value = float(logs.max() + np.log(share.mean()))
    share = share / share.sum()
    error = np.sqrt(np.sum(share**2 * np.maximum(1 / ess - 1 / proposals, 0)))
    return value, float(error), float(1 / np.sum(share**2 / ess))


def evidence(
    candidate: Candidate, mask: np.ndarray, seed: int, used: int, ledger: Ledger, bar: tqdm
) -> tuple[float, float, float]:
    """`pool` of as many fits as it takes, where the evidence enters a sum of scores `used` times.

    That is until the effective draws pass the limit of the checks and the error that this evidence leaves in the sum is
    below `TOLERANCE`, or `MOST_FITS` are done.
    """
    rows: list[dict] = []
    while True:
        rows.append(fit(candidate, mask, seed + len(rows), ledger))
        pooled = pool(rows)
        bar.update()
        enough = pooled[2] > checks.FAST_LIMITS["importance_ess"] and used * pooled[1] < TOLERANCE
        if enough or len(rows) == MOST_FITS:
            return pooled
        bar.total += 1


def log_mean(logs: np.ndarray, ess: float) -> tuple[float, float]:
    """Log of the mean of exp(logs), and the standard error of it for draws worth `ess` independent ones."""
    top = logs.max()
    values = np.exp(logs - top)
    return float(top + np.log(values.mean())), float(values.std() / values.mean() / math.sqrt(ess))
