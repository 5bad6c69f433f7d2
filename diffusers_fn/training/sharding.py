"""Where arrays live on a mesh, for data-parallel training and sampling under jit."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every array copied to all devices of the mesh: parameters, optimizer state.

    >>> mesh = Mesh(jax.devices()[:1], ("batch",))
    >>> replicate(jax.numpy.ones(3), mesh).sharding.is_fully_replicated
    True
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with the first axis of every array split over the first axis of the mesh: batches, keys.

    Raises:
      ValueError: if an array's first axis is not divisible by the number of devices.

    >>> mesh = Mesh(jax.devices()[:1], ("batch",))
    >>> split_batch(jax.numpy.ones(3), mesh).sharding.spec[0]
    'batch'
    """
    axis = mesh.axis_names[0]
    for leaf in jax.tree.leaves(tree):
        if leaf.ndim < 1 or leaf.shape[0] % mesh.shape[axis]:
            raise ValueError(f"a batch of shape {leaf.shape} cannot be split evenly over {mesh.shape[axis]} devices")
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(axis)))
