"""Make the posteriors that ship: the one that answers without a file, and those of the example reports.

python data/make_posterior.py                      all three, some minutes on two cores
python data/make_posterior.py own-model            one of atlas, atlas-and-ladder, own-model

`atlas` is data/posterior.nc, the atlas under the default law. The examples go to data/posteriors/. All are thinned and
without the prior draws of single quantizers, checkpoints and sources, which nothing reads. The examples are also
packed: floats rounded to 13 significant bits (1e-4 of their value), compressed, with 100 predictive draws.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from bayesqid import files
from bayesqid.inference.posterior import thinned

HERE = Path(__file__).resolve().parent
DRAWS, EXAMPLE_DRAWS = 800, 400
SIGNIFICANT_BITS, PREDICTIVE_BITS, PREDICTIVE_DRAWS = 13, 10, 100
LEVELS = {"quantizer", "checkpoint", "source_method"}
# bytes below which compression costs more than it saves
SMALL = 4000
MEASURE = (
    "measure models/tiny/tiny-neox-25k/step1953 --tokenizer models/tiny/tokenizer --name tiny-neox-25k "
    "--family tiny-neox --tokens 7999488 --lr-phase constant --recipes rtn-w3,gptq-w3,gptq-w4 -o mine.nc"
)
# name -> what is typed, the last of which leaves posterior.nc
COMMANDS = {
    "atlas": ("sample atlas",),
    "atlas-and-ladder": ("sample atlas tiny",),
    "own-model": (MEASURE, "sample atlas mine.nc"),
}


def sampled(commands: tuple[str, ...]) -> xr.DataTree:
    """The posterior that these commands leave; they run in a folder of their own that knows models/ and data/."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models").symlink_to(HERE.parent / "models")
        for command in commands:
            print("bayesqid", command, file=sys.stderr)
            subprocess.run([Path(sys.executable).with_name("bayesqid"), *command.split()], cwd=folder, check=True)
        return files.open_tree(folder / "posterior.nc")


def rounded(data: xr.Dataset, bits: int) -> xr.Dataset:
    """Single-precision numbers with so many significant bits, the others zero, which compresses."""

    def cut(values: xr.DataArray) -> xr.DataArray:
        if values.dtype != np.float32:
            return values
        part, power = np.frexp(values.to_numpy())
        return values.copy(data=np.ldexp(np.round(part * 2.0**bits) / 2.0**bits, power).astype(np.float32))

    return data.map(cut, keep_attrs=True)


def small(tree: xr.DataTree, draws: int) -> xr.DataTree:
    """So many draws, and of the prior what answers and reports read."""
    out = thinned(tree, draws)
    prior = out["prior"].to_dataset()
    # what the variables named like the terms hold stands in theta
    terms = [str(name) for name in prior["term"].values if name in prior]
    out["prior"] = prior.drop_dims(LEVELS & set(prior.dims)).drop_vars(terms)
    return out


def packed(tree: xr.DataTree) -> xr.DataTree:
    """The same posterior in less space."""
    groups = {name: rounded(tree[name].to_dataset(), SIGNIFICANT_BITS) for name in tree.children}
    predictive = tree["posterior_predictive"].to_dataset()
    every = max(1, predictive.sizes["draw"] // PREDICTIVE_DRAWS)
    groups["posterior_predictive"] = rounded(predictive.isel(draw=slice(None, None, every)), PREDICTIVE_BITS)
    out = xr.DataTree.from_dict(groups)
    out.attrs = dict(tree.attrs)
    return out


def encoding(data: xr.Dataset) -> dict:
    """How each variable is stored: numbers compressed, text as characters, which compress too."""
    found = {}
    for name, values in data.variables.items():
        if values.dtype.kind in "OU":
            found[name] = {"dtype": "S1", "zlib": True, "complevel": 9}
        elif values.nbytes > SMALL:
            found[name] = {"zlib": True, "complevel": 9, "shuffle": True}
    return found


def write_packed(tree: xr.DataTree, path: Path) -> None:
    stored = {f"/{name}": encoding(tree[name].to_dataset()) for name in tree.children}
    files.write_aside(path, lambda aside: tree.to_netcdf(aside, engine="h5netcdf", encoding=stored))


def main() -> None:
    for name in sys.argv[1:] or COMMANDS:
        tree = sampled(COMMANDS[name])
        if not all(json.loads(tree.attrs["checks"]).values()):
            sys.exit(f"The checks failed: the posterior of {name} is left as it was.")
        if name == "atlas":
            files.write_netcdf(small(tree, DRAWS), HERE / "posterior.nc")
        else:
            write_packed(packed(small(tree, EXAMPLE_DRAWS)), HERE / "posteriors" / f"{name}.nc")


if __name__ == "__main__":
    main()
