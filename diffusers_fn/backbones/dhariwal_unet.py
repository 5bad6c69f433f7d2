"""The U-Net of ADM in the form in which EDM trained it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, vector_labels
from diffusers_fn.backbones.attend import dot_product_attention
from diffusers_fn.backbones.song_unet import check_unet, quarter_groups


class DhariwalUNet(nn.Module):
    """Computes a denoiser's output [B, H, W, C] for images x [B, H, W, C] at time labels t [] or [B].

    ADM's U-Net (Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021,
    https://arxiv.org/abs/2105.05233) as Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
    Models" (2022), https://arxiv.org/abs/2206.00364, appendix F.2, reimplement it: class labels are vectors whose zero
    means no class, augmentations may be told, and normalisations have min(32, channels / 4) groups. The defaults with
    num_classes=1000 and image_size=64 are EDM's network for ImageNet. `UNet` is ADM as first published.

    This is the network F alone, and called as `SongUNet` is; see there for x, t, cond, train and the output.

    Fields:
      image_size: the resolution of level 0 that attention_resolutions speaks of.
      channels, channel_multipliers: level i is channels * channel_multipliers[i] wide.
      num_res_blocks: residual blocks per level on the way down.
      embedding_multiplier: times channels, the width of the embedding.
      head_width: an attention of C channels has C // head_width heads; where that is zero there is no attention.
      num_classes, augment_width, label_dropout, zero_init_output, remat, native_conv, attention_fn, dtype,
        param_dtype: as in `SongUNet`.

    Raises ValueError for fields that contradict each other and inputs that do not fit, saying which.

    >>> unet = DhariwalUNet(image_size=8, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, head_width=8)
    >>> x, t = jnp.zeros([2, 8, 8, 3]), jnp.array([-0.3, 0.4])
    >>> jax.eval_shape(unet.init_with_output, jax.random.key(0), x, t)[0].shape
    (2, 8, 8, 3)
    """

    out_channels: int | None = None
    image_size: int = 64
    channels: int = 192
    channel_multipliers: Sequence[int] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: Sequence[int] = (32, 16, 8)
    embedding_multiplier: int = 4
    head_width: int = 64
    num_classes: int | None = None
    augment_width: int | None = None
    dropout: float = 0.0
    label_dropout: float = 0.0
    learned_variance: bool = False
    zero_init_output: bool = True
    norm_eps: float = 1e-5
    remat: bool = False
    native_conv: bool = False
    attention_fn: Callable[..., jax.Array] = dot_product_attention
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any] | jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        check_unet(self, x)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        common: dict[str, Any] = {"norm_groups": quarter_groups, "norm_eps": self.norm_eps, **types}
        common |= {"zero_init": self.zero_init_output}
        conv: Callable[..., Any] = functools.partial(blocks.Conv3x3, native=self.native_conv, **types)
        widths = self.widths()
        out_dtype = jnp.promote_types(x.dtype, jnp.float32)
        emb = self._embed(x, t, cond, train)

        def res_block(h: jax.Array, width: int, name: str, resample: Callable[..., Any] | None = None) -> jax.Array:
            block = blocks.ResBlock(width, self.dropout, True, resample, conv=conv, name=name, **common)
            return blocks.rematerialised(block, self.remat)(h, emb, train=train)

        def attention(h: jax.Array, name: str) -> jax.Array:
            heads = h.shape[-1] // self.head_width
            if heads == 0:
                return h
            block = blocks.SelfAttention(heads, attention_fn=self.attention_fn, name=name, **common)
            return blocks.rematerialised(block, self.remat)(h)

        h = conv(widths[0], name="conv_in")(x)
        saved = [h]
        for level, width in enumerate(widths):
            for i in range(self.num_res_blocks):
                h = res_block(h, width, f"down_{level}_block_{i}")
                if self.attends(level):
                    h = attention(h, f"down_{level}_attention_{i}")
                saved.append(h)
            if level < len(widths) - 1:
                h = res_block(h, width, f"down_{level}_downsample", blocks.average_pool)
                saved.append(h)

        h = attention(res_block(h, widths[-1], "mid_block_0"), "mid_attention")
        h = res_block(h, widths[-1], "mid_block_1")

        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.num_res_blocks + 1):
                h = res_block(jnp.concatenate([h, saved.pop()], axis=-1), width, f"up_{level}_block_{i}")
                if self.attends(level):
                    h = attention(h, f"up_{level}_attention_{i}")
            if level > 0:
                h = res_block(h, width, f"up_{level}_upsample", blocks.nearest)

        h = blocks.GroupNorm(quarter_groups, self.norm_eps, name="norm_out", **types).deferred(h, activation=nn.silu)
        last_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        out_channels = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        return conv(out_channels, kernel_init=last_init, name="conv_out")(h).astype(out_dtype)

    def widths(self) -> list[int]:
        """Returns the channels of each level.

        >>> DhariwalUNet().widths()
        [192, 384, 576, 768]
        """
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    def attends(self, level: int) -> bool:
        """Returns whether the blocks of a level are followed by attention, given that it has a head at all.

        >>> [DhariwalUNet().attends(level) for level in range(4)]
        [False, True, True, True]
        """
        return self.image_size // 2**level in self.attention_resolutions

    def _embed(self, x: jax.Array, t: jax.Array, cond: Any, train: bool) -> jax.Array:
        """Returns the embedding [B, embedding_multiplier * channels] that every residual block receives."""
        batch, dtype = x.shape[0], jnp.promote_types(self.dtype, jnp.float32)
        types = {"dtype": dtype, "param_dtype": self.param_dtype}
        dense: Callable[..., Any] = functools.partial(nn.Dense, kernel_init=embeddings.dense_init, **types)
        labels, augment = vector_labels.vector_conditions(cond, self.num_classes, self.augment_width, batch, dtype)
        times, width = embeddings.time_labels(t, batch, dtype), self.embedding_multiplier * self.channels
        features = embeddings.sinusoidal_features(times, self.channels, cos_first=True)
        if augment is not None:
            features = features + dense(self.channels, use_bias=False, name="embedding_augment")(augment)
        emb = dense(width, name="embedding_1")(nn.silu(dense(width, name="embedding_0")(features)))
        if labels is not None:
            if train and self.label_dropout:
                labels = vector_labels.kept_labels(labels, self.label_dropout, self.make_rng("dropout"))
            init = nn.initializers.normal(1.0)
            emb = emb + nn.Dense(width, use_bias=False, kernel_init=init, name="embedding_label", **types)(labels)
        return emb
