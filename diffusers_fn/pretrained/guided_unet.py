"""The U-Net of improved-diffusion and guided-diffusion (UNetModel): config, tensor names and layouts.

Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), https://arxiv.org/abs/2102.09672;
Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), https://arxiv.org/abs/2105.05233. The
config holds the keyword arguments of UNetModel; improved-diffusion's has no image_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import Classifier, UNet
from diffusers_fn.pretrained.entries import Entry, conv, linear, norm, same
from diffusers_fn.pretrained.family import Family, read_config
from diffusers_fn.pretrained.layouts import joint_attention, pointwise

__all__ = ["encoder_entries", "entries", "family", "from_config", "inputs", "to_config"]


def from_config(config: Mapping[str, Any]) -> UNet:
    """Returns the UNet of a UNetModel with these arguments; ValueError for unsupported ones.

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
            "num_heads_upsample": -1,
            "num_classes": None,
            "dropout": 0,
            "conv_resample": True,
            "use_new_attention_order": False,
            "use_scale_shift_norm": False,
            "resblock_updown": False,
        },
        only={"dims": 2},
        unused=["use_checkpoint", "use_fp16"],
    )
    image_size = fields["image_size"] or 2 ** (len(fields["channel_mult"]) - 1)
    if fields["out_channels"] not in (fields["in_channels"], 2 * fields["in_channels"]):
        raise ValueError(
            f"out_channels must be in_channels={fields['in_channels']} or twice that; got {fields['out_channels']}"
        )
    return UNet(
        out_channels=fields["in_channels"],
        image_size=image_size,
        channels=fields["model_channels"],
        channel_multipliers=fields["channel_mult"],
        num_res_blocks=fields["num_res_blocks"],
        attention_resolutions=tuple(image_size // factor for factor in fields["attention_resolutions"]),
        num_heads=fields["num_heads"] if fields["num_head_channels"] == -1 else None,
        num_heads_up=None if fields["num_heads_upsample"] == -1 else fields["num_heads_upsample"],
        head_dim=None if fields["num_head_channels"] == -1 else fields["num_head_channels"],
        num_classes=fields["num_classes"],
        null_class=False,
        dropout=fields["dropout"],
        resample_conv=fields["conv_resample"],
        new_attention_order=fields["use_new_attention_order"],
        scale_shift_norm=fields["use_scale_shift_norm"],
        resblock_updown=fields["resblock_updown"],
        learned_variance=fields["out_channels"] == 2 * fields["in_channels"],
        norm_eps=1e-5,
        time_cos_first=True,
        time_freq_shift=0,
        downsample_padding=(1, 1),
    )


def to_config(module: UNet) -> dict[str, Any]:
    """Returns the arguments of this network as a UNetModel.

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
        "num_heads_upsample": module.num_heads_up or -1,
        "num_classes": module.num_classes,
        "dropout": module.dropout,
        "conv_resample": module.resample_conv,
        "use_new_attention_order": module.new_attention_order,
        "use_scale_shift_norm": module.scale_shift_norm,
        "resblock_updown": module.resblock_updown,
    }


def inputs(module: UNet) -> tuple[Any, ...]:
    """Returns shapes of x, t and, if there are classes, labels, with which `init` makes all parameters.

    >>> inputs(UNet(out_channels=3))[0].shape
    (1, 32, 32, 3)
    """
    x = jax.ShapeDtypeStruct((1, module.image_size, module.image_size, module.out_channels), jnp.float32)
    labels = [] if module.num_classes is None else [jax.ShapeDtypeStruct((1,), jnp.int32)]
    return x, jax.ShapeDtypeStruct((1,), jnp.float32), *labels


def entries(module: UNet) -> list[Entry]:
    """Returns the entries of all parameters; ValueError if there is a null class, which the reference does not have.

    >>> net = UNet(out_channels=3, channels=32, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    >>> sorted(entry.path for entry in entries(net) if "out" in entry.path)
    ['conv_out/bias', 'conv_out/kernel', 'mid_attention/out/bias', 'mid_attention/out/kernel', 'norm_out/bias', \
'norm_out/scale']
    """
    found, saved = encoder_entries(module)
    found += [*norm("norm_out", "out.0"), *conv("conv_out", "out.2")]
    if module.num_classes is not None:
        if module.null_class:
            raise ValueError("the reference has no null class: modules of this family must have null_class=False")
        found += same("embedding/class_table/embedding", "label_emb.weight")

    heads = module.num_heads if module.num_heads_up is None else module.num_heads_up
    widths, index, width = module.widths(), 0, module.widths()[-1]
    for level in reversed(range(len(widths))):
        attends = module.image_size // 2**level in module.attention_resolutions
        for i in range(module.num_res_blocks + 1):
            name = f"output_blocks.{index}"
            found += _res_block(f"up_{level}_block_{i}", f"{name}.0", skip=width + saved.pop() != widths[level])
            if attends:
                found += _attention(f"up_{level}_attention_{i}", f"{name}.1", module, widths[level], heads)
            width, index = widths[level], index + 1
        if level > 0:
            name, path = f"output_blocks.{index - 1}.{1 + attends}", f"up_{level}_upsample"
            found += _resample(path, name, f"{name}.conv", module)
    return found


def encoder_entries(module: UNet | Classifier) -> tuple[list[Entry], list[int]]:
    """Returns the entries of the embedding, the encoder and the middle, and the widths of the skip connections.

    >>> len(encoder_entries(Classifier())[1])
    12
    """
    widths = module.widths()
    found = [*linear("embedding/time_0", "time_embed.0"), *linear("embedding/time_1", "time_embed.2")]
    found += conv("conv_in", "input_blocks.0.0")
    saved = [width := widths[0]]
    for level in range(len(widths)):
        for i in range(module.num_res_blocks):
            name = f"input_blocks.{len(saved)}"
            found += _res_block(f"down_{level}_block_{i}", f"{name}.0", skip=width != widths[level])
            if module.image_size // 2**level in module.attention_resolutions:
                found += _attention(f"down_{level}_attention_{i}", f"{name}.1", module, widths[level], module.num_heads)
            saved.append(width := widths[level])
        if level < len(widths) - 1:
            name = f"input_blocks.{len(saved)}.0"
            found += _resample(f"down_{level}_downsample", name, f"{name}.op", module)
            saved.append(width)
    found += _res_block("mid_block_0", "middle_block.0", skip=False)
    found += _attention("mid_attention", "middle_block.1", module, width, module.num_heads)
    found += _res_block("mid_block_1", "middle_block.2", skip=False)
    return found, saved


family = Family("guided_unet", ("UNetModel",), from_config, to_config, entries, inputs)


def _resample(path: str, block: str, convolution: str, module: UNet | Classifier) -> list[Entry]:
    if module.resblock_updown:
        return _res_block(path, block, skip=False)
    return conv(path, convolution) if module.resample_conv else []


def _res_block(path: str, name: str, *, skip: bool) -> list[Entry]:
    found = [*norm(f"{path}/norm_0", f"{name}.in_layers.0"), *conv(f"{path}/conv_0", f"{name}.in_layers.2")]
    found += [*norm(f"{path}/norm_1", f"{name}.out_layers.0"), *conv(f"{path}/conv_1", f"{name}.out_layers.3")]
    found += linear(f"{path}/emb", f"{name}.emb_layers.1")
    return found + (pointwise(f"{path}/skip", f"{name}.skip_connection") if skip else [])


def _attention(path: str, name: str, module: UNet | Classifier, channels: int, num_heads: int | None) -> list[Entry]:
    heads = channels // module.head_dim if module.head_dim else num_heads or 1
    names = f"{name}.norm", f"{name}.qkv", f"{name}.proj_out"
    return joint_attention(path, names, channels, heads, order="3hc" if module.new_attention_order else "h3c")
