"""Reads the checkpoints of versions that wrote them by orbax, whole on the host."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = ["checksum", "read_orbax"]


def read_orbax(directory: Path, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """Returns (state, meta) of a step.

    Args:
      directory: the folder of all checkpoints.
      step: its number.
      template: a tree of arrays or jax.ShapeDtypeStruct with the structure of the state; those with a sharding become
        jax.Arrays with it, the others NumPy arrays.

    Raises:
      Exception: of many kinds, if the checkpoint is damaged; ValueError if it does not match its checksum.
    """
    import orbax.checkpoint as ocp  # which takes half a second, and is needed for old runs alone

    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
    manager = ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(read_only=True, create=False))
    try:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
        restored = manager.restore(step, args=args)
    finally:
        manager.close()
    held = restored.meta
    if checksum(restored.state) != held["checksum"]:
        raise ValueError("its contents do not match the stored checksum")
    return jax.tree.map(_placed, template, restored.state), held.get("meta", {})  # the first versions had no meta


def checksum(tree: Any) -> int:
    """Returns the CRC-32 of all arrays of a tree, in the order of its leaves.

    >>> checksum({"a": np.zeros(2)}) == checksum({"a": np.zeros(2)}) != checksum({"a": np.ones(2)})
    True
    """
    value = 0
    for leaf in jax.tree.leaves(tree):
        leaf = np.ascontiguousarray(leaf)
        value = zlib.crc32(leaf.tobytes() + str((leaf.dtype, leaf.shape)).encode(), value)
    return value


def _placed(like: Any, value: np.ndarray) -> Any:
    """The array with the sharding of a jax.ShapeDtypeStruct that has one."""
    sharding = like.sharding if isinstance(like, jax.ShapeDtypeStruct) else None
    if sharding is None:
        return value
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
