"""The U-Net of the diffusers library (UNet2DModel): config, tensor names and layouts.

Ho et al., "Denoising Diffusion Probabilistic Models" (2020), https://arxiv.org/abs/2006.11239, and later variants.
In this config attention_head_dim is indeed the dimension of a head (in UNet2DConditionModel's it is the number of
heads), and up_block_types begin with the smallest resolution. A network of Skip blocks is NCSN++, which is a SongUNet
here: see `ncsnpp.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import SongUNet, UNet2D
from diffusers_fn.backbones.sizes import level_multipliers
from diffusers_fn.pretrained import ncsnpp
from diffusers_fn.pretrained.activations import activation_name, read_activation
from diffusers_fn.pretrained.entries import Entry, conv, linear, norm, same
from diffusers_fn.pretrained.family import Constant, Family, read_config
from diffusers_fn.pretrained.unet2d_blocks import attention, check_choice, res_block

__all__ = [
    "constants",
    "entries",
    "family",
    "from_config",
    "inputs",
    "rename",
    "to_config",
]


_DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}


def from_config(config: Mapping[str, Any]) -> UNet2D | SongUNet:
    """Returns the network of a UNet2DModel with this config; ValueError for a config that is not supported.

    It is a SongUNet if all blocks are Skip blocks, and a UNet2D otherwise.

    >>> from_config({"block_out_channels": [32, 64], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    ...              "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}).up_attention
    (False, True)
    """
    if ncsnpp.is_ncsnpp(config):
        return ncsnpp.from_config(config)
    fields = read_config(config, optional=_DEFAULTS, unused=["sample_size"])
    down = tuple(kind.removeprefix("UNetRes") for kind in fields["down_block_types"])
    up = tuple(kind.removeprefix("UNetRes") for kind in fields["up_block_types"])[::-1]
    for name, kinds, known in (("down_block_types", down, _DOWN_BLOCKS), ("up_block_types", up, _UP_BLOCKS)):
        if len(kinds) != len(fields["block_out_channels"]) or set(kinds) - set(known):
            raise ValueError(f"{name} must have one of {', '.join(known)} per width; got {fields[name]}")
    check_choice(fields, "mid_block_type", ("UNetMidBlock2D", None))
    check_choice(fields, "downsample_padding", (0, 1))
    check_choice(fields, "downsample_type", ("conv", "resnet"))
    check_choice(fields, "upsample_type", ("conv", "resnet"))
    check_choice(fields, "resnet_time_scale_shift", ("default", "scale_shift"))
    check_choice(fields, "time_embedding_type", ("positional", "fourier", "learned"))
    check_choice(fields, "class_embed_type", (None, "timestep", "identity"))
    if fields["norm_num_groups"] is None:
        raise ValueError("norm_num_groups must be an integer in a network without Skip blocks; got None")
    return UNet2D(
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        channels=fields["block_out_channels"][0],
        channel_multipliers=level_multipliers(fields["block_out_channels"]),
        num_res_blocks=fields["layers_per_block"],
        down_attention=tuple(kind == "AttnDownBlock2D" for kind in down),
        up_attention=tuple(kind == "AttnUpBlock2D" for kind in up),
        down_resample_block=tuple(_by_block(kind, "Attn", fields["downsample_type"]) for kind in down),
        up_resample_block=tuple(_by_block(kind, "Attn", fields["upsample_type"]) for kind in up),
        middle=fields["mid_block_type"] is not None,
        mid_attention=fields["add_attention"],
        mid_divisor=fields["mid_block_scale_factor"],
        mid_attention_groups=fields["attn_norm_num_groups"],
        head_dim=fields["attention_head_dim"],
        embedding_dim=fields["time_embedding_dim"],
        num_timesteps=fields["num_train_timesteps"] if fields["time_embedding_type"] == "learned" else None,
        fourier_time=fields["time_embedding_type"] == "fourier",
        num_classes=fields["num_class_embeds"] if fields["class_embed_type"] is None else None,
        null_class=False,
        class_time=fields["class_embed_type"] == "timestep",
        class_vectors=fields["class_embed_type"] == "identity",
        center_input=fields["center_input_sample"],
        activation=read_activation(fields),
        scale_shift_norm=fields["resnet_time_scale_shift"] == "scale_shift",
        dropout=fields["dropout"],
        norm_groups=fields["norm_num_groups"],
        norm_eps=fields["norm_eps"],
        time_cos_first=fields["flip_sin_to_cos"],
        time_freq_shift=fields["freq_shift"],
        downsample_padding=(1, 1) if fields["downsample_padding"] else (0, 1),
    )


def to_config(module: UNet2D | SongUNet) -> dict[str, Any]:
    """Returns the config of this network as a UNet2DModel; ValueError if there is none.

    >>> to_config(UNet2D(in_channels=3, out_channels=3))["down_block_types"][:2]
    ['DownBlock2D', 'AttnDownBlock2D']
    """
    if isinstance(module, SongUNet):
        return ncsnpp.to_config(module)
    if module.in_channels is None or module.out_channels is None:
        raise ValueError(
            f"in_channels and out_channels must be set; got {module.in_channels} and {module.out_channels}"
        )
    down, down_type = _block_types(module, "down", _DOWN_BLOCKS)
    up, up_type = _block_types(module, "up", _UP_BLOCKS)
    kind = "fourier" if module.fourier_time else "positional" if module.num_timesteps is None else "learned"
    return {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels * (1 + module.learned_variance),
        "center_input_sample": module.center_input,
        "time_embedding_type": kind,
        "time_embedding_dim": module.embedding_dim,
        "freq_shift": module.time_freq_shift,
        "flip_sin_to_cos": module.time_cos_first,
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2D" if module.middle else None,
        "up_block_types": up[::-1],
        "block_out_channels": module.widths(),
        "layers_per_block": module.num_res_blocks,
        "mid_block_scale_factor": module.mid_divisor,
        "downsample_padding": 0 if tuple(module.downsample_padding) == (0, 1) else 1,
        "downsample_type": down_type,
        "upsample_type": up_type,
        "dropout": module.dropout,
        "act_fn": activation_name(module.activation),
        "attention_head_dim": module.head_dim,
        "norm_num_groups": module.norm_groups,
        "attn_norm_num_groups": module.mid_attention_groups,
        "norm_eps": module.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if module.scale_shift_norm else "default",
        "add_attention": module.mid_attention,
        "class_embed_type": "timestep" if module.class_time else "identity" if module.class_vectors else None,
        "num_class_embeds": module.num_classes,
        "num_train_timesteps": module.num_timesteps,
    }


def inputs(module: UNet2D | SongUNet) -> tuple[Any, ...]:
    """Returns shapes of x, t and, if the network has one, cond, with which `init` makes all parameters.

    >>> inputs(UNet2D(in_channels=3))[0].shape
    (1, 8, 8, 3)
    """
    if isinstance(module, SongUNet):
        return ncsnpp.inputs(module)
    side, integers = 2 ** (len(module.channel_multipliers) - 1), jax.ShapeDtypeStruct((1,), jnp.int32)
    x = jax.ShapeDtypeStruct((1, side, side, module.in_channels), jnp.float32)
    if module.class_vectors:
        return x, integers, jax.ShapeDtypeStruct((1, module.embedding_dim or 4 * module.widths()[0]), jnp.float32)
    return x, integers, *([integers] if module.class_time or module.num_classes is not None else [])


def entries(module: UNet2D | SongUNet) -> list[Entry]:
    """Returns the entries of all parameters; ValueError if there is a null class, which the reference does not have.

    >>> entries(UNet2D())[0].names
    ('time_embedding.linear_1.weight',)
    """
    if isinstance(module, SongUNet):
        return ncsnpp.entries(module)
    found = [*linear("embedding/time_0", "time_embedding.linear_1")]
    found += linear("embedding/time_1", "time_embedding.linear_2")
    if module.fourier_time:
        found += same("fourier/frequencies", "time_proj.weight")
    if module.num_timesteps is not None:
        found += same("time_table/embedding", "time_proj.weight")
    if module.num_classes is not None:
        if module.null_class:
            raise ValueError("the reference has no null class: modules of this family must have null_class=False")
        found += same("embedding/class_table/embedding", "class_embedding.weight")
    if module.class_time:
        found += linear("class_time_0", "class_embedding.linear_1") + linear("class_time_1", "class_embedding.linear_2")
    found += [*conv("conv_in", "conv_in"), *norm("norm_out", "conv_norm_out"), *conv("conv_out", "conv_out")]

    def level_entries(way: str, level: int, name: str, given: list[int], sampler: str) -> None:
        width = module.widths()[level]
        for i, channels in enumerate(given):
            found.extend(res_block(f"{way}_{level}_block_{i}", f"{name}.resnets.{i}", skip=channels != width))
            if module.per_level(f"{way}_attention")[level]:
                path = f"{way}_{level}_attention_{i}"
                found.extend(attention(path, f"{name}.attentions.{i}", width, module.head_dim))
        if level != (len(module.channel_multipliers) - 1 if way == "down" else 0):
            path = f"{way}_{level}_{sampler}"
            by_block = module.per_level(f"{way}_resample_block")[level]
            name = f"{name}.{sampler}rs.0"
            found.extend(res_block(path, name, skip=False) if by_block else conv(path, f"{name}.conv"))

    saved = [width := module.widths()[0]]
    for level, to in enumerate(module.widths()):
        level_entries("down", level, f"down_blocks.{level}", [width] + [to] * (module.num_res_blocks - 1), "downsample")
        saved += [to] * (module.num_res_blocks + (level < len(module.channel_multipliers) - 1))
        width = to
    if module.middle:
        found += [*res_block("mid_block_0", "mid_block.resnets.0", skip=False)]
        found += [*res_block("mid_block_1", "mid_block.resnets.1", skip=False)]
        if module.mid_attention:
            normalised = module.mid_attention_groups is not None or not module.scale_shift_norm
            name = "mid_block.attentions.0"
            found += attention("mid_attention", name, width, module.head_dim, normalised=normalised)
    for level, to in reversed(list(enumerate(module.widths()))):
        given = []
        for _ in range(module.num_res_blocks + 1):
            given.append(width + saved.pop())
            width = to
        level_entries("up", level, f"up_blocks.{len(module.channel_multipliers) - 1 - level}", given, "upsample")
    return found


def constants(module: UNet2D | SongUNet) -> list[Constant]:
    """Returns the second copy of the time frequencies, which only older checkpoints have.

    >>> [constant.name for constant in constants(UNet2D(fourier_time=True))]
    ['time_proj.W']
    """
    fourier = isinstance(module, SongUNet) or module.fourier_time
    return [Constant("time_proj.W", None, saved=False)] if fourier else []


def rename(name: str) -> str:
    """Returns the current name of a tensor; older checkpoints have other names in attention.

    >>> rename("mid_block.attentions.0.proj_attn.bias")
    'mid_block.attentions.0.to_out.0.bias'
    """
    if ".attentions." in name:
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            name = name.replace(f".{old}.", f".{new}.")
    return name


family = Family(
    "unet2d",
    ("UNet2DModel",),
    from_config,
    to_config,
    entries,
    inputs,
    constants,
    rename=rename,
    weights_name="diffusion_pytorch_model.safetensors",
)


def _by_block(kind: str, attention: str, resample_type: str) -> bool:
    return resample_type == "resnet" if attention in kind else kind.startswith("Resnet")


def _block_types(module: UNet2D, way: str, kinds: tuple[str, ...]) -> tuple[list[str], str]:
    """Returns (block types, largest resolution first; the resample type of the blocks with attention)."""
    plain, attending, by_block = kinds
    attends, blocks = module.per_level(f"{way}_attention"), module.per_level(f"{way}_resample_block")
    types = {"resnet" if block else "conv" for attend, block in zip(attends, blocks) if attend}
    if len(types) > 1:
        raise ValueError(f"{way}_resample_block must be the same on all levels with {way}_attention; got {blocks}")
    names = [attending if attend else by_block if block else plain for attend, block in zip(attends, blocks)]
    return names, next(iter(types), "conv")
