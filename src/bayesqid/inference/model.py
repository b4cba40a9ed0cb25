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

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numba
import numpy as np
import pymc as pm
import pytensor.tensor as tensor
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.numba.dispatch.basic import register_funcify_default_op_cache_key

from bayesqid import laws, likelihood
from bayesqid.inference import hyper, laplace
from bayesqid.inference.problem import Problem

# PyTensor gives its symbols no static types that a checker can follow
pt: Any = tensor
_compile: Any = numba.njit(nogil=True, fastmath=False, error_model="numpy")
_marginal = _compile(likelihood.marginal)


class _Marginal(Op):
    """likelihood.marginal as a PyTensor operation: (data..., eta, tau) -> log density and its derivatives."""

    __props__ = ()

    def make_node(self, *inputs):
        """Seven float vectors in, four out."""
        return Apply(self, [pt.as_tensor_variable(x) for x in inputs], [pt.dvector() for _ in range(4)])

    def perform(self, node, inputs, outputs):
        """Evaluate in numpy."""
        for store, value in zip(outputs, likelihood.marginal(*inputs), strict=True):
            store[0] = value

    def infer_shape(self, node, shapes):
        """All outputs are as long as eta."""
        return [shapes[5]] * 4

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any):
        """Only the log density is differentiated, and only in eta and tau."""
        zeros = [pt.zeros_like(x) for x in inputs[:5]]
        return [*zeros, cotangents[0] * outputs[1], cotangents[0] * outputs[3]]


@register_funcify_default_op_cache_key(_Marginal)
def _marginal_in_numba(op, **kwargs):
    @_compile
    def call(y, s, headroom, anchor, precision, eta, tau):
        return _marginal(y, s, headroom, anchor, precision, eta, tau)

    return call


@_compile
def _multiply(matrix, vector):
    out = np.zeros(matrix.shape[0])
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            out[i] += matrix[i, j] * vector[j]
    return out


class _Product(Op):
    """Matrix times vector. PyTensor's own is compiled anew for every use, about ten seconds each; this one once."""

    __props__ = ()

    def make_node(self, matrix, vector):
        """A matrix of constants and a vector."""
        return Apply(self, [pt.as_tensor_variable(matrix), pt.as_tensor_variable(vector)], [pt.dvector()])

    def perform(self, node, inputs, outputs):
        """Evaluate in numpy."""
        outputs[0][0] = inputs[0] @ inputs[1]

    def infer_shape(self, node, shapes):
        """As long as the matrix has rows."""
        return [(shapes[0][0],)]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any):
        """Only the vector is differentiated."""
        return [pt.zeros_like(inputs[0]), product_op(inputs[0].T, cotangents[0])]


@register_funcify_default_op_cache_key(_Product)
def _product_in_numba(op, **kwargs):
    @_compile
    def product(matrix, vector):
        return _multiply(matrix, vector)

    return product


marginal_op: Any = _Marginal()
product_op: Any = _Product()
# coordinate -> stage: what confounds with the levels of an earlier stage stands in a later one
STAGE = {"family": 1, "generation": 1, "quantizer": 2, "checkpoint": 3, "source_method": 3}


@dataclass(frozen=True)
class Stage:
    """Coefficients start:stop of one stage: m(a) = observed + follow (a - mode of a) and the rotation of w."""

    start: int
    stop: int
    observed: np.ndarray
    follow: np.ndarray
    rotation: np.ndarray


@dataclass(frozen=True)
class Whitening:
    """Deviation of the mode from the prior mean and squared errors e^2 of all coefficients, and the stages."""

    deviation: np.ndarray
    error2: np.ndarray
    stages: tuple[Stage, ...]


def whiten(problem: Problem) -> Whitening:
    """Whitening at the Laplace mode of the problem."""
    phi, b = laplace.settle(problem)
    found = laplace.conditional(problem, phi, b, laplace.pairs(problem))
    inverse = np.linalg.inv(found.factor)
    covariance = inverse.T @ inverse
    prior2 = hyper.coefficient_sd(problem, hyper.unpack(problem, phi).sd) ** 2
    deviation = found.mode - problem.prior_mean()
    error2, stages = np.empty(problem.size), []
    for _, group in groupby(problem.blocks, key=lambda block: 0 if block.hyper is None else STAGE[block.by or ""]):
        blocks = tuple(group)
        start, stop = blocks[0].start, blocks[-1].where.stop
        where, before = slice(start, stop), slice(0, start)
        follow = np.linalg.solve(covariance[before, before], covariance[before, where]).T
        given = covariance[where, where] - follow @ covariance[before, where]
        # correlations can leave a coefficient as wide as its prior; then its data are worth nothing, not less
        gain = np.clip(1 - np.diag(given) / prior2[where], 1e-6, 1 - 1e-9)
        width = np.sqrt(prior2[where] * (1 - gain))
        error2[where] = prior2[where] * (1 - gain) / gain
        rotation = np.linalg.cholesky(given) / width[:, None]
        stages.append(Stage(start, stop, deviation[where] / gain, follow / gain[:, None], rotation))
    return Whitening(deviation, error2, tuple(stages))


def build(problem: Problem, whitening: Whitening) -> pm.Model:
    """PyMC model of a problem; free variables: sd (spread), tau (generation), lam and the whitened block z."""
    law, cells = problem.law, problem.cells
    qid, error, headroom = (cells[name].to_numpy() for name in ("qid", "qid_se", "headroom"))
    m, d = problem.measured, problem.diverged
    coords = {"spread": problem.spread_names, "generation": problem.generations, "coefficient": range(problem.size)}
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
        # every coefficient's spread by one gather: the free ones, then those that the prior fixes
        fixed_sd = [block.sd for block in problem.blocks if block.hyper is None]
        spread_of, fixed = [], 0
        for block in problem.blocks:
            spread_of += [len(problem.spread_names) + fixed if block.hyper is None else block.hyper] * block.count
            fixed += block.hyper is None
        variance = pt.concatenate([sd, pt.as_tensor(np.array(fixed_sd))])[data("spread_of", np.array(spread_of))] ** 2
        gain = variance / (variance + data("error2", whitening.error2))
        width = pt.sqrt(variance * (1 - gain))
        parts: list = []
        for number, stage in enumerate(whitening.stages):
            where = slice(stage.start, stage.stop)
            observed = data(f"observed_{number}", stage.observed)
            if parts:
                before = pt.concatenate(parts) - data(f"before_{number}", whitening.deviation[: stage.start])
                observed = observed + product_op(data(f"follow_{number}", stage.follow), before)
            rotated = product_op(data(f"rotation_{number}", stage.rotation), z[where])
            parts.append(gain[where] * observed + width[where] * rotated)
        u = pt.concatenate(parts)
        pm.Potential("prior_of_block", (0.5 * pt.log1p(-gain) - 0.5 * u**2 / variance).sum())
        b: Any = pm.Deterministic("b", data("prior_mean", problem.prior_mean()) + u, dims="coefficient")

        # measured cells first, diverged ones after them: two contiguous pieces
        order = np.concatenate([m.nonzero()[0], d.nonzero()[0]])
        touched = b[data("index", problem.index[order])]
        x_bits = _bit_scale(data("bits", cells["effective_bits"].to_numpy()[order]), lam)
        weights = data("plain", problem.plain[order]) - x_bits[:, None] * data("slope", problem.slope[order])
        eta = (weights * touched).sum(axis=1)
        scatter = tau[data("generation_of", problem.generation_of[order])]
        seen = int(m.sum())
        columns = (("y", qid[m]), ("s", error[m]), ("headroom", headroom[m]),
                   ("anchor", problem.anchor), ("anchor_precision", problem.anchor_precision))  # fmt: skip
        inputs = [data(name, values) for name, values in columns]
        pm.Potential("measured", marginal_op(*inputs, eta[:seen], scatter[:seen])[0].sum())
        if d.any():
            beyond = (eta[seen:] - data("point", problem.point)) / scatter[seen:]
            log_tail: Any = pm.logcdf(pm.Normal.dist(0, 1), beyond)
            pm.Potential("diverged", log_tail.sum())
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
