"""Means and gathers over the devices of pmap and shard_map, for the training step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._manual_axes import vary

__all__ = ["agreed", "check_mapped", "gathered", "gradient_mean", "mean"]


def gradient_mean(gradients: Any, names: tuple[str, ...], shards: list[tuple[str, ...]]) -> Any:
    """Returns the gradients of the mean over all devices of their losses.

    Args:
      gradients: of the devices' own losses, with respect to parameters that vary over `names`. The gradient of a shard
        is already summed over the devices that gathered it.
      names: the mapped axes.
      shards: for each leaf, those of them that split it.
    """
    size = jax.lax.psum(1, names)
    leaves, structure = jax.tree.flatten(gradients)
    means = []
    for leaf, split in zip(leaves, shards, strict=True):
        others = tuple(name for name in names if name not in split)
        means.append((jax.lax.psum(leaf, others) if others else leaf) / size)
    return jax.tree.unflatten(structure, means)


def mean(tree: Any, names: tuple[str, ...]) -> Any:
    """Returns the means of the arrays over all devices."""
    return jax.lax.pmean(vary(tree, names), names)


def gathered(tree: Any, names: tuple[str, ...]) -> Any:
    """Returns arrays [B, ...] of all devices in their order, [devices B, ...]; arrays [] become means.

    A sum of arrays that are zero but for the device's own rows: unlike that of all_gather, its type records that it is
    the same on all devices.
    """
    if not names:
        return tree

    def gather(x: jax.Array) -> jax.Array:
        if not x.ndim:
            return mean(x, names)
        size, index = jax.lax.psum(1, names), jax.lax.axis_index(names)
        rows = x.astype(jnp.int32) if x.dtype == jnp.bool else x
        rows = jnp.zeros((size, *rows.shape), rows.dtype).at[index].set(rows)
        return jax.lax.psum(rows, names).reshape(-1, *x.shape[1:]).astype(x.dtype)

    return jax.tree.map(gather, tree)


def agreed(flag: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Returns whether the flag is true on all devices."""
    return jax.lax.pmin(vary(flag.astype(jnp.int32), names), names) == 1 if names else flag


def check_mapped(names: tuple[str, ...]) -> None:
    """Raises ValueError unless all axes are those of a surrounding pmap or shard_map."""
    for name in names:
        try:
            jax.lax.axis_index(name)
        except NameError as error:
            raise ValueError(
                f"axis_name {name!r} is no axis of a surrounding pmap or shard_map; leave axis_name out under jit"
            ) from error
