"""The two layers of a transformer of tokens: self-attention and feed-forward. Tokens are [B, L, D]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from diffusers_fn.backbones import ops
from diffusers_fn.backbones.embeddings import dense_init

__all__ = ["Attention", "FeedForward"]


class Attention(ops.Module):
    """Computes out(attention(query, key, value of x)) for tokens x [B, L, D], which may be lazy.

    The projection `qkv` has a kernel [D, 3, heads, D / heads]. attention_fn takes query, key and value of shape
    [B, L, heads, D / heads] and returns that shape; the default computes the softmax in float32, whatever the dtype.
    Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.2.

    Raises ValueError unless the heads divide D.

    >>> import jax.numpy as jnp
    >>> attention = Attention(num_heads=2)
    >>> params = jax.eval_shape(attention.init, jax.random.key(0), jnp.ones([1, 5, 8]))["params"]
    >>> params["qkv"]["kernel"].shape
    (8, 3, 2, 4)
    """

    num_heads: int
    qkv_bias: bool = True
    kernel_init: Callable[..., Any] = dense_init
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array | ops.Lazy) -> jax.Array:
        features, heads = x.shape[-1], self.num_heads
        if heads < 1 or features % heads:
            raise ValueError(f"num_heads must divide hidden_size; got num_heads={heads}, hidden_size={features}")
        fields: dict[str, Any] = {"kernel_init": self.kernel_init, **self.types}
        split = (3, heads, features // heads)
        qkv = ops.DenseGeneral(split, use_bias=self.qkv_bias, name="qkv", **fields)(x)
        h = self.attention_fn(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return ops.DenseGeneral(features, axis=(-2, -1), name="out", **fields)(h)


class FeedForward(ops.Module):
    """Computes Dense(gelu(Dense(x))) with `hidden_size` units in between, for tokens x [B, L, D], which may be lazy.

    Vaswani et al. (2017), section 3.3, with the GELU for the ReLU; `approximate` selects its tanh form.

    >>> import jax.numpy as jnp
    >>> jax.eval_shape(FeedForward(hidden_size=16).init_with_output, jax.random.key(0), jnp.ones([1, 5, 4]))[0].shape
    (1, 5, 4)
    """

    hidden_size: int
    approximate: bool = False
    kernel_init: Callable[..., Any] = dense_init

    @nn.compact
    def __call__(self, x: jax.Array | ops.Lazy) -> jax.Array:
        fields: dict[str, Any] = {"kernel_init": self.kernel_init, **self.types}
        h = ops.Dense(self.hidden_size, name="dense_0", **fields)(x)
        h = ops.gelu(h, approximate=self.approximate)
        return ops.Dense(x.shape[-1], name="dense_1", **fields)(h)
