"""The text encoder of CLIP, whose output conditions Stable Diffusion."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, ops
from diffusers_fn.backbones.embeddings import dense_init
from diffusers_fn.backbones.sizes import scaled
from diffusers_fn.backbones.spatial_transformer import CrossAttention

__all__ = ["ClipLayer", "ClipText", "ClipTextEncoder"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClipText:
    """The output of `ClipTextEncoder` for token ids [B, L].

    Attributes:
      last_hidden: [B, L, hidden_size], after the final normalisation: the context of Stable Diffusion 1.
      hidden: depth + 1 arrays [B, L, hidden_size]: the embedded tokens, then every layer's output, none of them
        normalised. hidden[-2] is the penultimate layer, half of XL's context.
      pooled: [B, hidden_size], last_hidden at the end-of-text token.
      text_embeds: [B, projection_dim], the projected pooled text; None without a projection.
    """

    last_hidden: jax.Array
    hidden: tuple[jax.Array, ...]
    pooled: jax.Array
    text_embeds: jax.Array | None


class ClipTextEncoder(ops.Module):
    """Computes the `ClipText` of token ids [B, L], L at most max_length.

    A causal transformer, normalised before each part: x <- x + attention(norm(x)), x <- x + mlp(norm(x)).
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021),
    https://arxiv.org/abs/2103.00020, section 2.4. The defaults are ViT-L/14's text model, 123,060,480
    parameters; `open_clip_h()` and `open_clip_g()` are those of Stable Diffusion 2 and of XL's second text.

    attention_mask [B, L] is optional; tokens where it is 0 or False are hidden from the others. The output is
    computed in `dtype`.

    Fields:
      vocab_size, max_length: number of token ids, and of positions.
      hidden_size, depth, num_heads, mlp_ratio: features of a token, number of layers, heads of every attention, and
        the hidden units of every mlp as a multiple of hidden_size.
      activation: of the feed-forward layers, by name ("quick_gelu", "gelu" and the others of `UNet2D`), or a function.
      eos_id: the end-of-text token, whose first occurrence is pooled; the first token if there is none. None
        pools the highest id, where published vocabularies have that token (configurations say 2 for this).
      projection_dim: None, or the features of text_embeds.
      norm_eps: of every layer normalisation.
      remat: the backward pass computes every layer again instead of keeping its activations.
      attention_fn: as `jax.nn.dot_product_attention`, with a mask [1 or B, 1, L, L].
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics and the softmax
        stay in float32 or wider.

    Raises ValueError for ids that are not integers [B, L], and a mask of another shape.

    >>> encoder = ClipTextEncoder(vocab_size=99, hidden_size=8, depth=2, num_heads=2)
    >>> out = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros([2, 7], int))[0]
    >>> out.last_hidden.shape, len(out.hidden), out.pooled.shape, out.text_embeds
    ((2, 7, 8), 3, (2, 8), None)
    """

    vocab_size: int = 49_408
    max_length: int = 77
    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    activation: ops.Activation = "quick_gelu"
    eos_id: int | None = None
    projection_dim: int | None = None
    norm_eps: float = 1e-5
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @classmethod
    def open_clip_h(cls, **fields: Any) -> ClipTextEncoder:
        """Returns the text encoder of Stable Diffusion 2: 23 of the 24 layers of OpenCLIP ViT-H/14.

        >>> ClipTextEncoder.open_clip_h().hidden_size
        1024
        """
        own: dict[str, Any] = {"hidden_size": 1024, "depth": 23, "num_heads": 16}
        return cls(**(own | {"activation": "gelu"} | fields))

    @classmethod
    def open_clip_g(cls, **fields: Any) -> ClipTextEncoder:
        """Returns the second text encoder of Stable Diffusion XL: OpenCLIP ViT-bigG/14, with its projection.

        >>> ClipTextEncoder.open_clip_g().projection_dim
        1280
        """
        own: dict[str, Any] = {"hidden_size": 1280, "depth": 32, "num_heads": 20}
        return cls(**(own | {"activation": "gelu", "projection_dim": 1280} | fields))

    @nn.compact
    def __call__(self, ids: jax.Array, attention_mask: jax.Array | None = None) -> ClipText:
        ids = jnp.asarray(ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids must be integers of shape [B, L]; got {ids.dtype} {list(ids.shape)}")
        if ids.shape[1] > self.max_length:
            raise ValueError(f"ids must have at most max_length={self.max_length} tokens; got {ids.shape[1]}")
        if attention_mask is not None and attention_mask.shape != ids.shape:
            raise ValueError(f"attention_mask must have shape {list(ids.shape)}; got {list(attention_mask.shape)}")
        length = ids.shape[1]

        init = nn.initializers.normal(0.02)
        table = ops.Embed(self.vocab_size, self.hidden_size, embedding_init=init, name="tokens", **self.types)
        positions = self.param("positions", init, (self.max_length, self.hidden_size), self.param_dtype)
        x = table(ids) + positions.astype(self.dtype)[None, :length]

        mask = jnp.tril(jnp.ones([length, length], bool))[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask.astype(bool)[:, None, None, :]
        hidden = [x]
        settings = (self.num_heads, self.mlp_ratio, self.activation, self.norm_eps, self.attention_fn)
        for i in range(self.depth):
            layer = ClipLayer(*settings, name=f"layer_{i}", **self.types)
            x = blocks.rematerialised(layer, self.remat)(x, mask)
            hidden.append(x)

        last = ops.array(ops.LayerNorm(self.norm_eps, name="norm_out", **self.types)(x))
        end = jnp.argmax(ids if self.eos_id is None else ids == self.eos_id, axis=-1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        embeds = None
        if self.projection_dim is not None:
            projection = ops.Dense(
                self.projection_dim, use_bias=False, kernel_init=dense_init, name="projection", **self.types
            )
            embeds = projection(pooled)
        return ClipText(last, tuple(hidden), pooled, embeds)


class ClipLayer(ops.Module):
    """Computes x + attention(norm(x)), then x + mlp(norm(x)), for tokens x [B, L, C] and a mask of attention.

    >>> layer = ClipLayer(num_heads=2)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 1, 5, 5], bool)
    >>> jax.eval_shape(layer.init_with_output, *args)[0].shape
    (1, 5, 8)
    """

    num_heads: int
    mlp_ratio: float = 4.0
    activation: ops.Activation = "quick_gelu"
    norm_eps: float = 1e-5
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        norm: Callable[..., Any] = functools.partial(ops.LayerNorm, self.norm_eps, **self.types)
        dense: Callable[..., Any] = functools.partial(ops.Dense, kernel_init=dense_init, **self.types)
        attention = CrossAttention(
            self.num_heads, bias=True, attention_fn=self.attention_fn, name="attention", **self.types
        )
        x = x + attention(norm(name="norm_0")(x), None, mask)
        h = dense(scaled(x.shape[-1], self.mlp_ratio), name="mlp_0")(norm(name="norm_1")(x))
        h = ops.activation(self.activation)(h)
        return x + dense(x.shape[-1], name="mlp_1")(h)
