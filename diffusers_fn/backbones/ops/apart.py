"""Functions that XLA compiles separately from the code around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

__all__ = ["compiled_apart"]


def compiled_apart(fun: Callable[..., Any], *, static_argnames: Sequence[str] = ()) -> Callable[..., Any]:
    """Returns fun under `jax.jit` and `jax.checkpoint`, as a call that XLA does not inline into a larger program.

    On a CPU, XLA merges recomputed operations of the backward pass with the same operations of the forward pass, so
    that their results are kept after all and `jax.checkpoint` saves no memory (with JAX 0.10; with 0.12 it does). It
    also delays sums of gradients, and keeps their terms until then. Neither happens across a call. On accelerators
    the call would only prevent fusion.

    Args:
      fun: maps arrays to an array.
      static_argnames: as for `jax.jit`; arguments given by name must be static.

    >>> double = compiled_apart(lambda x: 2 * x)
    >>> compiled = jax.jit(lambda x: double(double(x))).lower(1.0).compile().as_text()
    >>> compiled.count(" call("), double(1.0).item()
    (2, 2.0)
    """

    @functools.wraps(fun)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="true"):  # calls inside fun would inherit its metadata
            return jax.checkpoint(functools.partial(fun, **kwargs), prevent_cse=False)(*args)

    compiled = jax.jit(inside, static_argnames=static_argnames)

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args, **kwargs)

    return call
