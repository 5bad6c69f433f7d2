"""Reads the checkpoints of versions that wrote them by orbax, whole and on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = ["read_orbax"]


def read_orbax(directory: Path, step: int, template: Any) -> tuple[Any, dict[str, Any], int]:
    """Returns (state of NumPy arrays, meta, checksum) of a step.

    Args:
      directory: the folder of all checkpoints.
      step: its number.
      template: a tree of arrays or jax.ShapeDtypeStruct with the structure of the state.

    Raises:
      Exception: of many kinds, if the checkpoint is damaged.
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
    return restored.state, held.get("meta", {}), held["checksum"]  # the first versions had no meta
