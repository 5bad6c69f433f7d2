"""Dot-product attention: JAX's own on accelerators, one head after another on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from diffusers_fn.backbones.apart import compiled_apart

_LARGE = 1 << 18  # weights of one head, for all of the batch: a megabyte is more than a core's cache holds


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Returns softmax(query key^T / sqrt(D)) value [B, L, heads, D], for a query of that shape.

    Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, equation 1. The softmax is
    taken in float32 (on a CPU, or wider). On a CPU the [B, heads, L, M] weights are made again in the backward pass
    instead of kept, and large ones of several heads are made for one head at a time, because there they cost more than
    the products; axes that vmap adds do not count as large. `jax.nn.dot_product_attention` serves the other platforms,
    and whoever wants its options; the platform is asked when the program is lowered.

    Args:
      query: [B, L, heads, D].
      key: [B, M, heads, D], as many heads as the query.
      value: [B, M, heads, D].
      mask: boolean, broadcastable to [B, heads, L, M] and of that rank, False where a query must not look; or None.

    >>> dot_product_attention(jnp.ones([1, 2, 3, 4]), *2 * [jnp.ones([1, 5, 3, 4])]).shape
    (1, 2, 3, 4)
    """
    return lax.platform_dependent(query, key, value, mask, cpu=_heads_first, default=_own)


def _own(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


@compiled_apart
def _heads_first(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns attention with the heads as the axis of a loop, or of a batch where all weights together are small."""
    (batch, length, heads, _), dtype = query.shape, query.dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    query, key, value = (jnp.moveaxis(a.astype(wide), 2, 0) for a in (query, key, value))
    if mask is not None:
        mask = jnp.moveaxis(jnp.broadcast_to(mask, (mask.shape[0], heads, *mask.shape[2:])), 1, 0)
    if heads > 1 and batch * length * key.shape[2] >= _LARGE:
        y = lax.map(jax.checkpoint(lambda given: _one_head(*given), prevent_cse=False), (query, key, value, mask))
    else:
        y = jax.vmap(_one_head)(query, key, value, mask)
    return jnp.moveaxis(y, 0, 2).astype(dtype)


def _one_head(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns attention of one head, [B, L, D]."""
    logits = jnp.einsum("bld,bmd->blm", query * query.shape[-1] ** -0.5, key)
    if mask is not None:  # finite: a row that may look nowhere looks everywhere, as with JAX's own
        logits = jnp.where(mask, logits, -0.7 * jnp.finfo(logits.dtype).max)
    return jnp.einsum("blm,bmd->bld", jax.nn.softmax(logits, axis=-1), value)
