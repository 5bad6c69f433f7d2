"""The U-Net of Stable Diffusion (UNet2DConditionModel): config, tensor names and layouts.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022),
https://arxiv.org/abs/2112.10752; Podell et al., "SDXL" (2023), https://arxiv.org/abs/2307.01952. In this
config attention_head_dim is the number of heads. Blocks of other families that share this class (Kandinsky, DeepFloyd
IF), image embeddings and gated attention are not implemented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import UNet2DCondition
from diffusers_fn.backbones.sizes import level_multipliers
from diffusers_fn.backbones.text_conditioned import TextConditioned
from diffusers_fn.pretrained.activations import activation_name, read_activation
from diffusers_fn.pretrained.entries import Entry, conv, linear, norm, same
from diffusers_fn.pretrained.family import Family, read_config
from diffusers_fn.pretrained.joint_blocks import embedder
from diffusers_fn.pretrained.layouts import pointwise
from diffusers_fn.pretrained.unet2d_blocks import res_block

__all__ = ["encoder_entries", "entries", "family", "from_config", "inputs", "saved_widths", "to_config"]

# The reference's defaults of the fields on which the network depends.
_DEFAULTS = {
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_cond_proj_dim": None,
    "projection_class_embeddings_input_dim": None,
}
_ONLY = {
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
# Fields of other blocks; the image size of pipelines; softmax in float32, which is always the case here.
_UNUSED = [
    "sample_size",
    "upcast_attention",
    "resnet_skip_time_act",
    "resnet_out_scale_factor",
    "mid_block_only_cross_attention",
    "addition_embed_type_num_heads",
]


def from_config(config: Mapping[str, Any]) -> UNet2DCondition:
    """Returns the UNet2DCondition of a UNet2DConditionModel with this config.

    Raises ValueError for a config that is not supported.

    >>> from_config({"cross_attention_dim": 768}) == UNet2DCondition.sd1()
    True
    """
    fields = read_config(config, optional=_DEFAULTS, only=_ONLY, unused=_UNUSED)
    levels = len(fields["block_out_channels"])
    _check_choice(fields, "resnet_time_scale_shift", ("default", "scale_shift"))
    _check_choice(fields, "mid_block_type", ("UNetMidBlock2DCrossAttn", None))
    _check_choice(fields, "class_embed_type", (None, "timestep", "projection"))
    _check_choice(fields, "addition_embed_type", (None, "text_time"))
    _check_choice(fields, "encoder_hid_dim_type", (None, "text_proj"))
    _check_choice(fields, "downsample_padding", (0, 1))
    context_dims = set(_per_level(fields["cross_attention_dim"], levels))
    if len(context_dims) != 1:
        raise ValueError(f"cross_attention_dim must be the same for all levels; got {fields['cross_attention_dim']}")
    depths, up_depths = _depths(fields, levels)
    class_type, vector = fields["class_embed_type"], fields["projection_class_embeddings_input_dim"]
    added = fields["addition_embed_type"] is not None
    if vector is None and (class_type == "projection" or added):
        raise ValueError("projection_class_embeddings_input_dim must be given with a projection or text_time embedding")
    return UNet2DCondition(
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        channels=fields["block_out_channels"][0],
        channel_multipliers=level_multipliers(fields["block_out_channels"]),
        num_res_blocks=fields["layers_per_block"],
        transformer_depths=depths,
        up_transformer_depths=None if up_depths == depths else up_depths,
        mid_depth=None if fields["mid_block_type"] is None else _mid_depth(fields, levels),
        num_heads=fields["attention_head_dim"],
        only_cross_attention=fields["only_cross_attention"],
        context_dim=context_dims.pop(),
        text_dim=fields["encoder_hid_dim"],
        embedding_dim=fields["time_embedding_dim"],
        num_classes=fields["num_class_embeds"] if class_type is None else None,
        class_time=class_type == "timestep",
        class_vector_dim=vector if class_type == "projection" else None,
        text_time_dims=(fields["addition_time_embed_dim"], vector) if added else None,
        time_cond_dim=fields["time_cond_proj_dim"],
        activation=read_activation(fields),
        scale_shift_norm=fields["resnet_time_scale_shift"] == "scale_shift",
        dropout=fields["dropout"],
        linear_projection=fields["use_linear_projection"],
        norm_groups=fields["norm_num_groups"],
        norm_eps=fields["norm_eps"],
        time_cos_first=fields["flip_sin_to_cos"],
        time_freq_shift=float(fields["freq_shift"]),
        downsample_padding=(fields["downsample_padding"], 1),
    )


def to_config(module: UNet2DCondition) -> dict[str, Any]:
    """Returns the config of this network as a UNet2DConditionModel.

    Raises ValueError if there is none: if only some residual blocks of a level have a transformer.

    >>> to_config(UNet2DCondition.sd1())["attention_head_dim"]
    8
    """
    levels = range(len(module.channel_multipliers))
    down = [_config_depth(module.depths(level)) for level in levels]
    up = [_config_depth(module.depths(level, up=True)) for level in reversed(levels)]
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "flip_sin_to_cos": module.time_cos_first,
        "freq_shift": int(module.time_freq_shift),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in down],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in up],
        "mid_block_type": None if module.mid_depth is None else "UNetMidBlock2DCrossAttn",
        "only_cross_attention": _plain(module.only_cross_attention),
        "block_out_channels": module.widths(),
        "layers_per_block": _plain(module.num_res_blocks),
        "downsample_padding": module.downsample_padding[0],
        "dropout": module.dropout,
        "act_fn": activation_name(module.activation),
        "norm_num_groups": module.norm_groups,
        "norm_eps": module.norm_eps,
        "cross_attention_dim": module.context_dim,
        "transformer_layers_per_block": [depth or 1 for depth in down],
        "reverse_transformer_layers_per_block": None,
        "encoder_hid_dim": module.text_dim,
        "encoder_hid_dim_type": None if module.text_dim is None else "text_proj",
        "attention_head_dim": _plain(module.num_heads),
        "use_linear_projection": module.linear_projection,
        "class_embed_type": "timestep" if module.class_time else "projection" if module.class_vector_dim else None,
        "num_class_embeds": module.num_classes,
        "resnet_time_scale_shift": "scale_shift" if module.scale_shift_norm else "default",
        "time_embedding_dim": module.embedding_dim,
        "time_cond_proj_dim": module.time_cond_dim,
        "projection_class_embeddings_input_dim": module.class_vector_dim,
    }
    last = module.depths(len(module.channel_multipliers) - 1)[0]
    if module.mid_depth not in (None, last or 1):  # the reference's middle has the depth in the last level's field
        if last:
            raise ValueError(f"mid_depth must be the last level's transformer depth {last}; got {module.mid_depth}")
        config["transformer_layers_per_block"][-1] = module.mid_depth
    if module.up_transformer_depths is not None or any(isinstance(depth, list) for depth in down):
        config["reverse_transformer_layers_per_block"] = [depth or 1 for depth in up]
    if module.text_time_dims is not None:
        each, total = module.text_time_dims
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": each}
        config["projection_class_embeddings_input_dim"] = total
    return config


def inputs(module: TextConditioned) -> tuple[Any, ...]:
    """Returns shapes of x, t and cond with which `init` makes all parameters.

    >>> sorted(inputs(UNet2DCondition.sdxl())[2])
    ['context', 'text_embeds', 'time_ids']
    """

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *sizes), dtype)

    side = 2 ** (len(module.channel_multipliers) - 1)
    cond = {"context": shape(1, module.text_dim or module.context_dim)}
    if module.num_classes is not None:
        cond["class_labels"] = shape(dtype=jnp.int32)
    elif module.class_time:
        cond["class_labels"] = shape()
    elif module.class_vector_dim is not None:
        cond["class_labels"] = shape(module.class_vector_dim)
    if module.text_time_dims is not None:
        each, total = module.text_time_dims
        cond |= {"text_embeds": shape(total - each), "time_ids": shape(1)}
    return shape(side, side, module.in_channels), shape(), cond


def entries(module: UNet2DCondition) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> net = UNet2DCondition(channels=8, channel_multipliers=(1, 2), transformer_depths=(1, 0), num_heads=2)
    >>> [entry.names for entry in entries(net) if entry.path.startswith("down_0_downsample")]
    [('down_blocks.0.downsamplers.0.conv.weight',), ('down_blocks.0.downsamplers.0.conv.bias',)]
    """
    found = [*encoder_entries(module), *norm("norm_out", "conv_norm_out"), *conv("conv_out", "conv_out")]
    levels, widths = len(module.channel_multipliers), module.widths()
    saved, width = saved_widths(module), widths[-1]
    for level in reversed(range(levels)):
        name = f"up_blocks.{levels - 1 - level}"
        for i, depth in enumerate(module.depths(level, up=True)):
            skip = width + saved.pop() != widths[level]
            found += res_block(f"up_{level}_block_{i}", f"{name}.resnets.{i}", skip=skip)
            found += _transformer(f"up_{level}_transformer_{i}", f"{name}.attentions.{i}", depth, module)
            width = widths[level]
        if level > 0:
            found += conv(f"up_{level}_upsample", f"{name}.upsamplers.0.conv")
    return found


def saved_widths(module: TextConditioned) -> list[int]:
    """Returns the channels of the activations that the way down saves.

    >>> saved_widths(UNet2DCondition(channels=8, channel_multipliers=(1, 2), num_res_blocks=1))
    [8, 8, 8, 16]
    """
    widths, num_blocks = module.widths(), module.per_level("num_res_blocks")
    levels = [[width] * (count + 1) for width, count in zip(widths, num_blocks)]  # its blocks, and a downsampling
    return [widths[0], *(width for level in levels for width in level)][:-1]


def encoder_entries(module: TextConditioned) -> list[Entry]:
    """Returns the entries of the embeddings, the way down and the middle, which a ControlNet has too.

    >>> net = UNet2DCondition(channels=8, channel_multipliers=(1,), transformer_depths=(0,), mid_depth=None)
    >>> [entry.path for entry in encoder_entries(net)][:2]
    ['conv_in/kernel', 'conv_in/bias']
    """
    found = [*conv("conv_in", "conv_in"), *embedder("time_embedding", "time_embedding")]
    if module.time_cond_dim is not None:
        found += linear("time_cond", "time_embedding.cond_proj", bias=False)
    if module.num_classes is not None:
        found += same("class_table/embedding", "class_embedding.weight")
    if module.class_time or module.class_vector_dim is not None:
        found += embedder("class_embedding", "class_embedding")
    if module.text_time_dims is not None:
        found += embedder("text_time_embedding", "add_embedding")
    if module.text_dim is not None:
        found += linear("text_projection", "encoder_hid_proj")

    levels, widths = len(module.channel_multipliers), module.widths()
    width = widths[0]
    for level in range(levels):
        name = f"down_blocks.{level}"
        for i, depth in enumerate(module.depths(level)):
            found += res_block(f"down_{level}_block_{i}", f"{name}.resnets.{i}", skip=width != widths[level])
            found += _transformer(f"down_{level}_transformer_{i}", f"{name}.attentions.{i}", depth, module)
            width = widths[level]
        if level < levels - 1:
            found += conv(f"down_{level}_downsample", f"{name}.downsamplers.0.conv")

    if module.mid_depth is not None:
        for i in range(2):
            found += res_block(f"mid_block_{i}", f"mid_block.resnets.{i}", skip=False)
        found += _transformer("mid_transformer", "mid_block.attentions.0", module.mid_depth, module)
    return found


family = Family(
    "unet2d_condition",
    ("UNet2DConditionModel",),
    from_config,
    to_config,
    entries,
    inputs,
    weights_name="diffusion_pytorch_model.safetensors",
)


def _check_choice(fields: Mapping[str, Any], name: str, allowed: tuple[Any, ...]) -> None:
    if fields[name] not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, which are implemented; got {fields[name]!r}")


def _per_level(value: Any, levels: int) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,) * levels


def _depths(fields: Mapping[str, Any], levels: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Returns the transformer depths per level, (down, up); the config lists up from the last level to the first."""
    depths = _per_level(fields["transformer_layers_per_block"], levels)
    up_depths = fields["reverse_transformer_layers_per_block"]
    up_depths = depths[::-1] if up_depths is None else up_depths
    found = []
    for way, values in (("down", depths), ("up", up_depths)):
        kinds, cross = fields[f"{way}_block_types"], f"CrossAttn{way.title()}Block2D"
        known = (cross, f"{way.title()}Block2D")
        if not len(kinds) == len(values) == levels or not set(kinds) <= set(known):
            raise ValueError(
                f"{way}_block_types must be {levels} of {known}, which are implemented, with one "
                f"transformer_layers_per_block each; got {kinds} and {values}"
            )
        found.append(tuple(_one_or_each(depth) if kind == cross else 0 for kind, depth in zip(kinds, values)))
    return found[0], found[1][::-1]


def _mid_depth(fields: Mapping[str, Any], levels: int) -> int:
    depth = _per_level(fields["transformer_layers_per_block"], levels)[-1]
    return depth[0] if isinstance(depth, tuple) else depth


def _config_depth(depths: tuple[int, ...]) -> int | list[int]:
    """Returns one level's depths in the config's form; ValueError if only some are zero."""
    if 0 in depths and any(depths):
        raise ValueError(f"a level must have transformers after all of its residual blocks or none; got {depths}")
    return _plain(_one_or_each(depths))


def _one_or_each(depths: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Returns the depths of a level, as one number if they are equal."""
    return depths[0] if isinstance(depths, tuple) and len(set(depths)) == 1 else depths


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _transformer(path: str, name: str, depth: int, module: TextConditioned) -> list[Entry]:
    """Returns the entries of the transformer after a residual block; none at depth 0."""
    if not depth:
        return []
    projection = linear if module.linear_projection else pointwise
    found = [*norm(f"{path}/norm", f"{name}.norm")]
    found += [*projection(f"{path}/proj_in", f"{name}.proj_in"), *projection(f"{path}/proj_out", f"{name}.proj_out")]
    for i in range(depth):
        ours, theirs = f"{path}/block_{i}", f"{name}.transformer_blocks.{i}"
        for j, kind in enumerate(("self_attention", "cross_attention")):
            for part in ("query", "key", "value"):
                found += linear(f"{ours}/{kind}/{part}", f"{theirs}.attn{j + 1}.to_{part[0]}", bias=False)
            found += linear(f"{ours}/{kind}/out", f"{theirs}.attn{j + 1}.to_out.0")
        for j in range(3):
            found += norm(f"{ours}/norm_{j}", f"{theirs}.norm{j + 1}")
        found += linear(f"{ours}/feed_in", f"{theirs}.ff.net.0.proj")
        found += linear(f"{ours}/feed_out", f"{theirs}.ff.net.2")
    return found
