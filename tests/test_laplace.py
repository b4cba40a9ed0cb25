"""The fast engine against quadrature and against what it should recover."""

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
    found = laplace.conditional(p, phi, p.prior_mean(), laplace.pairs(p))
    natural = hyper.unpack(p, phi)
    sd = hyper.coefficient_sd(p, natural.sd)

    def value(b):
        return log_joint(p, natural, sd, b)

    scale = 1 / np.linalg.norm(found.factor, axis=1)
    for i in range(0, p.size, 3):
        step = np.zeros(p.size)
        step[i] = 1e-3 * scale[i]
        # a standard deviation away the log density falls by 1/2: a thousandth of that is the finite difference's
        assert abs(value(found.mode + step) - value(found.mode - step)) < 2e-3 * 0.05


def log_joint(p, natural, sd, b):
    return laplace.log_joint_b(p, p.weights(natural.lam), b, p.prior_mean(), sd, natural.tau)


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
    gap = v - design @ p.prior_mean()
    sign, log_det = np.linalg.slogdet(covariance)
    exact = -0.5 * (gap @ np.linalg.solve(covariance, gap) + log_det + v.size * np.log(2 * np.pi))
    found = laplace.conditional(p, phi, p.prior_mean(), laplace.pairs(p))
    # the density of QiD is that of ln QiD over QiD
    assert found.log_mass == pytest.approx(exact - v.sum(), abs=1e-3)


def test_importance_draws_report_few_effective_draws_when_proposals_are_bad(study):
    p, _, _ = study
    good = laplace.fit(p, 200, 1, proposals=100, rounds=2)
    assert 20 < good.ess <= 200
    assert good.b.shape == (200, p.size)


@pytest.mark.slow
def test_the_laplace_marginal_of_lam_finds_the_lam_that_made_the_data():
    p, _, phi = simulate.study(laws.get("boxcox"), "pooled", 5, simulate.grid(families=2, tokens=3, sizes=2))
    where = laplace.pairs(p)
    grid = np.linspace(-4, 4, 81)
    values = []
    for position in grid:
        shifted = phi.copy()
        shifted[-1] = position
        values.append(laplace.log_marginal(p, shifted, p.prior_mean(), where))
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
    found = laplace.conditional(p, flat, p.prior_mean() + 0.1, laplace.pairs(p))
    assert np.isfinite(found.log_mass)
    for block in p.blocks:
        if block.hyper is not None:
            assert np.all(np.abs(found.mode[block.where]) < 1e-6)
