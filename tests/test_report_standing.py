"""The report's account of how an answer stands says what the posterior file and `answers.sensitivity` say."""

import json
from dataclasses import replace

from bayesqid.answers import draws, sensitivity
from bayesqid.report import standing


def bundled():
    return draws.read(str(draws.bundled.data_dir() / draws.BUNDLED))


def test_groups_are_those_of_the_diagnosis():
    posterior = bundled()
    (table,) = standing.diagnosis(posterior)
    groups = json.loads(posterior.tree.attrs["diagnosis"])["groups"]
    assert table.rows == groups
    first = dict(zip((c.label for c in table.columns), table.cells[0], strict=True))
    assert first["group"] == "all cells"
    assert first["in 90 %"] == f"{100 * groups[0]['coverage90']:.0f} %"


def test_a_posterior_without_a_diagnosis_has_no_such_table():
    posterior = bundled()
    tree = posterior.tree.copy()
    tree.attrs = {name: value for name, value in tree.attrs.items() if name != "diagnosis"}
    assert standing.diagnosis(replace(posterior, tree=tree)) == ()


def test_priors_stand_by_family_with_the_numbers_of_the_answer():
    posterior = bundled()
    scale, power = standing.priors(posterior)
    found = sensitivity.answer(posterior)
    assert sorted(map(str, scale.rows)) == sorted(map(str, found["prior_scale"]))
    assert [row["family"] for row in scale.rows[:3]] == ["new"] * 3
    assert power.rows == found["power_scaling"]
    # thinned files hold no likelihood of the draws, and the note says so
    assert "not in this file" in power.note
    assert {cells[2] for cells in power.cells} == {""}


def test_too_few_effective_draws_are_words_and_no_band():
    row = {"family": "new", "factor": 2.0, "median": None, "lower90": None, "upper90": None, "effective": 12.0}
    assert standing._band(row) == "too few draws"
