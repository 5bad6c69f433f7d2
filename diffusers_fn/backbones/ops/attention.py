"""Dot-product attention: JAX's own on accelerators, matrix products of a moderate size on a CPU."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffusers_fn.backbones.ops.apart import compiled_apart
from diffusers_fn.backbones.ops.platforms import by_platform, by_size

__all__ = ["dot_product_attention"]

_LARGE = 1 << 23  # bound on the weights of several heads in memory at a time


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Returns softmax(query key^T / sqrt(D) + bias) value [B, L, heads, D], for a query of that shape.

    Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, equation 1. The softmax is
    computed in float32 (on a CPU, or wider). On a CPU the [B, heads, L, M] weights are computed again in the backward
    pass instead of kept, and if they are large, for one head or a few heads at a time; axes added by vmap do not count.
    Other platforms use `jax.nn.dot_product_attention`, which also has further options. The platform is selected when
    the program is lowered.

    Args:
      query: [B, L, heads, D].
      key: [B, M, heads, D], as many heads as the query.
      value: [B, M, heads, D].
      mask: boolean, broadcastable to [B, heads, L, M] and of that rank, False where a query must not attend; or None.
      bias: floating, broadcastable to [B, heads, L, M] and of that rank, such as a relative position bias; or None.

    >>> dot_product_attention(jnp.ones([1, 2, 3, 4]), *2 * [jnp.ones([1, 5, 3, 4])]).shape
    (1, 2, 3, 4)
    """
    return by_platform(query, key, value, mask, bias, cpu=_heads_apart, default=_own, like=query, kept=4)


def _own(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, bias, mask)


def _heads_apart(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """Returns attention by products over examples and heads together, in groups of heads of bounded size."""
    batch, length, heads, _ = query.shape
    most = max(_LARGE // (length * key.shape[1]), 1)  # examples times heads in a group
    ways: list[Any] = [functools.partial(_in_groups, n) for n in range(1, heads + 1) if heads % n == 0]
    chosen = ways[0]
    for way in ways[1:]:
        chosen = functools.partial(by_size, batch, most // way.args[0] + 1, large=chosen, small=way)
    return chosen(query, key, value, mask, bias)


def _in_groups(
    group: int,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """Returns attention by products over all examples and `group` heads together."""
    (batch, length, heads, width), dtype = query.shape, query.dtype

    def split(a: jax.Array) -> jax.Array:
        """[B, L, heads, D] -> [heads / group, B group, L, D]."""
        a = a.reshape(*a.shape[:2], heads // group, group, a.shape[-1]).transpose(2, 0, 3, 1, 4)
        return a.reshape(heads // group, batch * group, *a.shape[-2:])

    def grouped(a: jax.Array | None) -> jax.Array | None:
        """[B or 1, heads or 1, L or 1, M or 1] -> [heads / group, B or 1, group, L or 1, M or 1]."""
        if a is None:
            return None
        a = jnp.broadcast_to(a, (a.shape[0], heads, *a.shape[2:]))
        return jnp.moveaxis(a.reshape(a.shape[0], heads // group, group, *a.shape[2:]), 1, 0)

    wide = jnp.promote_types(dtype, jnp.float32)
    bias = None if bias is None else bias.astype(wide)
    y = _all_groups(*(split(a.astype(wide)) for a in (query, key, value)), grouped(mask), grouped(bias))
    y = y.reshape(heads // group, batch, group, length, width).transpose(1, 3, 0, 2, 4)
    return y.reshape(batch, length, heads, width).astype(dtype)


@compiled_apart
def _all_groups(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """Returns attention of groups of heads, [groups, N, L, D], group by group."""
    given = (query, key, value, mask, bias)
    if query.shape[0] == 1:
        return _attention(*jax.tree.map(lambda a: a[0], given))[None]
    return lax.map(jax.checkpoint(lambda given: _attention(*given), prevent_cse=False), given)


def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """Returns attention [N, L, D], for N = B group examples and heads, with a mask and a bias for [B, group, L, M]."""
    logits = jnp.einsum("nld,nmd->nlm", query * query.shape[-1] ** -0.5, key)
    if bias is not None:
        logits = (logits.reshape(-1, bias.shape[1], *logits.shape[1:]) + bias).reshape(logits.shape)
    if mask is not None:  # finite, as in JAX: a query that may attend nowhere attends everywhere
        apart = logits.reshape(-1, mask.shape[1], *logits.shape[1:])
        logits = jnp.where(mask, apart, -0.7 * jnp.finfo(logits.dtype).max).reshape(logits.shape)
    return jnp.einsum("nlm,nmd->nld", jax.nn.softmax(logits, axis=-1), value)
