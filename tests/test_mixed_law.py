"""The law of recipes that quantize a part of the weights: written out, nested, refused, recovered."""

import csv
import json
import math

import numpy as np
import pytest

import mixedcells
from bayesqid import bundled, cells, laws, quantized_share
from bayesqid.errors import BadInput
from bayesqid.importers import mixed
from bayesqid.inference import compare, hyper, posterior, predictive, problem, sample, simulate

LAW = mixedcells.LAW
PUBLISHED = bundled.data_dir() / "mixed_published.csv"


def test_eta_is_the_law_written_out():
    found = mixedcells.grid()
    p = problem.build(found, LAW, "pooled")
    b = np.zeros(p.size)
    values = {"mu log_k": -1.0, "mu alpha": 0.3, "mu kappa": 0.9, "kappa_params": 0.2, "matmul": 0.6, "searched": 1.1,
              "block": 0.25}  # fmt: skip
    for name, value in values.items():
        b[p.block(name).start] = value
    x = np.log(found["n_params_nonembedding"].to_numpy() / 1e9)
    share, kind, chosen, size = (found[name].to_numpy() for name in
                                 ("quantized_fraction", "granularity", "assignment", "group_size"))  # fmt: skip
    power = 0.9 + 0.2 * (x - p.center["x_N"]) + 0.6 * (kind == "matmul") + 1.1 * (chosen == "best of 50")
    expected = -1.0 - 0.3 * x + power * np.log(share) + 0.25 * np.log(size / 32)
    np.testing.assert_allclose((p.weights(0.5) * b[p.index]).sum(axis=1), expected, rtol=1e-10)


def test_what_turns_about_the_centre_of_the_data_is_told_at_the_pivot():
    p = problem.build(mixedcells.grid(), LAW, "hierarchical")
    b, phi = hyper.draw_prior(p, 3, np.random.default_rng(2))
    natural = hyper.unpack(p, phi[None])
    got = predictive.eta(p, predictive.thin(posterior.named(p, b[None], natural), 3))
    np.testing.assert_allclose(got, posterior.pointwise(p, b[None], natural)[1][0], rtol=1e-9, atol=1e-9)


def test_for_recipes_of_all_weights_it_is_the_default_law_but_for_the_block():
    whole = mixedcells.grid().drop_vars(list(quantized_share.PLAIN)).isel(cell=slice(0, 24))
    whole = whole.assign_coords(group_size=whole["group_size"] * 0 + 32)
    plain = problem.build(whole, laws.get("boxcox"), "hierarchical")
    own = problem.build(whole, LAW, "hierarchical")
    rng = np.random.default_rng(0)
    theirs, ours = rng.normal(size=plain.size), rng.normal(size=own.size)
    for block in plain.blocks:
        ours[own.block(block.name).where] = theirs[block.where]
    np.testing.assert_allclose((own.weights(0.3) * ours[own.index]).sum(axis=1),
                               (plain.weights(0.3) * theirs[plain.index]).sum(axis=1), rtol=1e-9)  # fmt: skip


def test_it_is_no_law_of_plain_recipes_that_others_are_compared_with():
    assert LAW.mixed
    assert not LAW.features
    assert "mixed" not in laws.PLAIN
    assert not any(law.mixed for law in laws.PLAIN.values())


def test_priors_are_what_their_sentences_say():
    kappa = LAW.terms[-1]
    assert (kappa.mean - 1.645 * kappa.sd, kappa.mean + 1.645 * kappa.sd) == pytest.approx((0.2, 1.8), abs=0.03)
    also = {c.name: c for c in LAW.covariates}
    assert 1.645 * also["kappa_params"].sd * math.log(10) == pytest.approx(0.8, abs=0.05)
    assert also["matmul"].mean == 0
    assert 1.645 * also["matmul"].sd == pytest.approx(1.6, abs=0.05)
    ends = [math.exp((also["block"].mean + z * also["block"].sd) * math.log(2)) for z in (-1.645, 1.645)]
    assert ends == pytest.approx((0.9, 1.45), abs=0.02)


TRUTH = {"alpha": 0.35, "sd_alpha": 0.02, "sd_kappa": 0.1, "kappa": 0.7, "kappa_params": 0.15, "matmul": 0.8,
         "searched": 1.4, "block": 0.4, "tau": 0.1, "log_k": -1.0, "beta": 0.3, "gamma": 5.0, "lam": 0.5}  # fmt: skip


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_known_parameters_are_recovered_from_simulated_cells(seed):
    found = mixedcells.fitted(mixedcells.simulated(TRUTH, seed))
    own = found.sample["covariate"]
    draws = {name: own.sel(covariate_name=name).to_numpy() for name in ("kappa_params", "matmul", "searched", "block")}
    draws["kappa"] = found.sample["mu"].sel(term="kappa").to_numpy()
    prior = {c.name: c.sd for c in LAW.covariates} | {"kappa": LAW.terms[-1].sd}
    for name, values in draws.items():
        assert abs(values.mean() - TRUTH[name]) < 3.5 * values.std(), name
        # the block moves with the method and its bits here: of it the data say nothing
        assert name == "block" or values.std() < 0.5 * prior[name], name


@pytest.mark.parametrize("run", [
    lambda found: sample.sample(found, laws.get("boxcox"), engine="laplace"),
    lambda found: compare.compare(found, [laws.get("ouyang")], names=["family"]),
])  # fmt: skip
def test_other_laws_refuse_cells_that_quantize_a_part(run):
    why = "Only a part of the weights is quantized in 192 of 216 cells.*--law mixed"
    with pytest.raises(BadInput, match=why) as caught:
        run(mixedcells.grid())
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [("quantized_fraction", 1.3, "is 1.3: give a share above 0"), ("quantized_fraction", 0.0, "is 0: give a share"),
     ("quantized_fraction", math.nan, "is nan: give a share"), ("granularity", "head", "'head': use layer, matmul"),
     ("assignment", "worst", "'worst': use random"), ("effective_bits", 10.1, "not the average")],
)  # fmt: skip
def test_a_cell_that_cannot_be_is_named_in_one_sentence(name, value, why):
    found = mixedcells.grid()
    values = found[name].to_numpy().copy()
    values[-1] = value
    with pytest.raises(BadInput, match=why) as caught:
        problem.build(found.assign_coords({name: ("cell", values)}), LAW, "hierarchical")
    assert str(found["checkpoint"].to_numpy()[-1]) in str(caught.value)
    assert str(caught.value).count(". ") == 0


def test_the_published_points_are_all_there_with_their_noise():
    found = mixed.read(PUBLISHED, {"name": "mixed"}, ("latent-tokens",))
    rows = list(csv.DictReader(PUBLISHED.read_text().splitlines()))
    assert len(rows) == 121
    # 6, 3 and 2 models; 5 shares by matrix and 6 by layer
    assert {f: sum(row["family"] == f for row in rows) for f in ("Qwen-1.5", "LLaMA-2", "Gemma-2")} == {
        "Qwen-1.5": 66, "LLaMA-2": 33, "Gemma-2": 22}  # fmt: skip
    for row in rows:
        assert float(row["qid"]) == pytest.approx(math.log1p(float(row["increase_percent"]) / 100), abs=1e-6)
        assert 0 < float(row["quantized_fraction"]) < 1
    assert json.loads(found.attrs["excluded"]) == {"repeats another row": {"Gemma-2": 1, "LLaMA-2": 2}}
    # below zero they stay, with a standard error that can carry them
    lowest = found.isel(cell=int(found["qid"].to_numpy().argmin()))
    assert lowest["checkpoint"].item() == "LLaMA-2-70B"
    assert lowest["qid"].item() == pytest.approx(math.log(1 - 0.068193), abs=1e-6)
    assert abs(lowest["qid"].item()) < 2 * lowest["qid_se"].item()
    assert np.isnan(found["train_tokens"].to_numpy()[found["family"].to_numpy() == "Qwen-1.5"]).all()
    cells.check(found, True)


def test_without_latent_tokens_models_of_undisclosed_ones_are_left_out_and_counted():
    found = cells.check(mixed.read(PUBLISHED, {"name": "mixed"}))
    assert found.sizes["cell"] == 52
    assert json.loads(found.attrs["excluded"])["training tokens not disclosed"] == {"Qwen-1.5": 66}
    assert set(found["granularity"].to_numpy()) == {"layer", "matmul"}


def _table(path, change):
    rows = list(csv.DictReader(PUBLISHED.read_text().splitlines()))[66:80]
    path.write_text("\n".join([",".join(rows[0]), *(",".join((row | change).values()) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize("share", ["1.5", "-0.1", "0", "nan", "", "most"])
def test_a_table_whose_share_lies_outside_is_refused_by_row(tmp_path, share):
    path = _table(tmp_path / "own.csv", {"quantized_fraction": share})
    with pytest.raises(BadInput, match=r"own.csv, row 1 \(line 2\): quantized_fraction") as caught:
        mixed.read(path, {"name": "own"})
    assert "\n" not in str(caught.value)


def test_a_table_that_does_not_say_is_one_of_plain_recipes(tmp_path):
    path = _table(tmp_path / "own.csv", {})
    lines = [line.split(",") for line in path.read_text().splitlines()]
    place = lines[0].index("quantized_fraction")
    path.write_text("\n".join(",".join(line[:place] + line[place + 1 :]) for line in lines) + "\n")
    found = mixed.read(path, {"name": "own"})
    assert "quantized_fraction" not in found.coords
    problem.build(found, laws.get("boxcox"), "pooled")


def test_plain_cells_may_join_mixed_ones():
    joined = cells.join([mixed.read(PUBLISHED, {"name": "mixed"}), simulate.grid(2, 2, 2)])
    p = problem.build(joined, LAW, "hierarchical")
    powers = (p.plain * (p.index == p.block("mu kappa").start)).sum(axis=1)
    np.testing.assert_allclose(powers[52:], 0, atol=1e-12)
    assert (powers[:52] < 0).all()
