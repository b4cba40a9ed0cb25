"""What is kept of a trained and measured run: plain values, written as JSON."""

import json
import math

import xarray as xr

from bayesqid import cells, measurements

DIGITS = 7


def by_checkpoint(data: xr.Dataset) -> dict[str, dict]:
    """Return by revision the weights' hash, and loss, QiD and its paired standard error in the order of the recipes."""
    loss16 = measurements.loss16(data).to_numpy()
    qid, paired = measurements.qid(data).to_numpy(), measurements.qid_se(data).to_numpy()
    return {
        str(revision): {
            "weight_sha256": str(data["weight_sha256"].to_numpy()[row]),
            "loss16": _plain(float(loss16[row])),
            "qid": [_plain(value) for value in qid[row].tolist()],
            "paired_se": [_plain(value) for value in paired[row].tolist()],
        }
        for row, revision in enumerate(data["revision"].to_numpy())
    }


def as_columns(found: xr.Dataset) -> dict:
    """Return cells as plain columns; a column of one value is that value, not a number is null."""
    columns = {}
    for name in (*cells.TEXTS, *cells.NUMBERS, *cells.FLAGS, *cells.VALUES):
        if name not in ("quantizer", "source_method"):
            values = [_plain(value) for value in found[name].to_numpy().tolist()]
            columns[name] = values[0] if len(set(values)) == 1 else values
    return columns


def _plain(value):
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")
    return value


def one_line_each(result: dict) -> str:
    """Return a result as JSON, a line for each part and for each checkpoint and column of cells."""

    def inner(value) -> str:
        rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
        return f"{{\n{rows}\n }}"

    parts = {key: inner(value) if key in ("checkpoints", "cells") else json.dumps(value)
             for key, value in result.items()}  # fmt: skip
    return "{\n" + ",\n".join(f' "{key}": {text}' for key, text in parts.items()) + "\n}\n"
