"""The PyMC model against the same posterior written in numpy."""

from dataclasses import replace

import numpy as np
import pytest

from bayesqid import laws, likelihood
from bayesqid.inference import compiled, hyper, model, problem, simulate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

VARIANTS = [
    *((name, "both", ()) for name in laws.LAWS),
    ("boxcox", "tokens", ("student-t",)), ("boxcox", "phase", ()), ("per-bit", "both", ("latent-tokens", "student-t")),
    ("boxcox", "both", ("vocabulary", "loss", "unique-tokens")),
]  # fmt: skip


def study(law):
    """18 checkpoints under five recipes; where the law allows it two models do not disclose their tokens."""
    p, _, _ = simulate.study(replace(law, latent_tokens=None), "hierarchical", 3, simulate.grid(3, 3, 2))
    cells = p.cells
    if law.latent_tokens:
        silent = np.isin(cells["checkpoint"].values, np.unique(cells["checkpoint"].values)[[2, 9]])
        cells = cells.assign_coords(train_tokens=cells["train_tokens"].where(~silent))
    return problem.build(cells, law, "hierarchical")


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: "-".join([*v[:2], *v[2]]))
def pieces(request):
    p = study(laws.variant(*request.param))
    whitening = model.whiten(p)
    built = model.build(p, whitening)
    function = built.logp_dlogp_function(ravel_inputs=True, mode="FAST_COMPILE")
    function.set_extra_values({})
    start = built.initial_point()
    sizes = {value.name: np.size(start[value.name]) for value in built.value_vars}
    return p, whitening, function, sizes


def joint(p, whitening, free):
    """log p(y, b, phi) plus the log Jacobian of z -> b, from the values of the free variables."""
    phi = np.concatenate([free["phi_sd"], free["phi_tau"]])
    if p.free_lam:
        phi = np.append(phi, (free["lam"] - p.law.lam[0]) / p.law.lam[1])
    if p.latent_names:
        phi = np.append(phi, free["latent"] / p.law.latent_tokens[1])
    natural = hyper.unpack(p, phi)
    sd = hyper.coefficient_sd(p, natural.sd)
    gain = sd**2 / (sd**2 + whitening.error2)
    width = sd * np.sqrt(1 - gain)
    away = (natural.lam - whitening.lam) / p.law.lam[1] if p.free_lam else 0.0
    u = np.empty(p.size)
    rotation = np.diag(np.ones(p.size))
    rotation[: p.dense, : p.dense] = whitening.rotation
    rotation[p.dense :, p.dense :] = np.diag(whitening.turn)
    for start, stop in zip(whitening.starts, whitening.starts[1:], strict=False):
        w, before = slice(start, stop), slice(0, start)
        m = whitening.observed[w] + away * whitening.response[w]
        m = m + whitening.follow[w, before] @ (u[before] - whitening.deviation[before])
        u[w] = gain[w] * m + width[w] * (rotation[w, w] @ free["z"][w])
    eta = (p.weights(natural.lam, natural.latent) * (p.mean + u)[p.index]).sum(axis=1)
    density = likelihood.density(p.data, eta, natural.tau[p.generation_of], *likelihood.TAILS[p.law.tails])[0].sum()
    prior = (-0.5 * (u / sd) ** 2 - np.log(sd)).sum() - 0.5 * phi @ phi
    return density + prior + np.log(width).sum()


def points(sizes, count):
    rng = np.random.default_rng(5)
    return [0.5 * rng.normal(size=sum(sizes.values())) for _ in range(count)]


def by_name(sizes, point):
    ends = np.cumsum(list(sizes.values()))
    parts = dict(zip(sizes, np.split(point, ends[:-1]), strict=True))
    return parts | ({"lam": parts["lam"][0]} if "lam" in parts else {})


def test_log_density_differs_from_the_numpy_posterior_by_a_constant_only(pieces):
    p, whitening, function, sizes = pieces
    gaps = [float(function(x)[0]) - joint(p, whitening, by_name(sizes, x)) for x in points(sizes, 6)]
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-6)


def test_gradient_is_that_of_finite_differences(pieces):
    _, _, function, sizes = pieces
    x = points(sizes, 1)[0]
    gradient = function(x)[1]
    few = np.unique(np.concatenate([np.arange(0, x.size, 5), x.size - 1 - np.arange(3)]))
    for i in few:
        step = np.zeros(x.size)
        step[i] = 1e-5
        slope = (function(x + step)[0] - function(x - step)[0]) / 2e-5
        # Fisher's identities hold for the exact integral, the nine nodes are 1e-3 away from it at worst
        assert gradient[i] == pytest.approx(slope, rel=5e-3, abs=5e-2)


def test_coefficients_of_draws_are_those_of_the_model(pieces):
    p, whitening, _, _ = pieces
    rng = np.random.default_rng(1)
    sd, z = np.exp(rng.normal(size=(2, 3, len(p.spread_names)))), rng.normal(size=(2, 3, p.size))
    lam = rng.normal(size=(2, 3))
    b = model.coefficients(p, whitening, sd, lam, z)
    assert b.shape == z.shape
    away = (lam[1, 2] - whitening.lam) / p.law.lam[1] if p.free_lam else 0.0
    one = compiled.unwhiten(*whitening[:-1], hyper.coefficient_sd(p, sd[1, 2]) ** 2, away, z[1, 2])[0]
    np.testing.assert_array_equal(b[1, 2], one)


def test_whitened_draws_of_the_conditional_are_nearly_standard(pieces):
    """The mode of b at the spreads of the whitening has z = 0: there u = gain m, what the data and the prior say."""
    from bayesqid.inference import laplace

    p, whitening, _, _ = pieces
    phi, b = laplace.settle(p)
    mode = laplace.conditional(p, phi, b).mode
    variance = hyper.coefficient_sd(p, hyper.unpack(p, phi).sd) ** 2
    at_zero = compiled.unwhiten(*whitening[:-1], variance, 0.0, np.zeros(p.size))[0]
    np.testing.assert_allclose(at_zero, mode, atol=1e-5)


def test_coefficients_follow_lam_as_their_mode_does(pieces):
    """Else lam and all coefficients could move together only, in small steps."""
    from bayesqid.inference import laplace

    p, whitening, _, _ = pieces
    if not p.free_lam:
        assert (whitening.response == 0).all()
        return
    phi, b = laplace.settle(p)
    step = np.zeros(phi.size)
    step[len(p.spread_names) + len(p.generations)] = 0.25
    want = [laplace.conditional(p, phi + sign * step, b).mode for sign in (1, -1)]
    sd = hyper.unpack(p, phi).sd
    lam = whitening.lam + 0.25 * p.law.lam[1] * np.array([1, -1])
    got = model.coefficients(p, whitening, np.stack([sd, sd]), lam, np.zeros((2, p.size)))
    np.testing.assert_allclose(got[0] - got[1], want[0] - want[1], atol=1e-5)


def test_one_operation_is_told_from_that_of_another_source():
    """PyTensor keeps compiled operations on disk: equal ones are the same to it."""
    assert model.log_density_op == model._LogDensity(compiled.SOURCE)
    assert model.log_density_op != model._LogDensity("0" * 64)


def test_the_source_of_compiled_code_changes_with_its_files():
    from pathlib import Path

    from bayesqid import files

    text = Path(compiled.__file__).read_bytes(), Path(likelihood.__file__).read_bytes()
    assert files.sha256_bytes(text[0] + text[1]) == compiled.SOURCE
    assert files.sha256_bytes(text[0] + text[1] + b"\n") != compiled.SOURCE
