"""Hyper-parameters as one vector phi on the scale where their prior is standard normal.

phi holds one entry per spread, one per scatter tau, if free one for lam, and one per checkpoint of undisclosed tokens.
A half-normal spread is sd = scale * F^-1(Phi(phi)) with F the half-normal distribution function: where the data say
little the posterior of phi is then close to Gaussian, which that of log sd is not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from bayesqid.inference.problem import Problem

# beyond this the normal distribution function is one in double precision; no posterior comes near
LIMIT = 7.5


@dataclass(frozen=True)
class Hyper:
    """Natural values of phi: spreads (one per partially pooled block), scatter tau per generation, lam, latent ln D.

    `latent` is counted from the median of its prior. Of one phi or of many: then all have the same leading dimensions.
    """

    sd: np.ndarray
    tau: np.ndarray
    lam: Any
    latent: np.ndarray


def scales(problem: Problem) -> np.ndarray:
    """Half-normal scales of the spreads, then of the scatters."""
    return np.concatenate([problem.spread_scales, np.full(len(problem.generations), problem.law.scatter)])


def half_normal(phi, scale):
    """Half-normal value of a standard normal phi."""
    return -scale * ndtri(0.5 * ndtr(-np.clip(phi, -LIMIT, LIMIT)))


def standard(value, scale):
    """Inverse of `half_normal`."""
    return np.clip(-ndtri(2 * ndtr(-value / scale)), -LIMIT, LIMIT)


def unpack(problem: Problem, phi: np.ndarray) -> Hyper:
    """Natural values of phi, shape (..., d); lam is a number for one phi."""
    h, g = len(problem.spread_names), len(problem.generations)
    natural = half_normal(phi[..., : h + g], scales(problem))
    lam: Any = np.full(phi.shape[:-1], 0.0 if problem.free_lam else problem.law.lam)
    if isinstance(problem.law.lam, tuple):
        mean, sd = problem.law.lam
        lam = mean + sd * phi[..., h + g]
    width = problem.law.latent_tokens[1] if problem.law.latent_tokens else 0.0
    latent = width * phi[..., h + g + problem.free_lam :]
    return Hyper(natural[..., :h], natural[..., h:], float(lam) if phi.ndim == 1 else lam, latent)


def pack(problem: Problem, natural: Hyper) -> np.ndarray:
    """The vector phi of natural values."""
    phi = standard(np.concatenate([natural.sd, natural.tau]), scales(problem))
    if isinstance(problem.law.lam, tuple):
        mean, sd = problem.law.lam
        phi = np.append(phi, (natural.lam - mean) / sd)
    if problem.law.latent_tokens:
        phi = np.append(phi, natural.latent / problem.law.latent_tokens[1])
    return phi


def start(problem: Problem) -> np.ndarray:
    """A sensible phi to begin with: the prior medians."""
    number = len(problem.spread_names) + len(problem.generations) + problem.free_lam
    return np.zeros(number + len(problem.latent_names))


def log_prior(phi: np.ndarray) -> float:
    """Log prior density of phi, standard normal."""
    return float(-0.5 * phi @ phi - 0.5 * phi.size * np.log(2 * np.pi))


def coefficient_sd(problem: Problem, sd: np.ndarray) -> np.ndarray:
    """Prior standard deviation of every coefficient, shape (..., p), for spreads of shape (..., number)."""
    fixed = np.broadcast_to(problem.fixed_sd, (*sd.shape[:-1], problem.fixed_sd.size))
    return np.concatenate([sd, fixed], axis=-1)[..., problem.spread_of]


def log_half_normal(value, scale):
    """Log density of HalfNormal(scale) at value > 0."""
    return 0.5 * np.log(2 / np.pi) - np.log(scale) - 0.5 * (value / scale) ** 2


def draw_prior(problem: Problem, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws of (b, phi) from the prior, shapes (draws, p) and (draws, len(phi))."""
    phi = rng.normal(size=(draws, start(problem).size))
    sd = half_normal(phi[:, : len(problem.spread_names)], problem.spread_scales)
    spread = coefficient_sd(problem, sd)
    return problem.mean + spread * rng.normal(size=spread.shape), phi
