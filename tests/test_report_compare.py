"""Two posteriors side by side: what is said of them is true of the numbers, A before B, and nothing is hidden."""

import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

import posteriors
from bayesqid import files
from bayesqid.answers import asking, project
from bayesqid.errors import BadInput
from bayesqid.report import beside, beside_tables, compare


def named(name, **wanted):
    return replace(posteriors.posterior(**wanted), path=f"some/{name}.nc", sha256=name[0] * 64)


@pytest.fixture(scope="module")
def first():
    return named("first")


@pytest.fixture(scope="module")
def second():
    # other draws of other data: a family less, one row measured again, a level that lies e^0.7 higher
    data = posteriors.cells({"crossed": posteriors.FAMILIES["crossed"], "fixed": posteriors.FAMILIES["fixed"]})
    data["qid"][0] = 1.01 * data["qid"][0]
    return named("second", data=data, seed=2, log_k=-1.3, size=250)


@pytest.fixture(scope="module")
def sides(first, second):
    return beside.sides(first, second, 1e13, None, "new")


@pytest.fixture(scope="module")
def folder(first, second, tmp_path_factory):
    found = tmp_path_factory.mktemp("compare")
    assert compare.write(first, second, found, 1e13) == found / "index.html"
    return found


def test_both_answer_the_same_targets_as_alone(first, second, sides):
    rows = beside.answers(*sides)
    alone = [project.rows(project.project(p, asking.targets(p, 1e13))) for p in (first, second)]
    assert len(rows) == 12
    for row, a, b in zip(rows, *alone, strict=True):
        assert (row["a_median"], row["b_median"]) == (a["median"], b["median"])
        if max(a["p_saturated"], b["p_saturated"]) > 0.5:
            assert row["ratio"] is row["difference"] is row["overlap90"] is None
            continue
        assert row["difference"] == pytest.approx(b["median"] - a["median"])
        assert row["ratio"] == pytest.approx(b["median"] / a["median"])
        widths = [math.log(one["upper90"]) - math.log(one["lower90"]) for one in (a, b)]
        assert row["width_ratio"] == pytest.approx(widths[1] / widths[0])
        for mass in (50, 90):
            apart = a[f"upper{mass}"] < b[f"lower{mass}"] or b[f"upper{mass}"] < a[f"lower{mass}"]
            assert row[f"overlap{mass}"] == (not apart)


@pytest.mark.parametrize(("overlap", "said"), [
    ((True, True), "50 % and 90 %"), ((False, True), "90 % only"), ((False, False), "neither"), ((None, None), "–"),
])  # fmt: skip
def test_overlaps_are_told_in_words(overlap, said):
    assert beside_tables.overlap_words({"overlap50": overlap[0], "overlap90": overlap[1]}) == said


def test_the_higher_level_is_seen_and_said(sides):
    rows = [row for row in beside.answers(*sides) if row["ratio"] is not None]
    assert all(row["ratio"] > 1.2 for row in rows)
    sentence = compare.moved(rows)
    low, high = (float(x) for x in re.search(r"medians are ([\d.]+) to ([\d.]+) times A's", sentence).groups())
    assert low == pytest.approx(min(row["ratio"] for row in rows), rel=0.006)
    assert high == pytest.approx(max(row["ratio"] for row in rows), rel=0.006)
    assert "No difference is beyond" not in sentence


def test_swapping_turns_differences_round(first, second, sides):
    back = beside.answers(*beside.sides(second, first, 1e13, None, "new"))
    for row, turned in zip(beside.answers(*sides), back, strict=True):
        if row["ratio"] is not None:
            assert turned["difference"] == -row["difference"]
            assert turned["ratio"] == pytest.approx(1 / row["ratio"])
            assert (turned["overlap50"], turned["overlap90"]) == (row["overlap50"], row["overlap90"])


def test_a_posterior_beside_itself_differs_in_nothing(first, tmp_path):
    left, right = beside.sides(first, first, 1e13, None, "new")
    rows = beside.answers(left, right)
    assert {row["ratio"] for row in rows} <= {1.0, None}
    assert all(row["same"] for row in beside.facts(left, right))
    total = beside.cells(left, right)[-1]
    assert total["shared"] == total["a_cells"] == total["b_cells"] == first.cells.sizes["cell"]
    head = compare.heading(left, right, rows)
    assert "medians are the same" in head["verdict_sentence"]
    assert "They differ" not in head["summary"]
    assert compare.data_words(left, right) == ["Both have the same families and sources."]


def test_the_noise_of_a_median_is_that_of_repeated_draws():
    rng = np.random.default_rng(3)
    values = np.exp(0.6 * rng.normal(size=(4000, 400)))
    seen = np.log(np.median(values, axis=1)).std() * math.sqrt(2)
    quarter = 0.6 * 0.67449
    one = {"p_saturated": 0.0, "median": 1.0, "lower50": math.exp(-quarter), "upper50": math.exp(quarter),
           "lower90": 0.4, "upper90": 2.7}  # fmt: skip
    said = beside._compared(one, one, (400, 400))["noise"] / beside.NOISE
    # counting the middle half as flat is on the safe side
    assert seen < said < 1.15 * seen


def test_intervals_that_reach_below_zero_give_no_ratio_of_widths():
    row = {"p_saturated": 0.0, "median": 0.1, "lower50": 0.05, "upper50": 0.2, "lower90": -0.01, "upper90": 0.4}
    found = beside._compared(row, row, (100, 100))
    assert found["width_ratio"] is None
    assert found["ratio"] == 1


def test_cells_are_counted_as_by_hand(sides, second):
    rows = {row["family"]: row for row in beside.cells(*sides)}
    assert rows["crossed"] == {"family": "crossed", "a_cells": 54, "b_cells": 54, "shared": 53, "changed": 1,
                               "only_a": 0, "only_b": 0}  # fmt: skip
    assert rows["lockstep"] == {"family": "lockstep", "a_cells": 18, "b_cells": 0, "shared": 0, "changed": 0,
                                "only_a": 18, "only_b": 0}  # fmt: skip
    assert rows["all"]["b_cells"] == second.cells.sizes["cell"]
    said = compare.shared_words(rows["all"])
    assert said == "71 cells stand in both, 1 in both with another QiD, 18 only in A and 0 only in B."


def test_a_repeated_cell_is_not_matched_twice(first):
    data = first.cells.isel(cell=[0, 0, 1])
    one = replace(first, tree=first.tree.copy())
    one.tree["cells"] = data
    left, right = (replace(side, posterior=p) for side, p in
                   zip(beside.sides(first, first, 1e13, None, "new"), (one, first), strict=True))  # fmt: skip
    total = beside.cells(left, right)[-1]
    assert (total["a_cells"], total["shared"], total["only_a"]) == (3, 2, 1)


def test_a_family_that_one_does_not_know_is_shown_as_such(first, second, sides):
    table = beside_tables.families(*sides)
    shown = {cells[0]: cells for cells in table.cells}
    assert shown["lockstep"][4:] == ["not fitted", "–", "–"]
    assert "not fitted" not in shown["crossed"]
    forest = {(row["term"], row["family"]): row for row in beside.parameters(*sides)}
    assert forest["beta", "lockstep"]["b_mean"] is None
    assert forest["beta", "lockstep"]["a_mean"] is not None
    asked = beside.sides(first, second, 1e13, "LockStep", "new")
    assert [str(side.projection["family"].values[0]) for side in asked] == ["lockstep", "new"]
    assert "B does not know the family lockstep" in compare.summary(*asked)
    assert "does not know" not in compare.summary(*beside.sides(first, second, 1e13, "crossed", "new"))


def test_a_family_that_neither_knows_is_told_with_those_that_either_does(first, second):
    with pytest.raises(BadInput, match="neither posterior: fitted are crossed, fixed, lockstep"):
        beside.sides(first, second, None, "Nobody", "new")


def test_failed_checks_of_one_are_not_laid_at_the_others_door(first):
    bad = named("bad", checks={"rhat": False}, seed=2)
    left, right = beside.sides(first, bad, 1e13, None, "new")
    head = compare.heading(left, right, beside.answers(left, right))
    assert head["verdict"] == "checks failed"
    assert "B: Checks failed: rhat." in head["alerts"]
    assert not any(alert.startswith("A:") and "Checks failed" in alert for alert in head["alerts"])
    shown = {cells[0]: cells for cells in beside_tables.checks(left, right).cells}
    assert (shown["rhat"][3], shown["rhat"][6]) == ("passed", "FAILED")


def test_a_destroyed_loss_is_not_compared():
    destroyed = named("high", log_k=9.0)
    left, right = beside.sides(destroyed, named("low"), 1e14, None, "new")
    rows = beside.answers(left, right)
    assert compare.moved(rows).startswith("No median can be compared")
    assert {cells[2] for cells in beside_tables.answers(rows).cells} == {"loss destroyed"}


def test_what_differs_in_the_making_is_named(first):
    other = named("other")
    other.tree.attrs |= {"law": "ouyang", "seed": 8}
    left, right = beside.sides(first, other, 1e13, None, "new")
    different = {row["fact"] for row in beside.facts(left, right) if not row["same"]}
    assert {"file", "SHA-256", "law", "seed"} <= different
    assert not different & {"model", "cells", "families", "engine"}
    assert "They differ in law and seed." in compare.summary(left, right)


def test_no_probability_is_made_of_dependent_draws(folder, sides):
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "is not given" in text
    total = beside.cells(*sides)[-1]
    assert f"{(total['shared'] + total['changed']) / total['b_cells']:.0%}".replace("%", " %") in text
    assert not re.search(r"P\((A|B) *[<>]", text)


def test_the_page_needs_nothing_but_itself(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    assert not re.search(r"""(?:src|href|action)=["'](?!data:|#|data/|figures/)""", text)
    for target in re.findall(r'href="((?:data|figures)/[^"]+)"', text):
        assert (folder / target).is_file(), target


def test_names_that_are_markup_stay_text(tmp_path):
    hostile = "<img src=x onerror=alert(1)> $\\frac{a}$ | _b_"
    data = posteriors.cells({hostile: posteriors.FAMILIES["crossed"], "fixed": posteriors.FAMILIES["fixed"]})
    page = compare.write(named("first"), named("odd", data=data), tmp_path, 1e13).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_twins_hold_the_same_numbers(folder):
    names = sorted(path.stem for path in (folder / "data").glob("*.json"))
    assert {"answer", "families", "cells", "differences", "parameters", "checks", "fan-both", "forest-both"} <= {*names}
    for name in names:
        rows = json.loads((folder / "data" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        with open(folder / "data" / f"{name}.csv", encoding="utf-8", newline="") as stream:
            flat = list(csv.DictReader(stream))
        assert len(rows) == len(flat) > 0
        for row, line in zip(rows, flat, strict=True):
            for key, value in row.items():
                expected = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
                assert line[key] == expected


def test_the_same_two_posteriors_give_the_same_bytes(first, second, folder, tmp_path):
    compare.write(first, second, tmp_path, 1e13)
    written = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert written == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for path in written:
        assert (folder / path).read_bytes() == (tmp_path / path).read_bytes(), path


def test_files_of_one_name_are_told_apart_by_their_folders(first):
    left, right = beside.sides(replace(first, path="/data/2025/posterior.nc"),
                               replace(first, path="/data/2026/posterior.nc"), 1e13, None, "new")  # fmt: skip
    assert (left.file, right.file) == ("2025/posterior.nc", "2026/posterior.nc")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    files.write_netcdf(posteriors.tree(), folder / "a.nc")
    files.write_netcdf(posteriors.tree(seed=2), folder / "b.nc")
    return folder


@pytest.mark.parametrize(
    ("words", "says"),
    [("a.nc b.nc a.nc", "3 posteriors"), ("a.nc b.nc --paper", "--paper"), ("a.nc no.nc", "no.nc"),
     ("a.nc b.nc --family Nobody", "'Nobody'"), ("a.nc b.nc --tokens nan", "--tokens"), ("a.nc b.nc --band x", "'x'")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_written(saved, words, says, monkeypatch, capsys):
    from bayesqid import cli

    monkeypatch.chdir(saved)
    monkeypatch.setattr("sys.argv", ["bayesqid", "report", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert says in capsys.readouterr().err
    assert not (saved / "report").exists()


def test_the_command_reads_two_files_whole_and_says_which(saved, monkeypatch, capsys, tmp_path):
    from bayesqid import cli

    monkeypatch.chdir(saved)
    monkeypatch.setattr("sys.argv", ["bayesqid", "report", "a.nc", "b.nc", "-o", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 0
    assert err == "Posterior: a.nc (file).\nPosterior: b.nc (file).\n"
    assert out == f"{tmp_path / 'new' / 'index.html'}\n"
    assert "bayesqid report a.nc b.nc --tokens 1e14 -o report" in (tmp_path / "new" / "report.md").read_text()
