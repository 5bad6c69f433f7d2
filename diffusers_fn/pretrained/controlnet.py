"""ControlNets of Stable Diffusion (ControlNetModel): config, tensor names and layouts.

Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (2023), https://arxiv.org/abs/2302.05543.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import ControlNet, UNet2DCondition
from diffusers_fn.backbones.text_conditioned import TextConditioned
from diffusers_fn.pretrained import unet2d_condition
from diffusers_fn.pretrained.entries import Entry, conv
from diffusers_fn.pretrained.family import Family, read_config
from diffusers_fn.pretrained.layouts import pointwise

__all__ = ["entries", "family", "from_config", "inputs", "to_config"]

_SHARED = [field.name for field in dataclasses.fields(TextConditioned) if field.name not in ("parent", "name")]
# Fields of the U-Net's config that a ControlNet's has not.
_UNET_ONLY = (
    "dropout",
    "out_channels",
    "reverse_transformer_layers_per_block",
    "time_cond_proj_dim",
    "time_embedding_dim",
    "up_block_types",
)


def from_config(config: Mapping[str, Any]) -> ControlNet:
    """Returns the ControlNet of a ControlNetModel with this config; ValueError for one that is not supported.

    >>> from_config({"cross_attention_dim": 768}) == ControlNet.sd1()
    True
    """
    own: dict[str, Any] = {"conditioning_channels": 3, "conditioning_embedding_out_channels": (16, 32, 96, 256)}
    only = {"controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False}
    shared = {name: value for name, value in config.items() if name not in {**own, **only}}
    fields = read_config(config, optional=own, only=only, unused=list(shared))
    if unknown := sorted(set(shared) & set(_UNET_ONLY)):
        raise ValueError(f"this config does not fit the family: {', '.join(unknown)} belong to a U-Net")
    kinds = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}
    down = shared.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    up = [kinds.get(kind, kind) for kind in reversed(down)]
    unet = unet2d_condition.from_config({**shared, "up_block_types": up})
    return ControlNet(
        **{name: getattr(unet, name) for name in _SHARED},
        condition_channels=fields["conditioning_channels"],
        condition_widths=fields["conditioning_embedding_out_channels"],
    )


def to_config(module: ControlNet) -> dict[str, Any]:
    """Returns the config of this network as a ControlNetModel; ValueError if there is none.

    >>> to_config(ControlNet.sd1())["conditioning_embedding_out_channels"]
    [16, 32, 96, 256]
    """
    config = unet2d_condition.to_config(UNet2DCondition(**{name: getattr(module, name) for name in _SHARED}))
    return {
        **{name: value for name, value in config.items() if name not in _UNET_ONLY},
        "_class_name": "ControlNetModel",
        "conditioning_channels": module.condition_channels,
        "conditioning_embedding_out_channels": list(module.condition_widths),
    }


def inputs(module: ControlNet) -> tuple[Any, ...]:
    """Returns shapes of x, t and cond with which `init` makes all parameters.

    >>> inputs(ControlNet.sd1())[2]["image"].shape
    (1, 64, 64, 3)
    """
    x, t, cond = unet2d_condition.inputs(module)
    side = x.shape[1] * 2 ** (len(module.condition_widths) - 1)
    image = jax.ShapeDtypeStruct((1, side, side, module.condition_channels), jnp.float32)
    return x, t, cond | {"image": image}


def entries(module: ControlNet) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> [entry.names[0] for entry in entries(ControlNet.sd1()) if entry.path == "mid_residual/bias"]
    ['controlnet_mid_block.bias']
    """
    encoder = "controlnet_cond_embedding"
    found = unet2d_condition.encoder_entries(module)
    found += [*conv("condition/conv_in", f"{encoder}.conv_in"), *conv("condition/conv_out", f"{encoder}.conv_out")]
    for i in range(len(module.condition_widths) - 1):
        found += conv(f"condition/conv_{i}", f"{encoder}.blocks.{2 * i}")
        found += conv(f"condition/downsample_{i}", f"{encoder}.blocks.{2 * i + 1}")
    for i in range(len(unet2d_condition.saved_widths(module))):
        found += pointwise(f"down_residual_{i}", f"controlnet_down_blocks.{i}")
    return [*found, *pointwise("mid_residual", "controlnet_mid_block")]


family = Family(
    "controlnet",
    ("ControlNetModel",),
    from_config,
    to_config,
    entries,
    inputs,
    weights_name="diffusion_pytorch_model.safetensors",
)
