"""Answer tables and figures of a report against the answers themselves."""

from dataclasses import replace

import pytest

import posteriors
from bayesqid.answers import asking, choose, project, shares, tokens
from bayesqid.report import answers, asked, bars, tables
from reportpage import projected


@pytest.fixture(scope="module")
def posterior():
    return posteriors.posterior()


def test_the_targets_of_a_projection_are_those_asked_for(posterior):
    one = {"lr_phase": "constant", "params": 3e9, "bits": 3.5}
    for options in ({}, {"family": "crossed"}, {"population": True}, one):
        wanted = asking.targets(posterior, 1e13, **options)
        assert asked.targets(project.project(posterior, wanted)) == wanted


def test_a_column_of_the_budgets_is_a_projection_at_those_tokens(posterior):
    counts, found = asked.at_counts(posterior, projected(posterior, tokens=1e14))
    assert counts == [2e12, 15e12, 1e14]
    table = answers.budgets(counts, found)
    for count, name in zip(counts, ("2T", "15T", "100T"), strict=True):
        expected = project.rows(projected(posterior, tokens=count))
        assert [(row["params"], row["bits"]) for row in table.rows] == [(r["params"], r["bits"]) for r in expected]
        assert [row[f"median_at_{name}"] for row in table.rows] == pytest.approx([row["median"] for row in expected])
    assert "2T tokens: median (90 % ETI)" in [column.label for column in table.columns]


def test_a_budget_that_destroys_the_loss_has_no_number():
    posterior = posteriors.posterior(log_k=5.0)
    table = answers.budgets(*asked.at_counts(posterior, projected(posterior, tokens=1e13, params=7e9, bits=2)))
    assert "loss destroyed" in table.cells[0]


def test_thresholds_stand_beside_the_printed_ones(posterior):
    found = tokens.tokens(posterior)
    table = answers.thresholds(found)
    rows = {(row["params"], row["bits"], row["threshold"]): (row, shown)
            for row, shown in zip(table.rows, table.cells, strict=True)}  # fmt: skip
    row, shown = rows[70e9, 4.0, 0.2]
    assert row["printed"] == pytest.approx(17.3499e12)
    assert "17.3T" in shown
    assert len(rows) == 48
    # only what the paper prints has a diamond
    other = answers.thresholds(tokens.tokens(posterior, params=3e9))
    assert {cells[6] for cells in other.cells} == {"–"}


def test_what_is_never_reached_is_no_number(posterior):
    limits = {"lower": 1e3, "upper": 1e19}
    assert answers.counted(None, limits) == ">1e19"
    assert answers.counted(1e3, limits) == "≤1k"
    row = dict.fromkeys(("lower50", "median", "upper50", "upper90", "printed"))
    row |= {"params": 7e9, "bits": 4.0, "threshold": 0.2, "lower90": 1e12}
    figure = bars.thresholds([row], (1e11, 1e13), limits, "a new family")
    assert "7B at 4 bits not reached" in figure.alt


@pytest.mark.parametrize(("tolerance", "chosen"), [(0.05, True), (1e-9, False)])
def test_the_choice_is_said_and_marked_where_there_is_one(posterior, tolerance, chosen):
    told = choose.as_json(choose.choose(posterior, params=8e9, tokens=15e12, tolerance=tolerance))
    table, text = answers.choice(told), answers.choice_words(told)
    figure = bars.choice(table.rows, told)
    assert (told["choice"] is not None) == chosen
    assert sum(row["chosen"] for row in table.rows) == chosen
    assert ("the cheapest recipe is" in text) == ("Red: the chosen recipe." in figure.caption) == chosen
    assert ("no recipe qualifies" in text) == ("None is chosen" in figure.alt) == (not chosen)
    sizes = [row["bytes"] for row in table.rows]
    assert sizes == sorted(sizes)


def test_shares_of_a_bar_sum_to_one_and_are_those_of_the_projection(posterior):
    found = project.rows(projected(posterior, tokens=1e13))
    rows = bars.variance_rows(found)
    labels = list(dict.fromkeys(row["label"] for row in rows))
    assert len(labels) == len(found)
    for label, row in zip(labels, found, strict=True):
        own = {one["part"]: one["share"] for one in rows if one["label"] == label}
        assert own == row["shares"]
        assert sum(own.values()) == pytest.approx(1)
        assert list(own) == list(shares.PARTS)


def test_labels_tell_bars_apart(posterior):
    wanted = [replace(target, family=family) for family in (None, "crossed") for target in asking.targets(
        posterior, tokens_range="1e12:1e13", points=2, params=7e9, bits=4)]  # fmt: skip
    rows = bars.variance_rows(project.rows(project.project(posterior, wanted)))
    assert list(dict.fromkeys(row["label"] for row in rows)) == [
        f"{family}, 7B, {count} tokens, 4 bits" for family in ("new", "crossed") for count in ("1T", "10T")
    ]


def test_several_families_have_a_column(posterior):
    wanted = [replace(target, family=family) for family in (None, "crossed")
              for target in asking.targets(posterior, 1e13, params=7e9, bits=4)]  # fmt: skip
    projection = project.project(posterior, wanted)
    table = answers.budgets(*asked.at_counts(posterior, projection))
    assert table.columns[0].label == tables.FAMILY.label
    assert [row["family"] for row in table.rows] == ["new", "crossed"]
