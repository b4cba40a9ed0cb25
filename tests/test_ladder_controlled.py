import importlib.util
import json
import math
import runpy
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bayesqid import cells, files
from bayesqid.importers import sources

ROOT = Path(__file__).parents[1]
LADDER = ROOT / "models" / "ladder"
RESULTS = sorted((ROOT / "data" / "ladder").glob("*.json"))


@pytest.fixture(scope="module")
def train():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("ladder_train", LADDER / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ladder_train"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(train):
    return train.runs


@pytest.fixture(scope="module")
def made():
    return runpy.run_path(str(ROOT / "data" / "make_ladder.py"))


def result(path):
    return json.loads(path.read_text(encoding="utf-8"))


# -- what is trained -------------------------------------------------------------------------------------------------


def test_every_cooled_checkpoint_has_an_undecayed_partner_at_the_same_step(runs):
    for run in runs.RUNS:
        if run.schedule == "constant":
            saves = runs.saves(run)
            undecayed = {save.step for save in saves if save.step == save.start}
            cooled = [save for save in saves if save.step != save.start]
            assert len(cooled) == len(run.millions) >= 4
            assert {save.step for save in cooled} <= undecayed
            assert {save.start for save in cooled} <= undecayed
            assert len({save.revision for save in saves}) == len(saves) == 3 * len(run.millions)


def test_the_quarters_of_a_cosine_stand_where_undecayed_checkpoints_of_its_size_do(runs):
    by_name = {run.name: run for run in runs.RUNS}
    for run in runs.RUNS:
        if run.schedule == "cosine":
            steps = [save.step for save in runs.saves(run)]
            assert len(steps) == 4
            assert steps[-1] == run.end
            partner = by_name[run.name.removesuffix("-cosine")]
            assert {steps[0], steps[1], steps[3]} <= {save.step for save in runs.saves(partner)}
            assert (partner.width, partner.layers, partner.peak_lr) == (run.width, run.layers, run.peak_lr)


def test_the_learning_rate_is_what_the_schedules_say(runs):
    constant = next(run for run in runs.RUNS if run.name == "ladder-neox-25k")
    assert runs.lr_fraction(constant, 0) == pytest.approx(1 / 50)
    assert {runs.lr_fraction(constant, step) for step in range(50, 4688)} == {1.0}
    assert [runs.lr_fraction(constant, step, 122) for step in (122, 134, 146)] == [1.0, 0.5, 0.0]
    cosine = next(run for run in runs.RUNS if run.name == "ladder-neox-25k-cosine")
    middle = (cosine.end + 50) / 2
    assert runs.lr_fraction(cosine, 50) == 1.0
    assert runs.lr_fraction(cosine, round(middle)) == pytest.approx(0.55)
    assert runs.lr_fraction(cosine, cosine.end) == pytest.approx(0.1)
    rates = [runs.lr_fraction(cosine, step) for step in range(50, cosine.end + 1)]
    assert all(b < a for a, b in zip(rates, rates[1:], strict=False))
    phases = {kind: [runs.phase(run, save) for save in runs.saves(run)] for kind, run in
              (("constant", constant), ("cosine", cosine))}  # fmt: skip
    assert phases["cosine"] == ["decaying", "decaying", "decaying", "annealed"]
    assert Counter(phases["constant"]) == {"constant": 12, "annealed": 6}


def test_the_table_has_the_sizes_tokens_and_seeds_that_were_asked_for(train, runs):
    gpu = [run for run in runs.RUNS if run.scale == "gpu"]
    sizes = {run.width: train.shapes.parameter_counts(run.build())[1] for run in gpu}
    assert sorted(sizes.values()) == pytest.approx([0.3e6, 1e6, 3e6, 10e6, 30e6], rel=0.15)
    last = {run.name: run.end * run.tokens_per_step for run in gpu if run.schedule == "constant"}
    assert last.pop("ladder-neox-32m") == pytest.approx(60e6, rel=1e-3)
    assert list(last.values()) == pytest.approx([200e6] * len(last), rel=1e-3)
    assert len({run.width for run in gpu if run.schedule == "cosine"}) == 2
    assert len({run.width for run in gpu if run.seed == 2}) == 2
    counted = sum(len(runs.saves(run)) for run in gpu) * (len(train.RECIPES) - 2)
    assert counted >= 1500
    assert len({run.peak_lr for run in gpu}) == len(sizes)  # one per size
    # a learning rate must be past its warm-up where the first checkpoint is taken
    assert min(save.start for run in runs.RUNS for save in runs.saves(run)) > 50


def test_names_are_those_of_no_other_ladder(runs):
    names = [run.name for run in runs.RUNS]
    assert len(set(names)) == len(names)
    assert all(name.startswith("ladder-") for name in (*names, *(run.family for run in runs.RUNS)))
    assert {run.family for run in runs.RUNS if run.scale == "cpu"}.isdisjoint(
        run.family for run in runs.RUNS if run.scale == "gpu"
    )


# -- the text --------------------------------------------------------------------------------------------------------


def test_a_file_that_repeats_half_of_a_held_out_document_is_found_out(train):
    stream = sys.modules["stream"]
    documents = [f"def function_number_{k}(argument_of_it):\n" + "\n".join(
        f"    value_{k}_{i} = some_function_name({i})" for i in range(9)) for k in range(3)]  # fmt: skip
    heldout = stream.Heldout([text.encode() for text in documents])
    long = "\n".join(f"other_value_{i} = another_function_name({i})" for i in range(500))
    half = "\n".join(documents[1].splitlines()[:5])
    less = "\n".join(documents[1].splitlines()[:4])
    found = [heldout.repeated_by(stream.long_lines(f"{long}\n{part}\n{long}".encode())) for part in (half, less, "")]
    assert found == [True, False, False]


def test_a_file_is_cut_into_pieces_of_whole_lines_that_lose_nothing(train):
    stream = sys.modules["stream"]
    data = "".join(f"line {i} é{'x' * (i % 90)}\n" for i in range(1200)).encode()
    for given in (data, data[:-1], data[:4096], data[:300], data[:-1] + b"y" * 40):
        pieces = stream.pieces(given)
        assert b"".join(pieces) == given
        assert max(map(len, pieces)) <= 4096
        assert all(piece.endswith(b"\n") for piece in pieces[:-1])
        assert len(pieces) >= len(given) / 4096


def test_held_out_documents_name_files_of_the_held_out_splits(train):
    stream = sys.modules["stream"]
    documents = stream.heldout_documents()
    assert len(documents) == 192 + 128
    assert {train.corpus.split_of(stream.file_of(document)) for document in documents} == {"eval", "calibration"}


@pytest.mark.soak
def test_no_held_out_document_is_in_the_training_text(train):
    stream = sys.modules["stream"]
    if train.corpus.versions() != stream.known()["packages"]:
        pytest.skip("other package versions than the text was made of")
    text = stream.training_text().tobytes()  # refuses other text than was trained on
    assert len(text) == stream.known()["bytes"] > 100e6
    found = [document["id"] for document in stream.heldout_documents() if document["text"].encode() in text]
    assert found == []


def test_text_from_a_file_is_refused_unless_it_is_the_one_of_the_summary(train, tmp_path, monkeypatch):
    stream = sys.modules["stream"]
    text = np.frombuffer(b"\0some text", np.uint8)
    np.savez_compressed(tmp_path / "text.npz", text=text)
    with pytest.raises(SystemExit, match="another text"):
        stream.training_text(tmp_path / "text.npz")
    digest = files.sha256_bytes(text.tobytes())
    monkeypatch.setattr(stream, "known", lambda: {"sha256": digest})
    assert stream.training_text(tmp_path / "text.npz").tobytes() == text.tobytes()


def test_every_byte_is_predicted_once_an_epoch_and_epochs_repeat(train):
    text = np.arange(256 * 40 + 30, dtype=np.uint32).astype(np.uint8)
    windows = train.Windows.of(text, train.torch.device("cpu"))
    first = windows.batch(0, 40)
    assert windows.unique_tokens == 256 * 40
    assert sorted(first[:, 1:].flatten().tolist()) == sorted(text[1 : 256 * 40 + 1].tolist())
    assert train.torch.equal(windows.batch(1, 40), first)
    assert train.torch.equal(windows.batch(5, 16)[:8], windows.batch(2, 40)[:8])


# -- one unit --------------------------------------------------------------------------------------------------------

MICRO = """
import importlib.util, sys
from pathlib import Path
import numpy as np, torch
spec = importlib.util.spec_from_file_location("ladder_train", {train!r})
train = importlib.util.module_from_spec(spec)
sys.modules["ladder_train"] = train
spec.loader.exec_module(train)
torch.set_num_threads(1)
run = train.Run("micro", "ladder-neox", 32, 1, (0.05,))
text = np.random.default_rng(0).integers(1, 255, 40_000).astype(np.uint8)
windows = train.Windows.of(text, torch.device("cpu"))
"""


@pytest.fixture(scope="module")
def micro(train):
    """A run of fourteen steps that takes a second or two, in one thread: the matrices are small."""
    threads = train.torch.get_num_threads()
    train.torch.set_num_threads(1)
    text = np.random.default_rng(0).integers(1, 255, 40_000).astype(np.uint8)
    windows = train.Windows.of(text, train.torch.device("cpu"))
    yield train.Run("micro", "ladder-neox", 32, 1, (0.05,)), windows
    train.torch.set_num_threads(threads)


def test_a_branch_leaves_the_constant_run_untouched(train, micro):
    run, windows = micro
    device = train.torch.device("cpu")
    weights = {}
    for branched in (False, True):
        trainer = train.Trainer.of(run, windows, device)
        trainer.advance(range(0, 5))
        if branched:
            state = trainer.state()
            before = train.torch.cat([p.flatten().clone() for p in trainer.model.parameters()])
            trainer.cool(train.tiny.Save(6, 5))
            after = train.torch.cat([p.flatten() for p in trainer.model.parameters()])
            assert not train.torch.equal(before, after)
            trainer.back(state)
        trainer.advance(range(5, 7))
        weights[branched] = train.torch.cat([p.flatten() for p in trainer.model.parameters()])
    assert train.torch.equal(weights[False], weights[True])


@pytest.mark.slow
def test_a_unit_trains_and_measures_once_and_again_when_it_is_defined_anew(train, micro, tmp_path, made, capsys):
    run, windows = micro
    device, recipes = train.torch.device("cpu"), ("rtn-w3", "gptq-w3", "gptq-w3-s1", "gptq-w3-s2")
    assert train.do(run, windows, device, tmp_path, recipes=recipes)
    path = tmp_path / "micro.json"
    first = path.read_text()
    found = result(path)
    assert [one["train_tokens"] for one in found["checkpoints"].values()] == [12 * 4096, 14 * 4096, 14 * 4096]
    assert [one["epochs"] for one in found["checkpoints"].values()] == pytest.approx(
        [n * 4096 / windows.unique_tokens for n in (12, 14, 14)], abs=1e-5
    )
    assert len({one["weight_sha256"] for one in found["checkpoints"].values()}) == 3
    assert all(len(one["paired_se"]) == len(found["recipes"]) == 5 for one in found["checkpoints"].values())
    assert all(math.isfinite(one["train_curve"][-1][1]) for one in found["checkpoints"].values())
    data, facts = made["of_run"](path)
    assert data.sizes["cell"] == 6
    assert list(facts) == [f"ladder-neox/micro@step{n}" for n in ("12", "14-cooldown", "14")]
    assert set(data["lr_phase"].to_numpy()) == {"constant", "annealed"}
    assert sources.cells.check(data.isel(cell=data["qid"].to_numpy().argsort())).sizes["cell"] == 6
    assert not train.do(run, windows, device, tmp_path, recipes=recipes)
    assert path.read_text() == first
    assert not train.finished(replace(run, seed=2), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["micro.json"]


def test_a_run_that_is_stopped_at_any_moment_leaves_no_result(train, micro, tmp_path, monkeypatch):
    run, windows = micro

    def stop(*given, **named):
        raise KeyboardInterrupt

    def attempt():
        with pytest.raises(KeyboardInterrupt):
            train.do(run, windows, train.torch.device("cpu"), tmp_path, recipes=("rtn-w3",))
        assert list(tmp_path.iterdir()) == []

    for name in ("trained", "measured"):
        with monkeypatch.context() as patched:
            patched.setattr(train, name, stop)
            attempt()
    monkeypatch.setattr(train, "unit", lambda *given: {"run": train.definition(run), "cost": {}})
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(files.os, name, stop)
            attempt()
    assert train.do(run, windows, train.torch.device("cpu"), tmp_path)
    assert train.finished(run, tmp_path / "micro.json")


@pytest.mark.soak
def test_a_run_killed_while_it_writes_leaves_no_result_and_is_made_again(train, tmp_path):
    head = MICRO.format(train=str(LADDER / "train.py"))
    last = f'train.do(run, windows, torch.device("cpu"), Path({str(tmp_path)!r}), recipes=("rtn-w3",))'
    death = textwrap.dedent("""
        import os, signal
        unit = train.unit
        def then_die(*given):
            made = unit(*given)
            os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
            return made
        train.unit = then_die
    """)
    killed = subprocess.run([sys.executable, "-c", head + death + last], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list(tmp_path.glob("*.json"))
    again = subprocess.run([sys.executable, "-c", head + last], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(result(tmp_path / "micro.json")["checkpoints"]) == 3


# -- the data set ----------------------------------------------------------------------------------------------------


def test_the_cells_are_rebuilt_from_the_runs_without_difference(made, tmp_path):
    data = made["joined"]()
    made["write"](data, tmp_path / "ladder.nc")
    assert (tmp_path / "ladder.nc").read_bytes() == (ROOT / "data" / "ladder.nc").read_bytes()
    stored = files.open_dataset(ROOT / "data" / "ladder.nc")
    for name in (*cells.TEXTS, *cells.NUMBERS, *cells.VALUES, *cells.FLAGS):
        np.testing.assert_array_equal(stored[name].to_numpy(), data[name].to_numpy(), err_msg=name)


def test_the_tables_of_the_data_sheet_are_those_of_the_runs(made):
    text = (ROOT / "data" / "ladder.md").read_text(encoding="utf-8")
    assert made["page"](text, [result(path) for path in RESULTS]) == text
    assert f"{sum(len(result(path)['cells']['qid']) for path in RESULTS):,}" in text


def test_a_ratio_is_of_the_cooled_over_the_undecayed_checkpoint_where_both_are_resolved(made):
    pair = {"a": [0.0, 0.2, 0.03, 0.5, 0.9], "a-cooldown": [0.0, 0.4, 0.01, 1.0, 0.1], "b": [9.0] * 5}
    rows = {name: {"train_tokens": 2e6, "qid": qid} for name, qid in pair.items()}
    found = {"recipes": ["none", "rtn-w2", "rtn-w3", "gptq-w3", "rtn-w4"], "checkpoints": rows}
    assert made["ratios"](found) == {2.0: (pytest.approx(2.0), 2)}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_is_whole_and_of_the_run_as_it_is_defined(train, runs, path):
    found = result(path)
    run = next(run for run in runs.RUNS if run.name == path.stem)
    assert train.finished(run, path)
    assert sorted(found["checkpoints"]) == sorted(save.revision for save in runs.saves(run))
    assert found["recipes"][0] == "none"
    assert set(found["recipes"][1:]) == set(train.RECIPES)
    one_draw = [name for name in found["recipes"][1:] if not name.endswith(("-s1", "-s2"))]
    count = len(found["cells"]["qid"])
    assert count == len(found["checkpoints"]) * len(one_draw)
    # the cells are the stored QiDs, by checkpoint and recipe; those of several draws are their mean
    column = {name: [one["qid"][found["recipes"].index(name)] for one in found["checkpoints"].values()]
              for name in found["recipes"]}  # fmt: skip
    column["gptq-w3"] = [sum(draws) / 3 for draws in
                         zip(*(column[f"gptq-w3{end}"] for end in ("", "-s1", "-s2")), strict=True)]  # fmt: skip
    expected = sorted(value for name in one_draw for value in column[name])
    assert sorted(found["cells"]["qid"]) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert len({one["weight_sha256"] for one in found["checkpoints"].values()}) == len(found["checkpoints"])
    last = [one["heldout_nats"] for one in found["checkpoints"].values()]
    assert last[-1] < last[0]


@pytest.mark.skipif(not RESULTS, reason="no run is finished")
def test_the_bundled_name_gives_cells_that_inference_takes_alone_and_with_others(tmp_path):
    data = cells.check(sources.read_cells("ladder"))
    assert (ROOT / "data" / "ladder.nc").stat().st_size < 1e6
    assert (data["qid_se"].to_numpy() > 0).all()
    assert np.isfinite(data["calibration_sd"].to_numpy()).all()
    together = cells.check(cells.join([sources.read_cells(name) for name in ("atlas", "tiny", "ladder")]))
    assert together.sizes["cell"] > data.sizes["cell"]
    assert not set(data["family"].to_numpy()) & set(sources.read_cells("tiny")["family"].to_numpy())


def test_cooled_checkpoints_predict_better_than_undecayed_ones_at_the_same_tokens_late_in_training(made):
    for path in RESULTS:
        found = result(path)
        if found["run"]["schedule"] == "constant":
            loss = {name: one["heldout_nats"] for name, one in found["checkpoints"].items()}
            last = list(found["checkpoints"])[-1].removesuffix("-cooldown")
            assert loss[f"{last}-cooldown"] < loss[last]
