import math
from collections import Counter
from pathlib import Path

import pytest

from bayesqid import recipe, suite
from bayesqid.cli import show
from bayesqid.errors import BadInput


def by_revision(name, model):
    return {c.revision: c for c in suite.load(name).checkpoints if c.model == model}


MINIMAL = """
name = "mine"
title = "Mine"
recipes = ["rtn-w4"]
[text]
evaluation = "eval.jsonl"
calibration = "calibration.jsonl"
context = 128
[schedule.flat]
kind = "constant"
status = "verified"
[[run]]
family = "mine"
revision = "step{step}"
schedule = "flat"
steps = { start = 10, stop = 30, every = 10 }
[[model]]
hub = "me/mine-1b"
n_params = 1100
n_params_nonembedding = 1000
vocab_size = 100
tokens_per_step = 7
status = "verified"
"""


@pytest.fixture
def manifest(tmp_path):
    def write(text=MINIMAL):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", suite.names())
def test_every_bundled_suite_is_whole(name):
    loaded = suite.load(name)
    assert loaded.name == name == loaded.source.stem
    assert len({c.id for c in loaded.checkpoints}) == len(loaded.checkpoints) > 0
    for text in loaded.recipes:
        assert str(recipe.parse(text)) == text
    for checkpoint in loaded.checkpoints:
        assert checkpoint.lr_phase in suite.PHASES
        assert 0 <= checkpoint.lr_fraction <= 1
        assert 0 < checkpoint.n_params_nonembedding < checkpoint.n_params
        assert checkpoint.status
        assert checkpoint.excluded is not None or checkpoint.train_tokens > 0
    assert Path(loaded.text.evaluation).is_absolute()
    assert loaded.text.context > 0


def test_loading_twice_gives_the_same_suite():
    assert suite.load("gemstones") == suite.load("gemstones")


def test_pythia_has_154_revisions_of_every_model_and_299_892_736_000_tokens_at_the_end():
    checkpoints = suite.load("pythia").checkpoints
    counts = Counter(c.hub for c in checkpoints)
    assert set(counts.values()) == {154}
    assert len(counts) == 10 + 8 + 5 * 9
    last = [c for c in checkpoints if c.revision == "step143000"]
    assert {c.train_tokens for c in last} == {299_892_736_000}
    assert {(c.lr_phase, c.lr_fraction) for c in last} == {("annealed", 0.1)}


def test_pythia_learning_rate_follows_the_cosine():
    seen = by_revision("pythia", "pythia-1b")
    # 71,500 = half of 143,000, warm-up 1,430: t = 70070/141570
    t = (71_500 - 1_430) / (143_000 - 1_430)
    rate = {"kind": "cosine", "warmup": 1430, "end": 143000, "floor": 0.1}
    phase, fraction = suite.lr_at(rate, 71_500, 0)
    assert phase == "decaying"
    assert fraction == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * t)), rel=1e-12)
    assert fraction == pytest.approx(0.5571, abs=5e-4)
    assert seen["step1000"].lr_fraction == pytest.approx(1000 / 1430)
    assert seen["step1000"].lr_phase == "unknown"
    fractions = [seen[f"step{step}"].lr_fraction for step in range(2000, 144000, 1000)]
    assert fractions == sorted(fractions, reverse=True)


def test_pythia_wrong_weights_are_excluded_and_the_rest_is_not():
    small = by_revision("pythia", "pythia-2.8b")
    usable = [revision for revision, c in small.items() if c.excluded is None]
    assert len(small) - len(usable) == 86  # 76 equal to main and 10 that share one file
    assert len(usable) == 68
    assert small["step53000"].excluded
    assert small["step66000"].excluded is None
    big = by_revision("pythia", "pythia-12b")
    assert [r for r, c in big.items() if c.excluded] == ["step0", "step1", "step2", "step50000", "step58000"]
    assert by_revision("pythia", "pythia-410m-seed9")["step40000"].excluded == "weights missing"
    assert by_revision("pythia", "pythia-410m-seed8")["step40000"].excluded is None


def test_pythia_sizes_follow_from_layers_and_width():
    for model, layers, width, vocabulary in (("pythia-70m", 6, 512, 50304), ("pythia-12b", 36, 5120, 50688)):
        checkpoint = by_revision("pythia", model)["step1000"]
        blocks = layers * (12 * width**2 + 13 * width) + 2 * width
        assert checkpoint.n_params_nonembedding == blocks
        assert checkpoint.n_params == blocks + 2 * vocabulary * width


@pytest.mark.parametrize(
    ("model", "revision", "tokens"),
    [
        ("OLMo-2-0425-1B", "stage1-step1907359-tokens4001B", 4000021741568),
        ("OLMo-2-1124-7B", "stage1-step928646-tokens3896B", 3895023632384),
        ("OLMo-2-1124-7B", "stage1-step101000-tokens424B", 101000 * 4194304),
        ("OLMo-2-1124-7B", "stage1-step175000-tokens735B", 175000 * 4194304),
        ("OLMo-2-1124-13B", "stage1-step596057-tokens5001B", 5000088518656),
    ],
)
def test_olmo_labels_round_up_but_tokens_do_not(model, revision, tokens):
    assert by_revision("olmo2", model)[revision].train_tokens == tokens


def test_olmo_cosine_was_cut_short_at_1b_and_7b():
    last = by_revision("olmo2", "OLMo-2-1124-7B")["stage1-step928646-tokens3896B"]
    t = (928646 * 4194304 - 8388608000) / (5e12 - 8388608000)
    assert last.lr_phase == "decaying"
    assert last.lr_fraction == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * t)))
    assert by_revision("olmo2", "OLMo-2-1124-13B")["stage1-step596057-tokens5001B"].lr_phase == "annealed"


def test_olmo_duplicates_are_excluded():
    seen = by_revision("olmo2", "OLMo-2-1124-7B")
    assert sum(c.excluded is not None for c in seen.values()) == 10
    assert "same weights" in (seen["stage1-step300000-tokens1259B"].excluded or "")


def test_smollm3_stages_steps_and_tokens():
    checkpoints = suite.load("smollm3").checkpoints
    assert Counter(c.revision[:6] for c in checkpoints) == {"stage1": 86, "stage2": 19, "stage3": 13}
    last = checkpoints[-1]
    assert (last.revision, last.train_tokens) == ("stage3-step-4720000", 11_135_877_120_000)
    assert last.lr_phase == "annealed"
    assert last.lr_fraction < 1e-5
    phases = Counter(c.lr_phase for c in checkpoints)
    assert phases["constant"] == 104  # decay starts at 4,198,001
    middle = by_revision("smollm3", "SmolLM3-3B-checkpoints")["stage3-step-4440000"]
    assert middle.lr_fraction == pytest.approx(1 - (4_440_000 - 4_198_001) / 522_000)


def test_gemstones_separate_tokens_from_the_learning_rate():
    main = by_revision("gemstones", "Gemstone-256x23")
    assert len(main) == 175
    assert main["step_00083475"].train_tokens == 83475 * 2048 * 2048
    assert {c.lr_phase for c in main.values()} == {"constant"}
    cooled = by_revision("gemstones", "Gemstone-256x23_cooldown")
    assert list(cooled)[0] == "step_00002385_cooldown_00002622"
    assert len(cooled) == 10
    assert {(c.lr_phase, c.lr_fraction) for c in cooled.values()} == {("annealed", 0.0)}
    assert cooled["step_00002385_cooldown_00002622"].train_tokens == 2622 * 4194304
    assert len(by_revision("gemstones", "Gemstone-256x23_lr_ablation")) == 50
    # the hub prints 48.4M for this shape and 1.01B for 1280x36
    assert main["step_00083475"].n_params == pytest.approx(48.4e6, rel=1e-3)
    big = by_revision("gemstones", "Gemstone-1280x36")["step_00000477"]
    assert big.n_params == pytest.approx(1.01e9, rel=5e-3)


def test_the_bundled_ladder_points_into_the_models_folder():
    loaded = suite.load("tiny")
    assert loaded.recipes == ("rtn-w2", "rtn-w3", "rtn-w4", "rtn-w3-g32", "gptq-w2", "gptq-w3", "gptq-w4")
    assert {c.vocab_size for c in loaded.checkpoints} == {256}
    for checkpoint in loaded.checkpoints:
        assert Path(checkpoint.hub).parent.parent == loaded.source.parent / "tiny"
    assert loaded.text.tokenizer is not None


def test_a_manifest_of_ones_own_expands(manifest):
    loaded = suite.load(manifest())
    assert [c.id for c in loaded.checkpoints] == [f"mine/mine-1b@step{step}" for step in (10, 20, 30)]
    assert [c.train_tokens for c in loaded.checkpoints] == [70, 140, 210]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("vocab_size", "vocab_sise", ["mine.toml", "[[model]] 1", "'vocab_sise'", "'vocab_size'"]),
        ("context", "contxt", ["[text]", "'contxt'", "'context'"]),
        ("recipes", "recipe", ["'recipe'", "'recipes'"]),
        ("every", "evry", ["steps of [[run]] 1", "'every'"]),
        ("n_params = 1100", 'n_params = "1.1k"', ["n_params", "int", "1.1k"]),
        ("context = 128", "context = true", ["context", "int", "True"]),
        ('title = "Mine"', "", ["the top", "'title'", "missing"]),
        ('kind = "constant"', 'kind = "cosin"', ["[schedule.flat]", "cosin", "cosine"]),
        ('kind = "constant"', 'kind = "cosine"', ["[schedule.flat]", "'end'"]),
        ('schedule = "flat"', 'schedule = "steep"', ["'steep'", "[schedule.steep]"]),
        ("step{step}", "step{stepp}", ["step{stepp}"]),
        ('name = "mine"', 'name = "mine', ["mine.toml", "TOML"]),
        ('name = "mine"', 'name = "mine"\ncheckpoints = "gone.json"', ["gone.json"]),
    ],
)
def test_mistakes_in_a_manifest_are_named(manifest, old, new, words):
    with pytest.raises(BadInput) as caught:
        suite.load(manifest(MINIMAL.replace(old, new, 1)))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_explicit_table_that_is_damaged_is_refused(manifest, tmp_path):
    path = manifest(MINIMAL.replace('name = "mine"', 'name = "mine"\ncheckpoints = "list.json"'))
    for content in ("[", '[{"family": "a"}]', "[1]"):
        (tmp_path / "list.json").write_text(content)
        with pytest.raises(BadInput, match="list.json"):
            suite.load(path)


def test_an_unknown_suite_is_answered_with_the_names():
    with pytest.raises(BadInput) as caught:
        suite.load("pythiaa")
    assert ", ".join(suite.names()) in str(caught.value)
    assert "Did you mean pythia?" in str(caught.value)
    with pytest.raises(BadInput, match="no suite"):
        suite.load("missing.toml")


def test_show_fits_a_terminal_and_names_every_suite():
    overview = show.suites_text([suite.load(name) for name in suite.names()])
    assert all(name in overview for name in suite.names())
    for text in (overview, *(show.suite_text(suite.load(name)) for name in suite.names())):
        assert max(map(len, text.splitlines())) <= 80


def test_show_says_what_is_excluded_and_why():
    text = show.suite_text(suite.load("pythia"))
    assert "serves the weights of main" in text
    assert "cosine to 0.1 of the peak at step 143,000" in text
    line = next(line for line in text.splitlines() if line.startswith("pythia-2.8b "))
    assert line.split()[1:4] == ["2.52B", "68", "86"]
