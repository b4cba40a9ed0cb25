"""Reading and writing artefacts so that a crash never leaves half a file."""

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from bayesqid.errors import BadInput

if TYPE_CHECKING:
    import xarray as xr


def sha256_bytes(content: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def writable(path: str | Path) -> Path:
    """The same path if a file can be made there, else `BadInput`: better said before the work than after it."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path} is a folder: name a file in it to write to.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise BadInput(f"{path} cannot be written, because {folder} is no folder to write in: name another place.")
    return path


def write_aside(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, flush it to disk, then rename it over `path`.

    The rename is atomic on one file system, so a reader sees the old file or the whole new one. `BadInput` where no
    file can be made.
    """
    path = writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        with open(aside, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write text as UTF-8, all or nothing."""
    return write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_netcdf(data: "xr.Dataset | xr.DataTree", path: str | Path) -> Path:
    """Write a Dataset or DataTree as netCDF-4, all or nothing.

    Stale encodings are dropped first: xarray lets an encoding read from another file overrule new values.
    """
    data = data.drop_encoding() if hasattr(data, "drop_encoding") else data
    return write_aside(path, lambda aside: data.to_netcdf(aside, engine="h5netcdf"))


def _open(path: str | Path, opener: Callable, kind: str):
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no {kind} file {path}: name an existing one.")
    try:
        return opener(path)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path} cannot be read as a netCDF {kind} file ({reason}): make it again.") from error


def open_dataset(path: str | Path) -> "xr.Dataset":
    """Read a netCDF Dataset into memory; `BadInput` when it is missing or corrupt."""
    import xarray as xr

    return _open(path, lambda found: xr.open_dataset(found, engine="h5netcdf").load(), "dataset")


def open_tree(path: str | Path, leave: Collection[str] = ()) -> "xr.DataTree":
    """Read a netCDF DataTree into memory, but for some groups; `BadInput` when it is missing or corrupt."""
    from bayesqid import netcdf

    return _open(path, lambda found: netcdf.open_tree(found, leave), "posterior")
