"""The encoder of T5, whose output conditions Stable Diffusion 3, Flux and PixArt."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import blocks, ops
from diffusers_fn.backbones.embeddings import dense_init
from diffusers_fn.backbones.sizes import scaled

__all__ = ["T5Encoder", "T5Layer", "position_buckets"]


class T5Encoder(ops.Module):
    """Computes the last hidden states [B, L, hidden_size] of token ids [B, L], after the final normalisation.

    A transformer whose positions are a bias of the attention that depends on the distance of two tokens,

        x <- x + out(softmax(q k^T + bias) v),    x <- x + out(f(gate(x)) in(x)),    both of rms_norm(x)

    without any bias of the linear layers and without 1 / sqrt(head_dim). All layers share the position bias. Raffel et
    al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2019),
    https://arxiv.org/abs/1910.10683, section 2.1; the gate is that of Shazeer, "GLU Variants Improve Transformer"
    (2020), https://arxiv.org/abs/2002.05202, as in T5 v1.1. The defaults are v1.1's XXL encoder, 4,762,310,656
    parameters; `small()`, `base()`, `large()` and `xl()` are the other sizes.

    attention_mask [B, L] is optional; tokens where it is 0 or False are hidden from the others. Texts of any length are
    accepted. The sums of the layers are computed in float32 or wider, and the output is in `dtype`.

    Fields:
      vocab_size: number of token ids.
      hidden_size, depth, num_heads, mlp_ratio: features of a token, number of layers, heads of every attention, and
        the hidden units of every feed-forward layer as a multiple of hidden_size.
      attention_dim: features of query, key and value of all heads; None is hidden_size.
      activation: of the feed-forward layers, by name ("gelu_tanh", "relu" and the others of `UNet2D`), or a function.
      gated_mlp: whether the feed-forward layers have a gate, as in v1.1; in the first T5 they have none, and "relu".
      num_buckets, max_distance: of the position bias, see `position_buckets`.
      norm_eps: of every normalisation.
      remat: the backward pass computes every layer again instead of keeping its activations.
      attention_fn: as `jax.nn.dot_product_attention`, with bias [1, heads, L, L] and, if a mask is given, a mask
        [B, 1, 1, L].
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics and the softmax stay in
        float32 or wider.

    Raises ValueError for ids that are not integers [B, L], a mask of another shape, and heads that do not divide
    attention_dim.

    >>> encoder = T5Encoder(vocab_size=99, hidden_size=8, depth=2, num_heads=2)
    >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros([2, 7], int))[0].shape
    (2, 7, 8)
    """

    vocab_size: int = 32_128
    hidden_size: int = 4096
    depth: int = 24
    num_heads: int = 64
    mlp_ratio: float = 2.5
    attention_dim: int | None = None
    activation: ops.Activation = "gelu_tanh"
    gated_mlp: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @classmethod
    def small(cls, **fields: Any) -> T5Encoder:
        """Returns the encoder of T5 v1.1 small, 35,332,800 parameters; fields replace its own.

        >>> T5Encoder.small().attention_dim
        384
        """
        own: dict[str, Any] = {"hidden_size": 512, "depth": 8, "num_heads": 6, "mlp_ratio": 2.0, "attention_dim": 384}
        return cls(**(own | fields))

    @classmethod
    def base(cls, **fields: Any) -> T5Encoder:
        """Returns the encoder of T5 v1.1 base, 109,628,544 parameters; fields replace its own.

        >>> T5Encoder.base().hidden_size
        768
        """
        own: dict[str, Any] = {"hidden_size": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 2048 / 768}
        return cls(**(own | fields))

    @classmethod
    def large(cls, **fields: Any) -> T5Encoder:
        """Returns the encoder of T5 v1.1 large, 341,231,104 parameters; fields replace its own.

        >>> T5Encoder.large().hidden_size
        1024
        """
        own: dict[str, Any] = {"hidden_size": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 2.75}
        return cls(**(own | fields))

    @classmethod
    def xl(cls, **fields: Any) -> T5Encoder:
        """Returns the encoder of T5 v1.1 XL, 1,223,527,424 parameters; fields replace its own.

        >>> T5Encoder.xl().hidden_size
        2048
        """
        own: dict[str, Any] = {"hidden_size": 2048, "depth": 24, "num_heads": 32, "mlp_ratio": 2.5}
        return cls(**(own | fields))

    @nn.compact
    def __call__(self, ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        ids = jnp.asarray(ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids must be integers of shape [B, L]; got {ids.dtype} {list(ids.shape)}")
        if attention_mask is not None and attention_mask.shape != ids.shape:
            raise ValueError(f"attention_mask must have shape {list(ids.shape)}; got {list(attention_mask.shape)}")

        init = nn.initializers.normal(1.0)
        table = ops.Embed(self.vocab_size, self.hidden_size, embedding_init=init, name="tokens", **self.types)
        x = table(ids).astype(self.precise_dtype)  # sums of many terms: not rounded at each
        bias, mask = self._position_bias(ids.shape[1]), None
        if attention_mask is not None:
            mask = attention_mask.astype(bool)[:, None, None, :]
        width = self.hidden_size if self.attention_dim is None else self.attention_dim
        hidden = scaled(self.hidden_size, self.mlp_ratio)
        settings = (self.num_heads, width, hidden, self.activation, self.gated_mlp, self.norm_eps, self.attention_fn)
        for i in range(self.depth):
            layer = T5Layer(*settings, name=f"layer_{i}", **self.types)
            x = blocks.rematerialised(layer, self.remat)(x, bias, mask)
        return ops.array(ops.RMSNorm(self.norm_eps, name="norm_out", **self.types)(x))

    def _position_bias(self, length: int) -> jax.Array:
        """Returns the bias [1, heads, L, L] of every attention: a row of a table per bucket of distances."""
        init = nn.initializers.normal(self.hidden_size**-0.5)
        types = self.precise_types
        table = ops.Embed(self.num_buckets, self.num_heads, embedding_init=init, name="position_bias", **types)
        distances = np.arange(length)[None, :] - np.arange(length)[:, None]
        buckets = position_buckets(distances, self.num_buckets, self.max_distance)
        return table(jnp.asarray(buckets)).transpose(2, 0, 1)[None]


class T5Layer(ops.Module):
    """Computes x + attention(norm(x)), then x + mlp(norm(x)), for tokens x [B, L, C].

    bias [1, heads, L, L] and mask [B, 1, 1, L], or None, are those of the attention. attention_dim is the number of
    features of query, key and value, and hidden_size that of the feed-forward layer.

    >>> layer = T5Layer(num_heads=2, attention_dim=6, hidden_size=16)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 2, 5, 5])
    >>> jax.eval_shape(layer.init_with_output, *args)[0].shape
    (1, 5, 8)
    """

    num_heads: int
    attention_dim: int
    hidden_size: int
    activation: ops.Activation = "gelu_tanh"
    gated_mlp: bool = True
    norm_eps: float = 1e-6
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        norm: Callable[..., Any] = functools.partial(ops.RMSNorm, self.norm_eps, **self.types)
        x = x + self._attention(ops.array(norm(name="norm_0")(x)), bias, mask)
        return x + self._mlp(ops.array(norm(name="norm_1")(x)))

    def _dense(self, features: int, name: str) -> Callable[..., jax.Array]:
        return ops.Dense(features, use_bias=False, kernel_init=dense_init, name=name, **self.types)

    def _attention(self, x: jax.Array, bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        heads, head_dim = blocks.head_split(self.attention_dim, self.num_heads, None)

        def project(name: str) -> jax.Array:
            return self._dense(self.attention_dim, name)(x).reshape(*x.shape[:2], heads, head_dim)

        query = project("query") * head_dim**0.5  # attention_fn divides by this
        masked = {} if mask is None else {"mask": mask}
        h = self.attention_fn(query, project("key"), project("value"), bias=bias, **masked)
        return self._dense(x.shape[-1], "out")(h.reshape(*x.shape[:2], self.attention_dim))

    def _mlp(self, x: jax.Array) -> jax.Array:
        h = ops.array(ops.lazily(ops.activation(self.activation))(self._dense(self.hidden_size, "mlp_0")(x)))
        h = h * self._dense(self.hidden_size, "mlp_gate")(x) if self.gated_mlp else h
        return self._dense(x.shape[-1], "mlp_1")(h)


def position_buckets(distances: np.ndarray, num_buckets: int = 32, max_distance: int = 128) -> np.ndarray:
    """Returns the bucket of each distance of a key from its query, integers of any shape.

    Half of the buckets are for keys behind the query. In each half, the first half of the buckets has one distance
    each, and the others grow geometrically up to max_distance; the last has all larger distances, too. Raffel et al.
    (2019), section 2.1.

    >>> position_buckets(np.array([0, -1, 1, -20, 20, -500])).tolist()
    [0, 1, 17, 10, 26, 15]
    """
    half = num_buckets // 2
    exact = half // 2
    size = np.abs(distances)
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    large = exact + (ratio * np.float32(half - exact)).astype(np.int64)
    return half * (distances > 0) + np.where(size < exact, size, np.minimum(large, half - 1))
