"""Activation functions in published configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers_fn.backbones import ops

__all__ = ["ACT_FNS", "activation_name", "read_activation"]

ACT_FNS = ("silu", "swish", "mish", "gelu", "relu")  # of the diffusers library


def read_activation(fields: Mapping[str, Any], field: str = "act_fn", allowed: Sequence[str] = ACT_FNS) -> str:
    """Returns the name of the activation function in this field of a config: "silu" for its other name, "swish".

    Raises ValueError for a name that is not allowed.

    >>> read_activation({"act_fn": "swish"})
    'silu'
    """
    if fields[field] not in allowed:
        raise ValueError(f"{field} must be one of {', '.join(allowed)}; got {fields[field]!r}")
    return "silu" if fields[field] == "swish" else fields[field]


def activation_name(activation: ops.Activation, allowed: Sequence[str] = ACT_FNS) -> str:
    """Returns the first allowed name of an activation function, which is given by name or as a function.

    Raises ValueError if it has none.

    >>> import jax
    >>> activation_name("swish"), activation_name(jax.nn.mish)
    ('silu', 'mish')
    """
    function = ops.activation(activation)
    for name in allowed:
        if ops.ACTIVATIONS[name] is function:
            return name
    raise ValueError(f"a config can hold the activations {', '.join(allowed)}; got {activation!r}")
