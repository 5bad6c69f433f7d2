"""The product of dense layers over two axes, which a CPU differentiates without transposing the activations."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax import lax


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """Returns `lax.dot_general` of activations and a kernel, for the field `dot_general` of linen's dense layers.

    The rows of x are its leading axes joined. With more axes, XLA's CPU compiler transposes x for the gradient of the
    kernel, x^T g, and computes what precedes the transposition again for it, against the order of memory.

    >>> dot_general(jnp.ones([2, 3, 4]), jnp.ones([4, 5]), (((2,), (0,)), ((), ()))).shape
    (2, 3, 5)
    """
    (x_axes, kernel_axes), (x_batch, _) = dimension_numbers
    count = len(kernel_axes)
    last, first = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
    if x_batch or tuple(x_axes) != last or tuple(kernel_axes) != first:
        return lax.dot_general(x, kernel, dimension_numbers, **options)
    width = math.prod(kernel.shape[:count])
    rows = lax.dot_general(x.reshape(-1, width), kernel.reshape(width, -1), (((1,), (0,)), ((), ())), **options)
    return rows.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])
