import json

import numpy as np
import pytest
import xarray as xr

from bayesqid import files, measurements
from bayesqid.errors import BadInput
from bayesqid.recipe import NONE, parse

RECIPES = [NONE, parse("rtn-w3"), parse("gptq-w4")]
DOCUMENTS = {f"d{i}": 100 + i for i in range(40)}
CHECKPOINTS = {
    "f/a@1": {"family": "f", "model": "a", "revision": "1", "train_tokens": 10, "seed": None},
    "f/a@2": {"family": "f", "model": "a", "revision": "2", "train_tokens": 20, "seed": 3, "lr_fraction": 0.5},
}
MANIFEST = {"suite": "toy", "device": "cpu", "protocol": {"context": 64}}


def empty(names=tuple(CHECKPOINTS), recipes=RECIPES) -> xr.Dataset:
    return measurements.empty({name: CHECKPOINTS[name] for name in names}, recipes, DOCUMENTS, MANIFEST)


def filled(names=tuple(CHECKPOINTS), recipes=RECIPES, seed=0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    data = empty(names, recipes)
    tokens = rng.integers(5, 60, size=(len(names), len(DOCUMENTS)))
    difficulty = rng.normal(3, 0.5, size=tokens.shape)
    data["tokens"].values[:] = tokens
    for column in range(len(recipes)):
        shift = 0.1 * column * rng.gamma(4, 0.25, size=tokens.shape)
        data["nats"].values[:, column] = tokens * (difficulty + shift)
        data["kl_base_q"].values[:, column] = tokens * shift
        data["kl_q_base"].values[:, column] = tokens * 2 * shift
        data["top1"].values[:, column] = tokens // (1 + column)
    data["status"].values[:] = measurements.OK
    data["weight_sha256"].values[:] = [f"hash of {name}" for name in names]
    data["n_params"].values[:] = 1000
    return data


def test_an_empty_file_is_valid_and_round_trips_through_netcdf(tmp_path):
    data = empty()
    files.write_netcdf(data, tmp_path / "m.nc")
    again = measurements.read(tmp_path / "m.nc")
    xr.testing.assert_identical(again, measurements.validate(data))
    assert again["status"].dtype == np.int8
    assert again["seed"].values.tolist() == [-1, 3]
    assert np.isnan(again["lr_fraction"].values[0])
    assert measurements.manifest(again) == MANIFEST


def test_measured_values_round_trip_to_the_bit(tmp_path):
    data = filled()
    files.write_netcdf(data, tmp_path / "m.nc")
    xr.testing.assert_identical(measurements.read(tmp_path / "m.nc"), data)


def test_nothing_measured_gives_no_numbers():
    for value in (measurements.qid, measurements.qid_se, measurements.kl, measurements.loss):
        assert np.isnan(value(empty())).all()
    assert "-" in measurements.table(empty())


def test_ratio_by_hand():
    data = filled()
    nats, tokens = data["nats"].values[1], data["tokens"].values[1]
    qid = measurements.qid(data).sel(checkpoint="f/a@2", recipe="rtn-w3").item()
    assert qid == pytest.approx((nats[1].sum() - nats[0].sum()) / tokens.sum())
    assert qid != pytest.approx(((nats[1] - nats[0]) / tokens).mean()), "not the mean of per-document ratios"
    assert (measurements.qid(data).sel(recipe="none") == 0).all()
    assert (measurements.qid_se(data).sel(recipe="none") == 0).all()
    assert measurements.loss16(data).values[1] == pytest.approx(nats[0].sum() / tokens.sum())
    assert measurements.loss16(data).dims == ("checkpoint",)


def test_other_summaries_by_hand():
    data = filled()
    total = data["tokens"].values[0].sum()
    assert measurements.kl(data).values[0, 2] == pytest.approx(data["kl_base_q"].values[0, 2].sum() / total)
    reverse = measurements.kl(data, "q_base").values[0, 2]
    assert reverse == pytest.approx(data["kl_q_base"].values[0, 2].sum() / total)
    assert measurements.top1_agreement(data).values[0, 0] == 1
    bits = data["nats"].values[0, 0].sum() / np.log(2) / sum(DOCUMENTS.values())
    assert measurements.bits_per_byte(data).values[0, 0] == pytest.approx(bits)


def test_standard_error_agrees_with_the_jackknife_and_the_bootstrap():
    data = filled()
    d = (data["nats"].values[0, 1] - data["nats"].values[0, 0]).astype(float)
    t = data["tokens"].values[0].astype(float)
    se = measurements.qid_se(data).values[0, 1]
    left_out = np.array([(d.sum() - d[i]) / (t.sum() - t[i]) for i in range(len(d))])
    jackknife = np.sqrt((len(d) - 1) / len(d) * ((left_out - left_out.mean()) ** 2).sum())
    drawn = np.random.default_rng(1).integers(0, len(d), size=(20_000, len(d)))
    bootstrap = (d[drawn].sum(1) / t[drawn].sum(1)).std()
    assert se == pytest.approx(jackknife, rel=0.05)
    assert se == pytest.approx(bootstrap, rel=0.08)


def test_standard_error_uses_the_pairs():
    # documents differ far more from one another than the two models do on each of them
    data = filled()
    unpaired = (data["nats"] / data["tokens"]).values[0, 1].std() / np.sqrt(len(DOCUMENTS))
    assert measurements.qid_se(data).values[0, 1] < 0.3 * unpaired


def test_one_document_has_no_standard_error():
    data = filled().isel(document=[0])
    assert np.isnan(measurements.qid_se(data).values[:, 1]).all()


def test_parts_merge_to_the_whole_in_any_order():
    whole = filled()
    parts = [
        whole.isel(checkpoint=[i], recipe=columns) for i in (0, 1) for columns in ([0, 1], [2])
    ]  # fmt: skip
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        xr.testing.assert_identical(measurements.merge(empty(), [parts[i] for i in order]), whole)
    some = measurements.merge(empty(), parts[:1])
    assert some["status"].values.tolist() == [[1, 1, 0], [0, 0, 0]]


def test_a_failure_never_replaces_a_measurement():
    whole, failed = filled(), empty()
    failed["status"].values[:] = measurements.FAILED
    failed["reason"].values[:] = "out of memory"
    for parts in ([whole, failed], [failed, whole]):
        xr.testing.assert_identical(measurements.merge(empty(), parts), whole)
    assert measurements.failures(measurements.merge(empty(), [failed])) == dict.fromkeys(CHECKPOINTS, "out of memory")


def test_single_failed_cells_are_listed_one_by_one():
    data = filled()
    data["status"].values[0, 2] = measurements.FAILED
    data["reason"].values[0, 2] = "loss"
    assert measurements.failures(data) == {"f/a@1 gptq-w4": "loss"}


def test_the_same_weights_twice_fail_both():
    data = filled()
    data["weight_sha256"].values[:] = "same"
    merged = measurements.merge(empty(), [data.isel(checkpoint=[0]), data.isel(checkpoint=[1])])
    assert (merged["status"] == measurements.FAILED).all()
    assert np.isnan(measurements.qid(merged)).all()
    assert measurements.failures(merged) == {
        "f/a@1": "the same weights as f/a@2",
        "f/a@2": "the same weights as f/a@1",
    }


def test_parts_on_other_documents_are_refused():
    other = filled().isel(document=slice(0, 10))
    with pytest.raises(BadInput, match="other documents"):
        measurements.merge(empty(), [other])


def broken(change) -> xr.Dataset:
    data = filled()
    return change(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.assign_attrs(schema="other/1"), "not a measurements file"),
        (lambda d: d.drop_vars("nats"), "lacks nats"),
        (lambda d: d.drop_vars("train_tokens"), "lacks train_tokens"),
        (lambda d: d.drop_attrs().assign_attrs(schema=measurements.SCHEMA), "lacks its manifest"),
        (lambda d: xr.concat([d, d], "checkpoint", data_vars="minimal", join="override"), "twice"),
        (lambda d: d.assign(nats=d["nats"] * np.nan), "hold no loss"),
    ],
)
def test_files_that_are_not_measurements_are_refused(tmp_path, change, message):
    path = tmp_path / "m.nc"
    files.write_netcdf(change(filled()), path)
    with pytest.raises(BadInput, match=message) as caught:
        measurements.read(path)
    assert "m.nc" in str(caught.value)


def test_the_table_names_every_checkpoint_and_recipe():
    lines = measurements.table(filled()).splitlines()
    assert lines[0].split() == ["checkpoint", "loss16", "rtn-w3", "gptq-w4"]
    assert [line.split()[0] for line in lines[1:]] == list(CHECKPOINTS)
    assert json.loads(filled().attrs["manifest"]) == MANIFEST
