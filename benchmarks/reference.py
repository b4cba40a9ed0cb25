"""Frozen reference posteriors, made as posteriordb asks: NUTS, 10,000 thinned draws, every check passed.

python benchmarks/reference.py                      make what is missing in data/reference
python benchmarks/reference.py --only tiny --draws 400 --trial --folder /tmp/reference

Three data sets under `boxcox`, hierarchical where there are several families: the atlas, the bundled ladder, one
simulated grid. A file holds single-precision draws of every estimated scalar of `VARIABLES`, ln QiD of three
projections over the headroom, and the diagnostics of each; its attributes say from which cells, priors and versions it
comes. A run whose checks fail is not written unless `--trial` says that it is none to keep. `differences` holds another
posterior of the same cells against a file; tests/test_reference.py does so with the fast engine.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from arviz_stats.sampling_diagnostics import ess, rhat

from bayesqid import cells as cells_module
from bayesqid import files, laws
from bayesqid.answers import asking, project
from bayesqid.answers import draws as answers
from bayesqid.importers import sources
from bayesqid.inference import problem as problems
from bayesqid.inference import sample, simulate

FOLDER = Path(__file__).resolve().parents[1] / "data" / "reference"
SCHEMA = "bayesqid-reference/1"
LAW, SEED, DRAWS, CHAINS, THIN, TUNE = "boxcox", 2026, 10_000, 4, 4, 1000
SIMULATED_SEED = 15
LIMIT_BYTES = 900_000
# terms of this many families, those with most cells: all families of the atlas would not fit
FAMILIES = 3
VARIABLES = ("mu", "sd", "theta", "covariate", "spread", "tau", "lam")
# draws are rounded to a step of at most this share of their standard deviation, under the Monte Carlo error of the mean
# of 10,000: it adds 5e-6 to a standard deviation, and what is finer only fills the file
STEP = 1 / 128
STATISTICS: dict[str, dict] = {
    "mean": {"method": "mean"}, "sd": {"method": "sd"},
    "q5": {"method": "quantile", "prob": 0.05}, "q95": {"method": "quantile", "prob": 0.95},
}  # fmt: skip


def simulated() -> xr.Dataset:
    """One simulated grid of 160 cells with parameters from the priors."""
    return simulate.study(laws.get(LAW), "hierarchical", SIMULATED_SEED, simulate.grid(4, 4, 2))[0].cells


REFERENCES: dict[str, Callable[[], xr.Dataset]] = {
    "atlas": lambda: cells_module.join([sources.read_cells("atlas")]),
    "tiny": lambda: cells_module.join([sources.read_cells("tiny")]),
    "simulated": simulated,
}


def digest(cells: xr.Dataset) -> str:
    """SHA-256 of what inference reads of cells: every coordinate and variable, in the order of their names.

    The loss landscape counts only for a law that reads it.
    """
    unread = set(cells_module.FEATURES) - set(laws.get(LAW).features)
    names = sorted({str(name) for name in (*cells.coords, *cells.data_vars)} - unread)
    parts = [name.encode() + (v.astype(str).astype("S") if v.dtype.kind in "OUT" else v).tobytes()
             for name in names for v in [cells[name].to_numpy()]]  # fmt: skip
    return files.sha256_bytes(b"\n".join(parts))


def estimated(tree: xr.DataTree) -> xr.Dataset:
    """Draws (chain, draw, ...) of the scalars that the model estimates, and of the projections.

    Left out are spreads of effects that the cells cannot tell from others, and means or spreads that the model fixes.
    """
    p = problems.build(tree["cells"].to_dataset(), laws.get(LAW), tree.attrs["model"])
    whole = tree["posterior"].to_dataset()
    names = [str(name) for name in p.cells["family"].to_numpy()]
    most = sorted(dict.fromkeys(names), key=lambda name: (-names.count(name), name))[:FAMILIES]
    found = whole[[name for name in VARIABLES if name != "lam" or p.free_lam]]
    found = found.sel(family=most, effect=[name for name in whole["effect"].values if name in p.spread_names])
    # one family has no spread between families, and its terms are the population's
    if p.model == "pooled":
        found = found.drop_vars(["sd", "theta"])
    held = answers.Posterior(tree, answers.flatten(whole), "", "", "")
    values = {label: np.log(project.qid_draws(held, [target], band, SEED)[1][:, 0])
              for label, (target, band) in projections(tree, most[0]).items()}  # fmt: skip
    shape = (whole.sizes["chain"], whole.sizes["draw"])
    stacked = np.stack([value.reshape(shape) for value in values.values()], axis=-1)
    found["projection"] = (("chain", "draw", "target"), stacked)
    return found.assign_coords(target=list(values)).transpose("chain", "draw", ...)


def projections(tree: xr.DataTree, family: str) -> dict[str, tuple[answers.Target, str]]:
    """Three targets: amid a family's own data, and 70B at 100T tokens and 4 bits of that family and of a new one."""
    cells = tree["cells"].to_dataset()
    own = cells.isel(cell=np.flatnonzero(cells["family"].to_numpy() == family))
    params, tokens = (float(np.exp(np.log(own[n]).mean())) for n in ("n_params_nonembedding", "train_tokens"))

    def target(known: str | None, bits: int, **size) -> answers.Target:
        return asking.target_of(None, bits, asking.DEFAULT_METHOD, family=known, **size)

    far = {"params": 70e9, "tokens": 1e14}
    return {
        f"{family} amid its data, 3 bits": (target(family, 3, params=params, tokens=tokens), "mean"),
        f"{family} at 70B, 100T, 4 bits": (target(family, 4, **far), "mean"),
        "new family at 70B, 100T, 4 bits": (target(None, 4, **far), "mean"),
    }


def rounded(values: xr.DataArray) -> xr.DataArray:
    """Single precision, every scalar rounded to a power of two of at most `STEP` of its standard deviation."""
    step = 2 ** np.floor(np.log2(values.std(("chain", "draw")) * STEP))
    return (np.rint(values / step) * step).astype(np.float32).transpose(*values.dims)


def thinned(data: xr.Dataset, draws: int) -> xr.Dataset:
    """Evenly spaced draws of every chain, `draws` in all."""
    each = draws // data.sizes["chain"]
    pick = np.linspace(0, data.sizes["draw"] - 1, each).round().astype(int)
    return data.isel(draw=pick).assign_coords(draw=np.arange(each))


def diagnostics(data: xr.Dataset) -> xr.Dataset:
    """R-hat and the effective draws behind mean, sd and the 5 and 95 % quantiles, of every scalar, dim `diagnostic`."""
    found = {"rhat": rhat(data)} | {f"ess_{name}": ess(data, **how) for name, how in STATISTICS.items()}
    return xr.concat([value.expand_dims(diagnostic=[name]) for name, value in found.items()], "diagnostic")


def extreme(found: xr.Dataset, name: str, take: Callable) -> float:
    """The worst of one diagnostic over all scalars; not a number if any is none."""
    worst = found.sel(diagnostic=name)
    return float(take(np.concatenate([value.to_numpy().ravel() for value in worst.data_vars.values()])))


def make(name: str, draws: int, chains: int, thin: int, tune: int) -> xr.DataTree:
    """Sample one reference; groups `posterior` and `diagnostics`, named checks in the attributes."""
    cells = REFERENCES[name]()
    tree = sample.sample(cells, laws.get(LAW), "hierarchical", "nuts", SEED, chains, thin * draws // chains, tune)
    data = thinned(estimated(tree), draws)
    found = diagnostics(data)
    checks = json.loads(tree.attrs["checks"]) | {
        "reference_rhat": extreme(found, "rhat", np.max) < 1.01,
        "reference_ess": extreme(found, "ess_mean", np.min) > draws / 10,
        "no_divergence": not bool(tree["sample_stats"]["diverging"].any()),
        "chains": chains >= 4,
    }
    data = data.map(rounded)
    out = xr.DataTree.from_dict({"posterior": data, "diagnostics": found.astype(np.float32)})
    keep = ("law", "model", "seed", "versions", "priors", "engine")
    out.attrs = {key: tree.attrs[key] for key in keep} | {
        "schema": SCHEMA, "name": name, "cells_sha256": digest(cells), "checks": json.dumps(checks),
        "chains": chains, "tune": tune, "sampled_per_draw_kept": thin, "simulated_seed": SIMULATED_SEED,
    }  # fmt: skip
    return out


def write(tree: xr.DataTree, path: Path) -> None:
    """Write a reference compressed; `ValueError` if it outgrew its place."""
    encoding = {f"/{group}": {str(v): {"zlib": True, "complevel": 9, "shuffle": True} for v in tree[group].data_vars}
                for group in tree.children}  # fmt: skip
    files.write_aside(path, lambda aside: tree.to_netcdf(aside, engine="h5netcdf", encoding=encoding))
    if path.stat().st_size > LIMIT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, {LIMIT_BYTES} at most: keep fewer families")


def scalars(data: xr.Dataset) -> dict[str, np.ndarray]:
    """Every scalar by its name, e.g. `theta alpha llama`, with its leading (chain, draw) laid end to end."""
    out = {}
    for name, values in data.data_vars.items():
        rest = [str(dim) for dim in values.dims if dim not in ("chain", "draw")]
        if not rest:
            out[str(name)] = values.to_numpy().ravel().astype(float)
            continue
        flat = values.stack(scalar=rest).transpose(..., "scalar")
        for number, labels in enumerate(flat["scalar"].values):
            label = " ".join(map(str, labels))
            out[f"{name} {label}"] = flat.to_numpy()[..., number].ravel().astype(float)
    return out


def differences(frozen: xr.DataTree, tree: xr.DataTree, effective: float) -> dict[str, float]:
    """Difference of a posterior from a reference in Monte Carlo errors of both, by `statistic scalar`.

    Means: sd / sqrt(ESS); standard deviations: sqrt((m4 - sd^4) / ESS) / (2 sd) with m4 the fourth central moment;
    5 and 95 % quantiles: the share p of the other's draws below the reference's quantile, sqrt(p (1 - p) / ESS).
    `effective` is the effective number of draws of the other posterior, the reference's own stands in its file.
    """
    reference, other = scalars(frozen["posterior"].to_dataset()), scalars(estimated(tree))
    found = frozen["diagnostics"].to_dataset()
    sizes = {name: scalars(found.sel(diagnostic=f"ess_{name}").expand_dims(("chain", "draw"))) for name in STATISTICS}
    if set(reference) != set(other):
        raise ValueError(f"the two do not estimate the same: {sorted(set(reference) ^ set(other))}")
    out = {}
    for name, x in reference.items():
        y = other[name]
        ess_of = {key: float(sizes[key][name][0]) for key in STATISTICS}
        sd = x.std()
        fourth = ((x - x.mean()) ** 4).mean()
        out[f"mean {name}"] = (y.mean() - x.mean()) / (sd * np.sqrt(1 / ess_of["mean"] + 1 / effective))
        error = np.sqrt((fourth - sd**4) * (1 / ess_of["sd"] + 1 / effective)) / (2 * sd)
        out[f"sd {name}"] = (y.std() - sd) / error
        for key, p in (("q5", 0.05), ("q95", 0.95)):
            edge = np.quantile(x, p)
            # importance draws repeat: a quantile that falls on one of them has a range of shares
            share = np.clip(p, (y < edge).mean(), (y <= edge).mean())
            out[f"{key} {name}"] = (share - p) / np.sqrt(p * (1 - p) * (1 / ess_of[key] + 1 / effective))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(REFERENCES), help="one of the references")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws kept")
    parser.add_argument("--chains", type=int, default=CHAINS)
    parser.add_argument("--thin", type=int, default=THIN, help="draws sampled for one that is kept")
    parser.add_argument("--tune", type=int, default=TUNE)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--trial", action="store_true", help="write it whatever the checks say: not to be kept")
    parser.add_argument("--again", action="store_true", help="make files anew that are there")
    options = parser.parse_args()
    failed = []
    for name in [options.only] if options.only else REFERENCES:
        path = options.folder / f"{name}.nc"
        if path.exists() and not options.again:
            print(f"{path} is there.")
            continue
        tree = make(name, options.draws, options.chains, options.thin, options.tune)
        checks = json.loads(tree.attrs["checks"])
        wrong = [check for check, good in checks.items() if not good]
        print(f"{name}: " + (f"checks failed: {', '.join(wrong)}" if wrong else "all checks passed"))
        if wrong and not options.trial:
            failed.append(name)
            continue
        write(tree, path)
        print(f"Wrote {path}, {path.stat().st_size} bytes.")
    if failed:
        sys.exit(f"Not written: {', '.join(failed)}. More draws (--thin) or tuning (--tune) may help.")


if __name__ == "__main__":
    main()
