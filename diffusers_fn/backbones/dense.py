"""The product of dense layers, with a gradient that a CPU computes without transposing the activations."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

_PARTS = 2  # of the rows; a batched product takes a transposed operand as it is


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """Returns `lax.dot_general` of activations and a kernel, for the field `dot_general` of linen's dense layers.

    XLA's CPU compiler transposes x for the gradient of the kernel, x^T g, and computes what precedes the transposition
    again for it, against the order of memory: most of a transformer's training step. Here the rows of x are split into
    parts, whose gradients are one batched product and a sum. Forward passes, half precision and other platforms are
    unchanged, all derivatives are exact, in both modes and to any order.

    >>> dot_general(jnp.ones([2, 3, 4]), jnp.ones([4, 5]), (((2,), (0,)), ((), ()))).shape
    (2, 3, 5)
    """
    (x_axes, kernel_axes), (x_batch, _) = dimension_numbers
    count = len(kernel_axes)
    last, first = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
    plain = tuple(x_axes) == last and tuple(kernel_axes) == first
    width = math.prod(kernel.shape[:count])
    if x_batch or not plain or x.size // width % _PARTS or x.dtype.itemsize < 4:
        return lax.dot_general(x, kernel, dimension_numbers, **options)
    rows = x.reshape(-1, width)
    y = _product(rows, kernel.reshape(width, -1))
    return y.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])


@jax.custom_jvp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _product_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_product(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(lax.platform_dependent(x, dkernel, cpu=_in_parts, default=jnp.matmul))
    return _product(x, kernel), functools.reduce(jnp.add, terms)


_product.defjvp(_product_jvp, symbolic_zeros=True)


def _in_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x @ kernel, as a product for each part of the rows; its transpose in the kernel is what it is for."""
    parts = x.reshape(_PARTS, -1, x.shape[-1])
    return jnp.einsum("krc,kcd->krd", parts, jnp.broadcast_to(kernel, (_PARTS, *kernel.shape))).reshape(len(x), -1)
