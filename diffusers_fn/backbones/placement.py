"""Where the activations of networks lie on a mesh of devices."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["batches_split"]


@contextlib.contextmanager
def batches_split(mesh: Mesh, axes: Sequence[str] = ("data", "fsdp")) -> Iterator[None]:
    """A context for tracing in which the outputs of all linen modules stay split by examples over axes of a mesh.

    Parameters that are split over fsdp, too, are then gathered for each layer. Without it XLA may compute with a part
    of a layer's input features on each device and sum the results, which is more communication. The constraint is on
    the first axis alone, where the devices divide it; the values are unchanged.

    Args:
      mesh: with axes of type Auto.
      axes: over which the batch is split.

    >>> mesh = Mesh(jax.devices()[:1], ("data",))
    >>> with batches_split(mesh, ("data",)):
    ...     nn.Dense(3).init_with_output(jax.random.key(0), jax.numpy.ones((2, 4)))[0].shape
    (2, 3)
    """
    over = math.prod(mesh.shape[name] for name in axes)

    def constrained(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.ndim < 2 or leaf.shape[0] % over:
            return leaf
        free = [PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(tuple(axes), *free)))

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        return constrained(out) if context.method_name == "__call__" else out

    with nn.intercept_methods(interceptor):
        yield
