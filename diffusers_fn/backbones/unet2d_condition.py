"""The text-conditioned U-Net of latent diffusion: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, conditions, embeddings, ops, walks
from diffusers_fn.backbones.text_conditioned import Depth, TextConditioned

__all__ = ["UNet2DCondition"]


class UNet2DCondition(TextConditioned):
    """Computes a denoiser's output [B, H, W, C'] for x [B, H, W, C], labels t [] or [B] and a context of tokens.

    A U-Net of residual blocks, each followed by a transformer over its pixels that also attends to a context
    (usually a text) where the level has a transformer depth. Rombach et al., "High-Resolution Image Synthesis
    with Latent Diffusion Models" (2022), https://arxiv.org/abs/2112.10752; Podell et al., "SDXL: Improving
    Latent Diffusion Models for High-Resolution Image Synthesis" (2023), https://arxiv.org/abs/2307.01952
    (sizes in text embeddings and time ids); Luo et al., "Latent Consistency Models" (2023),
    https://arxiv.org/abs/2310.04378 (the guidance scale as timestep_cond). `sd1()`, `sd2()` and `sdxl()` are
    the published sizes; their weights are for inputs of 4 latent channels.

    `cond` is a dict of arrays:
      context [B, M, context_dim]: required wherever there is a transformer.
      context_mask [B, M]: optional, boolean; False hides a token. At least one token must be visible.
      class_labels: integers [] or [B] with num_classes, numbers [] or [B] with class_time, vectors
        [B, class_vector_dim] with that.
      text_embeds [B, P] and time_ids [B, K]: required with text_time_dims. XL takes a pooled text of 1280
        and six numbers: the original height and width, the crop's top and left, the target height and width.
      timestep_cond [B, time_cond_dim]: optional with that; leaving it out means zero. Published consistency
        models take a guidance scale w here as sinusoidal_features(1000 * (w - 1), 256, freq_shift=1).
      down_residuals, mid_residual: optional; added to the activations that the way down saves (conv_in, then
        every block and downsampling in turn), and to the middle's output: what a ControlNet computes (Zhang
        et al. 2023, https://arxiv.org/abs/2302.05543).

    train=True turns on dropout, which draws from the rng collection "dropout". H and W may be any: where a
    level does not halve, the way up trims to the size of the way down. The output is float32, or x's dtype if
    that is wider.

    Fields:
      in_channels, out_channels: C and C'.
      channels, channel_multipliers: level i has channels * channel_multipliers[i] channels, rounded down.
      num_res_blocks: residual blocks per level on the way down, one number for all levels or one per level.
      transformer_depths: transformer blocks behind each residual block of each level; 0 is no transformer.
        A level's entry may be a sequence, with one number per residual block.
      up_transformer_depths: the same for the way up, again from the largest resolution; None repeats them.
      mid_depth: of the transformer in the middle; None leaves out the middle.
      num_heads: heads of every attention, one number for all levels or one per level.
      only_cross_attention: whether the first attention of a block attends to the context like the second, for all
        levels or per level.
      context_dim: features of a context token.
      text_dim: None, or the features of a token of the given context, which a linear layer maps to context_dim.
      embedding_dim: of the time embedding; None is 4 times the channels of level 0.
      num_classes: class_labels index a table.
      class_time: class_labels are embedded like times.
      class_vector_dim: class_labels are vectors of this size, embedded like the time features.
      text_time_dims: (features of one time id, features of all time ids and the pooled text); (256, 2816) in XL.
      time_cond_dim: features of timestep_cond.
      activation: of the residual blocks, after the last normalisation, and in the embeddings of t and of class times:
        a name as in `UNet2D`, or a function. Other embeddings have silu, and the transformers GEGLU, as published.
      scale_shift_norm: the embedding scales and shifts after a block's second normalisation.
      zero_init_output: start as the zero function, and every block as its skip connection.
      linear_projection: whether published weights store the layers around a transformer as linear layers, not
        as 1x1 convolutions. The function is the same.
      norm_groups, norm_eps: of every group normalisation, the transformers' norm_eps excepted (1e-6).
      time_cos_first, time_freq_shift: see `embeddings.sinusoidal_features`.
      downsample_padding: zeros (before, after) each axis of a strided convolution.
      remat: the backward pass computes every block again instead of keeping its activations.
      native_conv: as in `UNet`.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, H W or M, heads, head_dim], with a mask
        [B, 1, 1, M] where there is one.
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics, the softmax
        and the embeddings of labels stay in float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> unet = UNet2DCondition(channels=8, channel_multipliers=(1, 2), transformer_depths=(1, 0), num_heads=2,
    ...                         context_dim=6, norm_groups=4)
    >>> x, cond = jnp.zeros([2, 8, 8, 4]), {"context": jnp.zeros([2, 3, 6])}
    >>> jax.eval_shape(unet.init_with_output, jax.random.key(0), x, jnp.array([0, 999]), cond)[0].shape
    (2, 8, 8, 4)
    """

    out_channels: int = 4
    up_transformer_depths: Sequence[Depth] | None = None

    @classmethod
    def sd1(cls, **fields: Any) -> UNet2DCondition:
        """Returns the U-Net of Stable Diffusion 1.1 to 1.5, 859,520,964 parameters; fields replace its own.

        >>> UNet2DCondition.sd1(in_channels=9).context_dim  # with 9 channels: inpainting
        768
        """
        return cls(**fields)

    @classmethod
    def sd2(cls, **fields: Any) -> UNet2DCondition:
        """Returns the U-Net of Stable Diffusion 2.0 and 2.1, 865,910,724 parameters; fields replace its own.

        >>> UNet2DCondition.sd2().context_dim
        1024
        """
        own: dict[str, Any] = {"num_heads": (5, 10, 20, 20), "context_dim": 1024, "linear_projection": True}
        return cls(**(own | fields))

    @classmethod
    def sdxl(cls, **fields: Any) -> UNet2DCondition:
        """Returns the base U-Net of Stable Diffusion XL, 2,567,463,684 parameters; fields replace its own.

        >>> UNet2DCondition.sdxl().transformer_depths
        (0, 2, 10)
        """
        own: dict[str, Any] = {"channel_multipliers": (1, 2, 4), "transformer_depths": (0, 2, 10), "mid_depth": 10}
        own |= {"num_heads": (5, 10, 20), "context_dim": 2048, "linear_projection": True}
        return cls(**(own | {"text_time_dims": (256, 2816)} | fields))

    @classmethod
    def sdxl_refiner(cls, **fields: Any) -> UNet2DCondition:
        """Returns the refiner of Stable Diffusion XL, 2,259,526,660 parameters; fields replace its own.

        >>> UNet2DCondition.sdxl_refiner().context_dim
        1280
        """
        own: dict[str, Any] = {"channels": 384, "transformer_depths": (0, 4, 4, 0), "mid_depth": 4}
        own |= {"num_heads": (6, 12, 24, 24), "context_dim": 1280, "linear_projection": True}
        return cls(**(own | {"text_time_dims": (256, 2560)} | fields))

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any] | None = None, *, train: bool = False
    ) -> jax.Array:
        self._check(x)
        cond = conditions.checked(cond, self, x.shape[0], {"down_residuals": False, "mid_residual": False})
        out_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        emb = self._embed(x, t, cond)
        context, mask = self._context(cond)
        block = self._blocks(emb, context, mask, train)
        widths, num_blocks = self.widths(), self.per_level("num_res_blocks")

        saved = self._way_down(self._conv(widths[0], "conv_in")(x), block)
        sizes = [h.shape[1:3] for h in saved]

        def upsample(h: jax.Array, level: int) -> jax.Array:
            height, width = sizes[sum(num_blocks[:level]) + level - 1]  # of the level that was halved
            return self._conv(widths[level], f"up_{level}_upsample")(blocks.nearest(h)[:, :height, :width])

        h = self._middle(saved[-1], emb, context, mask, train)
        saved = conditions.add_residuals("down_residuals", saved, cond.get("down_residuals"))
        if "mid_residual" in cond:
            (h,) = conditions.add_residuals("mid_residual", [h], [cond["mid_residual"]])

        h = walks.walk_up(h, saved, num_blocks, block, upsample)
        h = ops.GroupNorm(self.norm_groups, self.norm_eps, name="norm_out", **self.types)(h)
        h = ops.lazily(ops.activation(self.activation))(h)
        h = self._conv(self.out_channels, "conv_out", kernel_init=out_init)(h)
        return h.astype(jnp.promote_types(x.dtype, jnp.float32))

    def depths(self, level: int, *, up: bool = False) -> tuple[int, ...]:
        """Returns the transformer depth behind each residual block of a level, on the way down or up.

        >>> UNet2DCondition.sdxl().depths(2, up=True)
        (10, 10, 10)
        """
        return super().depths(level, up=up)

    def _ways(self) -> tuple[bool, ...]:
        return False, True

    def _depths_field(self, up: bool) -> str:
        return "up_transformer_depths" if up and self.up_transformer_depths is not None else "transformer_depths"
