"""The report as a list of sections, and its files: one HTML page, the same as Markdown, figures and their data."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import jinja2
import xarray as xr

from bayesqid import files
from bayesqid.answers import curves, identification, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput
from bayesqid.report import blocks, figures, records, standing, tables, words
from bayesqid.report.blocks import Code, Figure, Items, Section, Table, Text

PANELS_SIZES = (7e9, 70e9)
PANELS_BITS = 3


def write(posterior: Posterior, projection: xr.Dataset, directory: Path) -> Path:
    """Write the report into a directory, index.html last; other files there stay."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        content = sections(posterior, projection)
        for name, text in twins(content):
            files.write_text(directory / "data" / name, text)
        for figure in (block for section in content for block in section.blocks if isinstance(block, Figure)):
            for kind, picture in (("svg", figure.svg), ("png", figure.png)):
                files.write_aside(directory / "figures" / f"{figure.name}.{kind}", _writer(picture))
        head = heading(posterior, projection) | {"sections": content}
        files.write_text(directory / "report.md", markdown(head))
        return files.write_text(directory / "index.html", html(head))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadInput(f"The report cannot be written to {directory} ({reason}): name another folder.") from error


def heading(posterior: Posterior, projection: xr.Dataset) -> dict:
    """What stands above the sections: alerts, verdict, title and summary."""
    return {
        "title": f"QiD projection, law {projection.attrs['law']}",
        "verdict": projection.attrs["verdict"],
        "verdict_sentence": words.sentence(wording.VERDICTS[projection.attrs["verdict"]]),
        "alerts": words.alerts(posterior, projection),
        "summary": words.summary(posterior, projection),
    }


def _writer(content: bytes):
    return lambda aside: aside.write_bytes(content)


def sections(posterior: Posterior, projection: xr.Dataset) -> tuple[Section, ...]:
    """Everything below the verdict, in the order in which it is read."""
    parameters = tables.parameters(posterior)
    printed = tables.published(posterior)
    identified = identification.families(posterior)
    predicted = tables.predictive(posterior)
    covered = tables.coverage(predicted)
    asked = sorted({float(value) for value in projection["tokens"].values})
    targets = panels(projection)
    grid = curves.grid(posterior, asked)
    excluded = records.excluded(posterior)
    left_out = sum(row["rows"] for row in excluded.rows)
    return (
        Section("answer", "Answer", (tables.answer(projection),)),
        Section("curves", "QiD against training tokens",
                (figures.fan(posterior, targets, grid, asked, projection.attrs["band"]),)),
        Section("parameters", "Parameters",
                (figures.forest(posterior, parameters.rows, printed.rows), parameters, printed)),
        Section("identification", "What the data say of the tokens exponent",
                (Text(tuple(identification.sentences(posterior, identified))), tables.identified(identified))),
        Section("predictive", "Posterior predictive check",
                (Text(tuple(words.coverage(covered.rows, predicted))), *_predictive(predicted), covered,
                 *standing.diagnosis(posterior))),
        Section("sensitivity", "Sensitivity to the priors", standing.priors(posterior)),
        Section("checks", "Checks and sampler", (records.checks(posterior), Items(tuple(words.settings(posterior))))),
        Section("data", "Data: sources and what was left out", (
            Text((f"{posterior.cells.sizes['cell']:,} cells were fitted; {left_out:,} rows were left out before."
                  if left_out else f"{posterior.cells.sizes['cell']:,} cells were fitted; no row was left out.",)),
            *([excluded] if left_out else []), Items(tuple(words.sources(posterior))), records.sources(posterior))),
        Section("priors", "Priors, covariates and effects", (
            Text(("Every range in these sentences is the central (equal-tailed) one of the prior, with its mass.",)),
            Items(tuple(words.priors(posterior))), tables.effects(posterior))),
        Section("reproduce", "How to reproduce", (
            *([Code(lines)] if (lines := words.commands(posterior, projection)) else []),
            Items((words.versions(posterior), f"SHA-256 of the posterior: {posterior.sha256}.")))),
    )  # fmt: skip


def _predictive(predicted: list[dict]) -> tuple[Figure, ...]:
    return (figures.predictive(predicted),) if any(not row["diverged"] for row in predicted) else ()


def panels(projection: xr.Dataset) -> list[Target]:
    """Targets of the fan chart: two sizes, 7B and 70B where asked, and up to three bit widths of the projection.

    All are of the projection's first family; their tokens are those of the first row and stand for none.
    """
    takes = json.loads(projection.attrs["assumptions"])
    text, context = takes["text"].rsplit(", context ", 1)
    family = str(projection["family"].values[0])
    own = projection.isel(target=[i for i, name in enumerate(projection["family"].values) if name == family])
    sizes = sorted({float(n) for n in own["params"].values})
    chosen = [n for n in sizes if n in PANELS_SIZES] or sorted({sizes[0], sizes[-1]})
    widths = {}
    for i in range(own.sizes["target"]):
        widths.setdefault(float(own["bits"][i]), own.isel(target=i))
    return [
        Target(
            family=None if family == "new" else family, params=size, tokens=float(one["tokens"]), bits=bits,
            effective_bits=float(one["effective_bits"]), method=str(one["method"].item()),
            per_channel=bool(one["per_channel"]), lr_phase=takes["lr_phase"], eval_dataset=text, context=float(context),
        )
        for size in chosen for bits, one in sorted(widths.items())[:PANELS_BITS]
    ]  # fmt: skip


def twins(content: tuple[Section, ...]) -> Iterator[tuple[str, str]]:
    """(file name, text) of the CSV and the JSON of every table and figure."""
    for block in (block for section in content for block in section.blocks):
        if isinstance(block, (Table, Figure)):
            yield f"{block.name}.csv", blocks.as_csv(block.rows)
            yield f"{block.name}.json", blocks.as_json(block.title, block.rows)


def _environment(escape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bayesqid.report", "."), autoescape=escape, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["data_uri"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
    environment.filters["cell"] = lambda text: text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return environment


def html(head: dict) -> str:
    """The self-contained page."""
    return _environment(True).get_template("template.html").render(head)


def markdown(head: dict) -> str:
    """The same content as Markdown."""
    return _environment(False).get_template("template.md").render(head)
