"""The U-Nets of score-based models, DDPM++ and NCSN++, in the form in which EDM trained them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, fir, ops, vector_labels, walks
from diffusers_fn.backbones.sizes import level_channels

__all__ = ["SongUNet", "check_unet", "quarter_groups"]

_HALF = math.sqrt(0.5)  # keeps the variance of a sum of two equal to that of one


class SongUNet(ops.ConvNetwork):
    """Computes a denoiser's output [B, H, W, C] for images x [B, H, W, C] at time labels t [] or [B].

    A U-Net of residual blocks whose skip connections are scaled by sqrt(1/2), with attention of one head after the
    blocks of the way down and after the last block of the way up at the chosen resolutions, and whose blocks also
    change the resolution. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
    (2021), https://arxiv.org/abs/2011.13456, appendix H, as Karras et al., "Elucidating the Design Space of
    Diffusion-Based Generative Models" (2022), https://arxiv.org/abs/2206.00364, appendix F.2, reimplement it. The
    defaults are DDPM++; `ncsnpp()` is NCSN++. EDM's CIFAR-10 networks have channel_multipliers=(2, 2, 2),
    augment_dim=9 and dropout=0.13.

    This is the network F alone. t is EDM's c_noise and x is c_in x; the preconditioning around it,
    D = c_skip x + c_out F, is a parameterization.

    Call with x [B, H, W, C]; t integers or floats; cond as in `vector_labels.vector_conditions`: integer class
    labels [] or [B], vectors [B, num_classes], or {"label": either of them, "augment": [B, augment_dim]}, where no
    label and the label num_classes are the same zero vector. train=True turns on dropout and label_dropout, which draw
    from the rng collection "dropout". The output is float32, or x's dtype if that is wider. It has out_channels
    channels (C if None), or twice as many with learned_variance.

    Fields:
      image_size: the resolution of level 0, to which attention_resolutions refer. The same parameters serve any H and W
        that the levels can halve.
      channels, channel_multipliers: level i has channels * channel_multipliers[i] channels, rounded down.
      num_res_blocks: residual blocks per level on the way down.
      embedding_multiplier, feature_multiplier: features of the embedding, and time features, as multiples of channels.
      fourier_features: random frequencies instead of geometric ones.
      input_pyramid: None; "residual", halved inputs pass through convolutions and are added from level to level
        (NCSN++); or "skip", they are added to each level as they are, through a 1x1 convolution.
      sigma_labels: t is sigma: the network takes its logarithm and divides the output by it, as a score is. This is
        the NCSN++ of Song et al.; EDM's has c_noise, and a parameterization around it.
      mid_divisor: the sums of the middle's blocks are divided by it.
      output_pyramid: every level computes an image, and the doubled images are summed.
      resample_taps: the filter of `fir`.
      num_classes, augment_dim: None, or the sizes of the label and augmentation vectors.
      label_dropout: the probability that training leaves out a label.
      zero_init_output: start as the zero function, and every block as its skip connection. The published code starts
        1e-5 away.
      norm_eps: of every group normalisation. It has min(32, C / 4) groups for C channels.
      remat: the backward pass computes every block again instead of keeping its activations.
      native_conv: as in `UNet`.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, H W, 1, channels].
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics, the softmax and the
        embeddings stay in float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> unet = SongUNet.ncsnpp(image_size=8, channels=8, channel_multipliers=(1, 2), num_res_blocks=1)
    >>> x, t = jnp.zeros([2, 8, 8, 3]), jnp.array([-0.3, 0.4])
    >>> jax.eval_shape(unet.init_with_output, jax.random.key(0), x, t)[0].shape
    (2, 8, 8, 3)
    """

    out_channels: int | None = None
    image_size: int = 32
    channels: int = 128
    channel_multipliers: Sequence[float] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: Sequence[int] = (16,)
    embedding_multiplier: int = 4
    feature_multiplier: int = 1
    fourier_features: bool = False
    input_pyramid: str | None = None
    output_pyramid: bool = False
    resample_taps: Sequence[float] = (1, 1)
    num_classes: int | None = None
    augment_dim: int | None = None
    dropout: float = 0.0
    label_dropout: float = 0.0
    learned_variance: bool = False
    zero_init_output: bool = True
    norm_eps: float = 1e-6
    sigma_labels: bool = False
    mid_divisor: float = math.sqrt(2)
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @classmethod
    def ncsnpp(cls, **fields: Any) -> SongUNet:
        """Returns NCSN++: Fourier features, a residual pyramid of inputs, a wider filter; fields replace its own.

        >>> SongUNet.ncsnpp().resample_taps
        (1, 3, 3, 1)
        """
        own: dict[str, Any] = {"fourier_features": True, "feature_multiplier": 2, "input_pyramid": "residual"}
        return cls(**(own | {"resample_taps": (1, 3, 3, 1)} | fields))

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any] | jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        self._check(x)
        widths, num_blocks = self.widths(), [self.num_res_blocks] * len(self.channel_multipliers)
        attends = [self.image_size // 2**level in self.attention_resolutions for level in range(len(widths))]
        out_channels = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        down = functools.partial(fir.fir_down, taps=tuple(self.resample_taps))
        up = functools.partial(fir.fir_up, taps=tuple(self.resample_taps))
        emb = self._embed(x, t, cond, train)
        inputs, image = x.astype(self.dtype), None  # the pyramids, at the level that is being computed

        def block(h: jax.Array, way: str, level: int, i: int) -> jax.Array:
            h = self._res_block(widths[level], f"{way}_{level}_block_{i}")(h, emb, train=train)
            if not attends[level] or (way == "up" and i < self.num_res_blocks):
                return h
            return self._attention(f"down_{level}_attention_{i}" if way == "down" else f"up_{level}_attention")(h)

        def downsample(h: jax.Array, level: int) -> jax.Array:
            nonlocal inputs
            h = self._res_block(widths[level], f"down_{level}_downsample", resample=down)(h, emb, train=train)
            if self.input_pyramid is not None:
                h, inputs = self._join_pyramid(h, inputs, level)
            return h

        def upsample(h: jax.Array, level: int) -> jax.Array:
            nonlocal image
            if self.output_pyramid:
                image = self._image(h, level, out_channels, None if image is None else up(image))
            return self._res_block(widths[level], f"up_{level}_upsample", resample=up)(h, emb, train=train)

        h = self._conv(self.channels, "conv_in")(x)
        saved = walks.walk_down(h, num_blocks, block, downsample)

        scale = 1 / self.mid_divisor
        h = self._res_block(widths[-1], "mid_block_0", skip_scale=scale)(saved[-1], emb, train=train)
        h = self._attention("mid_attention", skip_scale=scale)(h)
        h = self._res_block(widths[-1], "mid_block_1", skip_scale=scale)(h, emb, train=train)

        h = walks.walk_up(h, saved, num_blocks, block, upsample)
        out = self._image(h, 0, out_channels, None if image is None else up(image))
        out = out.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.sigma_labels:
            return out / embeddings.time_labels(t, x.shape[0], out.dtype)[:, None, None, None]
        return out

    def widths(self) -> list[int]:
        """Returns the channels of each level.

        >>> SongUNet().widths()
        [128, 256, 256, 256]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def _conv(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        return ops.Conv(features, (3, 3), name=name, **{"kernel_init": embeddings.dense_init, **self.types, **fields})

    def _res_block(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        fields = {"norm_groups": quarter_groups, "norm_eps": self.norm_eps, "skip_scale": _HALF, **fields, **self.types}
        fields |= {"dropout": self.dropout, "zero_init": self.zero_init_output, "project_skip": "resample" in fields}
        return blocks.rematerialised(blocks.ResBlock(features, name=name, **fields), self.remat)

    def _attention(self, name: str, skip_scale: float = _HALF) -> Callable[..., jax.Array]:
        fields: dict[str, Any] = {"norm_groups": quarter_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"attention_fn": self.attention_fn, "zero_init": self.zero_init_output}
        return blocks.rematerialised(blocks.SelfAttention(skip_scale=skip_scale, name=name, **fields), self.remat)

    def _join_pyramid(self, h: jax.Array, inputs: jax.Array, level: int) -> tuple[jax.Array, jax.Array]:
        """Returns h with the inputs, halved once more, added to it, and these inputs."""
        features, name = h.shape[-1], f"down_{level}_pyramid"
        if self.input_pyramid == "residual":
            pad = 1 + (len(self.resample_taps) - 1) // 2
            inputs = self._conv(features, name, padding=pad)(inputs)
            h = (h + fir.fir_down(inputs, self.resample_taps, padding=0)) * _HALF
            return h, h
        inputs = fir.fir_down(inputs, tuple(self.resample_taps))
        return h + ops.Dense(features, kernel_init=embeddings.dense_init, name=name, **self.types)(inputs), inputs

    def _image(self, h: jax.Array, level: int, out_channels: int, smaller: jax.Array | None) -> jax.Array:
        """Returns the image [B, H, W, out_channels] of a level, added to the doubled image of the smaller levels."""
        init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        h = ops.silu(ops.GroupNorm(quarter_groups, self.norm_eps, name=f"up_{level}_norm_out", **self.types)(h))
        image = self._conv(out_channels, f"up_{level}_conv_out", kernel_init=init)(h)
        return image if smaller is None else smaller + image

    def _embed(self, x: jax.Array, t: jax.Array, cond: Any, train: bool) -> jax.Array:
        """Returns the embedding [B, embedding_multiplier * channels] that every residual block receives."""
        batch, types, dtype = x.shape[0], self.precise_types, self.precise_dtype
        dense: Callable[..., Any] = functools.partial(ops.Dense, kernel_init=embeddings.dense_init, **types)
        labels, augment = vector_labels.vector_conditions(cond, self.num_classes, self.augment_dim, batch, dtype)
        times, dim = embeddings.time_labels(t, batch, dtype), self.feature_multiplier * self.channels
        times = jnp.log(times) if self.sigma_labels else times
        if self.fourier_features:
            features = embeddings.FourierFeatures(dim, name="fourier", **types)(times)
        else:
            features = embeddings.sinusoidal_features(times, dim, freq_shift=1)
        if labels is not None and self.num_classes is not None:
            if train and self.label_dropout:
                labels = vector_labels.kept_labels(labels, self.label_dropout, self.make_rng("dropout"))
            features = features + dense(dim, name="embedding_label")(labels * math.sqrt(self.num_classes))
        if augment is not None:
            features = features + dense(dim, use_bias=False, name="embedding_augment")(augment)
        emb = self.embedding_multiplier * self.channels
        return dense(emb, name="embedding_1")(ops.silu(dense(emb, name="embedding_0")(features)))

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        check_unet(self, x)
        if self.input_pyramid not in (None, "residual", "skip"):
            raise ValueError(f'input_pyramid must be None, "residual" or "skip"; got {self.input_pyramid!r}')


def quarter_groups(channels: int) -> int:
    """Returns the groups of a normalisation, min(32, channels / 4).

    >>> quarter_groups(64), quarter_groups(256)
    (16, 32)
    """
    return min(32, channels // 4)


def check_unet(net: Any, x: jax.Array) -> None:
    """Raises ValueError for fields of SongUNet or DhariwalUNet, or images x, that do not fit; the message names them.

    >>> check_unet(SongUNet(), jnp.zeros([1, 32, 32, 3]))
    """
    levels = len(net.channel_multipliers)
    if levels < 1 or net.num_res_blocks < 1:
        raise ValueError(
            "channel_multipliers must not be empty and num_res_blocks must be at least 1; got "
            f"{tuple(net.channel_multipliers)} and {net.num_res_blocks}"
        )
    for name in ("dropout", "label_dropout"):
        if not 0 <= getattr(net, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1); got {getattr(net, name)}")
    if net.channels % 4:
        raise ValueError(f"channels must be a multiple of 4; got {net.channels}")
    factor = 2 ** (levels - 1)
    if net.image_size % factor:
        raise ValueError(f"image_size must be a multiple of {factor} for {levels} levels; got {net.image_size}")
    if x.ndim != 4:
        raise ValueError(f"x must have shape [B, H, W, C]; got {list(x.shape)}")
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"H and W must be multiples of {factor} for {levels} levels; got {x.shape[1:3]}")
