"""Converts tensors in the reference's names and layouts to a module's parameters and back; each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from diffusers_fn.pretrained.checks import (
    Shapes,
    check_constant,
    check_entries,
    check_tensors,
    is_floating,
    raise_if_any,
    shape_mismatches,
    tensor_shapes,
)
from diffusers_fn.pretrained.entries import Entry
from diffusers_fn.pretrained.family import Family
from diffusers_fn.pretrained.safetensors_file import StoredTensor

__all__ = ["Placement", "TensorSpecs", "describe_tensors", "from_torch", "parameter_shapes", "to_torch"]

# Where parameters go: everywhere the same, a tree of shardings, or a function (path, shape) -> sharding.
Placement = jax.sharding.Sharding | Mapping[str, Any] | Callable[[str, tuple[int, ...]], jax.sharding.Sharding] | None
TensorSpecs = dict[str, tuple[tuple[int, ...], np.dtype]]


def from_torch(
    tensors: Mapping[str, Any],
    module: nn.Module,
    family: Family,
    *,
    sharding: Placement = None,
    dtype: DTypeLike | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """Returns the parameters of a module, to apply as {"params": params}, from a state dict of the reference.

    All names and shapes are checked before any value is read. Parameters are then made one by one, each shard
    from a view of the tensors: memory beyond the parameters themselves is bounded by the largest of them.

    Args:
      tensors: {name: NumPy array, or `StoredTensor`}.
      module, family: the module that the tensors belong to, and its family.
      sharding: where the parameters go: None for the default device; one jax.sharding.Sharding for all; a tree of
        them like the parameters; or a function (path, shape) -> Sharding, with a path like "conv_in/kernel".
      dtype: the dtype of the parameters; None keeps that of the tensors.
      allow_nonfinite: accept NaN and infinite values.

    Raises:
      ValueError: if dtype is not floating; if tensors are missing, unexpected, of the wrong shape or not floating
        (the message lists all of them); if a constant has another value, or a value is not finite.

    >>> from diffusers_fn.pretrained.entries import linear
    >>> net = nn.Sequential([nn.Dense(2)])
    >>> family = Family("net", (), lambda config: net, lambda module: {}, lambda module: linear("layers_0", "fc"),
    ...                 lambda module: (jnp.zeros([1, 3]),))
    >>> tensors = {"fc.weight": np.ones([2, 3], np.float32), "fc.bias": np.ones(2, np.float32)}
    >>> jax.tree.map(jnp.shape, from_torch(tensors, net, family))
    {'layers_0': {'bias': (2,), 'kernel': (3, 2)}}
    """
    if dtype is not None and not is_floating(np.dtype(dtype)):
        raise ValueError(f"dtype must be None or a floating type; got {np.dtype(dtype)}")
    stored = _renamed({name: _as_stored(value) for name, value in tensors.items()}, family)
    shapes = parameter_shapes(module, family)
    entries = check_entries(module, family, shapes)
    constants = family.constants(module)
    check_tensors(stored, entries, constants, shapes, dtype)
    for constant in constants:
        if constant.name in stored and constant.value is not None:
            check_constant(constant, stored[constant.name])
    sharding_of = _sharding_by_path(sharding, shapes)

    params = {}
    for entry in entries:
        sources = [stored[name] for name in entry.names]
        wanted = np.dtype(dtype or sources[0].dtype)
        whole = entry.to_linen(*[source.read() for source in sources])
        leaf = _place(whole, entry, wanted, sharding_of(entry.path), allow_nonfinite)
        params[entry.path] = jax.block_until_ready(leaf)  # so that pending copies to a device do not pile up
        for source in sources:
            source.release()
    return traverse_util.unflatten_dict(params, sep="/")


def to_torch(params: Mapping[str, Any], module: nn.Module, family: Family) -> dict[str, np.ndarray]:
    """Returns the state dict of the reference as NumPy arrays: the inverse of `from_torch`, bit for bit.

    Raises:
      ValueError: if the parameters are not those of the module; the message lists the differences.

    >>> from diffusers_fn.pretrained.entries import linear
    >>> net = nn.Sequential([nn.Dense(2)])
    >>> family = Family("net", (), lambda config: net, lambda module: {}, lambda module: linear("layers_0", "fc"),
    ...                 lambda module: (jnp.zeros([1, 3]),))
    >>> params = {"layers_0": {"kernel": jnp.ones([3, 2]), "bias": jnp.ones([2])}}
    >>> {name: array.shape for name, array in to_torch(params, net, family).items()}
    {'fc.weight': (2, 3), 'fc.bias': (2,)}
    """
    _, tensors = describe_tensors(params, module, family)
    return {name: np.asarray(array, order="C") for name, array in tensors}


def describe_tensors(
    params: Mapping[str, Any], module: nn.Module, family: Family
) -> tuple[TensorSpecs, Iterator[tuple[str, np.ndarray]]]:
    """Returns ({name: (shape, dtype)}, an iterator over (name, tensor)) of the reference's state dict.

    Raises:
      ValueError: as `to_torch`, before the first tensor.
    """
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    shapes = parameter_shapes(module, family)
    entries = check_entries(module, family, shapes)
    raise_if_any(
        f"these are not the parameters of this module of the family {family.name!r}",
        {
            "missing": sorted(set(shapes) - set(flat)),
            "unexpected": sorted(set(flat) - set(shapes)),
            "of the wrong shape": shape_mismatches({path: np.shape(leaf) for path, leaf in flat.items()}, shapes),
        },
    )
    dtypes = {np.dtype(leaf.dtype) for leaf in flat.values()}
    constants = [constant for constant in family.constants(module) if constant.saved and constant.value is not None]
    arrays = {}
    for constant in constants:
        array = np.asarray(constant.value)
        # The reference casts its tables together with its parameters.
        one_dtype = len(dtypes) == 1 and is_floating(array.dtype)
        arrays[constant.name] = array.astype(next(iter(dtypes))) if one_dtype else array

    specs: TensorSpecs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for entry in entries:
        for name, shape in tensor_shapes(entry, shapes[entry.path]).items():
            specs[name] = shape, np.dtype(flat[entry.path].dtype)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield from arrays.items()
        for entry in entries:
            yield from zip(entry.names, entry.to_torch(np.asarray(flat[entry.path])), strict=True)

    return specs, tensors()


def parameter_shapes(module: nn.Module, family: Family) -> Shapes:
    """Returns {path: shape} of all parameters of a module, without allocating them.

    Raises:
      ValueError: if `init` fails, because the module's fields contradict each other.

    >>> family = Family("dense", (), lambda config: nn.Dense(2), lambda module: {}, lambda module: [],
    ...                 lambda module: (jax.ShapeDtypeStruct((1, 3), jnp.float32),))
    >>> parameter_shapes(nn.Dense(2), family)
    {'bias': (2,), 'kernel': (3, 2)}
    """
    try:
        variables = jax.eval_shape(module.init, jax.random.key(0), *family.inputs(module))
    except Exception as error:  # of any type: contradictory fields fail wherever they meet
        raise ValueError(f"no network of the family {family.name!r} can have these fields: {error}") from error
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in sorted(flat.items())}


def _as_stored(value: Any) -> StoredTensor:
    if isinstance(value, StoredTensor):
        return value
    array = np.asarray(value)
    return StoredTensor(array.shape, array.dtype, lambda: array)


def _renamed(stored: dict[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    """Returns the tensors under their current names, which older checkpoints may not have."""
    found: dict[str, StoredTensor] = {}
    for name, value in stored.items():
        known = family.rename(name)
        if known in found:
            raise ValueError(f"tensor {known!r} occurs twice, under an old and a new name (one of them is {name!r})")
        found[known] = value
    return found


def _sharding_by_path(sharding: Placement, shapes: Shapes) -> Callable[[str], jax.sharding.Sharding | None]:
    """Returns a function path -> sharding from any form of `from_torch`'s argument."""
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return lambda path: sharding
    if callable(sharding):
        return lambda path: sharding(path, shapes[path])
    flat = traverse_util.flatten_dict(dict(sharding), sep="/")
    raise_if_any(
        "sharding must be a tree like the parameters",
        {"missing": sorted(set(shapes) - set(flat)), "unexpected": sorted(set(flat) - set(shapes))},
    )
    return lambda path: flat[path]


def _place(
    whole: np.ndarray, entry: Entry, dtype: np.dtype, sharding: jax.sharding.Sharding | None, allow_nonfinite: bool
) -> jax.Array:
    """Returns a parameter on its devices. Every shard is a copy, so later changes of the file have no effect."""

    def shard(index: Any) -> np.ndarray:
        piece = np.array(whole[index], dtype, order="C")
        if not allow_nonfinite and not np.isfinite(piece).all():
            raise ValueError(
                f"{' and '.join(entry.names)}: the parameter {entry.path!r} has NaN or infinite values in "
                f"{dtype}; pass allow_nonfinite=True to accept them"
            )
        return piece

    if sharding is None:
        return jnp.asarray(shard(...))
    return jax.make_array_from_callback(whole.shape, sharding, shard)
