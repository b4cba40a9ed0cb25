import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file

import tinymodels
from bayesqid import files, measurements
from bayesqid.errors import BadInput
from bayesqid.measure import blocks, calibrate, run, together
from bayesqid.measure import checkpoint as one
from bayesqid.measure import plan as planning
from bayesqid.measure.quantizers import gptq
from bayesqid.recipe import effective_bits, parse
from tinymodels import NO_FACTS, same

MODELS = {"neox1": ("neox", 1), "llama2": ("llama", 2), "opt3": ("opt", 3), "gpt4": ("gpt2", 4)}
RECIPES = ["rtn-w3", "rtn-w4-g32", "gptq-w3"]
SETTINGS = {"max_bytes": 200, "calibration_windows": 6}


def plan(suite: Path, recipes: list[str] | None = None, **settings) -> planning.Plan:
    return planning.make(str(suite), recipes, "cpu", SETTINGS | settings, NO_FACTS)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return tinymodels.suite(tmp_path_factory.mktemp("suite") / "toy", MODELS, RECIPES)


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory) -> xr.Dataset:
    return run.run(plan(suite), tmp_path_factory.mktemp("whole") / "m.nc", jobs=1)


def count_forward_passes(monkeypatch) -> list:
    calls = []
    inner = one.prepare
    monkeypatch.setattr(one, "prepare", lambda *args: calls.append(args[1].id) or inner(*args))
    return calls


def test_every_family_of_models_is_measured(whole):
    assert (whole["status"] == measurements.OK).all()
    assert whole["recipe"].values.tolist() == ["none", *RECIPES]
    qid = measurements.qid(whole)
    assert (qid.sel(recipe="none") == 0).all()
    kl = measurements.kl(whole).drop_sel(recipe="none")
    assert (kl > 1e-4).all()
    assert (kl.sel(recipe="rtn-w4-g32") < kl.sel(recipe="rtn-w3")).all()
    assert len(set(whole["weight_sha256"].values)) == len(MODELS)
    bits = whole["effective_bits"].sel(checkpoint="neox/toy-neox@neox1", recipe="rtn-w3").item()
    assert bits == pytest.approx(effective_bits(parse("rtn-w3"), [(96, 32), (32, 32), (64, 32), (32, 64)]))
    assert (whole["quantized_fraction"].sel(recipe="none") == 0).all()
    fraction = whole["quantized_fraction"].sel(recipe="rtn-w3").values
    assert ((fraction > 0.2) & (fraction < 0.9)).all()


def test_counts_come_from_the_model_not_from_the_suite(whole, suite):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(suite.parent / "opt3")
    row = whole.sel(checkpoint="opt/toy-opt@opt3")
    decoder = model.model.decoder
    apart = decoder.embed_tokens.weight.numel() + decoder.embed_positions.weight.numel()
    assert row["n_params"] == sum(p.numel() for p in model.parameters())
    assert row["n_params_nonembedding"] == row["n_params"] - apart
    assert whole["bytes"].values.max() <= 200
    assert (whole["tokens"].values == whole["bytes"].values).all(), "byte tokens behind a separator: one per byte"


def test_a_second_run_measures_nothing(suite, tmp_path, monkeypatch, whole):
    calls = count_forward_passes(monkeypatch)
    first = run.run(plan(suite, ["rtn-w3"]), tmp_path / "m.nc", jobs=1)
    assert len(calls) == len(MODELS)
    again = run.run(plan(suite, ["rtn-w3"]), tmp_path / "m.nc", jobs=1)
    assert len(calls) == len(MODELS)
    same(first, again)


def test_recipes_added_later_give_what_one_run_gives(suite, tmp_path, whole):
    run.run(plan(suite, RECIPES[:1]), tmp_path / "m.nc", jobs=1)
    grown = run.run(plan(suite, RECIPES[1:]), tmp_path / "m.nc", jobs=1)
    same(grown, whole)


def test_the_file_alone_is_enough_to_go_on(suite, tmp_path, monkeypatch):
    first = run.run(plan(suite, ["rtn-w3"]), tmp_path / "m.nc", jobs=1)
    for part in (tmp_path / "m.nc.parts").iterdir():
        part.unlink()
    calls = count_forward_passes(monkeypatch)
    same(run.run(plan(suite, ["rtn-w3"]), tmp_path / "m.nc", jobs=1), first)
    assert calls == []


@pytest.mark.slow
def test_several_at_once_give_what_one_after_another_gives(suite, tmp_path, whole):
    same(run.run(plan(suite), tmp_path / "m.nc", jobs=2), whole)


COMMAND = """
import signal
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from bayesqid.measure import plan, run
facts = dict(family=None, tokens=None, lr_phase="unknown", called=None)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
    settings = dict(max_bytes=200, calibration_windows=6)
    made = plan.make(sys.argv[1], None, "cpu", settings, facts)
    try:
        run.run(made, Path(sys.argv[2]), jobs=int(sys.argv[3]))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def start(tmp_path: Path, suite: Path, output: Path, jobs: int) -> subprocess.Popen:
    script = tmp_path / "go.py"
    script.write_text(COMMAND)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(script), str(suite), str(output), str(jobs)]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def wait_for_part(process: subprocess.Popen, output: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(Path(f"{output}.parts").glob("*.nc")):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def long_suite(tmp_path) -> Path:
    # enough checkpoints that a signal after the first part comes in the middle
    models = {f"step{i}": ("neox", i) for i in range(6)}
    return tinymodels.suite(tmp_path / "long", models, RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_and_resumed_equals_uninterrupted(long_suite, tmp_path, how, jobs):
    output = tmp_path / "m.nc"
    process = start(tmp_path, long_suite, output, jobs)
    wait_for_part(process, output)
    os.kill(process.pid, how)
    _, _ = process.communicate(timeout=120)
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    assert output.exists() == (how == signal.SIGINT)
    time.sleep(1 if jobs > 1 else 0)  # workers of a killed parent end by themselves
    kept = len(list(Path(f"{output}.parts").glob("*.nc")))
    assert 1 <= kept < 6
    same(
        run.run(plan(long_suite), output, jobs=1),
        run.run(plan(long_suite), tmp_path / "other.nc", jobs=1),
    )


def test_a_broken_checkpoint_fails_alone_with_its_reason(tmp_path, monkeypatch):
    suite = tinymodels.suite(tmp_path / "s", {"good": ("neox", 1), "bad": ("llama", 2)}, ["rtn-w3"])
    file = suite.parent / "bad" / "model.safetensors"
    weights = load_file(file)
    sound = {name: tensor.clone() for name, tensor in weights.items()}
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(weights, file, {"format": "pt"})
    data = run.run(plan(suite), tmp_path / "m.nc", jobs=1)
    assert data["status"].values.tolist() == [[1, 1], [2, 2]]
    reason = measurements.failures(data)["llama/toy-llama@bad"]
    assert "down_proj.weight hold values that are not finite" in reason
    assert np.isnan(measurements.qid(data).values[1]).all()
    # mended, it is tried again when that is asked for, and only it
    save_file(sound, file, {"format": "pt"})
    calls = count_forward_passes(monkeypatch)
    same(run.run(plan(suite), tmp_path / "m.nc", jobs=1), data)
    assert calls == []
    mended = run.run(plan(suite), tmp_path / "m.nc", jobs=1, retry_failed=True)
    assert calls == ["llama/toy-llama@bad"]
    assert (mended["status"] == measurements.OK).all()
    assert (mended["reason"] == "").all()
    # and stays mended
    same(run.run(plan(suite), tmp_path / "m.nc", jobs=1), mended)


def test_the_same_weights_under_two_revisions_fail_both(tmp_path):
    models = {"step1": ("neox", 1), "step2": ("neox", 1), "step3": ("neox", 3)}
    suite = tinymodels.suite(tmp_path / "s", models, ["rtn-w3"])
    data = run.run(plan(suite), tmp_path / "m.nc", jobs=1)
    assert data["status"].values.tolist() == [[2, 2], [2, 2], [1, 1]]
    assert measurements.failures(data)["neox/toy-neox@step1"] == "the same weights as neox/toy-neox@step2"
    # and it stays so when resumed
    for retry in (False, True):
        same(run.run(plan(suite), tmp_path / "m.nc", jobs=1, retry_failed=retry), data)


def test_weights_that_are_not_those_listed_fail(tmp_path):
    suite = tinymodels.suite(tmp_path / "s", {"step1": ("neox", 1)}, ["rtn-w3"])
    table = suite.parent / "checkpoints.json"
    rows = json.loads(table.read_text())
    rows[0]["sha256"] = "0" * 64
    table.write_text(json.dumps(rows))
    data = run.run(plan(suite), tmp_path / "m.nc", jobs=1)
    assert "SHA-256 differs" in next(iter(measurements.failures(data).values()))


def test_a_loss_that_is_not_finite_fails_that_recipe_only(suite, tmp_path, monkeypatch):
    inner = calibrate.QUANTIZERS["rtn"]

    def spoils(weight, seens, recipes):
        made = inner(weight, seens, recipes)
        return [one._replace(weight=one.weight * (float("inf") if str(recipe) == "rtn-w3" else 1))
                for one, recipe in zip(made, recipes, strict=True)]  # fmt: skip

    monkeypatch.setitem(calibrate.QUANTIZERS, "rtn", spoils)
    data = run.run(plan(suite, ["rtn-w3", "rtn-w4"]), tmp_path / "m.nc", jobs=1)
    assert data["status"].sel(recipe="rtn-w3").values.tolist() == [2] * 4
    assert data["status"].sel(recipe="rtn-w4").values.tolist() == [1] * 4
    assert set(measurements.failures(data).values()) == {"its loss is not finite"}


def test_a_hessian_that_cannot_be_factorized_fails_that_recipe_only(suite, tmp_path, monkeypatch):
    inner, made = gptq.factorize, []

    def singular(seen, act_order):
        made.append(act_order)
        return inner(seen._replace(hessian=seen.hessian * float("nan")) if act_order else seen, act_order)

    monkeypatch.setattr(gptq, "factorize", singular)
    data = run.run(plan(suite, ["gptq-w3", "gptq-w3-act"]), tmp_path / "m.nc", jobs=1)
    assert data["status"].sel(recipe="gptq-w3").values.tolist() == [1] * 4
    assert data["status"].sel(recipe="gptq-w3-act").values.tolist() == [2] * 4
    assert "whatever the damping" in next(iter(measurements.failures(data).values()))


def test_when_memory_runs_out_batches_and_groups_are_halved_and_it_is_recorded(suite, tmp_path, monkeypatch, whole):
    inner, sizes = blocks.run, []

    def tight(block, hidden, call):
        sizes.append(hidden.shape[0] * hidden.shape[1])
        if sizes[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(block, hidden, call)

    monkeypatch.setattr(blocks, "run", tight)
    data = run.run(plan(suite), tmp_path / "m.nc", jobs=1)
    assert (data["status"] == measurements.OK).all()
    assert max(sizes) > 200
    for name in measurements.SCORES:
        assert np.allclose(data[name], whole[name], atol=1e-3 if name != "top1" else 1), name
    notes = set(data["note"].values.ravel())
    assert all("for memory ran out with more" in note for note in notes), notes
    # where even one window is too much the cells fail and say why
    monkeypatch.setattr(blocks, "run", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    data = run.run(plan(suite), tmp_path / "other.nc", jobs=1)
    assert (data["status"] == measurements.FAILED).all()
    assert "out of memory" in next(iter(measurements.failures(data).values()))


def test_a_full_disk_ends_the_sweep_and_loses_nothing(suite, tmp_path, monkeypatch, capsys):
    real, written = files.write_netcdf, []

    def full(data, path):
        written.append(path)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(data, path)

    monkeypatch.setattr(files, "write_netcdf", full)
    options = ("-o", tmp_path / "m.nc", "--jobs", 1, "--max-bytes", 200, "--calibration-windows", 6)
    code, out, err = command(monkeypatch, capsys, suite, *options)
    assert (code, out) == (2, "")
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert len(list((tmp_path / "m.nc.parts").glob("*.nc"))) == 2
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(files, "write_netcdf", real)
    calls = count_forward_passes(monkeypatch)
    same(run.run(plan(suite), tmp_path / "m.nc", jobs=1), run.run(plan(suite), tmp_path / "other.nc", jobs=1))
    assert len(calls) == 2 + 4, "what was finished is not measured again"


def test_calibration_seeds_are_recipes_of_their_own(suite, tmp_path):
    made = planning.make(str(suite), ["gptq-w2", "rtn-w3"], "cpu", SETTINGS, NO_FACTS, seeds=(0, 1, 2))
    data = run.run(made, tmp_path / "m.nc", jobs=1)
    assert data["recipe"].values.tolist() == ["none", "rtn-w3", "gptq-w2", "gptq-w2-s1", "gptq-w2-s2"]
    assert data["calibration_seed"].values.tolist() == [-1, -1, 0, 1, 2]
    assert data["calibration_windows"].values.tolist() == [0, 0, 6, 6, 6]
    assert data["calibration"].values.tolist() == ["", "", *["toy ladder's calibration"] * 3]
    qid = measurements.qid(data).sel(recipe=["gptq-w2", "gptq-w2-s1", "gptq-w2-s2"]).values
    assert (np.ptp(qid, axis=1) > 0).all()


@pytest.mark.slow
def test_recipes_in_groups_give_what_all_at_once_give(suite, tmp_path, monkeypatch, whole):
    monkeypatch.setattr(together, "LANES_BYTES", 1)
    same(run.run(plan(suite), tmp_path / "m.nc", jobs=1), whole)


def test_weights_changed_between_two_runs_are_not_mixed(tmp_path):
    suite = tinymodels.suite(tmp_path / "s", {"step1": ("neox", 1)}, ["rtn-w3"])
    run.run(plan(suite), tmp_path / "m.nc", jobs=1)
    tinymodels.model("neox", 9).save_pretrained(suite.parent / "step1")
    data = run.run(plan(suite, ["rtn-w4"]), tmp_path / "m.nc", jobs=1)
    assert data["status"].sel(recipe=["none", "rtn-w3", "rtn-w4"]).values.tolist() == [[1, 1, 2]]
    assert "is not what was locked" in measurements.failures(data)["neox/toy-neox@step1 rtn-w4"]


def test_another_suite_or_protocol_is_refused_and_nothing_is_touched(suite, tmp_path, whole):
    output = tmp_path / "m.nc"
    run.run(plan(suite, ["rtn-w3"]), output, jobs=1)
    before = output.read_bytes()
    with pytest.raises(BadInput, match="max_bytes = 200, not 100"):
        run.run(plan(suite, max_bytes=100), output, jobs=1)
    other = tinymodels.suite(tmp_path / "other", {"a": ("neox", 1)}, ["rtn-w3"], name="other")
    with pytest.raises(BadInput, match="belongs to the suite toy, not other"):
        run.run(plan(other), output, jobs=1)
    output.unlink()
    with pytest.raises(BadInput, match=r"parts.*calibration_windows = 6, not 5"):
        run.run(plan(suite, calibration_windows=5), output, jobs=1)
    assert not output.exists()
    output.write_bytes(before)


def test_changed_text_is_another_protocol(tmp_path):
    suite = tinymodels.suite(tmp_path / "s", {"a": ("neox", 1)}, ["rtn-w3"])
    run.run(plan(suite), tmp_path / "m.nc", jobs=1)
    tinymodels.write_text(suite.parent / "eval.jsonl", seed=7)
    with pytest.raises(BadInput, match="text_sha256"):
        run.run(plan(suite), tmp_path / "m.nc", jobs=1)


def own(folder: Path, recipes=("rtn-w3",), save_to=None, quantized=(), **changes):
    facts = {"family": "mine", "tokens": 1e6, "lr_phase": "annealed", "called": None} | changes
    texts = [tinymodels.write_text(folder.parent / f"{name}.jsonl", i) for i, name in enumerate(("e", "c"))]
    settings = SETTINGS | {"context": 64}
    return planning.make(
        str(folder), list(recipes), "cpu", settings, facts, *texts, save_to=save_to, quantized=quantized
    )


def test_models_of_ones_own_share_a_file(tmp_path):
    one_model = tinymodels.save("llama", tmp_path / "one", 1)
    two = tinymodels.save("opt", tmp_path / "two", 2)
    run.run(own(one_model), tmp_path / "m.nc", jobs=1)
    data = run.run(own(two, tokens=2e6), tmp_path / "m.nc", jobs=1)
    assert data["checkpoint"].values.tolist() == ["mine/one@local", "mine/two@local"]
    assert (data["status"] == measurements.OK).all()
    assert data["train_tokens"].values.tolist() == [1e6, 2e6]
    assert data["lr_phase"].values.tolist() == ["annealed"] * 2
    with pytest.raises(BadInput, match="training tokens"):
        run.run(own(two, tokens=3e6), tmp_path / "m.nc", jobs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": None}, "--family is missing"),
        ({"tokens": None}, "--tokens is missing"),
        ({"tokens": -1.0}, "at least 1"),
        ({"tokens": float("nan")}, "at least 1"),
        ({"lr_phase": "late"}, "--lr-phase 'late' is unknown"),
    ],
)
def test_facts_a_model_of_ones_own_needs(tmp_path, changes, message):
    (tmp_path / "m").mkdir()
    with pytest.raises(BadInput, match=message):
        own(tmp_path / "m", **changes)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("./nowhere", {}, "no folder ./nowhere"),
        ("nosuite", {}, "nosuite"),
        ("tiny", {"context": 0}, "context is 0"),
        ("tiny", {"dtype": "int8"}, "dtype 'int8' is unknown"),
    ],
)
def test_targets_and_settings_that_cannot_be_used(target, settings, message):
    facts = NO_FACTS if not target.startswith(".") else NO_FACTS | {"family": "f", "tokens": 1.0}
    with pytest.raises(BadInput, match=message):
        planning.make(target, None, "cpu", settings, facts)


def test_facts_for_a_suite_are_refused(suite):
    with pytest.raises(BadInput, match="--family is for a model of your own"):
        planning.make(str(suite), None, "cpu", {}, NO_FACTS | {"family": "f"})


def test_excluded_checkpoints_are_left_out_and_noted(suite, tmp_path, capsys):
    from dataclasses import replace

    made = plan(suite, ["rtn-w3"])
    wrong = replace(made.checkpoints[0], excluded="wrong weights")
    made = replace(made, checkpoints=made.checkpoints[1:], excluded={wrong.id: "wrong weights"})
    data = run.run(made, tmp_path / "m.nc", jobs=1)
    assert wrong.id not in data["checkpoint"].values
    assert measurements.manifest(data)["excluded"] == {wrong.id: "wrong weights"}
    assert f"left out {wrong.id}: wrong weights" in capsys.readouterr().err


def test_long_work_is_saved_between_the_recipes_of_a_checkpoint(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "LANES_BYTES", 1)
    made = plan(suite)
    one.measure_checkpoint(made, made.checkpoints[0], list(made.recipes), {}, tmp_path / "m.nc")
    assert len(list((tmp_path / "m.nc.parts").glob("*.nc"))) == len(made.recipes)


def test_what_was_saved_quantized_measures_as_it_did_before(tmp_path):
    place = tinymodels.save("opt", tmp_path / "one", 1)
    recipes = ["gptq-w3-g32", "rtn-w4-asym", "gptq-w4-act"]
    made = own(place, recipes=recipes, save_to=tmp_path / "saved")
    data = run.run(made, tmp_path / "m.nc", jobs=1)
    assert (data["status"] == measurements.OK).all()
    (folder,) = (tmp_path / "saved").iterdir()
    again = own(place, recipes=[], quantized=[folder / name for name in recipes])
    assert [str(recipe) for recipe in again.recipes] == ["none", *(f"{name}-saved" for name in recipes)]
    kept = run.run(again, tmp_path / "kept.nc", jobs=1)
    assert (kept["status"] == measurements.OK).all(), measurements.failures(kept)
    for name in recipes:
        before, after = data.sel(recipe=["none", name]), kept.sel(recipe=["none", f"{name}-saved"])
        now, then = (measurements.qid(one).values[0, 1] for one in (after, before))
        assert now == pytest.approx(then, rel=0.02, abs=1e-4), "scales are stored as float16"
        assert after["effective_bits"].values.tolist() == before["effective_bits"].values.tolist()
    with pytest.raises(BadInput, match="quantized already"):
        own(folder / recipes[0])
    with pytest.raises(BadInput, match="cannot store the grid of rtn-nf4"):
        own(place, recipes=["rtn-nf4"], save_to=tmp_path / "other")


def test_a_saved_checkpoint_of_another_model_fails(tmp_path):
    mine, other = (tinymodels.save("neox", tmp_path / name, seed) for name, seed in (("one", 1), ("two", 2)))
    run.run(own(other, recipes=["rtn-w4"], save_to=tmp_path / "saved"), tmp_path / "m.nc", jobs=1)
    (folder,) = (tmp_path / "saved").iterdir()
    data = run.run(own(mine, recipes=[], quantized=[folder / "rtn-w4"]), tmp_path / "n.nc", jobs=1)
    assert "no quantization of that model" in next(iter(measurements.failures(data).values()))


def test_no_gpu_is_said_in_one_sentence(suite):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    from dataclasses import replace

    with pytest.raises(BadInput, match="No CUDA device"):
        run.run(replace(plan(suite), device="cuda"), Path("unused.nc"))
    with pytest.raises(BadInput, match="no device 'tpu'"):
        run.run(replace(plan(suite), device="tpu"), Path("unused.nc"))
    assert not Path("unused.nc").exists()


def command(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    from bayesqid import cli

    monkeypatch.setattr(sys, "argv", ["bayesqid", "measure", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def test_command_line_measures_a_suite_and_prints_json(suite, tmp_path, monkeypatch, capsys):
    output = tmp_path / "m.nc"
    options = ("--recipes", "rtn-w3", "-o", output, "--max-bytes", 100, "--jobs", 1, "--json")
    code, out, err = command(monkeypatch, capsys, suite, *options)
    result = json.loads(out)
    assert (code, result["measured"], result["failed"]) == (0, 8, 0)
    assert "8/8" in err, "a bar over the cells"
    code, out, _ = command(monkeypatch, capsys, suite, *options[:-1])
    assert out.split("\n")[0].split() == ["checkpoint", "loss16", "rtn-w3"]
    assert (code, len(out.strip().split("\n"))) == (0, 5)


def test_command_line_says_what_is_wrong_in_one_sentence(tmp_path, monkeypatch, capsys):
    place = tinymodels.save("neox", tmp_path / "m", 1)
    code, out, err = command(monkeypatch, capsys, place, "-o", tmp_path / "m.nc")
    assert (code, out) == (2, "")
    assert "--family and --tokens are missing" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("m.nc*"))


def test_command_line_ends_with_3_when_a_checkpoint_failed(tmp_path, monkeypatch, capsys):
    suite = tinymodels.suite(tmp_path / "s", {"good": ("neox", 1), "bad": ("llama", 2)}, ["rtn-w3"])
    (suite.parent / "bad" / "model.safetensors").write_bytes(b"broken")
    code, out, err = command(monkeypatch, capsys, suite, "-o", tmp_path / "m.nc", "--jobs", 1)
    assert code == 3
    assert "failed llama/toy-llama@bad" in err
    assert "neox/toy-neox@good" in out
