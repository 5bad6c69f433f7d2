"""The upsampling U-Net of guided-diffusion (SuperResModel): a UNetModel on x and an upsampled small image.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), https://arxiv.org/abs/2105.05233. The
config holds the keyword arguments of SuperResModel, whose in_channels count the channels of x alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import SuperResolution, UNet
from diffusers_fn.pretrained import guided_unet
from diffusers_fn.pretrained.entries import Entry
from diffusers_fn.pretrained.family import Family

__all__ = ["entries", "family", "from_config", "inputs", "to_config"]


def from_config(config: Mapping[str, Any]) -> SuperResolution:
    """Returns the network with these arguments; ValueError for arguments that are not supported.

    >>> config = {"image_size": 16, "in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1,
    ...           "attention_resolutions": [2], "channel_mult": [1, 2]}
    >>> from_config(config).net.learned_variance
    True
    """
    return SuperResolution(guided_unet.from_config(config))


def to_config(module: SuperResolution) -> dict[str, Any]:
    """Returns the arguments of this network as a SuperResModel.

    >>> to_config(SuperResolution(UNet(out_channels=3)))["in_channels"]
    3
    """
    return guided_unet.to_config(_net(module))


def inputs(module: SuperResolution) -> tuple[Any, ...]:
    """Returns shapes of x, t and cond with which `init` makes all parameters.

    >>> inputs(SuperResolution(UNet(out_channels=3)))[2]["low_res"].shape
    (1, 32, 32, 3)
    """
    x, t, *labels = guided_unet.inputs(_net(module))
    low_res = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return x, t, {"low_res": low_res, "cond": labels[0] if labels else None}


def entries(module: SuperResolution) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> entries(SuperResolution(UNet(out_channels=3)))[0].path
    'net/embedding/time_0/kernel'
    """
    return [entry._replace(path=f"net/{entry.path}") for entry in guided_unet.entries(_net(module))]


family = Family("guided_superres", ("SuperResModel",), from_config, to_config, entries, inputs)


def _net(module: SuperResolution) -> UNet:
    if not isinstance(module.net, UNet):
        raise ValueError(f"net must be a UNet, as in the reference; got {type(module.net).__name__}")
    return module.net
