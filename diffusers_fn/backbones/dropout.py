"""Dropout."""

from __future__ import annotations

import flax.linen as nn
import jax


class Dropout(nn.Module):
    """Sets a share `rate` of the numbers to zero and scales the others by 1 / (1 - rate), with the rng "dropout".

    Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (2014), section 4. The rate
    is in [0, 1). Of finite numbers it makes what linen's layer does, to the bit. The mask is a factor here: linen's, a
    choice, would have to be split over mesh axes of type Explicit as x is.

    >>> import jax.numpy as jnp
    >>> x = Dropout(0.5).apply({}, jnp.ones(100), rngs={"dropout": jax.random.key(0)})
    >>> sorted({number.item() for number in x})
    [0.0, 2.0]
    """

    rate: float
    deterministic: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.deterministic or not self.rate:
            return x
        return x / (1.0 - self.rate) * jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
