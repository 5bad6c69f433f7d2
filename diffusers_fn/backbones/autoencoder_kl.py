"""The convolutional autoencoder of latent diffusion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import blocks, ops, walks
from diffusers_fn.backbones.diagonal_gaussian import LOGVAR_RANGE
from diffusers_fn.backbones.embeddings import dense_init
from diffusers_fn.backbones.sizes import level_channels

__all__ = ["AutoencoderKL", "Decoder", "Encoder", "PlainResBlock"]


class AutoencoderKL(ops.ConvNetwork):
    """Computes a Gaussian over latents [B, H / f, W / f, Z] from images [B, H, W, C], and images from latents.

    The first stage of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2021),
    https://arxiv.org/abs/2112.10752, section 3.1. The encoder runs residual blocks and halves the resolution after all
    levels but the last, f = 2 ** (levels - 1); at the bottom come block, attention, block. The decoder mirrors it with
    one block more per level. The defaults are Stable Diffusion's: 83,653,863 parameters.

    Call `net.apply(variables, x, method="encode")` for (mean, logvar), with `method="decode"` for an image. Images are
    in [-1, 1] by convention. A diffusion model works on `scale(z)`, and `decode(unscale(z))` is its image;
    encode and decode themselves do not scale. `diagonal_gaussian` has the draw, the divergence and the likelihood.

    Fields:
      in_channels, out_channels, latent_channels: C before, C after, and Z.
      channels, channel_multipliers: level i has channels * channel_multipliers[i] channels, rounded down.
      num_res_blocks: residual blocks per level of the encoder.
      attention_levels: levels whose blocks are followed by attention.
      mid_attention: whether attention is at the bottom.
      quant_conv, post_quant_conv: whether a linear layer follows the encoder and precedes the decoder.
      activation: of the residual blocks, by name as in `UNet2D`, or a function. The last layers of encoder and decoder
        have silu, as published.
      norm_groups, norm_eps: of every group normalisation; the groups must divide every level's width.
      scaling_factor, shift_factor, latents_mean, latents_std: see `scale`; the last two have Z numbers each.
      image_size: of training. No output depends on it.
      remat: the backward pass computes every block again instead of keeping its activations.
      native_conv: as in `UNet`.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, H W, 1, channels].
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics and the softmax stay in
        float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> net = AutoencoderKL(channels=4, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=2)
    >>> shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros([1, 8, 12, 3]))
    >>> mean, logvar = jax.eval_shape(lambda v, x: net.apply(v, x, method="encode"), shapes, jnp.zeros([1, 8, 12, 3]))
    >>> mean.shape, jax.eval_shape(lambda v, z: net.apply(v, z, method="decode"), shapes, mean).shape
    ((1, 4, 6, 4), (1, 8, 12, 3))
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: int = 128
    channel_multipliers: Sequence[float] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = ()
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    activation: ops.Activation = "silu"
    norm_groups: int = 32
    norm_eps: float = 1e-6
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    latents_mean: Sequence[float] | None = None
    latents_std: Sequence[float] | None = None
    image_size: int = 512
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    def setup(self) -> None:
        if not self.channel_multipliers or self.num_res_blocks < 1:
            raise ValueError(
                "channel_multipliers must not be empty and num_res_blocks must be at least 1; got "
                f"{tuple(self.channel_multipliers)} and {self.num_res_blocks}"
            )
        last = len(self.channel_multipliers) - 1
        if not set(self.attention_levels) <= set(range(last + 1)):
            raise ValueError(f"attention_levels must lie in 0 .. {last}; got {tuple(self.attention_levels)}")
        fields: dict[str, Any] = {
            "widths": tuple(self.widths()),
            "num_res_blocks": self.num_res_blocks,
            "attention_levels": self.attention_levels,
            "mid_attention": self.mid_attention,
            "activation": self.activation,
            "norm_groups": self.norm_groups,
            "norm_eps": self.norm_eps,
            "remat": self.remat,
            "attention_fn": self.attention_fn,
            **self.types,
        }
        dense: Callable[..., Any] = functools.partial(ops.Dense, kernel_init=dense_init, **self.types)
        self.encoder = Encoder(2 * self.latent_channels, **fields)
        self.decoder = Decoder(self.out_channels, **fields)
        if self.quant_conv:
            self.quant = dense(2 * self.latent_channels)
        if self.post_quant_conv:
            self.post_quant = dense(self.latent_channels)

    def widths(self) -> list[int]:
        """Returns the channels of each level.

        >>> AutoencoderKL().widths()
        [128, 256, 512, 512]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the image [B, H, W, C] that the mean latent of x decodes to."""
        return self.decode(self.encode(x)[0])

    def moments(self, x: jax.Array) -> jax.Array:
        """Returns [mean, log-variance] as they leave the network, [B, H / f, W / f, 2 Z]: nothing is clipped."""
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            raise ValueError(f"x must have shape [B, H, W, {self.in_channels}]; got {list(x.shape)}")
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"H and W must be multiples of {factor}; got {x.shape[1:3]}")
        h = self.encoder(x)
        h = self.quant(h) if self.quant_conv else h
        return h.astype(jnp.promote_types(x.dtype, jnp.float32))

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and log-variance [B, H / f, W / f, Z] of the latents of images x, the latter in [-30, 20]."""
        mean, logvar = jnp.split(self.moments(x), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, z: jax.Array) -> jax.Array:
        """Returns the images [B, H, W, C] of unscaled latents z [B, H / f, W / f, Z]."""
        if z.ndim != 4 or z.shape[-1] != self.latent_channels:
            raise ValueError(f"z must have shape [B, h, w, {self.latent_channels}]; got {list(z.shape)}")
        h = self.post_quant(z) if self.post_quant_conv else z
        return self.decoder(h).astype(jnp.promote_types(z.dtype, jnp.float32))

    def scale(self, z: jax.Array) -> jax.Array:
        """Returns (z - latents_mean - shift_factor) scaling_factor / latents_std, the latents of a diffusion model.

        >>> AutoencoderKL(scaling_factor=0.5).scale(jnp.array([4.0])).item()
        2.0
        """
        mean, std = self._location_and_scale(z)
        return (z - mean) / std

    def unscale(self, z: jax.Array) -> jax.Array:
        """Returns z latents_std / scaling_factor + shift_factor + latents_mean: the inverse of `scale`."""
        mean, std = self._location_and_scale(z)
        return z * std + mean

    def _location_and_scale(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns two arrays of z's rank, computed in float64 and rounded once to z's dtype."""
        mean = np.asarray(0.0 if self.latents_mean is None else self.latents_mean, np.float64) + self.shift_factor
        std = np.asarray(1.0 if self.latents_std is None else self.latents_std, np.float64) / self.scaling_factor
        mean, std = (value.reshape((1,) * (z.ndim - value.ndim) + value.shape) for value in (mean, std))
        return jnp.asarray(mean, z.dtype), jnp.asarray(std, z.dtype)


class _Half(ops.Module):
    """The fields and the parts of the encoder and the decoder: those of `AutoencoderKL`, and the channels per level."""

    features: int
    widths: Sequence[int]
    num_res_blocks: int
    attention_levels: Sequence[int] = ()
    mid_attention: bool = True
    activation: ops.Activation = "silu"
    norm_groups: int = 32
    norm_eps: float = 1e-6
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    def conv(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        return ops.Conv(features, (3, 3), kernel_init=dense_init, name=name, **fields, **self.types)

    def block(self, h: jax.Array, way: str, level: int, i: int) -> jax.Array:
        h = self.res_block(self.widths[level], f"{way}_{level}_block_{i}")(h)
        return self.attention(f"{way}_{level}_attention_{i}")(h) if level in self.attention_levels else h

    def res_block(self, features: int, name: str) -> Callable[..., jax.Array]:
        block = PlainResBlock(features, self.norm_groups, self.norm_eps, self.activation, name=name, **self.types)
        return blocks.rematerialised(block, self.remat)

    def attention(self, name: str) -> Callable[..., jax.Array]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **self.types}
        block = blocks.SelfAttention(zero_init=False, attention_fn=self.attention_fn, name=name, **fields)
        return blocks.rematerialised(block, self.remat)

    def middle(self, h: jax.Array) -> jax.Array:
        h = self.res_block(self.widths[-1], "mid_block_0")(h)
        h = self.attention("mid_attention")(h) if self.mid_attention else h
        return self.res_block(self.widths[-1], "mid_block_1")(h)

    def out(self, h: jax.Array) -> jax.Array:
        h = ops.silu(ops.GroupNorm(self.norm_groups, self.norm_eps, name="norm_out", **self.types)(h))
        return self.conv(self.features, "conv_out")(h)


class Encoder(_Half):
    """Computes features [B, H / f, W / f, features] of images [B, H, W, C]. Fields as those of `AutoencoderKL`.

    >>> net = Encoder(8, widths=(4, 8), num_res_blocks=1, norm_groups=2)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.ones([1, 8, 8, 3]))[0].shape
    (1, 4, 4, 8)
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def downsample(h: jax.Array, level: int) -> jax.Array:
            padding = ((0, 1), (0, 1))
            return self.conv(self.widths[level], f"down_{level}_downsample", strides=2, padding=padding)(h)

        h = self.conv(self.widths[0], "conv_in")(x)
        h = walks.walk_down(h, [self.num_res_blocks] * len(self.widths), self.block, downsample)[-1]
        return self.out(self.middle(h))


class Decoder(_Half):
    """Computes images [B, H, W, features] from latents [B, H / f, W / f, Z]. Fields as those of `AutoencoderKL`.

    >>> net = Decoder(3, widths=(4, 8), num_res_blocks=1, norm_groups=2)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.ones([1, 4, 4, 4]))[0].shape
    (1, 8, 8, 3)
    """

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = self.middle(self.conv(self.widths[-1], "conv_in")(z))
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.num_res_blocks + 1):
                h = self.block(h, "up", level, i)
            if level > 0:
                h = self.conv(width, f"up_{level}_upsample")(blocks.nearest(h))
        return self.out(h)


class PlainResBlock(ops.Module):
    """Computes skip(x) + conv(f(norm(conv(f(norm(x)))))) for x [B, H, W, C], with `features` channels.

    f is the activation.

    >>> block = PlainResBlock(features=8, norm_groups=4)
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.ones([1, 4, 4, 4]))[0].shape
    (1, 4, 4, 8)
    """

    features: int
    norm_groups: int = 32
    norm_eps: float = 1e-6
    activation: ops.Activation = "silu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h, activation = x, ops.lazily(ops.activation(self.activation))
        for i in range(2):
            h = activation(ops.GroupNorm(self.norm_groups, self.norm_eps, name=f"norm_{i}", **self.types)(h))
            h = ops.Conv(self.features, (3, 3), kernel_init=dense_init, name=f"conv_{i}", **self.types)(h)
        if x.shape[-1] != self.features:
            x = ops.Dense(self.features, kernel_init=dense_init, name="skip", **self.types)(x)
        return x + h
