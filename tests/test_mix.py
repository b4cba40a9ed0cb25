import itertools
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tinymodels
from bayesqid import cells, files, measurements
from bayesqid.errors import BadInput
from bayesqid.measure import assign, blocks, calibrate, layers, loss, mix, mix_run, mix_search, run, text, together
from bayesqid.measure import plan as planning
from bayesqid.recipe import NONE, parse
from tinymodels import NO_FACTS

SHAPES = [{f"{depth}.qkv": (96, 32), f"{depth}.out": (32, 32), f"{depth}.up": (64, 32), f"{depth}.down": (32, 64)}
          for depth in range(4)]  # fmt: skip
TEXTS = [text.Document(name, said) for name, said in tinymodels.documents(3, 6)]


@pytest.fixture(scope="module", params=["neox", "llama"])
def ready(request, tmp_path_factory) -> together.Ready:
    """A random model before some text."""
    from transformers import PreTrainedTokenizerFast

    model: Any = tinymodels.model(request.param, 1)
    folder = tinymodels.tokenizer(tmp_path_factory.mktemp("tokenizer"))
    tokens = text.tokenize(TEXTS, PreTrainedTokenizerFast.from_pretrained(folder), tinymodels.VOCABULARY)
    windows = text.windows(tokens, 32)
    found = layers.linears(model)
    inside = [{name: one for name, one in found.items() if id(one) in {id(part) for part in block.modules()}}
              for block in layers.blocks(model)]  # fmt: skip
    as_tuple = blocks.verify(model, torch.from_numpy(windows[0].inputs[None]))
    made = together.Ready(model, torch.device("cpu"), as_tuple, inside, windows, lambda seed: torch.empty(0),
                          len(TEXTS), most=64)  # fmt: skip
    made.lay_out()
    return made


@torch.inference_mode()
def by_itself(ready: together.Ready, formats: assign.Formats) -> np.ndarray:
    """Nats by document of the whole model with its layers rounded, batch by batch, nothing shared."""
    found = {name: one for inside in ready.inside for name, one in inside.items()}
    before = layers.originals(found)
    total = np.zeros(ready.documents)
    try:
        calibrate.install(found, calibrate.by_layer(found, formats))
        for batch in ready.work:
            log = loss.log_probabilities(ready.model(input_ids=batch.inputs, use_cache=False).logits, batch)
            lost = -log.gather(1, batch.targets[:, None])[:, 0]
            total += np.bincount(batch.documents, weights=lost.double().numpy(), minlength=ready.documents)
    finally:
        layers.install(found, before)
    return total


def random_formats(ready: together.Ready, count: int, names=("rtn-w2", "rtn-mxint3", "none")) -> list[assign.Formats]:
    rng = np.random.default_rng(0)
    flat = list(assign.joined(ready.shapes))
    return [{name: parse(str(rng.choice(names))) for name in flat} for _ in range(count)]


def test_shared_beginnings_change_no_loss(ready, monkeypatch):
    formats = random_formats(ready, 9)
    formats += [formats[0], dict.fromkeys(formats[0], NONE)]
    want = np.array([by_itself(ready, one) for one in formats])
    runs: list[int] = []
    assert np.array_equal(mix.nats(ready, formats, runs.append), want)
    assert sum(runs) < len(formats) * len(ready.inside)
    # as many hidden states as memory holds, here one, and the same to the bit
    monkeypatch.setattr(mix, "_room", lambda ready: 1)
    assert np.array_equal(mix.nats(ready, formats), want)
    assert len({row.tobytes() for row in want}) > 8


def test_the_search_finds_what_the_engine_of_measure_finds(ready):
    """One recipe for a share, once through `mix.nats` and once as a lane beside others; inputs rounded too."""
    for text_form in ("rtn-mxint3-wa@0.5m3", "rtn-w2@0.5l1"):
        recipe = parse(text_form)
        lanes: Any = together.measure(ready, [NONE, recipe, recipe.whole], {}, False, lambda amount: None)
        assert [lane.failed for lane, _ in lanes] == ["", "", ""]
        found = mix.nats(ready, [dict.fromkeys(assign.joined(ready.shapes), NONE), assign.drawn(ready.shapes, recipe)])
        assert np.array_equal(found[0], lanes[0][1].nats)
        assert np.array_equal(found[1], lanes[1][1].nats)
        assert not np.allclose(lanes[1][1].nats, lanes[2][1].nats, rtol=1e-6)


def test_sensitivity_is_that_of_one_item_alone(ready):
    choice = mix.table(ready.shapes, [parse("rtn-w2"), parse("rtn-w4"), NONE], "matmul")
    tokens = np.ones(len(TEXTS))
    differences, values = mix.sensitivity(ready, choice, tokens)
    plain = dict.fromkeys(assign.joined(ready.shapes), NONE)
    one = plain | dict.fromkeys(choice.items[5], parse("rtn-w2"))
    assert np.array_equal(differences[5, 0], by_itself(ready, one) - by_itself(ready, plain))
    assert (values[:, 2] == 0).all()
    assert (np.abs(values[:, 0]) > np.abs(values[:, 1])).mean() > 0.8


@pytest.mark.parametrize("granularity", ["matmul", "layer"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_draw_comes_as_near_to_the_share_as_its_units_let_it(granularity, share):
    sizes = mix.table(SHAPES, [parse("rtn-w3"), NONE], granularity).costs[:, 1] / 16
    letter = {"matmul": "m", "layer": "l"}[granularity]
    drawn = [assign.drawn(SHAPES, parse(f"rtn-w3@{share:g}{letter}{draw or ''}")) for draw in range(40)]
    achieved = np.array([assign.low_share(one, SHAPES) for one in drawn])
    # no unit that was left out, or taken last, could have brought it nearer
    assert (np.abs(achieved - share) <= sizes.max() / sizes.sum() / 2 + 1e-12).all()
    if granularity == "layer":
        assert (achieved == share).all()
    low = {name: np.mean([one[name] != NONE for one in drawn]) for name in assign.joined(SHAPES)}
    # every layer is drawn at times and left out at times
    assert min(low.values()) > 0
    assert max(low.values()) < 1
    assert drawn[3] == assign.drawn(SHAPES, parse(f"rtn-w3@{share:g}{letter}3"))


def test_a_draw_takes_the_same_layers_for_every_format_and_others_for_another_share():
    def names(form: str) -> set:
        return {name for name, one in assign.drawn(SHAPES, parse(form)).items() if one != NONE}

    assert names("rtn-w3@0.5m4") == names("gptq-mxint4-wa@0.5m4")
    assert names("rtn-w3@0.5m4") != names("rtn-w3@0.5m5")
    # a smaller share is no part of a larger one: draws of two shares are independent
    assert any(not names(f"rtn-w3@0.25m{draw}") <= names(f"rtn-w3@0.5m{draw}") for draw in range(1, 5))


def test_a_share_that_comes_to_all_or_nothing_is_refused():
    for share, nearest in (("0.9", "1"), ("0.1", "0")):
        with pytest.raises(BadInput, match=f"the share nearest to {share} is {nearest}"):
            assign.drawn(SHAPES[:2], parse(f"rtn-w3@{share}l"))


def test_bits_of_an_assignment_by_hand():
    formats = dict.fromkeys(assign.joined(SHAPES[:1]), parse("rtn-mxint4")) | {"0.up": NONE}
    low, high = (96 + 32 + 64) * 32, 64 * 32
    assert assign.bits(formats, SHAPES[:1]) == 4.25 * low + 16 * high
    assert assign.average(formats, SHAPES[:1]) == (4.25 * low + 16 * high) / (low + high)
    assert assign.low_share(formats, SHAPES[:1]) == low / (low + high)


def problem(seed: int, items: int = 6, forms: int = 4) -> tuple[np.ndarray, np.ndarray, float]:
    """Costs, values and a budget: larger formats cost more and mostly hurt less."""
    rng = np.random.default_rng(seed)
    costs = 64 * rng.integers(1, 9, (items, 1)) * np.array([2, 3, 4, 16])[:forms] + 16 * rng.integers(1, 4, (items, 1))
    values = rng.exponential(1.0, (items, 1)) * np.exp(-np.arange(forms)) * rng.lognormal(0, 0.7, (items, forms))
    least, most = costs.min(1).sum(), costs.max(1).sum()
    return costs, values, least + rng.uniform(0.05, 0.9) * (most - least)


def total(values: np.ndarray, chosen: np.ndarray) -> float:
    return float(values[np.arange(len(chosen)), chosen].sum())


def test_knapsack_is_the_best_of_all_assignments_and_greedy_never_better():
    worse = 0
    for seed in range(12):
        costs, values, budget = problem(seed)
        every = [np.array(one) for one in itertools.product(range(4), repeat=6)]
        best = min(total(values, one) for one in every if mix_search.cost(costs, one) <= budget)
        exact, quick = mix_search.knapsack(costs, values, budget), mix_search.greedy(costs, values, budget)
        assert max(mix_search.cost(costs, exact), mix_search.cost(costs, quick)) <= budget
        assert total(values, exact) == pytest.approx(best, abs=1e-9)
        assert total(values, quick) >= best - 1e-9
        worse += total(values, quick) > best + 1e-9
    assert worse > 0, "every greedy solution was the best one: the problems are too easy to tell"


def test_random_assignments_use_up_the_budget():
    costs, _, budget = problem(3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        one = mix_search.drawn(costs, budget, rng)
        left = budget - mix_search.cost(costs, one)
        steps = [costs[item, form + 1] - costs[item, form] for item, form in enumerate(one) if form < 3]
        assert left >= 0
        assert all(step > left for step in steps)


@pytest.mark.slow
def test_trials_that_share_a_trunk_are_distributed_as_independent_ones():
    """Each trial by itself: how often every item gets every format, over many searches."""
    shapes = SHAPES[:3]
    choice = mix.table(shapes, [parse("rtn-w2"), parse("rtn-w4"), NONE], "matmul")
    budget = 5.0 * assign.weights(shapes)
    rng = np.random.default_rng(0)
    searches = [mix_search.branched(choice.costs, choice.depths, budget, 12, rng) for _ in range(150)]
    # the last trial of a search is a branch nearly always; searches are independent
    branched = np.array([one[-1] for one in searches])
    alone = np.array([mix_search.drawn(choice.costs, budget, rng) for _ in range(1500)])
    for form in range(3):
        want = (alone == form).mean(0)
        error = np.sqrt(want * (1 - want) * (1 / 150 + 1 / 1500)) + 1e-9
        assert (np.abs((branched == form).mean(0) - want) < 4.5 * error + 1e-9).all()
    assert all(mix_search.cost(choice.costs, trial) <= budget for one in searches[:20] for trial in one)
    beginnings = np.mean([len({trial[:4].tobytes() for trial in one}) for one in searches])
    assert beginnings < 8, "trials share no beginnings"


@pytest.mark.parametrize(
    ("budget", "bits"),
    [("3.5bits", 3500), ("4 bits", 4000), ("2bit", 2000), ("1kB", 8000 - 1600), ("1KiB", 8192 - 1600),
     ("0.001MB", 8000 - 1600)],
)  # fmt: skip
def test_a_budget_in_bits_is_per_weight_and_in_bytes_of_the_whole_checkpoint(budget, bits):
    assert mix.budget_bits(budget, 1000, 100) == pytest.approx(bits)


@pytest.mark.parametrize(
    "budget", ["", "3.5", "0bits", "-1bits", "nanbits", "1e400bits", "3bytes", "1TB", "9" * 400 + "bits"]
)
def test_a_budget_that_cannot_be_read_is_refused(budget):
    with pytest.raises(BadInput, match="cannot be read"):
        mix.budget_bits(budget, 1000, 100)


def test_budgets_that_leave_nothing_to_choose_are_refused():
    choice = mix.table(SHAPES, [parse("rtn-w2"), NONE], "matmul")
    with pytest.raises(BadInput, match="raise it"):
        mix_search.within(choice.costs, 1.5 * assign.weights(SHAPES))
    with pytest.raises(BadInput, match="lower it"):
        mix_search.within(choice.costs, 16 * assign.weights(SHAPES))
    with pytest.raises(BadInput, match="more than the budget"):
        mix.budget_bits("0.1kB", 1000, 100)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"search": "best"}, "--search 'best' is unknown"), ({"granularity": "head"}, "--granularity 'head'"),
     ({"trials": 0}, "--trials is 0"), ({"samples": 1}, "--samples is 1"), ({"draws": -1}, "--draws is -1"),
     ({"seed": -1}, "--seed is -1"), ({"formats": ("rtn-w3",)}, "fewer than two formats"),
     ({"formats": ("rtn-w3", "gptq-w3")}, "needs no calibration text"),
     ({"formats": ("rtn-w3", "rtn-w4@0.5m")}, "cannot get"),
     ({"formats": ("rtn-w3", "rtn-mxint4-wa")}, "with -wa and without")],
)  # fmt: skip
def test_a_search_that_cannot_be_done_is_refused(changes, why):
    with pytest.raises(BadInput, match=why):
        mix_run.Search("3.5bits", **changes).check()


def test_a_model_without_linear_layers_is_refused_in_one_sentence():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = torch.nn.ModuleList([torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)])

    with pytest.raises(BadInput, match="no linear layers inside its blocks"):
        layers.linears(Plain())


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    models = {"one": ("neox", 1), "two": ("llama", 2)}
    return tinymodels.suite(tmp_path_factory.mktemp("mix") / "toy", models, ["rtn-w3"])


@pytest.fixture(scope="module")
def found(suite) -> dict:
    """What `bayesqid mix` finds for the first model of the suite."""
    search, folder = mix_run.Search("5bits", ("rtn-w2", "rtn-w4", "none"), draws=3), suite.parent
    return mix_run.run(str(folder / "one"), search, "cpu", {"context": tinymodels.CONTEXT}, folder / "eval.jsonl",
                       folder / "calibration.jsonl", folder / "tokenizer")  # fmt: skip


def test_the_written_assignment_is_measured_as_it_was_promised(suite, found, tmp_path):
    file = assign.write(mix_run.as_mix(found), tmp_path / "mix.toml")
    raw = tomllib.loads(file.read_text())
    assert (raw["layers"], raw["budget"]) == (found["layers"], "5bits")
    name = str(assign.read(file).recipe)
    assert name == mix_run.as_json(found)["recipe"]
    assert parse(name).mix
    plan = planning.make(str(suite), [str(file), "rtn-w4"], "cpu", {"max_bytes": 1024}, NO_FACTS)
    data = run.run(plan, tmp_path / "m.nc", jobs=1)
    cell = data.sel(checkpoint="neox/toy-neox@one", recipe=name)
    assert measurements.qid(data).sel(checkpoint="neox/toy-neox@one", recipe=name) == pytest.approx(
        found["measured_qid"], abs=1e-12)  # fmt: skip
    assert measurements.qid_se(data).sel(checkpoint="neox/toy-neox@one", recipe=name) == pytest.approx(
        found["measured_qid_se"], rel=1e-9)  # fmt: skip
    assert cell["effective_bits"] == pytest.approx(found["effective_bits"])
    assert found["effective_bits"] <= 5
    assert cell["linear_fraction"] == pytest.approx(found["linear_fraction"])
    # the other model of the suite has other layers: that cell fails and says so, the rest is measured
    other = data.sel(checkpoint="llama/toy-llama@two", recipe=name)
    assert other["status"] == measurements.FAILED
    assert "made for another model" in str(other["reason"].values)
    assert (data["status"].sel(recipe="rtn-w4") == measurements.OK).all()
    # a second run finds everything there, and cells leave the assignment out by name
    again = run.run(plan, tmp_path / "m.nc", jobs=1)
    assert again.identical(data)
    left = json.loads(cells.from_measurements(again, {"name": "m.nc"}).attrs["excluded"])
    assert left["formats differ from layer to layer"] == {"neox": 1}


def test_what_is_printed_is_what_was_found(found):
    said = mix_run.as_text(found)
    assert max(map(len, said.splitlines())) <= 80
    assert f"{found['measured_qid']:.4f}" in said
    assert f"{found['random_qid']:.4f}" in said
    assert json.loads(json.dumps(mix_run.as_json(found), allow_nan=False))["layers"] == found["layers"]
    # the sum of QiDs of layers alone is that of the search text, so the two differ
    assert found["predicted_qid"] != found["measured_qid"]


@pytest.mark.slow
def test_shares_reach_the_cells_and_older_files_are_read_as_whole(suite, tmp_path):
    recipes = ["rtn-w3", "rtn-w3@0.5m", "rtn-w3@0.5m1", "rtn-w3@0.5l", "rtn-w3@0.5l1", "rtn-w3@0.5l2", "gptq-w3@0.5m"]
    plan = planning.make(str(suite), recipes, "cpu", {"calibration_windows": 4}, NO_FACTS)
    data = run.run(plan, tmp_path / "m.nc", jobs=1)
    assert (data["status"] == measurements.OK).all()
    made = cells.from_measurements(data, {"name": "m.nc"})
    # random models lose more than guessing does, which inference refuses
    cells.check(made.assign_coords(headroom=("cell", np.ones(made.sizes["cell"]))))
    part = made.isel(cell=made["quantized_fraction"].values < 1)
    # what is rounded is rounded as coarsely as in the whole recipe, whatever is left out
    whole = data["effective_bits"].sel(recipe="rtn-w3").values
    assert part["effective_bits"].values.min() > 3
    assert part["effective_bits"].values.max() < whole.max() + 0.2
    assert set(part["granularity"].values) == {"layer", "matmul"}
    assert set(part["assignment"].values) == {"random"}
    assert made["granularity"].values[made["quantized_fraction"].values == 1].tolist() == ["", ""]
    # two blocks have two assignments: at least one of the three draws by blocks repeats another
    assert json.loads(made.attrs["excluded"])["a draw of the same layers as another"]["neox"] >= 1
    share = data["linear_fraction"].sel(recipe="rtn-w3@0.5m")
    assert (np.abs(share - 0.5) < 0.2).all()
    full = data["quantized_fraction"].sel(recipe="rtn-w3")
    np.testing.assert_allclose(data["quantized_fraction"].sel(recipe="rtn-w3@0.5m"), full * share, rtol=1e-12)
    old = files.write_netcdf(data.drop_vars("linear_fraction").sel(recipe=["none", "rtn-w3"]), tmp_path / "old.nc")
    read = measurements.read(old)
    assert (read["linear_fraction"].sel(recipe="rtn-w3") == 1).all()
    assert (read["linear_fraction"].sel(recipe="none") == 0).all()
    plain = cells.from_measurements(read, {"name": "old.nc"})
    assert "quantized_fraction" not in plain
    other = plain.assign_coords(source=("cell", np.array(["other"] * plain.sizes["cell"], dtype=object)))
    both = cells.join([made, other])
    assert (both["quantized_fraction"].values[-2:] == 1).all()
    assert both["granularity"].values[-2:].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("content", "why"),
    [("schema = 3", "is no assignment"), ("= =", "not valid TOML"),
     ('schema = "bayesqid-mix/1"\n[layers]', "is no assignment"),
     ('schema = "bayesqid-mix/1"\nfound = "A b"\n[layers]\na = "rtn-w3"', "found is 'A b'"),
     ('schema = "bayesqid-mix/1"\nfound = "own"\n[layers]\na = 3', "the format of a is 3"),
     ('schema = "bayesqid-mix/1"\nfound = "own"\n[layers]\na = "rtn-w7"', "layer a: Recipe 'rtn-w7'"),
     ('schema = "bayesqid-mix/1"\nfound = "own"\n[layers]\na = "gptq-w3"', "layer a: A layer cannot get gptq-w3")],
)  # fmt: skip
def test_a_damaged_assignment_is_refused_in_one_sentence(tmp_path, content, why):
    path = tmp_path / "mix.toml"
    path.write_text(content)
    with pytest.raises(BadInput, match=why) as caught:
        assign.read(path)
    assert "\n" not in str(caught.value).rstrip()


def test_an_assignment_without_its_file_and_uses_that_need_whole_recipes_are_refused(suite, tmp_path):
    with pytest.raises(BadInput, match="stands in a file"):
        planning.make(str(suite), ["mix-greedy@0a1b2c3d"], "cpu", {}, NO_FACTS)
    with pytest.raises(BadInput, match="no assignment"):
        planning.make(str(suite), [str(tmp_path / "none.toml")], "cpu", {}, NO_FACTS)
    with pytest.raises(BadInput, match="cannot be saved"):
        planning.make(str(suite), ["gptq-w4@0.5m"], "cpu", {}, NO_FACTS, save_to=tmp_path)
    with pytest.raises(BadInput, match="cannot be given a loss landscape"):
        planning.make(str(suite), ["rtn-w4@0.5m"], "cpu", {}, NO_FACTS, landscape=planning.Landscape())
    with pytest.raises(BadInput, match="is no single checkpoint"):
        mix_run.run("tiny", mix_run.Search("3bits"), "cpu", {})


@pytest.mark.slow
def test_bad_input_on_the_command_line_is_one_sentence_and_exit_2(suite, tmp_path):
    program = Path(sys.executable).with_name("bayesqid")
    model = [str(suite.parent / "one"), "--tokenizer", str(suite.parent / "tokenizer"), "--context", "32"]
    for words, why in (([*model, "--budget", "1bits"], "raise it"), ([*model, "--budget", "many"], "cannot be read"),
                       (["tiny", "--budget", "3bits"], "no single checkpoint")):  # fmt: skip
        done = subprocess.run([program, "mix", *words, "-o", "mix.toml"], cwd=tmp_path, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert why in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "mix.toml").exists()
