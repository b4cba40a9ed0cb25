"""bayesqid: measure quantization-induced degradation, infer its scaling law, project it with honest intervals."""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayesqid.api import (
        choose,
        compare,
        drivers,
        fraction,
        level,
        next_measurements,
        open_posterior,
        project,
        replicate,
        sample,
        score,
        simulate,
        tokens,
    )

__version__ = version("bayesqid")
__all__ = [
    "choose", "compare", "drivers", "fraction", "level", "next_measurements", "open_posterior", "project", "replicate",
    "sample", "score", "simulate", "tokens",
]  # fmt: skip


def __getattr__(name: str):  # the command line starts without what the functions import
    if name in __all__:
        from bayesqid import api

        return getattr(api, name)
    raise AttributeError(f"module 'bayesqid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
