"""Make data/mixed.nc: cells of the bundled ladder with a share of the weights quantized, the rest at 16 bits.

python data/make_mixed.py [FOLDER]     measures and writes the file: about ten minutes of one core

What is measured is kept in FOLDER, if one is given, and a run that was stopped goes on there.

Twelve checkpoints; shares Qr by linear layers and by blocks, several draws each, blocks of 16, 32 and 128 weights that
share a scale; and for half of the checkpoints the best of 50 assignments, chosen on the calibration text and measured
on the evaluation text.
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import xarray as xr

from bayesqid import cells, files, measurements, methods
from bayesqid.measure import assign, load, mix, run, text
from bayesqid.measure import plan as planning
from bayesqid.measure.checkpoint import prepare
from bayesqid.measure.parts import Found
from bayesqid.recipe import NONE, effective_bits, parse

NOBODY = {"family": None, "tokens": None, "lr_phase": "unknown", "called": None}
TWO_BLOCKS = (
    "tiny-neox/tiny-neox-25k@step244", "tiny-neox/tiny-neox-25k@step977", "tiny-neox/tiny-neox-25k@step1953",
    "tiny-neox/tiny-neox-100k@step244", "tiny-neox/tiny-neox-100k@step1953", "tiny-neox/tiny-neox-224k@step977",
    "tiny-llama/tiny-llama-27k@step244", "tiny-llama/tiny-llama-27k@step977", "tiny-opt/tiny-opt-25k@step977",
)  # fmt: skip
FOUR_BLOCKS = ("tiny-neox/tiny-neox-793k@step488", "tiny-llama/tiny-llama-54k@step977", "tiny-opt/tiny-opt-51k@step977")
SEARCHED = (TWO_BLOCKS[1], TWO_BLOCKS[2], TWO_BLOCKS[4], TWO_BLOCKS[7], TWO_BLOCKS[8], FOUR_BLOCKS[2])
SEARCHED_SHARES, SEARCHED_FORMAT, TRIALS = (0.5, 0.9), "rtn-mxint3", 50
SHARES = ("0.25", "0.5", "0.75", "0.9")
# format -> draws of every share, linear layer by linear layer
DRAWS = {"rtn-mxint3": 4, "rtn-mxint3-g16": 2, "rtn-mxint3-g128": 2, "rtn-mxint4-wa": 2}
LAYERED = {2: ("0.5",), 4: ("0.25", "0.5", "0.75")}


def recipes(depth: int) -> list[str]:
    """Recipes for models of a number of blocks."""
    found = list(DRAWS)
    for form, draws in DRAWS.items():
        found += [f"{form}@{share}m{draw or ''}" for share in SHARES for draw in range(draws)]
        found += [f"{form}@{share}l{draw or ''}" for share in LAYERED[depth] for draw in range(2)]
    return found


def measured(names: tuple[str, ...], depth: int, folder: Path) -> xr.Dataset:
    """Cells of some checkpoints of the ladder under the recipes for their depth."""
    plan = planning.make("tiny", recipes(depth), "cpu", {}, NOBODY)
    chosen = tuple(one for one in plan.checkpoints if one.id in names)
    if len(chosen) != len(names):
        raise SystemExit(f"the ladder lacks {set(names) - {one.id for one in chosen}}")
    file = folder / f"mixed{depth}.nc"
    run.run(replace(plan, checkpoints=chosen), file, jobs=1)
    source = {"name": f"mixed, models of {depth} blocks", "sha256": files.sha256_file(file),
              "command": "python data/make_mixed.py"}  # fmt: skip
    return cells.from_measurements(measurements.read(file), source)


def searched(known: xr.Dataset) -> xr.Dataset:
    """Cells of the best of 50 assignments, as a copy of the checkpoint's cells of the whole recipe but for QiD."""
    plan = planning.make("tiny", ["none"], "cpu", {}, NOBODY)
    form, found = parse(SEARCHED_FORMAT), []
    quantizer = methods.effect_key(*methods.canonical(form.quantizer))
    rows = np.flatnonzero((known["quantized_fraction"] == 1).values & (known["group_size"] == form.group_size).values
                          & (known["quantizer"] == quantizer).values)  # fmt: skip
    row_of = {str(known["checkpoint"].values[row]): row for row in rows}
    for checkpoint in plan.checkpoints:
        if checkpoint.id not in SEARCHED:
            continue
        print(checkpoint.id, file=sys.stderr)
        source, facts = Path(checkpoint.hub), Found()
        ready = prepare(plan, checkpoint, source, {}, facts)
        tokenizer, context = Path(plan.tokenizer or source), plan.protocol.context
        choosing, seen = mix.on_text(ready, text.cut(list(plan.calibration), plan.protocol.max_bytes), tokenizer,
                                     context, 1024)  # fmt: skip
        evaluation, tokens = mix.on_text(ready, plan.documents, tokenizer, context, 10**6)
        choice = mix.table(ready.shapes, [form, NONE], "matmul")
        low = effective_bits(form, facts.shapes)
        for number, share in enumerate(SEARCHED_SHARES):
            budget = (share * low + (1 - share) * 16) * assign.weights(ready.shapes)
            best = mix.by_trials(choosing, choice, seen, budget, TRIALS, np.random.default_rng((number, 3)), True)
            own = choice.assignment(best.formats)
            one = mix.measured(evaluation, tokens, own, [])
            cell = known.isel(cell=[row_of[checkpoint.id]]).copy(deep=True)
            bits = (assign.average(own, ready.shapes) - 16 * (1 - assign.low_share(own, ready.shapes)))
            coords = {"quantized_fraction": assign.low_share(own, ready.shapes), "granularity": "matmul",
                      "assignment": "best of 50",
                      "effective_bits": bits / assign.low_share(own, ready.shapes)}  # fmt: skip
            for name, value in coords.items():
                cell[name].values[:] = value
            cell["qid"].values[:] = one["qid"]
            cell["qid_se"].values[:] = np.hypot(one["qid_se"], cells.NOISE_FLOOR)
            found.append(cell)
    made = xr.concat(found, "cell")
    return made.assign_attrs(known.attrs)


def main() -> None:
    """Measure; only the cells are kept, the losses of documents take ten times the space."""
    load.quiet()
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(sys.argv[1] if sys.argv[1:] else aside)
        parts = [measured(TWO_BLOCKS, 2, folder), measured(FOUR_BLOCKS, 4, folder)]
    known = cells.join(parts)
    best = searched(known)
    both = xr.concat([known, best], "cell", combine_attrs="override")
    both.attrs = known.attrs
    files.write_netcdf(cells.check(both), Path(__file__).with_name("mixed.nc"))


if __name__ == "__main__":
    main()
