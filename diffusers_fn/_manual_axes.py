"""Private helpers for the mesh axes of pmap and shard_map: which axes an array varies over, and making it vary.

With its default check_vma=True, shard_map records in the type of an array the axes over which it varies. The gradient
with respect to an array that does not vary is summed over the devices. Under pmap and check_vma=False the types record
nothing: all arrays then seem to vary over no axis.
"""

from __future__ import annotations

from typing import Any

import jax

AxisName = str | tuple[str, ...]


def as_tuple(axis_name: AxisName | None) -> tuple[str, ...]:
    """Returns the axes as a tuple, () for None."""
    return () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def varying(tree: Any) -> frozenset[str]:
    """Returns the axes over which some array of the tree varies, as its type records."""
    return frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(tree)))


def is_checked(axes: tuple[str, ...]) -> bool:
    """Returns whether the types record the axes over which arrays vary: inside shard_map with check_vma=True."""
    return bool(axes) and bool(_varying(jax.lax.axis_index(axes)))


def vary(tree: Any, axes: tuple[str, ...]) -> Any:
    """Returns the tree with arrays whose types vary over all of the axes, where the types record it."""
    if not is_checked(axes):
        return tree

    def cast(leaf: Any) -> jax.Array:
        missing = tuple(axis for axis in axes if axis not in _varying(leaf))
        if not missing:
            return leaf
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(leaf, missing, to="varying")
        pvary: Any = getattr(jax.lax, "pvary")  # noqa: B009, in JAX 0.8
        return pvary(leaf, missing)

    return jax.tree.map(cast, tree)


def _varying(leaf: Any) -> frozenset[str]:
    kind = jax.typeof(leaf)
    record = getattr(kind, "mat", None)  # since JAX 0.10; `vma` before
    return frozenset(getattr(kind, "vma", None) or () if record is None else record.varying)
