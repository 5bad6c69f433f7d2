"""Dequantisation: bounds on the probability of discrete data, such as pixels, from a density of continuous data.

A density alone does not bound the probability of a grey level v, since it can be arbitrarily large near v. With noise
of known density q it does:

    log P(v) >= E_q(x | v)[log p(x) + log P(v | x) - log q(x | v)]

In `uniform_dequantize` q is uniform over the bin of the level, in `noise_dequantize` it is Gaussian noise of a noise
level of the model.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, concrete, expand, working_dtype
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level, add_noise, check_level
from diffusers_fn.likelihood.discretized import check_num_levels, discretized_gaussian_log_likelihood

__all__ = ["bits_per_dim", "noise_dequantize", "uniform_dequantize"]


def uniform_dequantize(key: jax.Array, x0: jax.Array, num_levels: int = 256) -> jax.Array:
    """Returns x [B, ...], uniform in the bin around each grey level, whose width is the distance d between levels.

        x = x0 + d (u - 1/2),   d = 2 / (num_levels - 1),   log P(x0) >= E[log p(x)] + D log(d)

    Theis et al., "A Note on the Evaluation of Generative Models", 2016, https://arxiv.org/abs/1511.01844, section 3.1;
    the last term, for D entries, is the offset of `bits_per_dim`. Each bin is centred on its level, so x has the mean
    x0 and lies in [-1 - d / 2, 1 + d / 2]. The bound is tight for a density that is smooth over a bin, and loose for a
    model that has learned the levels, whose density between them is low; then use `noise_dequantize`. Both bounds hold,
    so the smaller number of bits may be reported.

    Args:
      key: one key, or [B] keys.
      x0: [B, ...] data on num_levels evenly spaced levels in [-1, 1], or integers 0 ... num_levels - 1.
      num_levels: the number of grey levels, at least 2; 256 for 8-bit pixels.

    Raises:
      ValueError: if num_levels is below 2, x0 is neither of floating nor of integer type, or values (not traced) lie
        outside the levels.

    >>> x = uniform_dequantize(jax.random.key(0), jnp.zeros((1, 1000), jnp.uint8), num_levels=3)
    >>> bool(jnp.all(abs(x + 1.0) <= 0.5))
    True
    """
    check_num_levels(num_levels)
    x0 = jnp.asarray(x0)
    if jnp.issubdtype(x0.dtype, jnp.integer):
        levels = concrete(x0)
        if levels is not None and not np.all((levels >= 0) & (levels < num_levels)):
            raise ValueError(
                f"grey levels must lie in 0 ... {num_levels - 1}; got {levels.min()} to {levels.max()}: pass num_levels"
            )
        x0 = x0.astype(jnp.result_type(float)) * (2.0 / (num_levels - 1)) - 1.0
    check_data(x0=x0)
    _check_range(x0, num_levels)
    x0 = x0.astype(working_dtype(x0))
    u = _random.draw(jax.random.uniform, key, x0.shape, x0.dtype)
    return x0 + (u - 0.5) * (2.0 / (num_levels - 1))


def noise_dequantize(key: jax.Array, x0: jax.Array, level: Level, num_levels: int = 256) -> tuple[jax.Array, jax.Array]:
    """Returns (x [B, ...], correction [B]): x0 noised to a level, and log P(x0 | x) - log q(x | x0) in nats.

        x = alpha x0 + sigma eps,   log P(x0) >= E[log p(x) + correction],   p the density at that level

    The bound is tight for a model that has learned the grey levels; for a density that is smooth on the scale of sigma
    it is loose by the entropy of the noise. It is the bound of Kingma et al., "Variational Diffusion Models", 2021,
    https://arxiv.org/abs/2107.00630, with the exact density of the flow in place of the diffusion loss.
    P(x0 | x) is the discretised Gaussian with mean x / alpha and standard deviation sigma / alpha; it is 1 if that is
    much narrower than a bin.

    Args:
      key: one key, or [B] keys.
      x0: [B, ...] data on num_levels evenly spaced levels in [-1, 1].
      level: S = [] or [B], with alpha > 0 and sigma > 0: the last level of the plan.
      num_levels: as for `uniform_dequantize`.

    Raises:
      ValueError: if num_levels is below 2, shapes do not agree, or values (not traced) lie outside [-1, 1].

    >>> level = Level(1.0, 0.01, 0.0)
    >>> x, correction = noise_dequantize(jax.random.key(0), jnp.zeros((1, 100)), level, num_levels=3)
    >>> entropy = 50 * jnp.log(2 * jnp.pi * jnp.e * level.sigma**2)  # the mean of the correction
    >>> bool(abs(correction[0] / entropy - 1.0) < 0.1)
    True
    """
    check_data(x0=x0)
    check_num_levels(num_levels)
    _check_range(x0, num_levels)
    check_level(level, x0)
    x0 = x0.astype(working_dtype(x0))
    eps = _random.normal(key, x0)
    x = add_noise(x0, eps, level)
    log_q = -0.5 * eps**2 - jnp.log(expand(level.sigma, x0)) - 0.5 * math.log(2 * math.pi)
    mean = x / expand(level.alpha, x)
    log_std = jnp.broadcast_to(jnp.log(expand(level.sigma, x) / expand(level.alpha, x)), x.shape)
    log_p = discretized_gaussian_log_likelihood(x0, mean, log_std, num_levels=num_levels)
    return x, jnp.sum((log_p - log_q).reshape(x.shape[0], -1), axis=1)


def bits_per_dim(log_prob: jax.Array, shape: tuple[int, ...], *, num_levels: ArrayLike | None = None) -> jax.Array:
    """Returns bits per dimension [B] from log probabilities or log densities in nats [B].

        -log_prob / (D log 2) + log2((num_levels - 1) / 2)

    The second term converts a density on [-1, 1] to one on integer levels: log2(127.5) for 8-bit pixels. It applies to
    densities of data from `uniform_dequantize`. (In the code of Song et al. 2021 the bins tile [-1, 1], which makes it
    log2(128) = 7.)

    Args:
      log_prob: [B], nats, summed over the entries of an example.
      shape: the shape of one example, of D entries.
      num_levels: the number of grey levels if log_prob is a density; None if it is a probability, which has no offset.

    Raises:
      ValueError: if num_levels is below 2.

    >>> float(bits_per_dim(jnp.array([0.0]), (8, 8), num_levels=257)[0])
    7.0
    """
    check_num_levels(2 if num_levels is None else num_levels)
    offset = 0.0 if num_levels is None else jnp.log2((num_levels - 1) / 2)
    return -log_prob / (math.prod(shape) * math.log(2.0)) + offset


def _check_range(x0: jax.Array, num_levels: int) -> None:
    """Raises ValueError if a value lies more than half a bin outside [-1, 1]."""
    values, half = concrete(x0), 1.0 / (num_levels - 1)
    if values is not None and not np.all(np.abs(values.astype(np.float64)) <= 1 + half):
        raise ValueError(
            f"data with grey levels lie in [-1, 1]; got {values.min()} to {values.max()}: scale the first level to -1 "
            "and the last to 1"
        )
