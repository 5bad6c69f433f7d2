"""Low-rank factors of kernels, and which kernel of a parameter tree each belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusers_fn.pretrained.module_names import module_name

__all__ = ["COMPONENTS", "Factors", "Lora", "kernels", "published_names", "update"]


COMPONENTS = ("unet", "text_encoder", "text_encoder_2")  # whose layers have published names


class Factors(NamedTuple):
    """The adapter of one layer.

    Attributes:
      down: [rank, in], or [rank, in, height, width] of a convolution.
      up: [out, rank], or [out, rank, 1, 1].
      factor: alpha / rank; its gradient is zero.
    """

    down: Any
    up: Any
    factor: Any = 1.0


class Lora(NamedTuple):
    """An adapter of several layers, a pytree.

    Attributes:
      layers: {component: {layer: Factors}}, by the layers' published names with underscores for dots.
    """

    layers: Mapping[str, Mapping[str, Factors]]


def kernels(component: str, params: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns {published name with underscores: path of the kernel} of a component's layers.

    >>> kernels("text_encoder", {"layer_0": {"mlp_0": {"kernel": np.ones((2, 3))}}})
    {'text_model_encoder_layers_0_mlp_fc1': ('layer_0', 'mlp_0', 'kernel')}
    """
    return {name.replace(".", "_"): path for name, path in _named(component, params).items()}


def published_names(component: str, params: Mapping[str, Any]) -> dict[str, str]:
    """Returns {published name with underscores: with dots} of a component's layers."""
    return {name.replace(".", "_"): name for name in _named(component, params)}


def _named(component: str, params: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """{published name: path of the kernel}."""
    levels = len({name.split("_")[1] for name in params if name.startswith("up_") and "_block_" in name})
    return {
        module_name(component, "/".join(path[:-1]), levels): path for path in _paths(params) if path[-1] == "kernel"
    }


def update(factors: Factors, shape: tuple[int, ...], xp: Any) -> Any:
    """Returns factor up down in the layout of a linen kernel of a shape.

    Args:
      factors: of the layer.
      shape: [in, out], or [*window, in, out] of a convolution.
      xp: numpy or jax.numpy.

    Raises:
      ValueError: if the factors are those of another shape.
    """
    down, up = factors.down, factors.up
    size_in = tuple(down.shape[1:2])
    window = tuple(down.shape[2:]) if len(shape) > 2 else ()
    if (*window, *size_in, up.shape[0]) != tuple(shape) or (len(shape) == 2 and any(n != 1 for n in down.shape[2:])):
        raise ValueError(f"its factors are {list(up.shape)} and {list(down.shape)}, for a kernel {list(shape)}")
    rows = xp.moveaxis(down, (0, 1), (-1, -2)).reshape(-1, down.shape[0])
    columns = up.reshape(up.shape[0], -1).T
    factor = factors.factor if xp is np else jax.lax.stop_gradient(factors.factor)  # it is not trained
    return factor * (rows @ columns).reshape(shape)


def _paths(tree: Mapping[str, Any], begin: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _paths(value, (*begin, name))
        else:
            yield (*begin, name)
