"""Work that is split over all devices of all processes, example by example."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

import diffusers_fn as dfn
from experiments import processes, states

__all__ = ["first_rows", "make_mesh", "mesh_of", "place_params", "split_rows"]


def make_mesh(config: ConfigDict) -> Mesh:
    """Returns the mesh of all devices for a trained model: parameters are split as config.mesh describes.

    Raises:
      ValueError: if fsdp and tensor do not fit the devices.
    """
    try:
        return dfn.training.make_mesh(-1, config.mesh.fsdp, config.mesh.tensor)
    except ValueError as error:
        raise ValueError(f"config.mesh: {error}: set --config.mesh.fsdp=1 and --config.mesh.tensor=1") from error


def place_params(config: ConfigDict, params: Any) -> Any:
    """Returns parameters of the config's network, whole on this host, on the devices of `make_mesh`."""
    mesh = make_mesh(config)
    return dfn.training.place(params, states.state_shardings(config, mesh, params))


def mesh_of(tree: Any) -> Mesh:
    """Returns the mesh that the arrays of a tree lie on; that of all devices if they lie on none."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            mesh: Any = leaf.sharding.mesh
            return mesh
    return dfn.training.make_mesh()


def split_rows(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays [n, ...] split over the devices of a mesh, with rows repeated up to a multiple of their number.

    Args:
      tree: whole arrays, the same on all processes.
      mesh: of the devices.
    """
    n = len(jax.tree.leaves(tree)[0])
    total = -(-n // mesh.size) * mesh.size
    rows = np.arange(total)[processes.local_rows(total, mesh)] % n
    whole = len(rows) == n
    return dfn.training.split_batch(jax.tree.map(lambda leaf: leaf if whole else leaf[rows], tree), mesh)


def first_rows(tree: Any, num: int) -> Any:
    """Returns the first rows of arrays that are split over all processes, as NumPy arrays on each of them."""
    return jax.tree.map(lambda leaf: leaf[:num], processes.gather(tree))
