"""The benchmarks that refit many times: small runs of fixed seeds, resuming, and a longer check in make soak."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bayesqid import laws
from bayesqid.inference import sbc
from benchmarked import BENCHMARKS, module

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no checkout of the repository")
SMALL = (2, 2, 2)


@pytest.fixture(scope="module")
def calibration():
    return module("calibration")


@pytest.fixture(scope="module")
def recovery():
    return module("recovery")


@pytest.fixture(scope="module")
def resumable():
    return module("resumable")


@pytest.fixture(scope="module")
def few(calibration, resumable):
    """Six fits of the pooled law to 40 cells."""
    setup = calibration.SETUPS["laplace boxcox pooled"]
    small = partial(calibration.fit, shape=SMALL)
    return [resumable.attempt(small, setup.name, seed, setup) for seed in range(6)]


def fake(name: str, rank_of, fits: int, **more) -> list[dict]:
    """Lines of results with ranks from a function of the fit's number."""
    base = {"config": name, "code": "0", "seconds": 1.0, "cells": 40, "diverged": 0, "importance_ess": 300.0,
            "checks": {"importance_ess": True}}  # fmt: skip
    return [base | {"seed": k, "ranks": {"lam": rank_of(k), "mu alpha": (37 * k) % 100}} | more for k in range(fits)]


# Calibration


def test_every_law_and_model_has_a_configuration(calibration):
    assert {s.law for s in calibration.SETUPS.values()} == set(laws.PLAIN)
    models = {s.model for s in calibration.SETUPS.values() if s.law == "boxcox"}
    assert models == {"hierarchical", "pooled", "independent"}
    assert sum(s.engine == "nuts" for s in calibration.SETUPS.values()) == 1


def test_a_fit_ranks_what_the_model_estimates_and_no_more(calibration, few):
    terms = laws.get("boxcox").term_names
    wanted = {f"mu {t}" for t in terms} | {"tau calibrated", "tau rtn", "lam", "per_channel", "log likelihood"}
    wanted |= {"projection, known family", "projection, new checkpoint, new family"}
    assert [line.get("failed") for line in few] == [None] * len(few)
    for line in few:
        assert set(line["ranks"]) == wanted
        assert all(0 <= rank <= sbc.LEVELS for rank in line["ranks"].values())


def test_the_same_seed_gives_the_same_ranks(calibration, few):
    setup = calibration.SETUPS["laplace boxcox pooled"]
    assert calibration.fit(setup, 3, SMALL)["ranks"] == few[3]["ranks"]


def test_six_fits_are_not_outside_the_band(calibration, few):
    found = calibration.ranks_of(few, "laplace boxcox pooled")
    assert {len(ranks) for ranks in found.values()} == {6}
    assert [row.name for row in sbc.verdict(found) if row.outside] == []


def test_the_tables_name_what_is_outside_and_what_broke_down(calibration):
    name = "laplace boxcox pooled"
    lines = fake(name, lambda k: 50 + k % 50, 100)
    shown = calibration.report(lines)
    assert "outside: lam |" in shown
    assert "mu alpha" not in shown.split("###")[0]
    lines.append({"config": name, "seed": 999, "code": "0", "seconds": 1.0, "failed": "LinAlgError: singular"})
    assert "1 fits broke down" in calibration.report(lines)
    assert "inside |" in calibration.report(fake(name, lambda k: (41 * k) % 100, 100))


def test_the_figure_draws_a_panel_per_configuration(calibration):
    pooled, other = "laplace boxcox pooled", "laplace kumar hierarchical"
    lines = fake(pooled, lambda k: k, 60) + fake(other, lambda k: k % 30, 60)
    drawn = calibration.figure(lines)
    assert drawn.startswith("<?xml")
    assert drawn == calibration.figure(lines)
    assert drawn.count('id="axes_') == 2


def test_the_page_has_a_place_for_both_reports(calibration, resumable, tmp_path):
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "calibration.md").read_text())
    for mark in ("calibration", "recovery"):
        resumable.put(page, mark, rf"| {mark} \1 |")
        resumable.put(page, mark, f"| {mark} again |")
        assert page.read_text().count(f"<!-- begin: {mark} -->\n| {mark} again |\n<!-- end: {mark} -->") == 1


# Resuming


def square(seed: int) -> dict:
    if seed == 3:
        raise np.linalg.LinAlgError("singular")
    return {"value": seed**2}


def tasks(seeds):
    return [(square, "squares", seed) for seed in seeds]


def test_a_run_does_only_what_is_missing(resumable, tmp_path):
    path = tmp_path / "results" / "r.jsonl"
    first = resumable.run(path, tasks([1, 2]))
    again = resumable.run(path, tasks([1, 2, 4]))
    assert again[:2] == first
    assert [line["value"] for line in resumable.load(path)] == [1, 4, 16]
    assert len(resumable.run(path, [(square, "others", 1)])) == 4


def test_half_a_line_left_by_a_kill_is_done_again(resumable, tmp_path):
    path = tmp_path / "r.jsonl"
    resumable.run(path, tasks([1, 2]))
    path.write_text(path.read_text() + '{"config": "squares", "se')
    assert [line["seed"] for line in resumable.run(path, tasks([1, 2, 4]))] == [1, 2, 4]
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [1, 2, 4]


def test_a_fit_that_breaks_down_is_kept_as_such(resumable, tmp_path):
    line = resumable.run(tmp_path / "r.jsonl", tasks([3]))[0]
    assert line["failed"] == "LinAlgError: singular"


def test_configurations_share_no_seed(calibration, resumable):
    seeds = [seed for setup in calibration.SETUPS.values() for seed in resumable.seeds(setup.name, setup.fits)]
    assert len(seeds) == len(set(seeds))
    assert resumable.seeds("a", 5)[:3] == resumable.seeds("a", 3)


# Recovery


def test_the_recovered_world_is_the_published_law(recovery):
    cells, true = recovery.world("ouyang", 1)
    constants = laws.published_constants("ouyang")
    assert sorted(np.unique(cells["effective_bits"])) == [recovery.effective(bits) for bits in recovery.FITTED]
    assert float(true["lam"]) == constants["lam"]
    assert {t: float(true["mu"].sel(term=t)) for t in true["term"].values} == pytest.approx(
        {t: constants[t] for t in true["term"].values}
    )
    assert float(true["theta"].sel(term="alpha").std()) < 3 * recovery.WORLD["sd_alpha"]


@pytest.mark.slow
def test_a_refit_judges_every_family_band_and_width(recovery):
    held = recovery.refit("kumar", 1)["held"]
    assert set(held) == {"mean", "new"}
    for widths in held.values():
        assert {bits: len(families) for bits, families in widths.items()} == {"2": 4, "3": 4, "4": 4, "5": 4}


def test_the_clustered_error_is_that_of_the_refits_means(recovery):
    groups = [[True, True], [True, False], [False, False], [True, True]]
    share, error, count = recovery.clustered(groups)
    means = np.array([1.0, 0.5, 0.0, 1.0])
    assert (share, count) == (0.625, 8)
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(4))


def test_bands_are_judged_by_their_errors_inside_and_by_a_floor_outside(recovery):
    assert recovery.judged(0.841, 0.02, outside=False)
    assert not recovery.judged(0.83, 0.02, outside=False)
    assert not recovery.judged(0.97, 0.02, outside=False)
    assert recovery.judged(0.99, 0.01, outside=True)
    assert not recovery.judged(0.84, 0.1, outside=True)
    held = {band: dict.fromkeys("2345", [True, True, True, False]) for band in recovery.BANDS}
    lines = [{"config": "kumar", "seed": k, "code": "0", "held": held, "checks": {"a": True}} for k in range(3)]
    rows = recovery.rows(lines)
    assert len(rows) == 10
    assert {row["share"] for row in rows} == {0.75}
    assert not any(row["holds"] for row in rows)


# Long


@pytest.mark.soak
@pytest.mark.parametrize("name", ["laplace boxcox hierarchical", "laplace boxcox pooled"])
def test_sixty_fresh_fits_are_inside_the_band(calibration, resumable, name):
    """Seeds that the stored results do not hold, and the stored results themselves where there are any."""
    setup = calibration.SETUPS[name]
    fresh = [resumable.attempt(calibration.fit, name, 50_000 + k, setup) for k in range(60)]
    assert [line["failed"] for line in fresh if "failed" in line] == []
    for lines in (fresh, [line for line in resumable.load(calibration.RESULTS) if line["config"] == name]):
        found = calibration.ranks_of(lines, name)
        assert [(row.name, row.p) for row in sbc.verdict(found) if row.outside] == []


@pytest.mark.soak
def test_todays_code_gives_what_stands_in_the_results(calibration, resumable):
    """The first stored fit of every configuration of the fast engine again; other BLAS may move a rank by a few."""
    lines = resumable.load(calibration.RESULTS)
    for name, setup in calibration.SETUPS.items():
        stored = [line for line in lines if line["config"] == name and "ranks" in line]
        if stored and setup.engine == "laplace":
            again = calibration.fit(setup, stored[0]["seed"])
            assert again["diverged"] == stored[0]["diverged"]
            apart = {key: abs(rank - stored[0]["ranks"][key]) for key, rank in again["ranks"].items()}
            assert {key: moved for key, moved in apart.items() if moved > 5} == {}
