"""NCSN++ as a UNet2DModel of Skip blocks: config, tensor names and layouts.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021),
https://arxiv.org/abs/2011.13456: Fourier features of log sigma, input and output pyramids over the resolutions, and an
output divided by sigma. The reference always normalises with 32 groups before attention, and computes the number of
groups of one block differently from all others. Both make no difference at the widths of the published networks;
narrower networks are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import SongUNet
from diffusers_fn.pretrained.entries import Entry, conv, linear, norm, same
from diffusers_fn.pretrained.family import different_fields, read_config
from diffusers_fn.pretrained.layouts import pointwise
from diffusers_fn.pretrained.unet2d_blocks import attention, res_block

__all__ = ["entries", "from_config", "inputs", "is_ncsnpp", "to_config"]

_DOWN_BLOCKS, _UP_BLOCKS = ("SkipDownBlock2D", "AttnSkipDownBlock2D"), ("SkipUpBlock2D", "AttnSkipUpBlock2D")
_ONLY = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "fourier",
    "mid_block_type": "UNetMidBlock2D",
    "act_fn": "silu",
    "norm_num_groups": None,
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "attention_head_dim": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "time_embedding_dim": None,
}
_UNUSED = ("downsample_padding", "downsample_type", "upsample_type", "freq_shift", "flip_sin_to_cos")


def is_ncsnpp(config: Mapping[str, Any]) -> bool:
    """Returns whether all blocks of a UNet2DModel's config are Skip blocks.

    >>> is_ncsnpp({"down_block_types": ["SkipDownBlock2D"], "up_block_types": ["SkipUpBlock2D"]})
    True
    """
    kinds = [*config.get("down_block_types", ()), *config.get("up_block_types", ())]
    return bool(kinds) and set(kinds) <= {*_DOWN_BLOCKS, *_UP_BLOCKS}


def from_config(config: Mapping[str, Any]) -> SongUNet:
    """Returns the SongUNet of a UNet2DModel of Skip blocks; ValueError for a config that is not supported.

    >>> config = {"down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"], "sample_size": 64,
    ...           "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"], "block_out_channels": [128, 256],
    ...           "time_embedding_type": "fourier", "norm_num_groups": None, "attention_head_dim": None}
    >>> from_config(config).attention_resolutions
    (32,)
    """
    required = ["down_block_types", "up_block_types", "block_out_channels"]
    optional = {"layers_per_block": 2, "mid_block_scale_factor": 1, "dropout": 0.0, "norm_eps": 1e-5}
    fields = read_config(
        config, required=required, optional={**optional, "sample_size": None}, only=_ONLY, unused=_UNUSED
    )
    if missing := {"time_embedding_type", "norm_num_groups", "attention_head_dim"} - set(config):
        raise ValueError(f"set {', '.join(sorted(missing))}: the reference's defaults do not fit Skip blocks")
    widths = fields["block_out_channels"]
    attends = [kind == _DOWN_BLOCKS[1] for kind in fields["down_block_types"]]
    if attends != [kind == _UP_BLOCKS[1] for kind in fields["up_block_types"]][::-1] or len(attends) != len(widths):
        raise ValueError(
            "down_block_types and up_block_types must be Skip blocks, one per width, with attention on the same "
            f"levels; got {fields['down_block_types']} and {fields['up_block_types']}"
        )
    if any(width % widths[0] for width in widths):
        raise ValueError(f"block_out_channels must be multiples of the first; got {widths}")
    if widths[-1] < 128 or any(width < 128 for width, attend in zip(widths, attends) if attend):
        raise ValueError(f"levels with attention, and the last level, must have at least 128 channels; got {widths}")
    smallest = 2 ** (len(widths) - 1)
    size = fields["sample_size"] if isinstance(fields["sample_size"], int) else smallest
    if size % smallest:
        raise ValueError(f"sample_size must be a multiple of {smallest} for {len(widths)} levels; got {size}")
    return SongUNet(
        out_channels=3,
        image_size=size,
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=fields["layers_per_block"],
        attention_resolutions=tuple(size // 2**level for level, attend in enumerate(attends) if attend),
        feature_multiplier=2,
        fourier_features=True,
        input_pyramid="skip",
        output_pyramid=True,
        resample_taps=(1, 3, 3, 1),
        dropout=fields["dropout"],
        norm_eps=fields["norm_eps"],
        sigma_labels=True,
        mid_divisor=fields["mid_block_scale_factor"],
    )


def to_config(module: SongUNet) -> dict[str, Any]:
    """Returns the config of this network as a UNet2DModel; ValueError if there is none.

    >>> skips = {"input_pyramid": "skip", "output_pyramid": True, "sigma_labels": True}
    >>> to_config(SongUNet.ncsnpp(out_channels=3, **skips))["down_block_types"]
    ['SkipDownBlock2D', 'AttnSkipDownBlock2D', 'SkipDownBlock2D', 'SkipDownBlock2D']
    """
    widths = module.widths()
    attends = [module.image_size // 2**level in module.attention_resolutions for level in range(len(widths))]
    config = {
        **_ONLY,
        "sample_size": module.image_size,
        "down_block_types": [_DOWN_BLOCKS[attend] for attend in attends],
        "up_block_types": [_UP_BLOCKS[attend] for attend in attends][::-1],
        "block_out_channels": widths,
        "layers_per_block": module.num_res_blocks,
        "mid_block_scale_factor": module.mid_divisor,
        "dropout": module.dropout,
        "norm_eps": module.norm_eps,
    }
    if different := different_fields(module, from_config(config)):
        raise ValueError(f"no UNet2DModel has these fields of SongUNet: {'; '.join(different)}")
    return config


def inputs(module: SongUNet) -> tuple[Any, ...]:
    """Returns shapes of x and t with which `init` makes all parameters.

    >>> inputs(SongUNet())[0].shape
    (1, 32, 32, 3)
    """
    shape = (1, module.image_size, module.image_size, 3)
    return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)


def entries(module: SongUNet) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> entries(SongUNet.ncsnpp(input_pyramid="skip", output_pyramid=True))[0].names
    ('time_proj.weight',)
    """
    widths = module.widths()
    attends = [module.image_size // 2**level in module.attention_resolutions for level in range(len(widths))]
    found = same("fourier/frequencies", "time_proj.weight")
    found += linear("embedding_0", "time_embedding.linear_1") + linear("embedding_1", "time_embedding.linear_2")
    found += conv("conv_in", "conv_in")
    saved, width, last = [widths[0]], widths[0], len(widths) - 1
    for level, to in enumerate(widths):
        name = f"down_blocks.{level}"
        for i in range(module.num_res_blocks):
            found += res_block(f"down_{level}_block_{i}", f"{name}.resnets.{i}", skip=width != to)
            if attends[level]:
                found += attention(f"down_{level}_attention_{i}", f"{name}.attentions.{i}", to, None)
            saved.append(width := to)
        if level < last:
            found += res_block(f"down_{level}_downsample", f"{name}.resnet_down", skip=True)
            found += pointwise(f"down_{level}_pyramid", f"{name}.skip_conv")
            saved.append(to)
    found += res_block("mid_block_0", "mid_block.resnets.0", skip=False)
    found += attention("mid_attention", "mid_block.attentions.0", width, None)
    found += res_block("mid_block_1", "mid_block.resnets.1", skip=False)
    for level, to in reversed(list(enumerate(widths))):
        name = f"up_blocks.{last - level}"
        for i in range(module.num_res_blocks + 1):
            found += res_block(f"up_{level}_block_{i}", f"{name}.resnets.{i}", skip=width + saved.pop() != to)
            width = to
        if attends[level]:
            found += attention(f"up_{level}_attention", f"{name}.attentions.0", to, None)
        if level > 0:
            found += res_block(f"up_{level}_upsample", f"{name}.resnet_up", skip=True)
        before, convolution = (f"{name}.skip_norm", f"{name}.skip_conv") if level else ("conv_norm_out", "conv_out")
        found += norm(f"up_{level}_norm_out", before) + conv(f"up_{level}_conv_out", convolution)
    return found
