"""Importers: other people's results to cells."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from bayesqid.errors import BadInput

if TYPE_CHECKING:
    import xarray as xr

    from bayesqid.importers.formats import Given


class Importer(NamedTuple):
    """The module here that has `recognises(path)` and `read(paths, given)`, and what it reads, in words."""

    module: str
    sentence: str


# name after --from -> importer, in the order in which they are asked whether a path is theirs
IMPORTERS = {
    "lm-eval": Importer("lm_eval", "a folder of lm-evaluation-harness results (results_*.json, samples_*.jsonl)"),
    "gptq": Importer("gptq", "a quantize_config.json, or the folder that has it, with --ppl"),
    "measured": Importer("measured", "measurements or cells that bayesqid wrote (.nc)"),
    "table": Importer("mapped", "a CSV or Parquet table, with --mapping where its columns have other names"),
    "llama.cpp": Importer("llama_cpp", "the log of a llama-perplexity run, best with --kl-divergence"),
}


def module(name: str) -> ModuleType:
    """The importer of a name; `BadInput` lists the known ones."""
    if name not in IMPORTERS:
        raise BadInput(f"There is no importer {name!r}: known are {', '.join(IMPORTERS)}.")
    return import_module(f"bayesqid.importers.{IMPORTERS[name].module}")


def recognise(path: str | Path) -> str:
    """Name of the first importer that knows a file or folder by its content, `BadInput` when none does."""
    path = Path(path)
    if not path.exists():
        raise BadInput(f"There is no file or folder {path}: name an existing one.")
    for name in IMPORTERS:
        if module(name).recognises(path):
            return name
    known = "; ".join(f"{name}: {one.sentence}" for name, one in IMPORTERS.items())
    raise BadInput(f"{path} is none of the results that can be imported ({known}): say which with --from.")


def read(paths: list[Path], given: "Given", name: str | None = None) -> "tuple[xr.Dataset, list[str]]":
    """Cells of the results in `paths`, all of one importer (recognised, or `name`), and what should be said of them.

    `given` holds what the files do not say. `BadInput` when the results cannot be used, or a fact is missing.
    """
    from bayesqid.importers import formats

    if name is None:
        names = {recognise(path) for path in paths}
        if len(names) > 1:
            raise BadInput(f"The paths are of several kinds ({', '.join(sorted(names))}): import one kind at a time.")
        (name,) = names
    found = module(name).read([Path(path) for path in paths], given)
    return formats.to_cells(found, name), found.notes
