"""DiT as its authors publish it: config, tensor names and layouts.

Peebles and Xie, "Scalable Diffusion Models with Transformers" (2022), https://arxiv.org/abs/2212.09748. The config
holds the keyword arguments of DiT. `dit_diffusers.py` has the layout of the diffusers library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import DiT
from diffusers_fn.backbones.patches import sincos_positions
from diffusers_fn.pretrained.entries import Entry, conv, linear, same
from diffusers_fn.pretrained.family import Constant, Family, read_config
from diffusers_fn.pretrained.layouts import heads_out, joint_qkv

__all__ = ["constants", "entries", "family", "from_config", "inputs", "positions", "to_config"]


def from_config(config: Mapping[str, Any]) -> DiT:
    """Returns the DiT with these arguments.

    >>> from_config({"hidden_size": 32, "depth": 3, "num_heads": 4, "num_classes": 10}).patch_size
    2
    """
    fields = read_config(
        config,
        optional={
            "input_size": 32,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 1152,
            "depth": 28,
            "num_heads": 16,
            "mlp_ratio": 4.0,
            "class_dropout_prob": 0.1,
            "num_classes": 1000,
            "learn_sigma": True,
        },
    )
    return DiT(
        image_size=fields["input_size"],
        patch_size=fields["patch_size"],
        hidden_size=fields["hidden_size"],
        depth=fields["depth"],
        num_heads=fields["num_heads"],
        mlp_ratio=fields["mlp_ratio"],
        in_channels=fields["in_channels"],
        num_classes=fields["num_classes"],
        null_class=fields["class_dropout_prob"] > 0,
        learned_variance=fields["learn_sigma"],
    )


def to_config(module: DiT) -> dict[str, Any]:
    """Returns the arguments of this network.

    >>> to_config(DiT.XL(in_channels=4))["hidden_size"]
    1152
    """
    return {
        "input_size": module.image_size,
        "patch_size": module.patch_size,
        "in_channels": module.in_channels,
        "hidden_size": module.hidden_size,
        "depth": module.depth,
        "num_heads": module.num_heads,
        "mlp_ratio": module.mlp_ratio,
        "class_dropout_prob": 0.1 if module.null_class else 0.0,
        "num_classes": module.num_classes,
        "learn_sigma": module.learned_variance,
    }


def inputs(module: DiT) -> tuple[Any, ...]:
    """Returns shapes of x, t and class labels with which `init` makes all parameters.

    >>> inputs(DiT.S(in_channels=4))[0].shape
    (1, 32, 32, 4)
    """
    shape = (1, module.image_size, module.image_size, module.in_channels or 4)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return x, jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)


def entries(module: DiT) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> [entry.path for entry in entries(DiT(depth=1, num_classes=10)) if "time_1" in entry.path]
    ['embedding/time_1/kernel', 'embedding/time_1/bias']
    """
    found = conv("patch", "x_embedder.proj")
    found += [*linear("embedding/time_0", "t_embedder.mlp.0"), *linear("embedding/time_1", "t_embedder.mlp.2")]
    found += same("embedding/class_table/embedding", "y_embedder.embedding_table.weight")
    for i in range(module.depth):
        path, name = f"block_{i}", f"blocks.{i}"
        found += linear(f"{path}/modulation", f"{name}.adaLN_modulation.1")
        attention, heads = f"{path}/attention", module.num_heads
        found += joint_qkv(f"{attention}/qkv", f"{name}.attn.qkv", module.hidden_size, heads, order="3hc", axes=0)
        found += heads_out(f"{attention}/out", f"{name}.attn.proj", heads, axes=0)
        found += [*linear(f"{path}/mlp/dense_0", f"{name}.mlp.fc1"), *linear(f"{path}/mlp/dense_1", f"{name}.mlp.fc2")]
    found += linear("modulation_out", "final_layer.adaLN_modulation.1")
    return found + linear("dense_out", "final_layer.linear")


def constants(module: DiT) -> list[Constant]:
    """Returns the position embeddings, which checkpoints hold and the module computes.

    >>> constants(DiT(image_size=8, hidden_size=16))[0].value.shape
    (1, 16, 16)
    """
    return [Constant("pos_embed", positions(module))]


def positions(module: DiT) -> np.ndarray:
    """Returns the position embeddings at the training resolution, [1, L, hidden_size].

    >>> positions(DiT(image_size=8, hidden_size=16)).shape
    (1, 16, 16)
    """
    patches = module.image_size // module.patch_size
    return sincos_positions(patches, patches, module.hidden_size)[None]


family = Family("dit", ("DiT",), from_config, to_config, entries, inputs, constants)
