"""Floating-point operations of a program, counted in its jaxpr, and the peak of known devices.

XLA's cost analysis counts the body of a loop once, so that steps in a scan, or layers in one, are missing. In a jaxpr
the number of iterations of a scan is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

__all__ = ["PEAKS", "count", "count_in", "peak"]

# FLOP/s of dense matrix products in bfloat16, from the vendors' data sheets; the longest name that a device's kind
# starts with. H100 and H200: the SXM modules.
PEAKS = {
    "TPU v3": 123e12 / 2,  # a device is a core
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak(kind: str) -> float | None:
    """Returns the largest FLOP/s of a device by its `device_kind`; None if it is not known.

    >>> peak("NVIDIA H100 80GB HBM3"), peak("cpu")
    (989000000000000.0, None)
    """
    known = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(known, key=len)] if known else None


def count(function: Any, *args: Any) -> float:
    """Returns the FLOPs of one call of a function from jax.jit, on all devices together: those of `count_in`.

    >>> import jax.numpy as jnp
    >>> count(jax.jit(lambda x: x @ x), jnp.ones((3, 3)))
    54.0
    """
    return count_in(function.trace(*args).jaxpr)


def count_in(jaxpr: Any) -> float:
    """Returns the FLOPs of the matrix products and convolutions of a jaxpr, two for a multiplication and an addition.

    As is usual for the utilisation of a device, all else is left out: it is little in a network. Loops of known length
    count with it, those of unknown length once; of the branches of a condition (also of the platform) the one with
    the most counts; operations that are recomputed in the backward pass count again. Kernels of Pallas and calls of
    vendors' libraries, such as cuDNN's attention, are not seen.
    """
    return sum(_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name in _PRODUCTS:
        return _PRODUCTS[name](equation)
    inner = [count_in(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner, default=0.0)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":  # the shapes inside are those of one shard
        mesh, axes = params["mesh"], params.get("manual_axes", params["mesh"].axis_names)
        times = math.prod(mesh.shape[axis] for axis in axes)
    return times * sum(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among the parameters of an equation."""
    for leaf in jax.tree.leaves(list(params.values()), is_leaf=lambda each: hasattr(each, "eqns")):
        if hasattr(leaf, "eqns"):
            yield leaf


def _dot_general(equation: Any) -> float:
    """2 (elements of the result) (elements of the contracted axes)."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _conv(equation: Any) -> float:
    """2 (elements of the result) (elements of the kernel per output channel), without the zeros between dilated x."""
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
    return 2.0 * equation.outvars[0].aval.size * taps / math.prod(equation.params["lhs_dilation"])


_PRODUCTS: dict[str, Callable[[Any], float]] = {"dot_general": _dot_general, "conv_general_dilated": _conv}
