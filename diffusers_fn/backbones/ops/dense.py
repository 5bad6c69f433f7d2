"""Dense layers, with products that a CPU differentiates without transposing the activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from diffusers_fn.backbones.ops.lazy import Lazy, array
from diffusers_fn.backbones.ops.platforms import by_platform

__all__ = ["Dense", "DenseGeneral", "product", "product_of"]


class Dense(nn.Module):
    """Computes x kernel + bias for x [..., C], as `flax.linen.Dense` does: [..., features]. x may be lazy.

    The fields, the parameters and their initial values are those of linen's layer.

    >>> jax.eval_shape(Dense(features=4).init_with_output, jax.random.key(0), jnp.ones([1, 5, 3]))[0].shape
    (1, 5, 4)
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.linear.default_kernel_init
    bias_init: Callable[..., Any] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array | Lazy) -> jax.Array:
        return _linear(self, x, (self.features,), 1)


class DenseGeneral(nn.Module):
    """Computes a linear map of the last axes of x, as `flax.linen.DenseGeneral` does. x may be lazy.

    The fields, the parameters and their initial values are those of linen's layer, with a kernel
    [*last axes of x, *features]. Raises ValueError unless axis is -1 or the last axes in order, such as (-2, -1).

    >>> dense = DenseGeneral(features=(2, 3), axis=(-2, -1))
    >>> jax.eval_shape(dense.init_with_output, jax.random.key(0), jnp.ones([1, 5, 4, 4]))[0].shape
    (1, 5, 2, 3)
    """

    features: int | Sequence[int]
    axis: int | Sequence[int] = -1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.linear.default_kernel_init
    bias_init: Callable[..., Any] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array | Lazy) -> jax.Array:
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        axis = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
        if axis != tuple(range(-len(axis), 0)):
            raise ValueError(f"axis must be -1 or the last axes in order, such as (-2, -1); got {self.axis}")
        return _linear(self, x, features, len(axis))


def _linear(layer: Any, x: jax.Array | Lazy, features: tuple[int, ...], axes: int) -> jax.Array:
    """Returns the product of the last `axes` axes of x with the layer's kernel, and its bias added."""
    inputs = tuple(x.shape[-axes:])

    def kernel_init(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
        return layer.kernel_init(key, (math.prod(inputs), math.prod(features)), dtype).reshape(shape)

    def bias_init(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
        return layer.bias_init(key, (math.prod(features),), dtype).reshape(shape)

    kernel = layer.param("kernel", kernel_init, inputs + features, layer.param_dtype)
    bias = layer.param("bias", bias_init, features, layer.param_dtype) if layer.use_bias else None
    x = array(x) if x.ndim == 2 else x  # few numbers, cheap to keep
    first = x.arrays[0] if isinstance(x, Lazy) else x
    first, kernel, bias = nn.dtypes.promote_dtype(first, kernel, bias, dtype=layer.dtype)
    if isinstance(x, Lazy):
        y = product_of(x.function, first, kernel, *x.arrays[1:], axes=axes)
    else:
        y = product(first, kernel, axes=axes)
    return y if bias is None else y + jnp.reshape(bias, (1,) * (y.ndim - len(features)) + features)


def product(x: jax.Array, kernel: jax.Array, *, axes: int = 1) -> jax.Array:
    """Returns the product of x and a kernel over the last `axes` axes of x and the first of the kernel.

    On a CPU the leading axes of x are joined to rows. With more axes, XLA's CPU compiler transposes x for the
    gradient of the kernel, x^T g, and recomputes the preceding operations in an order that does not follow memory.
    A barrier keeps XLA (with JAX 0.12) from fusing a normalisation of many tokens into the product. Other platforms
    keep the axes, any of which may be sharded.

    >>> product(jnp.ones([2, 3, 4]), jnp.ones([4, 5])).shape
    (2, 3, 5)
    """
    last, first = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dot_general(x, kernel, ((last, first), ((), ())))

    def joined(x: jax.Array, kernel: jax.Array) -> jax.Array:
        inputs = math.prod(kernel.shape[:axes])
        rows = lax.optimization_barrier(x.reshape(-1, inputs))
        rows = lax.dot_general(rows, kernel.reshape(inputs, -1), (((1,), (0,)), ((), ())))
        return rows.reshape(*x.shape[: x.ndim - axes], *kernel.shape[axes:])

    if x.ndim + kernel.ndim == 4:
        return plain(x, kernel)
    return by_platform(x, kernel, cpu=joined, default=plain, like=x, kept=x.ndim - axes)


def product_of(
    function: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, *others: jax.Array, axes: int = 1
) -> jax.Array:
    """Returns the `product` of function(x, *others) and a kernel. Only x and others are kept for the backward pass.

    The function keeps the shape of x. It is computed again in the backward pass, which is cheap; on a CPU it would cost
    more to keep its result, because every training step starts on fresh memory, which is slow to touch first.

    >>> product_of(jnp.exp, jnp.zeros([1, 1, 3]), jnp.ones([3, 1])).item()
    3.0
    """

    def of_kept(x: jax.Array, kernel: jax.Array, *others: jax.Array) -> jax.Array:
        return product(jax.checkpoint(function)(x, *others), kernel, axes=axes)

    return jax.checkpoint(of_kept)(x, kernel, *others)
