"""The product of dense layers over two axes, which a CPU differentiates without transposing the activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """Returns `lax.dot_general` of activations and a kernel, for the field `dot_general` of linen's dense layers.

    On a CPU the leading axes of x are joined to rows. With more axes, XLA's compiler transposes x there for the
    gradient of the kernel, x^T g, and computes what precedes the transposition again for it, against the order of
    memory. Other platforms keep the axes, any of which may be sharded.

    >>> import jax.numpy as jnp
    >>> dot_general(jnp.ones([2, 3, 4]), jnp.ones([4, 5]), (((2,), (0,)), ((), ()))).shape
    (2, 3, 5)
    """
    (x_axes, kernel_axes), (x_batch, _) = dimension_numbers
    count = len(kernel_axes)
    last, first = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dot_general(x, kernel, dimension_numbers, **options)

    def joined(x: jax.Array, kernel: jax.Array) -> jax.Array:
        width = math.prod(kernel.shape[:count])
        rows = lax.dot_general(x.reshape(-1, width), kernel.reshape(width, -1), (((1,), (0,)), ((), ())), **options)
        return rows.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])

    if x_batch or tuple(x_axes) != last or tuple(kernel_axes) != first or x.ndim + kernel.ndim == 4:
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=joined, default=plain)


def dot_general_of(fun: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Returns `dot_general` of fun(x), for the same field: only x is kept for the backward pass.

    fun keeps the shape and is cheap: it is computed again there. On a CPU it would cost more to keep what it returns,
    because every training step starts on fresh memory, whose first touch takes as long as three or four passes over it.

    >>> import jax.numpy as jnp
    >>> dot_general_of(jnp.exp)(jnp.zeros([1, 1, 3]), jnp.ones([3, 1]), (((2,), (0,)), ((), ()))).item()
    3.0
    """

    def product(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
        def of_kept(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return dot_general(jax.checkpoint(fun)(x), kernel, dimension_numbers, **options)

        return jax.checkpoint(of_kept)(x, kernel)

    return product
