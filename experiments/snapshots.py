"""Copies of a training state on its devices, so that it can be written while the training goes on."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Snapshots"]


class Snapshots:
    """Copies trees of arrays on their devices; the caller does not wait for the copy.

    On a CPU the memory of a copy is used again for the next one: writing to new memory takes several times as long.
    """

    def __init__(self) -> None:
        self._spare: Any = None

    def prepare(self, tree: Any) -> None:
        """Compiles the copy, and reserves the memory on a CPU, so that the first copy takes no longer than others."""
        self.take(tree)

    def take(self, tree: Any) -> Any:
        """Returns a copy of a tree of arrays; those of the host are copied there. Ends the use of the copy before.

        Raises:
          jax.errors.JaxRuntimeError: if the devices have no memory for it.
        """
        leaves, structure = jax.tree.flatten(tree)
        on_device = [isinstance(leaf, jax.Array) for leaf in leaves]
        copies = iter(self._copied([leaf for leaf, found in zip(leaves, on_device) if found]))
        copied = [next(copies) if found else np.array(leaf) for leaf, found in zip(leaves, on_device)]
        return jax.tree.unflatten(structure, copied)

    def _copied(self, arrays: list[jax.Array]) -> list[jax.Array]:
        if not arrays or next(iter(arrays[0].devices())).platform != "cpu":
            return _copy(arrays)
        like = [(each.shape, each.dtype, each.sharding) for each in arrays]
        if self._spare is None or like != [(each.shape, each.dtype, each.sharding) for each in self._spare]:
            self._spare = _copy(arrays)
        self._spare = _copy_into(self._spare, arrays, True)
        return self._spare


@jax.jit
def _copy(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.copy(each) for each in arrays]


@functools.partial(jax.jit, donate_argnums=0)
def _copy_into(old: list[jax.Array], new: list[jax.Array], yes: bool) -> list[jax.Array]:
    """Returns `new` in the memory of `old`: XLA runs a select in parallel, a plain copy on one core."""
    return [jnp.where(yes, each, before) for each, before in zip(new, old)]
