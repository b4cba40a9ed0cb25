"""Reading and writing artefacts so that a crash never leaves half a file."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesqid.errors import BadInput

if TYPE_CHECKING:
    import xarray as xr

# Bytes a file may have that is read in one piece; more is another kind of file, or an attack on the memory
MOST_TOML = 2**18
MOST_JSON = 2**26
MOST_TABLE = 2**28
MOST_TEXT = 2**30
# Parts of a dotted key of TOML: tomllib needs time and memory with their square, 25 seconds at 30,000
MOST_PARTS = 32

# strings and comments of TOML, what stands between keys, and the dots in them
_TOML = re.compile(
    r'''"""(?:[^"\\]|\\.|"(?!""))*"""|\'{3}.*?\'{3}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|([=\n,\[\]{}])|(\.)''',
    re.DOTALL,
)
# what a terminal obeys instead of printing, with the marks that turn the direction of writing; not tab and line feed
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# JSON can name halves of characters, which no file and no terminal takes
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def printable(text: str) -> str:
    """The text with control characters, which names in files may hold to fool a terminal, as replacement characters."""
    return _CONTROL.sub("\ufffd", text)


def sized(path: str | Path, most: int, what: str = "file") -> Path:
    """The path of a regular file of at most `most` bytes; else `BadInput` with `what` it is."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no {what} {path}: name an existing one.")
    if path.stat().st_size > most:
        raise BadInput(f"{path} has more than {most / 2**20:g} MiB, too much for such a {what}: name another.")
    return path


def read_text(path: str | Path, most: int = MOST_TEXT, what: str = "file") -> str:
    """A file of at most `most` bytes as UTF-8, any line ends read as line feeds; else `BadInput` with `what` it is."""
    path = sized(path, most, what)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): name another {what}.") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None


def toml_of(text: str, where: str) -> dict[str, Any]:
    """What a text of TOML says; `BadInput` with `where` it stands when it is none, or too deep."""
    import tomllib  # most questions name no such file

    parts = 0
    for ends, dot in _TOML.findall(text):
        parts = 0 if ends else parts + bool(dot)
        if parts >= MOST_PARTS:
            raise BadInput(f"{where} is not valid TOML here: a key has more than {MOST_PARTS} parts.")
    try:
        return tomllib.loads(text)
    # an endless number is a ValueError only
    except (ValueError, RecursionError) as fault:
        raise BadInput(f"{where} is not valid TOML: {_first(fault)}.") from None


def json_of(text: str, where: str) -> Any:
    """What a text of JSON says; `BadInput` with `where` it stands when it is none, too deep or no text of Unicode."""
    try:
        found = json.loads(text)
        if _HALF.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as fault:
        raise BadInput(f"{where} cannot be read as JSON ({_first(fault)}): restore it.") from None
    return found


def read_toml(path: str | Path, what: str = "TOML file") -> dict[str, Any]:
    """A TOML file as a dict; `BadInput` when it is missing, too large, too deep or no TOML."""
    return toml_of(read_text(path, MOST_TOML, what), str(path))


def read_json(path: str | Path, what: str = "JSON file") -> Any:
    """What a JSON file holds; `BadInput` when it is missing, too large, too deep or no JSON."""
    return json_of(read_text(path, MOST_JSON, what), str(path))


def _first(fault: Exception) -> str:
    return (printable(str(fault)).strip().splitlines() or [type(fault).__name__])[0][:120]


def schema_of(data: "xr.Dataset | xr.DataTree") -> str | None:
    """The schema that a file says it has, as text whatever it holds."""
    found = data.attrs.get("schema")
    return None if found is None else str(found)


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
    except Exception as error:  # a spoiled file leads h5py and xarray to whatever they raise
        raise BadInput(f"{path} cannot be read as a netCDF {kind} file ({_first(error)}): make it again.") from error


def open_dataset(path: str | Path) -> "xr.Dataset":
    """Read a netCDF Dataset into memory; `BadInput` when it is missing, corrupt or asks for what `netcdf` refuses."""
    from bayesqid import netcdf

    return _open(path, netcdf.open_dataset, "dataset")


def open_tree(path: str | Path, leave: Collection[str] = ()) -> "xr.DataTree":
    """Read a netCDF DataTree into memory, but for some groups; `BadInput` as for `open_dataset`."""
    from bayesqid import netcdf

    return _open(path, lambda found: netcdf.open_tree(found, leave), "posterior")
