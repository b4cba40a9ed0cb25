"""What the priors imply against closed forms, and how it is told."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bayesqid import laws
from bayesqid.answers import draws, standing, wording
from bayesqid.inference import implied


def columns(**asked):
    return draws.columns(None, standing.asked(**{"tokens": 1e14} | asked))


def test_mean_and_variance_of_the_log_law_are_those_of_the_priors():
    law, data, size = laws.get("ouyang"), columns(params=7e10, bits=4.0), 60_000
    full = implied.qid(law, data, size)[1][:, 0]
    log_raw = np.log(full * implied.HEADROOM)
    values = {name: float(np.ravel(laws.factor(name, data, 0.0))[0])
              for name in {i.factor for i in (*law.terms, *law.covariates, *law.effects)}}  # fmt: skip
    mean = sum(t.mean * values[t.factor] for t in law.terms) + sum(c.mean * values[c.factor] for c in law.covariates)
    # a half-normal spread of scale s times a standard normal has variance s^2
    centre = {"-x_N": -np.log(7), "x_D": np.log(10)}
    away = {t.factor: values[t.factor] - centre.get(t.factor, 0) for t in law.terms}
    variance = law.scatter**2 + sum(
        (t.sd * values[t.factor]) ** 2 + (t.spread * away[t.factor]) ** 2 for t in law.terms
    ) + sum((c.sd * values[c.factor]) ** 2 for c in law.covariates) + sum(
        (e.spread * values[e.factor]) ** 2 for e in law.effects)  # fmt: skip
    assert log_raw.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / size))
    # kurtosis of the sum is under 6: four standard errors of a variance
    assert log_raw.var() == pytest.approx(variance, rel=4 * np.sqrt(5 / size))


@pytest.mark.parametrize("law", laws.PLAIN.values(), ids=lambda law: law.name)
def test_the_priors_of_every_law_reach_from_a_thousandth_to_past_saturation(law):
    row = implied.table(law, columns(params=7e10, bits=4.0))[0]
    assert row["p_small"] > 0.005
    assert row["p_saturated"] > 0.02
    assert row["lower90"] < 0.01 < row["median"] < 1 < row["upper90"] < implied.HEADROOM


def test_the_same_draws_answer_all_targets():
    seen, _ = implied.qid(laws.get("boxcox"), columns(), 2000)
    assert seen.shape == (2000, 12)
    # at 100T tokens a model of 1B at 2 bits and one of 7B share nearly everything but scatter
    assert np.corrcoef(np.log(seen[:, 0]), np.log(seen[:, 3]))[0, 1] > 0.8
    np.testing.assert_array_equal(seen, implied.qid(laws.get("boxcox"), columns(), 2000)[0])


def test_a_replaced_prior_is_not_told_in_the_words_of_the_shipped_one():
    shipped = laws.get("boxcox")
    law = laws.with_priors(shipped, {"beta": {"mean": 1.0, "sd": 0.1}, "method_level": {"spread": 2.0}})
    rows = {row["name"]: row for row in implied.priors(law, shipped)}
    assert rows["beta"]["sentence"] is None
    assert rows["method_level"]["sentence"] is None
    assert rows["alpha"]["sentence"] == shipped.terms[1].sentence
    text = implied.priors_text(law, list(rows.values()))
    assert "set by you; between 0.836 and 1.16 (90 %)" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())


def test_tables_fit_eighty_columns():
    rows = [row | {"bits": 4.0} for row in implied.table(laws.get("kumar"), columns(), 2000)]
    assert all(len(line) <= 80 for line in implied.as_text(rows, wording.count_text, wording.short).splitlines())


def run(*words, cwd):
    return subprocess.run([sys.executable, "-m", "bayesqid", "show", "priors", *words], cwd=cwd, capture_output=True,
                          text=True, check=False)  # fmt: skip


def test_the_command_prints_one_object_with_what_was_asked(tmp_path):
    done = run("--predictive", "--json", "--params", "7e10", "--bits", "4", cwd=tmp_path)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert [row["params"] for row in found["predictive"]] == [7e10]
    assert {row["name"] for row in found["priors"]} >= {"log_k", "alpha", "beta", "gamma", "lam", "scatter"}
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [("[delta]\nmean = 1\n", "'delta'"), ("[beta]\nsd = -1\n", "above zero"), ("[beta]\nsd = 0.5\nloc = 1\n", "'loc'")],
)
def test_a_bad_prior_file_is_one_sentence(tmp_path, text, says):
    (tmp_path / "p.toml").write_text(text)
    done = run("--prior", "p.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 3


def test_the_command_starts_without_the_sampler(tmp_path):
    code = ("import sys; sys.argv = ['bayesqid', 'show', 'priors', '--predictive']\n"
            "import bayesqid.cli\ntry:\n    bayesqid.cli.main()\nexcept SystemExit:\n    pass\n"
            "print(sorted({'pymc', 'pytensor', 'arviz', 'numba', 'torch'} & set(sys.modules)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
