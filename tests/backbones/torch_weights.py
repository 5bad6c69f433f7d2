"""Torch state dicts of the published U-Nets as parameters of `UNet`: for the parity tests only.

Torch keeps convolutions as [out, in, h, w] and linear layers as [out, in], where
linen has [h, w, in, out] and [in, out].
"""

import json
import pathlib
import struct

import numpy as np
from flax import traverse_util

GOLDEN = pathlib.Path(__file__).parents[1] / "golden_nets"


def load(name):
    """Returns (config, torch weights, inputs and outputs), the last two as dicts of arrays."""
    raw = (GOLDEN / name / "weights.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    weights = {}
    for key, entry in header.items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            assert entry["dtype"] == "F32"
            weights[key] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
    with np.load(GOLDEN / name / "io.npz") as io:
        return json.loads((GOLDEN / name / "config.json").read_text()), weights, dict(io)


def images(array):
    """Returns NCHW as NHWC."""
    return np.moveaxis(array, 1, -1)


def diffusers_unet(weights, levels, blocks, heads):
    """Returns UNet parameters for a UNet2DModel of this many levels, blocks per level and attention heads."""
    names = {
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
        "embedding/time_0": "time_embedding.linear_1",
        "embedding/time_1": "time_embedding.linear_2",
    }
    parts = {
        "norm_0": "norm1",
        "conv_0": "conv1",
        "emb": "time_emb_proj",
        "norm_1": "norm2",
        "conv_1": "conv2",
    }
    parts["skip"] = "conv_shortcut"
    attention = {"norm": "group_norm", "out": "to_out.0"}

    stages = [(f"mid_block_{i}", "mid_attention", "mid_block", i) for i in range(2)]
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        names[f"down_{level}_downsample"] = f"{down}.downsamplers.0.conv"
        names[f"up_{level}_upsample"] = f"{up}.upsamplers.0.conv"
        stages += [(f"down_{level}_block_{i}", f"down_{level}_attention_{i}", down, i) for i in range(blocks)]
        stages += [(f"up_{level}_block_{i}", f"up_{level}_attention_{i}", up, i) for i in range(blocks + 1)]
    qkv = {}
    for block, attend, theirs, i in stages:
        names |= {f"{block}/{ours}": f"{theirs}.resnets.{i}.{part}" for ours, part in parts.items()}
        if f"{theirs}.attentions.{i}.to_q.weight" in weights:
            names |= {f"{attend}/{ours}": f"{theirs}.attentions.{i}.{part}" for ours, part in attention.items()}
            qkv[f"{attend}/qkv"] = [f"{theirs}.attentions.{i}.to_{letter}" for letter in "qkv"]
    return _convert(weights, names, {ours: _stack_qkv(weights, keys, heads) for ours, keys in qkv.items()}, heads)


def openai_unet(weights, levels, blocks, heads):
    """Returns UNet parameters for a UNetModel of improved- or guided-diffusion, first attention order."""
    names = {
        "conv_in": "input_blocks.0.0",
        "norm_out": "out.0",
        "conv_out": "out.2",
        "embedding/time_0": "time_embed.0",
        "embedding/time_1": "time_embed.2",
    }
    parts = {
        "norm_0": "in_layers.0",
        "conv_0": "in_layers.2",
        "emb": "emb_layers.1",
        "norm_1": "out_layers.0",
    }
    parts |= {"conv_1": "out_layers.3", "skip": "skip_connection"}

    stages = [("mid_block_0", "", "middle_block.0"), ("mid_block_1", "", "middle_block.2")]
    stages += [("", "mid_attention", "middle_block.1")]
    index = 1
    for level in range(levels):
        for i in range(blocks):
            stages += [(f"down_{level}_block_{i}", "", f"input_blocks.{index}.0")]
            stages += [("", f"down_{level}_attention_{i}", f"input_blocks.{index}.1")]
            index += 1
        names[f"down_{level}_downsample"] = f"input_blocks.{index}.0.op"
        index += 1
    index = 0
    for level in reversed(range(levels)):
        for i in range(blocks + 1):
            stages += [(f"up_{level}_block_{i}", "", f"output_blocks.{index}.0")]
            stages += [("", f"up_{level}_attention_{i}", f"output_blocks.{index}.1")]
            for place in (1, 2):  # after the attention, where there is one
                if f"output_blocks.{index}.{place}.conv.weight" in weights:
                    names[f"up_{level}_upsample"] = f"output_blocks.{index}.{place}.conv"
            index += 1
    special = {}
    for block, attend, theirs in stages:
        if block:
            names |= {f"{block}/{ours}": f"{theirs}.{part}" for ours, part in parts.items()}
        elif f"{theirs}.qkv.weight" in weights:
            names |= {f"{attend}/norm": f"{theirs}.norm", f"{attend}/out": f"{theirs}.proj_out"}
            special[f"{attend}/qkv"] = _split_qkv(weights, f"{theirs}.qkv", heads)
    return _convert(weights, names, special, heads)


def _stack_qkv(weights, keys, heads):
    """Returns the kernel [C, 3, heads, head_dim] and bias [3, heads, head_dim] of three projections."""
    kernel = np.stack([weights.pop(f"{key}.weight").T for key in keys], 1)
    bias = np.stack([weights.pop(f"{key}.bias") for key in keys])
    return kernel.reshape(len(kernel), 3, heads, -1), bias.reshape(3, heads, -1)


def _split_qkv(weights, key, heads):
    """Returns the same for one projection whose outputs are ordered (heads, 3, head_dim)."""
    kernel = weights.pop(f"{key}.weight")[:, :, 0].T
    kernel = kernel.reshape(len(kernel), heads, 3, -1).swapaxes(1, 2)
    return kernel, weights.pop(f"{key}.bias").reshape(heads, 3, -1).swapaxes(0, 1)


def _convert(weights, names, special, heads):
    """Returns the nested parameters; every torch array must have found its place."""
    flat = {}
    for ours, (kernel, bias) in special.items():
        flat |= {f"{ours}/kernel": kernel, f"{ours}/bias": bias}
    for ours, theirs in names.items():
        if f"{theirs}.weight" not in weights:
            continue
        weight, flat[f"{ours}/bias"] = weights.pop(f"{theirs}.weight"), weights.pop(f"{theirs}.bias")
        if weight.ndim == 1:
            flat[f"{ours}/scale"] = weight
        elif "attention" in ours:  # out: [C, C] or [C, C, 1] to [heads, head_dim, C]
            flat[f"{ours}/kernel"] = weight.reshape(len(weight), -1).T.reshape(heads, -1, len(weight))
        elif weight.shape[2:] == (3, 3):
            flat[f"{ours}/kernel"] = weight.transpose(2, 3, 1, 0)
        else:
            flat[f"{ours}/kernel"] = weight.reshape(len(weight), -1).T
    assert not weights, f"unused: {sorted(weights)}"
    return traverse_util.unflatten_dict(flat, sep="/")
