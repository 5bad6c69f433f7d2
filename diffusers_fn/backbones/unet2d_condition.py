"""The text-conditioned U-Net of latent diffusion: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, conditions, embeddings, ops, walks
from diffusers_fn.backbones.sizes import level_channels
from diffusers_fn.backbones.spatial_transformer import SpatialTransformer

__all__ = ["EmbeddingMLP", "UNet2DCondition"]

_Depth = int | Sequence[int]  # of the transformers of a level: one number for all of them, or one each


class UNet2DCondition(ops.ConvNetwork):
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

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 320
    channel_multipliers: Sequence[float] = (1, 2, 4, 4)
    num_res_blocks: int | Sequence[int] = 2
    transformer_depths: Sequence[_Depth] = (1, 1, 1, 0)
    up_transformer_depths: Sequence[_Depth] | None = None
    mid_depth: int | None = 1
    num_heads: int | Sequence[int] = 8
    only_cross_attention: bool | Sequence[bool] = False
    context_dim: int = 768
    text_dim: int | None = None
    embedding_dim: int | None = None
    num_classes: int | None = None
    class_time: bool = False
    class_vector_dim: int | None = None
    text_time_dims: tuple[int, int] | None = None
    time_cond_dim: int | None = None
    activation: ops.Activation = "silu"
    scale_shift_norm: bool = False
    dropout: float = 0.0
    zero_init_output: bool = True
    linear_projection: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-5
    time_cos_first: bool = True
    time_freq_shift: float = 0.0
    downsample_padding: tuple[int, int] = (1, 1)
    remat: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

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

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any] | None = None, *, train: bool = False
    ) -> jax.Array:
        self._check(x)
        cond = conditions.checked(cond, self, x.shape[0])
        widths, num_blocks = self.widths(), self.per_level("num_res_blocks")
        heads, only_cross = self.per_level("num_heads"), self.per_level("only_cross_attention")
        out_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        emb = self._embed(x, t, cond)
        context, mask = self._context(cond)
        sizes: dict[int, tuple[int, ...]] = {}  # of the levels that are halved

        def block(h: jax.Array, way: str, level: int, i: int) -> jax.Array:
            h = self._res_block(widths[level], f"{way}_{level}_block_{i}")(h, emb, train=train)
            depth, name = self.depths(level, up=way == "up")[i], f"{way}_{level}_transformer_{i}"
            return self._transformer(depth, heads[level], only_cross[level], name)(h, context, mask) if depth else h

        def downsample(h: jax.Array, level: int) -> jax.Array:
            sizes[level] = h.shape[1:3]
            padding = (self.downsample_padding,) * 2
            return self._conv(widths[level], f"down_{level}_downsample", strides=2, padding=padding)(h)

        def upsample(h: jax.Array, level: int) -> jax.Array:
            height, width = sizes[level - 1]
            return self._conv(widths[level], f"up_{level}_upsample")(blocks.nearest(h)[:, :height, :width])

        h = self._conv(widths[0], "conv_in")(x)
        saved = walks.walk_down(h, num_blocks, block, downsample)
        h = saved[-1]
        saved = conditions.add_residuals("down_residuals", saved, cond.get("down_residuals"))

        if self.mid_depth is not None:
            h = self._res_block(widths[-1], "mid_block_0")(h, emb, train=train)
            h = self._transformer(self.mid_depth, heads[-1], False, "mid_transformer")(h, context, mask)
            h = self._res_block(widths[-1], "mid_block_1")(h, emb, train=train)
        if "mid_residual" in cond:
            (h,) = conditions.add_residuals("mid_residual", [h], [cond["mid_residual"]])

        h = walks.walk_up(h, saved, num_blocks, block, upsample)
        h = ops.GroupNorm(self.norm_groups, self.norm_eps, name="norm_out", **self.types)(h)
        h = ops.lazily(ops.activation(self.activation))(h)
        h = self._conv(self.out_channels, "conv_out", kernel_init=out_init)(h)
        return h.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _conv(self, features: int, name: str, **fields: Any) -> Callable[..., jax.Array]:
        return ops.Conv(features, (3, 3), name=name, **{"kernel_init": embeddings.dense_init, **self.types, **fields})

    def _res_block(self, features: int, name: str) -> Callable[..., jax.Array]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "norm_eps": self.norm_eps, **self.types}
        fields |= {"scale_shift_norm": self.scale_shift_norm, "zero_init": self.zero_init_output}
        fields |= {"activation": self.activation}
        return blocks.rematerialised(blocks.ResBlock(features, self.dropout, name=name, **fields), self.remat)

    def _transformer(self, depth: int, heads: int, only_cross: bool, name: str) -> Callable[..., jax.Array]:
        fields: dict[str, Any] = {"norm_groups": self.norm_groups, "zero_init": self.zero_init_output, **self.types}
        fields |= {"attention_fn": self.attention_fn, "remat": self.remat}
        return SpatialTransformer(depth, heads, only_cross, name=name, **fields)

    def widths(self) -> list[int]:
        """Returns the channels of each level.

        >>> UNet2DCondition().widths()
        [320, 640, 1280, 1280]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def per_level(self, field: str) -> tuple[Any, ...]:
        """Returns a field's value for each level; ValueError if it is a sequence of another length.

        >>> UNet2DCondition(num_heads=8).per_level("num_heads")
        (8, 8, 8, 8)
        """
        value, levels = getattr(self, field), len(self.channel_multipliers)
        values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
        if len(values) != levels:
            raise ValueError(f"{field} must be one value or one for each of the {levels} levels; got {value}")
        return values

    def depths(self, level: int, *, up: bool = False) -> tuple[int, ...]:
        """Returns the transformer depth behind each residual block of a level, on the way down or up.

        >>> UNet2DCondition.sdxl().depths(2, up=True)
        (10, 10, 10)
        """
        field = "up_transformer_depths" if up and self.up_transformer_depths is not None else "transformer_depths"
        count = self.per_level("num_res_blocks")[level] + up
        depth = self.per_level(field)[level]
        depths = tuple(depth) if isinstance(depth, Sequence) else (depth,) * count
        if len(depths) != count or min(depths, default=0) < 0:
            way = "up" if up else "down"
            raise ValueError(
                f"{field} must hold, for every level, a depth of 0 or more, or one for each residual block; "
                f"got {depth} for level {level}, which has {count} blocks on the way {way}"
            )
        return depths

    def _context(self, cond: Mapping[str, Any]) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns the tokens [B, M, context_dim] of the attentions, and their mask [B, 1, 1, M] if any."""
        context, mask = cond.get("context"), cond.get("context_mask")
        if context is not None and self.text_dim is not None:
            init = embeddings.dense_init
            context = ops.Dense(self.context_dim, kernel_init=init, name="text_projection", **self.types)(context)
        return context, None if mask is None else mask.astype(bool)[:, None, None, :]

    def _embed(self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any]) -> jax.Array:
        """Returns the embedding [B, embedding_dim] of time, classes and sizes that every block receives."""
        batch, types, dtype = x.shape[0], self.precise_types, self.precise_dtype
        base = self.widths()[0]
        dim = 4 * base if self.embedding_dim is None else self.embedding_dim
        mlp: Callable[..., Any] = functools.partial(EmbeddingMLP, dim, **types)
        sinusoids = functools.partial(
            embeddings.sinusoidal_features, freq_shift=self.time_freq_shift, cos_first=self.time_cos_first
        )

        features = sinusoids(embeddings.time_labels(t, batch, dtype), base)
        if self.time_cond_dim is not None:
            time_cond = cond.get("timestep_cond", jnp.zeros([batch, self.time_cond_dim], dtype))
            projection = ops.Dense(base, False, name="time_cond", kernel_init=embeddings.dense_init, **types)
            features = features + projection(time_cond)
        emb = mlp(self.activation, name="time_embedding")(features)

        labels = cond.get("class_labels")
        if self.num_classes is not None:
            init = nn.initializers.normal(1.0)
            table = ops.Embed(self.num_classes, dim, embedding_init=init, name="class_table", **types)
            emb = emb + table(conditions.table_rows(labels, self.num_classes, batch))
        elif self.class_time:
            labels = sinusoids(embeddings.time_labels(labels, batch, dtype), base)
            emb = emb + mlp(self.activation, name="class_embedding")(labels)
        elif self.class_vector_dim is not None:
            emb = emb + mlp(name="class_embedding")(labels)

        if self.text_time_dims is not None:
            each = functools.partial(sinusoids, dim=self.text_time_dims[0])
            sizes = jax.vmap(each, 1, 1)(cond["time_ids"].astype(dtype))
            added = [cond["text_embeds"].astype(dtype), sizes.reshape(batch, -1)]
            emb = emb + mlp(name="text_time_embedding")(jnp.concatenate(added, axis=-1))
        return emb

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or images that no network can be built from."""
        levels = len(self.channel_multipliers)
        if levels < 1 or min(self.per_level("num_res_blocks")) < 1:
            raise ValueError(
                "channel_multipliers must not be empty and num_res_blocks must be at least 1; got "
                f"{tuple(self.channel_multipliers)} and {self.num_res_blocks}"
            )
        for level in range(levels):
            for up in (False, True):
                self.depths(level, up=up)  # raises
        if self.mid_depth is not None and self.mid_depth < 1:
            raise ValueError(f"mid_depth must be at least 1, or None for no middle; got {self.mid_depth}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if sum(self.downsample_padding) not in (1, 2):
            raise ValueError(
                f"downsample_padding must add 1 or 2 zeros to halve an axis; got {self.downsample_padding}"
            )
        classes = [self.num_classes is not None, self.class_time, self.class_vector_dim is not None]
        if sum(classes) > 1:
            raise ValueError(
                "at most one of num_classes, class_time and class_vector_dim; got "
                f"{self.num_classes}, {self.class_time} and {self.class_vector_dim}"
            )
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            raise ValueError(f"x must have shape [B, H, W, {self.in_channels}]; got {list(x.shape)}")
        factor = 2 ** (levels - 1)
        if sum(self.downsample_padding) == 1 and (x.shape[1] % factor or x.shape[2] % factor):
            raise ValueError(
                f"H and W must be multiples of {factor} with downsample_padding={self.downsample_padding}; "
                f"got {x.shape[1:3]}"
            )


class EmbeddingMLP(ops.Module):
    """Computes Dense(activation(Dense(features))): [B, F] -> [B, dim].

    >>> mlp = EmbeddingMLP(16)
    >>> jax.eval_shape(mlp.init_with_output, jax.random.key(0), jnp.ones([2, 8]))[0].shape
    (2, 16)
    """

    dim: int
    activation: ops.Activation = "silu"

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        dense: Callable[..., Any] = functools.partial(
            ops.Dense, self.dim, kernel_init=embeddings.dense_init, **self.types
        )
        activation = ops.lazily(ops.activation(self.activation))
        return dense(name="dense_1")(activation(dense(name="dense_0")(features)))
