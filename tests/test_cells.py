import json
import math

import numpy as np
import pytest
import xarray as xr

from bayesqid import cells, files, measurements
from bayesqid.errors import BadInput
from bayesqid.importers import sources, tables
from bayesqid.recipe import NONE, parse

HEAD = "family,model,method,bits,group_size,ppl_fp,ppl_q,n_params_nonembedding,train_tokens,vocab_size"
ROWS = [
    "one,A-1B,GPTQ,4,128,10.000,11.000,1e9,3e11,50000",
    "one,A-1B,RTN,3,-1,10.000,15.000,1e9,3e11,50000",
    "one,A-1B,RTN,2,128,10.000,900.000,1e9,3e11,50000",  # diverged: exp(4.5) times the perplexity
    "two,B-7B,GPTQ,4,128,6.000,6.100,6.5e9,,32000",  # tokens undisclosed: not a default row
    "two,C-7B,GPTQ,8,128,6.000,6.001,6.5e9,1e12,32000",  # 8 bits: beyond the range of the laws
]
SOURCE = {"name": "mine", "sha256": "0" * 64}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([HEAD, *ROWS]) + "\n")
    return tables.read_table(path)


def test_a_table_becomes_its_default_rows_and_counts_the_others(table):
    made = cells.from_table(table, SOURCE)
    assert made.attrs["schema"] == "bayesqid-cells/1"
    assert made["model"].values.tolist() == ["A-1B"] * 3
    np.testing.assert_allclose(made["qid"][:2], [math.log(1.1), math.log(1.5)], rtol=1e-9)
    assert made["censored"].values.tolist() == [False, False, True]
    assert made["quantizer"].values.tolist() == ["gptq", "rtn", "rtn"]
    assert made["generation"].values.tolist() == ["calibrated", "rtn", "rtn"]
    assert made["per_channel"].values.tolist() == [False, True, False]
    assert len(set(made["source_method"].values)) == 2
    excluded = json.loads(made.attrs["excluded"])
    assert sum(sum(families.values()) for families in excluded.values()) == 2
    assert all(list(families) == ["two"] for families in excluded.values())
    assert json.loads(made.attrs["sources"])[0]["name"] == "mine"
    assert cells.check(made) is made


def test_rows_without_stored_bits_use_the_printed_ones_and_are_counted(table):
    # a group of one row on a model of unknown width: what its scale costs is unknown
    made = cells.from_table(table, SOURCE)
    bits = made["effective_bits"].values
    assert bits[0] == pytest.approx(4 + 20 / 128, abs=1e-4)
    assert bits[1] == 3
    assert json.loads(made.attrs["sources"])[0]["rows_at_nominal_bits"] == 1


CHECKPOINTS = {
    name: {"family": "f", "model": "a", "revision": name[-1], "train_tokens": tokens, "seed": 1, "lr_phase": phase,
           "lr_fraction": 1.0, "n_params": 1200, "n_params_nonembedding": 1000, "vocab_size": 256}
    for name, tokens, phase in (("f/a@1", 1e6, "constant"), ("f/a@2", 2e6, "annealed"))
}  # fmt: skip
RECIPES = [NONE, parse("rtn-w3"), parse("gptq-w4-g32"), parse("rtn-w8")]
EFFECTIVE = [16.0, 3.1, 4.5, 8.1]


def measured() -> xr.Dataset:
    """Two checkpoints, four recipes, five documents of 10 tokens: loss 2, plus 0.5 and 0.1 and 0 nats per token."""
    protocol = {"text": "toy text", "context": 256}
    documents = {f"d{i}": 40 for i in range(5)}
    data = measurements.empty(CHECKPOINTS, RECIPES, documents, {"suite": "toy", "protocol": protocol})
    data["tokens"].values[:] = 10
    added = np.array([0.0, 0.5, 0.1, 0.0])[None, :, None]
    wiggle = np.array([-0.02, -0.01, 0.0, 0.01, 0.02]) * np.array([0.0, 1, 1, 1])[:, None]
    data["nats"].values[:] = 10 * (2.0 + added + wiggle)
    for name in ("kl_base_q", "kl_q_base", "top1"):
        data[name].values[:] = 1.0
    data["status"].values[:] = measurements.OK
    data["effective_bits"].values[:] = EFFECTIVE
    return data


def test_measurements_become_one_cell_per_usable_recipe():
    made = cells.from_measurements(measured(), SOURCE)
    assert made.sizes["cell"] == 4
    one = made.isel(cell=(made["checkpoint"] == "f/a@2").values & (made["method"] == "rtn").values).squeeze()
    assert float(one["qid"]) == pytest.approx(0.5)
    # five documents of equal length: the standard error of a mean of five, and the floor
    paired = np.std([-0.02, -0.01, 0, 0.01, 0.02], ddof=1) / math.sqrt(5)
    assert float(one["qid_se"]) == pytest.approx(math.hypot(paired, 1e-3))
    assert float(one["loss16"]) == pytest.approx(2.0)
    assert float(one["headroom"]) == pytest.approx(math.log(256) - 2)
    assert float(one["effective_bits"]) == 3.1
    assert (float(one["bits"]), float(one["group_size"]), bool(one["per_channel"])) == (3, -1, True)
    assert (float(one["train_tokens"]), one["lr_phase"].item()) == (2e6, "annealed")
    assert (float(one["n_params_nonembedding"]), float(one["ctx_len"])) == (1000, 256)
    assert (one["generation"].item(), one["source"].item(), one["eval_dataset"].item()) == (
        "rtn", "measured: toy", "toy text")  # fmt: skip
    grouped = made.isel(cell=(made["method"] == "gptq").values)
    assert grouped["per_channel"].values.tolist() == [False, False]
    np.testing.assert_allclose(grouped["qid"], 0.1)
    assert json.loads(made.attrs["excluded"]) == {"effective bits outside 1.9 to 6.7": {"f": 2}}


def test_one_document_s_loss_moves_its_own_cell_and_no_other():
    data = measured()
    before = cells.from_measurements(data, SOURCE)
    data["nats"].values[1, 1, 3] += 5.0
    after = cells.from_measurements(data, SOURCE)
    moved = np.flatnonzero(before["qid"].values != after["qid"].values)
    assert [str(before["checkpoint"].values[i]) for i in moved] == ["f/a@2"]
    # 5 nats over 50 tokens
    assert float(after["qid"][moved[0]] - before["qid"][moved[0]]) == pytest.approx(0.1)


def test_the_baseline_s_loss_moves_every_cell_of_its_checkpoint():
    data = measured()
    data["nats"].values[0, 0, 3] -= 5.0
    made = cells.from_measurements(data, SOURCE)
    own = (made["checkpoint"] == "f/a@1").values
    np.testing.assert_allclose(made["qid"].values[own], [0.6, 0.2])
    np.testing.assert_allclose(made["qid"].values[~own], [0.5, 0.1])
    np.testing.assert_allclose(made["headroom"].values[own], math.log(256) - 1.9)


def test_failed_and_missing_cells_are_left_out_and_counted():
    data = measured()
    for (row, column), status in {(0, 1): measurements.FAILED, (1, 2): measurements.MISSING}.items():
        data["status"].values[row, column] = status
        data["nats"].values[row, column] = np.nan
    made = cells.from_measurements(data, SOURCE)
    assert list(zip(made["checkpoint"].values, made["method"].values, strict=True)) == [
        ("f/a@1", "gptq"), ("f/a@2", "rtn")]  # fmt: skip
    assert json.loads(made.attrs["excluded"]) == {
        "measurement failed": {"f": 1}, "not measured": {"f": 1}, "effective bits outside 1.9 to 6.7": {"f": 2}
    }  # fmt: skip


def test_tenfold_perplexity_is_censored_and_no_error_is_zero():
    data = measured()
    data["nats"].values[0, 1] = 10 * (2.0 + 2.31)
    made = cells.from_measurements(data, SOURCE)
    assert made["censored"].values.tolist() == [True, False, False, False]
    assert float(made["qid_se"][0]) == cells.NOISE_FLOOR


def test_join_keeps_every_cell_and_adds_up_exclusions(table):
    parts = [cells.from_table(table, SOURCE), cells.from_measurements(measured(), {"name": "toy"})]
    joined = cells.check(cells.join(parts))
    assert joined.sizes["cell"] == 7
    for name in ("qid", "checkpoint", "per_channel", "headroom"):
        assert joined[name].values.tolist() == parts[0][name].values.tolist() + parts[1][name].values.tolist()
    assert [source["name"] for source in json.loads(joined.attrs["sources"])] == ["mine", "toy"]
    total = sum(sum(families.values()) for families in json.loads(joined.attrs["excluded"]).values())
    assert total == 2 + 2
    assert cells.join(parts[:1]).identical(parts[0])


def test_the_same_reason_in_two_parts_adds_up():
    other = measured().assign_coords(checkpoint=["f/b@1", "f/b@2"])
    joined = cells.join([cells.from_measurements(data, SOURCE) for data in (measured(), other)])
    assert json.loads(joined.attrs["excluded"]) == {"effective bits outside 1.9 to 6.7": {"f": 4}}


def test_a_checkpoint_in_two_parts_is_refused():
    made = cells.from_measurements(measured(), SOURCE)
    with pytest.raises(BadInput, match=r"f/a@\d stands in two"):
        cells.join([made, made])


@pytest.mark.parametrize(
    ("change", "why"),
    [(lambda c: c.assign_attrs(schema="other/1"), "schema 'other/1'"), (lambda c: c.isel(cell=[]), "No cell is left"),
     (lambda c: c.assign_coords(train_tokens=c["train_tokens"] * 0), "train_tokens of f/a@1 .rtn. is 0.0"),
     (lambda c: c.assign_coords(n_params_nonembedding=c["bits"] * np.nan), "n_params_nonembedding of .* is nan"),
     (lambda c: c.assign_coords(headroom=-c["headroom"]), "headroom of .* is -"),
     (lambda c: c.assign_coords(effective_bits=c["bits"] * np.inf), "effective_bits of .* is inf"),
     (lambda c: c.assign(qid_se=c["qid_se"] * 0), "qid_se of .* is 0"),
     (lambda c: c.assign(qid=c["qid"] * np.nan), "qid of f/a@1 is not a finite number")],
)  # fmt: skip
def test_cells_that_inference_cannot_use_are_refused(change, why):
    with pytest.raises(BadInput, match=why) as caught:
        cells.check(change(cells.from_measurements(measured(), SOURCE)))
    assert "\n" not in str(caught.value)


def test_a_diverged_cell_needs_no_number():
    made = cells.from_measurements(measured(), SOURCE)
    made = made.assign(qid=made["qid"] * np.nan, censored=made["censored"] | True)
    assert cells.check(made) is made


def drawn(nats, recipes, tokens, status=None) -> xr.Dataset:
    """Measurements of checkpoints c0, c1... whose baseline has no loss; added nats (checkpoint, recipe, document)."""
    ids = {f"f/a@c{i}": CHECKPOINTS["f/a@1"] for i in range(len(nats))}
    documents = {f"d{i}": 40 for i in range(len(tokens))}
    manifest = {"suite": "toy", "protocol": {"text": "toy text", "context": 256}, "device": "cpu"}
    data = measurements.empty(ids, [NONE, *map(parse, recipes)], documents, manifest)
    data["tokens"].values[:] = tokens
    data["nats"].values[:, 0] = 0.0
    data["nats"].values[:, 1:] = nats
    data["status"].values[:] = measurements.OK
    data["status"].values[:, 1:] = measurements.OK if status is None else status
    data["effective_bits"].values[:] = 3.1
    return data


def test_draws_of_the_calibration_text_become_one_cell_of_their_mean():
    tokens = np.array([10.0, 20.0, 30.0])
    nats = np.array([[1.0, 4.0, 4.0], [2.0, 3.0, 7.0], [3.0, 2.0, 4.0]])
    made = cells.from_measurements(drawn(nats[None], ["gptq-w3", "gptq-w3-s1", "gptq-w3-s7"], tokens), SOURCE)
    # sums 9, 12, 9 over 60 tokens; per document (2, 3, 5), residuals against 10/60 per token (1/3, -1/3, 0)
    assert made.sizes["cell"] == 1
    assert float(made["qid"][0]) == pytest.approx(10 / 60)
    sd = np.std([9 / 60, 12 / 60, 9 / 60], ddof=1)
    # one cell: what is pooled is its own
    assert float(made["calibration_sd"][0]) == pytest.approx(sd)
    paired = math.sqrt(3 / 2 * (2 / 9)) / 60
    assert float(made["qid_se"][0]) == pytest.approx(math.sqrt(paired**2 + sd**2 / 3 + 1e-6))


def test_a_cell_s_few_draws_are_pooled_with_those_of_its_quantizer():
    recipes = ["gptq-w2", "gptq-w2-s1", "gptq-w2-s2", "gptq-w2-s3", "gptq-w3", "gptq-w3-s1", "gptq-w3-s2", "gptq-w4",
               "awq-w3-g32", "awq-w3-g32-s1", "hqq-w3", "rtn-w3"]  # fmt: skip
    qid = np.array([0.30, 0.34, 0.36, 0.32, 0.08, 0.11, 0.08, 0.01, 0.1, 0.2, 0.1, 0.1])
    tokens = np.full(4, 10.0)
    made = cells.from_measurements(drawn((qid[:, None] * tokens)[None], recipes, tokens), SOURCE)
    first, second, single, awq, hqq, rtn = made["calibration_sd"].values
    scales = [mean**2 + 0.015**2 for mean in (0.33, 0.09, 0.01)]
    own = [np.var(qid[:4], ddof=1), np.var(qid[4:7], ddof=1)]
    square = (3 * own[0] / scales[0] + 2 * own[1] / scales[1]) / 5
    assert first == pytest.approx(math.sqrt((4 * square * scales[0] + 3 * own[0]) / 7))
    assert second == pytest.approx(math.sqrt((4 * square * scales[1] + 2 * own[1]) / 6))
    assert single == pytest.approx(math.sqrt(square * scales[2]))
    assert math.isnan(awq)
    assert (hqq, rtn) == (0.0, 0.0)
    # every document's difference is the same, so that the paired part is nothing
    np.testing.assert_allclose(made["qid"], [0.33, 0.09, 0.01, 0.15, 0.1, 0.1])
    noise = [first / 2, second / math.sqrt(3), single, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(made["qid_se"], np.hypot(noise, 1e-3))


def test_a_file_with_one_draw_each_has_the_paired_error_and_the_floor_alone():
    data = measured()
    made = cells.from_measurements(data, SOURCE)
    for row in range(made.sizes["cell"]):
        one = made.isel(cell=row)
        label = "rtn-w3" if one["method"] == "rtn" else "gptq-w4-g32"
        paired = measurements.qid_se(data).sel(checkpoint=one["checkpoint"].item(), recipe=label).item()
        assert one["qid_se"].item() == np.hypot(paired, cells.NOISE_FLOOR)
        assert one["qid"].item() == measurements.qid(data).sel(checkpoint=one["checkpoint"].item(), recipe=label).item()
        known = one["calibration_sd"].item()
        assert known == 0.0 if one["method"] == "rtn" else math.isnan(known)


def test_a_diverged_cell_does_not_widen_the_others():
    recipes = ["gptq-w3", "gptq-w3-s1", "gptq-w3-s2"]
    qid = np.array([[0.1, 0.11, 0.12], [3.0, 9.0, 6.0], [0.2, 0.22, 0.21]])
    tokens = np.full(4, 10.0)
    made = cells.from_measurements(drawn(qid[..., None] * tokens, recipes, tokens), SOURCE)
    without = cells.from_measurements(drawn(qid[[0, 2], :, None] * tokens, recipes, tokens), SOURCE)
    assert made["censored"].values.tolist() == [False, True, False]
    np.testing.assert_allclose(made["calibration_sd"][[0, 2]], without["calibration_sd"])


def test_a_failed_draw_is_left_out_of_the_mean_and_counted():
    recipes = ["gptq-w3", "gptq-w3-s1", "gptq-w3-s2", "gptq-w3-s3"]
    tokens = np.full(4, 10.0)
    nats = np.array([0.1, 0.2, 0.3, 0.4])[None, :, None] * tokens * np.ones((2, 1, 1))
    status = np.array([[1, 1, 1, measurements.FAILED], [measurements.FAILED, measurements.MISSING, 2, 2]])
    nats[status != measurements.OK] = np.nan
    made = cells.from_measurements(drawn(nats, recipes, tokens, status), SOURCE)
    assert made["qid"].values == pytest.approx([0.2])
    assert float(made["qid_se"][0]) == pytest.approx(math.sqrt(0.01 / 3 + 1e-6))
    assert json.loads(made.attrs["excluded"]) == {
        "measurement failed": {"f": 1}, "one draw of the calibration text failed": {"f": 1}}  # fmt: skip


def test_intervals_hold_the_truth_as_often_as_they_say_and_paired_ones_alone_do_not():
    rng = np.random.default_rng(5)
    size, documents, draws = 600, 60, 3
    truth = np.exp(rng.uniform(np.log(0.02), np.log(0.5), size))
    tokens = rng.integers(50, 150, documents).astype(float)
    # each half: checkpoints with all draws, and such with the first alone
    status = np.ones((size, draws), dtype=int)
    status[::2, 1:] = measurements.MISSING
    shift = 0.08 * np.hypot(truth, 0.015)[:, None] * rng.normal(size=(size, draws))
    by_document = 0.25 * truth[:, None] * rng.normal(size=(size, documents))
    nats = (truth[:, None, None] + shift[..., None] + by_document[:, None]) * tokens
    nats[status == measurements.MISSING] = np.nan
    made = cells.from_measurements(drawn(nats, ["gptq-w3", "gptq-w3-s1", "gptq-w3-s2"], tokens, status), SOURCE)
    miss = np.abs(made["qid"].values - truth)
    alone = made["calibration_sd"].values / np.sqrt(np.where(np.arange(size) % 2, draws, 1))
    paired = np.sqrt(made["qid_se"].values ** 2 - alone**2)
    for half, without in ((slice(0, None, 2), 0.65), (slice(1, None, 2), 0.82)):
        held = (miss < 1.645 * made["qid_se"].values)[half].mean()
        # three standard errors of a share of 300
        assert held == pytest.approx(0.9, abs=0.052)
        assert (miss < 1.645 * paired)[half].mean() < without
    # 8 % and the floor it was drawn with
    np.testing.assert_allclose(made["calibration_sd"][::2], 0.08 * np.hypot(made["qid"][::2], 0.015), rtol=0.1)


@pytest.mark.parametrize(
    ("name", "quantizer", "generation", "per_channel", "noise"),
    [("rtn-nf4", "bnb-nf4", "rtn", False, 0.0), ("rtn-fp4", "bnb-fp4", "rtn", False, 0.0),
     ("rtn-mxint4", "rtn-mxint", "rtn", False, 0.0), ("rtn-w4-saved", "rtn", "rtn", True, 0.0),
     ("hqq-w4-g64", "hqq", "calibrated", False, 0.0), ("gptq-w4-act", "gptq-actorder", "calibrated", True, np.nan),
     ("gptq-w3-g64-oneshot-s4", "gptq", "calibrated", False, np.nan), ("awq-w4", "awq", "calibrated", True, np.nan),
     ("gptq-w4-g128-saved", "gptq", "calibrated", False, np.nan)],
)  # fmt: skip
def test_a_recipe_gets_the_effect_of_its_quantizer(name, quantizer, generation, per_channel, noise):
    tokens = np.full(3, 10.0)
    made = cells.from_measurements(drawn(np.ones((1, 1, 3)), [name], tokens), SOURCE)
    one = made.isel(cell=0)
    assert (one["quantizer"].item(), one["generation"].item()) == (quantizer, generation)
    assert one["source_method"].item() == f"measured: toy | {quantizer}"
    assert (bool(one["per_channel"]), float(one["effective_bits"])) == (per_channel, 3.1)
    np.testing.assert_equal(one["calibration_sd"].item(), noise)
    assert (one["bits"].item(), one["group_size"].item()) == (parse(name).bits, parse(name).group_size)


def test_a_saved_checkpoint_does_not_borrow_the_noise_of_our_draws():
    recipes = ["gptq-w3", "gptq-w3-s1", "gptq-w3-s2", "gptq-w3-saved"]
    tokens = np.full(3, 10.0)
    nats = np.array([0.1, 0.2, 0.3, 0.2])[None, :, None] * tokens
    made = cells.from_measurements(drawn(nats, recipes, tokens), SOURCE)
    assert np.isnan(made["calibration_sd"].values).tolist() == [False, True]
    assert float(made["qid_se"][1]) == pytest.approx(cells.NOISE_FLOOR)


def test_cells_from_before_calibration_noise_was_kept_join_as_unknown(table):
    old, new = cells.from_table(table, SOURCE).drop_vars("calibration_sd"), cells.from_measurements(measured(), SOURCE)
    joined = cells.check(cells.join([old, new]))
    assert np.isnan(joined["calibration_sd"].values[:3]).all()
    np.testing.assert_array_equal(joined["calibration_sd"][3:], new["calibration_sd"])
    assert np.isnan(cells.from_table(table, SOURCE)["calibration_sd"].values).all()


def test_a_file_from_before_seeds_were_kept_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "old.nc"
    files.write_netcdf(measured().drop_vars(["calibration_seed", "format"]), path)
    with pytest.raises(BadInput, match=r"old.nc lacks calibration_seed: measure it again\.$"):
        sources.read_cells(str(path))


def test_a_cell_that_stands_twice_is_refused_and_a_second_measurement_is_not(table):
    made = cells.from_table(table, SOURCE)
    twice = xr.concat([made, made.isel(cell=[1])], "cell")
    with pytest.raises(BadInput, match=r"A-1B.* with rtn stands twice .* same QiD: leave one out") as caught:
        cells.check(twice)
    assert "\n" not in str(caught.value)
    other = made.isel(cell=[1]).assign(qid=made["qid"][[1]] * 1.1)
    assert cells.check(xr.concat([made, other], "cell")).sizes["cell"] == 4


def test_data_without_any_degradation_are_refused(table):
    made = cells.from_table(table, SOURCE)
    flipped = made.assign(qid=-abs(made["qid"]), censored=made["censored"] & False)
    with pytest.raises(BadInput, match="No QiD is above zero.*check the sign"):
        cells.check(flipped)
    # one that diverged is degradation enough
    assert cells.check(made.assign(qid=-abs(made["qid"])))["censored"].any()


def test_undisclosed_tokens_pass_only_where_they_are_latent(table):
    made = cells.from_table(table, SOURCE)
    silent = made.assign_coords(train_tokens=made["train_tokens"].where(made["bits"] != 3))
    with pytest.raises(BadInput, match="train_tokens of A-1B"):
        cells.check(silent)
    assert cells.check(silent, latent_tokens=True) is silent
    with pytest.raises(BadInput, match="train_tokens of .* is 0"):
        cells.check(made.assign_coords(train_tokens=made["train_tokens"] * 0), latent_tokens=True)


def test_what_the_cells_cannot_say_is_warned_of(table):
    made = cells.from_table(table, SOURCE)
    assert cells.warnings_of(made) == ["All cells have the same training tokens, so beta is the prior's."]
    varied = made.assign_coords(train_tokens=("cell", [1e11, 2e11, 3e11]))
    assert cells.warnings_of(varied) == []
    one_width = varied.assign_coords(effective_bits=("cell", [3.0, 3.125, 3.25]))
    assert [text[:29] for text in cells.warnings_of(one_width)] == ["All cells are at about 3 bits"]
