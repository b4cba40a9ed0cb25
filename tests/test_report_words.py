"""What a report says of posteriors of known kinds, and what it does not say."""

import re
from dataclasses import replace

import numpy as np
import pytest

import posteriors
from bayesqid import laws, report
from bayesqid.answers import draws, identification
from bayesqid.report import asked, association, checklist, pages, words
from reportpage import Page, projected

HOSTILE = ("<script>alert(1)</script>", "$\\frac{a", "| pipe & \"quote\"", "_hidden")


def without_tokens(warning=""):
    """A posterior of `--drivers phase`: no term beta."""
    tree = posteriors.tree(warning=warning)
    law = laws.variant("boxcox", "phase")
    for name in ("posterior", "prior"):
        group = tree[name].to_dataset().drop_vars("beta").sel(
            term=list(law.term_names), covariate_name=[c.name for c in law.covariates])  # fmt: skip
        tree[name] = group
    tree.attrs["drivers"] = "phase"
    return draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "made/posterior.nc", "0" * 64, "file")


def said(posterior, **options):
    projection = projected(posterior, **options)
    return pages.heading(posterior, projection)["summary"]


def one_family(name):
    return posteriors.posterior(data=posteriors.cells({name: posteriors.FAMILIES[name]}))


@pytest.mark.parametrize(
    ("made", "clause"),
    [
        (posteriors.posterior, "is informed within crossed and by differences between families."),
        (lambda: posteriors.posterior(data=posteriors.cells(
            {name: posteriors.FAMILIES[name] for name in ("fixed", "lockstep")})),
         "the tokens exponent is informed by differences between families only."),
        (lambda: one_family("crossed"), "is informed within crossed only, the one family of the data."),
        (lambda: one_family("fixed"), "in the one family of the data the effect of tokens cannot be told from that of"),
        (lambda: posteriors.posterior(beta_sd=0.25), "the data do not inform the tokens exponent, so the interval is"),
        (without_tokens, "the law as fitted has no term of tokens."),
    ],
)  # fmt: skip
def test_the_first_sentence_says_what_the_tokens_exponent_rests_on(made, clause):
    posterior = made()
    text = said(posterior, tokens=1e13, params=7e9, bits=4)
    assert clause in text
    others = {"differences between families only", "only, the one family", "cannot be told from that of size",
              "do not inform", "no term of tokens", "and by differences between families"}  # fmt: skip
    assert [one for one in others if one in text] == [one for one in others if one in clause + " size"]


def test_the_first_sentence_states_the_numbers_of_the_answer():
    posterior = posteriors.posterior()
    projection = projected(posterior)
    row = asked.headline([{**r} for r in words.project.rows(projection)])
    assert (row["params"], row["bits"], row["tokens"]) == (70e9, 4.0, 1e14)
    text = words.lead(posterior, projection)
    assert text.startswith("At 100T tokens and 4 bits a new family's model of 70B parameters loses")
    numbers = [float(x) for x in re.findall(r"\d+\.\d+", text)]
    assert numbers == pytest.approx([row["median"], row["lower90"], row["upper90"]], rel=0.005)


def test_failed_checks_forbid_the_first_sentence_and_good_ones_do_not():
    assert said(posteriors.posterior(checks={"rhat": False})).startswith("Not to be used, for the sampler's own checks")
    assert "Not to be used" not in said(posteriors.posterior())


def test_a_destroyed_loss_has_no_number_in_the_first_sentence():
    text = words.lead(one := posteriors.posterior(log_k=5.0), projected(one, tokens=1e13, params=7e9, bits=2))
    assert "has its loss destroyed" in text
    assert "nats" not in text


@pytest.mark.slow
@pytest.mark.parametrize("made", [without_tokens, posteriors.posterior, lambda: one_family("fixed")])
def test_posteriors_of_every_kind_make_a_whole_page(made, monkeypatch):
    posterior = made()
    if made is posteriors.posterior:
        # a law with hardly any covariate, none of decay
        bare = replace(laws.get("boxcox"), covariates=laws.get("boxcox").covariates[:1])
        monkeypatch.setattr(draws, "law_of", lambda tree: bare)
        posterior = replace(posterior, sample=posterior.sample.isel(covariate_name=[0]))
        for name in ("posterior", "prior"):
            posterior.tree[name] = posterior.tree[name].to_dataset().isel(covariate_name=[0])
    content = pages.sections(posterior, projected(posterior, tokens=1e13, params=7e9))
    names = [block.name for section in content for block in section.blocks if hasattr(block, "name")]
    assert len(names) == len(set(names))
    has_tokens = "beta" in posterior.law.term_names
    assert ({"thresholds", "levels", "tokens"} <= set(names)) == has_tokens
    text = pages.markdown(pages.heading(posterior, projected(posterior)) | {"sections": content})
    assert ("has no term of tokens" in text) == (not has_tokens)
    assert "nan" not in re.findall(r"[a-z]+", text)
    # one family cannot tell what goes with what over families
    assert ("association" in names) == (len(posterior.families) >= 3)


@pytest.mark.slow
def test_hostile_names_are_text_and_no_markup(tmp_path):
    families = dict.fromkeys(HOSTILE, posteriors.FAMILIES["crossed"])
    posterior = posteriors.posterior(data=posteriors.cells(families))
    report.write(posterior, projected(posterior, family=HOSTILE[0]), tmp_path)
    source = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in source
    page = Page(source)
    assert page.open == []
    for name in HOSTILE:
        assert name in page.text
    table = [line for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines() if "pipe" in line]
    assert any("\\| pipe" in line for line in table)
    assert not any(re.search(r"(?<!\\)\| pipe", line) for line in table if line.startswith("|") and "ETI" not in line)


def test_tokens_or_decay_is_told_from_the_answer():
    (text,) = association.tokens_or_decay(posteriors.posterior())
    assert text.startswith("These data do not tell the effect of tokens from that of learning-rate decay.")
    assert "None of the 15 fitted checkpoints stands before the end of decay" in text
    (assumed,) = association.tokens_or_decay(without_tokens())
    assert assumed.startswith("The fit assumed that tokens do nothing")


def test_correlations_over_families_are_those_of_the_draws():
    posterior = posteriors.posterior()
    data = posterior.cells
    size = {"crossed": 32000.0, "fixed": 50000.0, "lockstep": 128000.0}
    data["vocab_size"] = ("cell", np.array([size[str(name)] for name in data["family"].values]))
    vars(posterior)["cells"] = data
    rows = {(row["quantity"], row["with"]): row for row in association.rows(posterior)}
    x = np.log([size[name] for name in posterior.families])
    theta = posterior.sample["theta"].sel(term="beta").transpose("draw", "family").to_numpy()
    each = [np.corrcoef(values, x)[0, 1] for values in theta]
    assert rows["beta", "vocabulary"]["median"] == pytest.approx(np.median(each))
    assert rows["beta", "vocabulary"]["lower90"] == pytest.approx(np.quantile(each, 0.05))
    # critical value of r for four degrees of freedom, two-sided 10 %
    assert association.by_chance(6) == pytest.approx(0.729, abs=5e-4)


def test_the_level_of_a_family_is_its_deviation_at_the_centre_of_its_data():
    posterior = posteriors.posterior()
    at = association.centres(posterior)
    own = posterior.sample["theta"].sel(family="lockstep") - posterior.sample["mu"]
    x_n, x_d = np.log(7e9 * 10 ** (1 / 3) / 1e9), 0.0
    centre = np.exp(np.log([1e9, 7e9, 70e9]).mean())
    x_n, x_d = np.log(centre / 1e9), np.log(20 * centre / 1e11)
    expected = own.sel(term="log_k") - own.sel(term="alpha") * x_n + own.sel(term="beta") * x_d
    found = association.levels(posterior, at)[:, posterior.families.index("lockstep")]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_equal_vocabularies_correlate_with_nothing():
    assert {row["with"] for row in association.rows(posteriors.posterior())} == {"tokens"}


def test_what_a_file_does_not_hold_reads_not_recorded():
    full = {row["item"]: row["answer"] for row in checklist.table(posteriors.posterior()).rows}
    posterior = posteriors.posterior()
    for name in ("engine", "versions", "seed"):
        del posterior.tree.attrs[name]
    bare = {row["item"]: row["answer"] for row in checklist.table(posterior).rows}
    assert full["seed"] == "seed 7"
    assert full["algorithm"] == "NUTS, target acceptance 0.97, 200 draws a chain, tries 2"
    assert {item for item in bare if bare[item] == "not recorded"} - {
        item for item in full if full[item] == "not recorded"} == {"seed", "algorithm"}  # fmt: skip
    assert bare["code of the analysis"] == "bayesqid, version not recorded; command not recorded"
    for item in ("code that trained the models", "training compute", "hyperparameters of training", "initial values"):
        assert full[item] == "not recorded"


def test_the_checklist_counts_what_the_cells_hold():
    posterior = posteriors.posterior(checks={"rhat": False})
    found = {row["item"]: row["answer"] for row in checklist.table(posterior).rows}
    assert found["points"].startswith(f"{posterior.cells.sizes['cell']} cells")
    assert found["range of training tokens"] == "20B to 30T"
    assert found["models"].startswith("9 models of 3 families, 15 checkpoints")
    assert found["left out"].startswith("3 rows, for 1 reasons")
    assert found["convergence"] == "FAILED: rhat"
    assert found["learning-rate phase of the checkpoints"] == "annealed (15); 3 models have more than one checkpoint"


def test_clause_and_section_agree():
    posterior = posteriors.posterior()
    identified = identification.families(posterior)
    telling = re.search(r"within (\w+)", words.tokens_clause(posterior, identified))
    assert telling
    assert f"In these data {telling[1]} varies its tokens" in identification.sentences(posterior, identified)[0]
