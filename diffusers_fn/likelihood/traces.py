"""The trace of a Jacobian from Jacobian-vector products, exact or estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusers_fn import _random
from diffusers_fn._arrays import split_like

__all__ = ["Jvp", "Trace", "check_at_once", "exact_trace", "hutchinson"]

Jvp = Callable[[jax.Array], jax.Array]


class Trace(NamedTuple):
    """A method to compute the trace of J, the Jacobian of a function of x [B, ...], for each example.

    Attributes:
      draw: (key, x) -> random vectors, the same at every point of a path.
      estimate: (jvp, vectors, x) -> [P, B], one estimate of the trace per vector; jvp maps v [B, ...] to J v.
      exact: True if the estimate is the trace itself, which needs no key.
    """

    draw: Callable[[Any, jax.Array], Any]
    estimate: Callable[[Jvp, Any, jax.Array], jax.Array]
    exact: bool


def exact_trace(at_once: int | None = None) -> Trace:
    """Returns the method for the exact trace, the sum of D Jacobian-vector products for D entries per example.

    It costs about 1 + D network evaluations, so it suits data of few dimensions.

    Args:
      at_once: the number of entries that are computed together, which sets the memory; None for all.

    Raises:
      ValueError: if at_once is below 1.

    >>> x = jnp.ones((1, 3))
    >>> exact_trace().estimate(lambda v: 2.0 * v, None, x)
    Array([[6.]], dtype=float32)
    """
    check_at_once(at_once)

    def estimate(jvp: Jvp, vectors: Any, x: jax.Array) -> jax.Array:
        size = math.prod(x.shape[1:])

        def entry(i: jax.Array) -> jax.Array:
            unit = jnp.broadcast_to(jax.nn.one_hot(i, size, dtype=x.dtype).reshape(1, *x.shape[1:]), x.shape)
            return _dot(unit, jvp(split_like(unit, x)))

        return jnp.sum(_mapped(entry, jnp.arange(size), at_once), axis=0, keepdims=True)

    return Trace(lambda key, x: None, estimate, exact=True)


def hutchinson(
    num_probes: int = 1, noise: Callable[..., jax.Array] = jax.random.rademacher, at_once: int | None = None
) -> Trace:
    """Returns the method that estimates the trace by the mean of v . J v over random v of mean 0 and covariance 1.

    The estimate is unbiased. Hutchinson 1990; Grathwohl et al., "FFJORD: Free-form Continuous Dynamics for Scalable
    Reversible Generative Models", 2019, https://arxiv.org/abs/1810.01367, eq. 7-8. It costs one network evaluation and
    num_probes Jacobian-vector products.

    Args:
      num_probes: the number of vectors; the standard error is proportional to 1 / sqrt(num_probes), and unknown for
        one.
      noise: jax.random.rademacher (signs, exact for a diagonal J) or jax.random.normal.
      at_once: the number of vectors that are computed together, which sets the memory; None for all.

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
            raise ValueError("hutchinson draws random vectors: pass a key (jax.random.key(seed)), or use exact_trace()")
        probe = lambda k: split_like(_random.draw(noise, k, x.shape, x.dtype), x)  # noqa: E731
        return jax.vmap(probe)(_random.split(key, num_probes))

    def estimate(jvp: Jvp, vectors: jax.Array, x: jax.Array) -> jax.Array:
        return _mapped(lambda v: _dot(v, jvp(v)), vectors, at_once)

    return Trace(draw, estimate, exact=False)


def check_at_once(at_once: int | None) -> None:
    """Raises ValueError unless at_once is None or an integer of at least 1.

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
