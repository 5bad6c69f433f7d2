"""Operations that are computed differently on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, auto_axes

__all__ = ["by_platform", "by_size"]


def by_platform(
    *args: Any, cpu: Callable[..., jax.Array], default: Callable[..., jax.Array], like: jax.Array, kept: int
) -> jax.Array:
    """Returns cpu(*args) on a CPU and default(*args) elsewhere. The platform is selected when the program is lowered.

    The implementations for CPUs depend on sizes and join axes. So default is used on every platform if a size is a
    symbol of `jax.export`, except that of a first axis, the batch; and mesh axes of type Explicit become Auto inside.

    Args:
      args: arrays, or None.
      cpu, default: two implementations of one function.
      like, kept: an array whose first `kept` axes are those of the result. Explicit mesh axes that split them split
        the result.

    >>> round(by_platform(1.0, cpu=jnp.exp, default=jnp.exp, like=jnp.ones(()), kept=0).item(), 2)
    2.72
    """

    def chosen(*args: Any) -> jax.Array:
        if not all(isinstance(size, int) for array in jax.tree.leaves(args) for size in jnp.shape(array)[1:]):
            return default(*args)
        return lax.platform_dependent(*args, cpu=cpu, default=default)

    shardings = [jax.typeof(array).sharding for array in jax.tree.leaves(args)]
    explicit = [sharding for sharding in shardings if sharding.mesh.explicit_axes]
    if not explicit:
        return chosen(*args)
    out = explicit[0].update(spec=PartitionSpec(*jax.typeof(like).sharding.spec[:kept]))
    return auto_axes(chosen, axes=out.mesh.explicit_axes, out_sharding=out)(*args)


def by_size(
    size: Any, least: int, *args: Any, large: Callable[..., jax.Array], small: Callable[..., jax.Array]
) -> jax.Array:
    """Returns large(*args) if size >= least, else small(*args). The size may be a symbol of `jax.export`.

    A symbol is replaced by its number when the exported program is compiled, which then has one of the two.

    >>> by_size(3, 2, jnp.ones(()), large=jnp.negative, small=jnp.exp).item()
    -1.0
    """
    if isinstance(size, int):
        return (large if size >= least else small)(*args)
    return lax.cond(jnp.asarray(size) >= least, large, small, *args)
