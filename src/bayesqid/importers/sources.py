"""What a person names on the command line, turned into cells: bundled names, measurement files, tables."""

from collections.abc import Collection
from pathlib import Path

import xarray as xr

from bayesqid import bundled, cells, files, measurements
from bayesqid.errors import BadInput
from bayesqid.importers import mixed

# bundled name -> file in data/
BUNDLED = {
    "atlas": "published_qid.csv", "tiny": "tiny.nc", "landscape": "landscape.nc",
    # other checkpoints than tiny's, so the two may be joined
    "ladder": "ladder.nc",
    # shares of the weights quantized: published points, and measured on some of tiny's checkpoints
    "mixed": "mixed_published.csv", "mixed-tiny": "mixed.nc",
}  # fmt: skip


def read_cells(name: str, extras: Collection[str] = ()) -> xr.Dataset:
    """Cells of a bundled name, a measurement file or a file of cells (.nc), or a table (.csv).

    Of `extras` (`bayesqid.laws.EXTRAS`) two choose what is read: `latent-tokens` keeps rows of undisclosed tokens,
    `unique-tokens` counts a token once however often it was trained on, where the table says so.
    """
    path = bundled.data_dir() / BUNDLED[name] if name in BUNDLED else Path(name)
    if not path.is_file():
        known = ", ".join(BUNDLED)
        raise BadInput(f"There is no data {name!r}: give a measurement file, a CSV table, or a bundled name ({known}).")
    source = {"name": name, "sha256": files.sha256_file(path)}
    if path.suffix == ".csv":
        return mixed.read(path, source, extras)
    data = files.open_dataset(path)
    if files.schema_of(data) == cells.SCHEMA:
        return cells.from_file(data, source)
    return cells.from_measurements(measurements.read(path), source)
