"""Tables of learned vectors."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["Embed", "take_rows"]


class Embed(nn.Embed):
    """Linen's table, read by `take_rows`.

    >>> table = Embed(4, 8)
    >>> table.apply(table.init(jax.random.key(0), jnp.arange(3)), jnp.arange(3)).shape
    (3, 8)
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the rows [..., features] of inputs [...]."""
        promoted: Any = self.promote_dtype(self.embedding, dtype=self.dtype, inexact=False)
        return take_rows(promoted[0], inputs)


def take_rows(table: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the rows [..., *S] of a table [N, *S] for labels [...]: NaN where there is no such row.

    Mesh axes of type Explicit that split the labels split the rows.

    >>> take_rows(jnp.arange(6.0).reshape(3, 2), jnp.array([1, 5])).tolist()
    [[2.0, 3.0], [nan, nan]]
    """
    split = jax.typeof(labels).sharding
    spec = jax.sharding.PartitionSpec(*split.spec, *(None,) * (table.ndim - 1))
    out = split.update(spec=spec) if split.mesh.explicit_axes else None
    return table.at[labels.astype(jnp.result_type(int))].get(mode="fill", out_sharding=out)
