"""The transformer of Flux (FluxTransformer2DModel): config, tensor names and layouts.

Black Forest Labs, "FLUX.1" (2024), https://github.com/black-forest-labs/flux. In this config in_channels counts the
numbers of a patch, 64 for patches of 2 x 2 latents of 16 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import Flux
from diffusers_fn.pretrained.entries import Entry, linear
from diffusers_fn.pretrained.family import Family, read_config
from diffusers_fn.pretrained.joint_blocks import embedder, heads, joint_block

__all__ = ["entries", "family", "from_config", "inputs", "to_config"]

_PATCH = 2  # of every published network


def from_config(config: Mapping[str, Any]) -> Flux:
    """Returns the Flux of a FluxTransformer2DModel with this config; ValueError for one that is not supported.

    >>> from_config({"guidance_embeds": True}) == Flux.dev()
    True
    """
    fields = read_config(
        config,
        optional={
            "in_channels": 64,
            "out_channels": None,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": False,
            "axes_dims_rope": (16, 56, 56),
        },
        only={"patch_size": 1},
    )
    channels = {name: fields[name] for name in ("in_channels", "out_channels") if fields[name] is not None}
    if any(count % _PATCH**2 for count in channels.values()):
        raise ValueError(f"in_channels and out_channels must be multiples of {_PATCH**2}, of patches; got {channels}")
    in_channels, out_channels = fields["in_channels"], fields["out_channels"]
    return Flux(
        in_channels=in_channels // _PATCH**2,
        out_channels=None if out_channels in (None, in_channels) else out_channels // _PATCH**2,
        patch_size=_PATCH,
        hidden_size=fields["num_attention_heads"] * fields["attention_head_dim"],
        depth=fields["num_layers"],
        single_depth=fields["num_single_layers"],
        num_heads=fields["num_attention_heads"],
        context_dim=fields["joint_attention_dim"],
        text_embeds_dim=fields["pooled_projection_dim"],
        guidance_embedding=fields["guidance_embeds"],
        rope_dims=fields["axes_dims_rope"],
    )


def to_config(module: Flux) -> dict[str, Any]:
    """Returns the config of this network as a FluxTransformer2DModel.

    >>> to_config(Flux.dev())["in_channels"]
    64
    """
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": module.in_channels and module.in_channels * _PATCH**2,
        "out_channels": None if module.out_channels is None else module.out_channels * _PATCH**2,
        "num_layers": module.depth,
        "num_single_layers": module.single_depth,
        "attention_head_dim": module.hidden_size // module.num_heads,
        "num_attention_heads": module.num_heads,
        "joint_attention_dim": module.context_dim,
        "pooled_projection_dim": module.text_embeds_dim,
        "guidance_embeds": module.guidance_embedding,
        "axes_dims_rope": list(module.rope_dims),
    }


def inputs(module: Flux) -> tuple[Any, ...]:
    """Returns shapes of x, t and cond with which `init` makes all parameters.

    >>> sorted(inputs(Flux.dev())[2])
    ['context', 'guidance', 'text_embeds']
    """

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *sizes), jnp.float32)

    cond = {"context": shape(1, module.context_dim), "text_embeds": shape(module.text_embeds_dim)}
    cond |= {"guidance": shape()} if module.guidance_embedding else {}
    x = shape(module.patch_size, module.patch_size, module.in_channels or 1)
    return x, shape(), cond


def entries(module: Flux) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> [entry.names for entry in entries(Flux(depth=1, single_depth=0)) if entry.path == "patch/kernel"]
    [('x_embedder.weight',)]
    """
    found = [*_patch_in(module), *linear("context_in", "context_embedder"), *_patch_out(module)]
    found += embedder("time_embedding", "time_text_embed.timestep_embedder")
    found += embedder("text_embedding", "time_text_embed.text_embedder")
    if module.guidance_embedding:
        found += embedder("guidance_embedding", "time_text_embed.guidance_embedder")
    for i in range(module.depth):
        found += joint_block(f"block_{i}", f"transformer_blocks.{i}", qk_norm="rms")
    for i in range(module.single_depth):
        path, name = f"single_block_{i}", f"single_transformer_blocks.{i}"
        found += [*linear(f"{path}/modulation", f"{name}.norm.linear"), *linear(f"{path}/out", f"{name}.proj_out")]
        found += [*heads(f"{path}/heads", f"{name}.attn", qk_norm="rms"), *linear(f"{path}/mlp_0", f"{name}.proj_mlp")]
    return [*found, *linear("modulation_out", "norm_out.linear")]


family = Family(
    "flux",
    ("FluxTransformer2DModel",),
    from_config,
    to_config,
    entries,
    inputs,
    weights_name="diffusion_pytorch_model.safetensors",
)


def _patch_in(module: Flux) -> list[Entry]:
    """Returns the entries of the layer on patches; the file has their numbers in the order channel, row, column."""
    size, channels = module.patch_size, module.in_channels or 1

    def to_linen(a: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), channels, size, size).transpose(2, 3, 1, 0)

    def to_torch(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a.transpose(3, 2, 0, 1).reshape(a.shape[-1], -1),)

    return [Entry("patch/kernel", ("x_embedder.weight",), to_linen, to_torch), *linear("patch", "x_embedder")[1:]]


def _patch_out(module: Flux) -> list[Entry]:
    """Returns the entries of the last layer, whose outputs are in the order row, column, channel here."""
    size = module.patch_size

    def reordered(a: np.ndarray) -> np.ndarray:  # [channel, row, column, ...] -> [row, column, channel, ...]
        return np.moveaxis(a.reshape(-1, size, size, *a.shape[1:]), 0, 2).reshape(a.shape)

    def restored(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(a.reshape(size, size, -1, *a.shape[1:]), 2, 0).reshape(a.shape)

    kernel = Entry("dense_out/kernel", ("proj_out.weight",), lambda a: reordered(a).T, lambda a: (restored(a.T),))
    bias = Entry("dense_out/bias", ("proj_out.bias",), reordered, lambda a: (restored(a),))
    return [kernel, bias]
