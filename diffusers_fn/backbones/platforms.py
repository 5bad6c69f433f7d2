"""Operations that CPUs compute in a way of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def by_platform(*args: Any, cpu: Callable[..., jax.Array], default: Callable[..., jax.Array]) -> jax.Array:
    """Returns cpu(*args) on a CPU and default(*args) elsewhere; the platform is asked when the program is lowered.

    A CPU's way looks at sizes and joins axes. So where a size is a symbol of `jax.export`, or a mesh axis of type
    Explicit splits an array, default serves everywhere.

    >>> import jax.numpy as jnp
    >>> by_platform(1.0, cpu=jnp.exp, default=jnp.exp).round(2).item()
    2.72
    """
    if any(_is_symbolic(a) or _is_split(a) for a in jax.tree.leaves(args)):
        return default(*args)
    return lax.platform_dependent(*args, cpu=cpu, default=default)


def _is_symbolic(a: Any) -> bool:
    return not all(isinstance(size, int) for size in jax.numpy.shape(a))


def _is_split(a: Any) -> bool:
    sharding = jax.typeof(a).sharding
    return bool(sharding.mesh.explicit_axes) and any(axis is not None for axis in sharding.spec)
