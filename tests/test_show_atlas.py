"""`bayesqid show atlas`: what it counts is what the CSV holds, counted here without it."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from bayesqid import bundled
from bayesqid.answers.wording import count_text
from bayesqid.errors import BadInput
from bayesqid.importers import atlas
from bayesqid.report import atlas as figure


@pytest.fixture(scope="module")
def table():
    return atlas.read()


@pytest.fixture(scope="module")
def truth():
    with open(bundled.data_dir() / "published_qid.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_summary_counts_what_is_in_the_file(table, truth):
    taken = [row for row in truth if row["default"] == "True"]
    found = atlas.summary(atlas.select(table))
    assert {row["family"]: row["rows"] for row in found} == Counter(row["family"] for row in taken)
    beyond = Counter(row["family"] for row in taken if row["censored"] == "True")
    assert {row["family"]: row["diverged"] for row in found if row["diverged"]} == beyond
    opt = next(row for row in found if row["family"] == "OPT")
    held = [float(row["qid"]) for row in taken if row["family"] == "OPT" and float(row["qid"]) <= math.log(10)]
    assert opt["qid"] == [min(held), max(held)]
    assert opt["params"] == [85056000, 173961535488]


@pytest.mark.parametrize(
    ("filters", "keeps"),
    [
        ({"family": ["opt"]}, lambda row: row["family"] == "OPT"),
        ({"family": ["LLaMA-3.1", "Pythia"]}, lambda row: row["family_printed"] in ("LLaMA-3.1", "Pythia")),
        ({"method": ["GPTQ"]}, lambda row: row["method"] == "gptq"),
        ({"method": ["gptq-actorder"]}, lambda row: row["variant"] == "actorder"),
        ({"method": ["vector"]}, lambda row: row["generation"] == "vector"),
        ({"method": ["llama.cpp:Q4_K_M"]}, lambda row: row["method_printed"].casefold() == "llama.cpp:q4_k_m"),
        ({"bits": [2, 3]}, lambda row: float(row["bits"]) in (2, 3)),
        ({"source": "squeeze"}, lambda row: "SqueezeLLM" in row["source"]),
        ({"text": "C4"}, lambda row: row["eval_dataset"].startswith("c4")),
        ({"family": ["OPT"], "bits": [4], "text": "ptb"},
         lambda row: row["family"] == "OPT" and float(row["bits"]) == 4 and row["eval_dataset"].startswith("ptb")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("default", [True, False])
def test_filters_keep_the_rows_they_say(table, truth, filters, keeps, default):
    wanted = [row for row in truth if keeps(row) and (row["default"] == "True" or not default)]
    if not wanted:
        with pytest.raises(BadInput, match="No row is left"):
            atlas.select(table, **filters, default=default)
        return
    written = list(csv.DictReader(io.StringIO(atlas.as_csv(atlas.select(table, **filters, default=default)))))
    assert written == wanted


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"family": ["OPTT"]}, "no family 'OPTT': close are .*opt"),
        ({"method": ["gptqq"]}, "no method 'gptqq': close are .*gptq"),
        ({"bits": [7.5]}, "No row has 7.5 bits: there are 1, .*, 8"),
        ({"bits": [math.nan]}, "No row has nan bits"),
        ({"source": "nobody"}, "No row has the source 'nobody'"),
        ({"text": "pile"}, "No row has the eval_dataset 'pile'"),
        ({"family": ["Mistral"]}, "add --all"),
    ],
)
def test_what_no_row_has_is_refused_with_what_there_is(table, filters, said):
    with pytest.raises(BadInput, match=said):
        atlas.select(table, **filters)


@pytest.mark.parametrize("by", atlas.BY)
@pytest.mark.parametrize("default", [True, False])
def test_text_fits_a_terminal_and_names_every_group(table, by, default):
    chosen = atlas.select(table, default=default)
    lines = atlas.as_text(chosen, len(table), count_text, by, rows=True).splitlines()
    assert max(map(len, lines)) <= 80
    named = {line.split()[0] for line in lines if line}
    assert set(chosen["quantizer" if by == "method" else by]) <= named
    assert len(lines) > len(chosen) + 8


def test_json_has_no_nan_and_holds_the_rows_only_when_asked(table):
    chosen = atlas.select(table, family=["Mistral"], default=False)
    record = json.loads(json.dumps(atlas.as_json(chosen, len(table), rows=True), allow_nan=False))
    assert record["rows"] == len(record["cells"]) == 99
    assert record["of"] == 1742
    assert record["summary"][0]["tokens"] is None
    assert "cells" not in atlas.as_json(chosen, len(table))


def drawn(**columns) -> str:
    usual = {"params": [1e9], "tokens": [1e12], "bits": [3.0], "qid": [0.1], "beyond": [False], "name": ["OPT"]}
    return figure.draw(usual | columns, "tokens")[0].decode()


def marks(svg: str, what: str) -> int:
    """Marks in the first colour, filled (points, and one in the legend) or as strokes (arrows)."""
    return len(re.findall(rf"<use [^>]*{what}: {figure.COLORS[0].lower()}", svg))


def test_the_picture_has_a_mark_for_every_row_that_has_a_place():
    five = {"params": [1e9] * 5, "bits": [3.0] * 5, "tokens": [1e12, 2e12, 4e12, 9e12, math.nan], "name": ["OPT"] * 5}
    svg = drawn(**five, qid=[0.1, 0.2, 7.0, 1e-5, 0.3], beyond=[False, False, True, False, False])
    assert marks(svg, "fill") == 2 + 1
    assert marks(svg, "stroke") == 2


def test_diverged_rows_and_tiny_losses_are_arrows_wherever_their_value_lies():
    """A censored row has one height whatever number was printed, and so has a loss that a log axis cannot hold."""
    assert drawn(beyond=[True], qid=[3.0]) == drawn(beyond=[True], qid=[9.0]) != drawn(qid=[0.2])
    assert drawn(qid=[-0.01]) == drawn(qid=[1e-9]) != drawn(qid=[0.2])


def test_setting_rows_aside_moves_them_by_little():
    across = np.array([1e12] * 50 + [2e12] * 50)
    moved = np.log(figure._aside(across) / across)
    assert 0.9 * figure.ASIDE * math.log(2) < np.abs(moved).max() <= figure.ASIDE * math.log(2)
    assert len(set(moved)) == 100
    assert figure._aside(np.array([5.0])) == pytest.approx(5.0, rel=figure.ASIDE)


def test_more_names_than_colours_share_one(table):
    chosen = atlas.select(table, default=False)
    svg, png = figure.draw(atlas.points(chosen, "method"), "params")
    assert svg.startswith(b"<?xml")
    assert png.startswith(b"\x89PNG")
    assert svg == figure.draw(atlas.points(chosen, "method"), "params")[0]


def test_looking_loads_no_plotting_and_no_models():
    code = "import sys; from bayesqid.importers import atlas; atlas.as_text(atlas.read(), 1, str); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "altair", "torch", "pymc", "scipy.stats"} & set(loaded)


def show(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bayesqid", "show", "atlas", *map(str, words)], capture_output=True,
                          text=True, check=False)  # fmt: skip


def test_the_command_writes_rows_and_picture(tmp_path):
    written = ("-o", tmp_path / "b.csv", "--plot", tmp_path / "b.svg")
    done = show("--family", "BLOOM", "--bits", 4, "--json", *written, "--x", "params")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == len((tmp_path / "b.csv").read_text().splitlines()) - 1
    chosen = atlas.select(atlas.read(), family=["BLOOM"], bits=[4])
    assert (tmp_path / "b.svg").read_bytes() == figure.draw(atlas.points(chosen), "params")[0]


def test_the_command_refuses_what_it_does_not_know(tmp_path):
    wrong = {("--by", "size"): "--by size", ("--x", "loss"): "--x loss", ("--plot", "a.pdf"): ".svg or .png"}
    for words, said in wrong.items():
        done = show(*words)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())
        assert len(done.stderr.splitlines()) <= 3
