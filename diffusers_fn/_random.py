"""Private helpers for keys: one key for the batch, or one key per example.

With one key the whole batch is drawn at once. With [B] keys the numbers of an example depend on its own key alone, so
every device layout and every split of the batch draws the same numbers. The exceptions are the generators "rbg" and
"unsafe_rbg": `jax.vmap` draws for all of their [B] keys from the first one, so the numbers depend on the position in
the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn import _threefry
from diffusers_fn._arrays import split_like, whole


def is_batched(key: jax.Array) -> bool:
    """Returns whether `key` holds one key per example; accepts typed keys and raw uint32 keys."""
    if not isinstance(key, jax.Array) and not hasattr(key, "dtype"):
        raise ValueError(f"key must be a JAX random key such as jax.random.key(0); got {type(key).__name__}")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and (key.dtype != jnp.uint32 or key.ndim == 0):
        raise ValueError(
            f"key must be a JAX random key such as jax.random.key(0); got an array {key.dtype}{list(key.shape)}"
        )
    ndim = key.ndim if typed else key.ndim - 1
    if ndim not in (0, 1):
        raise ValueError(f"key must be one key or a vector of B keys; got an array of keys with {ndim} axes")
    return ndim == 1


def one_key(key: jax.Array) -> jax.Array:
    """Returns the key, or the first of [B] keys, for numbers drawn once for the whole batch, such as dropout masks."""
    return whole(key)[0] if is_batched(key) else key


def split(key: jax.Array, num: int = 2) -> jax.Array:
    """Returns [num] keys, or [num, B] keys when `key` holds B of them."""
    if is_batched(key):
        return jnp.swapaxes(jax.vmap(lambda k: jax.random.split(k, num))(key), 0, 1)
    return jax.random.split(key, num)


def draw(sampler: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns sampler(key, shape, dtype) for shape [B, ...], drawn per example if there are B keys."""
    if not is_batched(key):
        return sampler(_threefry.faster(key), shape, dtype)
    if key.shape[0] != shape[0]:
        raise ValueError(
            f"there must be one key, or one key per example: got {key.shape[0]} keys for a batch of {shape[0]}"
        )
    return jax.vmap(lambda k: sampler(k, shape[1:], dtype))(_threefry.faster(key))


def normal(key: jax.Array, x: jax.Array) -> jax.Array:
    """Returns standard normal noise of x's shape and dtype, split over mesh axes of type Explicit as x is."""
    return split_like(draw(jax.random.normal, key, x.shape, x.dtype), x)


def fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    """Returns the key, or each of the [B] keys, with an integer folded in."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, data) if is_batched(key) else jax.random.fold_in(key, data)
