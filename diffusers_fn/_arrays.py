"""Private helpers for arrays: NumPy or JAX, broadcasting, values that can be read while tracing, checks."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import auto_axes, reshard


def namespace(*values: Any) -> ModuleType:
    """Returns `jax.numpy` if any leaf of `values` is a JAX array (or tracer), else `numpy`.

    A formula written with it is computed in float64 on the host if its inputs are NumPy numbers, and traced if one of
    them is a JAX array.
    """
    return jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values)) else np


def expand(coefficient: Any, x: jax.Array) -> jax.Array:
    """Returns a coefficient [] or [B] shaped to multiply x [B, ...], in x's precision but at least float32."""
    coefficient = split_like(jnp.asarray(coefficient, working_dtype(x)), x)
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def entries(table: jax.Array, index: jax.Array) -> jax.Array:
    """Returns table[index], sharded over mesh axes of type Explicit as the index is."""
    split = jax.typeof(index).sharding
    spec = (*split.spec, *(None,) * (table.ndim - 1))
    out = split.update(spec=spec) if split.mesh.explicit_axes else None
    return whole(table, index).at[index].get(out_sharding=out)


def whole(tree: Any, like: jax.Array | None = None) -> Any:
    """Returns the tree with arrays that no mesh axis of type Explicit splits: gathered where one did.

    With `like` they are placed on its mesh too, if that has such axes; operations of its parts need that.
    """

    def gathered(a: Any) -> Any:
        if not isinstance(a, jax.Array | np.ndarray):
            return a  # parameters of a network of the caller's may be anything
        own = jax.typeof(a).sharding
        here = own if like is None else jax.typeof(like).sharding
        if not here.mesh.explicit_axes:
            here = own
        if not here.mesh.explicit_axes or (own.mesh == here.mesh and is_whole(a)):
            return a
        return reshard(a, here.update(spec=(None,) * np.ndim(a)))

    return jax.tree.map(gathered, tree)


def is_whole(a: Any) -> bool:
    """Returns whether no mesh axis of type Explicit splits the array."""
    split = jax.typeof(a).sharding
    return not split.mesh.explicit_axes or all(part is None for part in split.spec)


def with_auto_axes(function: Callable[..., jax.Array], x: jax.Array, *others: Any) -> jax.Array:
    """Returns function(x, *others), of x's shape and split as x is, with mesh axes of type Explicit as Auto inside.

    For functions that JAX does not partition over such axes, such as an interpolation.
    """
    split = jax.typeof(x).sharding
    if not split.mesh.explicit_axes:
        return function(x, *others)
    return auto_axes(function, axes=split.mesh.explicit_axes, out_sharding=split)(x, *whole(others, x))


def split_like(tree: Any, x: jax.Array) -> Any:
    """Returns the tree with arrays [B, ...] whose first axis mesh axes of type Explicit split as that of x [B, ...].

    All axes of an array of x's shape are split as those of x. Arrays [] and [1, ...] stay.
    """
    split = jax.typeof(x).sharding
    if not split.mesh.explicit_axes:
        return tree

    def placed(a: Any) -> Any:
        if not np.ndim(a) or np.shape(a)[0] != x.shape[0]:
            return a
        spec = tuple(split.spec) if np.shape(a) == x.shape else (split.spec[0], *(None,) * (np.ndim(a) - 1))
        own = jax.typeof(a).sharding
        return a if own.mesh == split.mesh and tuple(own.spec) == spec else reshard(a, split.update(spec=spec))

    return jax.tree.map(placed, tree)


def working_dtype(*arrays: Any) -> Any:
    """Returns the dtype for computations with arrays: theirs, but at least float32 (float64 only if JAX enables it)."""
    double = any(a.dtype == np.float64 for a in arrays)
    return jax.dtypes.canonicalize_dtype(np.float64 if double else np.float32)


def is_traced(tree: Any) -> bool:
    """Returns whether any leaf is a tracer, whose value cannot be read."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def concrete(value: Any) -> np.ndarray | None:
    """Returns the value as a NumPy array, or None if it is traced or lies on several devices.

    Arrays on several devices are not fetched, so that a check never moves data.
    """
    if is_traced(value):
        return None
    if isinstance(value, jax.Array) and not (value.is_fully_addressable and len(value.devices()) == 1):
        return None
    return np.asarray(value)


def check_data(**arrays: Any) -> None:
    """Raises ValueError unless all named arrays have a floating dtype and the same shape [B, ...]."""
    (first_name, first), *_ = arrays.items()
    for name, array in arrays.items():
        dtype = getattr(array, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{name} must be an array of floating type, scaled to [-1, 1]; got {dtype or type(array)}")
        if array.ndim < 1:
            raise ValueError(f"{name} must have shape [B, ...]; got a scalar")
        if array.shape != first.shape:
            raise ValueError(f"{name} must have the shape of {first_name}, {first.shape}; got {array.shape}")


def check_per_example(name: str, value: Any, x: Any) -> None:
    """Raises ValueError unless value has shape [] or [B], with B the first axis of x."""
    shape = np.shape(value)
    if shape not in ((), np.shape(x)[:1]):
        raise ValueError(
            f"{name} must have shape [] or [{np.shape(x)[0]}], the batch of x {list(np.shape(x))}; got {list(shape)}"
        )


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless the value is positive.

    >>> check_positive("gamma", 0.0)
    Traceback (most recent call last):
    ...
    ValueError: gamma must be positive; got 0.0
    """
    if callable(value) or isinstance(value, str) or np.ndim(value):
        raise ValueError(f"{name} must be a positive number; got {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{name} must be positive; got {value}")


def check_callable(name: str, value: object, example: str) -> None:
    """Raises ValueError unless the value is a function.

    >>> check_callable("denoise", 3, "make_denoiser(apply, params, epsilon)")
    Traceback (most recent call last):
    ...
    ValueError: denoise must be a function, for instance make_denoiser(apply, params, epsilon); got int
    """
    if not callable(value):
        raise ValueError(f"{name} must be a function, for instance {example}; got {type(value).__name__}")


def safe_sqrt(x: Any) -> Any:
    """Returns sqrt(max(x, 0)) with derivative 0 at 0, so that gradients stay finite there."""
    xp = namespace(x)
    return xp.where(x > 0, xp.sqrt(xp.where(x > 0, x, 1.0)), 0.0)


def is_zero(value: Any) -> bool:
    """Returns whether the value is the Python number 0, so that its term can be left out of the compiled program."""
    return isinstance(value, (int, float)) and value == 0


def floating(t: Any) -> Any:
    """Returns t as NumPy float64, or as a JAX array of floating dtype if it is a JAX array.

    >>> floating(3)
    np.float64(3.0)
    """
    if isinstance(t, jax.Array):
        return t.astype(working_dtype(t))
    return np.asarray(t, np.float64)[()]


def check_eta(eta: Any) -> None:
    """Raises ValueError if eta lies outside [0, 1]; a traced eta is not checked.

    >>> check_eta(1.5)
    Traceback (most recent call last):
    ...
    ValueError: eta must lie in [0, 1]; got 1.5
    """
    values = concrete(eta)
    if values is not None and not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"eta must lie in [0, 1]; got {eta}")


def check_number(name: str, value: object) -> None:
    """Raises ValueError unless the value is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (0 <= float(value) < math.inf):
        raise ValueError(f"{name} must be a finite number, at least 0; got {value!r}")


def check_count(name: str, value: object, smallest: int) -> None:
    """Raises ValueError unless the value is an integer of at least `smallest`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}; got {value!r}")
