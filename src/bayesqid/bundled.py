"""The one place that knows where the data and the suites that ship with bayesqid lie."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _root() -> Path:
    """Folder that holds data/ and models/: inside an installed wheel, else the checkout's root."""
    installed = _PACKAGE / "bundle"
    return installed if installed.is_dir() else _PACKAGE.parents[1]


def data_dir() -> Path:
    """Folder of the atlas, the bundled measurements and the bundled posterior."""
    return _root() / "data"


def models_dir() -> Path:
    """Folder of the suite manifests and of the tiny ladder."""
    return _root() / "models"
