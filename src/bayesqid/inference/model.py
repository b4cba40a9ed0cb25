"""The PyMC model: the hyper-parameters as named variables, the linear block in whitened coordinates.

Centred or not is decided here, once, for every coefficient by itself and for every value of its spread. The
coefficients stand in stages: those with a fixed prior, families and generations, quantizers, checkpoints and sources.
In the Laplace approximation, given the earlier stages a, the data say of a deviation u about as much as one
observation m(a) of it with error e would; so u is about Normal(r m(a), sd^2 (1 - r)) with r = sd^2 / (sd^2 + e^2),
and it is written

    u = r m(a) + sd sqrt(1 - r) w

which is the centred form where the data pin u (e << sd), the non-centred one where they do not (e >> sd), and passes
from one to the other as the sampler moves the spread: no funnel either way. Each stage is rotated by the Cholesky
factor of its Laplace covariance, so that the sampler sees a nearly standard normal block.
"""

from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pymc as pm
import pytensor.tensor as tensor
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.numba.dispatch.basic import register_funcify_default_op_cache_key

from bayesqid import laws
from bayesqid.inference import compiled, hyper, laplace
from bayesqid.inference.problem import STAGE, Block, Problem

# PyTensor gives its symbols no static types that a checker can follow
pt: Any = tensor


class _LogDensity(Op):
    """`compiled.log_density_packed` as one operation with its gradient: what PyTensor has to compile stays small.

    Inputs: constants, then what the sampler moves: spreads, offset of lam, z, x_P, shift of ln D and tau of every cell.
    Outputs: the log density and its gradients by these six.
    """

    # PyTensor keeps what it compiled on disk and finds it again by this: other source, another operation
    __props__ = ("source",)

    def __init__(self, source: str):
        self.source = source

    def make_node(self, *inputs):
        """Constants, then six vectors."""
        inputs = [pt.as_tensor_variable(x) for x in inputs]
        return Apply(self, inputs, [pt.dscalar(), *(x.type() for x in inputs[-6:])])

    def perform(self, node, inputs, outputs):
        """Evaluate by the compiled function."""
        for store, value in zip(outputs, compiled.log_density_packed(*inputs), strict=True):
            store[0] = np.asarray(value)

    def infer_shape(self, node, shapes):
        """A number, then the shapes of what the sampler moves."""
        return [(), *shapes[-6:]]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any):
        """Only the density is differentiated, and only by what the sampler moves."""
        constant = [pt.zeros_like(x, dtype="float64") for x in inputs[:-6]]
        return [*constant, *(cotangents[0] * gradient for gradient in outputs[1:])]


@register_funcify_default_op_cache_key(_LogDensity)
def _log_density_in_numba(op, **kwargs):
    return compiled.log_density_packed


log_density_op: Any = _LogDensity(compiled.SOURCE)


class Whitening(NamedTuple):
    """Of all coefficients (p,): prior mean, squared error e^2, m at the mode, deviation of the mode from the prior
    mean, and `response`, what m moves by with lam, per standard deviation of lam's prior.

    `follow` (p, q), columns of what stands before a stage; `rotation` (q, q), lower triangular within stages, of the q
    dense coefficients; `turn` of the others, which are the last stage; where each stage starts, with p at the end. And
    `lam`, where all this was taken.
    """

    mean: np.ndarray
    error2: np.ndarray
    observed: np.ndarray
    deviation: np.ndarray
    response: np.ndarray
    follow: np.ndarray
    rotation: np.ndarray
    turn: np.ndarray
    starts: np.ndarray
    lam: float


def whiten(problem: Problem) -> Whitening:
    """Whitening at the Laplace mode of the problem."""
    phi, b = laplace.settle(problem)
    found = laplace.conditional(problem, phi, b)
    p, q, sd = problem.size, problem.dense, found.sd
    dense = found.factor.covariance()[0] * np.outer(sd[:q], sd[:q])
    prior2 = hyper.coefficient_sd(problem, hyper.unpack(problem, phi).sd) ** 2
    deviation, starts = found.mode - problem.mean, []
    error2, observed = np.empty(p), np.empty(p)
    full_follow, full_rotation, turn = np.zeros((p, q)), np.zeros((q, q)), np.empty(problem.apart)
    # without this lam, which moves all coefficients together, would be the slowest of all to sample
    response, moved = np.empty(p), np.zeros(p)
    if problem.free_lam:
        step = 0.25 * np.eye(phi.size)[len(problem.spread_names) + len(problem.generations)]
        ends = [laplace.conditional(problem, phi + sign * step, b).mode for sign in (1, -1)]
        moved = (ends[0] - ends[1]) / 0.5

    def stage_of(block: Block) -> int:
        return 9 if block.start >= q else 0 if block.hyper is None else STAGE[block.by or ""]

    for _, group in groupby(problem.blocks, key=stage_of):
        blocks = tuple(group)
        start, stop = blocks[0].start, blocks[-1].where.stop
        where, before = slice(start, stop), slice(0, start)
        if start < q:
            follow = np.linalg.solve(dense[before, before], dense[before, where]).T
            given = dense[where, where] - follow @ dense[before, where]
            variance = np.diag(given)
        else:
            follow = -found.factor.cross * sd[where, None] / sd[:q]
            given = variance = (sd[where] / found.factor.root) ** 2
        # correlations can leave a coefficient as wide as its prior; then its data are worth nothing, not less
        gain = np.clip(1 - variance / prior2[where], 1e-6, 1 - 1e-9)
        width = np.sqrt(prior2[where] * (1 - gain))
        error2[where] = prior2[where] * (1 - gain) / gain
        observed[where] = deviation[where] / gain
        full_follow[where, before] = follow / gain[:, None]
        response[where] = moved[where] / gain - full_follow[where, before] @ moved[before]
        if start < q:
            full_rotation[where, where] = np.linalg.cholesky(given) / width[:, None]
        else:
            turn = np.sqrt(variance) / width
        starts.append(start)
    lam = hyper.unpack(problem, phi).lam
    return Whitening(problem.mean, error2, observed, deviation, response, full_follow, full_rotation, turn,
                     np.array([*starts, p]), lam)  # fmt: skip


def offset(problem: Problem, whitening: Whitening, lam: Any) -> Any:
    """Standard deviations of its prior that lam lies from where the whitening was taken; zero where lam is fixed."""
    return (lam - whitening.lam) / problem.law.lam[1] if isinstance(problem.law.lam, tuple) else 0.0 * lam


def coefficients(problem: Problem, whitening: Whitening, sd: np.ndarray, lam: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Coefficients b of draws: sd (..., number of spreads), lam (...) and whitened z (..., p) to (..., p)."""
    out, variance = np.empty_like(z), hyper.coefficient_sd(problem, sd) ** 2
    away = offset(problem, whitening, lam)
    for draw in np.ndindex(z.shape[:-1]):
        out[draw] = compiled.unwhiten(*whitening[:-1], variance[draw], float(away[draw]), z[draw])[0]
    return out


def build(problem: Problem, whitening: Whitening) -> pm.Model:
    """PyMC model of a problem: sd (spread), tau (generation), lam, latent (undisclosed) and the whitened block z."""
    law = problem.law
    coords = {"spread": problem.spread_names, "generation": problem.generations, "coefficient": range(problem.size),
              "undisclosed": problem.latent_names}  # fmt: skip
    with pm.Model(coords=coords) as model:

        def data(name, values) -> Any:
            # inputs, not constants: large constants would be compiled into the program, and a program without them
            # is found again in numba's cache; a known shape saves the checks of an unknown one
            return pm.Data(name, values, shape=values.shape)

        # half-normals as functions of standard normals, see inference/hyper.py: no funnel in their own logarithm
        phi_sd: Any = pm.Normal("phi_sd", dims="spread")
        sd: Any = pm.Deterministic("sd", _half_normal(phi_sd, problem.spread_scales), dims="spread")
        phi_tau = pm.Normal("phi_tau", dims="generation")
        tau: Any = pm.Deterministic("tau", _half_normal(phi_tau, law.scatter), dims="generation")
        lam: Any = pm.Normal("lam", *law.lam) if isinstance(law.lam, tuple) else law.lam
        z: Any = pm.Flat("z", dims="coefficient")

        scatter = tau[data("generation_of", problem.generation_of)]
        shift: Any = pt.zeros(len(problem.bits))
        if problem.latent_names and law.latent_tokens:
            latent: Any = pm.Normal("latent", 0, law.latent_tokens[1], dims="undisclosed")
            known = data("known_tokens", (problem.latent_of < 0).astype(float))
            shift = (1 - known) * latent[data("latent_of", np.maximum(problem.latent_of, 0))]
        arrays = [getattr(problem, name) for name in ("index", "plain", "slope", "tokens", "spread_of", "fixed_sd")]
        packed = compiled.pack([*arrays, *problem.data, *problem.tails, *whitening[:-1]])
        constants = [data(name, values) for name, values in zip(("numbers", "counts", "places"), packed, strict=True)]
        away = pt.atleast_1d(pt.as_tensor(offset(problem, whitening, lam)))
        moved = (sd, away, z, _bit_scale(data("bits", problem.bits), lam), shift, scatter)
        pm.Potential("log_density", log_density_op(*constants, *moved)[0])
    return model


def _half_normal(phi, scale):
    """Half-normal value of a standard normal, `hyper.half_normal` for symbols."""
    return scale * np.sqrt(2.0) * pt.erfcinv(0.5 * pt.erfc(phi / np.sqrt(2.0)))


def _bit_scale(bits, lam):
    """`laws.bit_scale` for a symbolic lam: it is smooth, so the quotient's gap at lam = 0 is shifted aside."""
    u = pt.log(bits / laws.PIVOT_BITS)
    near = pt.lt(pt.abs(lam), 1e-4)
    safe = pt.switch(near, 1.0, lam)
    return pt.switch(near, u + lam * u**2 / 2 + lam**2 * u**3 / 6, pt.expm1(safe * u) / safe)
