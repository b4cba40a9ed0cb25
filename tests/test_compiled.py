"""The compiled inner loops against dense numpy, finite differences and, where it is installed, JAX."""

import os
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_ndtr

from bayesqid import laws, likelihood
from bayesqid.inference import compiled, hyper, model, problem, simulate

# Fisher's identities hold for the exact integral; the blunt cells' nine nodes are 1e-3 away from it at worst
ROUGH = {"rtol": 5e-3, "atol": 5e-2}


def study(law, size=(3, 3, 2), latent=()):
    """A simulated problem; `latent`: numbers of the checkpoints that do not disclose their tokens."""
    p, _, _ = simulate.study(replace(law, latent_tokens=None), "hierarchical", 3, simulate.grid(*size))
    silent = np.isin(p.cells["checkpoint"].values, np.unique(p.cells["checkpoint"].values)[list(latent)])
    cells = p.cells.assign_coords(train_tokens=p.cells["train_tokens"].where(~silent))
    return problem.build(cells, law, "hierarchical")


@pytest.fixture(scope="module")
def p():
    return study(laws.get("boxcox"))


def dense_rows(p, weights):
    """The design matrix (n, p)."""
    rows = np.zeros((len(weights), p.size))
    np.add.at(rows, (np.arange(len(weights))[:, None], p.index), weights)
    return rows


@pytest.mark.parametrize("tails", likelihood.TAILS)
def test_compiled_density_is_that_of_the_source(p, tails):
    rng = np.random.default_rng(0)
    assert p.data.sharp.size
    assert p.data.blunt.size
    assert p.data.diverged.size
    eta = np.log(np.maximum(p.cells["qid"].to_numpy(), 1e-3)) + rng.normal(size=p.bits.size)
    tau, mixture = np.exp(rng.uniform(-3, 0, eta.size)), likelihood.TAILS[tails]
    for got, want in zip(compiled.density(p.data, eta, tau, *mixture), likelihood.density(p.data, eta, tau, *mixture),
                         strict=True):  # fmt: skip
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_log_normal_cdf_is_compiled_with_its_far_tail():
    z = np.linspace(-200, 8, 300)
    data = likelihood.prepare(*np.ones((3, 300)), np.ones(300, dtype=bool))
    got = compiled.density(data, z + data.point[data.back], np.ones(300), *likelihood.TAILS["normal"])[0]
    np.testing.assert_allclose(got, log_ndtr(z), rtol=2e-8, atol=1e-14)


def whole(block, cross, own):
    """The symmetric matrix of its parts."""
    lower = np.block([[np.tril(block), np.zeros((len(block), own.size))], [cross, np.diag(own)]])
    return np.tril(lower) + np.tril(lower, -1).T


@pytest.mark.parametrize("levels", ["apart", "none apart"])
def test_sparse_loops_equal_dense_matrices(p, levels):
    """With the levels of one effect apart and, for an effect-free law, without."""
    if levels == "none apart":
        p = study(replace(laws.get("ouyang"), effects=()), (2, 2, 1))
    assert (p.apart > 0) == (levels == "apart")
    rng = np.random.default_rng(1)
    weights, b, values = p.weights(0.4), rng.normal(size=p.size), rng.normal(size=p.bits.size)
    rows = dense_rows(p, weights)
    assert (np.diff(p.index, axis=1) > 0).all()
    np.testing.assert_allclose(compiled.multiply(weights, p.index, b), rows @ b, atol=1e-10)
    np.testing.assert_allclose(compiled.gather(weights, p.index, values, p.size), rows.T @ values, atol=1e-10)
    curvature = rng.uniform(size=values.size)
    want = rows.T @ (curvature[:, None] * rows)
    parts = compiled.precision(weights, p.index, curvature, p.dense, p.apart)
    np.testing.assert_allclose(whole(*parts), want, atol=1e-9)
    parts = parts[0] + np.tril(parts[0], -1).T + np.eye(p.dense), parts[1], parts[2] + 1
    got = compiled.quadratic(weights, p.index, *parts)
    np.testing.assert_allclose(got, ((rows @ (want + np.eye(p.size))) * rows).sum(axis=1), rtol=1e-10)


CASES = [
    *((name, "both", ()) for name in laws.LAWS),
    ("boxcox", "phase", ()), ("boxcox", "tokens", ("student-t",)), ("per-bit", "both", ("latent-tokens", "student-t")),
]  # fmt: skip


# what the sampler moves, in the order of the arguments
MOVED = ("sd", "offset", "z", "x_bits", "shift", "tau")


def arguments(p):
    """What `log_density` takes before the sampler's own variables, and a random point of these."""
    rng = np.random.default_rng(2)
    arrays = [getattr(p, name) for name in ("index", "plain", "slope", "tokens", "spread_of", "fixed_sd")]
    whitening = model.whiten(p)
    constants = [*arrays, *p.data, *p.tails, *whitening[:-1]]
    natural = hyper.unpack(p, 0.5 * rng.normal(size=hyper.start(p).size))
    shift = np.zeros(p.bits.size)
    if p.latent_names:
        shift = np.where(p.latent_of < 0, 0.0, natural.latent[p.latent_of])
    away = np.atleast_1d(model.offset(p, whitening, natural.lam))
    z = 0.5 * rng.normal(size=p.size)
    point = [natural.sd, away, z, p.bit_scale(natural.lam), shift, natural.tau[p.generation_of]]
    return constants, point, natural, whitening


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([*case[:2], *case[2]]))
def test_log_density_has_the_gradient_of_its_differences(case):
    p = study(laws.variant(*case), latent=(2, 9) if "latent-tokens" in case[2] else ())
    constants, point, natural, whitening = arguments(p)
    value, *gradients = compiled.log_density(*constants, *point)

    # at the same coefficients it is the sparse sum that the fast engine works with
    variance = hyper.coefficient_sd(p, natural.sd) ** 2
    b, u, *_, gain, _ = compiled.unwhiten(*whitening[:-1], variance, point[1][0], point[2])
    eta = dense_rows(p, p.weights(natural.lam, natural.latent)) @ b
    want = likelihood.density(p.data, eta, point[5], *p.tails)[0].sum()
    assert float(value) == pytest.approx(want + (0.5 * np.log1p(-gain) - 0.5 * u**2 / variance).sum(), abs=1e-8)

    packed = compiled.log_density_packed(*compiled.pack(constants), *point)
    for one, other in zip(packed, (value, *gradients), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [g.shape for g in gradients] == [x.shape for x in point]
    for k, name in enumerate(MOVED):
        if name == "shift" and not p.latent_names:
            assert (gradients[k] == 0).all()
            continue
        for i in range(0, point[k].size, max(1, point[k].size // 12)):
            values = []
            for sign in (1, -1):
                moved = [x.copy() for x in point]
                moved[k][i] += sign * 1e-6
                values.append(float(compiled.log_density(*constants, *moved)[0]))
            np.testing.assert_allclose(gradients[k][i], (values[0] - values[1]) / 2e-6, err_msg=f"{name} {i}", **ROUGH)


def test_unwhiten_is_an_invertible_map_with_the_stated_jacobian(p):
    """ln |du/dz| by numerical differentiation against 0.5 ln(1 - gain) + ln sd, up to the rotation's constant."""
    constants, point, natural, whitening = arguments(p)
    jumps = []
    for scale in (0.3, 1.0, 2.5):
        variance = (scale * hyper.coefficient_sd(p, natural.sd)) ** 2

        def u(z, variance=variance):
            return compiled.unwhiten(*whitening[:-1], variance, point[1][0], z)[1]

        jacobian = np.array([u(point[2] + 1e-3 * unit) - u(point[2] - 1e-3 * unit) for unit in np.eye(p.size)]).T / 2e-3
        gain = variance / (variance + whitening.error2)
        log_det = np.linalg.slogdet(jacobian)[1]
        jumps.append(log_det - (0.5 * np.log1p(-gain) + 0.5 * np.log(variance)).sum())
    assert jumps == pytest.approx([jumps[0]] * 3, abs=1e-6)


def test_packed_arrays_come_back_as_they_were():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(4, 3)), np.arange(6).reshape(3, 2), rng.normal(size=5), np.empty((0, 0)), np.arange(2)]
    numbers, counts, places = compiled.pack(arrays)
    assert numbers.size + counts.size == sum(a.size for a in arrays)
    for k, values in enumerate(arrays):
        store = counts if values.dtype.kind in "iu" else numbers
        take = compiled._matrix if values.ndim == 2 else compiled._vector
        back = take(store, places, k)
        np.testing.assert_array_equal(back.ravel(), values.ravel())
        assert values.size == 0 or back.shape == values.shape


@pytest.fixture(scope="module")
def jax_op():
    """A function that evaluates the model's one operation under JAX in double precision, and JAX itself."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'bayesqid[numpyro]'")
    from bayesqid.inference import jaxed

    with jax.enable_x64(True):
        yield jax, jaxed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=["boxcox", "latent-student-t"])
def test_the_density_for_jax_is_the_compiled_one_with_its_gradient(case, jax_op):
    jax, jaxed = jax_op
    p = study(laws.variant(*case), latent=(2, 9) if "latent-tokens" in case[2] else ())
    constants, point, *_ = arguments(p)
    packed = compiled.pack(constants)
    function = jaxed._log_density_in_jax(model.log_density_op)
    value, *gradients = compiled.log_density_packed(*packed, *point)
    # as PyTensor hands them over: arrays of JAX, in a function that is traced
    of_jax = [jax.numpy.asarray(values) for values in packed]

    def density(*moved):
        return function(*of_jax, *moved)[0]

    got, slopes = jax.jit(jax.value_and_grad(density, argnums=tuple(range(len(MOVED)))))(*point)
    assert float(got) == pytest.approx(float(value), rel=1e-8)
    for name, one, other in zip(MOVED, slopes, gradients, strict=True):
        if name != "shift" or p.latent_names:
            np.testing.assert_allclose(np.asarray(one), other, err_msg=name, **ROUGH)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_likelihood_for_jax_has_finite_slopes_at_diverged_cells(jax_op):
    jax, jaxed = jax_op
    p = study(laws.get("boxcox"))
    eta, tau = np.linspace(-12, 4, p.bits.size), np.full(p.bits.size, 0.3)

    def total(eta):
        return jaxed.density(p.data, eta, tau, *p.tails)[0].sum()

    np.testing.assert_allclose(total(eta), compiled.density(p.data, eta, tau, *p.tails)[0].sum(), rtol=1e-8)
    assert np.isfinite(np.asarray(jax.grad(total)(eta))).all()
