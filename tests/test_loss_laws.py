"""Truth: published losses computed by hand, moments of the log-normal, and every malformed field refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bayesqid.answers import loss_laws
from bayesqid.errors import BadInput

MANY = 40_000
WHOLE = """form = "chinchilla"
citation = "our own runs"
correlation = [["A", "alpha", 0.99]]
[values]
E = 1.8
A = 480
B = 2100.0
alpha = 0.35
beta = 0.37
[sd]
E = 0.03
A = 120
B = 1300
alpha = 0.02
beta = 0
"""


def drawn(law, params, tokens, size=2):
    return loss_laws.draws(law, [params], [tokens], size, np.random.default_rng(0))[:, 0]


def test_the_published_laws_give_the_losses_that_their_formulas_do():
    by_hand = (math.pow(4.74e19 / 12e9, 0.045 / 0.399) + 7.63e10 / 1e12) ** 0.399
    assert drawn(loss_laws.read("ouyang"), 12e9, 1e12)[0] == pytest.approx(by_hand, rel=1e-9)
    assert by_hand == pytest.approx(2.71, abs=0.005)
    # Chinchilla itself: 70B, 1.4T. exp(-0.3392 ln 70e9) = 2.094e-4, exp(-0.2849 ln 1.4e12) = 3.463e-4
    hoffmann = drawn(loss_laws.read("hoffmann"), 70e9, 1.4e12)[0]
    assert hoffmann == pytest.approx(1.6934 + 406.4 * 2.094e-4 + 410.7 * 3.463e-4, abs=2e-4)
    replication = np.median(drawn(loss_laws.read("chinchilla"), 70e9, 1.4e12, MANY))
    assert replication == pytest.approx(1.8172 + 482.01 * 1.692e-4 + 2085.43 * 3.604e-5, abs=0.03)


@pytest.mark.parametrize("name", loss_laws.LOSS_LAWS)
def test_every_published_law_has_all_constants_a_source_and_says_what_is_known_of_them(name):
    law = loss_laws.read(name)
    names = loss_laws.FORMS[law.form][1]
    assert set(law.mean) == set(names)
    assert set(law.sd) in (set(), set(names))
    assert "arXiv" in law.citation
    assert "N counts" in law.note
    assert loss_laws.uncertainty(law).startswith("No uncertainty") == (not law.sd)
    # a law without uncertainty has one loss, one with it many
    assert (drawn(law, 7e9, 1e12, 50).std() > 1e-6) == bool(law.sd)


def test_constants_are_log_normal_about_the_published_values_and_never_negative():
    law = loss_laws.read("chinchilla")
    found = loss_laws.constants(law, MANY, np.random.default_rng(1))
    for name, values in found.items():
        logs, width = np.log(values), law.sd[name] / law.mean[name]
        assert (values > 0).all()
        assert logs.mean() == pytest.approx(math.log(law.mean[name]), abs=4 * width / math.sqrt(MANY)), name
        assert logs.std() == pytest.approx(width, rel=4 / math.sqrt(2 * MANY)), name


def test_all_targets_share_the_constants_of_a_draw():
    """L16 of two targets is a known function of one set of constants: solving for E from each gives the same E."""
    law = loss_laws.read("chinchilla")
    loss = loss_laws.draws(law, [1e9, 70e9], [1e12, 1e14], 100, np.random.default_rng(3))
    own = loss_laws.constants(law, 100, np.random.default_rng(3))
    for column, (n, d) in enumerate(((1e9, 1e12), (70e9, 1e14))):
        rest = own["A"] / n ** own["alpha"] + own["B"] / d ** own["beta"]
        np.testing.assert_allclose(loss[:, column] - rest, own["E"], rtol=1e-9)


def test_a_law_of_ones_own_has_its_deviations_and_correlations(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(WHOLE, encoding="utf-8")
    law = loss_laws.read(path)
    assert (law.name, law.citation, law.mean["A"], law.sd["beta"]) == ("own.toml", "our own runs", 480.0, 0.0)
    found = loss_laws.constants(law, MANY, np.random.default_rng(2))
    logs = {name: np.log(values) for name, values in found.items()}
    assert np.corrcoef(logs["A"], logs["alpha"])[0, 1] == pytest.approx(0.99, abs=0.002)
    assert np.corrcoef(logs["B"], logs["alpha"])[0, 1] == pytest.approx(0, abs=4 / math.sqrt(MANY))
    assert set(found["beta"]) == {0.37}
    # the trade of A against alpha is what keeps A / N^alpha narrow: ln A - alpha ln N has variance
    # 0.25^2 + (0.02 L)^2 - 2 0.99 0.25 0.02 L to first order, with L = ln 1e9 and 0.35 (exp(0.057 z) - 1) = 0.02 z
    independent = loss_laws.constants(replace(law, correlation=None), MANY, np.random.default_rng(2))
    spread = [np.std(np.log(one["A"]) - one["alpha"] * math.log(1e9)) for one in (found, independent)]
    away = 0.02 * math.log(1e9)
    want = [math.sqrt(0.25**2 + away**2 - 2 * r * 0.25 * away) for r in (0.99, 0.0)]
    assert spread == pytest.approx(want, rel=0.02)
    assert "correlations" in loss_laws.uncertainty(law)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [('"chinchilla"', '"kaplan"', r"form = 'kaplan': choose one of chinchilla, ouyang"),
     ('form = "chinchilla"', "form = 3", r"form = 3"),
     ('"our own runs"', "7", r"citation = 7: give a text"),
     ("[values]", "[value]", r"unknown field 'value'"),
     ("[values]\nE = 1.8", "values = 3\n[sd2]", r"unknown field 'sd2'"),
     ("A = 480", "A = -480", r"\[values\]: A is -480: give a number"),
     ("A = 480", "A = 0", r"A is 0:"),
     ("A = 480", "A = nan", r"A is nan"),
     ("A = 480", "A = 1e400", r"A is inf"),
     ("A = 480", "A = true", r"A is True"),
     ("A = 480", 'A = "many"', r"A is 'many'"),
     ("A = 480\n", "", r"A is missing"),
     ("A = 480", "A = 480\nC = 1", r"unknown constant 'C': form chinchilla has E, A, B, alpha, beta"),
     ("E = 0.03", "E = -0.03", r"\[sd\]: E is -0.03: give a number from 0 to 3.6"),
     ("E = 0.03", "E = 4", r"E is 4"),
     ("E = 0.03\n", "", r"\[sd\]: E is missing"),
     ("0.99", "1.0", r"correlation \['A', 'alpha', 1.0\]"),
     ('"A", "alpha"', '"A", "A"', r"write each pair once"),
     ('"A", "alpha"', '["A"], "alpha"', r"write each pair once"),
     ('["A", "alpha", 0.99]', '["A", "alpha", 0.9], ["alpha", "A", 0.9]', r"write each pair once"),
     ('["A", "alpha", 0.99]', '["A", "B", 0.9], ["A", "E", 0.9], ["B", "E", -0.9]', r"contradict each other"),
     ("A = 480", "A 480", r"is not valid TOML")],
)  # fmt: skip
def test_a_malformed_field_is_named(tmp_path, old, new, why):
    assert old in WHOLE
    path = tmp_path / "own.toml"
    path.write_text(WHOLE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BadInput, match=why) as caught:
        loss_laws.read(path)
    assert "\n" not in str(caught.value)
    assert "own.toml" in str(caught.value)


def test_deviations_left_out_are_said_and_correlations_without_them_refused():
    values = {"E": 1.8, "A": 480, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
    law = loss_laws.from_table({"form": "chinchilla", "values": values}, "own.toml")
    assert "No uncertainty" in loss_laws.uncertainty(law)
    with pytest.raises(BadInput, match=r"correlation but no \[sd\]"):
        loss_laws.from_table({"form": "chinchilla", "values": values, "correlation": []}, "own.toml")


def test_an_unknown_name_and_constants_without_a_finite_loss_are_refused():
    with pytest.raises(BadInput, match=r"no loss law 'chinchila' \(did you mean chinchilla\?\): give ouyang, chinch"):
        loss_laws.read("chinchila")
    steep = loss_laws.LossLaw("own", "ouyang", {"N_c": 1e30, "D_c": 1.0, "alpha_N": 1e3, "alpha_D": 1e-3})
    with pytest.raises(BadInput, match="no finite loss"):
        drawn(steep, 1e9, 1e12)
