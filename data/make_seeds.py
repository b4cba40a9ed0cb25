"""Make data/tiny_seeds.nc, part of the bundled ladder under five draws of the calibration text, and its tables.

python data/make_seeds.py                 measures and writes the file: five minutes of one core
python data/make_seeds.py --tables        only prints the tables of docs/calibration-noise.md from the file
python data/make_seeds.py --windows 64    measures four of the checkpoints again with more calibration windows
                                          (293: all the text there is), compares, and writes nothing
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from bayesqid import bundled, cells, files, measurements
from bayesqid.recipe import parse

CHECKPOINTS = (
    "neox-25k@step488", "neox-25k@step1953", "neox-25k-seed2@step1953", "neox-25k-seed3@step1953",
    "neox-100k@step244", "neox-100k@step1953", "neox-224k@step244", "neox-224k@step977", "neox-793k@step122",
    "neox-793k@step488", "llama-27k@step244", "llama-27k@step977", "llama-54k@step977", "opt-25k@step244",
    "opt-25k@step977", "opt-51k@step977",
)  # fmt: skip
# those measured again with more windows
FEW = ("neox-25k@step1953", "neox-100k@step1953", "llama-54k@step977", "opt-25k@step977")
RECIPES = ("gptq-w2", "gptq-w3", "gptq-w4", "gptq-w3-g32", "gptq-w3-oneshot", "awq-w3-g32")
SEEDS = range(5)
# significant bits kept: below 2e-8 nats per token in QiD; what is cut off would not compress
KEPT = {"nats": 24, "kl_base_q": 12, "kl_q_base": 12}


def measured(checkpoints: Sequence[str], windows: int | None = None) -> xr.Dataset:
    """Checkpoints of the ladder under `RECIPES` and `SEEDS`, by the suite's protocol but for the windows."""
    from bayesqid.measure import plan, run

    whole = plan.make("tiny", list(RECIPES), "cpu", {"calibration_windows": windows}, {}, seeds=SEEDS)
    chosen = tuple(one for one in whole.checkpoints if one.id.partition("/tiny-")[2] in checkpoints)
    with tempfile.TemporaryDirectory() as folder:
        data = run.run(replace(whole, checkpoints=chosen), Path(folder) / "seeds.nc", jobs=1)
    manifest = measurements.manifest(data) | {"command": "python data/make_seeds.py"}
    return data.assign_attrs(manifest=json.dumps(manifest, sort_keys=True))


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers with so many significant bits."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


def write(data: xr.Dataset, path: Path) -> None:
    """Measurements as a compressed netCDF file, rounded as `KEPT` says."""
    data = data.drop_encoding().assign({n: data[n].copy(data=rounded(data[n].values, b)) for n, b in KEPT.items()})
    packed = {str(name): {"zlib": True, "complevel": 9, "shuffle": True}
              for name, values in data.data_vars.items() if values.dtype.kind in "fi"}  # fmt: skip
    files.write_aside(path, lambda aside: data.to_netcdf(aside, engine="h5netcdf", encoding=packed))


class Draws(NamedTuple):
    """QiD of every draw (checkpoint, recipe, seed), its paired standard error, and what draws and documents share."""

    checkpoint: np.ndarray
    recipe: np.ndarray
    qid: np.ndarray
    paired: np.ndarray
    shared: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return self.qid.mean(2)

    @property
    def variance(self) -> np.ndarray:
        return self.qid.var(2, ddof=1)


def draws(data: xr.Dataset) -> Draws:
    """All draws; `shared` is the part of a draw's variance that documents would average out, (checkpoint, recipe)."""
    names = [str(name) for name in data["recipe"].values if name != "none"]
    recipes = np.array(list(dict.fromkeys(str(replace(parse(name), seed=0)) for name in names)))
    by = [[str(replace(parse(name), seed=seed)) for seed in SEEDS] for name in recipes]
    qid, paired = (np.stack([values.sel(recipe=several).values for several in by], 1)
                   for values in (measurements.qid(data), measurements.qid_se(data)))  # fmt: skip
    added = data["nats"] - data["nats"].sel(recipe="none", drop=True)
    tokens = data["tokens"].values
    residual = np.stack([added.sel(recipe=several).values for several in by], 1)
    residual = residual - qid[..., None] * tokens[:, None, None]
    alone = residual - residual.mean(2, keepdims=True)
    documents = tokens.shape[1]
    shared = (alone**2).sum((2, 3)) / (len(SEEDS) - 1) * documents / (documents - 1) / tokens.sum(1)[:, None] ** 2
    return Draws(data["checkpoint"].values, recipes, qid, paired, shared)


def table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (header, ["---"] * len(header), *lines))


def unit(d: Draws) -> np.ndarray:
    """Variance over draws in units of q^2 + q0^2 (checkpoint, recipe)."""
    return d.variance / (d.mean**2 + cells.EVEN_QID**2)


def by_recipe(d: Draws) -> str:
    """What the draws do, one line per recipe."""
    lines = []
    for j, name in enumerate(d.recipe):
        sd, paired, mean = np.sqrt(d.variance[:, j]), np.sqrt((d.paired[:, j] ** 2).mean(1)), d.mean[:, j]
        ratio, large = sd / paired, mean > 0.01
        low, relative = round(mean.min(), 4) + 0, (sd / mean)[large]
        lines.append([name, f"{low:.4f} to {mean.max():.3f}", f"{np.median(sd):.4f}", f"{np.median(ratio):.1f}",
                      f"{ratio.min():.1f} to {ratio.max():.1f}", f"{np.median(relative):.3f}",
                      f"{relative.max():.2f}", f"{np.sqrt(unit(d)[:, j].mean()):.3f}",
                      f"{d.shared[:, j].sum() / d.variance[:, j].sum():.0%}"])  # fmt: skip
    return table(["recipe", "QiD", "sd, median", "sd / paired SE, median", "its range", "sd / QiD, median", "largest",
                  "k", "due to documents"], lines)  # fmt: skip


def by_size(d: Draws) -> str:
    """On which scale the noise is stable: all cells by their QiD."""
    edges = (-np.inf, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, np.inf)
    lines = []
    for low, high in itertools.pairwise(edges):
        inside = (d.mean >= low) & (d.mean < high)
        sd, mean = np.sqrt(d.variance[inside].mean()), d.mean[inside].mean()
        label = f"under {high:g}" if low < 0 else f"over {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"
        relative = "-" if low < 0 else f"{sd / mean:.2f}"
        lines.append([label, inside.sum(), f"{sd:.4f}", relative, f"{np.sqrt(unit(d)[inside].mean()):.3f}"])
    return table(["QiD", "cells", "sd, root mean square", "sd / QiD", "k = sd / sqrt(QiD^2 + 0.015^2)"], lines)


def fit(mean: np.ndarray, variance: np.ndarray, even: float) -> tuple[float, float]:
    """k of sd = k sqrt(q^2 + even^2), and minus the log likelihood of the variances over draws but for a constant."""
    scale = mean**2 + even**2
    square, half = float((variance / scale).mean()), (len(SEEDS) - 1) / 2
    return np.sqrt(square), float(half * (np.log(square * scale) + variance / (square * scale)).sum())


def by_scale(d: Draws) -> str:
    """q0 of greatest likelihood, by recipe and for all, against a constant and a relative standard deviation."""
    grid = np.geomspace(1e-4, 1.0, 401)
    lines = []
    for name, chosen in [*((name, [j]) for j, name in enumerate(d.recipe)), ("all", list(range(d.recipe.size)))]:
        mean, variance = d.mean[:, chosen].ravel(), d.variance[:, chosen].ravel()
        best = min(grid, key=lambda even: fit(mean, variance, even)[1])
        k, value = fit(mean, variance, best)
        worse = [fit(mean, variance, even)[1] - value for even in (cells.EVEN_QID, 1e4, 1e-4)]
        lines.append([name, f"{best:.4f}", f"{k:.3f}", f"{k * best:.4f}", *(f"{one:.1f}" for one in worse)])
    return table(["recipe", "q0 (nats)", "k", "k q0 (nats)", "lost by q0 = 0.015", "lost by sd constant",
                  "lost by sd = k QiD"], lines)  # fmt: skip


def by_rule(d: Draws, used: int) -> str:
    """How well `used` draws foretell the mean of the others, by how calibration_sd is made of them.

    The pooled part comes from the method's other checkpoints.
    """
    method = np.array([parse(str(name)).method for name in d.recipe])
    rules = {"own": None, "pooled": np.inf, **{f"own and pooled, m = {m}": m for m in (2, 4, 8)}}
    found: dict[str, list[np.ndarray]] = {name: [] for name in rules}
    for chosen in itertools.combinations(SEEDS, used):
        others = [seed for seed in SEEDS if seed not in chosen]
        seen = d._replace(qid=d.qid[:, :, list(chosen)])
        miss = d.qid[:, :, others].mean(2) - seen.mean
        spread = np.sqrt(1 / used + 1 / len(others))
        pooled = np.empty_like(miss)
        for i, j in np.ndindex(*miss.shape):
            rows = np.arange(miss.shape[0]) != i
            pooled[i, j] = unit(seen)[rows][:, method == method[j]].mean() * (seen.mean[i, j] ** 2 + cells.EVEN_QID**2)
        for name, m in rules.items():
            variance = (seen.variance if m is None else pooled if np.isinf(m) else
                        (m * pooled + (used - 1) * seen.variance) / (m + used - 1))  # fmt: skip
            found[name].append(np.stack([miss / np.sqrt(variance) / spread, np.log(variance) / 2]))
    lines = []
    for name, several in found.items():
        z, log = np.stack(several, 1).reshape(2, -1)
        held = [f"{(np.abs(z) < limit).mean():.3f}" for limit in (1.0, 1.645, 1.96)]
        lines.append([name, *held, f"{(-(z**2) / 2 - log).mean():.2f}"])
    return table(["calibration_sd", "68 %", "90 %", "95 %", "log score"], lines)


def together(d: Draws) -> str:
    """Whether draws move different checkpoints or recipes together."""
    z = d.qid - d.mean[..., None]
    z = z / np.sqrt((z**2).mean(2, keepdims=True))
    between = np.einsum("ijs,kjs->ik", z, z) / (d.recipe.size * len(SEEDS))
    recipes = np.einsum("ijs,iks->jk", z, z) / (d.checkpoint.size * len(SEEDS))
    apart = between[~np.eye(len(between), dtype=bool)]
    lines = [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(d.recipe, recipes, strict=True)]
    mean = f"Correlation between checkpoints under the same recipe, on average: {apart.mean():.2f}."
    return f"{mean}\n\n{table(['between recipes', *d.recipe], lines)}"


def training(d: Draws) -> str:
    """Spread of three training seeds of one model, by their means over draws, beside that of one draw."""
    rows = [i for i, name in enumerate(d.checkpoint) if "neox-25k" in name and name.endswith("@step1953")]
    lines = [[name, f"{d.mean[rows, j].std(ddof=1):.4f}", f"{np.sqrt(d.variance[rows, j].mean()):.4f}"]
             for j, name in enumerate(d.recipe)]  # fmt: skip
    return table(["recipe", "sd over training seeds", "sd over draws"], lines)


def against(few: Draws, more: Draws) -> str:
    """Standard deviations with more windows over those with the suite's, geometric means over checkpoints."""
    rows = [list(few.checkpoint).index(name) for name in more.checkpoint]
    ratio = np.log(more.variance / few.variance[rows]) / 2
    level = more.mean / few.mean[rows]
    lines = [[name, f"{np.exp(ratio[:, j].mean()):.2f}", f"{level[:, j].mean():.3f}"]
             for j, name in enumerate(more.recipe)]  # fmt: skip
    centre, error = ratio.mean(), ratio.std(ddof=1) / np.sqrt(ratio.size)
    low, high = np.exp(centre - 2 * error), np.exp(centre + 2 * error)
    lines.append(["all", f"{np.exp(centre):.2f} ({low:.2f} to {high:.2f})", f"{level.mean():.3f}"])
    return table(["recipe", "sd, ratio", "mean QiD, ratio"], lines)


def tables(d: Draws) -> dict[str, str]:
    """All tables of the docs that the file gives."""
    return {"By recipe": by_recipe(d), "By size": by_size(d), "Scale": by_scale(d), "Three of five": by_rule(d, 3),
            "Four of five": by_rule(d, 4), "Together": together(d), "Training seeds": training(d)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--windows", type=int, help="calibration windows to compare with the suite's 16")
    given = parser.parse_args()
    path = bundled.data_dir() / "tiny_seeds.nc"
    if given.windows:
        print(against(draws(measurements.read(path)), draws(measured(FEW, given.windows))))
        return
    if not given.tables:
        write(measured(CHECKPOINTS), path)
    for title, text in tables(draws(measurements.read(path))).items():
        print(f"{title}\n\n{text}\n")


if __name__ == "__main__":
    main()
