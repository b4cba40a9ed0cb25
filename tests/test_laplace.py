"""The fast engine against quadrature and against what it should recover."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from bayesqid import laws
from bayesqid.inference import hyper, laplace, problem, simulate


@pytest.fixture(scope="module")
def study():
    return simulate.study(laws.get("boxcox"), "hierarchical", 11, simulate.grid(families=3, tokens=3, sizes=2))


def test_the_mode_of_the_linear_block_has_no_gradient(study):
    p, _, phi = study
    found = laplace.conditional(p, phi, p.mean)
    natural = hyper.unpack(p, phi)
    sd = hyper.coefficient_sd(p, natural.sd)

    def value(b):
        return log_joint(p, natural, sd, b)

    block, _, own = found.factor.covariance()
    scale = found.sd * np.sqrt(np.concatenate([np.diag(block), own]))
    for i in range(0, p.size, 3):
        step = np.zeros(p.size)
        step[i] = 1e-3 * scale[i]
        # a standard deviation away the log density falls by 1/2: a thousandth of that is the finite difference's
        assert abs(value(found.mode + step) - value(found.mode - step)) < 2e-3 * 0.05


@pytest.mark.parametrize("apart", [0, 4])
def test_a_factor_in_parts_is_that_of_the_whole_matrix(apart):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(9, 9))
    matrix = root @ root.T + np.eye(9)
    dense = 9 - apart
    matrix[dense:, dense:] = np.diag(np.diag(matrix)[dense:] + 20)
    factor = laplace.factorize(matrix[:dense, :dense], matrix[dense:, :dense], np.diag(matrix)[dense:])
    covariance = np.linalg.inv(matrix)
    x = rng.normal(size=9)
    np.testing.assert_allclose(factor.solve(x), covariance @ x, atol=1e-12)
    assert 2 * factor.half_log_det() == pytest.approx(np.linalg.slogdet(matrix)[1])
    block, cross, own = factor.covariance()
    np.testing.assert_allclose(block, covariance[:dense, :dense], atol=1e-12)
    np.testing.assert_allclose(cross, covariance[dense:, :dense], atol=1e-12)
    np.testing.assert_allclose(own, np.diag(covariance)[dense:], atol=1e-12)
    # draws are linear in the noise: the squared map is the covariance
    spread = factor.spread(np.eye(9))
    np.testing.assert_allclose(spread @ spread.T, covariance, atol=1e-12)


def log_joint(p, natural, sd, b):
    return laplace.log_joint_b(p, p.weights(natural.lam), b, p.mean, sd, natural.tau)


def test_log_mass_is_the_evidence_of_an_exactly_gaussian_problem():
    """Standard errors far below the scatter and no saturation: ln QiD is Normal and the evidence closed-form."""
    cells = simulate.grid(families=2, tokens=3, sizes=1)
    cells["headroom"] = cells["headroom"] * 0 + 1e6
    blank = problem.build(cells, laws.get("ouyang"), "pooled")
    b, phi = hyper.draw_prior(blank, 1, np.random.default_rng(2))
    phi = np.clip(phi[0], -0.5, 0.5)
    v = (blank.weights(0.0) * b[0][blank.index]).sum(axis=1)
    v = v + hyper.unpack(blank, phi).tau[blank.generation_of] * np.random.default_rng(3).normal(size=v.size)
    cells["qid"], cells["qid_se"] = ("cell", np.exp(v)), ("cell", 1e-5 * np.exp(v))
    p = problem.build(cells, laws.get("ouyang"), "pooled")
    natural = hyper.unpack(p, phi)
    design = np.zeros((v.size, p.size))
    np.add.at(design, (np.arange(v.size)[:, None], p.index), p.weights(0.0))
    noise = np.diag(natural.tau[p.generation_of] ** 2)
    covariance = noise + design @ np.diag(hyper.coefficient_sd(p, natural.sd) ** 2) @ design.T
    gap = v - design @ p.mean
    sign, log_det = np.linalg.slogdet(covariance)
    exact = -0.5 * (gap @ np.linalg.solve(covariance, gap) + log_det + v.size * np.log(2 * np.pi))
    found = laplace.conditional(p, phi, p.mean)
    # the density of QiD is that of ln QiD over QiD
    assert found.log_mass == pytest.approx(exact - v.sum(), abs=1e-3)


def test_bad_proposals_are_reported_as_few_effective_draws(study, monkeypatch):
    """First proposals far off and hardly time to adapt: the effective number must tell, not hide it."""
    p, _, _ = study
    good = laplace.fit(p, 200, 1, proposals=100, rounds=4, enough=20)
    assert good.proposals == 400
    assert 40 < good.ess <= 400
    assert good.b.shape == (200, p.size)
    start = laplace.gaussian_start(p)
    off = replace(start, center=start.center + 2.5, covariance=0.01 * np.eye(start.center.size))
    monkeypatch.setattr(laplace, "gaussian_start", lambda problem: off)
    monkeypatch.setattr(laplace, "PATIENCE", 1)
    bad = laplace.fit(p, 200, 1, proposals=100, rounds=2)
    assert bad.proposals == 200
    assert bad.ess < 20


def test_proposals_go_on_until_enough_draws_are_effective_or_patience_ends(study):
    p, _, _ = study
    found = laplace.fit(p, 50, 1, proposals=100, rounds=2, enough=60)
    assert found.ess >= 60
    assert 200 < found.proposals <= 100 * 2 * laplace.PATIENCE
    never = laplace.fit(p, 50, 1, proposals=40, rounds=1, enough=1e9)
    assert never.proposals == 40 * laplace.PATIENCE


@pytest.mark.parametrize("tails", ["normal", "student-t"])
def test_the_evidence_does_not_depend_on_the_proposals_seed(study, tails):
    """Self-normalised weights: log evidence of 300 effective draws is known to 1 / sqrt(300) or so."""
    p = replace(study[0], law=replace(study[0].law, tails=tails))
    found = [laplace.fit(p, 10, seed, rounds=8, enough=300) for seed in (1, 2, 3)]
    assert np.ptp([one.log_evidence for one in found]) < 4 * np.sqrt(2 / 300)


@pytest.mark.slow
def test_the_laplace_marginal_of_lam_finds_the_lam_that_made_the_data():
    p, _, phi = simulate.study(laws.get("boxcox"), "pooled", 5, simulate.grid(families=2, tokens=3, sizes=2))
    grid = np.linspace(-4, 4, 81)
    values = []
    for position in grid:
        shifted = phi.copy()
        shifted[-1] = position
        values.append(laplace.log_marginal(p, shifted, p.mean))
    mass = np.exp(np.array(values) - logsumexp(values))
    mean = p.law.lam[0] + p.law.lam[1] * float(mass @ grid)
    truth = hyper.unpack(p, phi).lam
    spread = p.law.lam[1] * float(np.sqrt(mass @ (grid - mass @ grid) ** 2))
    assert abs(mean - truth) < 4 * spread
    assert spread < p.law.lam[1]


def test_a_spread_of_almost_nothing_does_not_break_the_mode(study):
    p, _, phi = study
    flat = phi.copy()
    flat[: len(p.spread_names)] = -7.4
    found = laplace.conditional(p, flat, p.mean + 0.1)
    assert np.isfinite(found.log_mass)
    for block in p.blocks:
        if block.hyper is not None:
            assert np.all(np.abs(found.mode[block.where]) < 1e-6)
