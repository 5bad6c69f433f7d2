"""The classifier of guided-diffusion (EncoderUNetModel): config, tensor names and layouts.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), https://arxiv.org/abs/2105.05233. The
config holds the keyword arguments of EncoderUNetModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import Classifier
from diffusers_fn.pretrained.entries import Entry, linear, norm
from diffusers_fn.pretrained.family import Family, read_config
from diffusers_fn.pretrained.guided_unet import encoder_entries
from diffusers_fn.pretrained.layouts import heads_out, joint_qkv, pointwise

__all__ = ["POOL_HIDDEN_SIZE", "entries", "family", "from_config", "inputs", "to_config"]

POOL_HIDDEN_SIZE = 2048


def from_config(config: Mapping[str, Any]) -> Classifier:
    """Returns the Classifier of an EncoderUNetModel with these arguments; ValueError for unsupported ones.

    >>> config = {"image_size": 16, "in_channels": 3, "model_channels": 32, "out_channels": 10, "num_res_blocks": 1,
    ...           "attention_resolutions": [2], "channel_mult": [1, 1], "pool": "spatial"}
    >>> from_config(config).attention_resolutions
    (8,)
    """
    fields = read_config(
        config,
        required=["image_size", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions"],
        optional={
            "channel_mult": (1, 2, 4, 8),
            "num_heads": 1,
            "num_head_channels": -1,
            "dropout": 0,
            "use_scale_shift_norm": False,
            "resblock_updown": False,
            "conv_resample": True,
            "use_new_attention_order": False,
            "pool": "adaptive",
        },
        only={"dims": 2, "in_channels": 3},
        unused=["use_checkpoint", "use_fp16", "num_heads_upsample"],
    )
    head_dim = fields["num_head_channels"]
    return Classifier(
        num_classes=fields["out_channels"],
        image_size=fields["image_size"],
        channels=fields["model_channels"],
        channel_multipliers=fields["channel_mult"],
        num_res_blocks=fields["num_res_blocks"],
        attention_resolutions=tuple(fields["image_size"] // factor for factor in fields["attention_resolutions"]),
        num_heads=fields["num_heads"] if head_dim == -1 else None,
        head_dim=None if head_dim == -1 else head_dim,
        scale_shift_norm=fields["use_scale_shift_norm"],
        resblock_updown=fields["resblock_updown"],
        resample_conv=fields["conv_resample"],
        pool=fields["pool"],
        pool_hidden_size=POOL_HIDDEN_SIZE,
        dropout=fields["dropout"],
        new_attention_order=fields["use_new_attention_order"],
    )


def to_config(module: Classifier) -> dict[str, Any]:
    """Returns the arguments of this network as an EncoderUNetModel.

    >>> to_config(Classifier())["pool"]
    'attention'
    """
    return {
        "image_size": module.image_size,
        "in_channels": 3,
        "model_channels": module.channels,
        "out_channels": module.num_classes,
        "num_res_blocks": module.num_res_blocks,
        "attention_resolutions": [module.image_size // size for size in module.attention_resolutions],
        "channel_mult": list(module.channel_multipliers),
        "num_heads": module.num_heads or 1,
        "num_head_channels": module.head_dim or -1,
        "dropout": module.dropout,
        "use_scale_shift_norm": module.scale_shift_norm,
        "resblock_updown": module.resblock_updown,
        "conv_resample": module.resample_conv,
        "use_new_attention_order": module.new_attention_order,
        "pool": module.pool,
    }


def inputs(module: Classifier) -> tuple[Any, ...]:
    """Returns shapes of x and t with which `init` makes all parameters.

    >>> inputs(Classifier())[0].shape
    (1, 64, 64, 3)
    """
    shape = (1, module.image_size, module.image_size, 3)
    return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)


def entries(module: Classifier) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> [entry.path for entry in entries(Classifier(pool="adaptive"))][-1]
    'pool_out/bias'
    """
    found, _ = encoder_entries(module)
    width = module.widths()[-1]
    if module.pool == "adaptive":
        return [*found, *norm("norm_out", "out.0"), *pointwise("pool_out", "out.3")]
    if module.pool == "attention":
        heads = width // module.head_dim if module.head_dim else module.num_heads or 1
        positions = Entry("pool/positions", ("out.2.positional_embedding",), np.transpose, lambda a: (a.T,))
        found += [*norm("norm_out", "out.0"), positions]
        found += joint_qkv("pool/qkv", "out.2.qkv_proj", width, heads, order="3hc")
        return found + heads_out("pool/out", "out.2.c_proj", heads)
    found += linear("pool_hidden", "out.0")
    if module.pool == "spatial":
        return found + linear("pool_out", "out.2")
    return [*found, *norm("pool_norm", "out.1"), *linear("pool_out", "out.3")]


family = Family("guided_classifier", ("EncoderUNetModel",), from_config, to_config, entries, inputs)
