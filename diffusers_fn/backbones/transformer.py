"""The parts of the transformer backbones: patches, positions, self-attention, feed-forward.

Tokens are [B, L, D]: B examples, L tokens of width D. Images are NHWC; patches of P x P pixels are taken row by row.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones.attend import dot_product_attention
from diffusers_fn.backbones.blocks import tiles, untiled
from diffusers_fn.backbones.deferred import Deferred
from diffusers_fn.backbones.dense import dot_general, dot_general_of, opened
from diffusers_fn.backbones.embeddings import dense_init


def patchify(x: jax.Array, patch_size: int) -> jax.Array:
    """Returns the patches of x [B, H, W, C] as tokens [B, (H / P) (W / P), P P C], each in the order row, column, C.

    Raises ValueError unless x is [B, H, W, C] and P divides H and W.

    >>> patchify(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    if x.ndim != 4:
        raise ValueError(f"x must have shape [B, H, W, C]; got {list(x.shape)}")
    batch, height, width, _ = x.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"H and W must be multiples of patch_size={patch_size}; got {height} and {width}")
    rows, columns = height // patch_size, width // patch_size
    x = tiles(x, patch_size).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, *x.shape[3:]).reshape(batch, rows * columns, -1)


def unpatchify(tokens: jax.Array, patch_size: int, height: int, width: int) -> jax.Array:
    """Returns the image [B, H, W, C] with these patches: the inverse of `patchify`.

    >>> x = jnp.arange(48.0).reshape(1, 4, 6, 2)
    >>> bool((unpatchify(patchify(x, 2), 2, 4, 6) == x).all())
    True
    """
    batch, rows, columns = tokens.shape[0], height // patch_size, width // patch_size
    x = tokens.reshape(batch, rows, columns, tokens.shape[-1]).reshape(batch, rows, columns, patch_size, patch_size, -1)
    return untiled(x.transpose(0, 1, 3, 2, 4, 5))


def sincos_positions(rows: int, columns: int, width: int, stretch_to: tuple[float, float] | None = None) -> np.ndarray:
    """Returns fixed position features [rows columns, width], float64, for a grid that is read row by row.

    With the frequencies omega_k = 10000 ** (-k / (width / 4)), k = 0 .. width / 4 - 1, the token at row i and column j
    has

        [sin(j omega), cos(j omega), sin(i omega), cos(i omega)]

    Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.5, for each axis,
    as He et al., "Masked Autoencoders Are Scalable Vision Learners" (2021), https://arxiv.org/abs/2111.06377, join
    them. With stretch_to=(a, b) the rows and columns lie evenly on [0, a) and [0, b) instead of at whole numbers.

    Raises ValueError unless 4 divides the width.

    >>> sincos_positions(2, 3, 8).shape
    (6, 8)
    """
    if width < 4 or width % 4:
        raise ValueError(f"the width of sin-cos positions must be a multiple of 4; got {width}")
    height_end, width_end = (rows, columns) if stretch_to is None else stretch_to
    i, j = np.meshgrid(np.arange(rows) * (height_end / rows), np.arange(columns) * (width_end / columns), indexing="ij")
    omega = 1 / 10_000.0 ** (np.arange(width // 4) / (width / 4))
    angles = [position.reshape(-1, 1) * omega for position in (j, i)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=-1)


class PatchEmbed(nn.Module):
    """Computes a linear map of every patch: x [B, H, W, C] -> tokens [B, (H / P) (W / P), features].

    It is the convolution with windows and strides of P, and its kernel is kept as [P, P, C, features]. The kernel is
    drawn as that of a linear layer with P P C inputs.

    >>> patch = PatchEmbed(patch_size=2, features=8)
    >>> jax.eval_shape(patch.init_with_output, jax.random.key(0), jnp.ones([1, 4, 6, 3]))[0].shape
    (1, 6, 8)
    """

    patch_size: int
    features: int
    kernel_init: Callable[..., Any] = dense_init
    bias_init: Callable[..., Any] = nn.initializers.zeros
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        patches = patchify(x, self.patch_size)
        shape = (self.patch_size, self.patch_size, x.shape[-1], self.features)

        def init(key: jax.Array) -> jax.Array:
            return self.kernel_init(key, (patches.shape[-1], self.features), self.param_dtype).reshape(shape)

        kernel = self.param("kernel", init).reshape(-1, self.features)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        tokens = dot_general(patches.astype(self.dtype), kernel.astype(self.dtype), (((2,), (0,)), ((), ())))
        return tokens + bias.astype(self.dtype)[None, None]


class Attention(nn.Module):
    """Computes out(attention(query, key, value of x)) for tokens x [B, L, D], which may be `Deferred`.

    The projection `qkv` has a kernel [D, 3, heads, D / heads]. attention_fn takes query, key and value of shape
    [B, L, heads, D / heads] and returns that shape; the default takes the softmax in float32, whatever the dtype.

    Raises ValueError unless the heads divide D.

    >>> attention = Attention(num_heads=2)
    >>> params = jax.eval_shape(attention.init, jax.random.key(0), jnp.ones([1, 5, 8]))["params"]
    >>> params["qkv"]["kernel"].shape
    (8, 3, 2, 4)
    """

    num_heads: int
    qkv_bias: bool = True
    kernel_init: Callable[..., Any] = dense_init
    attention_fn: Callable[..., jax.Array] = dot_product_attention
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array | Deferred) -> jax.Array:
        width, heads = x.shape[-1], self.num_heads
        if heads < 1 or width % heads:
            raise ValueError(f"num_heads must divide hidden_size; got num_heads={heads}, hidden_size={width}")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": self.kernel_init}
        x, product = opened(x)
        project = nn.DenseGeneral(
            (3, heads, width // heads), use_bias=self.qkv_bias, dot_general=product, name="qkv", **types
        )
        qkv = project(x)
        h = self.attention_fn(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return nn.DenseGeneral(width, axis=(-2, -1), dot_general=dot_general, name="out", **types)(h)


class FeedForward(nn.Module):
    """Computes Dense(gelu(Dense(x))) with `hidden` units in between, for tokens x [B, L, D], which may be `Deferred`.

    Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), https://arxiv.org/abs/1606.08415: x Phi(x), or with
    `approximate` its tanh form.

    >>> jax.eval_shape(FeedForward(hidden=16).init_with_output, jax.random.key(0), jnp.ones([1, 5, 4]))[0].shape
    (1, 5, 4)
    """

    hidden: int
    approximate: bool = False
    kernel_init: Callable[..., Any] = dense_init
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array | Deferred) -> jax.Array:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": self.kernel_init}
        gelu = functools.partial(nn.gelu, approximate=self.approximate)
        x, product = opened(x)
        h = nn.Dense(self.hidden, dot_general=product, name="dense_0", **types)(x)
        return nn.Dense(x.shape[-1], dot_general=dot_general_of(gelu), name="dense_1", **types)(h)
