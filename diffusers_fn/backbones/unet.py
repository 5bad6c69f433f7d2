"""The U-Net of DDPM, improved diffusion and ADM as one configurable network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, ops, walks
from diffusers_fn.backbones.sizes import level_channels

__all__ = ["UNet"]


class UNet(ops.ConvNetwork):
    """Computes a denoiser's output [B, H, W, C] for noisy images x [B, H, W, C] at time labels t [] or [B].

    Resolutions halve from level to level on the way down and double on the way up. Every level runs residual
    blocks, followed by self-attention at the chosen resolutions; the way up has one block more per level, and
    each of its blocks concatenates one saved activation of the way down. The two ways meet in block,
    attention, block.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), https://arxiv.org/abs/2006.11239, appendix B
    (the defaults: 35.7 million parameters for CIFAR-10, with dropout=0.1 there); Nichol and Dhariwal,
    "Improved Denoising Diffusion Probabilistic Models" (2021), https://arxiv.org/abs/2102.09672
    (scale_shift_norm, learned_variance, more heads); Dhariwal and Nichol, "Diffusion Models Beat GANs on
    Image Synthesis" (2021), https://arxiv.org/abs/2105.05233 (ADM: head_dim=64, resblock_updown, attention at
    32, 16 and 8).

    The published networks of the last two also have
    `time_cos_first=True, time_freq_shift=0, downsample_padding=(1, 1), norm_eps=1e-5`.

    Call with x [B, H, W, C]; t integers or floats; cond integer class labels [] or [B], or None for the null
    class, num_classes, if there is one; train=True turns on dropout, which draws from the rng collection
    "dropout". The output is float32, or x's dtype if that is wider. It has out_channels channels (C if None), or
    twice as many with learned_variance: the mean's first, the variance's last.

    Fields:
      image_size: the resolution of level 0, to which attention_resolutions refer. The same parameters serve any H
        and W that the levels can halve.
      channels, channel_multipliers: level i has channels * channel_multipliers[i] channels, rounded down.
      num_res_blocks: residual blocks per level on the way down.
      num_heads, head_dim: heads of an attention of C channels: C / head_dim, else num_heads, else one.
      num_heads_up: instead of num_heads on the way up.
      scale_shift_norm: the embedding scales and shifts after a block's second normalisation, instead of
        being added before it.
      resblock_updown: change resolutions in residual blocks, instead of by a strided convolution and by
        nearest-neighbour doubling with a convolution.
      resample_conv: False leaves these convolutions out: means of 2x2 squares, and doubling.
      null_class: whether the class table has a last row for the null class. Published networks have none.
      zero_init_output: start as the zero function, and every block as its skip connection.
      norm_groups, norm_eps: of every group normalisation; the groups must divide every layer's channels.
      time_cos_first, time_freq_shift: see `embeddings.sinusoidal_features`.
      downsample_padding: zeros (before, after) each axis of a strided convolution.
      new_attention_order: how published weights order the outputs of a query, key and value projection. The function
        is the same.
      remat: the backward pass computes every block again instead of keeping its activations.
      native_conv: use XLA's convolution on a CPU, too, where matrix products are faster; see `ops.ConvNetwork`.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, H W, heads, head_dim].
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics, the softmax
        and the label embedding stay in float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> unet = UNet(image_size=8, channels=8, channel_multipliers=(1, 2), attention_resolutions=(4,),
    ...             norm_groups=4)
    >>> x, t = jnp.zeros([2, 8, 8, 3]), jnp.array([0, 999])
    >>> out, variables = jax.eval_shape(unet.init_with_output, jax.random.key(0), x, t)
    >>> out.shape, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    ((2, 8, 8, 3), 64483)
    """

    out_channels: int | None = None
    image_size: int = 32
    channels: int = 128
    channel_multipliers: Sequence[float] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    num_heads: int | None = None
    head_dim: int | None = None
    scale_shift_norm: bool = False
    resblock_updown: bool = False
    num_classes: int | None = None
    dropout: float = 0.0
    learned_variance: bool = False
    zero_init_output: bool = True
    norm_groups: int = 32
    norm_eps: float = 1e-6
    time_cos_first: bool = False
    time_freq_shift: float = 1.0
    downsample_padding: tuple[int, int] = (0, 1)
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention
    num_heads_up: int | None = None
    resample_conv: bool = True
    null_class: bool = True
    new_attention_order: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        self._check(x)
        widths, num_blocks = self.widths(), [self.num_res_blocks] * len(self.channel_multipliers)
        attends = [self.image_size // 2**level in self.attention_resolutions for level in range(len(widths))]
        out_channels = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        out_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        emb = self._embed(x, t, cond)

        def block(h: jax.Array, way: str, level: int, i: int) -> jax.Array:
            h = self._res_block(widths[level], f"{way}_{level}_block_{i}")(h, emb, train=train)
            return self._attention(f"{way}_{level}_attention_{i}", way)(h) if attends[level] else h

        def downsample(h: jax.Array, level: int) -> jax.Array:
            name = f"down_{level}_downsample"
            if self.resblock_updown:
                return self._res_block(widths[level], name, blocks.average_pool)(h, emb, train=train)
            if not self.resample_conv:
                return blocks.average_pool(h)
            return self._conv(widths[level], name, strides=2, padding=(self.downsample_padding,) * 2)(h)

        def upsample(h: jax.Array, level: int) -> jax.Array:
            name = f"up_{level}_upsample"
            if self.resblock_updown:
                return self._res_block(widths[level], name, blocks.nearest)(h, emb, train=train)
            h = blocks.nearest(h)
            return self._conv(widths[level], name)(h) if self.resample_conv else h

        h = self._conv(widths[0], "conv_in")(x)
        saved = walks.walk_down(h, num_blocks, block, downsample)

        h = self._res_block(widths[-1], "mid_block_0")(saved[-1], emb, train=train)
        h = self._attention("mid_attention")(h)
        h = self._res_block(widths[-1], "mid_block_1")(h, emb, train=train)

        h = walks.walk_up(h, saved, num_blocks, block, upsample)
        h = ops.silu(ops.GroupNorm(self.norm_groups, self.norm_eps, name="norm_out", **self.types)(h))
        h = self._conv(out_channels, "conv_out", kernel_init=out_init)(h)
        return h.astype(jnp.promote_types(x.dtype, jnp.float32))

    def widths(self) -> list[int]:
        """Returns the channels of each level.

        >>> UNet(channels=256, channel_multipliers=(0.5, 1, 2)).widths()
        [128, 256, 512]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def _conv(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        return ops.Conv(features, (3, 3), name=name, **{"kernel_init": embeddings.dense_init, **self.types, **fields})

    def _res_block(self, features: int, name: str, resample: Callable[..., Any] | None = None) -> Callable[..., Any]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"scale_shift_norm": self.scale_shift_norm, "zero_init": self.zero_init_output}
        block = blocks.ResBlock(features, self.dropout, resample=resample, name=name, **fields)
        return blocks.rematerialised(block, self.remat)

    def _attention(self, name: str, way: str = "down") -> Callable[..., jax.Array]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"attention_fn": self.attention_fn, "zero_init": self.zero_init_output, "head_dim": self.head_dim}
        num_heads = self.num_heads if way == "down" or self.num_heads_up is None else self.num_heads_up
        return blocks.rematerialised(blocks.SelfAttention(num_heads, name=name, **fields), self.remat)

    def _embed(self, x: jax.Array, t: jax.Array, cond: jax.Array | None) -> jax.Array:
        """Returns the embedding [B, 4 * channels] of time and class that every residual block receives."""
        times = embeddings.time_labels(t, x.shape[0], self.precise_dtype)
        features = embeddings.sinusoidal_features(
            times, self.channels, freq_shift=self.time_freq_shift, cos_first=self.time_cos_first
        )
        embed = embeddings.LabelEmbedding(
            4 * self.channels, self.num_classes, null_class=self.null_class, name="embedding", **self.precise_types
        )
        return embed(features, cond)

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        levels = len(self.channel_multipliers)
        if levels < 1 or self.num_res_blocks < 1:
            raise ValueError(
                "channel_multipliers must not be empty and num_res_blocks must be at least 1; got "
                f"{tuple(self.channel_multipliers)} and {self.num_res_blocks}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if sum(self.downsample_padding) not in (1, 2):
            raise ValueError(
                f"downsample_padding must add 1 or 2 zeros to halve an axis; got {self.downsample_padding}"
            )
        if self.channels % 2:
            raise ValueError(f"channels must be even; got {self.channels}")
        factor = 2 ** (levels - 1)
        if self.image_size % factor:
            raise ValueError(f"image_size must be a multiple of {factor} for {levels} levels; got {self.image_size}")
        resolutions = [self.image_size // 2**level for level in range(levels)]
        if not set(self.attention_resolutions) <= set(resolutions):
            raise ValueError(
                f"attention_resolutions must be among the levels' resolutions {resolutions} "
                f"(image_size={self.image_size}); got {tuple(self.attention_resolutions)}"
            )
        if x.ndim != 4:
            raise ValueError(f"x must have shape [B, H, W, C]; got {list(x.shape)}")
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"H and W must be multiples of {factor} for {levels} levels; got {x.shape[1:3]}")
