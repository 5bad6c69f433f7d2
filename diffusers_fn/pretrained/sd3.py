"""The transformer of Stable Diffusion 3 and 3.5 (SD3Transformer2DModel): config, tensor names and layouts.

Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (2024),
https://arxiv.org/abs/2403.03206.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import MMDiT
from diffusers_fn.pretrained.entries import Entry, conv, linear
from diffusers_fn.pretrained.family import Family, read_config
from diffusers_fn.pretrained.joint_blocks import embedder, joint_block

__all__ = ["entries", "family", "from_config", "inputs", "to_config"]

_QK_NORMS = {None: None, "rms_norm": "rms", "layer_norm": "layer"}


def from_config(config: Mapping[str, Any]) -> MMDiT:
    """Returns the MMDiT of an SD3Transformer2DModel with this config; ValueError for one that is not supported.

    >>> sizes = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
    >>> from_config(sizes | {"pos_embed_max_size": 192}) == MMDiT.sd3()
    True
    """
    fields = read_config(
        config,
        optional={
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 18,
            "attention_head_dim": 64,
            "num_attention_heads": 18,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1152,
            "pooled_projection_dim": 2048,
            "out_channels": 16,
            "pos_embed_max_size": 96,
            "dual_attention_layers": (),
            "qk_norm": None,
        },
    )
    hidden_size = fields["num_attention_heads"] * fields["attention_head_dim"]
    if fields["caption_projection_dim"] != hidden_size:
        raise ValueError(
            "caption_projection_dim must be num_attention_heads * attention_head_dim = "
            f"{hidden_size}; got {fields['caption_projection_dim']}"
        )
    if fields["qk_norm"] not in _QK_NORMS:
        raise ValueError(f"qk_norm must be one of {list(_QK_NORMS)}; got {fields['qk_norm']!r}")
    same_channels = fields["out_channels"] in (None, fields["in_channels"])
    return MMDiT(
        image_size=fields["sample_size"],
        patch_size=fields["patch_size"],
        in_channels=fields["in_channels"],
        out_channels=None if same_channels else fields["out_channels"],
        hidden_size=hidden_size,
        depth=fields["num_layers"],
        num_heads=fields["num_attention_heads"],
        context_dim=fields["joint_attention_dim"],
        text_embeds_dim=fields["pooled_projection_dim"],
        num_positions=fields["pos_embed_max_size"],
        qk_norm=_QK_NORMS[fields["qk_norm"]],
        dual_attention_blocks=fields["dual_attention_layers"],
    )


def to_config(module: MMDiT) -> dict[str, Any]:
    """Returns the config of this network as an SD3Transformer2DModel.

    >>> to_config(MMDiT.sd35_large())["qk_norm"]
    'rms_norm'
    """
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": module.image_size,
        "patch_size": module.patch_size,
        "in_channels": module.in_channels,
        "num_layers": module.depth,
        "attention_head_dim": module.hidden_size // module.num_heads,
        "num_attention_heads": module.num_heads,
        "joint_attention_dim": module.context_dim,
        "caption_projection_dim": module.hidden_size,
        "pooled_projection_dim": module.text_embeds_dim,
        "out_channels": module.in_channels if module.out_channels is None else module.out_channels,
        "pos_embed_max_size": module.num_positions,
        "dual_attention_layers": list(module.dual_attention_blocks),
        "qk_norm": next(theirs for theirs, ours in _QK_NORMS.items() if ours == module.qk_norm),
    }


def inputs(module: MMDiT) -> tuple[Any, ...]:
    """Returns shapes of x, t and cond with which `init` makes all parameters.

    >>> inputs(MMDiT.sd3())[0].shape
    (1, 2, 2, 16)
    """
    size = module.patch_size
    shapes = [(1, size, size, module.in_channels), (1,), (1, 1, module.context_dim), (1, module.text_embeds_dim)]
    x, t, context, text_embeds = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return x, t, {"context": context, "text_embeds": text_embeds}


def entries(module: MMDiT) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> [entry.names for entry in entries(MMDiT(depth=1)) if entry.path == "positions"]
    [('pos_embed.pos_embed',)]
    """
    side, width = module.num_positions, module.hidden_size

    def grid(a: np.ndarray) -> np.ndarray:
        return a.reshape(side, side, width)

    def sequence(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a.reshape(1, side * side, width),)

    found = [Entry("positions", ("pos_embed.pos_embed",), grid, sequence), *conv("patch", "pos_embed.proj")]
    found += embedder("time_embedding", "time_text_embed.timestep_embedder")
    found += embedder("text_embedding", "time_text_embed.text_embedder")
    found += linear("context_in", "context_embedder")
    for i in range(module.depth):
        found += joint_block(
            f"block_{i}",
            f"transformer_blocks.{i}",
            qk_norm=module.qk_norm,
            context_out=i < module.depth - 1,
            dual_attention=i in module.dual_attention_blocks,
        )
    return [*found, *linear("modulation_out", "norm_out.linear"), *linear("dense_out", "proj_out")]


family = Family(
    "sd3",
    ("SD3Transformer2DModel",),
    from_config,
    to_config,
    entries,
    inputs,
    weights_name="diffusion_pytorch_model.safetensors",
)
