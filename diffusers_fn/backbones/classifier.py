"""A classifier of noisy images, for classifier guidance: half a U-Net."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, ops, walks
from diffusers_fn.backbones.sizes import level_channels

__all__ = ["POOLS", "AttentionPool", "Classifier"]

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")


class Classifier(ops.ConvNetwork):
    """Computes logits [B, num_classes] of noisy images x [B, H, W, C] at time labels t [] or [B].

    The way down and the middle of ADM's U-Net, then a pool over the pixels. Dhariwal and Nichol, "Diffusion Models Beat
    GANs on Image Synthesis" (2021), https://arxiv.org/abs/2105.05233, section 4 and appendix H; the defaults are their
    classifier for ImageNet at 64 pixels. For guidance, with t the label that the classifier was trained on,

        def log_prob(x, y, level): return jax.nn.log_softmax(classifier.apply(variables, x, level.t))[jnp.arange(B), y]

    Call with x [B, H, W, C]; t integers or floats; train=True turns on dropout, which draws from the rng collection
    "dropout". The logits are float32, or x's dtype if that is wider.

    Fields:
      num_classes: the number of logits.
      image_size: the resolution of level 0, to which attention_resolutions refer. With pool="attention" x must have it,
        because each pixel of the last level has a learned position; otherwise the same parameters serve any size.
      channels, channel_multipliers: level i has channels * channel_multipliers[i] channels, rounded down.
      num_res_blocks: residual blocks per level.
      num_heads, head_dim: heads of an attention of C channels: C / head_dim, else num_heads, else one.
      pool: "adaptive", the mean of the last activations; "attention", the result of an attention whose query is that
        mean; "spatial" and "spatial_v2", an MLP with one hidden layer on the means of all activations, in
        "spatial_v2" normalised.
      pool_hidden_size: of that hidden layer.
      zero_init_output: start with every block as its skip connection, and with zero logits if pool="adaptive".
      scale_shift_norm, resblock_updown, resample_conv, norm_groups, norm_eps, time_cos_first, time_freq_shift,
        downsample_padding, new_attention_order, remat, native_conv, attention_fn, dtype, param_dtype: as in `UNet`.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> classifier = Classifier(num_classes=10, image_size=8, channels=8, channel_multipliers=(1, 2), head_dim=4,
    ...                         attention_resolutions=(4,), norm_groups=4)
    >>> x, t = jnp.zeros([2, 8, 8, 3]), jnp.array([0, 999])
    >>> jax.eval_shape(classifier.init_with_output, jax.random.key(0), x, t)[0].shape
    (2, 10)
    """

    num_classes: int = 1000
    image_size: int = 64
    channels: int = 128
    channel_multipliers: Sequence[float] = (1, 2, 3, 4)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (32, 16, 8)
    num_heads: int | None = None
    head_dim: int | None = 64
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    resample_conv: bool = True
    pool: str = "attention"
    pool_hidden_size: int = 2048
    dropout: float = 0.0
    zero_init_output: bool = True
    norm_groups: int = 32
    norm_eps: float = 1e-5
    time_cos_first: bool = True
    time_freq_shift: float = 0.0
    downsample_padding: tuple[int, int] = (1, 1)
    new_attention_order: bool = False
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        self._check(x)
        widths, num_blocks = self.widths(), [self.num_res_blocks] * len(self.channel_multipliers)
        attends = [self.image_size // 2**level in self.attention_resolutions for level in range(len(widths))]
        emb = self._embed(x, t)

        def block(h: jax.Array, way: str, level: int, i: int) -> jax.Array:
            h = self._res_block(widths[level], f"{way}_{level}_block_{i}")(h, emb, train=train)
            return self._attention(f"{way}_{level}_attention_{i}")(h) if attends[level] else h

        def downsample(h: jax.Array, level: int) -> jax.Array:
            name = f"down_{level}_downsample"
            if self.resblock_updown:
                return self._res_block(widths[level], name, blocks.average_pool)(h, emb, train=train)
            if not self.resample_conv:
                return blocks.average_pool(h)
            return self._conv(widths[level], name, strides=2, padding=(self.downsample_padding,) * 2)(h)

        h = self._conv(widths[0], "conv_in")(x)
        saved = walks.walk_down(h, num_blocks, block, downsample)

        h = self._res_block(widths[-1], "mid_block_0")(saved[-1], emb, train=train)
        h = self._attention("mid_attention")(h)
        h = self._res_block(widths[-1], "mid_block_1")(h, emb, train=train)
        return self._pool([*saved, h]).astype(jnp.promote_types(x.dtype, jnp.float32))

    def widths(self) -> list[int]:
        """Returns the channels of each level.

        >>> Classifier().widths()
        [128, 256, 384, 512]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def _conv(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        return ops.Conv(features, (3, 3), name=name, kernel_init=embeddings.dense_init, **self.types, **fields)

    def _norm(self, name: str) -> Callable[..., ops.Lazy]:
        return ops.GroupNorm(self.norm_groups, self.norm_eps, name=name, **self.types)

    def _res_block(self, features: int, name: str, resample: Callable[..., Any] | None = None) -> Callable[..., Any]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"scale_shift_norm": self.scale_shift_norm, "zero_init": self.zero_init_output}
        block = blocks.ResBlock(features, self.dropout, resample=resample, name=name, **fields)
        return blocks.rematerialised(block, self.remat)

    def _attention(self, name: str) -> Callable[..., jax.Array]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"attention_fn": self.attention_fn, "zero_init": self.zero_init_output}
        block = blocks.SelfAttention(self.num_heads, self.head_dim, name=name, **fields)
        return blocks.rematerialised(block, self.remat)

    def _pool(self, activations: Sequence[jax.Array]) -> jax.Array:
        """Returns the logits [B, num_classes] from all activations, the middle's last."""
        dense: Callable[..., Any] = functools.partial(ops.Dense, kernel_init=embeddings.dense_init, **self.types)
        if self.pool.startswith("spatial"):
            wide = jnp.promote_types(self.dtype, jnp.float32)
            h = jnp.concatenate([each.astype(wide).mean((1, 2)) for each in activations], axis=-1)
            h = dense(self.pool_hidden_size, name="pool_hidden")(h)
            if self.pool == "spatial":
                return dense(self.num_classes, name="pool_out")(nn.relu(h))
            return dense(self.num_classes, name="pool_out")(ops.silu(self._norm("pool_norm")(h)))
        h = ops.array(ops.silu(self._norm("norm_out")(activations[-1])))
        if self.pool == "adaptive":
            init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
            return ops.Dense(self.num_classes, kernel_init=init, name="pool_out", **self.types)(h.mean((1, 2)))
        fields: dict[str, Any] = {"attention_fn": self.attention_fn, **self.types}
        return AttentionPool(self.num_classes, self.num_heads, self.head_dim, name="pool", **fields)(h)

    def _embed(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Returns the embedding [B, 4 * channels] of time that every residual block receives."""
        times = embeddings.time_labels(t, x.shape[0], self.precise_dtype)
        features = embeddings.sinusoidal_features(
            times, self.channels, freq_shift=self.time_freq_shift, cos_first=self.time_cos_first
        )
        return embeddings.LabelEmbedding(4 * self.channels, name="embedding", **self.precise_types)(features, None)

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        levels = len(self.channel_multipliers)
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}; got {self.pool!r}")
        if levels < 1 or self.num_res_blocks < 1 or self.num_classes < 1:
            raise ValueError(
                "channel_multipliers must not be empty, and num_res_blocks and num_classes must be at least 1; got "
                f"{tuple(self.channel_multipliers)}, {self.num_res_blocks} and {self.num_classes}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        factor = 2 ** (levels - 1)
        resolutions = [self.image_size // 2**level for level in range(levels)]
        if self.image_size % factor or not set(self.attention_resolutions) <= set(resolutions):
            raise ValueError(
                f"image_size must be a multiple of {factor} for {levels} levels, and attention_resolutions among "
                f"{resolutions}; got {self.image_size} and {tuple(self.attention_resolutions)}"
            )
        if x.ndim != 4:
            raise ValueError(f"x must have shape [B, H, W, C]; got {list(x.shape)}")
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"H and W must be multiples of {factor} for {levels} levels; got {x.shape[1:3]}")
        if self.pool == "attention" and x.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f'with pool="attention" H and W must be image_size={self.image_size}; got {x.shape[1:3]}')


class AttentionPool(ops.Module):
    """Computes [B, features] from x [B, H, W, C]: out(attention of the mean pixel to the mean and all pixels).

        z = [mean(x), x_1, .., x_HW] + positions,      result = out(attention(query(z_0), key(z), value(z)))

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021),
    https://arxiv.org/abs/2103.00020, section 2.4.

    >>> pool = AttentionPool(features=5, head_dim=4)
    >>> jax.eval_shape(pool.init_with_output, jax.random.key(0), jnp.ones([2, 3, 3, 8]))[0].shape
    (2, 5)
    """

    features: int
    num_heads: int | None = None
    head_dim: int | None = None
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        heads, head_dim = blocks.head_split(channels, self.num_heads, self.head_dim)
        init = nn.initializers.normal(channels**-0.5)
        positions = self.param("positions", init, (height * width + 1, channels), self.param_dtype)

        tokens = x.reshape(batch, height * width, channels)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
        tokens = tokens + positions.astype(self.dtype)[None]
        dense: Callable[..., Any] = functools.partial(ops.DenseGeneral, **self.types)
        qkv = dense((3, heads, head_dim), kernel_init=blocks.qkv_init, name="qkv")(tokens)
        h = self.attention_fn(qkv[:, :1, 0], qkv[:, :, 1], qkv[:, :, 2])[:, 0]
        return dense(self.features, axis=(-2, -1), kernel_init=embeddings.dense_init, name="out")(h)
