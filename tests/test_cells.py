import json
import math

import numpy as np
import pytest
import xarray as xr

from bayesqid import cells, measurements
from bayesqid.errors import BadInput
from bayesqid.importers import tables
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
