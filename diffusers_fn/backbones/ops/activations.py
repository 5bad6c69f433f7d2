"""Activation functions by the names that published configs give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

__all__ = ["ACTIVATIONS", "Activation", "activation", "exact_gelu", "quick_gelu", "tanh_gelu"]

if TYPE_CHECKING:
    Activation = str | Callable[[jax.Array], jax.Array]
else:
    Activation = str  # what a config can hold: a config has no functions


def exact_gelu(x: jax.Array) -> jax.Array:
    """Returns x Phi(x), with Phi the normal distribution function.

    Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), https://arxiv.org/abs/1606.08415, section 2.

    >>> import jax.numpy as jnp
    >>> round(float(exact_gelu(jnp.array(1.0))), 4)
    0.8413
    """
    return jax.nn.gelu(x, approximate=False)


def tanh_gelu(x: jax.Array) -> jax.Array:
    """Returns x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), close to x Phi(x) (Hendrycks and Gimpel 2016, sec. 2).

    >>> import jax.numpy as jnp
    >>> round(float(tanh_gelu(jnp.array(1.0))), 4)
    0.8412
    """
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x sigmoid(1.702 x), the GELU of the first CLIP weights (Hendrycks and Gimpel 2016, section 2).

    >>> import jax.numpy as jnp
    >>> round(float(quick_gelu(jnp.array(1.0))), 4)
    0.8458
    """
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": exact_gelu,
    "gelu_tanh": tanh_gelu,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


def activation(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """Returns the elementwise function with this name in `ACTIVATIONS`; a function is returned as it is.

    Raises ValueError for another name.

    >>> import jax.numpy as jnp
    >>> activation("relu")(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, or a function; got {name!r}")
    return ACTIVATIONS[name]
