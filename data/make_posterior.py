"""Make data/posterior.nc, the posterior that answers without a file: the atlas under the default law, thinned.

python data/make_posterior.py     about two minutes on two cores
"""

import json
import shlex
import sys
from pathlib import Path

from bayesqid import cells, files, laws
from bayesqid.importers import sources
from bayesqid.inference import sample
from bayesqid.inference.posterior import thinned

DRAWS = 800


def main() -> None:
    data = cells.join([sources.read_cells("atlas")])
    tree = sample.sample(data, laws.get("boxcox"))
    tree.attrs["command"] = shlex.join(["bayesqid", "sample", "atlas"])
    print("\n".join(sample.summary(tree)))
    if not all(json.loads(tree.attrs["checks"]).values()):
        sys.exit("The checks failed: data/posterior.nc is left as it was.")
    files.write_netcdf(thinned(tree, DRAWS), Path(__file__).with_name("posterior.nc"))


if __name__ == "__main__":
    main()
