"""The report as a list of sections, and its files: one HTML page, the same as Markdown, figures and their data."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import jinja2
import xarray as xr

from bayesqid import files
from bayesqid.answers import choose, curves, identification, project, tokens, wording
from bayesqid.answers.draws import Posterior
from bayesqid.errors import BadInput
from bayesqid.report import (
    answers,
    asked,
    association,
    bars,
    blocks,
    calibration,
    checklist,
    embed,
    fan,
    fits,
    forest,
    levels,
    records,
    standing,
    tables,
    words,
)  # fmt: skip
from bayesqid.report.asked import panels
from bayesqid.report.blocks import Code, Figure, Items, Section, Table, Text


def write(posterior: Posterior, projection: xr.Dataset, directory: Path) -> Path:
    """Write the report into a directory, index.html last; other files there stay."""
    content = embed.attached(sections(posterior, projection))
    return save(heading(posterior, projection) | {"sections": content}, directory)


def save(head: dict, directory: Path) -> Path:
    """Write a page of this heading and its `sections`, with their twins; `BadInput` if the folder cannot be made."""
    content = head["sections"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in twins(content):
            files.write_text(directory / "data" / name, text)
        for figure in (block for section in content for block in section.blocks if isinstance(block, Figure)):
            for kind, picture in (("svg", figure.svg), ("png", figure.png)):
                files.write_aside(directory / "figures" / f"{figure.name}.{kind}", _writer(picture))
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
    parameters, printed = tables.parameters(posterior), tables.published(posterior)
    counts = sorted({float(value) for value in projection["tokens"].values})
    # the ends of the data are points of the curves, so that the bands change there and not a step beyond
    grid = curves.grid(posterior, [*counts, *curves.tokens_range(posterior, None)])
    excluded = records.excluded(posterior)
    left_out = sum(row["rows"] for row in excluded.rows)
    *scaled, power = standing.priors(posterior)
    return (
        Section("answer", "Answer", (
            tables.answer(projection), answers.budgets(*asked.at_counts(posterior, projection)))),
        Section("thresholds", "Tokens to a threshold", _thresholds(posterior, projection)),
        Section("choosing", "Choosing bits", _choice(posterior, projection)),
        Section("curves", "QiD against training tokens",
                (fan.fan(posterior, panels(projection), grid, counts, projection.attrs["band"]),)),
        Section("parameters", "Parameters",
                (forest.forest(posterior, parameters.rows, printed.rows), parameters, printed)),
        Section("levels", "Training levels of fitted models", _levels(posterior)),
        Section("variance", "Where the uncertainty comes from",
                (bars.variance(bars.variance_rows(project.rows(projection))),)),
        Section("identification", "What the data say of the tokens exponent", _identification(posterior, scaled)),
        Section("calibration", "Calibration", _calibration(posterior)),
        Section("predictive", "Posterior predictive check", _predictive(posterior)),
        Section("sensitivity", "Sensitivity to the priors", (power,)),
        Section("checks", "Checks and sampler", (records.checks(posterior), Items(tuple(words.settings(posterior))))),
        Section("data", "Data: sources and what was left out", (
            Text((f"{posterior.cells.sizes['cell']:,} cells were fitted; {left_out:,} rows were left out before."
                  if left_out else f"{posterior.cells.sizes['cell']:,} cells were fitted; no row was left out.",)),
            *([excluded] if left_out else []), Items(tuple(words.sources(posterior))), records.sources(posterior))),
        Section("priors", "Priors, covariates and effects", (
            Text(("Every range in these sentences is the central (equal-tailed) one of the prior, with its mass.",)),
            Items(tuple(words.priors(posterior))), tables.effects(posterior))),
        Section("checklist", "Reporting checklist", (checklist.table(posterior),)),
        Section("reproduce", "How to reproduce", (
            *([Code(lines)] if (lines := words.commands(posterior, projection)) else []),
            Items((words.versions(posterior), f"SHA-256 of the posterior: {posterior.sha256}.")))),
    )  # fmt: skip


NO_TOKENS = Text(("The law as fitted has no term of tokens: nothing can be said here.",))


def _thresholds(posterior: Posterior, projection: xr.Dataset) -> tuple:
    if "beta" not in posterior.law.term_names:
        return (NO_TOKENS,)
    family, band = asked.family(projection), projection.attrs["band"]
    found = tokens.tokens(posterior, family=family, band=band)
    table = answers.thresholds(found)
    limits, fitted = json.loads(found.attrs["limits"]), curves.tokens_range(posterior, family)
    return bars.thresholds(table.rows, fitted, limits, family or "a new family"), table


def _choice(posterior: Posterior, projection: xr.Dataset) -> tuple:
    family = asked.family(projection)
    found = choose.choose(posterior, params=asked.CHOSEN_PARAMS, tokens=asked.CHOSEN_TOKENS, family=family)
    told = choose.as_json(found)
    table = answers.choice(told)
    return Text((answers.choice_words(told),)), bars.choice(table.rows, told), table


def _levels(posterior: Posterior) -> tuple:
    if "beta" not in posterior.law.term_names:
        return (NO_TOKENS,)
    found = levels.levels(posterior)
    if not found:
        return (Text(("No checkpoint of disclosed tokens has a measured cell that did not diverge.",)),)
    table = levels.table(found)
    return Text((levels.sentence(table.rows),)), levels.figure(found), table


def _identification(posterior: Posterior, scaled: list[Table]) -> tuple:
    found = identification.families(posterior)
    related = association.rows(posterior)
    said = [*identification.sentences(posterior, found), *association.together(posterior),
            *association.tokens_or_decay(posterior)]  # fmt: skip
    return (
        Text(tuple(said)), *([tables.identified(found)] if found else []),
        *([association.table(related)] if related else [Text((association.YEARS,))]), *scaled,
    )  # fmt: skip


def _calibration(posterior: Posterior) -> tuple:
    groups = calibration.groups(posterior)
    curves_ = {name: calibration.ecdf(values) for name, values in calibration.transforms(posterior).items()
               if values.size > 1}  # fmt: skip
    return (
        Text(tuple(words.calibration(posterior))), *([fits.coverage(groups)] if groups else []),
        *([fits.transforms(curves_)] if curves_ else []), *standing.diagnosis(posterior),
    )  # fmt: skip


def _predictive(posterior: Posterior) -> tuple:
    rows = calibration.predictive(posterior)
    covered = calibration.coverage(rows)
    seen = any(not row["diverged"] for row in rows)
    return (Text(tuple(words.coverage(covered.rows, rows))), *([fits.predictive(rows), covered] if seen else []))


def twins(content: tuple[Section, ...]) -> Iterator[tuple[str, str]]:
    """(file name, text) of the CSV and the JSON of every table and figure."""
    for block in (block for section in content for block in section.blocks):
        if isinstance(block, (Table, Figure)):
            yield f"{block.name}.csv", blocks.as_csv(block.rows)
            yield f"{block.name}.json", blocks.as_json(block.title, block.rows)
        if isinstance(block, Figure) and block.points:
            yield f"{block.name}-points.csv", blocks.as_csv(block.points)
            yield f"{block.name}-points.json", blocks.as_json(f"{block.title}: points", block.points)


def _environment(escape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bayesqid.report", "."), autoescape=escape, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["data_uri"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
    environment.filters["as_data"] = embed.as_data
    environment.filters["cell"] = lambda text: text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return environment


def html(head: dict) -> str:
    """The self-contained page."""
    return _environment(True).get_template("template.html").render(head, **embed.scripts(head["sections"]))


def markdown(head: dict) -> str:
    """The same content as Markdown."""
    return _environment(False).get_template("template.md").render(head)
