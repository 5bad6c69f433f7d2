"""Exact denoisers for data of known distribution, so that samplers can be tested against the truth.

For x = alpha x0 + sigma eps they return E[x0 | x] and E[eps | x] in closed form; the Gaussian ones each from its own
formula, so that neither loses digits where alpha or sigma is small. They take conditioning and ignore it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction


def gaussian(mean: Any, std: Any) -> Denoiser:
    """Returns the exact denoiser of data with independent N(mean, std^2) entries.

        E[x0 | x] = mean + alpha std^2 / var (x - alpha mean),   E[eps | x] = sigma / var (x - alpha mean)

    with var = alpha^2 std^2 + sigma^2.

    Args:
      mean: a number, or an array of an example's shape.
      std: as mean.

    >>> gaussian(0.0, 1.0)(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0)).x0
    Array([[0.8, 0.8]], dtype=float32)
    """

    def denoise(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        mu, sd = _example(mean, x), _example(std, x)
        residual = (x - alpha * mu) / ((alpha * sd) ** 2 + sigma**2)
        return Prediction(mu + alpha * sd**2 * residual, sigma * residual)

    return denoise


def mixture(weights: Any, means: Any, stds: Any, *, independent: bool = False) -> Denoiser:
    """Returns the exact denoiser of a mixture of K Gaussians with diagonal covariances.

        E[x0 | x] = sum_k r_k(x) E[x0 | x, k],   r_k proportional to w_k N(x; alpha mean_k, alpha^2 std_k^2 + sigma^2)

    Args:
      weights: [K], positive; normalised here.
      means: [K], or [K, ...] with an example's shape.
      stds: as means.
      independent: False for one mixture over whole examples; True where each entry of an example follows a mixture
        of its own, independent of the others.

    Raises:
      ValueError: unless weights is a vector and means and stds have K entries.

    >>> denoise = mixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1])
    >>> denoise(jnp.full((1, 2), 0.8), Level(0.8, 0.6, 0.0)).x0.round(2)
    Array([[1., 1.]], dtype=float32)
    """
    log_weights, means, stds = check_components(weights, means, stds)

    def denoise(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        alpha, sigma = expand(level.alpha, x[..., None]), expand(level.sigma, x[..., None])
        mu, sd = components(means, x), components(stds, x)  # [1, ..., K]
        var = (alpha * sd) ** 2 + sigma**2
        residual = (x[..., None] - alpha * mu) / var
        log_density = -0.5 * residual**2 * var - 0.5 * jnp.log(var)
        if not independent:
            log_density = jnp.sum(log_density, axis=tuple(range(1, x.ndim)), keepdims=True)
        log_w = log_weights.astype(x.dtype).reshape((1,) * x.ndim + (-1,))
        r = jax.nn.softmax(log_w + log_density, axis=-1)
        x0 = jnp.sum(r * (mu + alpha * sd**2 * residual), axis=-1)
        return Prediction(x0, jnp.sum(r * sigma * residual, axis=-1))

    return denoise


def finite(data: Any) -> Denoiser:
    """Returns the exact denoiser of the uniform distribution over finitely many examples.

        E[x0 | x] = sum_m softmax_m(-|x - alpha data_m|^2 / (2 sigma^2)) data_m

    It is what a network of unlimited capacity learns from the data set (Karras et al. 2022, eq. 57,
    https://arxiv.org/abs/2206.00364). Needs sigma > 0.

    Args:
      data: [M, ...].

    >>> data = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
    >>> finite(data)(jnp.array([[0.8, 0.0]]), Level(0.8, 0.1, 0.0)).x0
    Array([[1., 0.]], dtype=float32)
    """
    data = jnp.asarray(data)

    def denoise(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        if data.shape[1:] != x.shape[1:]:
            raise ValueError(f"x's examples must have the data's shape {data.shape[1:]}; got {x.shape[1:]}")
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        # Differences first, then squares: |x|^2 - 2 x.d + |d|^2 would lose the digits that tell near twins apart.
        residual = (x[:, None] - expand(level.alpha, x[:, None]) * data.astype(x.dtype)[None]) / expand(
            level.sigma, x[:, None]
        )
        weights = jax.nn.softmax(-0.5 * jnp.sum(residual.reshape(*residual.shape[:2], -1) ** 2, axis=-1), axis=-1)
        x0 = jnp.tensordot(weights, data.astype(x.dtype), axes=1, precision="highest")
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def _example(value: Any, x: jax.Array) -> jax.Array:
    """A number, or an array of an example's shape, shaped to combine with x [B, ...]."""
    value = jnp.asarray(value, x.dtype)
    if value.shape not in ((), x.shape[1:]):
        raise ValueError(f"mean and std must be numbers or have an example's shape {x.shape[1:]}; got {value.shape}")
    return value if value.ndim == 0 else value[None]


def check_components(weights: Any, means: Any, stds: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (log of the normalised weights, means, stds) of a mixture, or raises ValueError where shapes disagree.

    >>> check_components([1.0, 1.0], [0.0], [1.0])
    Traceback (most recent call last):
    ...
    ValueError: weights must be [K], means and stds [K] or [K, ...]; got (2,), (1,), (1,)
    """
    log_weights, means, stds = jnp.log(jnp.asarray(weights)), jnp.asarray(means), jnp.asarray(stds)
    means, stds = (a.astype(jnp.result_type(float, a)) for a in (means, stds))
    if log_weights.ndim != 1 or means.shape[:1] != log_weights.shape or stds.shape[:1] != log_weights.shape:
        raise ValueError(
            f"weights must be [K], means and stds [K] or [K, ...]; got {log_weights.shape}, {means.shape}, {stds.shape}"
        )
    return jax.nn.log_softmax(log_weights), means, stds


def components(values: jax.Array, x: jax.Array) -> jax.Array:
    """Returns [K] or [K, ...] as [1, ..., K], to combine with x[..., None].

    >>> components(jnp.array([1.0, 2.0]), jnp.zeros((5, 3))).shape
    (1, 1, 2)
    """
    values = jnp.moveaxis(values.astype(x.dtype), 0, -1)
    if values.ndim == 1:
        return values.reshape((1,) * x.ndim + (-1,))
    return values[None]
