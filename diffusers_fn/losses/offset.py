"""Offset noise: training noise with a random mean per channel."""

from __future__ import annotations

import jax

from diffusers_fn import _random
from diffusers_fn._arrays import split_like

__all__ = ["offset_noise"]


def offset_noise(key: jax.Array, eps: jax.Array, strength: float) -> jax.Array:
    """Returns eps + strength * z [B, ..., C], with one standard normal z per example and channel.

    The network then learns to change the mean colour of an image. N. Guttenberg, "Diffusion with Offset Noise", 2023,
    https://www.crosslabs.org/blog/diffusion-with-offset-noise. The sampler starts from noise without the offset.

    Args:
      key: one key, or [B] keys.
      eps: [B, ..., C] standard normal noise.
      strength: the standard deviation of the offset; 0.1 is common.

    >>> import jax.numpy as jnp
    >>> eps = offset_noise(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), 0.1)
    >>> eps.shape, bool(jnp.all(eps == eps[:, :1, :1]))
    ((2, 8, 8, 3), True)
    """
    shape = (eps.shape[0], *(1,) * (eps.ndim - 2), eps.shape[-1])
    z = split_like(_random.draw(jax.random.normal, key, shape, eps.dtype), eps)
    return eps + strength * z
