"""The U-Net of improved- and guided-diffusion (UNetModel): its config, the names and layouts of its tensors.

Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), https://arxiv.org/abs/2102.09672;
Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), https://arxiv.org/abs/2105.05233. The
config holds the keyword arguments of UNetModel; those of improved-diffusion have no image_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import UNet
from diffusers_fn.pretrained.entries import Entry, conv, linear, norm, same
from diffusers_fn.pretrained.family import Family, read_config


def from_config(config: Mapping[str, Any]) -> UNet:
    """Returns the UNet that a UNetModel of these arguments is; ValueError for arguments that it cannot be.

    >>> config = {"in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1,
    ...           "attention_resolutions": [2], "channel_mult": [1, 2], "num_heads": 2}
    >>> from_config(config).attention_resolutions
    (1,)
    """
    fields = read_config(
        config,
        required=["in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions"],
        optional={
            "image_size": None,
            "channel_mult": (1, 2, 4, 8),
            "num_heads": 1,
            "num_head_channels": -1,
            "use_scale_shift_norm": False,
            "resblock_updown": False,
        },
        only={"num_classes": None, "use_new_attention_order": False, "conv_resample": True, "dims": 2},
        unused=["dropout", "use_checkpoint", "use_fp16", "num_heads_upsample"],
    )
    image_size = fields["image_size"] or 2 ** (len(fields["channel_mult"]) - 1)
    if fields["out_channels"] not in (fields["in_channels"], 2 * fields["in_channels"]):
        raise ValueError(
            f"out_channels must be in_channels={fields['in_channels']} or twice as many; got {fields['out_channels']}"
        )
    return UNet(
        out_channels=fields["in_channels"],
        image_size=image_size,
        channels=fields["model_channels"],
        channel_multipliers=fields["channel_mult"],
        num_res_blocks=fields["num_res_blocks"],
        attention_resolutions=tuple(image_size // factor for factor in fields["attention_resolutions"]),
        num_heads=fields["num_heads"] if fields["num_head_channels"] == -1 else None,
        head_dim=None if fields["num_head_channels"] == -1 else fields["num_head_channels"],
        scale_shift_norm=fields["use_scale_shift_norm"],
        resblock_updown=fields["resblock_updown"],
        learned_variance=fields["out_channels"] == 2 * fields["in_channels"],
        norm_eps=1e-5,
        time_cos_first=True,
        time_freq_shift=0,
        downsample_padding=(1, 1),
    )


def to_config(module: UNet) -> dict[str, Any]:
    """Returns the arguments of UNetModel that make this network.

    >>> to_config(UNet(out_channels=3, head_dim=64, learned_variance=True))["num_head_channels"]
    64
    """
    return {
        "image_size": module.image_size,
        "in_channels": module.out_channels,
        "model_channels": module.channels,
        "out_channels": (module.out_channels or 0) * (1 + module.learned_variance),
        "num_res_blocks": module.num_res_blocks,
        "attention_resolutions": [module.image_size // size for size in module.attention_resolutions],
        "channel_mult": list(module.channel_multipliers),
        "num_heads": module.num_heads or 1,
        "num_head_channels": module.head_dim or -1,
        "use_scale_shift_norm": module.scale_shift_norm,
        "resblock_updown": module.resblock_updown,
    }


def inputs(module: UNet) -> tuple[Any, ...]:
    """Returns shapes of x and t for which the module makes its parameters.

    >>> inputs(UNet(out_channels=3))[0].shape
    (1, 32, 32, 3)
    """
    shape = (1, module.image_size, module.image_size, module.out_channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)


def entries(module: UNet) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> net = UNet(out_channels=3, channels=32, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    >>> sorted(entry.path for entry in entries(net) if "out" in entry.path)
    ['conv_out/bias', 'conv_out/kernel', 'mid_attention/out/bias', 'mid_attention/out/kernel', 'norm_out/bias', \
'norm_out/scale']
    """
    widths = [module.channels * multiplier for multiplier in module.channel_multipliers]
    attends = [module.image_size // 2**level in module.attention_resolutions for level in range(len(widths))]
    found = [*conv("conv_in", "input_blocks.0.0"), *norm("norm_out", "out.0"), *conv("conv_out", "out.2")]
    found += [*linear("embedding/time_0", "time_embed.0"), *linear("embedding/time_1", "time_embed.2")]

    saved = [width := module.channels]  # the widths of the activations that the way up concatenates
    for level in range(len(widths)):
        for i in range(module.num_res_blocks):
            name = f"input_blocks.{len(saved)}"
            found += _res_block(f"down_{level}_block_{i}", f"{name}.0", skip=width != widths[level])
            if attends[level]:
                found += _attention(f"down_{level}_attention_{i}", f"{name}.1", module, widths[level])
            saved.append(width := widths[level])
        if level < len(widths) - 1:
            name = f"input_blocks.{len(saved)}.0"
            path = f"down_{level}_downsample"
            found += _res_block(path, name, skip=False) if module.resblock_updown else conv(path, f"{name}.op")
            saved.append(width)

    found += _res_block("mid_block_0", "middle_block.0", skip=False)
    found += _attention("mid_attention", "middle_block.1", module, width)
    found += _res_block("mid_block_1", "middle_block.2", skip=False)

    index = 0
    for level in reversed(range(len(widths))):
        for i in range(module.num_res_blocks + 1):
            name = f"output_blocks.{index}"
            found += _res_block(f"up_{level}_block_{i}", f"{name}.0", skip=width + saved.pop() != widths[level])
            if attends[level]:
                found += _attention(f"up_{level}_attention_{i}", f"{name}.1", module, widths[level])
            width, index = widths[level], index + 1
        if level > 0:
            name, path = f"output_blocks.{index - 1}.{1 + attends[level]}", f"up_{level}_upsample"
            found += _res_block(path, name, skip=False) if module.resblock_updown else conv(path, f"{name}.conv")
    return found


family = Family("guided_unet", ("UNetModel",), from_config, to_config, entries, inputs)


def _res_block(path: str, name: str, *, skip: bool) -> list[Entry]:
    found = [*norm(f"{path}/norm_0", f"{name}.in_layers.0"), *conv(f"{path}/conv_0", f"{name}.in_layers.2")]
    found += [*norm(f"{path}/norm_1", f"{name}.out_layers.0"), *conv(f"{path}/conv_1", f"{name}.out_layers.3")]
    found += linear(f"{path}/emb", f"{name}.emb_layers.1")
    return found + (_pointwise(f"{path}/skip", f"{name}.skip_connection") if skip else [])


def _pointwise(path: str, name: str) -> list[Entry]:
    """nn.Dense from a convolution of one pixel, [out, in, 1, 1]."""
    kernel = Entry(f"{path}/kernel", (f"{name}.weight",), lambda a: a[:, :, 0, 0].T, lambda a: (a.T[:, :, None, None],))
    return [kernel, *same(f"{path}/bias", f"{name}.bias")]


def _attention(path: str, name: str, module: UNet, channels: int) -> list[Entry]:
    """One projection to (heads, 3, head_dim) in this order, as a kernel [C, 3, heads, head_dim], and the one back."""
    heads = module.num_heads or 1 if module.head_dim is None else channels // module.head_dim
    head_dim = channels // heads

    def qkv_kernel(a: np.ndarray) -> np.ndarray:
        return a.reshape(heads, 3, head_dim, channels).transpose(3, 1, 0, 2)

    def qkv_weight(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a.transpose(2, 1, 3, 0).reshape(3 * channels, channels, 1),)

    def qkv_bias(a: np.ndarray) -> np.ndarray:
        return a.reshape(heads, 3, head_dim).transpose(1, 0, 2)

    def qkv_bias_back(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a.transpose(1, 0, 2).reshape(3 * channels),)

    def out_kernel(a: np.ndarray) -> np.ndarray:
        return a.reshape(channels, channels).T.reshape(heads, head_dim, channels)

    def out_weight(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a.reshape(channels, channels).T[:, :, None],)

    return [
        *norm(f"{path}/norm", f"{name}.norm"),
        Entry(f"{path}/qkv/kernel", (f"{name}.qkv.weight",), qkv_kernel, qkv_weight),
        Entry(f"{path}/qkv/bias", (f"{name}.qkv.bias",), qkv_bias, qkv_bias_back),
        Entry(f"{path}/out/kernel", (f"{name}.proj_out.weight",), out_kernel, out_weight),
        *same(f"{path}/out/bias", f"{name}.proj_out.bias"),
    ]
