"""Densities and probabilities: data of a few levels, such as pixels, under a model of continuous data.

A density near a grey level can be as large as one likes, so it says nothing about the level by itself. Noise of known
density makes a bound of it:

    log P(v) >= E_q(x | v)[log p(x) + log P(v | x) - log q(x | v)]

`uniform_dequantize` takes q even over the level's bin, `noise_dequantize` the noise of the model's own last level.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, expand, working_dtype
from diffusers_fn.levels import Level, add_noise, check_level
from diffusers_fn.likelihood.discretized import check_num_levels, discretized_gaussian_log_likelihood


def uniform_dequantize(key: jax.Array, x0: jax.Array, num_levels: int = 256) -> jax.Array:
    """Returns x [B, ...] even in the bin around each grey level, which is as wide as their distance.

        x = x0 + d (u - 1/2),   d = 2 / (num_levels - 1),   log P(x0) >= E[log p(x)] + D log(d)

    Theis et al., "A Note on the Evaluation of Generative Models", 2016, https://arxiv.org/abs/1511.01844, section 3.1;
    the last term is the offset of `bits_per_dim`. The bins lie around the levels, so that x has the mean x0 and leaves
    [-1, 1] by d / 2. The bound is tight for a density that is smooth over a bin, and poor for a model that has learnt
    the levels themselves, whose density is low between them: see `noise_dequantize`. Both hold; the lower one counts.

    Args:
      key: one key, or [B] keys.
      x0: [B, ...] data on num_levels levels in [-1, 1], or integers 0 ... num_levels - 1.
      num_levels: of the data, at least 2; 256 for pixels of eight bits.

    Raises:
      ValueError: if num_levels is below 2.

    >>> x = uniform_dequantize(jax.random.key(0), jnp.zeros((1, 1000), jnp.uint8), num_levels=3)
    >>> bool(jnp.all(abs(x + 1.0) <= 0.5))
    True
    """
    check_num_levels(num_levels)
    x0 = jnp.asarray(x0)
    if jnp.issubdtype(x0.dtype, jnp.integer):
        x0 = x0.astype(jnp.result_type(float)) * (2.0 / (num_levels - 1)) - 1.0
    check_data(x0=x0)
    x0 = x0.astype(working_dtype(x0))
    u = _random.draw(jax.random.uniform, key, x0.shape, x0.dtype)
    return x0 + (u - 0.5) * (2.0 / (num_levels - 1))


def noise_dequantize(key: jax.Array, x0: jax.Array, level: Level, num_levels: int = 256) -> tuple[jax.Array, jax.Array]:
    """Returns (x [B, ...], correction [B]): x0 noised to a level, and log P(x0 | x) - log q(x | x0) in nats.

        x = alpha x0 + sigma eps,   log P(x0) >= E[log p(x) + correction],   p the density at that level

    The model's own noise is what its density at the level expects, so the bound is tight for a model that has learnt
    the grey levels; one that is smooth on the scale of sigma pays for the noise's entropy. It is the bound of Kingma et
    al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630, with the flow's exact density in place
    of its diffusion terms.
    P(x0 | x) is the discretized Gaussian of mean x / alpha and std sigma / alpha; where that is much narrower than a
    bin it costs nothing.

    Args:
      key: one key, or [B] keys.
      x0: [B, ...] data on num_levels levels in [-1, 1].
      level: S = [] or [B], with alpha > 0 and sigma > 0: the last one of a plan.
      num_levels: as for `uniform_dequantize`.

    Raises:
      ValueError: if num_levels is below 2 or shapes do not agree.

    >>> level = Level(1.0, 0.01, 0.0)
    >>> x, correction = noise_dequantize(jax.random.key(0), jnp.zeros((1, 100)), level, num_levels=3)
    >>> entropy = 50 * jnp.log(2 * jnp.pi * jnp.e * level.sigma**2)  # what the correction is on average
    >>> bool(abs(correction[0] / entropy - 1.0) < 0.1)
    True
    """
    check_data(x0=x0)
    check_num_levels(num_levels)
    check_level(level, x0)
    x0 = x0.astype(working_dtype(x0))
    eps = _random.normal(key, x0)
    x = add_noise(x0, eps, level)
    log_q = -0.5 * eps**2 - jnp.log(expand(level.sigma, x0)) - 0.5 * math.log(2 * math.pi)
    mean = x / expand(level.alpha, x)
    log_std = jnp.broadcast_to(jnp.log(expand(level.sigma, x) / expand(level.alpha, x)), x.shape)
    log_p = discretized_gaussian_log_likelihood(x0, mean, log_std, num_levels=num_levels)
    return x, jnp.sum((log_p - log_q).reshape(x.shape[0], -1), axis=1)


def bits_per_dim(log_prob: jax.Array, shape: tuple[int, ...], *, num_levels: Any = None) -> jax.Array:
    """Returns bits per dimension [B] of a log probability or density in nats [B].

        -log_prob / (D log 2) + log2((num_levels - 1) / 2)

    The second term is the offset from [-1, 1] to levels one apart, log2(127.5) for data scaled from 0 ... 255 to
    [-1, 1], for densities of `uniform_dequantize`d data. (Code that puts the bins side by side on [-1, 1] instead has
    log2(128) = 7: Song et al. 2021, official code.)

    Args:
      log_prob: [B], nats, summed over an example's entries.
      shape: of an example.
      num_levels: of the data, where log_prob is a density; None where it is a probability already, with no offset.

    Raises:
      ValueError: if num_levels is below 2.

    >>> float(bits_per_dim(jnp.array([0.0]), (8, 8), num_levels=257)[0])
    7.0
    """
    check_num_levels(2 if num_levels is None else num_levels)
    offset = 0.0 if num_levels is None else jnp.log2((num_levels - 1) / 2)
    return -log_prob / (math.prod(shape) * math.log(2.0)) + offset
