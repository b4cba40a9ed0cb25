import csv
import json
import math
import re

import numpy as np
import pytest

import posteriors
from bayesqid import report
from bayesqid.answers import project
from bayesqid.report import blocks, calibration, fan, pages, records, tables, words
from reportpage import Page, both, projected

FIGURES = ("thresholds", "choice", "fan", "forest", "levels", "variance", "pit", "predictive")


@pytest.fixture(scope="module")
def posterior():
    return posteriors.posterior()


@pytest.fixture(scope="module")
def folder(posterior, tmp_path_factory):
    found = tmp_path_factory.mktemp("report")
    assert report.write(posterior, projected(posterior), found) == found / "index.html"
    return found


def test_the_page_is_well_formed_self_contained_and_small(folder):
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert len(page.images) == len(FIGURES)
    for image in page.images:
        assert len(image["alt"]) > 40
        assert image["src"].startswith("data:image/svg+xml;base64,")
    for link in page.links:
        assert link.startswith(("data:image/svg+xml", "#", "data/", "figures/"))
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("data:"):
            assert (folder / link).is_file()
    assert (folder / "index.html").stat().st_size < 3_000_000


def test_text_from_files_is_escaped(folder):
    assert "&lt;made | up&gt; &amp; known" in (folder / "index.html").read_text(encoding="utf-8")
    assert "<made \\| up> & known" in (folder / "report.md").read_text(encoding="utf-8")


def test_the_same_posterior_gives_the_same_bytes(posterior, folder, tmp_path):
    report.write(posterior, projected(posterior), tmp_path)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) > 25
    for path in files:
        assert (folder / path).read_bytes() == (tmp_path / path).read_bytes(), path


def test_csv_and_json_of_every_table_and_figure_hold_the_same_numbers(folder):
    names = sorted(path.stem for path in (folder / "data").glob("*.json"))
    assert set(FIGURES) < set(names)
    assert names == sorted(path.stem for path in (folder / "data").glob("*.csv"))

    def from_csv(text, like):
        if text == "":
            return None if like is None else ""
        if isinstance(like, bool):
            return {"true": True, "false": False}[text]
        return type(like)(text)

    for name in names:
        rows = json.loads((folder / "data" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        with open(folder / "data" / f"{name}.csv", encoding="utf-8", newline="") as stream:
            flat = list(csv.DictReader(stream))
        assert len(rows) > 0
        assert len(rows) == len(flat)
        for row, line in zip(rows, flat, strict=True):
            assert list(row) == list(line)
            assert {key: from_csv(line[key], value) for key, value in row.items()} == row


def test_every_figure_is_there_as_svg_and_png(folder):
    for name in FIGURES:
        assert (folder / "figures" / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_answer_holds_the_numbers_of_the_projection(posterior, folder):
    expected = project.rows(projected(posterior))
    rows = json.loads((folder / "data" / "answer.json").read_text(encoding="utf-8"))["rows"]
    for row, wanted in zip(rows, expected, strict=True):
        shares = {f"share_{name}": value for name, value in wanted.pop("shares").items()}
        wanted = wanted | wanted.pop("extrapolation") | shares
        assert {key: row[key] for key in wanted} == wanted
    shown = tables.answer(projected(posterior))
    labels = [column.label for column in shown.columns]
    for cells, wanted in zip(shown.cells, expected, strict=True):
        row = dict(zip(labels, cells, strict=True))
        if wanted["p_saturated"] <= 0.5:
            assert float(row["median QiD"]) == pytest.approx(wanted["median"], rel=0.005)
            assert [float(x) for x in row["90 % ETI"].split(" to ")] == pytest.approx(
                [wanted["lower90"], wanted["upper90"]], rel=0.005)  # fmt: skip
    page = Page((folder / "index.html").read_text(encoding="utf-8")).text
    for cells in shown.cells:
        assert " ".join(cells) in page


def test_the_fan_goes_through_what_was_projected(posterior, folder):
    rows = json.loads((folder / "data" / "fan.json").read_text(encoding="utf-8"))["rows"]
    at = [row for row in rows if row["tokens"] == 1e14]
    assert {(row["params"], row["bits"]) for row in at} == {(n, b) for n in (7e9, 70e9) for b in (2.0, 3.0, 4.0)}
    expected = {(row["params"], row["bits"]): row for row in project.rows(projected(posterior))}
    for row in at:
        # other random numbers than the table's, which has more targets: the same within Monte Carlo error
        assert row["median"] == pytest.approx(expected[row["params"], row["bits"]]["median"], rel=0.25)


@pytest.mark.parametrize(
    ("wanted", "options", "true"),
    [
        ({}, {"tokens": 1e13, "params": 7e9, "bits": 3.5}, set()),
        ({}, {"tokens": 1e15, "params": 7e9, "bits": 3.5}, {"extrapolation"}),
        ({"beta_sd": 0.25}, {"tokens": 1e13, "params": 7e9, "bits": 3.5}, {"not identified"}),
        ({"beta_sd": 0.25}, {"tokens": 1e15, "params": 7e9, "bits": 3.5}, {"not identified", "extrapolation"}),
        ({"checks": {"rhat": False}}, {"tokens": 1e13, "params": 7e9, "bits": 3.5}, {"checks failed"}),
        ({"checks": {"rhat": False}, "beta_sd": 0.25}, {"tokens": 1e15, "params": 7e9, "bits": 3.5},
         {"checks failed", "not identified", "extrapolation"}),
        ({"log_k": 5.0}, {"tokens": 1e13, "params": 7e9, "bits": 2.5}, {"loss destroyed"}),
    ],
)  # fmt: skip
def test_limits_are_named_when_and_only_when_they_hold(wanted, options, true):
    for text in both(posteriors.posterior(**wanted), **options):
        said = {phrase for phrase in ("checks failed", "not identified", "extrapolation", "loss destroyed")
                if phrase in text.casefold()}  # fmt: skip
        assert said == true


def test_the_whole_page_claims_no_limit_that_does_not_hold(folder):
    text = Page((folder / "index.html").read_text(encoding="utf-8")).text.casefold()
    assert "extrapolation" in text
    assert "checks failed" not in text
    assert "not identified" not in text
    rows = [row for name in ("answer", "fan")
            for row in json.loads((folder / "data" / f"{name}.json").read_text(encoding="utf-8"))["rows"]]  # fmt: skip
    assert ("loss destroyed" in text) == any(row["p_saturated"] > 0.5 for row in rows)


def test_a_failed_check_is_the_first_line():
    posterior = posteriors.posterior(checks={"rhat": False, "ess_bulk": False})
    text, markdown = both(posterior)
    # the page's title stands in its head
    assert text.startswith("QiD projection, law boxcox Checks failed: rhat, ess_bulk.")
    assert markdown.lstrip().startswith("**Checks failed: rhat, ess_bulk.**")
    table = {row["check"]: row for row in records.checks(posterior).rows}
    assert table["rhat"] == {**table["rhat"], "passed": False, "value": 1.003, "limit": 1.01}


def test_a_destroyed_loss_is_words_and_not_a_number():
    posterior = posteriors.posterior(log_k=5.0)
    table = tables.answer(projected(posterior, tokens=1e13, params=7e9, bits=2.5))
    labels = [column.label for column in table.columns]
    row = dict(zip(labels, table.cells[0], strict=True))
    assert row["median QiD"] == "loss destroyed"
    assert row["90 % ETI"] == "–"
    assert table.rows[0]["p_saturated"] > 0.5


def test_no_interval_stands_without_kind_and_mass(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("|") or not re.search(r"\d to −?\d", line) or "interval" not in line:
            continue
        assert re.search(r"\d\d % equal-tailed interval", line), line
    for table in (tables.answer, calibration.coverage):
        assert table.__doc__
    for line in text.splitlines():
        if line.startswith("| ") and "ETI" in line:
            assert all(re.search(r"\b(50|90) % ETI", cell) for cell in line.split("|") if "ETI" in cell)


def test_a_contraction_below_a_fifth_reads_prior():
    posterior = posteriors.posterior(beta_sd=0.25)
    rows = tables.parameters(posterior).rows
    shown = tables.parameters(posterior).cells
    found = {(row["term"], row["family"] or row["scope"]): (row, cells[-1])
             for row, cells in zip(rows, shown, strict=True)}  # fmt: skip
    assert found["beta", "population mean"][1] == "prior"
    assert found["alpha", "population mean"][1] != "prior"
    for row, last in found.values():
        assert (last == "prior") == (row["contraction"] < 0.2)


def test_coverage_is_counted_as_by_hand(posterior):
    rows = calibration.predictive(posterior)
    table = calibration.coverage(rows)
    own = [row for row in rows if row["family"] == "crossed" and row["bits"] == 2 and not row["diverged"]]
    inside = sum(row["lower90"] <= row["qid"] <= row["upper90"] for row in own) / len(own)
    found = next(r for r in table.rows if (r["group"], r["family"], r["bits"]) == ("family and bits", "crossed", 2))
    assert found["cells"] == len(own)
    assert found["coverage90"] == inside
    drawn = posterior.tree["posterior_predictive"]["qid"].values[0]
    assert rows[0]["pit"] == (drawn[:, 0] <= rows[0]["qid"]).mean()


def test_a_changed_prior_is_spelt_from_its_numbers(posterior):
    assert "tokens multiply QiD by a factor between 0.98 and 6.5 (90 %)." in " ".join(words.priors(posterior))
    changed = posteriors.tree()
    inforce = json.loads(changed.attrs["priors"])
    inforce["beta"] = {"mean": 0.5, "sd": 0.1, "spread": 0.15}
    changed.attrs["priors"] = json.dumps(inforce)
    other = words.priors(posterior.__class__(changed, posterior.sample, "p.nc", "0", "file"))
    line = next(line for line in other if line.startswith("beta:"))
    assert "between 0.336 and 0.664 (90 %; normal)" in line
    assert "0.98 and 6.5" not in line


def test_the_exclusions_and_the_sources_are_told(posterior):
    assert records.excluded(posterior).cells == [["instruction-tuned model", "3", "crossed 3"]]
    assert records.sources(posterior).rows[0]["cells"] == posterior.cells.sizes["cell"]


def test_commands_are_those_that_make_the_page_again(posterior):
    usual = words.commands(posterior, projected(posterior, tokens=2e13))
    assert usual == ("bayesqid report posterior.nc --tokens 2e13 -o report",)
    # a question that the command line of `report` cannot ask is not passed off as one
    assert words.commands(posterior, projected(posterior, params=3e9)) == ()


def test_one_family_one_target_and_nothing_left_out_make_a_report(tmp_path):
    data = posteriors.cells({"fixed": posteriors.FAMILIES["fixed"]})
    data.attrs["excluded"] = "{}"
    made = posteriors.posterior(data=data, warning="The data hold one family (fixed): fitted as pooled.")
    made.tree.attrs["model"] = "pooled"
    for group in ("posterior", "prior"):
        made.tree[group]["sd"][:] = 0.0
    made.sample["sd"][:] = 0.0
    page = report.write(made, projected(made, tokens=1e13, params=7e9, bits=3, family="fixed"), tmp_path)
    text = Page(page.read_text(encoding="utf-8")).text
    assert "fitted as pooled" in text
    assert "no row was left out" in text
    assert "spread between families" not in text.split("What the data say", 1)[0].split("Parameters", 1)[1]


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence(posterior, tmp_path):
    from bayesqid.errors import BadInput

    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="name another folder"):
        report.write(posterior, projected(posterior), tmp_path / "file")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0099999, "0.0100"), (1234.6, "1230"), (-0.5, "−0.500"), (0.0, "0"), (None, "–"), (math.nan, "–"),
     (2.5e-6, "2.50e-06")],
)  # fmt: skip
def test_numbers_are_shown_to_three_digits(value, text):
    assert blocks.number(value) == text


def test_a_share_close_to_none_or_all_is_not_rounded_to_it():
    assert [blocks.share(x) for x in (0, 0.001, 0.5, 0.999, 1)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]


def test_a_chance_from_draws_is_never_certain():
    assert [blocks.chance(x) for x in (0, 0.001, 0.5, 0.999, 1)] == ["<1 %", "<1 %", "50 %", ">99 %", ">99 %"]


def test_points_are_spoken_of_only_where_cells_are_near(posterior):
    far = projected(posterior, tokens=1e12, params=4e11, bits=3)
    near = projected(posterior, tokens=1e12, params=7e9, bits=3)
    captions = []
    for projection in (far, near):
        targets = pages.panels(projection)
        captions.append(fan.fan(posterior, targets, np.geomspace(1e11, 1e13, 3), [1e12], "new").caption)
    assert "No fitted cell lies" in captions[0]
    assert "Points:" not in captions[0]
    assert "Points: fitted cells" in captions[1]
