"""The published names of the layers of U-Nets and CLIP encoders, from the paths of their linen parameters."""

from __future__ import annotations

import re

__all__ = ["module_name"]

_LAYERS = (
    (r"block_(\d+)/self_attention/", r"transformer_blocks.\1.attn1."),
    (r"block_(\d+)/cross_attention/", r"transformer_blocks.\1.attn2."),
    (r"block_(\d+)/feed_in$", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"block_(\d+)/feed_out$", r"transformer_blocks.\1.ff.net.2"),
)
_UNET = (
    (r"^(down|up)_(\d+)_block_(\d+)/", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)_(\d+)_transformer_(\d+)/", r"\1_blocks.\2.attentions.\3."),
    (r"^down_(\d+)_downsample$", r"down_blocks.\1.downsamplers.0.conv"),
    (r"^up_(\d+)_upsample$", r"up_blocks.\1.upsamplers.0.conv"),
    (r"^mid_block_(\d+)/", r"mid_block.resnets.\1."),
    (r"^mid_transformer/", r"mid_block.attentions.0."),
    (r"^text_time_embedding/", "add_embedding."),
    (r"^time_embedding/", "time_embedding."),
    *_LAYERS,
    (r"\.query$", ".to_q"),
    (r"\.key$", ".to_k"),
    (r"\.value$", ".to_v"),
    (r"(attn\d)\.out$", r"\1.to_out.0"),
    (r"\.conv_0$", ".conv1"),
    (r"\.conv_1$", ".conv2"),
    (r"\.emb$", ".time_emb_proj"),
    (r"\.skip$", ".conv_shortcut"),
    (r"\.dense_0$", ".linear_1"),
    (r"\.dense_1$", ".linear_2"),
)
_CLIP = (
    (r"^layer_(\d+)/attention/(query|key|value)$", r"text_model.encoder.layers.\1.self_attn.\2"),
    (r"^layer_(\d+)/attention/out$", r"text_model.encoder.layers.\1.self_attn.out_proj"),
    (r"^layer_(\d+)/mlp_0$", r"text_model.encoder.layers.\1.mlp.fc1"),
    (r"^layer_(\d+)/mlp_1$", r"text_model.encoder.layers.\1.mlp.fc2"),
    (r"^projection$", "text_projection"),
    (r"\.query$", ".q_proj"),
    (r"\.key$", ".k_proj"),
    (r"\.value$", ".v_proj"),
)


def module_name(component: str, path: str, levels: int = 0) -> str:
    """Returns the published name of a layer, without ".weight".

    Args:
      component: "unet", "text_encoder" or "text_encoder_2".
      path: of its kernel below the component, without "/kernel".
      levels: of a U-Net, whose way up is counted from the lowest resolution there.

    >>> module_name("unet", "up_3_transformer_0/block_1/self_attention/out", levels=4)
    'up_blocks.0.attentions.0.transformer_blocks.1.attn1.to_out.0'
    >>> module_name("text_encoder", "layer_2/mlp_0")
    'text_model.encoder.layers.2.mlp.fc1'
    """
    if component == "unet":
        path = re.sub(r"^up_(\d+)_", lambda match: f"up_{levels - 1 - int(match[1])}_", path)
    for pattern, name in _UNET if component == "unet" else _CLIP:
        path = re.sub(pattern, name, path)
    return path.replace("/", ".")
