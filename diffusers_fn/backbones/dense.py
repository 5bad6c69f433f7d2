"""The product of dense layers over two axes, which a CPU differentiates without transposing the activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from diffusers_fn.backbones.deferred import Deferred
from diffusers_fn.backbones.platforms import by_platform


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """Returns `lax.dot_general` of activations and a kernel, for the field `dot_general` of linen's dense layers.

    On a CPU the leading axes of x are joined to rows. With more axes, XLA's compiler transposes x there for the
    gradient of the kernel, x^T g, and computes what precedes the transposition again for it, against the order of
    memory. What precedes is computed first, too: with JAX 0.12 XLA would join a whole normalisation of many tokens with
    the product, which then runs at half speed. Other platforms keep the axes, any of which may be sharded.

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
        rows = lax.optimization_barrier(x.reshape(-1, width))
        rows = lax.dot_general(rows, kernel.reshape(width, -1), (((1,), (0,)), ((), ())), **options)
        return rows.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])

    if x_batch or tuple(x_axes) != last or tuple(kernel_axes) != first or x.ndim + kernel.ndim == 4:
        return plain(x, kernel)
    return by_platform(x, kernel, cpu=joined, default=plain, like=x, kept=x.ndim - count)


def dot_general_of(fun: Callable[..., jax.Array], *others: jax.Array) -> Callable[..., jax.Array]:
    """Returns `dot_general` of fun(x, *others), for the same field: only x and others are kept for the backward pass.

    fun keeps the shape of x and is cheap: it is computed again there. On a CPU it would cost more to keep what it
    returns, because every training step starts on fresh memory, whose first touch takes as long as three or four passes
    over it.

    >>> import jax.numpy as jnp
    >>> dot_general_of(jnp.exp)(jnp.zeros([1, 1, 3]), jnp.ones([3, 1]), (((2,), (0,)), ((), ()))).item()
    3.0
    """

    def product(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
        def of_kept(x: jax.Array, kernel: jax.Array, *others: jax.Array) -> jax.Array:
            return dot_general(jax.checkpoint(fun)(x, *others), kernel, dimension_numbers, **options)

        return jax.checkpoint(of_kept)(x, kernel, *others)

    return product


def opened(x: jax.Array | Deferred) -> tuple[jax.Array, Callable[..., jax.Array]]:
    """Returns what a dense layer of x needs, which may be `Deferred`: its input and its field `dot_general`.

    The layer casts the first of deferred arrays to its dtype, as it casts x.

    >>> import jax.numpy as jnp
    >>> x, product = opened(Deferred(jnp.add, (jnp.ones([1, 1, 3]), jnp.ones([1, 1, 3]))))
    >>> product(x, jnp.ones([3, 1]), (((2,), (0,)), ((), ()))).item()
    6.0
    """
    if isinstance(x, Deferred):
        return x.arrays[0], dot_general_of(x.fun, *x.arrays[1:])
    return x, dot_general
