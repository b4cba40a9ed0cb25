"""The loss landscape against finite differences, the exact Hessian of a model small enough to form it, closed forms."""

from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, GPTNeoXConfig

import test_measure_run as measuring
import tinymodels
from bayesqid import cells, measurements
from bayesqid.errors import BadInput
from bayesqid.measure import landscape, landscape_run, layers, loss, run, text
from bayesqid.measure import plan as planning
from bayesqid.measure.landscape import Point
from bayesqid.recipe import parse

KINDS = list(tinymodels.CONFIGS)
FEW = {"documents": 4, "probes": 3, "directions": 2}


def tokens(count: int = 5, vocabulary: int = tinymodels.VOCABULARY) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, vocabulary, size=4 + 7 * i) for i in range(count)]


def point(model, documents: list[np.ndarray], most: int = 60, context: int = 16) -> Point:
    windows = text.windows(documents, context)
    work = loss.batches(windows, model.config.vocab_size, torch.device("cpu"), most)
    assert len(work) > 1, "several batches, some of them padded"
    return Point(model, layers.linears(model), work, len(documents))


def double(kind: str) -> Point:
    """A smooth model in float64 throughout: Llama's norms come in float32 whatever the weights are, OPT has kinks."""
    made = tinymodels.model(kind, 1).double()
    for module in made.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = partial(rms_norm, module)
        if isinstance(getattr(module, "activation_fn", None), torch.nn.ReLU):
            module.activation_fn = torch.nn.GELU()
    return point(made, tokens())


def rms_norm(module, state: torch.Tensor) -> torch.Tensor:
    return module.weight * state * (state.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


@pytest.fixture(scope="module")
def small() -> tuple[Point, np.ndarray]:
    """A model of 384 quantized weights in float64 with its exact Hessian, by automatic differentiation of its loss."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=24, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=32, initializer_range=0.5, rotary_pct=1.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)
    here = point(model, tokens(4, 24), 30)
    names = {id(module): name for name, module in model.named_modules()}
    keys = [f"{names[id(module)]}.weight" for module in here.found.values()]
    shapes = [module.weight.shape for module in here.found.values()]
    count = int(here.tokens.sum())

    def of_flat(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {key: part.view(shape) for key, part, shape in zip(keys, parts, shapes, strict=True)}
        total = flat.new_zeros(())
        for batch in here.work:
            logits = torch.func.functional_call(model, weights, (batch.inputs,)).logits[batch.scored]
            total = total + torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        return total / count

    start = flat(landscape.weights(here.found))
    assert len(start) == 384
    with sdpa_kernel(SDPBackend.MATH):
        return here, torch.autograd.functional.hessian(of_flat, start).numpy()


def flat(vector) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in vector.values()])


def unflat(here: Point, values: np.ndarray) -> dict[str, torch.Tensor]:
    parts = torch.as_tensor(values).split([module.weight.numel() for module in here.found.values()])
    return {name: part.view_as(module.weight) for (name, module), part in zip(here.found.items(), parts, strict=True)}


def mean(here: Point, sums: np.ndarray) -> float:
    return sums.sum() / here.tokens.sum()


def test_the_loss_is_the_one_that_evaluation_reports():
    made = tinymodels.model("neox", 1)
    here = point(made, tokens())
    scored = tinymodels.scores(made, tokens(), ["none"])["none"]
    whole = Point(made, layers.linears(made), tinymodels.ready(made, tokens()).work, 5)
    assert np.allclose(landscape.nats(whole), scored.nats, rtol=1e-6)
    assert here.tokens.sum() == sum(len(ids) - 1 for ids in tokens())


@pytest.mark.parametrize("kind", KINDS)
def test_slope_and_curvature_agree_with_finite_differences(kind):
    here = double(kind)
    start = landscape.nats(here)
    direction = landscape.rounding_error(here.found, parse("rtn-w3-g32"))
    gradient, forms = landscape.second_order(here, [lambda: direction])
    found = landscape.along(here, direction, start, 1e-4)

    def at(step: float) -> float:
        with landscape.moved(here.found, direction, step):
            return mean(here, landscape.nats(here))

    h = 1e-3
    # a stencil of five points, written apart from the code, is good to O(h^4)
    slope = (at(-2 * h) - 8 * at(-h) + 8 * at(h) - at(2 * h)) / (12 * h)
    bend = (-at(-2 * h) + 16 * at(-h) - 30 * at(0) + 16 * at(h) - at(2 * h)) / (12 * h**2)
    assert landscape.inner(gradient, direction) == pytest.approx(slope, rel=1e-6)
    assert forms[0] == pytest.approx(bend, rel=1e-5)
    assert mean(here, found.slope) == pytest.approx(slope, rel=1e-5)
    assert mean(here, found.curvature) == pytest.approx(bend, rel=1e-5)


def test_kinks_are_in_the_curvature_and_not_in_the_hessian():
    """|x| has no second derivative away from 0; rounding that moves x across 0 meets its bend all the same."""
    here = point(tinymodels.model("opt", 1).double(), tokens())
    direction = landscape.rounding_error(here.found, parse("rtn-w3"))
    start, (_, forms) = landscape.nats(here), landscape.second_order(here, [lambda: direction])
    near, far = (mean(here, landscape.along(here, direction, start, radius).curvature) for radius in (1e-5, 1e-2))
    assert near == pytest.approx(forms[0], rel=0.2)
    assert abs(far - forms[0]) > abs(near - forms[0])


def test_weights_are_back_after_every_look():
    here = point(tinymodels.model("gpt2", 1), tokens())
    before = {name: part.clone() for name, part in landscape.weights(here.found).items()}
    start = landscape.nats(here)
    direction = landscape.rounding_error(here.found, parse("rtn-w2"))
    landscape.along(here, direction, start, 0.01)
    landscape.flatness(here, start, (0.1,), 1, 0)
    landscape.second_order(here, [lambda: direction])
    assert all(torch.equal(part, before[name]) for name, part in landscape.weights(here.found).items())
    assert not any(parameter.requires_grad for parameter in here.model.parameters())


@pytest.mark.parametrize("name", ["rtn-w2", "rtn-w3-asym", "rtn-mxint4", "gptq-w3-g32-act", "awq-w4-g32", "hqq-w4-g64"])
def test_curvature_is_the_exact_hessians(small, name):
    here, hessian = small
    direction = landscape.rounding_error(here.found, parse(name))
    d = flat(direction).numpy()
    exact = d @ hessian @ d
    assert landscape.second_order(here, [lambda: direction])[1][0] == pytest.approx(exact, rel=1e-9)
    found = landscape.along(here, direction, landscape.nats(here), 1e-4)
    assert mean(here, found.curvature) == pytest.approx(exact, rel=1e-4)


def test_the_difference_quotient_errs_with_the_square_of_its_step(small):
    here, hessian = small
    direction = landscape.rounding_error(here.found, parse("rtn-w2"))
    d = flat(direction).numpy()
    start, exact = landscape.nats(here), d @ hessian @ d
    gaps = [mean(here, landscape.along(here, direction, start, radius).curvature) - exact for radius in (0.04, 0.01)]
    assert gaps[0] / gaps[1] == pytest.approx(16, rel=0.1)


def test_the_trace_over_a_complete_set_of_signs_is_the_exact_one(small):
    here, hessian = small
    signs = np.ones((1, 1))
    while len(signs) < len(hessian):
        signs = np.block([[signs, signs], [signs, -signs]])
    # rows of a Hadamard matrix cut short are not orthogonal, but all of them together are: sum z z' = 512 I
    vectors = [unflat(here, row[: len(hessian)]) for row in signs]
    forms = landscape.second_order(here, [lambda v=v: v for v in vectors])[1]
    assert forms.mean() == pytest.approx(np.trace(hessian), rel=1e-9)


def test_hutchinsons_mean_lies_within_its_error(small):
    here, hessian = small
    count = 200
    forms = landscape.second_order(here, [lambda k=k: landscape.probe(here.found, k, 0) for k in range(count)])[1]
    trace, error = landscape.mean_and_error(forms)
    assert abs(trace - np.trace(hessian)) < 3 * error
    # Rademacher probes: variance 2 (sum of squares off the diagonal), known exactly
    off = hessian - np.diag(np.diag(hessian))
    assert error == pytest.approx((2 * (off**2).sum() / count) ** 0.5, rel=0.2)


def test_flatness_at_a_small_radius_is_the_quadratic_form(small):
    here, hessian = small
    radius = 1e-3
    found = landscape.flatness(here, landscape.nats(here), (radius,), 3, seed=5)
    for number in range(3):
        u = flat(landscape.random_direction(here.found, number, 5)).numpy()
        assert found[number, 0] == pytest.approx(radius**2 * (u @ hessian @ u) / 2, rel=1e-3)
    assert len(set(found[:, 0])) == 3


def test_random_directions_are_as_long_as_the_weights_of_every_layer_and_repeat(small):
    here, _ = small
    first, again, other = (landscape.random_direction(here.found, number, 0) for number in (0, 0, 1))
    for name, module in here.found.items():
        assert first[name].norm().item() == pytest.approx(module.weight.norm().item())
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    ones = landscape.probe(here.found, 0, 0)
    assert set(flat(ones).tolist()) == {-1.0, 1.0}
    assert abs(flat(ones).mean()) < 0.2


def test_sqnr_of_a_fine_uniform_grid_is_the_closed_form():
    layer = torch.nn.Linear(4096, 8, bias=False)
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight.uniform_(-1, 1)
    found = {"one": layer}
    pooled, by_layer = landscape.sqnr_db(found, landscape.rounding_error(found, parse("rtn-w8")))
    # mean square 1/3 over that of an error uniform in one of 255 steps across [-1, 1], (2/255)^2 / 12: 255^2
    assert pooled == pytest.approx(20 * np.log10(255), abs=0.05)
    assert by_layer.tolist() == [pytest.approx(pooled)]


def test_sqnr_is_pooled_by_power_not_by_layer():
    found = {name: torch.nn.Linear(2, 1, bias=False) for name in ("a", "b")}
    found["a"].weight.data = torch.tensor([[3.0, 4.0]])
    found["b"].weight.data = torch.tensor([[0.0, 1.0]])
    gaps = {"a": torch.tensor([[0.5, 0.0]]), "b": torch.tensor([[0.0, 0.1]])}
    pooled, by_layer = landscape.sqnr_db(found, gaps)
    assert by_layer.tolist() == pytest.approx([20.0, 20.0])
    assert pooled == pytest.approx(10 * np.log10(26 / 0.26))
    assert landscape.sqnr_db(found, {name: torch.zeros(1, 2) for name in found})[0] == np.inf


@pytest.mark.parametrize("kind", KINDS)
def test_layer_error_is_the_change_of_the_layers_outputs(kind):
    here = point(tinymodels.model(kind, 1), tokens())
    direction = landscape.rounding_error(here.found, parse("rtn-w3"))
    products, counts = landscape.input_products(here)
    found = landscape.layer_error(here.found, direction, products, counts)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in here.found}
    hooks = [module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2)))
             for name, module in here.found.items()]  # fmt: skip
    windows = text.windows(tokens(), 16)
    for window in windows:  # one at a time: nothing is padded
        here.model(input_ids=torch.from_numpy(window.inputs[None]), use_cache=False)
    for hook in hooks:
        hook.remove()
    total = 0.0
    for name, module in here.found.items():
        inputs, part = torch.cat(seen[name]), direction[name]
        changed = inputs @ (part.T if isinstance(module, torch.nn.Linear) else part)
        total += changed.square().sum(1).mean().item()
    assert set(counts.values()) == {sum(len(window.inputs) for window in windows)}
    assert found == pytest.approx(total, rel=1e-4)


def test_every_method_has_the_direction_of_its_grid():
    made = tinymodels.model("neox", 1)
    found = layers.linears(made)
    plain = landscape.rounding_error(found, parse("rtn-w4-g32"))
    for name in ("gptq-w4-g32", "gptq-w4-g32-act", "gptq-w4-g32-s3", "gptq-w4-g32-oneshot"):
        other = landscape.rounding_error(found, parse(name))
        assert all(torch.equal(plain[key], other[key]) for key in plain)
    other = landscape.rounding_error(found, parse("awq-w4-g32"))
    assert not all(torch.equal(plain[key], other[key]) for key in plain), "its grid is asymmetric"


def test_documents_are_spread_over_the_text_and_those_for_slopes_hold_the_others():
    usual = planning.Landscape()
    for count in (1, 5, 12, 50, 192, 1000):
        few, wide = usual.chosen(count), usual.chosen_for_slopes(count)
        assert set(few) <= set(wide) <= set(range(count))
        assert (len(few), len(wide)) == (len(set(few)), len(set(wide)))
    assert (len(usual.chosen(192)), len(usual.chosen_for_slopes(192))) == (12, 48)
    assert np.ptp(np.diff(usual.chosen(192))) == 0
    assert len(planning.Landscape(documents=24).chosen(192)) == 24


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    models = {"neox1": ("neox", 1), "opt3": ("opt", 3)}
    return tinymodels.suite(tmp_path_factory.mktemp("suite") / "toy", models, measuring.RECIPES)


def plan(suite, recipes=None, **more) -> planning.Plan:
    settings = planning.Landscape(**(FEW | more))
    return planning.make(str(suite), recipes, "cpu", measuring.SETTINGS, measuring.NO_FACTS, landscape=settings)


@pytest.fixture(scope="module")
def charted(suite, tmp_path_factory) -> xr.Dataset:
    return run.run(plan(suite), tmp_path_factory.mktemp("charted") / "m.nc", jobs=1)


def test_without_the_flag_nothing_is_added(suite, tmp_path, charted):
    bare = run.run(measuring.plan(suite), tmp_path / "m.nc", jobs=1)
    assert not {*measurements.LANDSCAPE, "radius", "landscape_reason"} & set(bare.variables)
    assert "landscape" not in measurements.manifest(bare)["protocol"]
    assert not set(cells.FEATURES) & set(cells.from_measurements(bare, {}).variables)
    for name in measurements.SCORES:
        assert (bare[name] == charted[name]).all(), "cells are the same with and without"


def test_every_feature_is_there_and_follows_from_its_parts(charted):
    rounded = charted.drop_sel(recipe="none")
    for name in set(measurements.LANDSCAPE) - {"layer_sqnr_db"}:
        assert np.isfinite(rounded[name]).all(), name
    layered = np.isfinite(rounded["layer_sqnr_db"]).sum("layer")
    assert layered.values.tolist() == [[8] * 3, [12] * 3], "models with fewer layers are filled up with NaN"
    assert np.isnan(charted["sqnr_db"].sel(recipe="none")).all()
    assert (charted["landscape_reason"] == "").all()
    assert (rounded["taylor"] == rounded["slope"] + rounded["curvature"] / 2).all()
    assert (rounded["sqnr_db"].sel(recipe="gptq-w3") == rounded["sqnr_db"].sel(recipe="rtn-w3")).all()
    assert (rounded["sqnr_db"].sel(recipe="rtn-w4-g32") > rounded["sqnr_db"].sel(recipe="rtn-w3") + 5).all()
    assert charted["radius"].values.tolist() == [0.03, 0.1, 0.3]
    protocol = measurements.manifest(charted)["protocol"]["landscape"]
    assert protocol["documents"] == 4
    assert protocol["slope_documents"] == protocol["of_documents"] == 12


def test_slope_and_curvature_are_those_of_the_chosen_documents(charted, suite):
    place = suite.parent / "neox1"
    made = AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager").double()
    chosen = plan(suite)
    at = landscape_run.read(chosen, place)
    here = at(chosen.landscape.chosen(12))
    exact = Point(made, layers.linears(made), here.work, here.documents)
    direction = {name: part.double() for name, part in landscape.rounding_error(here.found, parse("rtn-w3")).items()}
    row = charted.sel(checkpoint="neox/toy-neox@neox1", recipe="rtn-w3")
    assert row["curvature"].item() == pytest.approx(
        landscape.second_order(exact, [lambda: direction])[1][0], rel=0.05
    ), "float32 and a step of 1 % of the weights' norm"
    wide = at(chosen.landscape.chosen_for_slopes(12))
    gradient = landscape.second_order(Point(made, exact.found, wide.work, 12), [])[0]
    assert row["slope"].item() == pytest.approx(landscape.inner(gradient, direction), rel=1e-3)


def test_standard_errors_are_those_of_documents_drawn_anew(small):
    """Bootstrap over documents of the mean slope and curvature, by hand."""
    rng = np.random.default_rng(0)
    counted = rng.integers(20, 60, size=200)
    sums = landscape.Along(*(counted * rng.normal(shift, 0.3, size=200) for shift in (0.1, 0.5)))
    found = landscape_run.variables(landscape_run.Direction(sums, 0.1, 9.0, np.zeros(1), 1.0), counted, share=0.25)
    drawn = rng.integers(0, 200, size=(4000, 200))
    spread = [np.std(part[drawn].sum(1) / counted[drawn].sum(1)) for part in sums]
    assert found["slope_se"] == pytest.approx(spread[0] / 2, rel=0.06), "taken on four times the text"
    assert found["curvature_se"] == pytest.approx(spread[1], rel=0.06)


@pytest.mark.slow
def test_a_landscape_added_later_or_with_more_recipes_is_what_one_run_gives(suite, tmp_path, charted, monkeypatch):
    output = tmp_path / "m.nc"
    run.run(measuring.plan(suite, ["rtn-w3"]), output, jobs=1)
    calls = measuring.count_forward_passes(monkeypatch)
    run.run(plan(suite, ["rtn-w3"]), output, jobs=1)
    assert calls == [], "no cell is measured again"
    grown = run.run(plan(suite), output, jobs=1)
    xr.testing.assert_identical(grown.drop_attrs(deep=False), charted.drop_attrs(deep=False))
    # without the flag what is there stays, and stays said
    kept = run.run(measuring.plan(suite), output, jobs=1)
    xr.testing.assert_identical(kept.drop_attrs(deep=False), charted.drop_attrs(deep=False))
    assert measurements.manifest(kept)["protocol"] == measurements.manifest(charted)["protocol"]


def test_a_second_run_charts_nothing_and_another_setting_is_refused(suite, tmp_path, monkeypatch):
    output = tmp_path / "m.nc"
    first = run.run(plan(suite, ["rtn-w3"]), output, jobs=1)
    looks = []
    monkeypatch.setattr(landscape_run, "read", lambda *_: looks.append(1))
    measuring.same(run.run(plan(suite, ["rtn-w3"]), output, jobs=1), first)
    assert looks == []
    with pytest.raises(BadInput, match="landscape probes = 3, not 5: choose another file"):
        run.run(plan(suite, ["rtn-w3"], probes=5), output, jobs=1)


@pytest.mark.slow
def test_what_cannot_be_charted_has_its_reason_and_cells_stay(suite, tmp_path, monkeypatch):
    output = tmp_path / "m.nc"
    inner = landscape.nearest

    def spoils(weight, seen, recipe):
        if str(recipe) == "rtn-w3":
            raise ValueError("it is broken")
        return inner(weight, seen, recipe)

    monkeypatch.setattr(landscape, "nearest", spoils)
    data = run.run(plan(suite), output, jobs=1)
    assert (data["status"] == measurements.OK).all()
    assert data["landscape_reason"].values.tolist() == ["rtn-w3: it is broken"] * 2
    assert np.isnan(data["slope"].sel(recipe=["rtn-w3", "gptq-w3"])).all()
    assert np.isfinite(data["slope"].sel(recipe="rtn-w4-g32")).all()
    summary = run.summary(data, output)
    assert summary["failures"]["landscape of opt/toy-opt@opt3"] == "rtn-w3: it is broken"
    monkeypatch.setattr(landscape, "nearest", inner)
    measuring.same(run.run(plan(suite), output, jobs=1), data)
    mended = run.run(plan(suite), output, jobs=1, retry_failed=True)
    assert (mended["landscape_reason"] == "").all()
    assert np.isfinite(mended["slope"].drop_sel(recipe="none")).all()
    monkeypatch.setattr(landscape_run, "read", lambda *_: 1 / 0)
    lost = run.run(plan(suite), tmp_path / "n.nc", jobs=1)
    assert set(lost["landscape_reason"].values) == {"division by zero"}
    assert (lost["status"] == measurements.OK).all()


def test_a_checkpoint_that_cannot_be_measured_is_not_charted(tmp_path):
    suite = tinymodels.suite(tmp_path / "s", {"good": ("neox", 1), "bad": ("llama", 2)}, ["rtn-w3"])
    (suite.parent / "bad" / "model.safetensors").write_bytes(b"broken")
    data = run.run(plan(suite), tmp_path / "m.nc", jobs=1)
    assert data["status"].values.tolist() == [[1, 1], [2, 2]]
    assert np.isfinite(data["hessian_trace"].values).tolist() == [True, False]
    measuring.same(run.run(plan(suite), tmp_path / "m.nc", jobs=1), data)


def test_cells_carry_the_features_and_sets_without_them_have_them_unknown(charted):
    made = cells.from_measurements(charted, {"name": "m"})
    row = made.isel(cell=(made["checkpoint"] == "opt/toy-opt@opt3") & (made["bits"] == 3) & (made["method"] == "gptq"))
    source = charted.sel(checkpoint="opt/toy-opt@opt3")
    for name in ("sqnr_db", "slope", "curvature", "taylor", "layer_error"):
        assert row[name].values.tolist() == [source[name].sel(recipe="gptq-w3").item()]
    assert row["hessian_trace"].values.tolist() == [source["hessian_trace"].item()]
    assert row["flatness_r"].values.tolist() == [source["flatness"].sel(radius=0.1).item()]
    bare = cells.from_measurements(charted.drop_vars([*measurements.LANDSCAPE, "landscape_reason", "radius"]), {})
    both = cells.join([bare.assign_coords(source=("cell", ["other"] * bare.sizes["cell"])), made])
    known = np.isfinite(both["curvature"].values)
    assert known.sum() == made.sizes["cell"]
    assert np.isnan(both["flatness_r"].values[~known]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((False, 4, None), "--landscape-documents belongs to --landscape"),
        ((False, None, 4), "--probes belongs to --landscape"),
        ((True, 1, None), "at least 2"),
        ((True, None, 1), "at least 2"),
        ((True, None, -1), "at least 2"),
    ],
)
def test_settings_that_cannot_be_used(arguments, message):
    with pytest.raises(BadInput, match=message):
        planning.landscape(*arguments)


def test_command_line_takes_the_landscape_along(suite, tmp_path, monkeypatch, capsys):
    output = tmp_path / "m.nc"
    options = ("--recipes", "rtn-w3", "-o", output, "--max-bytes", 100, "--jobs", 1, "--landscape", "--probes", 0)
    code, _, err = measuring.command(monkeypatch, capsys, suite, *options)
    assert (code, "6/6" in err) == (0, True)
    data = measurements.read(output)
    assert np.isfinite(data["curvature"].sel(recipe="rtn-w3")).all()
    assert np.isnan(data["hessian_trace"]).all(), "no probes, no trace"
