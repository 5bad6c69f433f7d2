"""PixArt: a DiT whose patches attend to a text, with one modulation for all blocks (adaLN-single)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, conditions, embeddings, ops, patches, transformer
from diffusers_fn.backbones.embeddings import EmbeddingMLP
from diffusers_fn.backbones.sizes import scaled
from diffusers_fn.backbones.spatial_transformer import CrossAttention

__all__ = ["PixArt", "PixArtBlock"]


class PixArt(ops.Module):
    """Computes a denoiser's output [B, H, W, C'] for noisy latents x [B, H, W, C] at labels t [] or [B] and a text.

    A `DiT` with attention to a text after each self-attention. The embedding of t gives one modulation, to which every
    block adds a table of its own. Chen et al., "PixArt-alpha: Fast Training of Diffusion Transformer for
    Photorealistic Text-to-Image Synthesis" (2023), https://arxiv.org/abs/2310.00426, section 2.3. `alpha_512()` and
    `alpha_1024()` are the published sizes.

    `cond` is a dict of arrays:
      context [B, M, context_dim]: required, the tokens of the text.
      context_mask [B, M]: optional, boolean; False hides a token. At least one token must be visible.
      resolution [B, 2] and aspect_ratio [B, 1]: required with size_conditions: height and width of the image in
        pixels, and their ratio.

    `train` changes nothing. The output is float32, or x's dtype if that is wider. It has out_channels channels (C if
    None), or twice as many with learned_variance: the mean's first, the variance's last. The same parameters serve any
    H and W that the patches divide.

    Fields:
      image_size: the H and W of training, over whose patches the positions of every H and W are spread.
      position_scale: divides the positions.
      patch_size: pixels along each side of a patch.
      hidden_size, depth, num_heads, mlp_ratio: features of a token, number of blocks, heads of every attention, and
        the hidden units of every feed-forward layer as a multiple of hidden_size.
      in_channels: C, or None for any.
      context_dim: features of a text token, which two layers map to hidden_size.
      size_conditions: resolution and aspect ratio are inputs.
      qkv_bias, gelu_approximate, norm_eps: details of the blocks.
      zero_init_output: start as the zero function.
      remat: the backward pass computes every block again instead of keeping its activations.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, L or M, heads, head_dim], with a mask [B, 1, 1, M] where
        there is one.
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics, the softmax, the sums of
        the blocks and the embeddings of t and sizes stay in float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> net = PixArt(image_size=8, hidden_size=16, depth=2, num_heads=2, context_dim=6)
    >>> args = jnp.zeros([2, 8, 12, 4]), jnp.array([0, 999]), {"context": jnp.zeros([2, 3, 6])}
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), *args)[0].shape
    (2, 8, 12, 8)
    """

    image_size: int = 64
    position_scale: float = 1.0
    patch_size: int = 2
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    in_channels: int | None = 4
    out_channels: int | None = None
    learned_variance: bool = True
    context_dim: int = 4096
    size_conditions: bool = False
    qkv_bias: bool = True
    gelu_approximate: bool = True
    norm_eps: float = 1e-6
    zero_init_output: bool = True
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @classmethod
    def alpha_512(cls, **fields: Any) -> PixArt:
        """Returns the transformer of PixArt-alpha for images of 512 x 512, 610,856,096 parameters.

        >>> PixArt.alpha_512().depth
        28
        """
        return cls(**fields)

    @classmethod
    def alpha_1024(cls, **fields: Any) -> PixArt:
        """Returns the transformer of PixArt-alpha for images of 1024 x 1024, 611,349,152 parameters.

        >>> PixArt.alpha_1024().position_scale
        2.0
        """
        own: dict[str, Any] = {"image_size": 128, "position_scale": 2.0, "size_conditions": True}
        return cls(**(own | fields))

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any] | None = None, *, train: bool = False
    ) -> jax.Array:
        self._check(x)
        cond = self._checked(cond, x.shape[0])
        out_channels = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        zero_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init

        emb = self._embed(t, cond, x.shape[0])
        dense = ops.Dense(
            6 * self.hidden_size, kernel_init=embeddings.dense_init, name="modulation", **self.precise_types
        )
        modulation = dense(ops.silu(emb)).reshape(-1, 6, self.hidden_size)
        context = EmbeddingMLP(self.hidden_size, "gelu_tanh", name="context_in", **self.types)(cond["context"])
        mask = cond["context_mask"].astype(bool)[:, None, None, :] if "context_mask" in cond else None

        h = patches.PatchEmbed(
            self.hidden_size, patch_size=self.patch_size, kernel_init=embeddings.dense_init, name="patch", **self.types
        )(x)
        h = h.astype(self.precise_dtype) + self._positions(x)[None]  # sums of many terms: not rounded at each
        for i in range(self.depth):
            block = blocks.rematerialised(self._block(f"block_{i}"), self.remat)
            h = block(h, context, modulation, mask)

        table = self.param("modulation_out", _table_init, (2, self.hidden_size), self.param_dtype)
        shift, scale = jnp.split(table.astype(emb.dtype)[None] + emb[:, None], 2, axis=1)
        h = ops.modulate(ops.LayerNorm(use_bias=False, use_scale=False, **self.types)(h), scale, shift)
        h = ops.Dense(self.patch_size**2 * out_channels, kernel_init=zero_init, name="dense_out", **self.types)(h)
        image = patches.unpatchify(h, self.patch_size, x.shape[1], x.shape[2])
        return image.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _block(self, name: str) -> PixArtBlock:
        return PixArtBlock(
            num_heads=self.num_heads,
            mlp_hidden_size=scaled(self.hidden_size, self.mlp_ratio),
            qkv_bias=self.qkv_bias,
            gelu_approximate=self.gelu_approximate,
            norm_eps=self.norm_eps,
            attention_fn=self.attention_fn,
            name=name,
            **self.types,
        )

    def _embed(self, t: jax.Array, cond: Mapping[str, Any], batch: int) -> jax.Array:
        """Returns the embedding [B, hidden_size] of t, and of the sizes if they are inputs."""

        def embed(name: str, numbers: jax.Array, dim: int) -> jax.Array:
            """[B, K] -> [B, K dim]."""
            features = jax.vmap(functools.partial(embeddings.sinusoidal_features, dim=256, cos_first=True), 1, 1)
            mlp = EmbeddingMLP(dim, name=name, **self.precise_types)
            return mlp(features(numbers.astype(self.precise_dtype))).reshape(batch, -1)

        emb = embed("time_embedding", embeddings.time_labels(t, batch, self.precise_dtype)[:, None], self.hidden_size)
        if not self.size_conditions:
            return emb
        third = self.hidden_size // 3
        sizes = [embed(f"{name}_embedding", cond[name], third) for name in ("resolution", "aspect_ratio")]
        return emb + jnp.concatenate(sizes, axis=1)

    def _positions(self, x: jax.Array) -> jax.Array:
        """Returns the position features [L, hidden_size] of x's patches."""
        rows, columns = (size // self.patch_size for size in x.shape[1:3])
        base = self.image_size // self.patch_size / self.position_scale
        features = patches.sincos_positions(rows, columns, self.hidden_size, (base, base))
        return jnp.asarray(features, self.precise_dtype)

    def _checked(self, cond: Mapping[str, Any] | None, batch: int) -> dict[str, Any]:
        sizes = {"resolution": True, "aspect_ratio": True} if self.size_conditions else {}
        cond = conditions.named(cond, {"context": True, "context_mask": False, **sizes})
        tokens = conditions.num_tokens(cond)
        shapes: dict[str, tuple[Any, ...]] = {"context": (batch, tokens, self.context_dim)}
        shapes |= {"context_mask": (batch, tokens), "resolution": (batch, 2), "aspect_ratio": (batch, 1)}
        conditions.check_shapes(cond, shapes)
        return cond

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        if self.depth < 1 or self.image_size < self.patch_size or self.position_scale <= 0:
            raise ValueError(
                "depth must be at least 1, image_size at least patch_size and position_scale positive; got "
                f"depth={self.depth}, image_size={self.image_size}, patch_size={self.patch_size}, "
                f"position_scale={self.position_scale}"
            )
        if self.size_conditions and self.hidden_size % 3:
            raise ValueError(f"hidden_size must be a multiple of 3 with size_conditions; got {self.hidden_size}")
        if x.ndim != 4 or self.in_channels not in (None, x.shape[-1]):
            raise ValueError(f"x must have shape [B, H, W, {self.in_channels or 'C'}]; got {list(x.shape)}")


class PixArtBlock(ops.Module):
    """Computes one block from tokens h [B, L, D], text tokens [B, M, D] and a modulation [B, 6, D] of all blocks.

    With (shift_1, scale_1, gate_1, shift_2, scale_2, gate_2) = modulation + a table [6, D] of this block,

        h <- h + gate_1 self_attention(norm(h) (1 + scale_1) + shift_1)
        h <- h + cross_attention(h, context, mask)
        h <- h + gate_2 mlp(norm(h) (1 + scale_2) + shift_2)

    Chen et al. (2023), https://arxiv.org/abs/2310.00426, figure 4.

    >>> block = PixArtBlock(num_heads=2, mlp_hidden_size=16)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 3, 8]), jnp.ones([1, 6, 8])
    >>> jax.eval_shape(block.init_with_output, *args)[0].shape
    (1, 5, 8)
    """

    num_heads: int
    mlp_hidden_size: int
    qkv_bias: bool = True
    gelu_approximate: bool = True
    norm_eps: float = 1e-6
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(
        self, h: jax.Array, context: jax.Array, modulation: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        norm: Callable[..., Any] = functools.partial(
            ops.LayerNorm, self.norm_eps, use_bias=False, use_scale=False, **self.types
        )
        heads: dict[str, Any] = {"bias": self.qkv_bias, "attention_fn": self.attention_fn, **self.types}
        mlp = transformer.FeedForward(self.mlp_hidden_size, self.gelu_approximate, name="mlp", **self.types)

        table = self.param("modulation", _table_init, (6, h.shape[-1]), self.param_dtype)
        parts = jnp.split(modulation + table.astype(modulation.dtype)[None], 6, axis=1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts

        r = CrossAttention(self.num_heads, name="self_attention", **heads)(ops.modulate(norm()(h), scale_1, shift_1))
        h = h + gate_1 * r
        h = h + CrossAttention(self.num_heads, name="cross_attention", **heads)(h, context, mask)
        return h + gate_2 * mlp(ops.modulate(norm()(h), scale_2, shift_2))


def _table_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns normal numbers of variance 1 / D, as published."""
    return jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5
