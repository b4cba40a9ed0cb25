import csv
import importlib.util
import math
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from bayesqid.importers import tables

DATA = Path(__file__).parents[1] / "data"
RAW, CLEAN = DATA / "raw" / "published_qid.csv", DATA / "published_qid.csv"


def rows(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def raw():
    return rows(RAW)


@pytest.fixture(scope="module")
def clean():
    return rows(CLEAN)


def test_cleaning_again_gives_the_same_bytes():
    spec = importlib.util.spec_from_file_location("clean", DATA / "clean.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = module.clean(pd.read_csv(RAW, dtype=str, keep_default_na=False))
    assert table.to_csv(index=False, lineterminator="\n").encode() == CLEAN.read_bytes()


def test_no_row_is_lost_and_what_was_printed_is_still_there(raw, clean):
    assert len(raw) == len(clean) == 1742
    kept = {"family": "family_printed", "method": "method_printed"}
    for before, after in zip(raw, clean, strict=True):
        for column, value in before.items():
            if column == "effective_bits":
                printed = after["effective_bits_printed"]
                assert (value == printed == "") or math.isclose(float(value), float(printed), rel_tol=1e-5)
            elif column != "ctx_len" or value:
                assert after[kept.get(column, column)] == value


def test_qid_is_the_difference_of_the_printed_log_perplexities(clean):
    off = [
        abs(float(row["qid"]) - math.log(float(row["ppl_q"]) / float(row["ppl_fp"])))
        for row in clean
        if row["ppl_q"] and row["ppl_fp"]
    ]
    assert len(off) == 1721
    assert max(off) < 5.1e-7  # printed to six decimals


def test_diverged_rows_are_censored_and_only_they(clean):
    for row in clean:
        assert (
            (row["censored"] == "True") == (float(row["qid"]) > math.log(10)) == (row["diverged"] == "True")
        )


def test_default_rows_are_counted(clean):
    taken = [row for row in clean if row["default"] == "True"]
    assert Counter(row["censored"] for row in taken) == {"False": 1159, "True": 73}
    assert {row["family"] for row in taken} == {"OPT", "BLOOM", "LLaMA-1", "LLaMA-2", "LLaMA-3", "Pythia"}
    reasons = Counter(row["default_reason"] for row in clean if row["default"] != "True")
    assert sum(reasons.values()) == 510
    assert set(reasons) <= set(tables.EXCLUDED.values())


def test_default_rows_have_all_that_a_law_needs(clean):
    for row in (row for row in clean if row["default"] == "True"):
        assert float(row["train_tokens"]) > 1e11
        assert float(row["n_params_nonembedding"]) > 8e7
        assert 1.9 <= float(row["effective_bits"] or row["bits"]) <= 6.7
        assert float(row["headroom"]) > 5
        assert float(row["qid_se_total"]) > 0
        assert row["generation"] in ("rtn", "calibrated", "optimised", "vector")
        assert row["kind"] == "weight_only"
        assert "Instruct" not in row["model"]


def test_no_undisclosed_token_count_was_invented(clean):
    for row in clean:
        assert (row["train_tokens"] == "") == (row["family"] == "Mistral")
        assert not (row["family"] == "Mistral" and row["default"] == "True")


def test_uniform_group_of_128_costs_the_same_bits_whoever_prints_it(clean):
    closed = {2: 2.1406, 3: 3.1484, 4: 4.1562}  # b + (16 + b)/128
    seen = Counter()
    for row in clean:
        uniform = row["method"] in ("rtn", "gptq", "awq", "omniquant", "autoround")
        if uniform and row["group_size"] and float(row["group_size"]) == 128:
            bits = float(row["bits"])
            assert float(row["effective_bits"]) == pytest.approx(closed[bits], abs=1e-4)
            seen[bits] += 1
    assert min(seen[2], seen[3], seen[4]) > 30


def test_per_channel_scales_cost_one_scale_per_row(clean):
    row = next(
        r for r in clean if r["model"] == "LLaMA-1-65B" and r["method"] == "rtn" and r["group_size"] == "-1"
    )
    assert float(row["effective_bits"]) == pytest.approx(
        float(row["bits"]) + (16 + float(row["bits"])) / 8192, abs=1e-4
    )


def test_known_errors_of_the_sources_are_out(clean):
    def one(**what):
        found = [row for row in clean if all(row[key] == value for key, value in what.items())]
        assert len(found) == 1, what
        return found[0]

    misprint = one(model="OPT-13B", method="awq", eval_dataset="c4", ppl_q="12.61")
    assert misprint["default_reason"] == "suspect at the source"
    swapped = one(model="LLaMA-3-8B", method="quip", eval_dataset="ptb", ppl_q="9.5")
    assert "suspect" in swapped["flags"].split(";")
    assert swapped["default"] == "False"
    odd = one(model="LLaMA-1-65B", method="decoupleq", ppl_q="6.05")
    assert odd["default"] == "False"
    assert not any(row["eval_dataset"] == "ptb_new" and row["default"] == "True" for row in clean)


def test_rounding_counts_where_tables_print_one_decimal(clean):
    coarse = [row for row in clean if "low_precision" in row["flags"].split(";")]
    assert len(coarse) == 233
    assert not any(row["default"] == "True" for row in coarse)
    row = next(row for row in coarse if row["model"] == "LLaMA-3-70B" and row["ppl_q"] == "3.6")
    by_hand = math.hypot(0.1 / 3.6, 0.1 / 2.9) / math.sqrt(12)
    assert float(row["qid_se_total"]) == pytest.approx(math.hypot(by_hand, 1e-3), rel=1e-4)


def test_a_baseline_of_4_10_is_not_taken_for_one_decimal(clean):
    row = next(
        r for r in clean if r["model"] == "LLaMA-1-30B" and r["ppl_fp"] == "4.1" and r["method"] == "awq"
    )
    assert float(row["qid_se_total"]) < 2e-3


def test_paired_standard_errors_are_not_inflated_by_the_floor(clean):
    paired = [row for row in clean if row["qid_se"]]
    assert len(paired) == 49
    for row in paired:
        assert float(row["qid_se_total"]) == pytest.approx(float(row["qid_se"]), rel=0.05)


def test_reading_the_atlas_changes_nothing_that_was_derived(clean):
    frame = tables.read_table(CLEAN)
    assert len(frame) == len(clean)
    for column in ("qid_se_total", "headroom", "loss16", "effective_bits"):
        for printed, value in zip((row[column] for row in clean), frame[column], strict=True):
            assert (printed == "" and math.isnan(value)) or float(printed) == value
    assert list(frame["default"]) == [row["default"] == "True" for row in clean]
    assert list(frame["variant"]) == [row["variant"] for row in clean]
