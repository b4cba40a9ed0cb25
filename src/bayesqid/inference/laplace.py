"""Fast engine: Laplace on the linear block, importance sampling over the hyper-parameters.

Given phi (spreads, scatters, lam) the law is linear in b with Gaussian priors, and each cell's marginal likelihood
is nearly quadratic in eta, so p(b | phi, y) is nearly Gaussian: Newton finds its mode, the determinant its mass.
phi is then drawn from Student-t proposals that are adapted to the weighted draws, b from its conditional Gaussian,
and every pair is weighted by exact joint density over proposal density. What is left of the approximation shows in
the effective number of importance draws, which is always reported.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import logsumexp

from bayesqid.inference import compiled, hyper
from bayesqid.inference.problem import Problem

NEWTON_LIMIT = 60
DEGREES = 5
PATIENCE = 4
# pairs of draws of b for each proposal of phi: normal scatter leaves b nearly Gaussian given phi, other scatter less so
PAIRS_OF_B = {"normal": 1, "student-t": 4}
# The prior of phi is standard normal. What lies further out is given up, 7e-6 of its mass in every direction: a
# scatter of 1e-6 would make the precision singular to rounding
EDGE = 4.5
# twice the nats that are still to be gained, under which Newton's method has arrived
LAST = 1e-4
# the same for phi, and the widest difference taken of it
NEAR, WIDEST = 0.5, 0.25
# the same for proposals of b, whose importance weights are exact wherever the Gaussian stands
LAST_OF_PROPOSAL = 0.1


@dataclass(frozen=True)
class Factor:
    """Factor of a precision in parts: lower Cholesky of the dense coefficients' own (q, q), with the others integrated
    out; `cross` (m, q), minus what the m that stand apart follow of the dense ones; `root` (m,) of their precision.
    """

    dense: np.ndarray
    cross: np.ndarray
    root: np.ndarray

    def solve(self, x: np.ndarray) -> np.ndarray:
        """Precision^-1 x, shape (p,)."""
        q = len(self.dense)
        first = cho_solve((self.dense, True), x[:q] - self.cross.T @ x[q:], check_finite=False)
        return np.concatenate([first, x[q:] / self.root**2 - self.cross @ first])

    def spread(self, noise: np.ndarray) -> np.ndarray:
        """Standard normal noise (p, k) turned into draws with this precision."""
        q = len(self.dense)
        first = solve_triangular(self.dense.T, noise[:q], lower=False, check_finite=False)
        return np.concatenate([first, noise[q:] / self.root[:, None] - self.cross @ first])

    def half_log_det(self) -> float:
        """Half the log determinant of the precision."""
        return float(np.log(np.diag(self.dense)).sum() + np.log(self.root).sum())

    def covariance(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Covariance of the dense coefficients (q, q), of the others with them (m, q), variances of the others (m,)."""
        block = cho_solve((self.dense, True), np.eye(len(self.dense)), check_finite=False)
        cross = -self.cross @ block
        return block, cross, 1 / self.root**2 - (cross * self.cross).sum(axis=1)


def factorize(block: np.ndarray, cross: np.ndarray, own: np.ndarray) -> Factor:
    """Factor of a precision given in the parts of `compiled.precision`."""
    root = np.sqrt(own)
    scaled = cross / root[:, None]
    rest = block - scaled.T @ scaled
    # where a scatter is all but zero the difference of two large numbers may come out below it
    rest[np.diag_indices(len(rest))] += 1e-12 * np.diag(block)
    return Factor(cholesky(rest, lower=True, check_finite=False), scaled / root[:, None], root)


@dataclass(frozen=True)
class Conditional:
    """Gaussian approximation of p(b | phi, y): mode; factor of the precision of (b - mean) / sd; log mass."""

    mode: np.ndarray
    factor: Factor
    sd: np.ndarray
    log_mass: float


@dataclass(frozen=True)
class Draws:
    """Equally weighted posterior draws of (b, phi), the effective number of importance draws behind them, and logZ."""

    b: np.ndarray
    phi: np.ndarray
    ess: float
    proposals: int
    log_evidence: float


def log_joint_b(problem: Problem, weights, b, mean, sd, tau) -> float:
    """log p(y, b | phi) for one b."""
    z = (b - mean) / sd
    prior = -0.5 * z @ z - np.log(sd).sum() - 0.5 * b.size * np.log(2 * np.pi)
    return float(problem.log_likelihood(compiled.multiply(weights, problem.index, b), tau)[0].sum() + prior)


def conditional(problem: Problem, phi: np.ndarray, begin: np.ndarray, last: float = LAST) -> Conditional:
    """Newton's method on b for given phi, started at `begin`, until less than `last` / 2 nats are left to gain.

    It works on z = (b - mean) / sd, where the precision is the identity plus what the data add: definite to rounding
    however small a spread is.
    """
    natural = hyper.unpack(problem, phi)
    weights = problem.weights(natural.lam, natural.latent)
    sd, mean, index = hyper.coefficient_sd(problem, natural.sd), problem.mean, problem.index
    offset, scaled = compiled.multiply(weights, index, mean), weights * sd[index]
    p, tau, diagonal = problem.size, natural.tau, np.diag_indices(problem.dense)
    z = (begin - mean) / sd
    found = problem.log_likelihood(offset + compiled.multiply(scaled, index, z), tau)
    rest = gradient = np.zeros(p)
    for _ in range(NEWTON_LIMIT):
        density, first, second, _ = found
        value = density.sum() - 0.5 * z @ z
        # a cell whose density is convex here (possible only far from the data) must not make the precision indefinite
        block, cross, own = compiled.precision(scaled, index, np.maximum(-second, 1e-8), problem.dense, problem.apart)
        block[diagonal] += 1
        factor = factorize(block, cross, own + 1)
        step = factor.solve(compiled.gather(scaled, index, first, p) - z)
        length = 1.0
        while length > 1e-4:
            trial = z + length * step
            found = problem.log_likelihood(offset + compiled.multiply(scaled, index, trial), tau)
            if found[0].sum() - 0.5 * trial @ trial > value - 1e-10:
                break
            length /= 2
        z = z + length * step
        # what is left, by the same precision: little enough and it has hardly moved
        gradient = compiled.gather(scaled, index, found[1], p) - z
        rest = factor.solve(gradient)
        if gradient @ rest < last:
            break
    b = mean + sd * (z + rest)
    value = found[0].sum() - 0.5 * z @ z + 0.5 * gradient @ rest
    # |d b / d z| cancels the prior's normalising factor in the mass, not in the factor of the precision of b
    return Conditional(b, factor, sd, float(value - factor.half_log_det()))


def settle(problem: Problem, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A phi near the mode of its marginal posterior, with the mode of b there.

    Spreads move by the fixed point of their Laplace gradient (expected squared deviations under the conditional
    Gaussian, with the half-normal prior), scatters by that of theirs; lam by a damped Newton step on its profile.
    """
    phi, b, of = hyper.start(problem), problem.mean, problem.generation_of
    for _ in range(steps):
        found = conditional(problem, phi, b)
        b, before = found.mode, phi
        natural = hyper.unpack(problem, phi)
        covariance = found.factor.covariance()
        variance = np.concatenate([np.diag(covariance[0]), covariance[2]]) * found.sd**2
        sd = natural.sd.copy()
        for block in problem.blocks:
            if block.hyper is None:
                continue
            total = np.sum(b[block.where] ** 2 + variance[block.where])
            count, scale = block.count, problem.spread_scales[block.hyper]
            # root of -count + total / sd^2 - sd^2 / scale^2 = 0, the gradient in log sd without the Jacobian
            q = float(count)
            sd[block.hyper] = np.sqrt(0.5 * scale**2 * (-q + np.sqrt(q**2 + 4 * total / scale**2)))
        weights = problem.weights(natural.lam, natural.latent)
        eta = compiled.multiply(weights, problem.index, b)
        _, first, second, slope = problem.log_likelihood(eta, natural.tau)
        uncertainty = compiled.quadratic(weights * found.sd[problem.index], problem.index, *covariance)
        # under normal scatter E[(v - eta)^2 | y] = tau^2 + tau^3 d/d tau; what is unsure in eta comes on top
        square = np.maximum(1 + natural.tau[of] * slope, 0) * natural.tau[of] ** 2 + uncertainty
        tau = np.array([np.sqrt(square[of == g].mean()) if (of == g).any() else natural.tau[g]
                        for g in range(len(problem.generations))])  # fmt: skip
        phi = hyper.pack(problem, replace(natural, sd=sd, tau=tau))
        if problem.free_lam:
            phi = _improve_lam(problem, phi, b)
        if np.max(np.abs(phi - before)) < 0.03:
            break
    return phi, b


def _improve_lam(problem: Problem, phi: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One damped Newton step on lam by central differences of the Laplace marginal."""
    width, slot = 0.2, len(problem.spread_names) + len(problem.generations)
    unit = np.zeros_like(phi)
    unit[slot] = width
    low, mid, high = (log_marginal(problem, phi + k * unit, b) for k in (-1, 0, 1))
    curvature = min((high - 2 * mid + low) / width**2, -1.0)
    phi = phi.copy()
    phi[slot] += np.clip(-(high - low) / (2 * width) / curvature, -1.0, 1.0)
    return phi


def log_marginal(problem: Problem, phi: np.ndarray, b: np.ndarray) -> float:
    """Laplace approximation of log p(y, phi)."""
    return conditional(problem, phi, b).log_mass + hyper.log_prior(phi)


@dataclass(frozen=True)
class Start:
    """First proposal of phi: centre and covariance; and the mode of b as a linear function of phi about `phi`."""

    center: np.ndarray
    covariance: np.ndarray
    phi: np.ndarray
    mode: np.ndarray
    response: np.ndarray

    def guess(self, phi: np.ndarray) -> np.ndarray:
        """About where the mode of b lies at phi."""
        return self.mode + self.response @ np.clip(phi - self.phi, -1.5, 1.5)


def gaussian_start(problem: Problem, steps: int = 8) -> Start:
    """Newton's method on the Laplace marginal of phi by its differences, from where `settle` ends.

    Differences are taken over about half a standard deviation of each coordinate: spreads of many levels are narrow.
    """
    phi, b = settle(problem)
    d, width = phi.size, np.full(phi.size, WIDEST)

    def at(shift):
        found = conditional(problem, phi + shift, b)
        return found.log_mass + hyper.log_prior(phi + shift), found.mode

    for number in range(steps):
        middle, b = at(0)
        for i in range(d):
            unit = np.eye(d)[i]
            curvature = 2 * middle - at(width[i] * unit)[0] - at(-width[i] * unit)[0]
            width[i] *= np.clip(0.5 / np.sqrt(max(curvature, 0.25)), 0.1, 1.0)
        apart = np.diag(width)
        up, down = [at(one) for one in apart], [at(-one) for one in apart]
        high, low = (np.array([value for value, _ in side]) for side in (up, down))
        hessian = np.diag(2 * middle - high - low)
        for i in range(d):
            for j in range(i):
                hessian[i, j] = hessian[j, i] = high[i] + high[j] - middle - at(apart[i] + apart[j])[0]
        values, vectors = np.linalg.eigh(hessian / np.outer(width, width))
        # the prior alone has curvature 1 in every direction; less than that is the noise of the differences
        covariance = (vectors / np.maximum(values, 0.8)) @ vectors.T
        gradient = (high - low) / (2 * width)
        step = np.clip(phi + np.clip(covariance @ gradient, -1.5, 1.5), 1 - EDGE, EDGE - 1) - phi
        if gradient @ step < NEAR or number + 1 == steps:
            break
        while at(step)[0] < middle and np.abs(step).max() > 1e-3:
            step = step / 2
        phi = phi + step
        width = np.minimum(2 * width, WIDEST)
    response = (np.array([one for _, one in up]) - np.array([one for _, one in down])).T / (2 * width)
    return Start(phi, covariance, phi, b, response)


def propose(problem: Problem, phi: np.ndarray, begin: np.ndarray, rng: np.random.Generator):
    """A draw of b given phi, log of (joint density / proposal density) of the pair, and the Laplace marginal of phi.

    Of several draws of b one is taken in proportion to its weight and carries the mean of the weights: an unbiased
    weight for phi, with less noise than that of one draw.
    """
    natural, pairs = hyper.unpack(problem, phi), PAIRS_OF_B[problem.law.tails]
    local = conditional(problem, phi, begin, LAST_OF_PROPOSAL)
    noise = rng.normal(size=(problem.size, pairs))
    # to either side of the mode: what is skew cancels
    noise = np.concatenate([noise, -noise], axis=1)
    value = local.mode[:, None] + local.sd[:, None] * local.factor.spread(noise)
    sd, weights = hyper.coefficient_sd(problem, natural.sd), problem.weights(natural.lam, natural.latent)
    joint = [log_joint_b(problem, weights, b, problem.mean, sd, natural.tau) for b in value.T]
    scale = local.factor.half_log_det() - np.log(local.sd).sum() - 0.5 * problem.size * np.log(2 * np.pi)
    ratio = np.array(joint) - scale + 0.5 * (noise**2).sum(axis=0)
    share = np.exp(ratio - ratio.max())
    pick = rng.choice(2 * pairs, p=share / share.sum())
    prior = hyper.log_prior(phi)
    return value[:, pick], ratio.max() + np.log(share.mean()) + prior, local.log_mass + prior


def fit(problem: Problem, draws: int, seed: int, proposals: int = 70, rounds: int = 8, enough: float = 150) -> Draws:
    """Posterior draws of (b, phi) by adapted importance sampling.

    `proposals` per round; the proposals of all rounds are kept and weighted by their mixture (deterministic
    mixture weights), then `draws` pairs are drawn by systematic resampling. Where `rounds` leave fewer than `enough`
    effective draws there are up to `PATIENCE` times as many.
    """
    rng = np.random.default_rng(seed)
    start = gaussian_start(problem)
    center, covariance = start.center, start.covariance
    multivariate_t: Any = stats.multivariate_t
    all_phi, all_b, joint, marginal, mixtures = [], [], [], [], []
    for number in range(PATIENCE * rounds):
        mixtures.append(multivariate_t(center, covariance, df=DEGREES))
        for candidate in np.atleast_2d(mixtures[-1].rvs(proposals, random_state=rng)):
            inside = np.abs(candidate).max() <= EDGE
            b, exact, smooth = (propose(problem, candidate, start.guess(candidate), rng) if inside
                                else (start.mode, -np.inf, -np.inf))  # fmt: skip
            all_phi.append(candidate)
            all_b.append(b)
            joint.append(exact)
            marginal.append(smooth)
        seen = np.array(all_phi)
        proposal = logsumexp([m.logpdf(seen) for m in mixtures], axis=0) - np.log(len(mixtures))
        log_weights = np.array(joint) - proposal
        weights = np.exp(log_weights - logsumexp(log_weights))
        ess = float(1 / np.sum(weights**2))
        if number + 1 >= rounds and ess >= enough:
            break
        # adapt on the Laplace weights: the exact ones carry the extra noise of the draws of b
        smooth = np.exp(np.array(marginal) - proposal - np.max(np.array(marginal) - proposal))
        smooth /= smooth.sum()
        # few effective draws say little about a covariance: they move the proposal by what they are worth
        trust = 1 / np.sum(smooth**2)
        trust = trust / (trust + 10 * center.size)
        moved = smooth @ seen
        spread = (seen - moved).T @ ((seen - moved) * smooth[:, None])
        center = (1 - trust) * center + trust * moved
        covariance = (1 - trust) * covariance + trust * spread
    picks = np.searchsorted(np.cumsum(weights), (np.arange(draws) + rng.random()) / draws).clip(max=weights.size - 1)
    picks = rng.permutation(picks)
    evidence = float(logsumexp(log_weights) - np.log(weights.size))
    return Draws(np.array(all_b)[picks], seen[picks], ess, weights.size, evidence)
