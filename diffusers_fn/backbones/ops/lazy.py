"""Arrays that are computed by the layer that consumes them, so that they need not be kept for the backward pass.

Functions that return them have the type Any, so that a network can hold arrays and lazy arrays in one
variable.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from diffusers_fn.backbones.ops.activations import exact_gelu

__all__ = ["Lazy", "array", "gelu", "lazily", "modulate", "silu", "then"]

_Function = Callable[..., jax.Array]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["function"])
@dataclasses.dataclass(frozen=True)
class Lazy:
    """Images [B, H, W, C] or tokens [B, L, D] function(*arrays) that have not been computed yet.

    `Conv`, `Dense` and `DenseGeneral` compute them together with their own product, and compute them again in the
    backward pass (`Conv` on a CPU only). `array` computes them once.

    Attributes:
      function: hashable, and equal to every function that computes the same, so that layers of one shape are traced
        once.
      arrays: its arguments. The first has the shape of the result.

    >>> import jax.numpy as jnp
    >>> x = Lazy(jnp.add, (jnp.ones([1, 2, 2, 3]), jnp.ones([1, 1, 1, 3])))
    >>> x.shape, array(x).sum().item()
    ((1, 2, 2, 3), 24.0)
    """

    function: _Function
    arrays: tuple[jax.Array, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return self.arrays[0].shape

    @property
    def ndim(self) -> int:
        """The number of axes of the result."""
        return len(self.shape)


def array(x: jax.Array | Lazy) -> jax.Array:
    """Returns x, computed here if it is lazy: for anything but the layers of this package.

    >>> import jax.numpy as jnp
    >>> array(silu(jnp.zeros(2))).tolist()
    [0.0, 0.0]
    """
    return x.function(*x.arrays) if isinstance(x, Lazy) else x


def lazily(function: _Function) -> Callable[[jax.Array | Lazy], Any]:
    """Returns a lazy version of an elementwise function.

    >>> import jax.numpy as jnp
    >>> array(lazily(jnp.tanh)(jnp.zeros([1, 3]))).shape
    (1, 3)
    """

    def apply(x: jax.Array | Lazy) -> Any:
        return then(x, _Checkpointed(function)) if isinstance(x, Lazy) else Lazy(function, (x,))

    return apply


def silu(x: jax.Array | Lazy) -> Any:
    """Returns x sigmoid(x), lazily.

    >>> import jax.numpy as jnp
    >>> array(silu(jnp.zeros(2))).tolist()
    [0.0, 0.0]
    """
    return lazily(jax.nn.silu)(x)


def gelu(x: jax.Array | Lazy, *, approximate: bool = True) -> Any:
    """Returns x Phi(x), lazily, with Phi the normal distribution function, or its tanh form if `approximate`.

    Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), https://arxiv.org/abs/1606.08415, section 2.

    >>> import jax.numpy as jnp
    >>> round(array(gelu(jnp.ones(1), approximate=False)).item(), 4)
    0.8413
    """
    return lazily(jax.nn.gelu if approximate else exact_gelu)(x)


def modulate(x: jax.Array | Lazy, scale: jax.Array, shift: jax.Array) -> Any:
    """Returns x (1 + scale) + shift, lazily, for a scale and a shift that broadcast to x.

    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (2018), https://arxiv.org/abs/1709.07871,
    equation 2, with 1 + scale for gamma.

    >>> import jax.numpy as jnp
    >>> array(modulate(jnp.ones([1, 2]), jnp.ones([1, 1]), jnp.ones([1, 1]))).tolist()
    [[3.0, 3.0]]
    """
    return then(x, _scale_and_shift, scale, shift)


def then(x: jax.Array | Lazy, function: _Function, *others: jax.Array) -> Lazy:
    """Returns function(x, *others), lazily.

    >>> import jax.numpy as jnp
    >>> array(then(jnp.ones(1), jnp.add, jnp.ones(1))).item()
    2.0
    """
    if isinstance(x, Lazy):
        return Lazy(_Chain(x.function, len(x.arrays), function), (*x.arrays, *others))
    return Lazy(function, (x, *others))


@dataclasses.dataclass(frozen=True)
class _Chain:
    """second(first(*arrays[:count]), *arrays[count:])."""

    first: _Function
    count: int
    second: _Function

    def __call__(self, *arrays: jax.Array) -> jax.Array:
        return self.second(self.first(*arrays[: self.count]), *arrays[self.count :])


@dataclasses.dataclass(frozen=True)
class _Checkpointed:
    """An activation of a lazy array: its intermediate results are computed again in the backward pass."""

    function: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.checkpoint(self.function)(x)


def _scale_and_shift(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    return x * (1 + scale) + shift
