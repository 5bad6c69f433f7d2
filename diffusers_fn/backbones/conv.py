"""Convolution of images: the platform's own on accelerators, matrix products on a CPU.

XLA's convolution on a CPU is slower than its matrix products, its weight gradient more so, and inside a loop
(`lax.scan`) both gradients are slower by a factor of fifty. So there a convolution is written as products, in one of
three ways:

- `winograd`: 3x3 kernels at stride 1, with a third of the multiplications;
- `product_first`: few output channels, one product with all of the kernel, then shifted sums;
- `patches_first`: all else, the patches side by side (im2col), then one product.

They are plain array operations, chosen so that what automatic differentiation makes of them is as fast, in both modes
and to any order, under vmap and inside loops. What they make of x and of the kernel is computed again in the backward
pass, not kept; so is x itself where it is `Deferred`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffusers_fn.backbones.apart import compiled_apart
from diffusers_fn.backbones.deferred import Deferred
from diffusers_fn.backbones.platforms import by_platform
from diffusers_fn.backbones.winograd import TILE, winograd

Zeros = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of each axis
Fun = Callable[..., jax.Array]  # of images that are yet to be computed
Padding = tuple[int, int] | Zeros  # of both axes alike, or of each

_FEW_CHANNELS = 12  # too few for Winograd's products, and few enough to shift and add
_FEW_TILES = 100  # too few to pay for transforming the kernel


def conv2d(
    x: jax.Array | Deferred, kernel: jax.Array, *, stride: int = 1, padding: Padding = (1, 1), native: bool = False
) -> jax.Array:
    """Returns the convolution of x [B, H, W, C] with a kernel [h, w, C, D]: [B, H', W', D].

    Every convolution of the backbones with a learned kernel runs through here. On a CPU, half precision is computed in
    float32 and rounded once. The platform is asked when the program is lowered, so that an exported program is right on
    all the platforms it is exported for.

    Args:
      x: the images, computed or to be computed with the convolution.
      kernel: its dtype is that of the result; x is cast to it.
      stride: of both axes.
      padding: zeros (before, after) both axes, or a pair for each.
      native: XLA's convolution everywhere.

    >>> conv2d(jnp.ones([1, 8, 8, 3]), jnp.ones([3, 3, 3, 5]), stride=2, padding=(0, 1)).shape
    (1, 4, 4, 5)
    """
    zeros: Any = (padding, padding) if isinstance(padding[0], int) else padding
    given = x if isinstance(x, Deferred) else Deferred(_same, (x.astype(kernel.dtype),))
    return _in_best_way(
        kernel, *given.arrays, native=native, images=given.fun, stride=stride, padding=tuple(map(tuple, zeros))
    )


def _same(x: jax.Array) -> jax.Array:
    return x


@functools.partial(jax.jit, static_argnames=("native", "images", "stride", "padding"))  # traced once for each shape
def _in_best_way(
    kernel: jax.Array, *arrays: jax.Array, native: bool, images: Fun, stride: int, padding: Zeros
) -> jax.Array:
    fields: dict[str, Any] = {"images": images, "stride": stride, "padding": padding}
    own: Callable[..., jax.Array] = functools.partial(_own, **fields)
    products = functools.partial(_by_products, **fields)
    if native:
        return own(kernel, *arrays)
    return by_platform(kernel, *arrays, cpu=products, default=own, like=arrays[0], kept=1)


def _own(kernel: jax.Array, *arrays: jax.Array, images: Fun, stride: int, padding: Zeros) -> jax.Array:
    """Returns XLA's convolution of images(*arrays)."""
    x, axes = images(*arrays), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=axes)


@functools.partial(compiled_apart, static_argnames=("images", "stride", "padding"))
def _by_products(kernel: jax.Array, *arrays: jax.Array, images: Fun, stride: int, padding: Zeros) -> jax.Array:
    """Returns the convolution of images(*arrays) in the best way by products."""
    x = images(*arrays)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    way = _best_way(x.shape, kernel.shape, stride, padding)
    return way(x.astype(wide), kernel.astype(wide), padding=padding).astype(x.dtype)


def _best_way(shape: Sequence[int], kernel: Sequence[int], stride: int, padding: Zeros) -> Callable[..., jax.Array]:
    """Returns the way to convolve images of a shape with a kernel of a shape: (x, kernel, *, padding) -> y."""
    *size, channels, features = kernel
    if stride == 1 and size == [3, 3] and min(channels, features) > _FEW_CHANNELS:
        sides = [side + sum(zeros) - 2 for side, zeros in zip(shape[1:3], padding)]
        tall, wide = (-(-side // tile) for side, tile in zip(sides, TILE))
        if shape[0] * tall * wide >= _FEW_TILES:
            return winograd
    if stride == 1 and features <= _FEW_CHANNELS < channels:
        return product_first
    return functools.partial(patches_first, stride=stride)


def patches_first(x: jax.Array, kernel: jax.Array, *, padding: Zeros, stride: int = 1) -> jax.Array:
    """Returns the convolution as one product of the patches [B, H', W', h w C] with the kernel [h w C, D]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    (height, width), (rows, columns) = kernel.shape[:2], (s - k + 1 for s, k in zip(x.shape[1:3], kernel.shape))
    part = lambda i, j: x[:, i : i + rows : stride, j : j + columns : stride]  # noqa: E731
    # One stack of all parts would be a program for each of them.
    patches = jnp.stack([jnp.stack([part(i, j) for j in range(width)], 3) for i in range(height)], 3)
    return patches.reshape(*patches.shape[:3], -1) @ kernel.reshape(-1, kernel.shape[-1])


def product_first(x: jax.Array, kernel: jax.Array, *, padding: Zeros) -> jax.Array:
    """Returns the convolution as one product [B, H, W, C] with [C, h w D], whose parts are shifted and added."""
    height, width, channels, features = kernel.shape
    y = jnp.pad(x @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1), ((0, 0), *padding, (0, 0)))
    rows, columns = y.shape[1] - height + 1, y.shape[2] - width + 1
    offsets = itertools.product(range(height), range(width))
    parts = zip(lax.split(y, [features] * (height * width), axis=3), offsets)
    return functools.reduce(jnp.add, [part[:, i : i + rows, j : j + columns] for part, (i, j) in parts])
