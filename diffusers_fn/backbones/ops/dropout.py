"""Dropout."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from diffusers_fn.backbones.ops.lazy import Lazy, array

__all__ = ["Dropout"]


class Dropout(nn.Module):
    """Sets the fraction `rate` of the numbers to zero and scales the others by 1 / (1 - rate), with the rng "dropout".

    Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (2014), section 4. The rate
    is in [0, 1). For finite numbers the result is that of linen's layer, to the bit. The mask is a factor here, because
    linen's selection would need a mask split over mesh axes of type Explicit as x is. A lazy x stays lazy where there
    is nothing to drop.

    >>> import jax.numpy as jnp
    >>> x = Dropout(0.5).apply({}, jnp.ones(100), rngs={"dropout": jax.random.key(0)})
    >>> sorted({number.item() for number in x})
    [0.0, 2.0]
    """

    rate: float
    deterministic: bool = False

    @nn.compact
    def __call__(self, x: jax.Array | Lazy) -> Any:
        if self.deterministic or not self.rate:
            return x
        x = array(x)
        return x / (1.0 - self.rate) * jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
