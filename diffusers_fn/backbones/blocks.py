"""The parts of the convolutional backbones: convolution, normalisation, residual block, self-attention.

Images are NHWC: [B, H, W, C], with B the batch size.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones.attend import dot_product_attention
from diffusers_fn.backbones.conv import conv2d
from diffusers_fn.backbones.deferred import Deferred
from diffusers_fn.backbones.dense import dot_general
from diffusers_fn.backbones.dropout import Dropout
from diffusers_fn.backbones.embeddings import dense_init
from diffusers_fn.backbones.norms import GroupNorm


class Conv3x3(nn.Module):
    """Computes a 3x3 convolution with bias: [B, H, W, C] -> [B, H / stride, W / stride, features].

    x may be `Deferred`. native: see `conv.conv2d`.

    >>> conv = Conv3x3(features=4, stride=2, padding=(0, 1))
    >>> jax.eval_shape(conv.init_with_output, jax.random.key(0), jnp.ones([1, 8, 8, 3]))[0].shape
    (1, 4, 4, 4)
    """

    features: int
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    kernel_init: Callable[..., Any] = dense_init
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, x: jax.Array | Deferred) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        kernel = kernel.astype(self.dtype)
        out = conv2d(x, kernel, stride=self.stride, padding=self.padding, native=self.native)
        return out + bias.astype(self.dtype)[None, None, None, :]


class ResBlock(nn.Module):
    """Computes skip_scale (skip(x) + residual(x, emb)) from x [B, H, W, C] and an embedding emb [B, E].

    residual is norm, silu, conv, norm, silu, dropout, conv; the result has `features` channels. skip is the
    identity where x has as many, unless project_skip, else a 1x1 convolution. The embedding
    is added before the second norm as in DDPM (Ho et al. 2020, https://arxiv.org/abs/2006.11239, appendix B),
    or with scale_shift enters after it as norm(h) (1 + scale) + shift (Nichol and Dhariwal, "Improved
    Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672). `resample`
    (average_pool, nearest or None) acts on both branches before their convolutions, as in ADM (Dhariwal and
    Nichol 2021, https://arxiv.org/abs/2105.05233). `conv` makes the convolutions, `activation` stands for silu.

    >>> block = ResBlock(features=8, norm_groups=4, resample=average_pool)
    >>> args = jax.random.key(0), jnp.ones([1, 4, 4, 4]), jnp.ones([1, 16])
    >>> jax.eval_shape(block.init_with_output, *args)[0].shape
    (1, 2, 2, 8)
    """

    features: int
    dropout: float = 0.0
    scale_shift: bool = False
    resample: Callable[[jax.Array], jax.Array] | None = None
    norm_groups: int | Callable[[int], int] = 32
    norm_eps: float = 1e-6
    zero_init: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    project_skip: bool = False
    skip_scale: float = 1.0
    activation: Callable[[jax.Array], jax.Array] = nn.silu
    conv: Callable[..., Any] = Conv3x3

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"groups": self.norm_groups, "eps": self.norm_eps, **types}
        last_init = nn.initializers.zeros if self.zero_init else dense_init

        h: Any = GroupNorm(name="norm_0", **norm).deferred(x, activation=self.activation)
        if self.resample is not None:
            h, x = self.resample(h()), self.resample(x)
        h = self.conv(self.features, name="conv_0", **types)(h)

        width = 2 * self.features if self.scale_shift else self.features
        film = nn.Dense(width, name="emb", kernel_init=dense_init, **types)(self.activation(emb))
        film = film[:, None, None, :]
        norm_1 = functools.partial(GroupNorm(name="norm_1", **norm).deferred, activation=self.activation)
        h = norm_1(h, *jnp.split(film, 2, axis=-1)) if self.scale_shift else norm_1(h + film)
        if train and self.dropout > 0:
            h = Dropout(self.dropout, deterministic=False)(h())
        h = self.conv(self.features, name="conv_1", kernel_init=last_init, **types)(h)

        if x.shape[-1] != self.features or self.project_skip:
            x = nn.Dense(self.features, name="skip", kernel_init=dense_init, dot_general=dot_general, **types)(x)
        return _scaled(x + h, self.skip_scale)


class SelfAttention(nn.Module):
    """Computes skip_scale (x + out(attention(query, key, value of norm(x)))) over the pixels of x [B, H, W, C].

    Without `normalise` there is no norm. head_dim fixes the number of heads as C / head_dim; without it there are
    num_heads heads, or one. The projection `qkv` has a kernel [C, 3, heads, head_dim]. attention_fn takes query, key
    and value of shape [B, H W, heads, head_dim] and returns that shape. The default scales by head_dim ** -0.5 and
    takes the softmax in float32, whatever the dtype.

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
    attention_fn: Callable[..., jax.Array] = dot_product_attention
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    normalise: bool = True
    skip_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        heads, head_dim = head_split(channels, self.num_heads, self.head_dim)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense: Callable[..., Any] = functools.partial(nn.DenseGeneral, dot_general=dot_general, **types)

        h = GroupNorm(self.norm_groups, self.norm_eps, name="norm", **types)(x) if self.normalise else x
        h = h.reshape(batch, height * width, channels)
        qkv = dense((3, heads, head_dim), name="qkv", kernel_init=qkv_init)(h)
        h = self.attention_fn(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        out_init = nn.initializers.zeros if self.zero_init else dense_init
        h = dense(channels, axis=(-2, -1), name="out", kernel_init=out_init)(h)
        return _scaled(x + h.reshape(x.shape), self.skip_scale)


def rematerialised(block: nn.Module, remat: bool) -> Callable[..., jax.Array]:
    """Returns a block to call as before; with remat the backward pass computes it again instead of keeping its inside.

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
