"""The encoder of T5 (T5EncoderModel): config and tensor names.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2019),
https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones import T5Encoder
from diffusers_fn.backbones.sizes import scaled
from diffusers_fn.pretrained.activations import activation_name
from diffusers_fn.pretrained.entries import Entry, linear, same
from diffusers_fn.pretrained.family import Constant, Family, read_config

__all__ = ["constants", "entries", "family", "from_config", "inputs", "to_config"]

_FEED_FORWARD = {"gated-gelu": ("gelu_tanh", True), "relu": ("relu", False)}
# Settings of the decoder, of training, export and runtime, and what follows from feed_forward_proj.
_UNUSED = [
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "dense_act_fn",
    "dropout_rate",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "is_decoder",
    "is_encoder_decoder",
    "is_gated_act",
    "label2id",
    "model_type",
    "n_positions",
    "num_decoder_layers",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "scale_decoder_outputs",
    "task_specific_params",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
]


def from_config(config: Mapping[str, Any]) -> T5Encoder:
    """Returns the T5Encoder of a T5EncoderModel with this config; ValueError for one that is not supported.

    >>> sizes = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    >>> from_config(sizes | {"feed_forward_proj": "gated-gelu"}) == T5Encoder()
    True
    """
    fields = read_config(
        config,
        optional={
            "vocab_size": 32_128,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 6,
            "num_heads": 8,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": "relu",
        },
        unused=_UNUSED,
    )
    if fields["feed_forward_proj"] not in _FEED_FORWARD:
        raise ValueError(f"feed_forward_proj must be one of {list(_FEED_FORWARD)}; got {fields['feed_forward_proj']!r}")
    activation, gated = _FEED_FORWARD[fields["feed_forward_proj"]]
    attention_dim = fields["num_heads"] * fields["d_kv"]
    return T5Encoder(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["d_model"],
        depth=fields["num_layers"],
        num_heads=fields["num_heads"],
        mlp_ratio=fields["d_ff"] / fields["d_model"],
        attention_dim=None if attention_dim == fields["d_model"] else attention_dim,
        activation=activation,
        gated_mlp=gated,
        num_buckets=fields["relative_attention_num_buckets"],
        max_distance=fields["relative_attention_max_distance"],
        norm_eps=fields["layer_norm_epsilon"],
    )


def to_config(module: T5Encoder) -> dict[str, Any]:
    """Returns the config of this network as a T5EncoderModel; ValueError for a feed-forward layer that it has not.

    >>> to_config(T5Encoder.small())["d_kv"]
    64
    """
    kind = activation_name(module.activation, ("gelu_tanh", "relu")), module.gated_mlp
    names = [name for name, each in _FEED_FORWARD.items() if each == kind]
    if not names:
        raise ValueError(f"a config can hold the feed-forward layers {_FEED_FORWARD}; got {kind}")
    attention_dim = module.hidden_size if module.attention_dim is None else module.attention_dim
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": module.vocab_size,
        "d_model": module.hidden_size,
        "d_kv": attention_dim // module.num_heads,
        "d_ff": scaled(module.hidden_size, module.mlp_ratio),
        "num_layers": module.depth,
        "num_heads": module.num_heads,
        "relative_attention_num_buckets": module.num_buckets,
        "relative_attention_max_distance": module.max_distance,
        "layer_norm_epsilon": module.norm_eps,
        "feed_forward_proj": names[0],
        "is_encoder_decoder": False,
    }


def inputs(module: T5Encoder) -> tuple[Any, ...]:
    """Returns the shape of token ids with which `init` makes all parameters.

    >>> inputs(T5Encoder())[0].shape
    (1, 1)
    """
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)


def entries(module: T5Encoder) -> list[Entry]:
    """Returns the entries of all parameters. Only the first layer of a file holds the position bias.

    >>> entries(T5Encoder(depth=0))[0].names
    ('shared.weight',)
    """
    found = [*same("tokens/embedding", "shared.weight"), *same("norm_out/scale", "encoder.final_layer_norm.weight")]
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found += same("position_bias/embedding", table)
    for i in range(module.depth):
        path, name = f"layer_{i}", f"encoder.block.{i}.layer"
        for part in ("query", "key", "value", "out"):
            found += linear(f"{path}/{part}", f"{name}.0.SelfAttention.{part[0]}", bias=False)
        for j in range(2):
            found += same(f"{path}/norm_{j}/scale", f"{name}.{j}.layer_norm.weight")
        first = ("wi_0", "wi_1") if module.gated_mlp else ("wi",)
        for ours, theirs in zip(("mlp_0", "mlp_gate"), first):
            found += linear(f"{path}/{ours}", f"{name}.1.DenseReluDense.{theirs}", bias=False)
        found += linear(f"{path}/mlp_1", f"{name}.1.DenseReluDense.wo", bias=False)
    return found


def constants(module: T5Encoder) -> list[Constant]:
    """Returns the second name of the token table, which some checkpoints have.

    >>> constants(T5Encoder())[0].name
    'encoder.embed_tokens.weight'
    """
    return [Constant("encoder.embed_tokens.weight", None, saved=False)]


family = Family("t5", ("T5EncoderModel",), from_config, to_config, entries, inputs, constants)
