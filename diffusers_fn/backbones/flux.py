"""Flux: a transformer with rotary positions on patches of latents and tokens of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import blocks, conditions, embeddings, ops, patches
from diffusers_fn.backbones.joint_attention import Heads, JointBlock, Rotation, rotated
from diffusers_fn.backbones.mmdit import text_and_time
from diffusers_fn.backbones.sizes import scaled

__all__ = ["Flux", "SingleBlock", "rotary_angles"]


class Flux(ops.Module):
    """Computes a velocity [B, H, W, C'] for noisy latents x [B, H, W, C] at labels t [] or [B] and a text.

    `depth` blocks of two streams of tokens, patches and text, as in `MMDiT`, and `single_depth` blocks of one stream,
    the text's tokens before the patches. The positions of patches rotate query and key. Black Forest Labs, "FLUX.1"
    (2024), https://github.com/black-forest-labs/flux; Labs et al., "FLUX.1 Kontext" (2025),
    https://arxiv.org/abs/2506.15742, section 2. `dev()` and `schnell()` are the published sizes. t is sigma, in [0, 1].

    Published implementations take the patches as a sequence ("packed latents"); here x is an image, and the weights
    are read in the order that makes both the same.

    `cond` is a dict of arrays:
      context [B, M, context_dim]: required, the tokens of the text.
      text_embeds [B, text_embeds_dim]: required, the pooled text.
      guidance [] or [B]: required with guidance_embedding, the guidance scale for which the network was distilled.

    `train` changes nothing. The output is float32, or x's dtype if that is wider. The same parameters serve any H and W
    that the patches divide.

    Fields:
      in_channels, out_channels: C and C'; None is C for both. Fill, Canny and Depth have further channels in x.
      patch_size: pixels along each side of a patch.
      hidden_size, num_heads, mlp_ratio: features of a token, heads of every attention, and the hidden units of every
        feed-forward layer as a multiple of hidden_size.
      depth, single_depth: number of blocks with two streams and with one.
      context_dim, text_embeds_dim: features of a text token, and of the pooled text.
      guidance_embedding: the guidance scale is an input of the network.
      rope_dims: features of a head whose angles depend on an index that is 0 here, on the row and on the column.
      zero_init_output: start as the zero function, and every block as the identity.
      remat: the backward pass computes every block again instead of keeping its activations.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, M + L, heads, head_dim].
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics, the softmax, the sums of
        the blocks, the rotations and the embeddings of t, guidance and the pooled text stay in float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> net = Flux(in_channels=4, hidden_size=16, depth=1, single_depth=1, num_heads=2, context_dim=6,
    ...            text_embeds_dim=5, rope_dims=(2, 2, 4))
    >>> cond = {"context": jnp.zeros([2, 3, 6]), "text_embeds": jnp.zeros([2, 5])}
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros([2, 8, 12, 4]), 0.5, cond)[0].shape
    (2, 8, 12, 4)
    """

    in_channels: int | None = 16
    out_channels: int | None = None
    patch_size: int = 2
    hidden_size: int = 3072
    depth: int = 19
    single_depth: int = 38
    num_heads: int = 24
    mlp_ratio: float = 4.0
    context_dim: int = 4096
    text_embeds_dim: int = 768
    guidance_embedding: bool = False
    rope_dims: Sequence[int] = (16, 56, 56)
    zero_init_output: bool = True
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @classmethod
    def dev(cls, **fields: Any) -> Flux:
        """Returns the transformer of FLUX.1 dev, 11,901,408,320 parameters; fields replace its own.

        >>> Flux.dev().guidance_embedding
        True
        """
        return cls(**({"guidance_embedding": True} | fields))

    @classmethod
    def schnell(cls, **fields: Any) -> Flux:
        """Returns the transformer of FLUX.1 schnell, 11,891,178,560 parameters; fields replace its own.

        >>> Flux.schnell().guidance_embedding
        False
        """
        return cls(**fields)

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any] | None = None, *, train: bool = False
    ) -> jax.Array:
        self._check(x)
        cond = self._checked(cond, x.shape[0])
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        zero_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        types: dict[str, Any] = {"kernel_init": embeddings.dense_init, **self.types}

        h = patches.PatchEmbed(self.hidden_size, patch_size=self.patch_size, name="patch", **types)(x)
        context = ops.Dense(self.hidden_size, name="context_in", **types)(cond["context"])
        h, context = (tokens.astype(self.precise_dtype) for tokens in (h, context))  # sums: not rounded at each
        c = self._embed(t, cond, x.shape[0])
        rotation = self._rotation(x, context.shape[1])

        hidden_size = scaled(self.hidden_size, self.mlp_ratio)
        fields: dict[str, Any] = {"modulation_init": zero_init, "attention_fn": self.attention_fn, **self.types}
        for i in range(self.depth):
            block = JointBlock(self.num_heads, hidden_size, "rms", name=f"block_{i}", **fields)
            h, context = blocks.rematerialised(block, self.remat)(h, context, c, rotation)
        h = jnp.concatenate([context, h], axis=1)
        for i in range(self.single_depth):
            single = SingleBlock(self.num_heads, hidden_size, name=f"single_block_{i}", **fields)
            h = blocks.rematerialised(single, self.remat)(h, c, rotation)
        h = h[:, context.shape[1] :]

        modulation = ops.Dense(2 * self.hidden_size, kernel_init=zero_init, name="modulation_out", **self.types)
        scale, shift = jnp.split(modulation(ops.silu(c))[:, None], 2, axis=-1)
        h = ops.modulate(ops.LayerNorm(use_bias=False, use_scale=False, **self.types)(h), scale, shift)
        h = ops.Dense(self.patch_size**2 * out_channels, kernel_init=zero_init, name="dense_out", **self.types)(h)
        image = patches.unpatchify(h, self.patch_size, x.shape[1], x.shape[2])
        return image.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _embed(self, t: jax.Array, cond: Mapping[str, Any], batch: int) -> jax.Array:
        """Returns the embedding [B, hidden_size] of t, the pooled text and the guidance scale."""
        times = 1000 * embeddings.time_labels(t, batch, self.precise_dtype)
        guidance = None
        if self.guidance_embedding:
            guidance = jnp.broadcast_to(1000 * jnp.asarray(cond["guidance"], self.precise_dtype), [batch])
        return text_and_time(self.hidden_size, times, cond["text_embeds"], self.precise_types, guidance)

    def _rotation(self, x: jax.Array, num_texts: int) -> Rotation:
        """Returns the cosines and sines [M + L, head_dim / 2]; those of texts are of the angle 0."""
        rows, columns = (size // self.patch_size for size in x.shape[1:3])
        angles = [rotary_angles(size, dim) for size, dim in zip((1, rows, columns), self.rope_dims, strict=True)]

        def table(wave: Callable[[np.ndarray], np.ndarray]) -> jax.Array:
            first, row, column = (jnp.asarray(wave(each), self.precise_dtype) for each in angles)
            first = jnp.broadcast_to(first[None], (rows, columns, first.shape[-1]))
            row = jnp.broadcast_to(row[:, None], (rows, columns, row.shape[-1]))
            column = jnp.broadcast_to(column[None], (rows, columns, column.shape[-1]))
            grid = jnp.concatenate([first, row, column], axis=-1).reshape(rows * columns, -1)
            return jnp.concatenate([jnp.full((num_texts, grid.shape[-1]), wave(np.zeros(())), grid.dtype), grid])

        return table(np.cos), table(np.sin)

    def _checked(self, cond: Mapping[str, Any] | None, batch: int) -> dict[str, Any]:
        takes = {"context": True, "text_embeds": True} | ({"guidance": True} if self.guidance_embedding else {})
        cond = conditions.named(cond, takes)
        shapes = {"context": (batch, conditions.num_tokens(cond), self.context_dim)}
        conditions.check_shapes(cond, {**shapes, "text_embeds": (batch, self.text_embeds_dim)})
        if self.guidance_embedding and jnp.shape(cond["guidance"]) not in ((), (batch,)):
            raise ValueError(f"cond['guidance'] must have shape [] or [{batch}]; got {jnp.shape(cond['guidance'])}")
        return cond

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        if self.depth < 1 or self.single_depth < 0:
            raise ValueError(
                "depth must be at least 1 and single_depth at least 0; got "
                f"depth={self.depth}, single_depth={self.single_depth}"
            )
        head_dim = blocks.head_split(self.hidden_size, self.num_heads, None)[1]
        if len(self.rope_dims) != 3 or sum(self.rope_dims) != head_dim or any(dim % 2 for dim in self.rope_dims):
            raise ValueError(
                f"rope_dims must be three even numbers whose sum is hidden_size / num_heads = {head_dim}; "
                f"got {tuple(self.rope_dims)}"
            )
        if x.ndim != 4 or self.in_channels not in (None, x.shape[-1]):
            raise ValueError(f"x must have shape [B, H, W, {self.in_channels or 'C'}]; got {list(x.shape)}")


class SingleBlock(ops.Module):
    """Computes h + gate out(attention(n), gelu(in(n))), n = norm(h) (1 + scale) + shift, for tokens h [B, L, D].

    Attention and feed-forward layer are side by side; scale, shift and gate are linear in silu(c), with an embedding c
    [B, E]. Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters" (2023),
    https://arxiv.org/abs/2302.05442, section 2.

    >>> block = SingleBlock(num_heads=2, mlp_hidden_size=16)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 6])
    >>> jax.eval_shape(block.init_with_output, *args)[0].shape
    (1, 5, 8)
    """

    num_heads: int
    mlp_hidden_size: int
    modulation_init: Callable[..., Any] = nn.initializers.zeros
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, h: jax.Array, c: jax.Array, rotation: Rotation | None = None) -> jax.Array:
        features = h.shape[-1]
        modulation = ops.Dense(3 * features, kernel_init=self.modulation_init, name="modulation", **self.types)
        shift, scale, gate = jnp.split(modulation(ops.silu(c))[:, None], 3, axis=-1)
        norm = ops.LayerNorm(use_bias=False, use_scale=False, **self.types)
        dense_types: dict[str, Any] = {"kernel_init": embeddings.dense_init, **self.types}

        n = ops.array(ops.modulate(norm(h), scale, shift))
        query, key, value = Heads(self.num_heads, "rms", name="heads", **self.types)(n)
        a = self.attention_fn(rotated(query, rotation), rotated(key, rotation), value).reshape(h.shape)
        hidden = ops.array(ops.gelu(ops.Dense(self.mlp_hidden_size, name="mlp_0", **dense_types)(n)))
        out = ops.Dense(features, name="out", **dense_types)
        return h + gate * out(jnp.concatenate([a, hidden], axis=-1))


def rotary_angles(size: int, dim: int, *, max_period: float = 10_000.0) -> np.ndarray:
    """Returns the angles [size, dim / 2] of positions 0 .. size - 1: position max_period ** (-2 k / dim), in float64.

    Su et al., "RoFormer" (2021), https://arxiv.org/abs/2104.09864, equation 15.

    >>> rotary_angles(2, 4).tolist()
    [[0.0, 0.0], [1.0, 0.01]]
    """
    return np.arange(size)[:, None] * max_period ** (-np.arange(0, dim, 2) / dim)[None]
