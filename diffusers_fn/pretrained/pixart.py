"""The transformer of PixArt-alpha (PixArtTransformer2DModel): config, tensor names and layouts.

Chen et al., "PixArt-alpha" (2023), https://arxiv.org/abs/2310.00426.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import PixArt
from diffusers_fn.backbones.patches import sincos_positions
from diffusers_fn.pretrained.dit_diffusers import ACTIVATIONS
from diffusers_fn.pretrained.entries import Entry, conv, linear, same
from diffusers_fn.pretrained.family import Constant, Family, read_config
from diffusers_fn.pretrained.joint_blocks import embedder, feed_forward

__all__ = ["constants", "entries", "family", "from_config", "inputs", "to_config"]

# Fields of configs from when one class implemented all transformers, and their values.
_ONLY = {
    "attention_type": "default",
    "double_self_attention": False,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_single",
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": False,
}


def from_config(config: Mapping[str, Any]) -> PixArt:
    """Returns the PixArt of a PixArtTransformer2DModel with this config; ValueError for one that is not supported.

    >>> from_config({"sample_size": 64, "caption_channels": 4096}) == PixArt.alpha_512()
    True
    """
    fields = read_config(
        config,
        required=["caption_channels"],
        optional={
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 28,
            "cross_attention_dim": 1152,
            "attention_bias": True,
            "sample_size": 128,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "norm_eps": 1e-6,
            "interpolation_scale": None,
            "use_additional_conditions": None,
        },
        only=_ONLY,
        unused=["dropout", "norm_num_groups", "num_embeds_ada_norm", "upcast_attention"],
    )
    hidden_size = fields["num_attention_heads"] * fields["attention_head_dim"]
    if fields["cross_attention_dim"] != hidden_size:
        raise ValueError(
            f"cross_attention_dim must be num_attention_heads * attention_head_dim = {hidden_size}; "
            f"got {fields['cross_attention_dim']}"
        )
    if fields["activation_fn"] not in ACTIVATIONS:
        raise ValueError(f"activation_fn must be one of {list(ACTIVATIONS)}; got {fields['activation_fn']!r}")
    channels, size, sizes = fields["in_channels"], fields["sample_size"], fields["use_additional_conditions"]
    learned_variance = fields["out_channels"] == 2 * channels
    return PixArt(
        image_size=size,
        position_scale=float(fields["interpolation_scale"] or max(size // 64, 1)),
        patch_size=fields["patch_size"],
        hidden_size=hidden_size,
        depth=fields["num_layers"],
        num_heads=fields["num_attention_heads"],
        in_channels=channels,
        out_channels=None if learned_variance or fields["out_channels"] in (None, channels) else fields["out_channels"],
        learned_variance=learned_variance,
        context_dim=fields["caption_channels"],
        size_conditions=size == 128 if sizes is None else sizes,
        qkv_bias=fields["attention_bias"],
        gelu_approximate=ACTIVATIONS[fields["activation_fn"]],
        norm_eps=fields["norm_eps"],
    )


def to_config(module: PixArt) -> dict[str, Any]:
    """Returns the config of this network as a PixArtTransformer2DModel.

    >>> to_config(PixArt.alpha_1024())["interpolation_scale"]
    2.0
    """
    channels = module.in_channels if module.out_channels is None else module.out_channels
    return {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": module.num_heads,
        "attention_head_dim": module.hidden_size // module.num_heads,
        "in_channels": module.in_channels,
        "out_channels": channels and channels * (1 + module.learned_variance),
        "num_layers": module.depth,
        "cross_attention_dim": module.hidden_size,
        "attention_bias": module.qkv_bias,
        "sample_size": module.image_size,
        "patch_size": module.patch_size,
        "activation_fn": "gelu-approximate" if module.gelu_approximate else "gelu",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": module.norm_eps,
        "interpolation_scale": module.position_scale,
        "use_additional_conditions": module.size_conditions,
        "caption_channels": module.context_dim,
    }


def inputs(module: PixArt) -> tuple[Any, ...]:
    """Returns shapes of x, t and cond with which `init` makes all parameters.

    >>> sorted(inputs(PixArt.alpha_1024())[2])
    ['aspect_ratio', 'context', 'resolution']
    """

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *sizes), jnp.float32)

    cond = {"context": shape(1, module.context_dim)}
    cond |= {"resolution": shape(2), "aspect_ratio": shape(1)} if module.size_conditions else {}
    x = shape(module.patch_size, module.patch_size, module.in_channels or 1)
    return x, shape(), cond


def entries(module: PixArt) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> [entry.names for entry in entries(PixArt(depth=0)) if entry.path == "modulation_out"]
    [('scale_shift_table',)]
    """
    found = [*conv("patch", "pos_embed.proj"), *embedder("context_in", "caption_projection")]
    found += embedder("time_embedding", "adaln_single.emb.timestep_embedder")
    if module.size_conditions:
        for name in ("resolution", "aspect_ratio"):
            found += embedder(f"{name}_embedding", f"adaln_single.emb.{name}_embedder")
    found += [*linear("modulation", "adaln_single.linear"), *same("modulation_out", "scale_shift_table")]
    for i in range(module.depth):
        path, name = f"block_{i}", f"transformer_blocks.{i}"
        found += [*same(f"{path}/modulation", f"{name}.scale_shift_table"), *feed_forward(f"{path}/mlp", f"{name}.ff")]
        for j, kind in enumerate(("self_attention", "cross_attention")):
            for part in ("query", "key", "value"):
                theirs = f"{name}.attn{j + 1}.to_{part[0]}"
                found += linear(f"{path}/{kind}/{part}", theirs, bias=module.qkv_bias)
            found += linear(f"{path}/{kind}/out", f"{name}.attn{j + 1}.to_out.0")
    return [*found, *linear("dense_out", "proj_out")]


def constants(module: PixArt) -> list[Constant]:
    """Returns the positions of images of the training size, which a checkpoint may hold.

    >>> constants(PixArt(image_size=8, hidden_size=16))[0].value.shape
    (1, 16, 16)
    """
    side = module.image_size // module.patch_size
    base = side / module.position_scale
    table = sincos_positions(side, side, module.hidden_size, (base, base)).astype(np.float32)
    return [Constant("pos_embed.pos_embed", table[None], saved=False)]


family = Family(
    "pixart",
    ("PixArtTransformer2DModel",),
    from_config,
    to_config,
    entries,
    inputs,
    constants,
    weights_name="diffusion_pytorch_model.safetensors",
)
