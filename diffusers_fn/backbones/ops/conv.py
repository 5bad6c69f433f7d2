"""Convolution: the platform's own on accelerators, matrix products on a CPU.

XLA's convolution on a CPU is slower than its matrix products, its weight gradient more so, and inside a loop
(`lax.scan`) both gradients are far slower. So there a convolution is written as products, in one of three ways:

- `winograd`: 3x3 kernels at stride 1, with a third of the multiplications;
- `product_first`: few output channels, one product with all of the kernel, then shifted sums;
- `patches_first`: everything else, the patches side by side (im2col), then one product.

They are plain array operations, chosen so that their derivatives, in both modes and of any order, are as fast, under
vmap and inside loops too. Intermediate results are computed again in the backward pass instead of
kept; so is x itself where it is lazy.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from diffusers_fn.backbones.ops.apart import compiled_apart
from diffusers_fn.backbones.ops.lazy import Lazy, then
from diffusers_fn.backbones.ops.network import native_convolutions
from diffusers_fn.backbones.ops.platforms import by_platform, by_size
from diffusers_fn.backbones.ops.winograd import TILE, winograd

__all__ = ["Conv", "conv2d", "patches_first", "product_first"]

_Zeros = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of each axis
_Padding = str | int | Sequence[int | tuple[int, int]]

_FEW_CHANNELS = 12  # too few for Winograd's products, and few enough to shift and add
_FEW_TILES = 100  # too few to pay for transforming the kernel


class Conv(nn.Module):
    """Computes a convolution of images [B, H, W, C] or sequences [B, L, C], as `flax.linen.Conv` does.

    x may be lazy. The kernel is [*kernel_size, C, features].

    Fields:
      features: channels of the result.
      kernel_size: (h, w) for images, (l,) for sequences.
      strides: the same along each axis.
      padding: "SAME", "VALID", or zeros on both sides: a number for all axes, or for each axis a number or a pair
        (before, after).
      use_bias, dtype, param_dtype, kernel_init, bias_init: as in linen.

    >>> conv = Conv(features=4, kernel_size=(3, 3), strides=2, padding=((0, 1), (0, 1)))
    >>> jax.eval_shape(conv.init_with_output, jax.random.key(0), jnp.ones([1, 8, 8, 3]))[0].shape
    (1, 4, 4, 4)
    """

    features: int
    kernel_size: Sequence[int]
    strides: int = 1
    padding: _Padding = "SAME"
    use_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.linear.default_kernel_init
    bias_init: Callable[..., Any] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array | Lazy) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype).astype(self.dtype)
        zeros = _zeros(self.padding, x.shape[1:-1], self.kernel_size, self.strides)
        options: dict[str, Any] = {"stride": self.strides, "native": native_convolutions()}
        if len(self.kernel_size) == 1:  # an image one pixel wide
            y = conv2d(then(x, _widened), kernel[:, None], padding=(*zeros, (0, 0)), **options)[:, :, 0]
        else:
            y = conv2d(x, kernel, padding=zeros, **options)
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return y + jnp.expand_dims(bias.astype(self.dtype), range(y.ndim - 1))


def _zeros(padding: _Padding, sides: Sequence[int], kernel: Sequence[int], stride: int) -> Any:
    """Returns the zeros (before, after) each axis."""
    if padding == "SAME" and stride == 1:  # sides may be symbols
        return tuple(((extent - 1) // 2, extent // 2) for extent in kernel)
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(sides, kernel, [stride] * len(kernel), padding))
    each = [padding] * len(kernel) if isinstance(padding, int) else padding
    return tuple((zeros, zeros) if isinstance(zeros, int) else tuple(zeros) for zeros in each)


def _widened(x: jax.Array) -> jax.Array:
    return x[:, :, None]


def conv2d(
    x: jax.Array | Lazy,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: tuple[int, int] | _Zeros = (1, 1),
    native: bool = False,
) -> jax.Array:
    """Returns the convolution of x [B, H, W, C] with a kernel [h, w, C, D]: [B, H', W', D].

    On a CPU, half precision is computed in float32 and rounded once. The platform is selected when the program is
    lowered, so that an exported program is right on all the platforms it is exported for.

    Args:
      x: the images, which may be lazy.
      kernel: its dtype is that of the result; x is cast to it.
      stride: of both axes.
      padding: zeros (before, after) both axes, or a pair for each.
      native: use XLA's convolution on every platform.

    >>> conv2d(jnp.ones([1, 8, 8, 3]), jnp.ones([3, 3, 3, 5]), stride=2, padding=(0, 1)).shape
    (1, 4, 4, 5)
    """
    zeros: Any = (padding, padding) if isinstance(padding[0], int) else padding
    images = x if isinstance(x, Lazy) else Lazy(_same, (x.astype(kernel.dtype),))
    return _in_best_way(
        kernel, *images.arrays, native=native, images=images.function, stride=stride, padding=tuple(map(tuple, zeros))
    )


def _same(x: jax.Array) -> jax.Array:
    return x


@functools.partial(jax.jit, static_argnames=("native", "images", "stride", "padding"))  # traced once for each shape
def _in_best_way(
    kernel: jax.Array, *arrays: jax.Array, native: bool, images: Callable[..., Any], stride: int, padding: _Zeros
) -> jax.Array:
    fields: dict[str, Any] = {"images": images, "stride": stride, "padding": padding}
    own: Callable[..., jax.Array] = functools.partial(_own, **fields)
    products = functools.partial(_by_products, **fields)
    if native:
        return own(kernel, *arrays)
    return by_platform(kernel, *arrays, cpu=products, default=own, like=arrays[0], kept=1)


def _own(kernel: jax.Array, *arrays: jax.Array, images: Callable[..., Any], stride: int, padding: _Zeros) -> jax.Array:
    """Returns XLA's convolution of images(*arrays)."""
    x, axes = images(*arrays).astype(kernel.dtype), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=axes)


@functools.partial(compiled_apart, static_argnames=("images", "stride", "padding"))
def _by_products(
    kernel: jax.Array, *arrays: jax.Array, images: Callable[..., Any], stride: int, padding: _Zeros
) -> jax.Array:
    """Returns the convolution of images(*arrays) by matrix products."""
    x = images(*arrays).astype(kernel.dtype)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    way = _best_way(x.shape, kernel.shape, stride, padding)
    return way(x.astype(wide), kernel.astype(wide), padding=padding).astype(x.dtype)


def _best_way(shape: Sequence[int], kernel: Sequence[int], stride: int, padding: _Zeros) -> Callable[..., jax.Array]:
    """Returns the function (x, kernel, *, padding) -> y that convolves images and a kernel of these shapes."""
    *size, channels, features = kernel
    best_of = lambda number: _best_way((number, *shape[1:]), kernel, stride, padding)  # noqa: E731
    if stride == 1 and size == [3, 3] and min(channels, features) > _FEW_CHANNELS:
        sides = [side + sum(zeros) - 2 for side, zeros in zip(shape[1:3], padding)]
        tall, wide = (-(-side // tile) for side, tile in zip(sides, TILE))
        few = -(-_FEW_TILES // (tall * wide))  # images
        if not isinstance(shape[0], int):  # a symbol of jax.export
            return functools.partial(_by_number, few, *(best_of(n) for n in (few, few - 1)))
        if shape[0] >= few:
            return winograd
    if stride == 1 and features <= _FEW_CHANNELS < channels:
        return product_first
    return functools.partial(patches_first, stride=stride)


def _by_number(
    few: int,
    many_way: Callable[..., jax.Array],
    few_way: Callable[..., jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    *,
    padding: _Zeros,
) -> jax.Array:
    """Returns many_way(x, kernel, padding=padding) for `few` images or more, else few_way of them."""
    large, small = (functools.partial(way, padding=padding) for way in (many_way, few_way))
    return by_size(x.shape[0], few, x, kernel, large=large, small=small)


def patches_first(x: jax.Array, kernel: jax.Array, *, padding: _Zeros, stride: int = 1) -> jax.Array:
    """Returns the convolution as one product of the patches [B, H', W', h w C] with the kernel [h w C, D]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    (height, width), (rows, columns) = kernel.shape[:2], (s - k + 1 for s, k in zip(x.shape[1:3], kernel.shape))
    part = lambda i, j: x[:, i : i + rows : stride, j : j + columns : stride]  # noqa: E731
    # One stack of all parts would be a program for each of them.
    patches = jnp.stack([jnp.stack([part(i, j) for j in range(width)], 3) for i in range(height)], 3)
    return patches.reshape(*patches.shape[:3], -1) @ kernel.reshape(-1, kernel.shape[-1])


def product_first(x: jax.Array, kernel: jax.Array, *, padding: _Zeros) -> jax.Array:
    """Returns the convolution as one product [B, H, W, C] with [C, h w D], whose parts are shifted and added."""
    height, width, channels, features = kernel.shape
    y = jnp.pad(x @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1), ((0, 0), *padding, (0, 0)))
    rows, columns = y.shape[1] - height + 1, y.shape[2] - width + 1
    offsets = itertools.product(range(height), range(width))
    parts = zip(lax.split(y, [features] * (height * width), axis=3), offsets)
    return functools.reduce(jnp.add, [part[:, i : i + rows, j : j + columns] for part, (i, j) in parts])
