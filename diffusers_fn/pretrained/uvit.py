"""U-ViT as its authors publish it: config, tensor names and layouts.

Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models" (2022), https://arxiv.org/abs/2209.12152. The
config holds the keyword arguments of UViT, for classes (num_classes) or for text (clip_dim, num_clip_token). The
reference's num_classes includes the null class, if there is one, and the config does not record whether it does.
Modules of this family therefore have null_class=False; for guidance, pass the last label as null_cond (1000 of 1001).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import UViT
from diffusers_fn.pretrained.entries import Entry, conv, linear, norm, same
from diffusers_fn.pretrained.family import Family, read_config
from diffusers_fn.pretrained.layouts import heads_out, joint_qkv

__all__ = ["entries", "family", "from_config", "inputs", "to_config"]

_TEXT_FIELDS = {"clip_dim", "num_clip_token"}


def from_config(config: Mapping[str, Any]) -> UViT:
    """Returns the UViT with these arguments.

    >>> from_config({"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 4, "num_heads": 4}).num_classes is None
    True
    >>> from_config({"img_size": 32, "patch_size": 2, "clip_dim": 768, "num_clip_token": 77}).text_shape
    (77, 768)
    """
    text = bool(_TEXT_FIELDS & set(config)) or config.get("name") == "uvit_t2i"
    fields = read_config(
        config,
        optional={
            "img_size": 224,
            "patch_size": 16,
            "in_chans": 3,
            "embed_dim": 768,
            "depth": 12,
            "num_heads": 12,
            "mlp_ratio": 4.0,
            "qkv_bias": False,
            "mlp_time_embed": False,
            "conv": True,
            "skip": True,
            **({"clip_dim": 768, "num_clip_token": 77} if text else {"num_classes": -1}),
        },
        only={"qk_scale": None},
        unused=["name", "use_checkpoint"],
    )
    classes = fields.get("num_classes", -1)
    return UViT(
        image_size=fields["img_size"],
        patch_size=fields["patch_size"],
        hidden_size=fields["embed_dim"],
        depth=fields["depth"],
        num_heads=fields["num_heads"],
        mlp_ratio=fields["mlp_ratio"],
        num_classes=classes if classes > 0 else None,
        null_class=False,
        text_shape=(fields["num_clip_token"], fields["clip_dim"]) if text else None,
        in_channels=fields["in_chans"],
        qkv_bias=fields["qkv_bias"],
        time_mlp=fields["mlp_time_embed"],
        long_skips=fields["skip"],
        conv_out=fields["conv"],
    )


def to_config(module: UViT) -> dict[str, Any]:
    """Returns the arguments of this network; a null class is counted as one more class, the last.

    >>> to_config(UViT.L(in_channels=4, num_classes=1000))["num_classes"]
    1001
    """
    config = {
        "img_size": module.image_size,
        "patch_size": module.patch_size,
        "in_chans": module.in_channels,
        "embed_dim": module.hidden_size,
        "depth": module.depth,
        "num_heads": module.num_heads,
        "mlp_ratio": module.mlp_ratio,
        "qkv_bias": module.qkv_bias,
        "mlp_time_embed": module.time_mlp,
        "conv": module.conv_out,
        "skip": module.long_skips,
    }
    if module.text_shape is not None:
        return {**config, "num_clip_token": module.text_shape[0], "clip_dim": module.text_shape[1]}
    return {**config, "num_classes": -1 if module.num_classes is None else module.num_classes + module.null_class}


def inputs(module: UViT) -> tuple[Any, ...]:
    """Returns shapes of x, t and, if the network has one, cond, with which `init` makes all parameters.

    >>> inputs(UViT(in_channels=3, num_classes=10))[2].dtype
    dtype('int32')
    """
    size = (module.image_size,) * 2 if isinstance(module.image_size, int) else tuple(module.image_size)
    x = jax.ShapeDtypeStruct((1, *size, module.in_channels or 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    if module.text_shape is not None:
        return x, t, jax.ShapeDtypeStruct((1, *module.text_shape), jnp.float32)
    return (x, t) if module.num_classes is None else (x, t, jax.ShapeDtypeStruct((1,), jnp.int32))


def entries(module: UViT) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> [entry.names[0] for entry in entries(UViT(depth=2)) if "skip" in entry.path]
    ['out_blocks.0.skip_linear.weight', 'out_blocks.0.skip_linear.bias']
    """
    found = conv("patch", "patch_embed.proj")
    found.append(Entry("positions", ("pos_embed",), lambda a: a[0], lambda a: (a[None],)))
    if module.time_mlp:
        found += [*linear("time_0", "time_embed.0"), *linear("time_1", "time_embed.2")]
    if module.text_shape is not None:
        found += linear("text", "context_embed")
    elif module.num_classes is not None:
        found += same("class_table/embedding", "label_emb.weight")
    for i in range(module.depth // 2):
        found += _block(f"in_{i}", f"in_blocks.{i}", module)
        found += _block(f"out_{i}", f"out_blocks.{i}", module)
        found += linear(f"out_{i}/skip", f"out_blocks.{i}.skip_linear") if module.long_skips else []
    found += _block("mid", "mid_block", module)
    found += [*norm("norm_out", "norm"), *linear("dense_out", "decoder_pred")]
    return found + (conv("conv_out", "final_layer") if module.conv_out else [])


family = Family("uvit", ("UViT",), from_config, to_config, entries, inputs)


def _block(path: str, name: str, module: UViT) -> list[Entry]:
    found = [*norm(f"{path}/norm_0", f"{name}.norm1"), *norm(f"{path}/norm_1", f"{name}.norm2")]
    width, heads, bias = module.hidden_size, module.num_heads, module.qkv_bias
    found += joint_qkv(f"{path}/attention/qkv", f"{name}.attn.qkv", width, heads, order="3hc", axes=0, bias=bias)
    found += heads_out(f"{path}/attention/out", f"{name}.attn.proj", heads, axes=0)
    return [
        *found,
        *linear(f"{path}/mlp/dense_0", f"{name}.mlp.fc1"),
        *linear(f"{path}/mlp/dense_1", f"{name}.mlp.fc2"),
    ]
