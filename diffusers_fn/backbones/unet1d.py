"""A U-Net for sequences: trajectories, waveforms, time series."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, walks
from diffusers_fn.backbones.attend import dot_product_attention
from diffusers_fn.backbones.conv import conv2d
from diffusers_fn.backbones.deferred import Deferred


class UNet1D(nn.Module):
    """Computes a denoiser's output [B, L, C] for noisy sequences x [B, L, C] at time labels t [] or [B].

    `UNet` along one axis: residual blocks of convolutions that span three steps, self-attention between all steps on
    the chosen levels, lengths that halve from level to level on the way down and double on the way up. Ho et al.,
    "Denoising Diffusion Probabilistic Models" (2020), https://arxiv.org/abs/2006.11239, appendix B, for the network;
    Janner et al., "Planning with Diffusion for Flexible Behavior Synthesis" (2022), https://arxiv.org/abs/2205.09991,
    section 3.3, for U-Nets of sequences. There are no published weights for it. As in `MLP` the network sees t itself
    and a signed logarithm of it, so the labels may be step numbers, sigmas or their logarithms.

    Call with x [B, L, C]; t integers or floats; cond integer class labels [] or [B], or None for the null class,
    num_classes; train=True turns on dropout, which draws from the rng collection "dropout". The output is float32, or
    x's dtype if that is wider. It has out_channels channels (C if None), or twice as many with learned_variance.

    Fields:
      channels, channel_multipliers: level i is channels * channel_multipliers[i] wide. L must be a multiple of
        2 ** (levels - 1).
      num_res_blocks: residual blocks per level on the way down.
      attention_levels: levels whose blocks are followed by attention; the middle attends in any case.
      num_heads, head_dim: heads of an attention of C channels: C / head_dim, else num_heads, else one.
      num_classes: None, or the number of classes besides the null class.
      scale_shift_norm, dropout, learned_variance, zero_init_output, norm_groups, norm_eps, remat, native_conv,
        attention_fn, dtype, param_dtype: as in `UNet`.

    Raises ValueError for fields that contradict each other and inputs that do not fit, saying which.

    >>> unet = UNet1D(channels=8, channel_multipliers=(1, 2), attention_levels=(1,), norm_groups=4)
    >>> x, t = jnp.zeros([2, 16, 3]), jnp.array([0, 999])
    >>> jax.eval_shape(unet.init_with_output, jax.random.key(0), x, t)[0].shape
    (2, 16, 3)
    """

    out_channels: int | None = None
    channels: int = 64
    channel_multipliers: Sequence[int] = (1, 2, 4)
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
    native_conv: bool = False
    attention_fn: Callable[..., jax.Array] = dot_product_attention
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        self._check(x)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps}
        norm["zero_init"] = self.zero_init_output
        conv: Callable[..., Any] = functools.partial(Conv3, native=self.native_conv, **types)
        widths = [self.channels * multiplier for multiplier in self.channel_multipliers]
        attends = [level in self.attention_levels for level in range(len(widths))]
        out_dtype = jnp.promote_types(x.dtype, jnp.float32)
        emb = self._embed(x, t, cond)

        def res_block(h: jax.Array, width: int, name: str) -> jax.Array:
            fields: dict[str, Any] = {"dropout": self.dropout, "scale_shift": self.scale_shift_norm, "conv": conv}
            block = blocks.ResBlock(width, name=name, **fields, **norm, **types)
            return blocks.rematerialised(block, self.remat)(h, emb, train=train)

        def attention(h: jax.Array, name: str) -> jax.Array:
            heads: dict[str, Any] = {"num_heads": self.num_heads, "head_dim": self.head_dim}
            block = blocks.SelfAttention(attention_fn=self.attention_fn, name=name, **heads, **norm, **types)
            return blocks.rematerialised(block, self.remat)(h)

        def halve(h: jax.Array, level: int, name: str) -> jax.Array:
            return conv(widths[level], stride=2, padding=(0, 1), name=name)(h)

        def double(h: jax.Array, level: int, name: str) -> jax.Array:
            batch, length, _, channels = h.shape
            twice = jnp.broadcast_to(h, (batch, length, 2, channels)).reshape(batch, 2 * length, channels)
            return conv(widths[level], name=name)(twice[:, :, None, :])

        h = conv(widths[0], name="conv_in")(x[:, :, None, :])  # from here on an image of width one
        saved = walks.walk_down(h, widths, attends, self.num_res_blocks, res_block, attention, halve)
        h = res_block(saved[-1], widths[-1], "mid_block_0")
        h = res_block(attention(h, "mid_attention"), widths[-1], "mid_block_1")
        h = walks.walk_up(h, saved, widths, attends, self.num_res_blocks, res_block, attention, double)

        h = blocks.GroupNorm(self.norm_groups, self.norm_eps, name="norm_out", **types).deferred(h, activation=nn.silu)
        last_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        features = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        return conv(features, kernel_init=last_init, name="conv_out")(h)[:, :, 0].astype(out_dtype)

    def _embed(self, x: jax.Array, t: jax.Array, cond: jax.Array | None) -> jax.Array:
        """Returns the label embedding [B, 4 * channels] that every residual block receives."""
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        labels = embeddings.time_labels(t, x.shape[0], dtype)
        linear = embeddings.sinusoidal_features(labels, self.channels)
        logarithmic = embeddings.sinusoidal_features(embeddings.signed_log(labels), self.channels)
        types = {"dtype": dtype, "param_dtype": self.param_dtype}
        embed = embeddings.LabelEmbedding(4 * self.channels, self.num_classes, name="embedding", **types)
        return embed(jnp.concatenate([linear, logarithmic], axis=-1), cond)

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


class Conv3(nn.Module):
    """Computes a convolution with bias over three steps of a sequence: [B, L, 1, C] -> [B, L / stride, 1, features].

    >>> conv = Conv3(features=4, stride=2, padding=(0, 1))
    >>> jax.eval_shape(conv.init_with_output, jax.random.key(0), jnp.ones([1, 8, 1, 3]))[0].shape
    (1, 4, 1, 4)
    """

    features: int
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    kernel_init: Callable[..., Any] = embeddings.dense_init
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, x: jax.Array | Deferred) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (3, x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        kernel = kernel.astype(self.dtype)[:, None]
        out = conv2d(x, kernel, stride=self.stride, padding=(self.padding, (0, 0)), native=self.native)
        return out + bias.astype(self.dtype)[None, None, None, :]
