"""Adapters merged into parameters, and new ones to train."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete
from diffusers_fn._types import ArrayLike
from diffusers_fn.pretrained.lora.factors import COMPONENTS, Factors, Lora, kernels, update

__all__ = ["ATTENTION", "init", "merge"]

ATTENTION = (r"attention/(query|key|value|out)$",)


def merge(params: Mapping[str, Any], lora: Lora, scale: ArrayLike = 1.0) -> dict[str, Any]:
    """Returns the parameters with the adapter added to them, W + scale (alpha / rank) up down.

    Where nothing is traced, the sum is computed in float64 on the host and rounded once to the dtype of the kernel. A
    traced scale changes without another compilation.

    Args:
      params: {"unet": ..., "text_encoder": ...}, of `load_pipeline`.
      lora: the adapter; or a trained one, `Lora` of traced arrays.
      scale: a number [].

    Raises:
      ValueError: if the adapter has layers that the parameters do not have, or of other shapes.

    >>> lora = Lora({"unet": {"conv_in": Factors(np.ones((1, 2)), np.ones((3, 1)), 0.5)}})
    >>> merge({"unet": {"conv_in": {"kernel": np.zeros((2, 3), np.float32)}}}, lora, 2.0)["unet"]["conv_in"]["kernel"]
    Array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    missing = sorted(name for name in lora.layers if lora.layers[name] and name not in params)
    if missing:
        raise ValueError(f"the adapter has layers of {', '.join(missing)}; the parameters are of {', '.join(params)}")
    merged = dict(params)
    for component, layers in lora.layers.items():
        known = kernels(component, params[component])
        unknown = sorted(set(layers) - set(known))
        if unknown:
            raise ValueError(
                f"the adapter is for another network: {len(unknown)} of its {len(layers)} layers are not in the "
                f"{component}, such as {unknown[0]}"
            )
        for layer, factors in layers.items():
            merged[component] = _with_update(merged[component], known[layer], factors, scale, f"{component} {layer}")
    return merged


def init(
    key: jax.Array,
    params: Mapping[str, Any],
    targets: Sequence[str] = ATTENTION,
    rank: int = 8,
    *,
    alpha: float | None = None,
) -> Lora:
    """Returns an adapter to train, which changes nothing yet: `up` is zero, `down` uniform as in a new linear layer.

    Train its factors `down` and `up` with the loss of merge(params, lora).

    Args:
      key: one key.
      params: {"unet": ..., ...}: those of the components to adapt, U-Nets and CLIP encoders; others are left out.
      targets: regular expressions on the ends of the layers' paths, such as "attention/query$".
      rank: of the factors.
      alpha: the update is alpha / rank up down; None is rank.

    Raises:
      ValueError: if the rank is below 1, or no layer is named.

    >>> adapter = init(jax.random.key(0), {"unet": {"conv_in": {"kernel": np.zeros((2, 3))}}}, ["conv_in$"], rank=4)
    >>> jax.tree.map(np.shape, adapter.layers["unet"]["conv_in"])
    Factors(down=(4, 2), up=(3, 4), factor=())
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be an integer of at least 1; got {rank}")
    patterns = [re.compile(target) for target in targets]
    found: dict[str, dict[str, Factors]] = {}
    chosen = [
        (component, layer, path)
        for component, tree in params.items()
        if component in COMPONENTS
        for layer, path in kernels(component, tree).items()
        if any(pattern.search("/".join(path[:-1])) for pattern in patterns)
    ]
    if not chosen:
        raise ValueError(f"no layer of {', '.join(params)} is named by targets = {list(targets)}")
    for own, (component, layer, path) in zip(jax.random.split(key, len(chosen)), chosen):
        *window, size_in, size_out = _at(params[component], path).shape
        bound = (size_in * int(np.prod(window))) ** -0.5
        down = jax.random.uniform(own, (rank, size_in, *window), minval=-bound, maxval=bound)
        up = jnp.zeros((size_out, rank, *[1] * len(window)))
        factor = 1.0 if alpha is None else alpha / rank
        found.setdefault(component, {})[layer] = Factors(down, up, factor)
    return Lora(found)


def _with_update(tree: Any, path: tuple[str, ...], factors: Factors, scale: ArrayLike, what: str) -> Any:
    if not path:
        return _sum(tree, factors, scale, what)
    return {**tree, path[0]: _with_update(tree[path[0]], path[1:], factors, scale, what)}


def _sum(kernel: Any, factors: Factors, scale: ArrayLike, what: str) -> jax.Array:
    given = (kernel, *factors, scale)
    known = [value for value in map(concrete, given) if value is not None]
    try:
        if len(known) == len(given):
            wide = Factors(*(np.asarray(value, np.float64) for value in known[1:4]))
            total = np.asarray(known[0], np.float64) + float(known[4]) * update(wide, kernel.shape, np)
            return jnp.asarray(total.astype(kernel.dtype))
        change = update(factors, kernel.shape, jnp)
    except ValueError as error:
        raise ValueError(f"the adapter is for another network: {what}: {error}") from error
    return (kernel.astype(jnp.float32) + scale * change).astype(kernel.dtype)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
