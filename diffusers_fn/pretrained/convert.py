"""Tensors in the reference's names and layouts <-> a module's parameters, strictly: all of them, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusers_fn.pretrained.entries import Entry
from diffusers_fn.pretrained.family import Constant, Family
from diffusers_fn.pretrained.safetensors_file import Stored

Shapes = dict[str, tuple[int, ...]]
Described = dict[str, tuple[tuple[int, ...], np.dtype]]


def from_torch(
    tensors: Mapping[str, Any],
    module: nn.Module,
    family: Family,
    *,
    sharding: Any = None,
    dtype: Any = None,
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """Returns the parameters of a module, to apply as {"params": params}, from a state dict of the reference.

    All names and shapes are checked before the first number is read. Parameters are then made one by one, each shard
    from a view of the tensors: beside the parameters themselves, no more than the largest of them is in memory.

    Args:
      tensors: {name: NumPy array, or `Stored`}.
      module, family: of which the tensors are.
      sharding: where the parameters go: None for the default device; one jax.sharding.Sharding for all; a tree of
        them like the parameters; or a function (path, shape) -> Sharding, with a path like "conv_in/kernel".
      dtype: to cast parameters to; None keeps what the tensors have.
      allow_nonfinite: accept NaN and infinite numbers, as a training run that diverged leaves them.

    Raises:
      ValueError: if dtype is no floating type, a tensor is missing, unexpected, of the wrong shape or not of floating
        type (the message lists them all), a constant is not what it must be, or a number is not finite.

    >>> from diffusers_fn.pretrained.entries import linear
    >>> net = nn.Sequential([nn.Dense(2)])
    >>> family = Family("net", (), lambda config: net, lambda module: {}, lambda module: linear("layers_0", "fc"),
    ...                 lambda module: (jnp.zeros([1, 3]),))
    >>> tensors = {"fc.weight": np.ones([2, 3], np.float32), "fc.bias": np.ones(2, np.float32)}
    >>> jax.tree.map(jnp.shape, from_torch(tensors, net, family))
    {'layers_0': {'bias': (2,), 'kernel': (3, 2)}}
    """
    if dtype is not None and not _is_floating(np.dtype(dtype)):
        raise ValueError(f"dtype must be None or a floating type; got {np.dtype(dtype)}")
    stored = _renamed({name: _stored(value) for name, value in tensors.items()}, family)
    shapes = parameter_shapes(module, family)
    entries = _check_entries(module, family, shapes)
    constants = family.constants(module)
    _check_tensors(stored, entries, constants, shapes, dtype)
    for constant in constants:
        if constant.name in stored and constant.value is not None:
            _check_constant(constant, stored[constant.name])
    place = _placement(sharding, shapes)

    params = {}
    for entry in entries:
        sources = [stored[name] for name in entry.names]
        wanted = np.dtype(dtype or sources[0].dtype)
        whole = entry.to_linen(*[source.read() for source in sources])
        leaf = _placed(whole, entry, wanted, place(entry.path), allow_nonfinite)
        params[entry.path] = jax.block_until_ready(leaf)  # so that copies on their way to a device do not pile up
        for source in sources:
            source.release()
    return traverse_util.unflatten_dict(params, sep="/")


def to_torch(params: Mapping[str, Any], module: nn.Module, family: Family) -> dict[str, np.ndarray]:
    """Returns the state dict of the reference, as NumPy arrays: the inverse of `from_torch`, bit by bit.

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
) -> tuple[Described, Iterator[tuple[str, np.ndarray]]]:
    """Returns ({name: (shape, dtype)}, the tensors one by one): what is to be written, and then what to write.

    Raises:
      ValueError: as `to_torch` says, before the first tensor.
    """
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    shapes = parameter_shapes(module, family)
    entries = _check_entries(module, family, shapes)
    _raise_if_any(
        f"these are not the parameters of this module of the family {family.name!r}",
        {
            "missing": sorted(set(shapes) - set(flat)),
            "unexpected": sorted(set(flat) - set(shapes)),
            "of the wrong shape": _different({path: np.shape(leaf) for path, leaf in flat.items()}, shapes),
        },
    )
    dtypes = {np.dtype(leaf.dtype) for leaf in flat.values()}
    constants = [constant for constant in family.constants(module) if constant.saved and constant.value is not None]
    arrays = {}
    for constant in constants:
        array = np.asarray(constant.value)
        # A reference casts its tables together with its parameters.
        one_dtype = len(dtypes) == 1 and jnp.issubdtype(array.dtype, jnp.floating)
        arrays[constant.name] = array.astype(next(iter(dtypes))) if one_dtype else array

    described: Described = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for entry in entries:
        for name, shape in _tensor_shapes(entry, shapes[entry.path]).items():
            described[name] = shape, np.dtype(flat[entry.path].dtype)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield from arrays.items()
        for entry in entries:
            yield from zip(entry.names, entry.to_torch(np.asarray(flat[entry.path])), strict=True)

    return described, tensors()


def parameter_shapes(module: nn.Module, family: Family) -> Shapes:
    """Returns {path: shape} of all parameters that a module makes; none is allocated.

    Raises:
      ValueError: if the module cannot make any, because its fields contradict each other.

    >>> family = Family("dense", (), lambda config: nn.Dense(2), lambda module: {}, lambda module: [],
    ...                 lambda module: (jax.ShapeDtypeStruct((1, 3), jnp.float32),))
    >>> parameter_shapes(nn.Dense(2), family)
    {'bias': (2,), 'kernel': (3, 2)}
    """
    try:
        variables = jax.eval_shape(module.init, jax.random.key(0), *family.inputs(module))
    except Exception as error:  # of any kind: fields that contradict each other fail wherever they meet
        raise ValueError(f"no network of the family {family.name!r} can have these fields: {error}") from error
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in sorted(flat.items())}


def _stored(value: Any) -> Stored:
    if isinstance(value, Stored):
        return value
    array = np.asarray(value)
    return Stored(array.shape, array.dtype, lambda: array)


def _renamed(stored: dict[str, Stored], family: Family) -> dict[str, Stored]:
    """Returns the tensors under the names that the family knows, which older checkpoints have otherwise."""
    found: dict[str, Stored] = {}
    for name, value in stored.items():
        known = family.rename(name)
        if known in found:
            raise ValueError(f"tensor {known!r} is there twice, under an old and a new name (one of them {name!r})")
        found[known] = value
    return found


def _check_entries(module: nn.Module, family: Family, shapes: Shapes) -> Sequence[Entry]:
    """Returns the family's entries, or says how they differ from the parameters that the module has."""
    entries = family.entries(module)
    paths = [entry.path for entry in entries]
    names = [name for entry in entries for name in entry.names]
    names += [constant.name for constant in family.constants(module)]
    _raise_if_any(
        f"the family {family.name!r} does not describe this module",
        {
            "parameters without an entry": sorted(set(shapes) - set(paths)),
            "entries without a parameter": sorted(set(paths) - set(shapes)),
            "used twice": sorted({key for keys in (paths, names) for key in keys if keys.count(key) > 1})
            if len(set(paths)) < len(paths) or len(set(names)) < len(names)
            else [],
        },
    )
    return entries


def _check_tensors(
    stored: Mapping[str, Stored], entries: Sequence[Entry], constants: Sequence[Constant], shapes: Shapes, dtype: Any
) -> None:
    """Raises ValueError unless the tensors are those of the entries and constants, and can become parameters."""
    expected = {name: shape for entry in entries for name, shape in _tensor_shapes(entry, shapes[entry.path]).items()}
    fixed = {constant.name: np.shape(constant.value) for constant in constants if constant.value is not None}
    missing = {*expected, *(constant.name for constant in constants if constant.saved)} - set(stored)
    given = {name: value.shape for name, value in stored.items()}
    not_floating = [name for name in expected if name in stored and not _is_floating(stored[name].dtype)]
    mixed, too_wide = [], []
    for entry in entries:
        dtypes = {np.dtype(dtype or stored[name].dtype) for name in entry.names if name in stored}
        if len(dtypes) > 1:
            mixed.append(f"{', '.join(entry.names)}: {', '.join(sorted(map(str, dtypes)))}")
        too_wide += [entry.path for kind in dtypes if jax.dtypes.canonicalize_dtype(kind) != kind]
    _raise_if_any(
        "these tensors are not those of the network that the config describes",
        {
            "missing": sorted(missing),
            "unexpected": sorted(set(stored) - set(expected) - {constant.name for constant in constants}),
            "of the wrong shape": _different(given, {**expected, **fixed}),
            "not of floating type": [f"{name}: {stored[name].dtype}" for name in not_floating],
            "of several dtypes, which one parameter cannot have (give a dtype)": mixed,
            "wider than JAX is set to (give a dtype, or enable jax_enable_x64)": too_wide if not not_floating else [],
        },
    )


def _check_constant(constant: Constant, stored: Stored) -> None:
    expected, found = np.asarray(constant.value, np.float64), np.asarray(stored.read(), np.float64)
    stored.release()
    precision = float(jnp.finfo(stored.dtype).eps) if _is_floating(stored.dtype) else 0.0
    allowed = max(1e-5, precision) * np.abs(expected).max(initial=0.0)
    error = np.abs(found - expected).max(initial=0.0)
    if not error <= allowed:  # NaN is neither
        raise ValueError(
            f"tensor {constant.name!r} is a constant of this network, but differs from its value by {error:.2g}"
        )


def _tensor_shapes(entry: Entry, shape: tuple[int, ...]) -> Shapes:
    """Returns the shapes of an entry's tensors; a broadcast zero has any shape and takes no memory."""
    views = entry.to_torch(np.broadcast_to(np.zeros((), np.int8), shape))
    return {name: view.shape for name, view in zip(entry.names, views, strict=True)}


def _placement(sharding: Any, shapes: Shapes) -> Callable[[str], jax.sharding.Sharding | None]:
    """Returns path -> sharding from all the forms that `from_torch` takes."""
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return lambda path: sharding
    if callable(sharding):
        return lambda path: sharding(path, shapes[path])
    flat = traverse_util.flatten_dict(dict(sharding), sep="/")
    _raise_if_any(
        "sharding must be a tree like the parameters",
        {"missing": sorted(set(shapes) - set(flat)), "unexpected": sorted(set(flat) - set(shapes))},
    )
    return lambda path: flat[path]


def _placed(
    whole: np.ndarray, entry: Entry, dtype: np.dtype, sharding: jax.sharding.Sharding | None, allow_nonfinite: bool
) -> jax.Array:
    """Returns a parameter on its devices. Every shard is a copy: nothing that happens to the file later is seen."""

    def shard(index: Any) -> np.ndarray:
        piece = np.array(whole[index], dtype, order="C")
        if not allow_nonfinite and not np.isfinite(piece).all():
            raise ValueError(
                f"{' and '.join(entry.names)} would give the parameter {entry.path!r} NaN or infinite numbers in "
                f"{dtype}; allow_nonfinite=True accepts them"
            )
        return piece

    if sharding is None:
        return jnp.asarray(shard(...))
    return jax.make_array_from_callback(whole.shape, sharding, shard)


def _is_floating(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _different(given: Shapes, expected: Shapes) -> list[str]:
    """Returns what to say of the shapes that are not as expected."""
    pairs = ((name, given[name], expected[name]) for name in sorted(expected) if name in given)
    return [f"{name} {list(shape)} instead of {list(wanted)}" for name, shape, wanted in pairs if shape != wanted]


def _raise_if_any(what: str, problems: Mapping[str, Sequence[str]], limit: int = 50) -> None:
    """Raises ValueError with all the problems that are not empty, at most `limit` of a kind."""
    lines = []
    for kind, names in problems.items():
        if names:
            more = f", and {len(names) - limit} more" if len(names) > limit else ""
            lines.append(f"{kind} ({len(names)}): {', '.join(map(str, names[:limit]))}{more}")
    if lines:
        raise ValueError(f"{what}\n  " + "\n  ".join(lines))
