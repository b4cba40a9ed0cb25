"""Truth: posteriors of known numbers, where probabilities and losses have closed forms; else plain loops."""

import json
import math

import numpy as np
import pytest
import typer
import xarray as xr
from scipy.stats import norm
from typer.testing import CliRunner

import posteriors
from bayesqid import files, methods, recipe
from bayesqid.answers import budget, candidates, choose, draws, project
from bayesqid.cli.choose import choose as command
from bayesqid.errors import BadInput
from level_posterior import TERMS, make, tree

MANY = 40_000
MODEL = {"params": 8e9, "tokens": 2e12}
KNOWN = {"model": "M-7B", "family": "F1", "n_params": 8e9, "n_params_nonembedding": 6.5e9, "train_tokens": 3e12}
GROUPED = "gptq-w2-g128,gptq-w3-g128,gptq-w4-g128,gptq-w5-g128,gptq-w6-g128,gptq-w8-g128"


def log_law(bits, params=8e9, tokens=2e12, terms=TERMS):
    return (terms["log_k"] - terms["alpha"] * math.log(params / 1e9) + terms["beta"] * math.log(tokens / 1e11)
            - terms["gamma"] * math.log(bits / 3))  # fmt: skip


def log_raw(posterior, qid, params=8e9):
    headroom = draws.nearest_headroom(posterior, params)
    return math.log(-headroom * math.log(1 - qid / headroom))


def curve(answer):
    return {row["recipe"]: row for row in choose.as_json(answer)["curve"]}


def test_probabilities_are_those_of_a_normal_deviation():
    """P(QiD <= T) = Phi((ln raw(T) - ln law) / sd), sd from checkpoint, source and scatter."""
    posterior = make(size=MANY, tau=0.4, spread={"checkpoint_level": 0.3, "source_level": 0.2})
    found = curve(choose.choose(posterior, **MODEL, tolerance=0.1, recipes=GROUPED))
    sd = math.sqrt(0.4**2 + 0.3**2 + 0.2**2)
    for text, row in found.items():
        bits = recipe.parse(text).bits + 16 / 128
        want = norm.cdf((log_raw(posterior, 0.1) - log_law(bits)) / sd)
        assert row["p_under"] == pytest.approx(want, abs=4 * math.sqrt(0.25 / MANY)), text
        assert row["p_under_se"] == pytest.approx(math.sqrt(want * (1 - want) / MANY), abs=1e-4)
        assert row["effective_bits"] == bits
    assert found["gptq-w2-g128"]["p_under"] < 0.01 < 0.99 < found["gptq-w8-g128"]["p_under"]


def test_the_choice_is_what_a_loop_over_the_curve_finds():
    posterior = posteriors.posterior(size=400)
    for tolerance, confidence in ((0.05, 0.9), (0.5, 0.5), (0.002, 0.99), (1e-6, 0.9)):
        answer = choose.as_json(choose.choose(posterior, 7e9, None, 1e12, tolerance, confidence))
        enough = [row for row in answer["curve"] if row["p_under"] >= confidence]
        least = min((row["bytes"] for row in enough), default=None)
        best = max((row for row in enough if row["bytes"] == least), key=lambda row: row["p_under"], default=None)
        assert answer["choice"] == (best and best["recipe"])
        assert [row["bytes"] for row in answer["curve"]] == sorted(row["bytes"] for row in answer["curve"])


def test_efficient_recipes_beat_all_that_cost_no_more():
    rows = choose.as_json(choose.choose(posteriors.posterior(), 7e9, None, 1e12))["curve"]
    for number, row in enumerate(rows):
        before = rows[:number]
        want = all(row["p_under"] > r["p_under"] and row["median"] < r["median"] for r in before)
        assert row["efficient"] == want
    assert 2 < sum(row["efficient"] for row in rows) < len(rows)


def test_of_two_that_cost_the_same_the_likelier_is_chosen():
    for level, want in ((0.5, "gptq-w4-g128"), (-0.5, "rtn-w4-g128")):
        posterior = make(size=2000, effects={("method_level", "rtn"): level}, tau=0.3)
        answer = choose.choose(posterior, **MODEL, tolerance=0.5, recipes="rtn-w4-g128,gptq-w4-g128")
        assert answer.attrs["choice"] == want
        assert np.ptp(answer["bytes"].values) == 0


def test_bytes_are_weights_at_their_bits_and_embeddings_at_sixteen():
    posterior = make(size=20)
    bare = curve(choose.choose(posterior, **MODEL, recipes="gptq-w4-g128,rtn-w8"))
    assert bare["gptq-w4-g128"]["bytes"] == 8e9 * 4.125 / 8
    assert bare["rtn-w8"]["bytes"] == pytest.approx(8e9 * (8 + 16 / 4096) / 8)
    answer = choose.choose(posterior, known=KNOWN, recipes="gptq-w4-g128")
    assert curve(answer)["gptq-w4-g128"]["bytes"] == 6.5e9 * 4.125 / 8 + 2 * 1.5e9
    assert answer.attrs["bytes16"] == 2 * 8e9
    assert (answer.attrs["tokens"], answer.attrs["family"]) == (3e12, "F1")
    assert "1.5B embedding parameters" in choose.as_json(answer)["assumptions"]["bytes"]


def test_recipes_of_one_model_share_its_checkpoint_and_those_of_one_method_the_source():
    posterior = make(size=MANY, tau=1e-9, spread={"checkpoint_level": 0.3, "source_level": 0.2})
    targets = candidates.targets(posterior, ["gptq-w3-g128", "gptq-w4-g128", "rtn-w4-g128"], **MODEL)
    qid, _ = project.qid_draws(posterior, candidates.filled(posterior, targets), "new")
    headroom = draws.nearest_headroom(posterior, 8e9)
    found = np.cov(np.log(-headroom * np.log1p(-qid / headroom)).T)
    each = 0.3**2 + 0.2**2
    tolerance = 4 * math.sqrt(2 / MANY) * each
    np.testing.assert_allclose(found, [[each, each, 0.09], [each, each, 0.09], [0.09, 0.09, each]], atol=tolerance)


def test_a_tolerance_in_per_cent_is_a_rise_of_perplexity():
    assert choose.tolerance_nats("5%") == pytest.approx(math.log(1.05))
    assert choose.tolerance_nats(0.05) == choose.tolerance_nats("0.05") == 0.05
    posterior = make(size=300)
    percent, nats = (choose.choose(posterior, **MODEL, tolerance=t) for t in ("10%", math.log1p(0.1)))
    assert percent.equals(nats)


def test_nothing_qualifies_and_the_nearest_is_named():
    posterior = make(size=200)
    answer = choose.choose(posterior, **MODEL, tolerance=1e-4, recipes=GROUPED)
    told = choose.as_json(answer)
    assert told["choice"] is None
    assert told["nearest"] == "gptq-w8-g128"
    text = choose.as_text(answer)
    assert "Choice: none." in text
    assert "gptq-w8-g128 comes nearest" in " ".join(text.split())
    assert "What remains is 16 bits, 16 GB." in " ".join(text.split())


def test_it_says_when_the_choice_hangs_on_monte_carlo_error():
    posterior = make(size=400, tau=0.5)
    first = choose.choose(posterior, **MODEL, tolerance=0.05, confidence=0.05, recipes=GROUPED)
    middle = curve(first)["gptq-w4-g128"]["p_under"]
    assert 0.3 < middle < 0.7
    for confidence, choice in ((middle, "gptq-w4-g128"), (middle + 0.01, "gptq-w5-g128")):
        answer = choose.choose(posterior, **MODEL, tolerance=0.05, confidence=confidence, recipes=GROUPED)
        told = choose.as_json(answer)
        assert (told["choice"], told["close"]) == (choice, ["gptq-w4-g128"])
        assert "the choice hangs on it." in " ".join(choose.as_text(answer).split())
    assert choose.as_json(first)["close"] == []


def test_a_dearer_recipe_that_only_just_qualifies_does_not_put_the_choice_in_doubt():
    posterior = make(size=400, tau=0.5, effects={("method_level", "rtn"): 2.0})
    asked = {"tolerance": 0.05, "recipes": "gptq-w5-g128,rtn-w5-g64"}
    doubtful = curve(choose.choose(posterior, **MODEL, **asked))["rtn-w5-g64"]["p_under"]
    assert 0.02 < doubtful < 0.98
    told = choose.as_json(choose.choose(posterior, **MODEL, **asked, confidence=doubtful))
    assert (told["choice"], told["close"]) == ("gptq-w5-g128", [])


def test_quantizers_that_were_not_fitted_are_marked():
    posterior = make(size=50)
    answer = choose.choose(posterior, **MODEL, recipes="hqq-w4-g64,gptq-w4-g64,rtn-nf4")
    assert {name: row["fitted"] for name, row in curve(answer).items()} == {
        "hqq-w4-g64": False, "gptq-w4-g64": True, "rtn-nf4": False}  # fmt: skip
    assert choose.as_json(answer)["assumptions"]["quantizers"].endswith("hqq (calibrated), bnb-nf4 (rtn)")
    assert "hqq-w4-g64 *" in choose.as_text(answer, everything=True)


def test_default_recipes_are_all_that_can_be_made_on_the_usual_grid():
    assert len(set(candidates.RECIPES)) == len(candidates.RECIPES)
    parsed = [recipe.parse(text) for text in candidates.RECIPES]
    assert [str(one) for one in parsed] == list(candidates.RECIPES)
    assert {one.method for one in parsed} == set(recipe.METHODS)
    assert {(one.format, one.bits, one.group_size) for one in parsed if one.method == "rtn"} == {
        (name, bits, group) for name, widths in candidates.OFFERED.items() for bits in widths
        for group in recipe.FORMATS[name].groups
    }  # fmt: skip
    assert {one.format for one in parsed if one.method != "rtn"} == {"int"}
    assert not any(one.rounds_inputs for one in parsed)
    assert all(methods.generation(methods.effect_key(*methods.canonical(one.quantizer))) != "unknown" for one in parsed)


@pytest.fixture
def measured():
    """A posterior whose checkpoint A-7 deviates by +1 and whose one source of rtn there deviates by -0.5."""
    data = posteriors.cells()
    names = {"crossed-7e+09@3e+12": "A-7"}
    data = data.assign_coords(
        checkpoint=("cell", np.array([names.get(name, name) for name in data["checkpoint"].values], dtype=object)),
        n_params=("cell", data["n_params"].values + 1e9),
    )  # fmt: skip
    made = posteriors.tree(data)
    sample = made["posterior"].to_dataset()
    sample["checkpoint_level"] = xr.zeros_like(sample["checkpoint_level"])
    sample["checkpoint_level"].loc[{"checkpoint": "A-7"}] = 1.0
    sample["source_level"] = xr.zeros_like(sample["source_level"])
    own = [name for name in sample["source_method"].values if name.endswith("| rtn")]
    sample["source_level"].loc[{"source_method": own}] = -0.5
    sample["tau"] = xr.full_like(sample["tau"], 1e-9)
    made["posterior"] = xr.DataTree(sample)
    return draws.Posterior(made, draws.flatten(sample), "made.nc", "0" * 64, "file")


def test_a_fitted_checkpoint_brings_its_facts_and_its_own_deviation(measured):
    answer = choose.choose(measured, checkpoint="a-7", recipes="rtn-w4-g128,gptq-w4-g128")
    told = choose.as_json(answer)
    assert (told["params"], told["tokens"], told["family"]) == (7e9, 3e12, "crossed")
    assert told["assumptions"]["model"] == "checkpoint A-7"
    assert told["bytes16"] == 2 * 8e9
    plain = candidates.targets(measured, ["rtn-w4-g128", "gptq-w4-g128"], 3e12, params=7e9, family="crossed")
    law = draws.log_law(measured, plain, np.random.default_rng(0)) + np.array([0.5, 1.0])
    want = np.median(8.5 * -np.expm1(-np.exp(law) / 8.5), axis=0)
    found = curve(answer)
    np.testing.assert_allclose([found[name]["median"] for name in ("rtn-w4-g128", "gptq-w4-g128")], want, rtol=1e-6)
    elsewhere = choose.choose(measured, checkpoint="A-7", tokens=3e13, recipes="rtn-w4-g128")
    assert elsewhere.attrs["tokens"] == 3e13


def test_a_model_that_was_fitted_is_pointed_to_its_checkpoint(measured):
    known = KNOWN | {"model": "A-7", "family": "crossed"}
    answer = choose.choose(measured, known=known, recipes=GROUPED)
    assert "This model was fitted: --checkpoint A-7 uses its own deviation." in " ".join(choose.as_text(answer).split())
    other = choose.choose(measured, known=known | {"model": "B"}, recipes=GROUPED)
    assert "--checkpoint" not in choose.as_text(other)


def test_the_object_has_the_keys_of_the_contract_and_no_nan():
    posterior = posteriors.posterior()
    told = choose.as_json(choose.choose(posterior, 7e9, None, 1e12))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert {"choice", "curve", "tolerance", "confidence", "verdict", "checks", "posterior", "assumptions", "interval",
            "band", "nearest", "close", "draws", "bytes16", "extrapolation", "params", "tokens", "family", "law",
            "model", "fitted_checkpoint"} == set(told)  # fmt: skip
    assert {"recipe", "effective_bits", "bytes", "median", "p_under"} < set(told["curve"][0])
    assert len(told["curve"]) == len(candidates.RECIPES)


@pytest.mark.parametrize("checks", [{"rhat": True}, {"rhat": False}])
@pytest.mark.parametrize("everything", [False, True])
def test_the_text_fits_a_terminal_of_80_columns(checks, everything):
    posterior = make(size=60, checks=checks, tau=1.0)
    memory = {"memory": "1e5GB", "tokens": 9.99e18, "loss_law": "chinchilla"}
    for asked in ({"params": 1e3, "tokens": 1e3, "tolerance": 1e-7}, {"params": 1e16, "tokens": 9e18}, memory,
                  {"known": KNOWN, "tolerance": 33.3}):  # fmt: skip
        text = choose.as_text(choose.choose(posterior, **asked), everything)
        assert max(map(len, text.splitlines())) <= 80
        assert text.startswith("Verdict:" if checks["rhat"] else "Checks failed: rhat.")
        assert "nan" not in text
        shown = [name for name in candidates.RECIPES if f" {name} " in text.replace("\n", " \n ")]
        assert (len(shown) == len(candidates.RECIPES)) == everything


@pytest.mark.parametrize(
    ("asked", "why"),
    [({"tolerance": 0}, "--tolerance is 0"), ({"tolerance": "nan%"}, "--tolerance"), ({"tolerance": "-5%"}, "--tol"),
     ({"tolerance": "1e400"}, "--tolerance"), ({"tolerance": "five"}, "--tolerance is five"),
     ({"confidence": 1.0}, "--confidence is 1"), ({"confidence": 0.0}, "--confidence is 0"),
     ({"confidence": math.nan}, "--confidence is nan"), ({"params": math.inf}, "--params is inf"),
     ({"params": None}, "needed once"), ({"known": KNOWN}, "needed once"), ({"checkpoint": "one"}, "needed once"),
     ({"tokens": None}, "--tokens"), ({"tokens": -1.0}, "--tokens is -1"), ({"tokens": math.nan}, "--tokens is nan"),
     ({"recipes": ""}, "not a recipe"), ({"recipes": "rtn-w4,none"}, "baseline"), ({"recipes": "magic-w4"}, "magic"),
     ({"family": "F9"}, "F9"), ({"family": "F0", "new_family": True}, "contradict"), ({"lr_phase": "x"}, "--lr-phase"),
     ({"params": None, "checkpoint": "two"}, "'two' is not among the 1 fitted ones, such as one"),
     ({"params": None, "checkpoint": "one", "family": "F0"}, "leave --family"),
     ({"memory": "6GB", "loss_law": "chinchilla"}, "leave --params out"), ({"loss_law": "chinchilla"}, "--memory"),
     ({"params": None, "memory": "6GB"}, "--loss-law"),
     ({"params": None, "memory": "6GB", "loss_law": "chinchilla", "confidence": 0.5}, "leave --confidence out"),
     ({"params": None, "memory": "6", "loss_law": "chinchilla"}, "--memory is '6'"),
     ({"params": None, "memory": "1B", "loss_law": "chinchilla"}, "--memory 1B holds"),
     ({"params": None, "memory": "6GB", "loss_law": "magic"}, "magic"),
     ({"params": None, "memory": "6GB", "loss_law": "chinchilla", "tokens": None}, "--tokens"),
     ({"params": None, "memory": "6GB", "loss_law": "chinchilla", "tokens": math.inf}, "--tokens is inf")],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused_in_one_sentence(asked, why):
    with pytest.raises(BadInput, match=why) as caught:
        choose.choose(make(), **(MODEL | asked))
    assert "\n" not in str(caught.value)


def test_an_undisclosed_token_count_of_a_named_model_is_asked_for():
    with pytest.raises(BadInput, match="--tokens"):
        choose.choose(make(), known=KNOWN | {"train_tokens": math.nan})


@pytest.mark.parametrize(
    ("text", "want"),
    [("6GB", 6e9), ("6 GiB", 6 * 2**30), ("1.5tb", 1.5e12), ("512MiB", 2**29), ("1e3kB", 1e6), (" 8gb ", 8e9),
     ("7B", 7.0)],
)  # fmt: skip
def test_memory_is_read_with_its_unit(text, want):
    assert candidates.memory_bytes(text) == want


@pytest.mark.parametrize("text", ["", "6", "GB", "-6GB", "0GB", "nanGB", "1e400GB", "6PB", "6.5.5GB", "6GB/s", "٦GB"])
def test_memory_that_is_no_size_is_refused(text):
    with pytest.raises(BadInput, match="--memory"):
        candidates.memory_bytes(text)


def test_the_lowest_loss_under_a_budget_is_what_a_loop_finds():
    """One draw without deviations: L16 of Hoffmann et al. and QiD of the printed law, both written out anew."""
    posterior = make(tau=1e-12)
    room, count = 6e9, 2e12
    answer = choose.choose(posterior, memory="6GB", tokens=count, loss_law="hoffmann", recipes=GROUPED)
    want = {}
    for text in GROUPED.split(","):
        bits = recipe.parse(text).bits + 16 / 128
        size = 8 * room / bits
        headroom = draws.nearest_headroom(posterior, size)
        loss = 1.6934 + 406.4 / size**0.3392 + 410.7 / count**0.2849
        want[text] = loss - headroom * math.expm1(-math.exp(log_law(bits, size, count)) / headroom)
        row = answer.sel(recipe=text)
        assert row["params"].item() == pytest.approx(size)
        assert row["params"].item() * row["effective_bits"].item() / 8 == pytest.approx(room)
        assert row["expected"].item() == pytest.approx(want[text], rel=1e-6)
        assert row["loss16_median"].item() == pytest.approx(loss, rel=1e-9)
    assert answer["recipe"].values.tolist() == sorted(want, key=want.__getitem__)
    assert answer.attrs["choice"] == min(want, key=want.__getitem__)
    assert answer["p_best"].values.tolist() == [1.0] + [0.0] * 5


def test_the_model_to_be_trained_deviates_alike_whatever_its_size():
    """Only checkpoints deviate, by u ~ Normal(0, 1): the share of u at which a recipe is best, from 20001 quantiles."""
    recipes = {"gptq-w3-g128": 3.125, "gptq-w4-g128": 4.125}
    posterior = make(size=4000, tau=1e-9, spread={"checkpoint_level": 1.0})
    answer = budget.budget(posterior, "6GB", 2e11, "hoffmann", ",".join(recipes))
    u = norm.ppf((np.arange(20_001) + 0.5) / 20_001)
    losses = []
    for bits in recipes.values():
        size = 8 * 6e9 / bits
        headroom = draws.nearest_headroom(posterior, size)
        raw = np.exp(log_law(bits, size, 2e11) + u)
        losses.append(406.4 / size**0.3392 - headroom * np.expm1(-raw / headroom))
    want = (losses[1] < losses[0]).mean()
    assert 0.6 < want < 0.99
    assert answer["p_best"].sel(recipe="gptq-w4-g128").item() == pytest.approx(want, abs=4 * math.sqrt(0.25 / 4000))


def test_shares_of_being_best_add_up_over_recipes_and_within_bits():
    answer = budget.budget(posteriors.posterior(), "6GB", 1e12, "chinchilla")
    assert float(answer["p_best"].sum()) == pytest.approx(1)
    for row in (answer.isel(recipe=i) for i in range(0, answer.sizes["recipe"], 17)):
        same = answer["bits"].values == row["bits"].item()
        assert row["p_best_bits"].item() == pytest.approx(answer["p_best"].values[same].sum())
    assert answer["expected"].values.tolist() == sorted(answer["expected"].values)
    told = choose.as_json(answer)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["choice"] == told["curve"][0]["recipe"]
    assert "correlations" in told["assumptions"]["loss_uncertainty"]


def test_what_is_asked_about_does_not_move_the_law_of_the_loss():
    posterior = posteriors.posterior()
    all_, few = (budget.budget(posterior, "6GB", 1e12, "chinchilla", recipes) for recipes in (None, "gptq-w4-g128"))
    name = {"recipe": "gptq-w4-g128"}
    assert all_["loss16_median"].sel(name).item() == few["loss16_median"].sel(name).item()


def test_the_command_prints_one_object_or_a_table(tmp_path):
    path = tmp_path / "posterior.nc"
    files.write_netcdf(tree(size=50), path)
    app = typer.Typer()
    app.command()(command)
    words = [str(path), "--params", "8e9", "--tokens", "2e12", "--tolerance", "10%", "--recipes", GROUPED]
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert told["tolerance"] == pytest.approx(math.log(1.1))
    assert f"Posterior: {path} (file)." in shown.stderr
    brief, whole = (CliRunner().invoke(app, [*words, *more]).stdout for more in ((), ("--all",)))
    assert brief.startswith("Verdict:")
    assert len(whole.splitlines()) >= len(brief.splitlines()) - 3
    budgeted = CliRunner().invoke(app, [str(path), "--memory", "6GB", "--tokens", "2e12", "--loss-law", "ouyang"])
    assert "have the lowest expected loss" in " ".join(budgeted.stdout.split())
