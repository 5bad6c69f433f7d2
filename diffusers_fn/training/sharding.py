"""Placement of arrays on a device mesh, for data-parallel training and sampling under jit."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["replicate", "split_batch"]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every array replicated on all devices of the mesh, for parameters and optimizer state.

    >>> mesh = Mesh(jax.devices()[:1], ("batch",))
    >>> replicate(jax.numpy.ones(3), mesh).sharding.is_fully_replicated
    True
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Returns the tree with one axis of every array split over the first axis of the mesh, for batches and keys.

    Args:
      tree: arrays whose examples lie along `axis`.
      mesh: the device mesh.
      axis: the batch axis of the arrays, at least 0; 1 for batches stacked for a scan, [steps, B, ...].

    Raises:
      ValueError: if axis is negative, or an array has no such axis or one that the number of devices does not divide.

    >>> mesh = Mesh(jax.devices()[:1], ("batch",))
    >>> split_batch(jax.numpy.ones(3), mesh).sharding.spec[0]
    'batch'
    """
    if axis < 0:
        raise ValueError(f"axis must be at least 0; got {axis}")
    name = mesh.axis_names[0]
    for leaf in jax.tree.leaves(tree):
        if leaf.ndim <= axis or leaf.shape[axis] % mesh.shape[name]:
            raise ValueError(
                f"axis {axis} of a batch of shape {leaf.shape} cannot be split evenly over {mesh.shape[name]} devices"
            )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*[None] * axis, name)))
