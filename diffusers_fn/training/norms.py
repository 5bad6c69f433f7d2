"""Norms of parameters and gradients, also where each device has a shard of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from diffusers_fn._arrays import check_positive
from diffusers_fn._manual_axes import AxisName, as_tuple, is_checked, varying

__all__ = ["clip_by_global_norm", "global_norm", "shard_axes", "squared_norm", "total"]


def global_norm(tree: Any, axis_name: AxisName | None = None, specs: Any = None) -> jax.Array:
    """Returns the Euclidean norm [] of all entries of a tree, in float32: sqrt(sum |leaf|^2).

    Inside shard_map with its default check_vma=True, a leaf that varies over a mesh axis is a shard of a larger array,
    and the norm is that of the larger array, equal on all devices. Under pmap and check_vma=False the types do not
    record the shards: `specs` names them.

    Args:
      tree: arrays, such as parameters or their mean gradient.
      axis_name: the mapped axes over which leaves may be split; None for all of them. With () the norm is that of the
        arrays on this device, for instance if each device trains a model of its own.
      specs: a PartitionSpec for each leaf, as the in_specs of shard_map, or for each subtree; its mapped axes split it.

    Raises:
      ValueError: if axis_name is given without specs under pmap or check_vma=False.

    >>> float(global_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}))
    5.0
    """
    return jnp.sqrt(squared_norm(tree, axis_name, specs))


def squared_norm(tree: Any, axis_name: AxisName | None = None, specs: Any = None) -> jax.Array:
    """Returns the square of `global_norm`."""
    totals: dict[tuple[str, ...], list[jax.Array]] = {}
    for leaf, axes in zip(jax.tree.leaves(tree), shard_axes(tree, axis_name, specs), strict=True):
        totals.setdefault(axes, []).append(total(jnp.square(jnp.abs(leaf))))
    sums = {axes: jnp.sum(jnp.stack(each)) for axes, each in totals.items()}
    return sum((jax.lax.psum(each, axes) if axes else each for axes, each in sums.items()), jnp.zeros(()))


def shard_axes(tree: Any, axis_name: AxisName | None, specs: Any) -> list[tuple[str, ...]]:
    """Returns, for each leaf, the mapped axes that split it (see `global_norm`)."""
    names = as_tuple(axis_name)
    if names and specs is None and not is_checked(names):
        raise ValueError(
            f"under pmap and check_vma=False it is not known which arrays are split over {' and '.join(names)}: pass "
            "their PartitionSpecs, PartitionSpec() for arrays that are whole"
        )
    is_spec = lambda spec: isinstance(spec, PartitionSpec)  # noqa: E731
    each = jax.tree.broadcast(PartitionSpec() if specs is None else specs, tree, is_leaf=is_spec)
    found = (
        varying(leaf).union(*(as_tuple(part) for part in spec))
        for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(each, is_leaf=is_spec), strict=True)
    )
    return [tuple(sorted(axes if axis_name is None else axes.intersection(names))) for axes in found]


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that scales gradients down to a global norm of at most max_norm.

    It is optax's, with a norm that is right for shards: that of the training step, which passes its own as the extra
    argument `global_norm`, or else `global_norm`.

    Args:
      max_norm: positive.

    Raises:
      ValueError: unless max_norm is positive.

    >>> clip = clip_by_global_norm(2.5)
    >>> clip.update({"w": jnp.array([3.0, 4.0])}, clip.init(None))[0]["w"]
    Array([1.5, 2. ], dtype=float32)
    """
    check_positive("max_norm", max_norm)

    def update(
        updates: Any,
        state: optax.EmptyState,
        params: Any = None,
        *,
        global_norm: Callable[[Any], jax.Array] = global_norm,
        **_: Any,
    ) -> tuple[Any, optax.EmptyState]:
        norm = global_norm(updates)
        clip = lambda u: jnp.where(norm < max_norm, u, u / norm.astype(u.dtype) * max_norm)  # noqa: E731
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def total(leaf: jax.Array) -> jax.Array:
    """Returns the sum of all entries; the last axis last, since XLA's CPU compiler vectorises the other sums alone."""
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return jnp.sum(jnp.sum(wide, axis=tuple(range(leaf.ndim - 1)))).astype(jnp.float32)
