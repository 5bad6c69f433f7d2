"""The U-Net of ADM in the form in which EDM trained it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, ops, vector_labels, walks
from diffusers_fn.backbones.sizes import level_channels
from diffusers_fn.backbones.song_unet import check_unet, quarter_groups

__all__ = ["DhariwalUNet"]


class DhariwalUNet(ops.ConvNetwork):
    """Computes a denoiser's output [B, H, W, C] for images x [B, H, W, C] at time labels t [] or [B].

    ADM's U-Net (Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021,
    https://arxiv.org/abs/2105.05233) as Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
    Models" (2022), https://arxiv.org/abs/2206.00364, appendix F.2, reimplement it: class labels are vectors, zero for
    no class, an augmentation vector may be given, and normalisations have min(32, C / 4) groups. The defaults with
    num_classes=1000 and image_size=64 are EDM's network for ImageNet. `UNet` is ADM as first published.

    This is the network F alone, and called as `SongUNet` is; see there for x, t, cond, train and the output.

    Fields:
      image_size: the resolution of level 0, to which attention_resolutions refer.
      channels, channel_multipliers: level i has channels * channel_multipliers[i] channels, rounded down.
      num_res_blocks: residual blocks per level on the way down.
      embedding_multiplier: times channels, the features of the embedding.
      head_dim: an attention of C channels has C // head_dim heads; where that is zero there is no attention.
      num_classes, augment_dim, label_dropout, zero_init_output, remat, native_conv, attention_fn, dtype,
        param_dtype: as in `SongUNet`.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> unet = DhariwalUNet(image_size=8, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, head_dim=8)
    >>> x, t = jnp.zeros([2, 8, 8, 3]), jnp.array([-0.3, 0.4])
    >>> jax.eval_shape(unet.init_with_output, jax.random.key(0), x, t)[0].shape
    (2, 8, 8, 3)
    """

    out_channels: int | None = None
    image_size: int = 64
    channels: int = 192
    channel_multipliers: Sequence[float] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: Sequence[int] = (32, 16, 8)
    embedding_multiplier: int = 4
    head_dim: int = 64
    num_classes: int | None = None
    augment_dim: int | None = None
    dropout: float = 0.0
    label_dropout: float = 0.0
    learned_variance: bool = False
    zero_init_output: bool = True
    norm_eps: float = 1e-5
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any] | jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        check_unet(self, x)
        widths, num_blocks = self.widths(), [self.num_res_blocks] * len(self.channel_multipliers)
        out_channels = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        out_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        emb = self._embed(x, t, cond, train)

        def block(h: jax.Array, way: str, level: int, i: int) -> jax.Array:
            h = self._res_block(widths[level], f"{way}_{level}_block_{i}")(h, emb, train=train)
            return self._attention(h, f"{way}_{level}_attention_{i}") if self.attends(level) else h

        def downsample(h: jax.Array, level: int) -> jax.Array:
            name = f"down_{level}_downsample"
            return self._res_block(widths[level], name, blocks.average_pool)(h, emb, train=train)

        def upsample(h: jax.Array, level: int) -> jax.Array:
            return self._res_block(widths[level], f"up_{level}_upsample", blocks.nearest)(h, emb, train=train)

        h = self._conv(widths[0], "conv_in")(x)
        saved = walks.walk_down(h, num_blocks, block, downsample)

        h = self._res_block(widths[-1], "mid_block_0")(saved[-1], emb, train=train)
        h = self._attention(h, "mid_attention")
        h = self._res_block(widths[-1], "mid_block_1")(h, emb, train=train)

        h = walks.walk_up(h, saved, num_blocks, block, upsample)
        h = ops.silu(ops.GroupNorm(quarter_groups, self.norm_eps, name="norm_out", **self.types)(h))
        h = self._conv(out_channels, "conv_out", kernel_init=out_init)(h)
        return h.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _conv(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        return ops.Conv(features, (3, 3), name=name, **{"kernel_init": embeddings.dense_init, **self.types, **fields})

    def _res_block(self, features: int, name: str, resample: Callable[..., Any] | None = None) -> Callable[..., Any]:
        fields: dict[str, Any] = {"norm_groups": quarter_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"dropout": self.dropout, "scale_shift_norm": True, "zero_init": self.zero_init_output}
        return blocks.rematerialised(blocks.ResBlock(features, resample=resample, name=name, **fields), self.remat)

    def _attention(self, h: jax.Array, name: str) -> jax.Array:
        """Returns h after self-attention; h itself where it has too few channels for a head."""
        heads = h.shape[-1] // self.head_dim
        if heads == 0:
            return h
        fields: dict[str, Any] = {"norm_groups": quarter_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"attention_fn": self.attention_fn, "zero_init": self.zero_init_output}
        return blocks.rematerialised(blocks.SelfAttention(heads, name=name, **fields), self.remat)(h)

    def widths(self) -> list[int]:
        """Returns the channels of each level.

        >>> DhariwalUNet().widths()
        [192, 384, 576, 768]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def attends(self, level: int) -> bool:
        """Returns whether the blocks of a level are followed by attention, if they have channels for a head.

        >>> [DhariwalUNet().attends(level) for level in range(4)]
        [False, True, True, True]
        """
        return self.image_size // 2**level in self.attention_resolutions

    def _embed(self, x: jax.Array, t: jax.Array, cond: Any, train: bool) -> jax.Array:
        """Returns the embedding [B, embedding_multiplier * channels] that every residual block receives."""
        batch, types, dtype = x.shape[0], self.precise_types, self.precise_dtype
        dense: Callable[..., Any] = functools.partial(ops.Dense, kernel_init=embeddings.dense_init, **types)
        labels, augment = vector_labels.vector_conditions(cond, self.num_classes, self.augment_dim, batch, dtype)
        times, dim = embeddings.time_labels(t, batch, dtype), self.embedding_multiplier * self.channels
        features = embeddings.sinusoidal_features(times, self.channels, cos_first=True)
        if augment is not None:
            features = features + dense(self.channels, use_bias=False, name="embedding_augment")(augment)
        emb = dense(dim, name="embedding_1")(ops.silu(dense(dim, name="embedding_0")(features)))
        if labels is not None:
            if train and self.label_dropout:
                labels = vector_labels.kept_labels(labels, self.label_dropout, self.make_rng("dropout"))
            init = nn.initializers.normal(1.0)
            emb = emb + ops.Dense(dim, use_bias=False, kernel_init=init, name="embedding_label", **types)(labels)
        return emb
