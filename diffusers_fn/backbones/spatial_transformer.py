"""The transformer of the text-conditioned networks: attention to a context, and a transformer over pixels.

Tokens are [B, L, C], with B the batch size and L their number; a context is [B, M, D].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, ops
from diffusers_fn.backbones.embeddings import dense_init

__all__ = ["CrossAttention", "SpatialTransformer", "TransformerBlock"]


class CrossAttention(ops.Module):
    """Computes out(attention(query(x), key(context), value(context))) [B, L, C] for tokens x [B, L, C].

    Without a context the tokens attend to each other. mask is boolean, broadcastable to [B, heads, L, M], and
    False where a query must not attend. Vaswani et al., "Attention Is All You Need" (2017),
    https://arxiv.org/abs/1706.03762, section 3.2.

    attention_fn takes query, key and value of shape [B, L or M, heads, C / heads], and mask=mask if there is
    one. The default takes the softmax in float32, whatever the dtype.

    Raises ValueError if the heads do not divide C.

    >>> attention = CrossAttention(num_heads=2)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 3, 6])
    >>> out, variables = jax.eval_shape(attention.init_with_output, *args)
    >>> out.shape, variables["params"]["key"]["kernel"].shape
    ((1, 5, 8), (6, 8))
    """

    num_heads: int
    bias: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(
        self, x: jax.Array | ops.Lazy, context: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        x = ops.array(x)  # once for query, key and value
        context = x if context is None else context
        batch, length, channels = x.shape
        heads, head_dim = blocks.head_split(channels, self.num_heads, None)

        def project(name: str, tokens: jax.Array) -> jax.Array:
            dense = ops.Dense(channels, self.bias, kernel_init=blocks.qkv_init, name=name, **self.types)
            return dense(tokens).reshape(batch, -1, heads, head_dim)

        query, key, value = project("query", x), project("key", context), project("value", context)
        masked = {} if mask is None else {"mask": mask}
        h = self.attention_fn(query, key, value, **masked).reshape(batch, length, channels)
        return ops.Dense(channels, kernel_init=dense_init, name="out", **self.types)(h)


class TransformerBlock(ops.Module):
    """Computes self-attention, attention to a context and a gated feed-forward layer, each added to x [B, L, C].

        x <- x + self_attention(norm(x))
        x <- x + cross_attention(norm(x), context, mask)
        x <- x + out(a * gelu(g)),    (a, g) = in(norm(x))

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022),
    https://arxiv.org/abs/2112.10752, appendix E.2.1; the gate is GEGLU of Shazeer, "GLU Variants Improve
    Transformer" (2020), https://arxiv.org/abs/2002.05202, equation 6, with the exact GELU. With
    only_cross_attention the first attention attends to the context too, but without the mask, as published.

    >>> block = TransformerBlock(num_heads=2)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 3, 6])
    >>> jax.eval_shape(block.init_with_output, *args)[0].shape
    (1, 5, 8)
    """

    num_heads: int
    only_cross_attention: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        heads: dict[str, Any] = {"num_heads": self.num_heads, "attention_fn": self.attention_fn, **self.types}
        norm: Callable[..., Any] = functools.partial(ops.LayerNorm, epsilon=1e-5, **self.types)
        dense: Callable[..., Any] = functools.partial(ops.Dense, kernel_init=dense_init, **self.types)
        first = context if self.only_cross_attention else None

        x = x + CrossAttention(name="self_attention", **heads)(norm(name="norm_0")(x), first)
        x = x + CrossAttention(name="cross_attention", **heads)(norm(name="norm_1")(x), context, mask)
        h = _gated(dense(8 * x.shape[-1], name="feed_in")(ops.array(norm(name="norm_2")(x))))
        return x + dense(x.shape[-1], name="feed_out")(h)


@jax.checkpoint  # cheaper to compute again in the backward pass than to keep
def _gated(h: jax.Array) -> jax.Array:
    """Returns a * gelu(g) for h = (a, g)."""
    h, gate = jnp.split(h, 2, axis=-1)
    return h * jax.nn.gelu(gate.astype(jnp.promote_types(gate.dtype, jnp.float32)), approximate=False)


class SpatialTransformer(ops.Module):
    """Computes x + out(blocks(in(norm(x)))) over the pixels of x [B, H, W, C], with a context [B, M, D].

    The pixels are H W tokens for `depth` transformer blocks. Rombach et al. (2022),
    https://arxiv.org/abs/2112.10752, appendix E.2.1. With remat the backward pass computes each block again
    instead of keeping its activations.

    >>> transformer = SpatialTransformer(depth=2, num_heads=2, norm_groups=4)
    >>> args = jax.random.key(0), jnp.ones([1, 4, 2, 8]), jnp.ones([1, 3, 6])
    >>> jax.eval_shape(transformer.init_with_output, *args)[0].shape
    (1, 4, 2, 8)
    """

    depth: int
    num_heads: int
    only_cross_attention: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-6
    zero_init: bool = True
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        batch, height, width, channels = x.shape
        dense: Callable[..., Any] = functools.partial(ops.Dense, channels, **self.types)
        out_init = nn.initializers.zeros if self.zero_init else dense_init

        h = ops.array(ops.GroupNorm(self.norm_groups, self.norm_eps, name="norm", **self.types)(x))
        h = h.reshape(batch, height * width, channels)
        h = dense(kernel_init=dense_init, name="proj_in")(h)
        h = h.astype(jnp.promote_types(self.dtype, jnp.float32))  # sums of many terms: not rounded at each
        settings = (self.num_heads, self.only_cross_attention, self.attention_fn)
        for i in range(self.depth):
            block = TransformerBlock(*settings, name=f"block_{i}", **self.types)
            h = blocks.rematerialised(block, self.remat)(h, context, mask)
        h = dense(kernel_init=out_init, name="proj_out")(h)
        return x + h.reshape(x.shape)
