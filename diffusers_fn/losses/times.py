"""Random times and levels for training.

A time sampler returns u in [0, 1); on a noise schedule of T timesteps, t = floor(u T).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import check_positive, split_like, whole
from diffusers_fn.levels import Level

__all__ = [
    "TimeSampler",
    "antithetic_time",
    "log_normal_level",
    "logit_normal_time",
    "mode_time",
    "stratified_time",
    "uniform_time",
]

TimeSampler = Callable[[jax.Array, int], jax.Array]  # (key, batch_size) -> u [batch_size] in [0, 1)


def uniform_time(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns u [batch_size], independent and uniform in [0, 1); with [B] keys, one draw per key.

    >>> uniform_time(jax.random.key(0), 4).shape
    (4,)
    """
    return _random.draw(jax.random.uniform, key, (batch_size,), jnp.result_type(float))


def stratified_time(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns u [batch_size], one uniform draw from each of batch_size equal intervals of [0, 1), in order.

    This lowers the variance of the batch's mean loss, as the low-discrepancy sampler of Kingma et al. 2021,
    https://arxiv.org/abs/2107.00630, appendix I.1, does.

    >>> bool(jnp.all(jnp.floor(4 * stratified_time(jax.random.key(0), 4)) == jnp.arange(4)))
    True
    """
    u = uniform_time(key, batch_size)
    u = (jnp.arange(batch_size, dtype=u.dtype) + u) / batch_size
    return jnp.minimum(u, _below_one())


def antithetic_time(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns u [B], B = batch_size, with u[i + ceil(B / 2)] = 1 - u[i].

    Song et al. 2021 (DDIM), https://arxiv.org/abs/2010.02502, official code.

    >>> u = antithetic_time(jax.random.key(0), 4)
    >>> (u[:2] + u[2:]).round(5)
    Array([1., 1.], dtype=float32)
    """
    drawn = uniform_time(key, batch_size)
    u, half = whole(drawn), (batch_size + 1) // 2
    mirrored = jnp.minimum(1.0 - u[: batch_size - half], _below_one())
    return split_like(jnp.concatenate([u[:half], mirrored]), drawn)


def logit_normal_time(mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """Returns the sampler of u = sigmoid(mean + std * z), z standard normal.

    Esser et al., "Scaling Rectified Flow Transformers", 2024, https://arxiv.org/abs/2403.03206, eq. 19.

    Raises:
      ValueError: unless std is positive.

    >>> logit_normal_time()(jax.random.key(0), 4).shape
    (4,)
    """
    check_positive("std", std)

    def sampler(key: jax.Array, batch_size: int) -> jax.Array:
        z = _random.draw(jax.random.normal, key, (batch_size,), jnp.result_type(float))
        return jnp.minimum(jax.nn.sigmoid(mean + std * z), _below_one())

    return sampler


def mode_time(scale: float = 1.29) -> TimeSampler:
    """Returns the sampler of u' = 1 - u - scale (cos(pi u / 2)^2 - 1 + u) with u uniform.

    scale > 0 prefers times in the middle, scale < 0 times at both ends. Esser et al. 2024,
    https://arxiv.org/abs/2403.03206, eq. 20.

    Raises:
      ValueError: unless -1 <= scale <= 2 / (pi - 2), where u' is a monotone function of u.

    >>> mode_time()(jax.random.key(0), 4).shape
    (4,)
    """
    if not -1 <= scale <= 2 / (np.pi - 2):
        raise ValueError(f"scale must lie in [-1, {2 / (np.pi - 2):.4f}]; got {scale}")

    def sampler(key: jax.Array, batch_size: int) -> jax.Array:
        u = uniform_time(key, batch_size)
        shifted = 1.0 - u - scale * (jnp.cos(0.5 * np.pi * u) ** 2 - 1.0 + u)
        return jnp.clip(shifted, 0.0, _below_one())

    return sampler


def log_normal_level(
    at: Callable[[jax.Array], Level], mean: float = -1.2, std: float = 1.2
) -> Callable[[jax.Array, int], Level]:
    """Returns the function (key, B) -> Level[B] that draws log(sigma / alpha) = mean + std * z, z standard normal.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1 (P_mean and P_std).

    Args:
      at: log SNR -> Level, for instance `functools.partial(processes.at_log_snr, processes.edm())`.
      mean: mean of log(sigma / alpha).
      std: standard deviation of log(sigma / alpha).

    Raises:
      ValueError: unless std is positive.

    >>> import functools
    >>> from diffusers_fn import processes
    >>> draw = log_normal_level(functools.partial(processes.at_log_snr, processes.edm()))
    >>> draw(jax.random.key(0), 4).sigma.shape
    (4,)
    """
    check_positive("std", std)

    def draw(key: jax.Array, batch_size: int) -> Level:
        z = _random.draw(jax.random.normal, key, (batch_size,), jnp.result_type(float))
        return at(-2.0 * (mean + std * z))

    return draw


def _below_one() -> float:
    """Returns the largest float below 1: u must not be rounded to 1, or t = floor(u T) would be T."""
    return float(1.0 - jnp.finfo(jnp.result_type(float)).epsneg)
