"""Images and tokens that are computed where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax


class Deferred(NamedTuple):
    """Images [B, H, W, C] or tokens [B, L, D] fun(*arrays), not computed yet.

    A convolution or a dense layer computes them with its own product, and a dense layer, or a convolution on a CPU,
    again in the backward pass: only the arrays are kept for it. Call it for the images or tokens.

    Attributes:
      fun: hashable, equal to what computes the same, so that layers of one shape are traced once.
      arrays: the first has the shape of the images or tokens.

    >>> import jax.numpy as jnp
    >>> later = Deferred(jnp.add, (jnp.ones([1, 2, 2, 3]), jnp.ones([1, 1, 1, 3])))
    >>> later.shape, later().sum().item()
    ((1, 2, 2, 3), 24.0)
    """

    fun: Callable[..., jax.Array]
    arrays: tuple[jax.Array, ...]

    def __call__(self) -> jax.Array:
        """Returns the images or tokens."""
        return self.fun(*self.arrays)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the images or tokens."""
        return self.arrays[0].shape
