"""The likelihood compiled by numba, and the other inner loops of inference."""

from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np

from bayesqid import files, likelihood

# tells one version of what is compiled here from another
SOURCE = files.sha256_bytes(Path(__file__).read_bytes() + Path(likelihood.__file__).read_bytes())

# errors of the machine's arithmetic as numpy has them; threads of several chains at once
compiled: Any = numba.njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})


def _likelihood() -> dict[str, Any]:
    """The functions of `likelihood` as they stand there, each calling the compiled others."""
    made: dict[str, Any] = {}
    for name in ("log_normal_cdf", "censored", "marginal", "closed", "_component", "density"):
        code = getattr(likelihood, name).__code__
        made[name] = compiled(FunctionType(code, {**vars(likelihood), **made}, name))
    return made


density: Any = _likelihood()["density"]


@compiled
def multiply(weights, index, b):
    """sum_r weights_ir b[index_ir], shape (n,)."""
    out = np.empty(index.shape[0])
    for i in range(index.shape[0]):
        total = 0.0
        for r in range(index.shape[1]):
            total += weights[i, r] * b[index[i, r]]
        out[i] = total
    return out


@compiled
def gather(weights, index, values, size):
    """sum_i values_i x_i of the rows x_i with `weights` at `index`, shape (size,)."""
    out = np.zeros(size)
    for i in range(index.shape[0]):
        for r in range(index.shape[1]):
            out[index[i, r]] += values[i] * weights[i, r]
    return out


@compiled
def precision(weights, index, curvature, dense, apart):
    """sum_i curvature_i x_i x_i' of the rows x_i with `weights` at `index`; `Problem` has the order of coefficients.

    Returns the lower triangle of (dense, dense), (apart, dense), and the diagonal (apart,).
    """
    block, cross, own = np.zeros((dense, dense)), np.zeros((apart, dense)), np.zeros(apart)
    last = index.shape[1] - 1 if apart > 0 else index.shape[1]
    for i in range(index.shape[0]):
        for r in range(last):
            value = curvature[i] * weights[i, r]
            if value != 0.0:
                row = block[index[i, r]]
                for q in range(r + 1):
                    row[index[i, q]] += value * weights[i, q]
        if apart > 0:
            value, row = curvature[i] * weights[i, last], cross[index[i, last] - dense]
            own[index[i, last] - dense] += value * weights[i, last]
            for q in range(last):
                row[index[i, q]] += value * weights[i, q]
    return block, cross, own


@compiled
def quadratic(weights, index, block, cross, own):
    """x_i' matrix x_i of the rows x_i with `weights` at `index`, shape (n,); the matrix in parts as of `precision`.

    Here `block` is the full symmetric matrix.
    """
    out, dense = np.empty(index.shape[0]), block.shape[0]
    last = index.shape[1] - 1 if own.size > 0 else index.shape[1]
    for i in range(index.shape[0]):
        total = 0.0
        for r in range(last):
            if weights[i, r] != 0.0:
                for q in range(last):
                    total += weights[i, r] * weights[i, q] * block[index[i, r], index[i, q]]
        if own.size > 0:
            c = index[i, last] - dense
            total += weights[i, last] ** 2 * own[c]
            for q in range(last):
                total += 2.0 * weights[i, last] * weights[i, q] * cross[c, index[i, q]]
        out[i] = total
    return out


@compiled
def unwhiten(mean, error2, observed, deviation, response, follow, rotation, turn, starts, variance, offset, z):
    """Coefficients b of whitened coordinates z, all (p,), and what their gradient needs; see `model.Whitening`.

    By stages k from starts[k]: m = observed + offset response + follow (u - deviation) of what stands before the stage,
    and u = gain m + width rotation z with gain = variance / (variance + error2), width^2 = gain error2; b = mean + u.
    The rotation of the coefficients that stand apart is the diagonal `turn`.
    """
    dense = rotation.shape[0]
    u, expected, rotated = np.zeros(z.size), np.zeros(z.size), np.zeros(z.size)
    gain = variance / (variance + error2)
    width = np.sqrt(gain * error2)
    for k in range(starts.size - 1):
        for i in range(starts[k], starts[k + 1]):
            total, turned = observed[i] + offset * response[i], 0.0
            for j in range(starts[k]):
                total += follow[i, j] * (u[j] - deviation[j])
            if i < dense:
                for j in range(starts[k], i + 1):
                    turned += rotation[i, j] * z[j]
            else:
                turned = turn[i - dense] * z[i]
            expected[i], rotated[i] = total, turned
        for i in range(starts[k], starts[k + 1]):
            u[i] = gain[i] * expected[i] + width[i] * rotated[i]
    return mean + u, u, expected, rotated, gain, width


@compiled
def log_density(
    index, plain, slope, tokens, spread_of, fixed_sd, sharp, centre, spread, skew, log_mass, blunt, y, s, headroom,
    anchor, anchor_precision, diverged, point, back, scales, shares,
    mean, error2, observed, deviation, response, follow, rotation, turn, starts,
    sd, offset, z, x_bits, shift, tau,
):  # fmt: skip
    """Log density of the data and of the whitened coefficients, and its gradients by sd, offset, z, x_bits,
    shift and tau.

    `sd` holds the free spreads, `offset` a number as a vector of one, `z` is (p,), x_bits, shift of ln D and tau are by
    cell (n,). The other arguments are the fields of `Problem`, `likelihood.Data`, the scatter's normals and
    `model.Whitening`. Up to a constant it is
    sum ln p(y) + sum ln Normal(u; 0, variance) + ln |du / dz|.
    """
    data = likelihood.Data(sharp, centre, spread, skew, log_mass, blunt, y, s, headroom, anchor, anchor_precision,
                           diverged, point, back)  # fmt: skip
    all_sd = np.concatenate((sd, fixed_sd))[spread_of]
    variance = all_sd**2
    b, u, expected, rotated, gain, width = unwhiten(
        mean, error2, observed, deviation, response, follow, rotation, turn, starts, variance, offset[0], z
    )
    # no rows of tokens: none are latent
    weights, latent = np.empty(plain.shape), tokens.shape[0] > 0
    by_bits, by_shift, eta = np.zeros(x_bits.size), np.zeros(x_bits.size), np.zeros(x_bits.size)
    for i in range(index.shape[0]):
        flat, steep = 0.0, 0.0
        for r in range(index.shape[1]):
            value = b[index[i, r]]
            weights[i, r] = plain[i, r] - x_bits[i] * slope[i, r]
            flat += plain[i, r] * value
            steep += slope[i, r] * value
        by_bits[i], eta[i] = -steep, flat - x_bits[i] * steep
        if latent:
            for r in range(index.shape[1]):
                weights[i, r] += shift[i] * tokens[i, r]
                by_shift[i] += tokens[i, r] * b[index[i, r]]
            eta[i] += shift[i] * by_shift[i]
    log_likelihood, first, _, by_tau = density(data, eta, tau, scales, shares)
    total = log_likelihood.sum() + (0.5 * np.log1p(-gain) - 0.5 * u**2 / variance).sum()

    by_u = gather(weights, index, first, b.size) - u / variance
    by_z, by_offset, dense = np.zeros(z.size), 0.0, rotation.shape[0]
    for k in range(starts.size - 2, -1, -1):
        for i in range(starts[k], starts[k + 1]):
            pull, push = gain[i] * by_u[i], width[i] * by_u[i]
            by_offset += pull * response[i]
            for j in range(starts[k]):
                by_u[j] += follow[i, j] * pull
            if i < dense:
                for j in range(starts[k], i + 1):
                    by_z[j] += rotation[i, j] * push
            else:
                by_z[i] = turn[i - dense] * push
    rest = error2 / (variance + error2)
    by_gain = by_u * expected - 0.5 / (1.0 - gain)
    by_variance = by_gain * rest / (variance + error2) + by_u * rotated * rest**2 / (2.0 * width)
    by_all = 2.0 * all_sd * (by_variance + 0.5 * (u / variance) ** 2)
    by_sd = np.zeros(sd.size + fixed_sd.size)
    for j in range(all_sd.size):
        by_sd[spread_of[j]] += by_all[j]
    return np.asarray(total), by_sd[: sd.size], np.array([by_offset]), by_z, first * by_bits, first * by_shift, by_tau


def pack(constants: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All arrays in two vectors, numbers and whole numbers, and where each starts, its length and its columns.

    The sampler's program takes a fifth of a second of compiling for every array that it is given.
    """
    numbers, counts, places = [np.empty(0)], [np.empty(0, dtype=np.int64)], []
    for values in constants:
        store = counts if values.dtype.kind in "iu" else numbers
        places.append((sum(part.size for part in store), values.size, values.shape[1] if values.ndim == 2 else 0))
        store.append(np.ascontiguousarray(values).ravel())
    return np.concatenate(numbers), np.concatenate(counts).astype(np.int64), np.array(places)


@compiled
def _vector(store, places, k):
    return store[places[k, 0] : places[k, 0] + places[k, 1]]


@compiled
def _matrix(store, places, k):
    columns = max(places[k, 2], 1)
    return _vector(store, places, k).reshape((places[k, 1] // columns, columns))


@compiled
def log_density_packed(f, i, at, sd, offset, z, x_bits, shift, tau):
    """`log_density` with its constants, in their order, from `pack`."""
    return log_density(
        _matrix(i, at, 0), _matrix(f, at, 1), _matrix(f, at, 2), _matrix(f, at, 3), _vector(i, at, 4),
        _vector(f, at, 5), _vector(i, at, 6), _vector(f, at, 7), _vector(f, at, 8), _vector(f, at, 9),
        _vector(f, at, 10), _vector(i, at, 11), _vector(f, at, 12), _vector(f, at, 13), _vector(f, at, 14),
        _vector(f, at, 15), _vector(f, at, 16), _vector(i, at, 17), _vector(f, at, 18), _vector(i, at, 19),
        _vector(f, at, 20), _vector(f, at, 21), _vector(f, at, 22), _vector(f, at, 23), _vector(f, at, 24),
        _vector(f, at, 25), _vector(f, at, 26), _matrix(f, at, 27), _matrix(f, at, 28), _vector(f, at, 29),
        _vector(i, at, 30), sd, offset, z, x_bits, shift, tau,
    )  # fmt: skip
