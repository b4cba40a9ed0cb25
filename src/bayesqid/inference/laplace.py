"""Fast engine: Laplace on the linear block, importance sampling over the hyper-parameters.

Given phi (spreads, scatters, lam) the law is linear in b with Gaussian priors, and each cell's marginal likelihood
is nearly quadratic in eta, so p(b | phi, y) is nearly Gaussian: Newton finds its mode, the determinant its mass.
phi is then drawn from Student-t proposals that are adapted to the weighted draws, b from its conditional Gaussian,
and every pair is weighted by exact joint density over proposal density. What is left of the approximation shows in
the effective number of importance draws, which is always reported.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import logsumexp

from bayesqid.inference import hyper
from bayesqid.inference.problem import Problem

NEWTON_LIMIT = 60
DEGREES = 6
# The prior of phi is standard normal. What lies further out is given up, 7e-6 of its mass in every direction: a
# scatter of 1e-6 would make the precision singular to rounding
EDGE = 4.5


@dataclass(frozen=True)
class Conditional:
    """Gaussian approximation of p(b | phi, y): mode, lower Cholesky factor of the precision, log mass."""

    mode: np.ndarray
    factor: np.ndarray
    log_mass: float


@dataclass(frozen=True)
class Draws:
    """Equally weighted posterior draws of (b, phi), the effective number of importance draws behind them, and logZ."""

    b: np.ndarray
    phi: np.ndarray
    ess: float
    proposals: int
    log_evidence: float


def pairs(problem: Problem) -> np.ndarray:
    """Flat positions in the (p, p) precision that each cell's outer product adds to, shape (n * R * R,)."""
    rows, columns = problem.index[:, :, None], problem.index[:, None, :]
    return (rows * problem.size + columns).ravel()


def log_joint_b(problem: Problem, weights, b, mean, sd, tau) -> float:
    """log p(y, b | phi) for one b."""
    eta = (weights * b[problem.index]).sum(axis=1)
    z = (b - mean) / sd
    prior = -0.5 * z @ z - np.log(sd).sum() - 0.5 * b.size * np.log(2 * np.pi)
    return float(problem.log_likelihood(eta, tau)[0].sum() + prior)


def conditional(problem: Problem, phi: np.ndarray, begin: np.ndarray, where: np.ndarray) -> Conditional:
    """Newton's method on b for given phi, started at `begin`; `where` from `pairs`.

    It works on z = (b - mean) / sd, where the precision is the identity plus what the data add: definite to rounding
    however small a spread is.
    """
    natural = hyper.unpack(problem, phi)
    weights = problem.weights(natural.lam)
    sd, mean = hyper.coefficient_sd(problem, natural.sd), problem.prior_mean()
    offset = (weights * mean[problem.index]).sum(axis=1)
    scaled = weights * sd[problem.index]
    p, flat = problem.size, problem.index.ravel()
    outer = scaled[:, :, None] * scaled[:, None, :]
    z = (begin - mean) / sd

    def at(z):
        return offset + (scaled * z[problem.index]).sum(axis=1)

    for _ in range(NEWTON_LIMIT):
        density, first, second, _ = problem.log_likelihood(at(z), natural.tau)
        value = density.sum() - 0.5 * z @ z
        # a cell whose density is convex here (possible only far from the data) must not make the precision indefinite
        curvature = np.maximum(-second, 1e-8)
        precision = np.bincount(where, (curvature[:, None, None] * outer).ravel(), p * p).reshape(p, p)
        precision[np.diag_indices(p)] += 1
        gradient = np.bincount(flat, (scaled * first[:, None]).ravel(), p) - z
        factor = cholesky(precision, lower=True, check_finite=False)
        step = cho_solve((factor, True), gradient, check_finite=False)
        if gradient @ step < 1e-8:
            break
        length = 1.0
        while length > 1e-4:
            trial = z + length * step
            if problem.log_likelihood(at(trial), natural.tau)[0].sum() - 0.5 * trial @ trial > value - 1e-10:
                break
            length /= 2
        z = z + length * step
        if gradient @ step < 1e-5:
            break
    b = mean + sd * z
    joint = log_joint_b(problem, weights, b, mean, sd, natural.tau)
    factor = factor / sd[:, None]
    log_mass = joint + 0.5 * p * np.log(2 * np.pi) - np.log(np.diag(factor)).sum()
    return Conditional(b, factor, float(log_mass))


def settle(problem: Problem, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A phi near the mode of its marginal posterior, with the mode of b there.

    Spreads move by the fixed point of their Laplace gradient (expected squared deviations under the conditional
    Gaussian, with the half-normal prior), scatters by that of theirs; lam by a damped Newton step on its profile.
    """
    where, phi = pairs(problem), hyper.start(problem)
    b = problem.prior_mean()
    for _ in range(steps):
        found = conditional(problem, phi, b, where)
        b, before = found.mode, phi
        natural = hyper.unpack(problem, phi)
        spread = solve_triangular(found.factor, np.eye(problem.size), lower=True, check_finite=False)
        variance = (spread**2).sum(axis=0)
        sd = natural.sd.copy()
        for block in problem.blocks:
            if block.hyper is None:
                continue
            total = np.sum(b[block.where] ** 2 + variance[block.where])
            count, scale = block.count, problem.spread_scales[block.hyper]
            # root of -count + total / sd^2 - sd^2 / scale^2 = 0, the gradient in log sd without the Jacobian
            q = float(count)
            sd[block.hyper] = np.sqrt(0.5 * scale**2 * (-q + np.sqrt(q**2 + 4 * total / scale**2)))
        weights = problem.weights(natural.lam)
        eta = (weights * b[problem.index]).sum(axis=1)
        _, first, second, _ = problem.log_likelihood(eta, natural.tau)
        pulled = spread @ _scatter_rows(problem, weights)
        uncertainty = (pulled**2).sum(axis=0)
        # E[(v - eta)^2 | y] by Fisher's identities, plus what is unsure in eta itself
        square = (second + 1 / natural.tau[problem.generation_of] ** 2) * natural.tau[problem.generation_of] ** 4
        square += (first * natural.tau[problem.generation_of] ** 2) ** 2 + uncertainty
        tau = np.array([np.sqrt(square[problem.generation_of == g].mean()) for g in range(len(problem.generations))])
        phi = hyper.pack(problem, hyper.Hyper(sd, tau, natural.lam))
        if problem.free_lam:
            phi = _improve_lam(problem, phi, b, where)
        if np.max(np.abs(phi - before)) < 0.03:
            break
    return phi, b


def _scatter_rows(problem: Problem, weights: np.ndarray) -> np.ndarray:
    """Dense design matrix transposed, shape (p, n)."""
    dense = np.zeros((problem.size, len(weights)))
    np.add.at(dense, (problem.index, np.arange(len(weights))[:, None]), weights)
    return dense


def _improve_lam(problem: Problem, phi: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    """One damped Newton step on lam by central differences of the Laplace marginal."""
    width = 0.2
    unit = np.zeros_like(phi)
    unit[-1] = width
    low, mid, high = (log_marginal(problem, phi + k * unit, b, where) for k in (-1, 0, 1))
    curvature = min((high - 2 * mid + low) / width**2, -1.0)
    phi = phi.copy()
    phi[-1] += np.clip(-(high - low) / (2 * width) / curvature, -1.0, 1.0)
    return phi


def log_marginal(problem: Problem, phi: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Laplace approximation of log p(y, phi)."""
    return conditional(problem, phi, b, where).log_mass + hyper.log_prior(phi)


def negative_hessian(problem: Problem, phi: np.ndarray, b: np.ndarray, where: np.ndarray, width: float = 0.25):
    """Minus the second differences of the log marginal at phi, shape (d, d)."""
    d = phi.size
    steps = width * np.eye(d)

    def value(shift):
        return log_marginal(problem, phi + shift, b, where)

    middle, up, down = value(0), [value(s) for s in steps], [value(-s) for s in steps]
    hessian = np.diag([2 * middle - high - low for high, low in zip(up, down, strict=True)])
    for i in range(d):
        for j in range(i):
            both, neither = value(steps[i] + steps[j]), value(-steps[i] - steps[j])
            mixed = 0.5 * (up[i] + up[j] + down[i] + down[j] - both - neither) - middle
            hessian[i, j] = hessian[j, i] = mixed
    return hessian / width**2


def gaussian_start(problem: Problem, where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mode of phi, covariance there, and the mode of b: the first proposal."""
    phi, b = settle(problem)
    found = minimize(lambda x: -log_marginal(problem, x, b, where), phi, method="L-BFGS-B",
                     bounds=[(-EDGE + 1, EDGE - 1)] * phi.size, options={"maxiter": 15, "eps": 1e-2})  # fmt: skip
    b = conditional(problem, found.x, b, where).mode
    values, vectors = np.linalg.eigh(negative_hessian(problem, found.x, b, where))
    # the prior alone has curvature 1 in every direction; less than that is the noise of the differences
    return found.x, (vectors / np.maximum(values, 0.8)) @ vectors.T, b


def fit(problem: Problem, draws: int, seed: int, proposals: int = 300, rounds: int = 3) -> Draws:
    """Posterior draws of (b, phi) by adapted importance sampling.

    `proposals` per round; the proposals of all rounds are kept and weighted by their mixture (deterministic
    mixture weights), then `draws` pairs are drawn by systematic resampling.
    """
    rng = np.random.default_rng(seed)
    where = pairs(problem)
    center, covariance, b = gaussian_start(problem, where)
    multivariate_t: Any = stats.multivariate_t
    mean, all_phi, all_b, joint, conditional_log, mixtures = problem.prior_mean(), [], [], [], [], []
    for _ in range(rounds):
        mixtures.append(multivariate_t(center, covariance, df=DEGREES))
        for candidate in np.atleast_2d(mixtures[-1].rvs(proposals, random_state=rng)):
            if np.abs(candidate).max() > EDGE:
                all_phi.append(candidate)
                all_b.append(b)
                joint.append(-np.inf)
                conditional_log.append(-np.inf)
                continue
            natural = hyper.unpack(problem, candidate)
            local = conditional(problem, candidate, b, where)
            noise = rng.normal(size=problem.size)
            value = local.mode + solve_triangular(local.factor.T, noise, lower=False, check_finite=False)
            sd = hyper.coefficient_sd(problem, natural.sd)
            exact = log_joint_b(problem, problem.weights(natural.lam), value, mean, sd, natural.tau)
            density = np.log(np.diag(local.factor)).sum() - 0.5 * (noise @ noise + noise.size * np.log(2 * np.pi))
            all_phi.append(candidate)
            all_b.append(value)
            joint.append(exact + hyper.log_prior(candidate) - density)
            conditional_log.append(local.log_mass + hyper.log_prior(candidate))
        seen = np.array(all_phi)
        proposal = logsumexp([m.logpdf(seen) for m in mixtures], axis=0) - np.log(len(mixtures))
        # adapt on the Laplace weights: the exact ones carry the extra noise of one draw of b
        smooth = np.exp(np.array(conditional_log) - proposal - np.max(np.array(conditional_log) - proposal))
        smooth /= smooth.sum()
        # few effective draws say little about a covariance: they move the proposal by what they are worth
        trust = 1 / np.sum(smooth**2)
        trust = trust / (trust + 10 * center.size)
        moved = smooth @ seen
        spread = (seen - moved).T @ ((seen - moved) * smooth[:, None])
        center = (1 - trust) * center + trust * moved
        covariance = (1 - trust) * covariance + trust * spread
    log_weights = np.array(joint) - proposal
    weights = np.exp(log_weights - logsumexp(log_weights))
    picks = np.searchsorted(np.cumsum(weights), (np.arange(draws) + rng.random()) / draws).clip(max=weights.size - 1)
    picks = rng.permutation(picks)
    evidence = float(logsumexp(log_weights) - np.log(weights.size))
    return Draws(np.array(all_b)[picks], seen[picks], float(1 / np.sum(weights**2)), weights.size, evidence)
