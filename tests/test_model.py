"""The PyMC model against the same posterior written in numpy."""

import numpy as np
import pytest

from bayesqid import laws
from bayesqid.inference import hyper, model, simulate
from bayesqid.inference.laplace import log_joint_b

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def pieces():
    p, _, _ = simulate.study(laws.get("boxcox"), "hierarchical", 3, simulate.grid(families=3, tokens=3, sizes=2))
    whitening = model.whiten(p)
    built = model.build(p, whitening)
    function = built.logp_dlogp_function(ravel_inputs=True, mode="FAST_COMPILE")
    function.set_extra_values({})
    return p, whitening, function


def joint(p, whitening, point):
    """log p(y, b, phi) plus the log Jacobian of z -> b, from the values of the free variables."""
    h, g = len(p.spread_names), len(p.generations)
    phi, z = np.append(point[: h + g], (point[h + g] - p.law.lam[0]) / p.law.lam[1]), point[h + g + 1 :]
    natural = hyper.unpack(p, phi)
    sd = hyper.coefficient_sd(p, natural.sd)
    gain = sd**2 / (sd**2 + whitening.error2)
    width = sd * np.sqrt(1 - gain)
    u = np.empty(p.size)
    for stage in whitening.stages:
        w, before = slice(stage.start, stage.stop), slice(0, stage.start)
        m = stage.observed + stage.follow @ (u[before] - whitening.deviation[before])
        u[w] = gain[w] * m + width[w] * (stage.rotation @ z[w])
    b, log_jacobian = p.prior_mean() + u, np.log(width).sum()
    density = log_joint_b(p, p.weights(natural.lam), b, p.prior_mean(), sd, natural.tau)
    return density + hyper.log_prior(phi) + log_jacobian


def points(p, count):
    rng = np.random.default_rng(5)
    size = len(p.spread_names) + len(p.generations) + 1 + p.size
    return [0.5 * rng.normal(size=size) for _ in range(count)]


def test_log_density_differs_from_the_numpy_posterior_by_a_constant_only(pieces):
    p, whitening, function = pieces
    gaps = [float(function(x)[0]) - joint(p, whitening, x) for x in points(p, 6)]
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-6)


def test_gradient_is_that_of_finite_differences(pieces):
    p, _, function = pieces
    x = points(p, 1)[0]
    gradient = function(x)[1]
    for i in range(0, x.size, 5):
        step = np.zeros(x.size)
        step[i] = 1e-5
        slope = (function(x + step)[0] - function(x - step)[0]) / 2e-5
        # Fisher's identities hold for the exact integral, the nine nodes are 1e-3 away from it at worst
        assert gradient[i] == pytest.approx(slope, rel=5e-3, abs=5e-2)


def test_numba_runs_the_same_likelihood():
    p, _, _ = simulate.study(laws.get("boxcox"), "pooled", 4, simulate.grid(families=2, tokens=2, sizes=1))
    from bayesqid import likelihood

    columns = [p.cells[name].to_numpy()[p.measured] for name in ("qid", "qid_se", "headroom")]
    inputs = (*columns, p.anchor, p.anchor_precision, np.full(p.measured.sum(), -2.0), np.full(p.measured.sum(), 0.3))
    for one, other in zip(model._marginal(*inputs), likelihood.marginal(*inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
