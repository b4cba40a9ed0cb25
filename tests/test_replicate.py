"""Truth: formulas written out here, linear programs, normal tails, random constants within their rounding."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.optimize import linprog
from scipy.stats import norm
from typer.testing import CliRunner

import posteriors
from bayesqid import laws
from bayesqid.answers import draws, replicate, replicate_kumar, replicate_ouyang, replicate_rows, tokens
from bayesqid.bundled import data_dir
from bayesqid.cli.replicate import replicate as command
from bayesqid.errors import BadInput
from level_posterior import TERMS, make

MANY = 40_000
TABLE = json.loads((Path(__file__).parent / "data" / "ouyang_table1.json").read_text())["rows"]
LAW = replicate_rows.stored("ouyang")["law"]
K, ALPHA, BETA, GAMMA = 0.017, 0.2261, 0.5251, 5.4967


@pytest.fixture(scope="module")
def bundled():
    return draws.read(None, brief=True)


@pytest.fixture(scope="module")
def answers(bundled):
    return {paper: replicate.replicate(bundled, paper) for paper in replicate.PAPERS}


def test_stored_numbers_are_those_that_stand_elsewhere_in_the_package():
    entries = replicate_ouyang.table()
    assert len(entries) == 48
    for entry in entries:
        place = (2, 3, 4).index(entry["bits"])
        assert entry["tokens"] == TABLE[entry["size"]][f"{entry['qid']:g}"][place] * 1e12
        assert entry["tokens"] == tokens.PRINTED[entry["params"]][entry["qid"]][place] * 1e12
    assert LAW["constants"] == laws.get("ouyang").published["unified"]
    assert replicate_rows.stored("kumar")["law"]["constants"] == laws.get("kumar").published["unified"]


def test_rows_of_table_1_follow_eq_8_and_their_ends_the_rounding_of_its_constants():
    rng = np.random.default_rng(1)
    k = K + rng.uniform(-5e-4, 5e-4, 4000)
    alpha, beta, gamma = (value + rng.uniform(-5e-5, 5e-5, 4000) for value in (ALPHA, BETA, GAMMA))
    for entry in replicate_ouyang.table():
        row, n, p = replicate_ouyang.recomputed(entry, LAW), entry["params"], entry["bits"]
        assert pytest.approx(entry["qid"], rel=1e-9) == K * row.recomputed**BETA / (n**ALPHA * p**GAMMA)
        there = (entry["qid"] * n**alpha * p**gamma / k) ** (1 / beta)
        assert row.low <= there.min() <= there.max() <= row.high
        # of 4000 draws some come close to the corners: the ends are no wider than they must be
        assert there.max() / there.min() > (row.high / row.low) ** 0.9
        meets = row.low <= entry["tokens"] + 5e7 and entry["tokens"] - 5e7 <= row.high
        assert row.follows == ("reproduced" if meets else "not reproduced")


def linear_program(bits, boxed):
    """Interval of ln k, alpha and beta over all constants that give every entry of a column, None if there are none."""
    rows, limits = [], []
    for size, by_qid in TABLE.items():
        n = float(size[:-1]) * 1e9
        for qid, counts in by_qid.items():
            count = counts[bits - 2]
            for sign in (1, -1):
                log = math.log((count - sign * 5e-5) * 1e12)
                rows.append([sign, -sign * math.log(n), sign * log, -sign * math.log(bits)])
                limits.append(sign * math.log(float(qid)))
    free = [(None, None)] * 3 + [(0.0, 0.0)]
    box = [(math.log(K - 5e-4), math.log(K + 5e-4)), *((v - 5e-5, v + 5e-5) for v in (ALPHA, BETA, GAMMA))]
    ends = []
    for place in range(3):
        aim = np.eye(4)[place]
        found = [linprog(sign * aim, rows, limits, bounds=box if boxed else free) for sign in (1, -1)]
        if any(result.status for result in found):
            return None
        ends.append((found[0].fun, -found[1].fun))
    return ends


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_column_is_a_power_law_within_the_intervals_of_a_linear_program(bits):
    (column,) = [c for c in replicate_ouyang.columns(LAW, replicate_ouyang.table()) if c["bits"] == bits]
    k, alpha, beta = linear_program(bits, boxed=False)
    assert np.log(column["own"]["k"]) == pytest.approx(k, abs=2e-4)
    assert column["own"]["alpha"] == pytest.approx(alpha, abs=2e-6)
    assert column["own"]["beta"] == pytest.approx(beta, abs=2e-6)
    assert column["together"] == (linear_program(bits, boxed=True) is not None)
    # least squares of the logarithms, which know nothing of rounding, agree where it is fine
    own = [entry for entry in replicate_ouyang.table() if entry["bits"] == bits]
    x = np.array([[1, math.log(e["tokens"]), -math.log(e["params"])] for e in own])
    fitted = np.linalg.lstsq(x, np.log([e["qid"] for e in own]), rcond=None)[0]
    assert np.mean(column["own"]["beta"]) == pytest.approx(fitted[1], abs=2e-4 if bits > 2 else 0.01)


def test_a_table_made_of_the_printed_constants_is_recognised_as_that():
    entries = replicate_ouyang.table()
    made = [e | {"tokens": round(replicate_ouyang.by_law(e, K, ALPHA, BETA, GAMMA) / 1e12, 4) * 1e12} for e in entries]
    for column in replicate_ouyang.columns(LAW, made):
        assert column["together"]
        assert column["follow"] == 16
        assert column["own"]["beta"][0] <= BETA <= column["own"]["beta"][1]
        assert column["own"]["alpha"][0] <= ALPHA <= column["own"]["alpha"][1]
    # entries two units of the last digit off, up and down in turn, lie on no power law
    spoilt = [e | {"tokens": e["tokens"] + 4 * e["error"] * (-1) ** i} for i, e in enumerate(made)]
    assert [c["own"] for c in replicate_ouyang.columns(LAW, spoilt)][0] is None


def test_tail_areas_are_the_normal_s_and_a_range_counts_by_its_nearest_value():
    x = np.random.default_rng(2).normal(size=MANY)
    row = replicate_rows.Row("a", "b")
    for value in (-2.0, -0.5, 0.0, 1.3):
        assert replicate_rows.tail(x, value) == pytest.approx(2 * norm.cdf(-abs(value)), abs=0.01)
    assert replicate_rows.beside(row, x, (-5.0, 5.0)).p == pytest.approx(1.0, abs=0.01)
    near = replicate_rows.beside(row, x, (1.9, 5.0))
    assert near.p == pytest.approx(2 * norm.cdf(-1.9), abs=0.01)
    assert (near.verdict, replicate_rows.beside(row, x, (1.5, 5.0)).verdict) == ("excluded", "compatible")
    assert replicate_rows.beside(row, x, (1.9, 5.0), informed=False).verdict == replicate_rows.UNANSWERABLE
    assert replicate_rows.toward(row, x + 1).p == pytest.approx(norm.cdf(1), abs=0.01)
    assert replicate_rows.toward(row, x - 2).verdict == "excluded"


def test_a_value_beyond_infinite_draws_has_a_tail_but_no_upper_end():
    x = np.concatenate([np.linspace(1, 2, 900), np.full(100, np.inf)])
    row = replicate_rows.beside(replicate_rows.Row("a", "b"), x, 2.5)
    assert row.p == pytest.approx(0.2)
    assert math.isnan(row.upper90)
    assert row.lower90 == pytest.approx(1.055, abs=0.01)


def test_tokens_of_a_known_posterior_have_the_tail_areas_of_the_log_normal():
    """ln D = const - log_k / beta, so its standard deviation is that of everything in the level over beta."""
    posterior = make(size=MANY // 2, tau=0.4, spread={"checkpoint_level": 0.3, "source_level": 0.2})
    sd = math.sqrt(0.3**2 + 0.2**2 + 0.4**2) / TERMS["beta"]
    rows, _ = replicate_ouyang.table_rows(LAW, replicate_ouyang.table(), posterior)
    for entry, row in zip(replicate_ouyang.table(), rows, strict=True):
        headroom = draws.nearest_headroom(posterior, entry["params"])
        raw = -headroom * math.log(1 - entry["qid"] / headroom)
        level = (TERMS["log_k"] - TERMS["alpha"] * math.log(entry["params"] / 1e9)
                 - TERMS["gamma"] * math.log((entry["bits"] + 16 / 128) / 3))  # fmt: skip
        mean = math.log(1e11) + (math.log(raw) - level) / TERMS["beta"]
        z = (math.log(entry["tokens"]) - mean) / sd
        assert row.p == pytest.approx(2 * norm.cdf(-abs(z)), abs=0.02)


def test_exponents_are_held_against_population_and_family(bundled, answers):
    rows = {row["claim"]: row for row in replicate.rows(answers["ouyang"]) if row["part"] == "exponents"}
    for claim, values in (("beta, Eq. 8", bundled.sample["mu"].sel(term="beta")),
                          ("alpha, Pythia", bundled.sample["theta"].sel(term="alpha", family="Pythia"))):  # fmt: skip
        below = float((values <= rows[claim]["printed"]).mean())
        assert rows[claim]["p"] == pytest.approx(2 * min(below, 1 - below), abs=1e-9)
        assert rows[claim]["verdict"] == ("excluded" if rows[claim]["p"] < 0.1 else "compatible")


def test_a_family_whose_tokens_vary_is_held_against_beta_on_its_own():
    posterior = posteriors.posterior()
    assert replicate_ouyang.varying(posterior) == ["crossed"]
    claims = [row["claim"] for row in replicate.rows(replicate.replicate(posterior, "ouyang"))]
    assert "beta, crossed" in claims
    assert "beta, fixed" not in claims


def test_exponents_of_columns_read_the_bit_width_where_the_law_has_one():
    effects = {("width_beta", "2"): -0.1, ("width_beta", "4"): 0.2}
    posterior = make(size=50, law="per-bit", effects=effects)
    found = replicate_ouyang.columns(LAW, replicate_ouyang.table())
    rows = {row.claim: row for row in replicate_ouyang.column_rows(found, posterior)}
    assert rows["beta, 4-bit column"].median == pytest.approx(TERMS["beta"] + 0.2)
    assert rows["beta, 2-bit column"].median == pytest.approx(TERMS["beta"] - 0.1)
    assert rows["beta rises, 2 to 4 bits"].p == 1
    plain = {row.claim: row for row in replicate_ouyang.column_rows(found, make(size=50, law="boxcox"))}
    assert plain["beta rises, 2 to 4 bits"].verdict == replicate_rows.UNANSWERABLE


def kumar(n, d, p):
    return 0.0598 * d**0.5068 / n**0.3439 * math.exp(-p / 0.5907)


def test_the_law_of_kumar_its_factor_and_its_units(answers):
    rows = {row["claim"]: row for row in replicate.rows(answers["kumar"])}
    known = {"220M, 26B tokens, 2 bits": kumar(2.2e8, 2.6e10, 2), "7B, 2T tokens, 4 bits": kumar(7e9, 2e12, 4),
             "N, D in billions": kumar(0.22, 26, 3), "N, D raw counts": kumar(2.2e8, 2.6e10, 3)}  # fmt: skip
    for claim, value in known.items():
        row = rows[claim]
        assert row["recomputed"] == pytest.approx(value, rel=1e-9)
        assert (row["low"], row["high"]) == pytest.approx((value * math.exp(-1.1277), value * math.exp(1.1277)))


@pytest.mark.parametrize(("lam", "three", "four"), [
    (0.0, (3 / 2) ** 5, (4 / 3) ** 5), (1.0, math.exp(5 / 3), math.exp(5 / 3)),
])  # fmt: skip
def test_one_bit_less_is_a_power_at_lam_0_and_an_exponential_at_lam_1(lam, three, four):
    posterior = make(size=20, law="boxcox", lam=lam)
    assert replicate_kumar.step(posterior, 2, 3) == pytest.approx(three)
    assert replicate_kumar.step(posterior, 3, 4) == pytest.approx(four)


def test_lam_excludes_both_forms_or_is_no_question():
    x = np.random.default_rng(3).normal(0.5, 0.2, MANY)
    one, zero = replicate_kumar.lam_rows(make(size=MANY, law="boxcox", lam=x))
    assert (one.p, zero.p) == pytest.approx((2 * norm.cdf(-2.5),) * 2, abs=0.005)
    assert {one.verdict, zero.verdict} == {"excluded"}
    fixed = replicate_kumar.lam_rows(make(size=50, law="kumar"))
    assert {row.verdict for row in fixed} == {replicate_rows.UNANSWERABLE}
    # as wide as its prior: nothing was learned
    wide = make(size=MANY, law="boxcox", lam=0.5 + 1.5 * (x - 0.5))
    assert replicate_kumar.lam_rows(wide)[0].verdict == replicate_rows.UNANSWERABLE


def test_comparisons_are_counted_and_what_chance_leaves(answers):
    told = replicate.as_json(answers["ouyang"])
    tested = [row for row in told["rows"] if row["verdict"] in ("compatible", "excluded")]
    counts = told["comparisons"]
    assert counts["values"] == len(tested)
    assert counts["excluded"] == sum(row["p"] < 0.1 for row in tested) > 0
    assert counts["expected"] == pytest.approx(0.1 * len(tested))
    assert counts["adjusted"] == pytest.approx(min(1, len(tested) * max(min(row["p"] for row in tested), 2 / 800)))
    assert counts["values"] > 0 == counts["directions"]


@pytest.mark.parametrize("paper", replicate.PAPERS)
def test_answers_fit_a_terminal_and_json(answers, paper):
    told = json.loads(json.dumps(replicate.as_json(answers[paper]), allow_nan=False))
    assert told["rows"]
    assert told["interval"] == "eti"
    lines = replicate.as_text(answers[paper]).splitlines()
    assert max(map(len, lines)) <= 80
    claims = [row["claim"] for row in told["rows"]]
    assert len(set(claims)) == len(claims)
    assert max(map(len, claims)) <= 24
    for row in told["rows"]:
        both = row["printed"] is not None and row["recomputed"] is not None
        assert row["difference"] == (pytest.approx(row["recomputed"] / row["printed"] - 1) if both else None)


def test_laws_without_tokens_or_a_population_answer_nothing_they_do_not_know():
    known = posteriors.posterior()
    independent = known.tree.copy()
    independent.attrs["model"] = "independent"
    apart = draws.Posterior(independent, known.sample, known.path, known.sha256, known.origin)
    for paper in ("ouyang", "kumar", "xu"):
        rows = replicate.rows(replicate.replicate(apart, paper))
        of = [row["verdict"] for row in rows if row["part"] not in ("exponents", "bits") and row["p_of"] != "stored"]
        assert set(of) == {replicate_rows.UNANSWERABLE}
    phase = known.tree.copy()
    phase.attrs["drivers"] = "phase"
    still = draws.Posterior(phase, known.sample, known.path, known.sha256, known.origin)
    rows = replicate.rows(replicate.replicate(still, "ouyang"))
    assert {row["verdict"] for row in rows if row["part"] == "Table 1"} == {replicate_rows.UNANSWERABLE}
    assert {row["verdict"] for row in rows if row["claim"].startswith("beta, ")} == {replicate_rows.UNANSWERABLE}


def test_failed_checks_come_first_and_an_unknown_paper_is_bad_input():
    posterior = posteriors.posterior(checks={"rhat": False})
    text = replicate.as_text(replicate.replicate(posterior, "kumar"))
    assert text.startswith("Checks failed: rhat.\nVerdict: checks failed")
    with pytest.raises(BadInput, match="no paper 'frantar'.*ouyang, kumar, cao, xu"):
        replicate.replicate(posterior, "frantar")


def test_command_prints_one_object_and_says_which_posterior():
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, ["kumar", str(data_dir() / "posterior.nc"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["paper"] == "kumar"
    assert "posterior.nc (file)" in done.stderr
