"""A table checked as a source of the atlas: every fault is said with its row, and a good table has none."""

import csv
import io
import math

import pytest

from bayesqid import bundled
from bayesqid.errors import BadInput
from bayesqid.importers import check

GOOD = """\
family,model,method,bits,group_size,eval_dataset,ctx_len,ppl_fp,ppl_q,source
LLaMA-2,LLaMA-2-7B,GPTQ,3,128,wikitext2,2048,5.47,6.31,xvyaward/owq issue 3
LLaMA-2,LLaMA-2-7B,AWQ,3,128,wikitext2,2048,5.47,6.29,xvyaward/owq issue 3
LLaMA-2,LLaMA-2-13B,AWQ,3,128,wikitext2,2048,4.88,5.41,xvyaward/owq issue 3
"""


def rows(text: str = GOOD) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def found(tmp_path, table: list[dict[str, str]], how=check.check) -> list[str]:
    columns = list(dict.fromkeys(name for row in table for name in row))
    path = tmp_path / "new.csv"
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(table)
    return how(path)


def changed(number: int, **values: str) -> list[dict[str, str]]:
    return [row | values if place == number - 1 else row for place, row in enumerate(rows())]


def test_a_good_table_has_no_problem(tmp_path):
    assert found(tmp_path, rows()) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ppl_q": "6,31"}, "ppl_q is not a number"),
        ({"ppl_q": "0.3"}, "ppl_q is not a number between 1 and"),
        ({"ppl_fp": "nan"}, "ppl_fp is not a number"),
        ({"ppl_fp": "-5.47"}, "ppl_fp is not a number"),
        ({"bits": "1e400"}, "bits is not a number"),
        ({"bits": "0"}, "bits is not a number between 0.5 and 16"),
        ({"bits": ""}, "bits is empty"),
        ({"model": " "}, "model is empty"),
        ({"source": ""}, "source is empty"),
        ({"group_size": "0"}, "group_size is neither -1 nor"),
        ({"eval_dataset": "WikiText2"}, "eval_dataset is none of wikitext2, "),
        ({"kind": "weights"}, "kind is none of weight_only, weight_activation"),
        ({"tier": "D"}, "tier is none of A, B, C"),
        ({"duplicate_kind": "copy"}, "duplicate_kind is none of"),
        ({"diverged": "maybe"}, "diverged is neither True nor False"),
        ({"diverged": "True"}, "diverged disagrees with qid > ln 10"),
        ({"ppl_fp": ""}, "there is no loss"),
        ({"qid": "0.5"}, "qid is not ln(ppl_q / ppl_fp) within rounding"),
        ({"n_params": "7e9"}, "n_params is not what other rows have"),
        ({"family": "LLaMA-1"}, "family is not what other rows have"),
        ({"vocab_size": "50000"}, "vocab_size is not what other rows have"),
    ],
)
def test_a_spoiled_cell_is_found_with_its_row(tmp_path, values, said):
    problems = found(tmp_path, changed(2, **values))
    assert any(said in one and one.startswith("Row 2: ") for one in problems), problems


@pytest.mark.parametrize("name", ["family", "model", "method", "bits", "eval_dataset", "source"])
def test_a_missing_column_is_named(tmp_path, name):
    problems = found(tmp_path, [{key: value for key, value in row.items() if key != name} for row in rows()])
    assert len(problems) == 1
    assert problems[0].startswith(f"The column {name} is missing")


def test_columns_that_the_schema_does_not_have_are_named_with_the_likely_one(tmp_path):
    table = [row | {"ppl_quantised": "1", "gpu": "H100"} for row in rows()]
    problems = found(tmp_path, table)
    assert problems == [
        "The column ppl_quantised is not one of the schema; what a row says besides belongs in notes.",
        "The column gpu is not one of the schema; what a row says besides belongs in notes.",
    ]
    assert "is vocab_size meant?" in found(tmp_path, [row | {"vocabsize": "32000"} for row in rows()])[0]


def test_a_table_without_losses_or_without_rows_says_so(tmp_path):
    bare = [{key: value for key, value in row.items() if not key.startswith("ppl")} for row in rows()]
    assert found(tmp_path, bare) == ["There is no loss: give the columns ppl_fp and ppl_q, or qid."]
    (tmp_path / "empty.csv").write_text(GOOD.splitlines()[0] + "\n")
    assert check.check(tmp_path / "empty.csv") == ["There are no rows below the header."]


def test_qid_may_differ_by_what_rounding_can_do_and_no_more(tmp_path):
    """The true perplexities lie within half a unit of the last digit: the extreme quotients of those are allowed."""
    high = math.log((6.31 + 0.005) / (5.47 - 0.005))
    inside, outside = high - 1e-6, high + 5e-5
    assert found(tmp_path, changed(1, qid=f"{inside:.7f}")) == []
    off = ["Row 1: qid is not ln(ppl_q / ppl_fp) within rounding."]
    assert found(tmp_path, changed(1, qid=f"{outside:.7f}")) == off
    # with one decimal in its own column a QiD may lie farther off
    assert found(tmp_path, changed(1, qid="0.1")) == []
    assert found(tmp_path, changed(1, qid="0.2")) == off


def test_one_source_has_one_baseline_of_a_model(tmp_path):
    problems = found(tmp_path, [*rows(), rows()[0] | {"method": "RTN", "ppl_fp": "5.48", "ppl_q": "6.9"}])
    assert len(problems) == 1
    assert problems[0].startswith("Row 4: ")
    assert "2 baselines (5.47, 5.48) of LLaMA-2-7B on wikitext2" in problems[0]
    other_text = rows()[0] | {"eval_dataset": "c4", "ppl_fp": "6.97", "ppl_q": "8.0"}
    assert found(tmp_path, [*rows(), other_text]) == []


def test_a_baseline_that_no_other_source_has_is_found(tmp_path):
    (problem,) = found(tmp_path, [row | {"ppl_fp": "4.98"} if "13B" in row["model"] else row for row in rows()])
    assert "has 4.98 as baseline of LLaMA-2-13B" in problem
    assert "where other sources have 4.88" in problem


def test_a_row_that_stands_twice_is_found_and_notes_tell_versions_apart(tmp_path):
    assert found(tmp_path, [*rows(), rows()[0]]) == ["Rows 1 and 4 are one row."]
    again = rows()[0] | {"ppl_q": "6.35"}
    (problem,) = found(tmp_path, [*rows(), again])
    assert problem.startswith("Rows 1 and 4 are one configuration with different losses")
    assert found(tmp_path, [*rows(), again | {"notes": "another calibration seed"}]) == []


def test_unmarked_repetitions_of_the_atlas_are_found(tmp_path):
    """The table of the AWQ paper has AWQ, 3 bits in groups of 128, of LLaMA-2-7B at 6.24."""
    as_there = changed(2, ppl_q="6.24", duplicate_kind="")
    (problem,) = found(tmp_path, as_there)
    assert problem.startswith("Row 2: xvyaward/owq issue 3 prints the perplexity that arXiv 2306.00978 (AWQ) prints")
    assert found(tmp_path, changed(2, ppl_q="6.24", duplicate_kind="repeat: quoted copy (same digits)")) == []
    # more digits, the same number; and a group that is left out may be the same group
    assert len(found(tmp_path, changed(2, ppl_q="6.2431"))) == 1
    assert len(found(tmp_path, changed(2, ppl_q="6.24", group_size=""))) == 1
    for other in ({"group_size": "64"}, {"bits": "4"}, {"method": "RTN"}, {"ctx_len": "4096", "ppl_fp": "5.12"}):
        assert found(tmp_path, changed(2, ppl_q="6.24", **other)) == [], other


def test_agreement_that_rounding_forces_is_no_copy(tmp_path):
    """At one decimal 4-bit losses of 0.1 in perplexity agree whatever was measured."""
    coarse = [row | {"bits": "4", "ppl_fp": "5.5", "ppl_q": "5.6", "model": "LLaMA-2-7B", "method": name}
              for row, name in zip(rows(), ("GPTQ", "AWQ", "RTN"), strict=True)]  # fmt: skip
    assert found(tmp_path, coarse) == []


def test_a_source_without_its_row_in_the_datasheet_is_found(tmp_path):
    problems = found(tmp_path, [row | {"source": "Some blog"} for row in rows()])
    assert any(one.startswith("The source 'Some blog' has no complete row in sources.csv") for one in problems)


def test_new_names_and_re_runs_are_notes_and_no_faults(tmp_path):
    table = changed(1, method="NewQuant", ppl_q="6.02")
    table.append(rows()[0] | {"family": "Foo", "model": "Foo-1B", "ppl_fp": "9.1", "ppl_q": "9.9"})
    assert found(tmp_path, table) == []
    notes = found(tmp_path, table, check.notes)
    assert "The family 'Foo' is new: it will be drawn from the population of families." in notes
    assert any(note.startswith("The model 'Foo-1B' is not known") for note in notes)
    assert "The method 'newquant' is not known: its effect will be drawn from the population of all." in notes
    again = "Rows 2 and 3: xvyaward/owq issue 3 measures again what arXiv 2306.00978 (AWQ) has, with another result"
    assert any(note.startswith(again) for note in notes), notes


def test_many_rows_are_counted_not_listed(tmp_path):
    table = [rows()[0] | {"notes": str(number), "ppl_q": "x"} for number in range(30)]
    assert found(tmp_path, table)[0] == "Rows 1, 2, 3, 4, 5, 6 and 24 more: ppl_q is not a number between 1 and 1e+12."


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"x'])
def test_what_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="bad.csv cannot be read as CSV"):
        check.check(path)
    with pytest.raises(BadInput, match="There is no table"):
        check.check(tmp_path / "nothing.csv")


def test_a_row_without_values_is_told_of_and_breaks_nothing(tmp_path):
    problems = found(tmp_path, [dict.fromkeys(rows()[0], "")])
    assert "Row 1: family is empty." in problems


def test_the_atlas_has_the_findings_that_its_datasheet_names_and_no_other():
    problems = check.check(bundled.data_dir() / "published_qid.csv")
    assert [problem.split(": ")[0] for problem in problems] == ["Rows 37 and 38", "Rows 123, 124, 125 and 126"]
    assert "2 baselines (27.65, 27.66) of OPT-125M" in problems[0]
    assert "has 5.22 as baseline of LLaMA-1-7B on c4" in problems[1]
    sheet = " ".join((bundled.data_dir() / "README.md").read_text(encoding="utf-8").split())
    for words in ("27.66 in rows 37 and 38", "rows 123 to 126", "4.95 and 5.0 for 4.88"):
        assert words in sheet


def test_what_was_collected_shows_the_misprints_that_the_flags_explain():
    """Without flags the two READMEs with a wrong LLaMA-2-13B baseline are found too."""
    problems = check.check(bundled.data_dir() / "raw" / "published_qid.csv")
    misprints = [problem for problem in problems if "baseline of LLaMA-2-13B" in problem]
    assert len(problems) == 4
    assert ["SpinQuant" in misprints[0], "smoothquant" in misprints[1]] == [True, True]
