"""DiT in the diffusers library (DiTTransformer2DModel): config, tensor names and layouts.

The network differs from the authors' in three details: every block has its own time and class embedding, the time
frequencies are spaced differently, and the norm before each MLP has another epsilon. `dit.py` has the authors' layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers_fn.backbones import DiT
from diffusers_fn.pretrained.dit import inputs, positions
from diffusers_fn.pretrained.entries import Entry, conv, linear, norm, same
from diffusers_fn.pretrained.family import Constant, Family, read_config
from diffusers_fn.pretrained.layouts import heads_out, separate_qkv

__all__ = ["ACTIVATIONS", "constants", "entries", "family", "from_config", "to_config"]

ACTIVATIONS = {"gelu-approximate": True, "gelu": False}
# Fields of older configs, from when one class implemented all transformers.
_LEGACY_FIELDS = {
    "attention_type": "default",
    "caption_channels": None,
    "cross_attention_dim": None,
    "double_self_attention": False,
    "interpolation_scale": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": False,
}


def from_config(config: Mapping[str, Any]) -> DiT:
    """Returns the DiT of a DiTTransformer2DModel with this config; ValueError for one that is not supported.

    >>> net = from_config({"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 3, "out_channels": 8})
    >>> net.hidden_size, net.learned_variance
    (32, True)
    """
    fields = read_config(
        config,
        optional={
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "in_channels": 4,
            "out_channels": None,
            "num_layers": 28,
            "attention_bias": True,
            "sample_size": 32,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-5,
        },
        only={"norm_type": "ada_norm_zero", **_LEGACY_FIELDS},
        unused=["dropout", "norm_num_groups", "upcast_attention"],
    )
    if fields["activation_fn"] not in ACTIVATIONS:
        raise ValueError(f"activation_fn must be one of {list(ACTIVATIONS)}; got {fields['activation_fn']!r}")
    channels = fields["in_channels"]
    learned_variance = fields["out_channels"] == 2 * channels
    return DiT(
        image_size=fields["sample_size"],
        patch_size=fields["patch_size"],
        hidden_size=fields["num_attention_heads"] * fields["attention_head_dim"],
        depth=fields["num_layers"],
        num_heads=fields["num_attention_heads"],
        in_channels=channels,
        out_channels=None if learned_variance or fields["out_channels"] == channels else fields["out_channels"],
        num_classes=fields["num_embeds_ada_norm"],
        learned_variance=learned_variance,
        stretch_positions=True,
        time_freq_shift=1.0,
        shared_embedding=False,
        qkv_bias=fields["attention_bias"],
        gelu_approximate=ACTIVATIONS[fields["activation_fn"]],
        mlp_norm_eps=fields["norm_eps"],
        mlp_norm_affine=fields["norm_elementwise_affine"],
    )


def to_config(module: DiT) -> dict[str, Any]:
    """Returns the config of this network as a DiTTransformer2DModel.

    >>> to_config(DiT(in_channels=4, hidden_size=32, num_heads=4, learned_variance=True))["out_channels"]
    8
    """
    channels = module.in_channels if module.out_channels is None else module.out_channels
    return {
        "num_attention_heads": module.num_heads,
        "attention_head_dim": module.hidden_size // module.num_heads,
        "in_channels": module.in_channels,
        "out_channels": channels and channels * (1 + module.learned_variance),
        "num_layers": module.depth,
        "attention_bias": module.qkv_bias,
        "sample_size": module.image_size,
        "patch_size": module.patch_size,
        "activation_fn": "gelu-approximate" if module.gelu_approximate else "gelu",
        "num_embeds_ada_norm": module.num_classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": module.mlp_norm_affine,
        "norm_eps": module.mlp_norm_eps,
    }


def entries(module: DiT) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> net = DiT(depth=1, num_classes=10, shared_embedding=False)
    >>> [entry.names for entry in entries(net) if entry.path == "modulation_out/bias"]
    [('proj_out_1.bias',)]
    """
    found = conv("patch", "pos_embed.proj")
    for i in range(module.depth):
        path, name = f"block_{i}", f"transformer_blocks.{i}"
        embedding, theirs = f"embedding_{i}", f"{name}.norm1.emb"
        found += linear(f"{embedding}/time_0", f"{theirs}.timestep_embedder.linear_1")
        found += linear(f"{embedding}/time_1", f"{theirs}.timestep_embedder.linear_2")
        found += same(f"{embedding}/class_table/embedding", f"{theirs}.class_embedder.embedding_table.weight")
        found += linear(f"{path}/modulation", f"{name}.norm1.linear")
        names = [f"{name}.attn1.to_{letter}" for letter in "qkv"]
        found += separate_qkv(f"{path}/attention/qkv", names, module.num_heads, bias=module.qkv_bias)
        found += heads_out(f"{path}/attention/out", f"{name}.attn1.to_out.0", module.num_heads, axes=0)
        found += norm(f"{path}/mlp_norm", f"{name}.norm3") if module.mlp_norm_affine else []
        found += linear(f"{path}/mlp/dense_0", f"{name}.ff.net.0.proj")
        found += linear(f"{path}/mlp/dense_1", f"{name}.ff.net.2")
    return found + [*linear("modulation_out", "proj_out_1"), *linear("dense_out", "proj_out_2")]


def constants(module: DiT) -> list[Constant]:
    """Returns the position embeddings, which a checkpoint may hold.

    >>> constants(DiT(image_size=8, hidden_size=16))[0].name
    'pos_embed.pos_embed'
    """
    return [Constant("pos_embed.pos_embed", positions(module), saved=False)]


family = Family(
    "dit_diffusers",
    ("DiTTransformer2DModel", "Transformer2DModel"),  # the second is the class name of the published DiT-XL/2
    from_config,
    to_config,
    entries,
    inputs,
    constants,
    weights_name="diffusion_pytorch_model.safetensors",
)
