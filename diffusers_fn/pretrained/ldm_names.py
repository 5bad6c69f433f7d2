"""The names of tensors in checkpoints of the LDM and SGM code, in which one file holds a whole pipeline.

https://github.com/CompVis/latent-diffusion, https://github.com/Stability-AI/generative-models and, for the second text
encoder, https://github.com/mlfoundations/open_clip. The other names are those of the diffusers library's folders.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusers_fn.backbones import UNet2DCondition
from diffusers_fn.pretrained.safetensors_file import StoredTensor

__all__ = ["from_open_clip", "unet_tensors", "vae_tensors"]

_RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
# Patterns of names in the autoencoder's folder, and what LDM has for them, in this order.
_VAE = (
    (r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}"),
    (r"mid_block\.attentions\.0", lambda match: "mid.attn_1"),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.attentions\.(\d+)", r"down.\1.attn.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"(attn\S*)\.group_norm", r"\1.norm"),
    (r"(attn\S*)\.to_([qkv])", r"\1.\2"),
    (r"(attn\S*)\.to_out\.0", r"\1.proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)
_OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP_UNUSED = ("logit_scale", "attn_mask")


def unet_tensors(tensors: Mapping[str, StoredTensor], module: UNet2DCondition, names: Sequence[str]) -> dict[str, Any]:
    """Returns the tensors of a U-Net under the names of a folder; those without such a name keep theirs.

    >>> net = UNet2DCondition(channel_multipliers=(1,), transformer_depths=(1,))
    >>> unet_tensors({"input_blocks.1.0.in_layers.2.bias": 1}, net, ["down_blocks.0.resnets.0.conv1.bias"])
    {'down_blocks.0.resnets.0.conv1.bias': 1}
    """
    blocks = _unet_blocks(module)

    def theirs(name: str) -> str:
        block = next((block for block in blocks if name.startswith(f"{block}.")), None)
        if block is None:
            layer, kind = name.rsplit(".", 1)
            return f"{_UNET.get(layer, layer)}.{kind}"
        *layers, kind = name.removeprefix(f"{block}.").split(".")
        layer = ".".join(layers)
        return ".".join([blocks[block], *([_RES_BLOCK.get(layer, layer)] if layers else []), kind])

    return _renamed(tensors, {theirs(name): name for name in names})


def vae_tensors(tensors: Mapping[str, StoredTensor], levels: int, names: Sequence[str]) -> dict[str, Any]:
    """Returns the tensors of an autoencoder under the names of a folder; those without such a name keep theirs.

    The matrices of the attentions, stored as 1x1 convolutions, lose their last axes.

    >>> list(vae_tensors({"decoder.up.3.block.0.conv1.bias": 1}, 4, ["decoder.up_blocks.0.resnets.0.conv1.bias"]))
    ['decoder.up_blocks.0.resnets.0.conv1.bias']
    """

    def up(match: re.Match[str]) -> str:  # LDM counts the levels of the decoder from the image
        part = {"resnets": f"block.{match[3]}", "attentions": f"attn.{match[3]}", "upsamplers": "upsample"}[match[2]]
        return f"up.{levels - 1 - int(match[1])}.{part}"

    def theirs(name: str) -> str:
        name = re.sub(r"up_blocks\.(\d+)\.(\w+)\.(\d+)", up, name)
        for pattern, replacement in _VAE:
            name = re.sub(pattern, replacement, name)
        return name

    found = _renamed(tensors, {theirs(name): name for name in names})
    for name, tensor in found.items():
        if ".attentions." in name and len(tensor.shape) == 4 and tensor.shape[2:] == (1, 1):
            found[name] = _view(tensor, tensor.shape[:2], lambda a: a.reshape(a.shape[:2]))
    return found


def from_open_clip(tensors: Mapping[str, StoredTensor], depth: int, *, projection: bool) -> dict[str, Any]:
    """Returns the tensors of an OpenCLIP text encoder under the names of a CLIPTextModelWithProjection.

    The file may have one layer more than `depth`, as in Stable Diffusion 2, which does not use the last. Without
    projection, its matrix is left out.

    >>> tensor = StoredTensor((6,), np.dtype("f4"), lambda: np.arange(6, dtype="f4"))
    >>> found = from_open_clip({"transformer.resblocks.0.attn.in_proj_bias": tensor}, 1, projection=True)
    >>> found["text_model.encoder.layers.0.self_attn.v_proj.bias"].read().tolist()
    [4.0, 5.0]
    """
    tops = {
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
    }
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if name in _OPEN_CLIP_UNUSED or (layer and int(layer[1]) == depth):
            continue
        if name == "text_projection":
            if projection:
                found["text_projection.weight"] = _view(tensor, tensor.shape[::-1], np.transpose)
        elif layer:
            found |= _open_clip_layer(f"text_model.encoder.layers.{layer[1]}", layer[2], tensor)
        else:
            found[tops.get(name, name)] = tensor
    return found


def _open_clip_layer(prefix: str, name: str, tensor: StoredTensor) -> dict[str, StoredTensor]:
    """Returns the tensors of a layer made from one, which for attn.in_proj is that of query, key and value."""
    if name not in ("attn.in_proj_weight", "attn.in_proj_bias"):
        layer, kind = name.rsplit(".", 1)
        return {f"{prefix}.{_OPEN_CLIP.get(layer, layer)}.{kind}": tensor}
    third = tensor.shape[0] // 3
    found = {}
    for i, part in enumerate("qkv"):
        rows = functools.partial(_rows, i * third, third)
        own = _view(tensor, (third, *tensor.shape[1:]), rows)
        found[f"{prefix}.self_attn.{part}_proj.{name.rsplit('_', 1)[1]}"] = own
    return found


def _rows(begin: int, count: int, a: np.ndarray) -> np.ndarray:
    return a[begin : begin + count]


def _unet_blocks(module: UNet2DCondition) -> dict[str, str]:
    """Returns {a block in the U-Net's folder: the block in LDM}; input and output blocks are numbered throughout."""
    found, number, counts = {}, 1, module.per_level("num_res_blocks")
    for level, count in enumerate(counts):
        for i in range(count):
            found[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{number}.0"
            found[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{number}.1"
            number += 1
        if level < len(counts) - 1:
            found[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    names = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    found |= {name: f"middle_block.{i}" for i, name in enumerate(names)}
    number = 0
    for block, level in enumerate(reversed(range(len(counts)))):
        for i in range(counts[level] + 1):
            found[f"up_blocks.{block}.resnets.{i}"] = f"output_blocks.{number}.0"
            found[f"up_blocks.{block}.attentions.{i}"] = f"output_blocks.{number}.1"
            number += 1
        after = 2 if module.depths(level, up=True)[-1] else 1
        found[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{after}.conv"
    return found


def _renamed(tensors: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def _view(tensor: StoredTensor, shape: tuple[int, ...], function: Callable[[np.ndarray], np.ndarray]) -> StoredTensor:
    """Returns the tensor after a function that changes its layout, read on demand as before."""
    return tensor._replace(shape=shape, read=lambda: function(tensor.read()))
