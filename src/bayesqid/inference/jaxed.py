"""The likelihood for JAX: the functions of `likelihood` as they stand there, evaluated with jax.numpy."""

from types import FunctionType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from pytensor.link.jax.dispatch.basic import jax_funcify

from bayesqid import likelihood
from bayesqid.inference import model


def _jaxed() -> dict[str, Any]:
    # the loop over scalars in log_normal_cdf is for numba
    made: dict[str, Any] = {"np": jnp, "log_normal_cdf": norm.logcdf}
    for name in ("censored", "marginal", "closed", "_component", "density"):
        made[name] = FunctionType(getattr(likelihood, name).__code__, {**vars(likelihood), **made}, name)
    return made


density: Any = _jaxed()["density"]


def _log_density_in_jax(op, **kwargs):
    """`compiled.log_density_packed` in array expressions; JAX differentiates it by itself."""

    def log_density(numbers, counts, places, sd, offset, z, x_bits, shift, tau):
        # the model's constants; as arrays of JAX their parts would be symbols while it traces, and say no sizes
        numbers, counts, places = (np.asarray(values) for values in (numbers, counts, places))
        at = [tuple(map(int, row)) for row in places]

        def take(k, whole=False):
            start, size, columns = at[k]
            values = (counts if whole else numbers)[start : start + size]
            return values.reshape(-1, columns) if columns else values

        index, plain, slope, tokens, spread_of, fixed_sd = (take(k, k in (0, 4)) for k in range(6))
        data = likelihood.Data(*(take(k, k in (6, 11, 17, 19)) for k in range(6, 20)))
        whitening = [take(k) for k in range(22, 29)]
        mean, error2, observed, deviation, response, follow, rotation = whitening
        turn, starts = take(29), [int(value) for value in take(30, True)]
        variance = jnp.concatenate([sd, fixed_sd])[spread_of] ** 2
        gain = variance / (variance + error2)
        width, u = jnp.sqrt(gain * error2), jnp.zeros(z.size)
        for start, stop in zip(starts, starts[1:], strict=False):
            rows = slice(start, stop)
            expected = observed[rows] + offset[0] * response[rows]
            expected = expected + follow[rows, :start] @ (u[:start] - deviation[:start])
            rotated = rotation[rows, rows] @ z[rows] if start < rotation.shape[0] else turn * z[rows]
            u = u.at[rows].set(gain[rows] * expected + width[rows] * rotated)
        weights = plain - x_bits[:, None] * slope
        if tokens.shape[0]:
            weights = weights + shift[:, None] * tokens
        eta = (weights * (mean + u)[index]).sum(axis=1)
        value = density(data, eta, tau, take(20), take(21))[0].sum()
        prior = (0.5 * jnp.log1p(-gain) - 0.5 * u**2 / variance).sum()
        return (value + prior, *(jnp.zeros_like(x) for x in (sd, offset, z, x_bits, shift, tau)))

    return log_density


_register: Any = jax_funcify
_register.register(model._LogDensity)(_log_density_in_jax)
