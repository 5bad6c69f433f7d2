"""A U-Net for sequences: trajectories, waveforms, time series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, ops, walks
from diffusers_fn.backbones.sizes import level_channels

__all__ = ["UNet1D"]


class UNet1D(ops.ConvNetwork):
    """Computes a denoiser's output [B, L, C] for noisy sequences x [B, L, C] at time labels t [] or [B].

    `UNet` along one axis: residual blocks of convolutions that span three steps, self-attention between all steps on
    the chosen levels, lengths that halve from level to level on the way down and double on the way up. Ho et al.,
    "Denoising Diffusion Probabilistic Models" (2020), https://arxiv.org/abs/2006.11239, appendix B, for the network;
    Janner et al., "Planning with Diffusion for Flexible Behavior Synthesis" (2022), https://arxiv.org/abs/2205.09991,
    section 3.3, for U-Nets of sequences. There are no published weights for it. As in `MLP` the time features
    are sinusoids of t itself and of its signed logarithm, so the labels may be step numbers, sigmas or log sigmas.

    Call with x [B, L, C]; t integers or floats; cond integer class labels [] or [B], or None for the null class,
    num_classes; train=True turns on dropout, which draws from the rng collection "dropout". The output is float32, or
    x's dtype if that is wider. It has out_channels channels (C if None), or twice as many with learned_variance.

    Fields:
      channels, channel_multipliers: level i has channels * channel_multipliers[i] channels, rounded down. L must be a
        multiple of 2 ** (levels - 1).
      num_res_blocks: residual blocks per level on the way down.
      attention_levels: levels whose blocks are followed by attention; the middle attends in any case.
      num_heads, head_dim: heads of an attention of C channels: C / head_dim, else num_heads, else one.
      num_classes: None, or the number of classes without the null class.
      scale_shift_norm, dropout, learned_variance, zero_init_output, norm_groups, norm_eps, remat, native_conv,
        attention_fn, dtype, param_dtype: as in `UNet`.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> unet = UNet1D(channels=8, channel_multipliers=(1, 2), attention_levels=(1,), norm_groups=4)
    >>> x, t = jnp.zeros([2, 16, 3]), jnp.array([0, 999])
    >>> jax.eval_shape(unet.init_with_output, jax.random.key(0), x, t)[0].shape
    (2, 16, 3)
    """

    out_channels: int | None = None
    channels: int = 64
    channel_multipliers: Sequence[float] = (1, 2, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = (2,)
    num_heads: int | None = None
    head_dim: int | None = None
    scale_shift_norm: bool = True
    num_classes: int | None = None
    dropout: float = 0.0
    learned_variance: bool = False
    zero_init_output: bool = True
    norm_groups: int = 8
    norm_eps: float = 1e-5
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        self._check(x)
        widths, num_blocks = self.widths(), [self.num_res_blocks] * len(self.channel_multipliers)
        out_channels = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        out_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        emb = self._embed(x, t, cond)

        def block(h: jax.Array, way: str, level: int, i: int) -> jax.Array:
            h = self._res_block(widths[level], f"{way}_{level}_block_{i}")(h, emb, train=train)
            return self._attention(f"{way}_{level}_attention_{i}")(h) if level in self.attention_levels else h

        def downsample(h: jax.Array, level: int) -> jax.Array:
            return self._conv(widths[level], f"down_{level}_downsample", strides=2, padding=((0, 1),))(h)

        def upsample(h: jax.Array, level: int) -> jax.Array:
            return self._conv(widths[level], f"up_{level}_upsample")(_doubled(h))

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

        >>> UNet1D().widths()
        [64, 128, 256]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def _conv(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        return ops.Conv(features, (3,), name=name, **{"kernel_init": embeddings.dense_init, **self.types, **fields})

    def _res_block(self, features: int, name: str) -> Callable[..., jax.Array]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"scale_shift_norm": self.scale_shift_norm, "zero_init": self.zero_init_output}
        block = blocks.ResBlock(features, self.dropout, kernel_size=(3,), name=name, **fields)
        return blocks.rematerialised(block, self.remat)

    def _attention(self, name: str) -> Callable[..., jax.Array]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"attention_fn": self.attention_fn, "zero_init": self.zero_init_output}
        block = blocks.SelfAttention(self.num_heads, self.head_dim, name=name, **fields)
        return blocks.rematerialised(block, self.remat)

    def _embed(self, x: jax.Array, t: jax.Array, cond: jax.Array | None) -> jax.Array:
        """Returns the embedding [B, 4 * channels] of time and class that every residual block receives."""
        times = embeddings.time_labels(t, x.shape[0], self.precise_dtype)
        features = embeddings.two_scale_features(times, 2 * self.channels)
        embed = embeddings.LabelEmbedding(4 * self.channels, self.num_classes, name="embedding", **self.precise_types)
        return embed(features, cond)

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        levels = len(self.channel_multipliers)
        if levels < 1 or self.num_res_blocks < 1:
            raise ValueError(
                "channel_multipliers must not be empty and num_res_blocks must be at least 1; got "
                f"{tuple(self.channel_multipliers)} and {self.num_res_blocks}"
            )
        if not set(self.attention_levels) <= set(range(levels)):
            raise ValueError(f"attention_levels must be among 0 .. {levels - 1}; got {tuple(self.attention_levels)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if self.channels % 2:
            raise ValueError(f"channels must be even; got {self.channels}")
        factor = 2 ** (levels - 1)
        if x.ndim != 3:
            raise ValueError(f"x must have shape [B, L, C]; got {list(x.shape)}")
        if x.shape[1] % factor:
            raise ValueError(f"L must be a multiple of {factor} for {levels} levels; got {x.shape[1]}")


def _doubled(x: jax.Array) -> jax.Array:
    """Returns every step of sequences twice: [B, L, C] -> [B, 2 L, C]."""
    batch, length, channels = x.shape
    return jnp.broadcast_to(x[:, :, None], (batch, length, 2, channels)).reshape(batch, 2 * length, channels)
