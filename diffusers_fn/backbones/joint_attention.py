"""Blocks of two streams of tokens that attend to each other: images and texts in Stable Diffusion 3 and Flux.

Image tokens are [B, L, D], text tokens [B, M, D], and an embedding c of time and text is [B, E], with B the batch size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, ops, transformer
from diffusers_fn.backbones.embeddings import dense_init

__all__ = ["Heads", "JointAttention", "JointBlock", "Rotation", "rotated"]

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines [M + L, head_dim / 2] of the angles of the tokens


class Heads(ops.Module):
    """Computes query, key and value [B, L, heads, D / heads] of tokens x [B, L, D].

    qk_norm normalises the features of every head of query and key: "rms" (Esser et al. 2024, section 3.5), "layer", or
    None for not.

    Raises ValueError if the heads do not divide D, and for another qk_norm.

    >>> heads = Heads(num_heads=2, qk_norm="rms")
    >>> query, _, _ = jax.eval_shape(heads.init_with_output, jax.random.key(0), jnp.ones([1, 5, 8]))[0]
    >>> query.shape
    (1, 5, 2, 4)
    """

    num_heads: int
    qk_norm: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        norms: dict[str | None, Any] = {None: None, "rms": ops.RMSNorm, "layer": ops.LayerNorm}
        if self.qk_norm not in norms:
            raise ValueError(f"qk_norm must be one of {', '.join(map(repr, norms))}; got {self.qk_norm!r}")
        split = blocks.head_split(x.shape[-1], self.num_heads, None)

        def project(name: str) -> jax.Array:
            dense = ops.Dense(x.shape[-1], kernel_init=blocks.qkv_init, name=name, **self.types)
            return dense(x).reshape(*x.shape[:-1], *split)

        query, key, value = project("query"), project("key"), project("value")
        if norms[self.qk_norm] is not None:
            norm: Callable[..., Any] = functools.partial(norms[self.qk_norm], 1e-6, **self.types)
            query, key = ops.array(norm(name="query_norm")(query)), ops.array(norm(name="key_norm")(key))
        return query, key, value


class JointAttention(ops.Module):
    """Computes attention of image and text tokens to all of them: (x', context') from x [B, L, D], context [B, M, D].

    Each of the two streams has layers of its own. Esser et al., "Scaling Rectified Flow Transformers for
    High-Resolution Image Synthesis" (2024), https://arxiv.org/abs/2403.03206, section 4. The text's tokens come first,
    in `rotation`, too, which `rotated` applies to query and key. Without context_out, context' is None.

    attention_fn takes query, key and value of shape [B, M + L, heads, D / heads].

    >>> attention = JointAttention(num_heads=2)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 3, 8])
    >>> [h.shape for h in jax.eval_shape(attention.init_with_output, *args)[0]]
    [(1, 5, 8), (1, 3, 8)]
    """

    num_heads: int
    qk_norm: str | None = None
    context_out: bool = True
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, rotation: Rotation | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        heads: Callable[..., Any] = functools.partial(Heads, self.num_heads, self.qk_norm, **self.types)
        out = functools.partial(ops.Dense, x.shape[-1], kernel_init=dense_init, **self.types)
        pairs = zip(heads(name="context_heads")(context), heads(name="heads")(x))
        query, key, value = (jnp.concatenate(pair, axis=1) for pair in pairs)
        h = self.attention_fn(rotated(query, rotation), rotated(key, rotation), value)
        h = h.reshape(*h.shape[:2], x.shape[-1])
        length = context.shape[1]
        return out(name="out")(h[:, length:]), out(name="context_out")(h[:, :length]) if self.context_out else None


class JointBlock(ops.Module):
    """Computes one block of image tokens x [B, L, D] and text tokens context [B, M, D] for an embedding c [B, E].

    With shift, scale and gate linear in silu(c), and others for each of the two streams,

        (a, b) = attention(norm(x) (1 + scale_1) + shift_1, norm(context) (1 + scale_1') + shift_1')
        x <- x + gate_1 a,                context <- context + gate_1' b
        x <- x + gate_2 mlp(norm(x) (1 + scale_2) + shift_2), and the context likewise

    Esser et al. (2024), https://arxiv.org/abs/2403.03206, figure 2b. With dual_attention, x has also attention to
    itself alone, of a third modulation, before the feed-forward layer (Stable Diffusion 3.5 medium). Without
    context_out, the context is only attended to and None is returned for it: the last block of a network.

    >>> block = JointBlock(num_heads=2, mlp_hidden_size=16)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 3, 8]), jnp.ones([1, 6])
    >>> [h.shape for h in jax.eval_shape(block.init_with_output, *args)[0]]
    [(1, 5, 8), (1, 3, 8)]
    """

    num_heads: int
    mlp_hidden_size: int
    qk_norm: str | None = None
    context_out: bool = True
    dual_attention: bool = False
    modulation_init: Callable[..., Any] = nn.initializers.zeros
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, c: jax.Array, rotation: Rotation | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        features = x.shape[-1]
        shift, scale, gate, *rest = self._modulation(c, "modulation", 9 if self.dual_attention else 6, features)
        parts = self._modulation(c, "context_modulation", 6 if self.context_out else 2, features)
        context_scale, context_shift = parts[:2][:: -1 if self.context_out else 1]  # in these orders, as published

        attention = JointAttention(
            self.num_heads, self.qk_norm, self.context_out, self.attention_fn, name="attention", **self.types
        )
        h = self._normed(x, scale, shift)
        second = self._normed(x, rest[4], rest[3]) if self.dual_attention else None
        a, b = attention(h, self._normed(context, context_scale, context_shift), rotation)
        x = x + gate * a
        if second is not None:
            x = x + rest[5] * self._attention_to_itself(second)
        x = self._with_mlp(x, "mlp", *rest[:3])
        if b is None:
            return x, None
        return x, self._with_mlp(context + parts[2] * b, "context_mlp", *parts[3:])

    def _modulation(self, c: jax.Array, name: str, count: int, features: int) -> list[jax.Array]:
        """Returns `count` arrays [B, 1, features]."""
        dense = ops.Dense(count * features, kernel_init=self.modulation_init, name=name, **self.types)
        return jnp.split(dense(ops.silu(c))[:, None], count, axis=-1)

    def _normed(self, x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        norm = ops.LayerNorm(use_bias=False, use_scale=False, **self.types)
        return ops.array(ops.modulate(norm(x), scale, shift))

    def _attention_to_itself(self, x: jax.Array) -> jax.Array:
        heads = Heads(self.num_heads, self.qk_norm, name="second_heads", **self.types)
        h = self.attention_fn(*heads(x)).reshape(x.shape)
        return ops.Dense(x.shape[-1], kernel_init=dense_init, name="second_out", **self.types)(h)

    def _with_mlp(self, x: jax.Array, name: str, shift: jax.Array, scale: jax.Array, gate: jax.Array) -> jax.Array:
        mlp = transformer.FeedForward(self.mlp_hidden_size, True, name=name, **self.types)
        return x + gate * mlp(self._normed(x, scale, shift))


def rotated(x: jax.Array, rotation: Rotation | None) -> jax.Array:
    """Returns x [B, L, heads, D] with every pair of features (2 i, 2 i + 1) rotated by the angle of its token.

    With (c, s) the cosine and sine of the angle, (a, b) -> (a c - b s, b c + a s); in float32 or wider. Without a
    rotation x is returned. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021),
    https://arxiv.org/abs/2104.09864, equation 34.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rotated(x, (jnp.zeros([1, 1]), jnp.ones([1, 1]))).ravel().tolist()  # by 90 degrees
    [0.0, 1.0]
    """
    if rotation is None:
        return x
    cos, sin = (part[None, :, None, :] for part in rotation)
    pairs = x.reshape(*x.shape[:-1], -1, 2).astype(jnp.promote_types(x.dtype, cos.dtype))
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)
