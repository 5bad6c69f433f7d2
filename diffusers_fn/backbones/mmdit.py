"""MMDiT: the transformer of Stable Diffusion 3 and 3.5, on patches of latents and tokens of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, conditions, embeddings, ops, patches
from diffusers_fn.backbones.embeddings import EmbeddingMLP
from diffusers_fn.backbones.joint_attention import JointBlock
from diffusers_fn.backbones.sizes import scaled

__all__ = ["MMDiT", "text_and_time"]


class MMDiT(ops.Module):
    """Computes a velocity [B, H, W, C'] for noisy latents x [B, H, W, C] at labels t [] or [B] and a text.

    Patches and text tokens are two streams of tokens with layers of their own, which attend to each other in every
    block; an embedding of t and of the pooled text scales, shifts and gates them. Esser et al., "Scaling Rectified Flow
    Transformers for High-Resolution Image Synthesis" (2024), https://arxiv.org/abs/2403.03206, section 4. `sd3()`,
    `sd35_medium()` and `sd35_large()` are the published sizes; t is 1000 sigma in all of them.

    `cond` is a dict of arrays, both required:
      context [B, M, context_dim]: the tokens of the text.
      text_embeds [B, text_embeds_dim]: the pooled text.

    `skip_blocks` leaves out the blocks of these numbers: the prediction from which skip-layer guidance leads away.
    `train` changes nothing. The output is float32, or x's dtype if that is wider. The same parameters serve any H and W
    of at most num_positions patches.

    Fields:
      image_size: the H and W of training, over whose patches the frequencies of the table of positions are spread.
      patch_size: pixels along each side of a patch.
      in_channels, out_channels: C and C'; None is C for both.
      hidden_size, depth, num_heads, mlp_ratio: features of a token, number of blocks, heads of every attention, and
        the hidden units of every feed-forward layer as a multiple of hidden_size.
      context_dim, text_embeds_dim: features of a text token, and of the pooled text.
      num_positions: patches along each side of the table of positions, of which images take the middle. It starts as
        sines and cosines, has no gradient, and is among the parameters, because published weights hold it.
      qk_norm: how query and key are normalised, see `joint_attention.Heads`.
      dual_attention_blocks: numbers of the blocks in which the patches have a second attention, to themselves alone.
      zero_init_output: start as the zero function, and every block as the identity.
      remat: the backward pass computes every block again instead of keeping its activations.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, M + L, heads, head_dim], the text first.
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics, the softmax, the sums of
        the blocks and the embeddings of t and the pooled text stay in float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> net = MMDiT(in_channels=4, hidden_size=16, depth=2, num_heads=2, context_dim=6, text_embeds_dim=5)
    >>> cond = {"context": jnp.zeros([2, 3, 6]), "text_embeds": jnp.zeros([2, 5])}
    >>> args = jnp.zeros([2, 8, 12, 4]), jnp.array([0.0, 1000.0]), cond
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), *args)[0].shape
    (2, 8, 12, 4)
    """

    image_size: int = 128
    patch_size: int = 2
    in_channels: int | None = 16
    out_channels: int | None = None
    hidden_size: int = 1536
    depth: int = 24
    num_heads: int = 24
    mlp_ratio: float = 4.0
    context_dim: int = 4096
    text_embeds_dim: int = 2048
    num_positions: int = 192
    qk_norm: str | None = None
    dual_attention_blocks: Sequence[int] = ()
    zero_init_output: bool = True
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @classmethod
    def sd3(cls, **fields: Any) -> MMDiT:
        """Returns the transformer of Stable Diffusion 3 medium, 2,028,328,000 parameters and 56,623,104 positions.

        >>> MMDiT.sd3().hidden_size
        1536
        """
        return cls(**fields)

    @classmethod
    def sd35_medium(cls, **fields: Any) -> MMDiT:
        """Returns the transformer of Stable Diffusion 3.5 medium, 2,243,171,520 parameters and 226,492,416 positions.

        >>> MMDiT.sd35_medium().qk_norm
        'rms'
        """
        own: dict[str, Any] = {"num_positions": 384, "qk_norm": "rms", "dual_attention_blocks": tuple(range(13))}
        return cls(**(own | fields))

    @classmethod
    def sd35_large(cls, **fields: Any) -> MMDiT:
        """Returns the transformer of Stable Diffusion 3.5 large, 8,056,627,520 parameters and 89,653,248 positions.

        >>> MMDiT.sd35_large().depth
        38
        """
        own: dict[str, Any] = {"hidden_size": 2432, "depth": 38, "num_heads": 38, "qk_norm": "rms"}
        return cls(**(own | fields))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        cond: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        skip_blocks: Sequence[int] = (),
    ) -> jax.Array:
        self._check(x, skip_blocks)
        cond = conditions.named(cond, {"context": True, "text_embeds": True})
        shapes = {"context": (x.shape[0], conditions.num_tokens(cond), self.context_dim)}
        conditions.check_shapes(cond, {**shapes, "text_embeds": (x.shape[0], self.text_embeds_dim)})
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        zero_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init

        types: dict[str, Any] = {"kernel_init": embeddings.dense_init, **self.types}
        h = patches.PatchEmbed(self.hidden_size, patch_size=self.patch_size, name="patch", **types)(x)
        h = h.astype(self.precise_dtype) + self._positions(x)  # sums of many terms: not rounded at each
        context = ops.Dense(self.hidden_size, name="context_in", **types)(cond["context"]).astype(self.precise_dtype)
        times = embeddings.time_labels(t, x.shape[0], self.precise_dtype)
        c = text_and_time(self.hidden_size, times, cond["text_embeds"], self.precise_types)

        for i in range(self.depth):
            if i not in skip_blocks:
                block = blocks.rematerialised(self._block(i, zero_init), self.remat)
                h, context = block(h, context, c)

        modulation = ops.Dense(2 * self.hidden_size, kernel_init=zero_init, name="modulation_out", **self.types)
        scale, shift = jnp.split(modulation(ops.silu(c))[:, None], 2, axis=-1)
        h = ops.modulate(ops.LayerNorm(use_bias=False, use_scale=False, **self.types)(h), scale, shift)
        h = ops.Dense(self.patch_size**2 * out_channels, kernel_init=zero_init, name="dense_out", **self.types)(h)
        image = patches.unpatchify(h, self.patch_size, x.shape[1], x.shape[2])
        return image.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _block(self, i: int, zero_init: Callable[..., Any]) -> JointBlock:
        return JointBlock(
            num_heads=self.num_heads,
            mlp_hidden_size=scaled(self.hidden_size, self.mlp_ratio),
            qk_norm=self.qk_norm,
            context_out=i < self.depth - 1,
            dual_attention=i in self.dual_attention_blocks,
            modulation_init=zero_init,
            attention_fn=self.attention_fn,
            name=f"block_{i}",
            **self.types,
        )

    def _positions(self, x: jax.Array) -> jax.Array:
        """Returns the positions [1, L, hidden_size] of x's patches: the middle of the table."""
        side, base = self.num_positions, self.image_size // self.patch_size

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            axes = patches.sincos_axes(side, side, self.hidden_size, (base, base))
            of_rows, of_columns = (jnp.asarray(each, dtype) for each in axes)
            half = (*shape[:2], shape[2] // 2)
            return jnp.concatenate(
                [jnp.broadcast_to(of_columns[None], half), jnp.broadcast_to(of_rows[:, None], half)], axis=-1
            )

        table = self.param("positions", init, (side, side, self.hidden_size), self.param_dtype)
        rows, columns = (size // self.patch_size for size in x.shape[1:3])
        top, left = (side - rows) // 2, (side - columns) // 2
        middle = jax.lax.stop_gradient(table)[top : top + rows, left : left + columns]
        return middle.reshape(1, rows * columns, self.hidden_size).astype(self.precise_dtype)

    def _check(self, x: jax.Array, skip_blocks: Sequence[int]) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        if self.depth < 1 or self.image_size < self.patch_size:
            raise ValueError(
                "depth must be at least 1 and image_size at least patch_size; got "
                f"depth={self.depth}, image_size={self.image_size}, patch_size={self.patch_size}"
            )
        for name, numbers in (("dual_attention_blocks", self.dual_attention_blocks), ("skip_blocks", skip_blocks)):
            if not set(numbers) <= set(range(self.depth)):
                raise ValueError(f"{name} must lie in 0 .. {self.depth - 1}; got {tuple(numbers)}")
        if x.ndim != 4 or self.in_channels not in (None, x.shape[-1]):
            raise ValueError(f"x must have shape [B, H, W, {self.in_channels or 'C'}]; got {list(x.shape)}")
        largest = self.num_positions * self.patch_size
        if max(x.shape[1:3]) > largest:
            raise ValueError(f"H and W must be at most num_positions patches, {largest}; got {x.shape[1:3]}")


def text_and_time(
    dim: int, times: jax.Array, text_embeds: jax.Array, types: Mapping[str, Any], guidance: jax.Array | None = None
) -> jax.Array:
    """Returns the sum [B, dim] of embeddings of times [B], of a pooled text [B, P] and of a guidance scale [B], if any.

    Called inside a module, of which it makes the parts time_embedding, text_embedding and guidance_embedding.

    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, t, text):
    ...         return text_and_time(8, t, text, {})
    >>> jax.eval_shape(Net().init_with_output, jax.random.key(0), jnp.zeros(2), jnp.zeros([2, 3]))[0].shape
    (2, 8)
    """

    def sinusoids(labels: jax.Array) -> jax.Array:
        return embeddings.sinusoidal_features(labels, 256, cos_first=True)

    total = EmbeddingMLP(dim, name="time_embedding", **types)(sinusoids(times))
    total = total + EmbeddingMLP(dim, name="text_embedding", **types)(text_embeds)
    if guidance is not None:
        total = total + EmbeddingMLP(dim, name="guidance_embedding", **types)(sinusoids(guidance))
    return total
