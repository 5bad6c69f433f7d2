"""The trace of a Jacobian, exact or estimated, from its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusers_fn import _random

Jvp = Callable[[jax.Array], jax.Array]


class Trace(NamedTuple):
    """A way to the trace of J, the Jacobian of a function of x [B, ...], example by example.

    Attributes:
      draw: (key, x) -> the random vectors, which stay the same along a path.
      estimate: (jvp, vectors, x) -> [P, B], one estimate of the trace a vector; jvp: [B, ...] -> J times it.
      exact: whether the estimates are the trace itself; no key is needed then.
    """

    draw: Callable[[Any, jax.Array], Any]
    estimate: Callable[[Jvp, Any, jax.Array], jax.Array]
    exact: bool


def exact_trace(at_once: int | None = None) -> Trace:
    """Returns the exact trace: the sum over the D entries of an example, each by one product with J.

    For few dimensions: the cost is that of 1 + D evaluations.

    Args:
      at_once: how many entries together; memory grows with it. None for all.

    >>> x = jnp.ones((1, 3))
    >>> exact_trace().estimate(lambda v: 2.0 * v, None, x)
    Array([[6.]], dtype=float32)
    """
    check_at_once(at_once)

    def estimate(jvp: Jvp, vectors: Any, x: jax.Array) -> jax.Array:
        size = math.prod(x.shape[1:])

        def entry(i: jax.Array) -> jax.Array:
            unit = jnp.broadcast_to(jax.nn.one_hot(i, size, dtype=x.dtype).reshape(1, *x.shape[1:]), x.shape)
            return _dot(unit, jvp(unit))

        return jnp.sum(_mapped(entry, jnp.arange(size), at_once), axis=0, keepdims=True)

    return Trace(lambda key, x: None, estimate, exact=True)


def hutchinson(
    num_probes: int = 1, noise: Callable[..., jax.Array] = jax.random.rademacher, at_once: int | None = None
) -> Trace:
    """Returns the unbiased estimate E[v . J v] of the trace, v of mean 0 and covariance 1.

    Hutchinson 1990; Grathwohl et al., "FFJORD", 2019, https://arxiv.org/abs/1810.01367, eq. 7-8. The cost of one
    evaluation and num_probes products with J.

    Args:
      num_probes: how many vectors; the standard error falls with its root, and is unknown with one.
      noise: jax.random.rademacher (signs; exact for a diagonal J) or jax.random.normal.
      at_once: how many vectors together; memory grows with it. None for all.

    Raises:
      ValueError: if num_probes or at_once is below 1.

    >>> x = jnp.ones((1, 3))
    >>> trace = hutchinson(num_probes=2)
    >>> trace.estimate(lambda v: 2.0 * v, trace.draw(jax.random.key(0), x), x)
    Array([[6.],
           [6.]], dtype=float32)
    """
    if num_probes != int(num_probes) or num_probes < 1:
        raise ValueError(f"num_probes must be an integer of at least 1; got {num_probes}")
    check_at_once(at_once)

    def draw(key: jax.Array, x: jax.Array) -> jax.Array:
        if key is None:
            raise ValueError("this trace draws random vectors: pass a key (jax.random.key(seed)), or use exact_trace()")
        return jax.vmap(lambda k: _random.draw(noise, k, x.shape, x.dtype))(_random.split(key, num_probes))

    def estimate(jvp: Jvp, vectors: jax.Array, x: jax.Array) -> jax.Array:
        return _mapped(lambda v: _dot(v, jvp(v)), vectors, at_once)

    return Trace(draw, estimate, exact=False)


def check_at_once(at_once: int | None) -> None:
    """Raises ValueError unless at_once is None or at least 1.

    >>> check_at_once(8)
    """
    if at_once is not None and (at_once != int(at_once) or at_once < 1):
        raise ValueError(f"at_once must be None or an integer of at least 1; got {at_once}")


def _mapped(function: Callable[[jax.Array], jax.Array], values: jax.Array, at_once: int | None) -> jax.Array:
    if at_once is None or at_once >= values.shape[0]:
        return jax.vmap(function)(values)
    return jax.lax.map(function, values, batch_size=at_once)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)
