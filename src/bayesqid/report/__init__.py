"""Report: pure functions of answers to HTML, Markdown and figures with their data."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from bayesqid.answers.draws import Posterior


def write(posterior: "Posterior", projection: "xr.Dataset", directory: Path) -> Path:
    """Write index.html, report.md, figures/ and data/ of a posterior and its projection; returns index.html.

    Nothing is sampled, and the same posterior and projection give the same bytes. `BadInput` if the directory
    cannot be made.
    """
    # matplotlib takes most of a second to import: only who asks for a report pays for it
    from bayesqid.report import pages

    return pages.write(posterior, projection, Path(directory))
