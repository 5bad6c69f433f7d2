"""A scan over the blocks of a transformer: one block is traced and compiled, whatever the depth.

The parameters of the blocks are stacked: an array of `block_0`, `block_1`, ... is a slice [i] of that of `blocks`.
`stack_blocks` and `unstack_blocks` change one layout into the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["scanned", "stack_blocks", "unstack_blocks"]


def scanned(block: nn.Module, length: int, remat: bool = False) -> Callable[..., tuple[jax.Array, Any]]:
    """Returns call(h, x, split=, keep=, **static) -> (h, outputs), which applies `length` blocks in a scan.

    Block i computes h <- block(h, x), with x[i] in place of x if `split`. The outputs are those of all blocks,
    [length, ...], if `keep`, else None. With remat the backward pass computes every block again instead of keeping its
    activations.

    >>> class Twice(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, h):
    ...         return scanned(Block(name="blocks"), 2)(h, None)[0]
    >>> class Block(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, h, x):
    ...         return nn.Dense(3)(h)
    >>> jax.eval_shape(Twice().init, jax.random.key(0), jnp.ones(3))["params"]["blocks"]["Dense_0"]["kernel"].shape
    (2, 3, 3)
    """

    def call(h: jax.Array, x: Any, *, split: bool = False, keep: bool = False, **static: Any) -> tuple[jax.Array, Any]:
        def apply(block: nn.Module, h: jax.Array, x: Any) -> jax.Array:
            out: jax.Array = block(h, x, **static)
            return out

        once = nn.remat(apply, prevent_cse=False) if remat else apply  # a scan's body is not merged with its gradient

        def step(block: nn.Module, h: jax.Array, x: Any) -> tuple[jax.Array, Any]:
            h = once(block, h, x)
            return h, h if keep else None

        scan = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=0 if split else nn.broadcast,
            length=length,
        )
        found: tuple[jax.Array, Any] = scan(block, h, x)
        return found

    return call


def stack_blocks(tree: Any) -> Any:
    """Returns the tree with the parameters of `block_0`, `block_1`, ... stacked in `blocks`, as with scan_blocks=True.

    `in_0`, ... become `in_blocks`, and `out_0`, ... become `out_blocks`.

    Args:
      tree: parameters of a transformer, or anything that holds dicts of them, such as a training state.

    >>> stack_blocks({"block_0": {"w": np.zeros(3)}, "block_1": {"w": np.ones(3)}})["blocks"]["w"].shape
    (2, 3)
    """

    def stacked(node: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        groups: dict[str, dict[int, Any]] = {}
        for key, value in node.items():
            prefix, _, number = key.rpartition("_")
            if prefix in _STACKS and number.isdecimal():
                groups.setdefault(_STACKS[prefix], {})[int(number)] = value
            else:
                found[key] = stacked(value) if isinstance(value, Mapping) else value
        for name, blocks in groups.items():
            found[name] = jax.tree.map(_stack, *(blocks[i] for i in range(len(blocks))))
        return found

    return _in_dicts(stacked, tree)


def unstack_blocks(tree: Any) -> Any:
    """Returns the tree with the blocks of the stacks apart, the inverse of `stack_blocks`, for scan_blocks=False.

    >>> sorted(unstack_blocks({"blocks": {"w": np.zeros([2, 3])}}))
    ['block_0', 'block_1']
    """
    prefixes = {stack: prefix for prefix, stack in _STACKS.items()}

    def unstacked(node: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            if key not in prefixes:
                found[key] = unstacked(value) if isinstance(value, Mapping) else value
                continue
            for i in range(jax.tree.leaves(value)[0].shape[0]):
                found[f"{prefixes[key]}_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
        return found

    return _in_dicts(unstacked, tree)


_STACKS = {"block": "blocks", "in": "in_blocks", "out": "out_blocks"}


def _in_dicts(change: Callable[[Mapping[str, Any]], dict[str, Any]], tree: Any) -> Any:
    def is_dict(node: Any) -> bool:
        return isinstance(node, Mapping)

    return jax.tree.map(lambda node: change(node) if is_dict(node) else node, tree, is_leaf=is_dict)


def _stack(*leaves: Any) -> Any:
    return jnp.stack(leaves) if isinstance(leaves[0], jax.Array) else np.stack(leaves)
