"""The text encoder of CLIP (CLIPTextModel, with or without projection): config and tensor names.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021),
https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import ClipTextEncoder
from diffusers_fn.backbones.sizes import scaled
from diffusers_fn.pretrained.activations import activation_name, read_activation
from diffusers_fn.pretrained.entries import Entry, linear, norm, same
from diffusers_fn.pretrained.family import Constant, Family, read_config

__all__ = [
    "constants",
    "entries",
    "family",
    "from_config",
    "from_projected_config",
    "inputs",
    "projected_family",
    "to_config",
]

_ACTIVATIONS = ("quick_gelu", "gelu")
_HIGHEST_ID = 2  # an eos_token_id of 2 means that the end of text is the highest id
# Settings of training, export and runtime.
_UNUSED = [
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dropout",
    "dtype",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
]


def from_config(config: Mapping[str, Any]) -> ClipTextEncoder:
    """Returns the ClipTextEncoder, without projection, of a CLIPTextModel with this config.

    Raises ValueError for a config that is not supported.

    >>> sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    >>> from_config(sizes | {"eos_token_id": 2}) == ClipTextEncoder()
    True
    """
    fields = _read(config)
    return ClipTextEncoder(
        vocab_size=fields["vocab_size"],
        max_length=fields["max_position_embeddings"],
        hidden_size=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        mlp_ratio=fields["intermediate_size"] / fields["hidden_size"],
        activation=fields["hidden_act"],
        eos_id=None if fields["eos_token_id"] == _HIGHEST_ID else fields["eos_token_id"],
        norm_eps=fields["layer_norm_eps"],
    )


def from_projected_config(config: Mapping[str, Any]) -> ClipTextEncoder:
    """Returns the ClipTextEncoder of a CLIPTextModelWithProjection with this config.

    Raises ValueError as `from_config` does.

    >>> from_projected_config({"projection_dim": 768}).projection_dim
    768
    """
    return from_config(config).clone(projection_dim=_read(config)["projection_dim"])


def to_config(module: ClipTextEncoder) -> dict[str, Any]:
    """Returns the config of this network as a CLIPTextModel, or CLIPTextModelWithProjection if it has a projection.

    Raises ValueError for an activation that the reference does not have.

    >>> to_config(ClipTextEncoder.open_clip_g())["architectures"]
    ['CLIPTextModelWithProjection']
    """
    config: dict[str, Any] = {
        "architectures": [_PLAIN[0] if module.projection_dim is None else _PROJECTED[0]],
        "model_type": "clip_text_model",
        "vocab_size": module.vocab_size,
        "max_position_embeddings": module.max_length,
        "hidden_size": module.hidden_size,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads,
        "intermediate_size": scaled(module.hidden_size, module.mlp_ratio),
        "hidden_act": activation_name(module.activation, _ACTIVATIONS),
        "eos_token_id": _HIGHEST_ID if module.eos_id is None else module.eos_id,
        "layer_norm_eps": module.norm_eps,
    }
    return config if module.projection_dim is None else config | {"projection_dim": module.projection_dim}


def inputs(module: ClipTextEncoder) -> tuple[Any, ...]:
    """Returns the shape of token ids with which `init` makes all parameters.

    >>> inputs(ClipTextEncoder())[0].shape
    (1, 1)
    """
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)


def entries(module: ClipTextEncoder) -> list[Entry]:
    """Returns the entries of all parameters. Names begin with "text_model." only if there is a projection.

    >>> [entry.names[0] for entry in entries(ClipTextEncoder(depth=0))][:2]
    ['embeddings.token_embedding.weight', 'embeddings.position_embedding.weight']
    """
    prefix = _prefix(module)
    found = [*same("tokens/embedding", f"{prefix}embeddings.token_embedding.weight")]
    found += same("positions", f"{prefix}embeddings.position_embedding.weight")
    for i in range(module.depth):
        path, name = f"layer_{i}", f"{prefix}encoder.layers.{i}"
        for part in ("query", "key", "value"):
            found += linear(f"{path}/attention/{part}", f"{name}.self_attn.{part[0]}_proj")
        found += linear(f"{path}/attention/out", f"{name}.self_attn.out_proj")
        for j in range(2):
            found += norm(f"{path}/norm_{j}", f"{name}.layer_norm{j + 1}")
            found += linear(f"{path}/mlp_{j}", f"{name}.mlp.fc{j + 1}")
    found += norm("norm_out", f"{prefix}final_layer_norm")
    return found + ([] if module.projection_dim is None else linear("projection", "text_projection", bias=False))


def constants(module: ClipTextEncoder) -> list[Constant]:
    """Returns the position ids, which only older checkpoints have.

    >>> constants(ClipTextEncoder())[0].value.shape
    (1, 77)
    """
    ids = np.arange(module.max_length)[None]
    return [Constant(f"{_prefix(module)}embeddings.position_ids", ids, saved=False)]


def _prefix(module: ClipTextEncoder) -> str:
    return "" if module.projection_dim is None else "text_model."


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields on which the network depends, with the reference's defaults."""
    defaults = {
        "vocab_size": 49_408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "projection_dim": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49_407,
    }
    fields = read_config(config, optional=defaults, unused=_UNUSED)
    return fields | {"hidden_act": read_activation(fields, "hidden_act", _ACTIVATIONS)}


# A config without architectures has only the model_type, which both families share: then pass the family to load.
_PLAIN = ("CLIPTextModel", "clip_text_model")
_PROJECTED = ("CLIPTextModelWithProjection", "clip_text_model")

family = Family(
    "clip_text",
    _PLAIN,
    from_config,
    to_config,
    entries,
    inputs,
    constants,
    rename=lambda name: name.removeprefix("text_model."),  # written by transformers before version 5
)
projected_family = Family(
    "clip_text_projected",
    _PROJECTED,
    from_projected_config,
    to_config,
    entries,
    inputs,
    constants,
    rename=lambda name: name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}",
)
