"""The U-Net of the UNet2DModel family: attention and resampling chosen level by level."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, ops, walks
from diffusers_fn.backbones.sizes import level_channels

__all__ = ["UNet2D"]


class UNet2D(ops.ConvNetwork):
    """Computes a denoiser's output [B, H, W, C] for images x [B, H, W, C] at time labels t [] or [B].

    `UNet` with more options: the two ways may attend on different levels, and each change of resolution is a
    convolution or a residual block. Most published unconditional networks are of this kind. The defaults, apart from
    the channels, are DDPM's (Ho et al., "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239, appendix B). Sequences over levels begin at the largest
    resolution, for the way up, too, and one value stands for all levels.

    Call with x [B, H, W, C]; t integers or floats; cond None, or with num_classes integer labels [] or [B] (None is
    the null class, num_classes, if there is one), with class_time numbers [] or [B], with class_vectors vectors
    [B, embedding_dim]. train=True turns on dropout, which draws from the rng collection "dropout". The output is
    float32, or x's dtype if that is wider, and has out_channels channels (C if None), or twice as many with
    learned_variance.

    Fields:
      in_channels: None, or C, where published weights fix it.
      channels, channel_multipliers: level i has channels * channel_multipliers[i] channels, rounded down.
      num_res_blocks: residual blocks per level on the way down; one more on the way up.
      down_attention, up_attention: whether a level's blocks are followed by attention.
      down_resample_block, up_resample_block: whether a residual block, not a convolution, changes the resolution after
        a level.
      middle, mid_attention: whether there is a middle, of two residual blocks, and attention between them.
      mid_divisor: the sums of the middle's blocks are divided by it.
      mid_attention_groups: of the normalisation before the middle's attention. None means norm_groups, and, as
        published, no normalisation with scale_shift_norm.
      head_dim: an attention of C channels has C / head_dim heads; None is one head.
      embedding_dim: of the time embedding; None is 4 times the channels of level 0.
      num_timesteps: None, or the number of learned time features, which integers t look up.
      fourier_time: t is a noise level sigma: the time features are those of log t at random frequencies, and the output
        is divided by t, as a score is (Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021, https://arxiv.org/abs/2011.13456).
      num_classes, null_class: labels look up a table, which with null_class has a last row for the null class.
      class_time: labels are embedded like times. class_vectors: cond itself is added to the time embedding.
      center_input: the network receives 2 x - 1.
      activation: of the residual blocks, by name: "silu" (also "swish"), "mish", "gelu", "quick_gelu" or "relu"; or a
        function. Other layers have silu, as published.
      scale_shift_norm, dropout, learned_variance, zero_init_output, norm_groups, norm_eps, time_cos_first,
        time_freq_shift, downsample_padding, remat, native_conv, attention_fn, dtype, param_dtype: as in `UNet`.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> unet = UNet2D(channels=8, channel_multipliers=(1, 2), down_attention=(False, True), up_attention=(True, True),
    ...                norm_groups=4)
    >>> x, t = jnp.zeros([2, 8, 8, 3]), jnp.array([0, 999])
    >>> jax.eval_shape(unet.init_with_output, jax.random.key(0), x, t)[0].shape
    (2, 8, 8, 3)
    """

    in_channels: int | None = None
    out_channels: int | None = None
    channels: int = 128
    channel_multipliers: Sequence[float] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    down_attention: bool | Sequence[bool] = (False, True, False, False)
    up_attention: bool | Sequence[bool] = (False, True, False, False)
    down_resample_block: bool | Sequence[bool] = False
    up_resample_block: bool | Sequence[bool] = False
    middle: bool = True
    mid_attention: bool = True
    mid_divisor: float = 1.0
    mid_attention_groups: int | None = None
    head_dim: int | None = None
    embedding_dim: int | None = None
    num_timesteps: int | None = None
    fourier_time: bool = False
    num_classes: int | None = None
    null_class: bool = True
    class_time: bool = False
    class_vectors: bool = False
    center_input: bool = False
    activation: ops.Activation = "silu"
    scale_shift_norm: bool = False
    dropout: float = 0.0
    learned_variance: bool = False
    zero_init_output: bool = True
    norm_groups: int = 32
    norm_eps: float = 1e-6
    time_cos_first: bool = False
    time_freq_shift: float = 1.0
    downsample_padding: tuple[int, int] = (0, 1)
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        self._check(x)
        widths, num_blocks = self.widths(), [self.num_res_blocks] * len(self.channel_multipliers)
        attends = {way: self.per_level(f"{way}_attention") for way in ("down", "up")}
        resample_block = {way: self.per_level(f"{way}_resample_block") for way in ("down", "up")}
        out_channels = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        out_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        out_dtype = jnp.promote_types(x.dtype, jnp.float32)
        times = embeddings.time_labels(t, x.shape[0], self.precise_dtype)
        emb = self._embed(times, jnp.asarray(t), cond)

        def block(h: jax.Array, way: str, level: int, i: int) -> jax.Array:
            h = self._res_block(widths[level], f"{way}_{level}_block_{i}")(h, emb, train=train)
            return self._attention(f"{way}_{level}_attention_{i}")(h) if attends[way][level] else h

        def downsample(h: jax.Array, level: int) -> jax.Array:
            name = f"down_{level}_downsample"
            if resample_block["down"][level]:
                return self._res_block(widths[level], name, resample=blocks.average_pool)(h, emb, train=train)
            return self._conv(widths[level], name, strides=2, padding=(self.downsample_padding,) * 2)(h)

        def upsample(h: jax.Array, level: int) -> jax.Array:
            name = f"up_{level}_upsample"
            if resample_block["up"][level]:
                return self._res_block(widths[level], name, resample=blocks.nearest)(h, emb, train=train)
            return self._conv(widths[level], name)(blocks.nearest(h))

        h = self._conv(widths[0], "conv_in")(2 * x - 1 if self.center_input else x)
        saved = walks.walk_down(h, num_blocks, block, downsample)

        h, scale = saved[-1], 1 / self.mid_divisor
        if self.middle:
            h = self._res_block(widths[-1], "mid_block_0", skip_scale=scale)(h, emb, train=train)
            if self.mid_attention:
                normalise = self.mid_attention_groups is not None or not self.scale_shift_norm
                groups = self.mid_attention_groups or self.norm_groups
                fields = {"norm_groups": groups, "normalise": normalise, "skip_scale": scale}
                h = self._attention("mid_attention", **fields)(h)
            h = self._res_block(widths[-1], "mid_block_1", skip_scale=scale)(h, emb, train=train)

        h = walks.walk_up(h, saved, num_blocks, block, upsample)
        h = ops.silu(ops.GroupNorm(self.norm_groups, self.norm_eps, name="norm_out", **self.types)(h))
        out = self._conv(out_channels, "conv_out", kernel_init=out_init)(h).astype(out_dtype)
        return out / times.astype(out_dtype)[:, None, None, None] if self.fourier_time else out

    def _conv(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        return ops.Conv(features, (3, 3), name=name, **{"kernel_init": embeddings.dense_init, **self.types, **fields})

    def _res_block(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        fields |= {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, "activation": self.activation}
        fields |= {"scale_shift_norm": self.scale_shift_norm, "zero_init": self.zero_init_output}
        block = blocks.ResBlock(features, self.dropout, name=name, **fields, **self.types)
        return blocks.rematerialised(block, self.remat)

    def _attention(self, name: str, **fields: Any) -> Callable[..., jax.Array]:
        fields = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **fields, **self.types}
        fields |= {"attention_fn": self.attention_fn, "zero_init": self.zero_init_output, "head_dim": self.head_dim}
        return blocks.rematerialised(blocks.SelfAttention(name=name, **fields), self.remat)

    def widths(self) -> list[int]:
        """Returns the channels of each level.

        >>> UNet2D().widths()
        [128, 256, 256, 256]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def per_level(self, field: str) -> tuple[Any, ...]:
        """Returns a field's value for each level; ValueError if it is a sequence of another length.

        >>> UNet2D().per_level("down_resample_block")
        (False, False, False, False)
        """
        value, levels = getattr(self, field), len(self.channel_multipliers)
        values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
        if len(values) != levels:
            raise ValueError(f"{field} must be one value or one for each of the {levels} levels; got {value}")
        return values

    def _embed(self, times: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        """Returns the embedding [B, embedding_dim] of time and class that every residual block receives."""
        base = self.widths()[0]
        dim = 4 * base if self.embedding_dim is None else self.embedding_dim
        types = {"dtype": times.dtype, "param_dtype": self.param_dtype}
        batch = times.shape[0]
        if self.num_timesteps is not None:
            if not jnp.issubdtype(t.dtype, jnp.integer):
                raise ValueError(f"t must be integers with num_timesteps={self.num_timesteps}; got {t.dtype}")
            table = ops.Embed(self.num_timesteps, base, name="time_table", **types)
            features: Callable[[jax.Array], jax.Array] = lambda labels: table(labels.astype(jnp.int32))  # noqa: E731
        elif self.fourier_time:
            fourier = embeddings.FourierFeatures(2 * base, name="fourier", **types)
            features = lambda labels: fourier(jnp.log(labels))  # noqa: E731
        else:
            features = functools.partial(
                embeddings.sinusoidal_features,
                dim=base,
                freq_shift=self.time_freq_shift,
                cos_first=self.time_cos_first,
            )

        labels = cond if not (self.class_time or self.class_vectors) else None
        embed = embeddings.LabelEmbedding(dim, self.num_classes, null_class=self.null_class, name="embedding", **types)
        emb = embed(features(times), labels)
        if self.class_time:
            if cond is None:
                raise ValueError("this network is class-conditional (class_time): cond must hold a number [] or [B]")
            dense: Callable[..., Any] = functools.partial(ops.Dense, dim, kernel_init=embeddings.dense_init, **types)
            h = dense(name="class_time_0")(features(embeddings.time_labels(cond, batch, times.dtype)))
            emb = emb + dense(name="class_time_1")(ops.silu(h))
        elif self.class_vectors:
            if jnp.shape(cond) != (batch, dim):
                raise ValueError(f"cond must have shape [{batch}, {dim}] (class_vectors); got {jnp.shape(cond)}")
            emb = emb + jnp.asarray(cond, times.dtype)
        return emb

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
        if (self.num_classes is not None) + self.class_time + self.class_vectors > 1:
            raise ValueError("at most one of num_classes, class_time and class_vectors may be set")
        if self.fourier_time and self.num_timesteps is not None:
            raise ValueError("at most one of fourier_time and num_timesteps may be set")
        factor = 2 ** (levels - 1)
        if x.ndim != 4 or self.in_channels not in (None, x.shape[-1]):
            raise ValueError(f"x must have shape [B, H, W, {self.in_channels or 'C'}]; got {list(x.shape)}")
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"H and W must be multiples of {factor} for {levels} levels; got {x.shape[1:3]}")
