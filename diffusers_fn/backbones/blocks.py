"""The parts of the convolutional backbones: residual block, self-attention, and how resolutions change.

Images are [B, H, W, C] and sequences [B, L, C], with B the batch size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import ops
from diffusers_fn.backbones.embeddings import dense_init

__all__ = [
    "ResBlock",
    "SelfAttention",
    "average_pool",
    "head_split",
    "nearest",
    "qkv_init",
    "rematerialised",
    "tiles",
    "untiled",
]


class ResBlock(ops.Module):
    """Computes skip_scale (skip(x) + residual(x, emb)) from x [B, ..., C] and an embedding emb [B, E].

    residual is norm, silu, conv, norm, silu, dropout, conv; the result has `features` channels. skip is a 1x1
    convolution where C is another number of channels or with project_skip, else the identity. The embedding
    is added before the second norm as in DDPM (Ho et al. 2020, https://arxiv.org/abs/2006.11239, appendix B),
    or with scale_shift_norm enters after it as norm(h) (1 + scale) + shift (Nichol and Dhariwal, "Improved
    Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672). `resample`
    (average_pool, nearest or None) acts on both branches before their convolutions, as in ADM (Dhariwal and
    Nichol 2021, https://arxiv.org/abs/2105.05233). `activation` replaces silu, and kernel_size that of the
    convolutions.

    >>> block = ResBlock(features=8, norm_groups=4, resample=average_pool)
    >>> args = jax.random.key(0), jnp.ones([1, 4, 4, 4]), jnp.ones([1, 16])
    >>> jax.eval_shape(block.init_with_output, *args)[0].shape
    (1, 2, 2, 8)
    """

    features: int
    dropout: float = 0.0
    scale_shift_norm: bool = False
    resample: Callable[[jax.Array], jax.Array] | None = None
    norm_groups: int | Callable[[int], int] = 32
    norm_eps: float = 1e-6
    zero_init: bool = True
    project_skip: bool = False
    skip_scale: float = 1.0
    activation: ops.Activation = "silu"
    kernel_size: tuple[int, ...] = (3, 3)

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, *, train: bool = False) -> jax.Array:
        norm: Callable[..., Any] = functools.partial(ops.GroupNorm, self.norm_groups, self.norm_eps, **self.types)
        conv: Callable[..., Any] = functools.partial(ops.Conv, self.features, self.kernel_size, **self.types)
        dense: Callable[..., Any] = functools.partial(ops.Dense, kernel_init=dense_init, **self.types)
        activation = ops.lazily(ops.activation(self.activation))
        drop = ops.Dropout(self.dropout, deterministic=not train)
        last_init = nn.initializers.zeros if self.zero_init else dense_init

        h = activation(norm(name="norm_0")(x))
        if self.resample is not None:
            h, x = self.resample(ops.array(h)), self.resample(x)
        h = conv(kernel_init=dense_init, name="conv_0")(h)

        emb = dense(self.features * (1 + self.scale_shift_norm), name="emb")(activation(emb))
        emb = jnp.expand_dims(emb, range(1, h.ndim - 1))
        if self.scale_shift_norm:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = ops.modulate(norm(name="norm_1")(h), scale, shift)
        else:
            h = norm(name="norm_1")(h + emb)
        h = conv(kernel_init=last_init, name="conv_1")(drop(activation(h)))

        if x.shape[-1] != self.features or self.project_skip:
            x = dense(self.features, name="skip")(x)
        return _scaled(x + h, self.skip_scale)


class SelfAttention(ops.Module):
    """Computes skip_scale (x + out(attention(query, key, value of norm(x)))) over the pixels of x [B, ..., C].

    Without `normalise` there is no norm. head_dim fixes the number of heads as C / head_dim; without it there are
    num_heads heads, or one. The projection `qkv` has a kernel [C, 3, heads, head_dim]. attention_fn takes query, key
    and value of shape [B, pixels, heads, head_dim] and returns that shape. The default scales by head_dim ** -0.5 and
    computes the softmax in float32, whatever the dtype.

    Raises ValueError if the heads do not divide C.

    >>> attention = SelfAttention(head_dim=4, norm_groups=4)
    >>> params = jax.eval_shape(attention.init, jax.random.key(0), jnp.ones([1, 2, 2, 8]))["params"]
    >>> params["qkv"]["kernel"].shape
    (8, 3, 2, 4)
    """

    num_heads: int | None = None
    head_dim: int | None = None
    norm_groups: int | Callable[[int], int] = 32
    norm_eps: float = 1e-6
    zero_init: bool = True
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention
    normalise: bool = True
    skip_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, *sides, channels = x.shape
        heads, head_dim = head_split(channels, self.num_heads, self.head_dim)
        norm = ops.GroupNorm(self.norm_groups, self.norm_eps, name="norm", **self.types)
        out_init = nn.initializers.zeros if self.zero_init else dense_init

        h = ops.array(norm(x)) if self.normalise else x
        h = h.reshape(batch, math.prod(sides), channels)
        qkv = ops.DenseGeneral((3, heads, head_dim), kernel_init=qkv_init, name="qkv", **self.types)(h)
        h = self.attention_fn(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = ops.DenseGeneral(channels, axis=(-2, -1), kernel_init=out_init, name="out", **self.types)(h)
        return _scaled(x + h.reshape(x.shape), self.skip_scale)


def rematerialised(block: nn.Module, remat: bool) -> Callable[..., jax.Array]:
    """Returns the block; with remat the backward pass computes it again instead of keeping its activations.

    Arguments by name (train) are not traced. Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016),
    https://arxiv.org/abs/1604.06174.

    >>> rematerialised(SelfAttention(), False)  # doctest: +ELLIPSIS
    SelfAttention(...
    """
    if not remat:
        return block

    def call(*args: jax.Array, **static: Any) -> jax.Array:
        return nn.remat(lambda block, *args: block(*args, **static))(block, *args)

    return call


qkv_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # as three separate C -> C projections


def head_split(channels: int, num_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """Returns (heads, head_dim), whose product is the channels.

    head_dim wins over num_heads; neither means one head. Raises ValueError if they do not divide the
    channels.

    >>> head_split(64, None, 16), head_split(64, 2, None), head_split(64, None, None)
    ((4, 16), (2, 32), (1, 64))
    """
    if head_dim is None and num_heads is None:
        return 1, channels
    name, given = ("num_heads", num_heads or 0) if head_dim is None else ("head_dim", head_dim)
    if given < 1 or channels % given:
        raise ValueError(f"{name} must divide the channels of every attention; got {name}={given}, {channels} channels")
    return (given, channels // given) if head_dim is None else (channels // given, given)


def tiles(x: jax.Array, size: int) -> jax.Array:
    """Returns the squares of size x size pixels: [B, H, W, C] -> [B, H / size, size, W / size, size, C].

    One axis after the other, as here and in `untiled`, is what mesh axes of type Explicit allow.

    >>> tiles(jnp.arange(4.0).reshape(1, 2, 2, 1), 2).shape
    (1, 1, 2, 1, 2, 1)
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width, channels)
    return x.reshape(*x.shape[:3], width // size, size, channels)


def untiled(x: jax.Array) -> jax.Array:
    """Returns the images of these squares, the inverse of `tiles`.

    >>> untiled(jnp.arange(4.0).reshape(1, 1, 2, 1, 2, 1)).shape
    (1, 2, 2, 1)
    """
    batch, rows, height, columns, width, channels = x.shape
    x = x.reshape(batch, rows, height, columns * width, channels)
    return x.reshape(batch, rows * height, columns * width, channels)


def average_pool(x: jax.Array) -> jax.Array:
    """Returns the means of 2x2 squares: [B, H, W, C] -> [B, H / 2, W / 2, C].

    >>> average_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).item()
    1.5
    """
    return tiles(x, 2).mean((2, 4))


def nearest(x: jax.Array) -> jax.Array:
    """Returns every pixel as a 2x2 square: [B, H, W, C] -> [B, 2 H, 2 W, C].

    >>> nearest(jnp.arange(2.0).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    batch, height, width, channels = x.shape
    return untiled(jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)))


def _scaled(x: jax.Array, scale: float) -> jax.Array:
    return x if scale == 1 else x * jnp.asarray(scale, x.dtype)
