"""The terms of the variational bound: the divergence of two Gaussians, and a Gaussian's probability of a grey level."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from diffusers_fn._types import ArrayLike

__all__ = ["check_num_levels", "discretized_gaussian_log_likelihood", "normal_kl"]


def normal_kl(mean1: ArrayLike, log_variance1: ArrayLike, mean2: ArrayLike, log_variance2: ArrayLike) -> jax.Array:
    """Returns KL(N(mean1, var1) || N(mean2, var2)) in nats, for each entry.

        (log var2 - log var1 + var1 / var2 + (mean1 - mean2)^2 / var2 - 1) / 2

    Kullback & Leibler, "On Information and Sufficiency", 1951; the terms of Ho et al. 2020,
    https://arxiv.org/abs/2006.11239, eq. 5.

    Args: arrays that broadcast to one shape, or numbers.

    >>> float(normal_kl(1.0, 0.0, 0.0, 0.0))
    0.5
    """
    log_ratio = jnp.asarray(log_variance1 - log_variance2)
    # For nearly equal variances exp(r) - 1 - r cancels; expm1 keeps the digits.
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + (mean1 - mean2) ** 2 * jnp.exp(-log_variance2))


def discretized_gaussian_log_likelihood(
    x: jax.Array, mean: jax.Array, log_std: jax.Array, *, num_levels: ArrayLike = 256, approximate: bool = False
) -> jax.Array:
    """Returns log P(x) in nats for each entry: the probability under N(mean, std^2) of the bin around the grey level x.

    Grey levels are evenly spaced from -1 to 1, and bins have the width d = 2 / (num_levels - 1); the first and the last
    bin extend to infinity. Ho et al., "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239, eq. 13:

        P(x) = Phi((x + d/2 - mean) / std) - Phi((x - d/2 - mean) / std)

    Args:
      x: [B, ...] data in [-1, 1]; values within d / 8 of an end belong to the last bin there.
      mean: [B, ...].
      log_std: [B, ...], the logarithm of the standard deviation.
      num_levels: the number of grey levels, 256 for 8-bit pixels; a number, or [] traced.
      approximate: True reproduces the code of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672): Phi is
        approximated by a tanh (Page 1977) to 2e-4, and probabilities are at least 1e-12.

    Raises:
      ValueError: unless num_levels (not traced) is at least 2 and the shapes agree.

    >>> x = jnp.array([0.5])
    >>> probability = jnp.exp(discretized_gaussian_log_likelihood(x, x, jnp.log(jnp.array([0.25])), num_levels=5))
    >>> probability.round(4)  # half a bin is one standard deviation
    Array([0.6827], dtype=float32)
    """
    check_num_levels(num_levels)
    if not x.shape == mean.shape == log_std.shape:
        raise ValueError(f"x, mean and log_std must have one shape; got {x.shape}, {mean.shape}, {log_std.shape}")
    half = 1.0 / (num_levels - 1.0)
    inverse_std = jnp.exp(-log_std)
    low, high = (x - mean - half) * inverse_std, (x - mean + half) * inverse_std
    first, last = x < -1.0 + half / 4, x > 1.0 - half / 4
    if approximate:
        floored = lambda p: jnp.log(jnp.maximum(p, 1e-12))  # noqa: E731
        below, above = _tanh_ndtr(low), _tanh_ndtr(high)
        return jnp.where(first, floored(above), jnp.where(last, floored(1.0 - below), floored(above - below)))
    # Phi(high) - Phi(low) from the tails on the side where they are small, whose logarithms are accurate far out.
    upper = low + high > 0
    far, near = log_ndtr(jnp.where(upper, -high, low)), log_ndtr(jnp.where(upper, -low, high))
    inside = near + jnp.log(-jnp.expm1(-jnp.maximum(near - far, jnp.finfo(near.dtype).eps)))
    return jnp.where(first, log_ndtr(high), jnp.where(last, log_ndtr(-low), inside))


def check_num_levels(num_levels: ArrayLike) -> None:
    """Raises ValueError if a Python number of grey levels is below 2.

    >>> check_num_levels(1)
    Traceback (most recent call last):
    ...
    ValueError: num_levels, the number of grey levels, must be at least 2; got 1
    """
    if isinstance(num_levels, (int, float)) and num_levels < 2:
        raise ValueError(f"num_levels, the number of grey levels, must be at least 2; got {num_levels}")


def _tanh_ndtr(z: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.tanh((2.0 / jnp.pi) ** 0.5 * (z + 0.044715 * z**3)))
