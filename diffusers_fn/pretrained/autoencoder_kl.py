"""The autoencoder of latent diffusion in the diffusers library (AutoencoderKL): config, tensor names and layouts.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2021), https://arxiv.org/abs/2112.10752.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import AutoencoderKL
from diffusers_fn.backbones.sizes import level_multipliers
from diffusers_fn.pretrained.activations import activation_name, read_activation
from diffusers_fn.pretrained.entries import Entry, conv, norm
from diffusers_fn.pretrained.family import Family, read_config
from diffusers_fn.pretrained.layouts import pointwise
from diffusers_fn.pretrained.unet2d_blocks import attention

__all__ = ["DECODER_BLOCKS", "ENCODER_BLOCKS", "entries", "family", "from_config", "inputs", "rename", "to_config"]

ENCODER_BLOCKS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
DECODER_BLOCKS = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def from_config(config: Mapping[str, Any]) -> AutoencoderKL:
    """Returns the AutoencoderKL that this config describes; ValueError for a config that is not supported.

    >>> config = {"block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2,
    ...           "up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 4, "sample_size": 16}
    >>> from_config(config).widths()
    [8, 16]
    """
    fields = read_config(
        config,
        optional={
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ENCODER_BLOCKS[:1],
            "up_block_types": DECODER_BLOCKS[:1],
            "block_out_channels": (64,),
            "layers_per_block": 1,
            "act_fn": "silu",
            "latent_channels": 4,
            "norm_num_groups": 32,
            "sample_size": 32,
            "scaling_factor": 0.18215,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "mid_block_add_attention": True,
        },
        unused=["force_upcast"],
    )
    return AutoencoderKL(
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        latent_channels=fields["latent_channels"],
        channels=fields["block_out_channels"][0],
        channel_multipliers=level_multipliers(fields["block_out_channels"]),
        num_res_blocks=fields["layers_per_block"],
        attention_levels=_attention_levels(fields),
        mid_attention=fields["mid_block_add_attention"],
        quant_conv=fields["use_quant_conv"],
        post_quant_conv=fields["use_post_quant_conv"],
        activation=read_activation(fields),
        norm_groups=fields["norm_num_groups"],
        scaling_factor=fields["scaling_factor"],
        shift_factor=fields["shift_factor"] or 0.0,
        latents_mean=fields["latents_mean"],
        latents_std=fields["latents_std"],
        image_size=fields["sample_size"],
    )


def to_config(module: AutoencoderKL) -> dict[str, Any]:
    """Returns the config of this network.

    >>> to_config(AutoencoderKL(channels=8, channel_multipliers=(1, 2), attention_levels=(1,)))["up_block_types"]
    ['AttnUpDecoderBlock2D', 'UpDecoderBlock2D']
    """
    attends = [level in module.attention_levels for level in range(len(module.channel_multipliers))]
    return {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "down_block_types": [ENCODER_BLOCKS[attend] for attend in attends],
        "up_block_types": [DECODER_BLOCKS[attend] for attend in reversed(attends)],
        "block_out_channels": module.widths(),
        "layers_per_block": module.num_res_blocks,
        "act_fn": activation_name(module.activation),
        "latent_channels": module.latent_channels,
        "norm_num_groups": module.norm_groups,
        "sample_size": module.image_size,
        "scaling_factor": module.scaling_factor,
        "shift_factor": module.shift_factor or None,
        "latents_mean": None if module.latents_mean is None else list(module.latents_mean),
        "latents_std": None if module.latents_std is None else list(module.latents_std),
        "use_quant_conv": module.quant_conv,
        "use_post_quant_conv": module.post_quant_conv,
        "mid_block_add_attention": module.mid_attention,
    }


def inputs(module: AutoencoderKL) -> tuple[Any, ...]:
    """Returns the shape of an image with which `init` makes all parameters.

    >>> inputs(AutoencoderKL(channels=8, channel_multipliers=(1, 2)))[0].shape
    (1, 2, 2, 3)
    """
    size = 2 ** (len(module.channel_multipliers) - 1)
    return (jax.ShapeDtypeStruct((1, size, size, module.in_channels), jnp.float32),)


def entries(module: AutoencoderKL) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> [entry.names[0] for entry in entries(AutoencoderKL()) if entry.path == "quant/kernel"]
    ['quant_conv.weight']
    """
    found = pointwise("quant", "quant_conv") if module.quant_conv else []
    found += pointwise("post_quant", "post_quant_conv") if module.post_quant_conv else []
    for part in ("encoder", "decoder"):
        found += [*conv(f"{part}/conv_in", f"{part}.conv_in"), *conv(f"{part}/conv_out", f"{part}.conv_out")]
        found += norm(f"{part}/norm_out", f"{part}.conv_norm_out")
        for i in range(2):
            found += _res_block(f"{part}/mid_block_{i}", f"{part}.mid_block.resnets.{i}")
        if module.mid_attention:
            found += attention(f"{part}/mid_attention", f"{part}.mid_block.attentions.0", module.widths()[-1], None)

    down, up = list(enumerate(module.widths())), list(reversed(list(enumerate(module.widths()))))
    stages = [("encoder", "down", i, *stage, module.num_res_blocks) for i, stage in enumerate(down)]
    stages += [("decoder", "up", i, *stage, module.num_res_blocks + 1) for i, stage in enumerate(up)]
    before = {"encoder": module.widths()[0], "decoder": module.widths()[-1]}
    for part, way, index, level, width, blocks in stages:
        path, name = f"{part}/{way}_{level}", f"{part}.{way}_blocks.{index}"
        for i in range(blocks):
            skip = i == 0 and before[part] != width
            found += _res_block(f"{path}_block_{i}", f"{name}.resnets.{i}", skip=skip)
            if level in module.attention_levels:
                found += attention(f"{path}_attention_{i}", f"{name}.attentions.{i}", width, None)
        before[part] = width
        if index < len(module.channel_multipliers) - 1:
            found += conv(f"{path}_{way}sample", f"{name}.{way}samplers.0.conv")
    return found


def rename(name: str) -> str:
    """Returns the current name of a tensor; older checkpoints have other names in attention.

    >>> rename("decoder.mid_block.attentions.0.proj_attn.weight")
    'decoder.mid_block.attentions.0.to_out.0.weight'
    """
    if ".attentions." not in name:
        return name
    *front, layer, kind = name.split(".")
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return ".".join([*front, old.get(layer, layer), kind])


family = Family(
    "autoencoder_kl",
    ("AutoencoderKL",),
    from_config,
    to_config,
    entries,
    inputs,
    rename=rename,
    weights_name="diffusion_pytorch_model.safetensors",
)


def _attention_levels(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the levels with attention, which must be the same in the encoder and the decoder."""
    down, up, levels = fields["down_block_types"], fields["up_block_types"], len(fields["block_out_channels"])
    if not len(down) == len(up) == levels or not set(down) <= set(ENCODER_BLOCKS) or not set(up) <= set(DECODER_BLOCKS):
        raise ValueError(
            f"down_block_types and up_block_types must each have {levels} names, one per width in block_out_channels, "
            f"of {ENCODER_BLOCKS} and of {DECODER_BLOCKS}; got {down} and {up}"
        )
    encoder = tuple(level for level in range(levels) if down[level] == ENCODER_BLOCKS[1])
    decoder = tuple(level for level in range(levels) if up[levels - 1 - level] == DECODER_BLOCKS[1])
    if encoder != decoder:
        raise ValueError(
            "encoder and decoder must have attention at the same levels; got levels "
            f"{encoder} in down_block_types and {decoder} in up_block_types"
        )
    return encoder


def _res_block(path: str, name: str, *, skip: bool = False) -> list[Entry]:
    found = [*norm(f"{path}/norm_0", f"{name}.norm1"), *conv(f"{path}/conv_0", f"{name}.conv1")]
    found += [*norm(f"{path}/norm_1", f"{name}.norm2"), *conv(f"{path}/conv_1", f"{name}.conv2")]
    return found + (pointwise(f"{path}/skip", f"{name}.conv_shortcut") if skip else [])
