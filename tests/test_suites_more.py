"""Suites known from papers, cards and scripts: what their manifests expand to, against the facts themselves."""

import re

import numpy as np
import pytest

from bayesqid import suite

MORE = ("amber", "apertus", "datadecide", "k2", "marin", "olmo3", "smollm2", "spectra", "tinyllama")


def of(name):
    return {(c.model, c.revision): c for c in suite.load(name).checkpoints}


def llama(width, layers, inner, vocabulary, heads_share=1.0):
    """Non-embedding and all parameters of a LLaMA shape without biases: gated MLP, two norms a layer and a last one."""
    attention = 2 * width**2 + 2 * round(width**2 * heads_share)
    blocks = layers * (attention + 3 * width * inner + 2 * width) + width
    return blocks, blocks + 2 * vocabulary * width


@pytest.mark.parametrize("name", MORE)
def test_every_fact_has_a_status_and_nothing_was_looked_up_on_the_hub(name):
    loaded = suite.load(name)
    head = loaded.source.read_text(encoding="utf-8")
    assert "Nothing was checked against the live hub." in head
    assert any("Licence" in note for note in loaded.notes)
    for text in (*(c.status for c in loaded.checkpoints), *(status for _, status in loaded.schedules)):
        assert re.search(r"\b(verified|derived|unverified)\b", text), text


@pytest.mark.parametrize(
    ("name", "checkpoints", "models", "families"),
    [
        ("amber", 360, 1, {"Amber"}), ("apertus", 31, 1, {"Apertus"}), ("k2", 10, 1, {"K2"}),
        ("datadecide", 27, 27, {"DataDecide-c4", "DataDecide-dclm-baseline", "DataDecide-dolma1_7"}),
        ("marin", 4, 1, {"Marin"}), ("olmo3", 1414 + 656, 2, {"OLMo-3"}), ("smollm2", 8 + 16 + 41 + 3, 6, {"SmolLM2"}),
        ("spectra", 9, 9, {"FloatLM"}), ("tinyllama", 7, 7, {"TinyLlama"}),
    ],
)  # fmt: skip
def test_counts(name, checkpoints, models, families):
    own = suite.load(name).checkpoints
    assert (len(own), len({c.hub for c in own}), {c.family for c in own}) == (checkpoints, models, families)
    assert all(isinstance(c.train_tokens, int) for c in own)


def test_olmo3_tokens_are_steps_times_the_batch():
    seen = of("olmo3")
    assert seen["Olmo-3-1025-7B", "stage1-step1413814"].train_tokens == 5_929_965_715_456
    assert seen["Olmo-3-1125-32B", "stage1-step656000"].train_tokens == 5_502_926_848_000
    assert seen["Olmo-3-1025-7B", "stage1-step141000"].train_tokens == 141_000 * 512 * 8192
    assert ("Olmo-3-1125-32B", "stage1-step679000") not in seen


def test_olmo3_7b_stretches_its_cosine_in_the_middle_without_a_jump():
    own = [c for c in suite.load("olmo3").checkpoints if c.model == "Olmo-3-1025-7B"]
    rates = {int(c.revision.removeprefix("stage1-step")): c.lr_fraction for c in own if c.lr_phase != "unknown"}
    assert list(dict(sorted(rates.items())).values()) == sorted(rates.values(), reverse=True)
    # both halves have 0.55 of the peak at 597,046, the middle of the first one; slopes differ, values do not
    assert 0.55 < rates[597_000] < 0.5502
    assert 0.5490 < rates[598_000] < 0.55
    half = np.pi / 2 * (1 + (1_000_000 - 597_046) / (7_000_000_000_000 // 4_194_304 - 597_046))
    assert rates[1_000_000] == pytest.approx(0.1 + 0.45 * (1 + np.cos(half)), rel=1e-6)


@pytest.mark.parametrize(
    ("size", "last", "tokens"),
    [("135M", 1_920_000, 2_097_152_000_000), ("360M", 2_560_000, 4_089_446_400_000),
     ("1.7B", 5_125_000, 10_989_076_480_000)],
)  # fmt: skip
def test_smollm2_ends_where_its_configurations_do(size, last, tokens):
    seen = of("smollm2")
    assert seen[f"SmolLM2-{size}", "main"].train_tokens == tokens
    assert seen[f"SmolLM2-{size}", "main"].lr_phase == "annealed"
    assert seen[f"SmolLM2-{size}-intermediate-checkpoints", f"step-{last}"].lr_phase == "decaying"
    assert (f"SmolLM2-{size}-intermediate-checkpoints", "main") not in seen


def test_amber_names_count_pieces_from_zero():
    seen = of("amber")
    piece = 1_706_976 * 2048
    assert seen["Amber", "ckpt_000"].train_tokens == piece
    assert seen["Amber", "ckpt_358"].train_tokens == 359 * piece
    last = seen["Amber", "main"]
    assert (last.train_tokens, last.lr_phase, last.lr_fraction) == (360 * piece, "annealed", pytest.approx(0.1))
    # users counted all 2049 tokens of an example
    assert last.train_tokens * 2049 / 2048 == pytest.approx(1259.13e9, rel=1e-5)


def test_k2_names_count_pieces_from_one():
    seen = of("k2")
    assert seen["K2", "ckpt_360"].train_tokens == 338_760 * 2040 * 2048
    assert seen["K2", "ckpt_351"].train_tokens == 351 * 941 * 2040 * 2048
    assert seen["K2", "ckpt_360"].lr_phase == "annealed"


def test_tinyllama_tokens_agree_with_the_names_of_the_milestones_and_are_not_them():
    own = suite.load("tinyllama").checkpoints
    named = [105e9, 503e9, 1e12, 1.5e12, 2e12, 2.5e12, 3e12]
    assert [c.train_tokens for c in own] == pytest.approx(named, rel=0.01)
    assert not set(named) & {c.train_tokens for c in own}
    assert own[2].train_tokens == 480_000 * 2048 * 1024


def test_apertus_labels_round_the_batch_and_tokens_do_not():
    own = suite.load("apertus").checkpoints
    for c in own:
        step, billions = (int(number) for number in re.fullmatch(r"step(\d+)-tokens(\d+)B", c.revision).groups())
        # 1024 sequences of 4096 to sample 1,718,272,000, then 2048; labels count 4.2M and 8.4M tokens to a step
        samples = 1024 * min(step, 1_678_000) + 2048 * max(0, step - 1_678_000)
        assert c.train_tokens == 4096 * samples
        assert billions == pytest.approx(samples * 4.2e6 / 1024 / 1e9, abs=1)
        assert billions * 1e9 / c.train_tokens == pytest.approx(4.2e6 / 4_194_304, rel=5e-3)
    cooling = [c.revision for c in own if c.lr_phase == "decaying"]
    assert cooling == ["step2500000-tokens13952B", "step2600000-tokens14792B"]
    share = (own[-1].train_tokens / 4096 - (3_662_109_375 - 403_905_806)) / 403_905_806
    assert own[-1].lr_fraction == pytest.approx(0.1 + 0.9 * (1 - share**0.5))


@pytest.mark.parametrize(("share", "left"), [(0.0, 1.0), (0.25, 0.5), (0.81, 0.1), (1.0, 0.0), (2.0, 0.0)])
def test_a_decay_by_the_square_root_is_fast_at_first(share, left):
    rate = {"kind": "sqrt", "decay_start": 100, "end": 200, "floor": 0.2}
    phase, fraction = suite.lr_at(rate, round(100 + 100 * share), 0)
    assert fraction == pytest.approx(0.2 + 0.8 * left)
    assert phase == ("constant" if share == 0 else "decaying" if share < 1 else "annealed")


def test_datadecide_sizes_are_the_ones_that_its_authors_print():
    printed = {"4M": 3_744_832, "20M": 19_101_888, "60M": 57_078_144, "90M": 97_946_640, "150M": 151_898_880,
               "300M": 319_980_544, "530M": 530_074_944, "750M": 681_297_408, "1B": 1_176_832_000}  # fmt: skip
    own = suite.load("datadecide").checkpoints
    assert [c.n_params for c in own] == list(printed.values()) * 3
    assert {c.lr_phase for c in own} == {"annealed"}
    named = [float(size.replace("M", "e6").replace("B", "e9")) for size in printed]
    assert [c.train_tokens for c in own] == pytest.approx([100 * size for size in named] * 3, rel=0.1)
    assert of("datadecide")["DataDecide-dolma1_7-1B", "step69369-seed-default"].train_tokens == 69_369 * 704 * 2048


def test_marin_phases_end_hot_and_cold_in_turn():
    own = suite.load("marin").checkpoints
    assert [(c.revision, c.lr_phase, round(c.lr_fraction, 9)) for c in own] == [
        ("ocelot", "constant", 1.0), ("jellyfish", "annealed", 0.1), ("phoenix", "constant", 1.0),
        ("starling", "annealed", 0.01),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model", "shape"),
    [
        ("amber", "Amber", (4096, 32, 11008, 32000)), ("k2", "K2", (8192, 80, 22016, 32032)),
        ("marin", "marin-8b-base", (4096, 32, 14336, 128256, 1 / 4)),
        ("tinyllama", "TinyLlama-1.1B-step-50K-105b", (2048, 22, 5632, 32000, 1 / 8)),
        ("spectra", "FloatLM_99M", (512, 16, 1280, 50277)), ("spectra", "FloatLM_1.1B", (1792, 24, 5120, 50277)),
        ("spectra", "FloatLM_3.9B", (3072, 30, 9216, 50277)),
    ],
)  # fmt: skip
def test_sizes_follow_from_the_shape(name, model, shape):
    one = next(c for c in suite.load(name).checkpoints if c.model == model)
    assert (one.n_params_nonembedding, one.n_params) == llama(*shape)


def test_floatlm_sizes_are_as_printed():
    printed = [99.74e6, 190.0e6, 392.4e6, 569.2e6, 834.0e6, 1.149e9, 1.515e9, 2.461e9, 3.989e9]
    assert [c.n_params for c in suite.load("spectra").checkpoints] == pytest.approx(printed, rel=3e-3)


def test_names_that_count_from_zero_need_an_offset(tmp_path):
    text = (suite.bundled.models_dir() / "amber.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(", offset = 1 }", " }"), encoding="utf-8")
    first = suite.load(path).checkpoints[0]
    assert (first.train_tokens, first.excluded) == (0, "untrained: no tokens seen")


def test_checkpoints_are_whole_however_they_were_made():
    for name in ("amber", "tiny"):
        made = suite.load(name).checkpoints
        again = [suite.Checkpoint(**{key: getattr(c, key) for key in c.__dataclass_fields__}) for c in made]
        assert list(made) == again
        assert len({hash(c) for c in made}) == len(made)
