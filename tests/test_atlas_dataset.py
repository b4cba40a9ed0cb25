"""The atlas as a dataset: netCDF, schema, datasheet and citation agree; a source is added as the docs say."""

import importlib.util
import json
import math
import re
import runpy
import shutil
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from bayesqid import bundled, files
from bayesqid.errors import BadInput
from bayesqid.importers import check, schema, sources, tables

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
PAGE = ROOT / "docs" / "atlas.md"


def script(folder: Path):
    spec = importlib.util.spec_from_file_location("clean", folder / "clean.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table():
    return tables.read_table(DATA / "published_qid.csv")


@pytest.fixture(scope="module")
def sheet():
    return pd.read_csv(DATA / "sources.csv", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def stored():
    return files.open_dataset(DATA / "atlas.nc")


def test_the_netcdf_file_holds_the_table_and_is_small(stored, table, sheet):
    assert stored.identical(schema.as_dataset(table, sheet))
    assert (DATA / "atlas.nc").stat().st_size < 400_000
    assert stored.sizes["cell"] == 1742
    assert int(stored["default"].sum()) == 1232


def test_plain_readers_find_units_and_every_value_of_the_csv():
    """Opened without this package, against the CSV as text."""
    text = pd.read_csv(DATA / "published_qid.csv", dtype=str, keep_default_na=False)
    with xr.open_dataset(DATA / "atlas.nc") as data:
        assert data["qid"].attrs["units"] == "nat"
        assert data["effective_bits"].attrs["units"] == "bit"
        assert set(data.variables) == set(text.columns)
        for name in text:
            values = data[name].to_numpy()
            assert data[name].attrs["long_name"]
            if values.dtype.kind == "f":
                printed = pd.to_numeric(text[name]).to_numpy(dtype=float)
                assert ((values == printed) | ((values != values) & (printed != printed))).all(), name
            elif values.dtype.kind == "i":
                assert list(values) == [int(value == "True") for value in text[name]], name
            else:
                assert list(values) == list(text[name]), name
        assert {row["source"] for row in json.loads(data.attrs["source_table"])} == set(text["source"])


def test_writing_it_again_gives_the_same_bytes_and_leaves_an_equal_file_alone(tmp_path, stored):
    for name in ("a.nc", "b.nc"):
        stored.drop_encoding().to_netcdf(tmp_path / name, engine="h5netcdf", encoding=schema.encoding())
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()
    module = script(DATA)
    before = (DATA / "atlas.nc").stat().st_mtime_ns
    module.netcdf()
    assert (DATA / "atlas.nc").stat().st_mtime_ns == before


def test_it_is_not_taken_for_cells():
    """It holds rows that must not be fitted: the CSV is what inference reads."""
    with pytest.raises(BadInput, match="bayesqid-atlas/1"):
        sources.read_cells(str(DATA / "atlas.nc"))


def test_the_schema_has_every_column_and_every_value_fits_it():
    header = (DATA / "published_qid.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.split(",") == [column.name for column in schema.COLUMNS]
    raw = (DATA / "raw" / "published_qid.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {column.name for column in schema.COLUMNS if column.given != schema.DERIVED} == set(raw)
    for column in schema.COLUMNS:
        assert column.kind in (schema.TEXT, schema.NUMBER, schema.BOOLEAN)
        assert (column.unit != "") == (column.kind == schema.NUMBER)
        assert column.meaning
    problems = check.check(DATA / "published_qid.csv")
    assert [one for one in problems if " is not a number" in one or " is none of" in one] == []


def test_the_datasheet_has_the_schema_and_the_figures_of_the_code():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    assert schema.markdown() in text
    assert script(DATA).datasheet(text) == text, "run `make atlas`"
    first = text.split("## ")
    assert first[1].startswith("What these data cannot say")


def test_versions_agree_and_are_named_wherever_the_atlas_is_cited(stored):
    assert stored.attrs["version"] == schema.VERSION
    assert stored.attrs["schema"] == schema.SCHEMA
    for page in (DATA / "README.md", PAGE, ROOT / "CITATION.cff"):
        assert schema.VERSION in page.read_text(encoding="utf-8"), page.name
    assert f"- **{schema.VERSION}**" in (DATA / "README.md").read_text(encoding="utf-8")


def test_the_citation_file_has_what_its_format_asks_for():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert found["cff-version"] == "1.2.0"
    (data,) = found["references"]
    assert {"type", "title", "authors"} <= set(data)
    assert (data["type"], data["title"], data["version"]) == ("data", schema.TITLE, schema.VERSION)
    assert f'version = "{found["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(author["name"] for author in (*found["authors"], *data["authors"]))


def test_every_source_has_one_row_of_its_own_and_it_fits_the_rows(table, sheet):
    assert list(sheet.columns) == list(schema.SOURCE_COLUMNS)
    assert sorted(sheet["source"]) == sorted(table["source"].unique())
    for row in sheet.to_dict("records"):
        own = table[table["source"] == row["source"]]
        assert all(row[name] for name in schema.READ_SOURCES), row["source"]
        assert row["url"].startswith("https://")
        assert row["reference_status"] in schema.REFERENCE_STATUS, row["source"]
        if own["ppl_q"].notna().any():
            assert int(row["decimals"]) == own["ppl_q_decimals"].max(), row["source"]
        for text, part in own.groupby("eval_dataset"):
            said = re.search(rf"(?:^|; ){re.escape(text)} at ([\d/]+)", row["protocol"])
            assert said, (row["source"], text)
            assert [float(one) for one in said[1].split("/")] == sorted(part["ctx_len"].unique())


@pytest.fixture
def example(tmp_path):
    """A copy of what the atlas is made from, and the blocks of the worked example in the docs."""
    for name in ("clean.py", "published_qid.csv", "sources.csv", "README.md"):
        shutil.copy(DATA / name, tmp_path)
    shutil.copytree(DATA / "raw", tmp_path / "raw")
    (tmp_path / "sources").mkdir()
    text = PAGE.read_text(encoding="utf-8").split("## Adding a source")[1].split("\n## ")[0]
    rows, row = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    (said,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    return tmp_path, rows, row, said.splitlines()


def test_a_source_is_added_as_the_docs_say(example):
    folder, rows, row, said = example
    path = folder / "sources" / "example-lab.csv"
    path.write_text(rows, encoding="utf-8")
    assert any("no complete row in sources.csv" in one for one in check.check(path, folder))
    with open(folder / "sources.csv", "a", encoding="utf-8") as stream:
        stream.write(row)
    assert check.check(path, folder) == said
    with pytest.raises(SystemExit, match="example-lab.csv is not added"):
        script(folder).table()
    marked = rows.splitlines()
    marked[2] += f'"repeat: {schema.RERUN}"'
    path.write_text("\n".join(marked) + "\n", encoding="utf-8")
    assert check.check(path, folder) == []
    notes = check.notes(path, folder)
    assert any("'newquant' is not known" in note for note in notes)
    assert any(note.startswith("Rows 1 and") or note.startswith("Row 1:") for note in notes)
    made = script(folder).table()
    assert len(made) == 1742 + 3
    base = made[:1742].to_csv(index=False, lineterminator="\n")
    assert base.encode() == (bundled.data_dir() / "published_qid.csv").read_bytes()
    new = made[1742:].reset_index(drop=True)
    assert list(new["default"]) == [True] * 3
    assert list(new["qid"]) == [f"{round(math.log(ppl / 5.47), 6):g}" for ppl in (6.31, 6.24, 6.02)]
    assert set(new["n_params_nonembedding"]) == {"6476271616"}
    assert float(new.loc[0, "effective_bits"]) == pytest.approx(3 + 19 / 128, abs=1e-4)
    assert list(new["generation"]) == ["calibrated", "calibrated", "unknown"]


def test_the_page_has_the_figures_that_its_script_makes():
    """The picture, and the numbers said of sources, from the data as they stand."""
    made = runpy.run_path(str(ROOT / "docs" / "make_atlas.py"))
    assert made["picture"]() == (ROOT / "docs" / "atlas.svg").read_bytes(), "run `make atlas`"
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    figures = (DATA / "README.md").read_text(encoding="utf-8")
    said = {"all": "{} in ln QiD (90 % equal-tailed interval {})", "all, versions merged": "{} ({}) where versions"}
    for label, words in said.items():
        shared = re.search(rf"^\| {label} \|.*?\| ([\d.]+) \(([\d.]+ to [\d.]+)\)", figures, re.MULTILINE)
        assert shared
        assert words.format(*shared.groups()) in text


@pytest.mark.slow
def test_what_other_priors_change_is_what_the_bundled_posterior_says():
    from bayesqid.answers import draws

    made = runpy.run_path(str(ROOT / "docs" / "make_atlas.py"))
    posterior = draws.read(str(bundled.data_dir() / draws.BUNDLED), brief=False)
    assert made["table"](posterior) in PAGE.read_text(encoding="utf-8"), "run `make atlas`"
