import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "models" / "tiny"
ROWS = json.loads((TINY / "checkpoints.json").read_text(encoding="utf-8"))


def load(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location(name, TINY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train():
    return load("train")


@pytest.fixture(scope="module")
def corpus(train):
    return train.corpus


def documents(split):
    lines = (TINY / "text" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["path"])
def test_a_listed_checkpoint_is_there_with_its_hash_and_nothing_else(row):
    folder = TINY.parent / row["path"]
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == row["sha256"]
    assert row["train_tokens"] == row["step"] * row["tokens_per_step"]


def test_no_checkpoint_is_unlisted_or_twice_the_same():
    assert {p.parent.relative_to(TINY.parent).as_posix() for p in TINY.glob("*/*/model.safetensors")} == {
        row["path"] for row in ROWS
    }
    assert len({row["sha256"] for row in ROWS}) == len(ROWS)


def test_the_ladder_fits_its_share_of_the_checkout():
    files = [p for p in TINY.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) <= 15 * 2**20
    assert sum(p.stat().st_size for p in (TINY / "text").iterdir()) <= 400e3


def test_heldout_loss_falls_with_tokens_within_every_run():
    for model in {row["model"] for row in ROWS}:
        rows = [r for r in ROWS if r["model"] == model and r["lr_phase"] == "constant"]
        losses = [r["heldout_nats_per_token"] for r in sorted(rows, key=lambda r: r["train_tokens"])]
        assert losses == sorted(losses, reverse=True), model


def test_heldout_loss_falls_with_size_at_the_same_tokens():
    losses = {
        r["n_params_nonembedding"]: r["heldout_nats_per_token"]
        for r in ROWS
        if r["family"] == "tiny-neox" and r["step"] == 488 and r["seed"] == 1
    }
    assert len(losses) == 4
    assert [losses[n] for n in sorted(losses)] == sorted(losses.values(), reverse=True)


def test_listed_parameter_counts_are_those_of_the_stored_tensors():
    safetensors = pytest.importorskip("safetensors")
    for row in ROWS:
        with safetensors.safe_open(TINY.parent / row["path"] / "model.safetensors", "np") as tensors:
            sizes = {name: tensors.get_tensor(name).size for name in tensors.keys()}  # noqa: SIM118
        assert sum(sizes.values()) == row["n_params"]
        outside = sum(n for name, n in sizes.items() if "embed" not in name)
        assert outside == row["n_params_nonembedding"]


@pytest.mark.parametrize(
    "text",
    ["def f(x):\n\treturn  x ", "naïve Ā 猫 😀 €", "a\0b\r\n", "".join(map(chr, range(0x800)))],
    ids=["code", "beyond ASCII", "NUL and line ends", "all of two bytes"],
)
def test_token_ids_are_the_bytes_and_decode_to_the_same_text(text):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY / "tokenizer")
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 0, 0)


@pytest.mark.parametrize("family", ["tiny-neox", "tiny-llama", "tiny-opt"])
def test_a_checkpoint_loads_and_predicts_as_its_log_says(train, family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    row = next(r for r in reversed(ROWS) if r["family"] == family)
    folder = TINY.parent / row["path"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nats = train.heldout_loss(model, torch.from_numpy(train.corpus.heldout()))
    assert nats == pytest.approx(row["heldout_nats_per_token"], abs=1e-3)
    sides = [side for m in model.modules() if isinstance(m, torch.nn.Linear) for side in m.weight.shape]
    assert sides
    assert not any(side % 32 for side in sides)


def test_heldout_documents_are_ascii_of_the_promised_sizes_and_from_different_files():
    evaluation, calibration = documents("eval"), documents("calibration")
    assert (len(evaluation), len(calibration)) == (192, 128)
    files = [row["id"].rpartition(":")[0] for row in evaluation + calibration]
    assert len(set(files)) == len(files)
    texts = [row["text"] for row in evaluation + calibration]
    assert len(set(texts)) == len(texts)
    assert all(text.isascii() and len(text) <= 1024 for text in texts)
    assert all(len(row["text"]) >= 256 for row in calibration)


def test_heldout_text_is_what_the_corpus_summary_hashed():
    about = json.loads((TINY / "corpus.json").read_text(encoding="utf-8"))["splits"]
    for split in ("eval", "calibration"):
        text = b"".join(b"\0" + row["text"].encode() for row in documents(split))
        assert hashlib.sha256(text).hexdigest() == about[split]["sha256"]
    assert about["train"]["bytes"] >= max(row["train_tokens"] for row in ROWS)


def test_heldout_files_belong_to_their_split_by_path_alone(corpus):
    for split in ("eval", "calibration"):
        for row in documents(split):
            package, _, rest = row["id"].rpartition(":")[0].partition("/")
            assert corpus.split_of(f"{package.rpartition('-')[0]}/{rest}") == split


def test_a_near_copy_is_dropped_whatever_its_split(corpus):
    lines = [f"value_{i} = some_function_name({i})" for i in range(20)]
    seen: set[int] = set()
    assert corpus.is_new("\n".join(lines).encode(), seen)
    edited = [*lines[:12], *(f"another_{i} = other_function_name({i})" for i in range(8))]
    assert not corpus.is_new("\n".join(edited).encode(), seen)


def test_a_cut_is_whole_lines_of_the_file(corpus):
    data = "".join(f"line {i} é\n" for i in range(300)).encode()
    for salt in range(0, 3000, 97):
        offset, text = corpus.cut(data, 256, salt)
        assert data[offset : offset + len(text)] == text
        assert 0 < len(text) <= 256
        assert text.endswith(b"\n")
        assert data[offset - 1 : offset] == b"\n"


def test_every_training_byte_is_predicted_once(corpus):
    pieces = [corpus.Piece("p-1/a.py", "train", 0, bytes([1 + i % 251]) * 1000) for i in range(3)]
    pieces.insert(1, corpus.Piece("p-1/b.py", "eval", 0, b"\xff" * 1000))
    windows = corpus.stream(pieces)
    stream = b"".join(b"\0" + p.text for p in pieces if p.split == "train")
    assert windows.shape == ((len(stream) - 1) // 256, 257)
    expected = stream[1 : 1 + 256 * len(windows)]
    assert sorted(windows[:, 1:].ravel().tolist()) == sorted(expected)
    assert 255 not in windows


def test_learning_rate_warms_up_stays_and_cools_to_zero(train):
    assert train.lr_fraction(0) == pytest.approx(1 / 50)
    assert [train.lr_fraction(step) for step in (49, 50, 244, 1953)] == [1, 1, 1, 1]
    start, end = 244, 244 + 49
    assert train.cooldown_end(start) == end
    assert train.lr_fraction(start, start) == 1
    assert train.lr_fraction(end, start) == 0
    fractions = [train.lr_fraction(step, start) for step in range(start, end + 1)]
    assert [b - a for a, b in zip(fractions, fractions[1:], strict=False)] == pytest.approx([-1 / 49] * 49)


def test_the_plan_saves_whole_steps_near_the_tokens_asked_for(train):
    run = next(run for run in train.RUNS if run.name == "tiny-neox-25k")
    saves = train.saves(run)
    assert [save.revision for save in saves] == [
        "step122",
        "step244",
        "step293-cooldown",
        "step488",
        "step586-cooldown",
        "step977",
        "step1172-cooldown",
        "step1953",
    ]
    assert list(train.legs(run)) == [(0, 122), (122, 244), (244, 488), (488, 977), (977, 1953)]
    assert train.TOKENS_PER_STEP == 4096


def test_every_constant_checkpoint_is_past_the_warm_up(train):
    starts = [save.start for run in train.RUNS for save in train.saves(run)]
    assert min(starts) > train.WARMUP


def test_the_plan_is_what_is_listed(train):
    planned = {f"tiny/{run.name}/{save.revision}" for run in train.RUNS for save in train.saves(run)}
    assert planned == {row["path"] for row in ROWS}


def test_a_cooldown_leaves_the_constant_run_untouched(train):
    torch = pytest.importorskip("torch")
    run = train.Run("x", "tiny-opt", 32, 2, (1,))
    noise = torch.randint(0, 256, (96, 257), generator=torch.Generator().manual_seed(0))
    windows = noise.to(torch.uint8).numpy()
    bar = train.tqdm(disable=True)

    def trained(with_branch):
        model = train.build(run)
        optimizer = train.optimizer_for(model)
        train.advance(model, optimizer, windows, range(0, 5), None, bar)
        if with_branch:
            train.advance(*train.branch(model, optimizer), windows, range(5, 6), 5, bar)
        train.advance(model, optimizer, windows, range(5, 6), None, bar)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(trained(False), trained(True))
