"""What the text-conditioned U-Net and its ControlNet share: fields, embeddings, the way down and the middle."""

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

__all__ = ["Depth", "TextConditioned"]

Depth = int | Sequence[int]  # of the transformers of a level: one number for all of them, or one each


class TextConditioned(ops.ConvNetwork):
    """The fields of `UNet2DCondition` that are not about its way up, which describes them, and the parts they make.

    >>> TextConditioned().widths()
    [320, 640, 1280, 1280]
    """

    in_channels: int = 4
    channels: int = 320
    channel_multipliers: Sequence[float] = (1, 2, 4, 4)
    num_res_blocks: int | Sequence[int] = 2
    transformer_depths: Sequence[Depth] = (1, 1, 1, 0)
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

    def _way_down(self, h: jax.Array, block: Callable[..., jax.Array]) -> list[jax.Array]:
        """Returns the activations to save of conv_in's output h: after every block and every downsampling."""
        widths = self.widths()

        def downsample(h: jax.Array, level: int) -> jax.Array:
            padding = (self.downsample_padding,) * 2
            return self._conv(widths[level], f"down_{level}_downsample", strides=2, padding=padding)(h)

        return walks.walk_down(h, self.per_level("num_res_blocks"), block, downsample)

    def _blocks(
        self, emb: jax.Array, context: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> Callable[..., jax.Array]:
        """Returns the function of `walks` that computes a residual block and its transformer."""
        widths, heads = self.widths(), self.per_level("num_heads")
        only_cross = self.per_level("only_cross_attention")

        def block(h: jax.Array, way: str, level: int, i: int) -> jax.Array:
            h = self._res_block(widths[level], f"{way}_{level}_block_{i}")(h, emb, train=train)
            depth, name = self.depths(level, up=way == "up")[i], f"{way}_{level}_transformer_{i}"
            return self._transformer(depth, heads[level], only_cross[level], name)(h, context, mask) if depth else h

        return block

    def _middle(
        self, h: jax.Array, emb: jax.Array, context: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        if self.mid_depth is None:
            return h
        width, heads = self.widths()[-1], self.per_level("num_heads")[-1]
        h = self._res_block(width, "mid_block_0")(h, emb, train=train)
        h = self._transformer(self.mid_depth, heads, False, "mid_transformer")(h, context, mask)
        return self._res_block(width, "mid_block_1")(h, emb, train=train)

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

        >>> TextConditioned(channel_multipliers=(1, 2, 2.5)).widths()
        [320, 640, 800]
        """
        return level_channels(self.channels, self.channel_multipliers)

    def per_level(self, field: str) -> tuple[Any, ...]:
        """Returns a field's value for each level; ValueError if it is a sequence of another length.

        >>> TextConditioned(num_heads=8).per_level("num_heads")
        (8, 8, 8, 8)
        """
        value, levels = getattr(self, field), len(self.channel_multipliers)
        values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
        if len(values) != levels:
            raise ValueError(f"{field} must be one value or one for each of the {levels} levels; got {value}")
        return values

    def depths(self, level: int, *, up: bool = False) -> tuple[int, ...]:
        """Returns the transformer depth behind each residual block of a level, on the way down or up.

        >>> TextConditioned(transformer_depths=(0, 2, 10, 10)).depths(2)
        (10, 10)
        """
        field = self._depths_field(up)
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

    def attends(self) -> bool:
        """Returns whether there is a transformer anywhere, so that a context is required.

        >>> TextConditioned().attends()
        True
        """
        levels = range(len(self.channel_multipliers))
        return self.mid_depth is not None or any(
            any(self.depths(level, up=up)) for level in levels for up in self._ways()
        )

    def _ways(self) -> tuple[bool, ...]:
        """Returns the arguments `up` of the ways that the network has."""
        return (False,)

    def _depths_field(self, up: bool) -> str:
        return "transformer_depths"

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
        mlp: Callable[..., Any] = functools.partial(embeddings.EmbeddingMLP, dim, **types)
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
            for up in self._ways():
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
