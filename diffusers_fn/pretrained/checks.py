"""Checks that tensors, entries and parameters belong to one network; one message lists every mismatch."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.pretrained.entries import Entry
from diffusers_fn.pretrained.family import Constant, Family
from diffusers_fn.pretrained.safetensors_file import StoredTensor

__all__ = [
    "Shapes",
    "check_constant",
    "check_entries",
    "check_tensors",
    "is_floating",
    "raise_if_any",
    "shape_mismatches",
    "tensor_shapes",
]

Shapes = dict[str, tuple[int, ...]]


def check_entries(module: nn.Module, family: Family, shapes: Shapes) -> Sequence[Entry]:
    """Returns the family's entries; ValueError, with the differences, if they do not match the module's parameters."""
    entries = family.entries(module)
    paths = [entry.path for entry in entries]
    names = [name for entry in entries for name in entry.names]
    names += [constant.name for constant in family.constants(module)]
    raise_if_any(
        f"the family {family.name!r} does not describe this module",
        {
            "parameters without an entry": sorted(set(shapes) - set(paths)),
            "entries without a parameter": sorted(set(paths) - set(shapes)),
            "used twice": sorted(_repeated(paths) | _repeated(names)),
        },
    )
    return entries


def check_tensors(
    stored: Mapping[str, StoredTensor],
    entries: Sequence[Entry],
    constants: Sequence[Constant],
    shapes: Shapes,
    dtype: Any,
) -> None:
    """Raises ValueError unless the tensors match the entries and constants and can be converted to parameters."""
    expected = {name: shape for entry in entries for name, shape in tensor_shapes(entry, shapes[entry.path]).items()}
    fixed = {constant.name: np.shape(constant.value) for constant in constants if constant.value is not None}
    missing = {*expected, *(constant.name for constant in constants if constant.saved)} - set(stored)
    given = {name: value.shape for name, value in stored.items()}
    not_floating = [name for name in expected if name in stored and not is_floating(stored[name].dtype)]
    mixed, too_wide = [], []
    for entry in entries:
        dtypes = {np.dtype(dtype or stored[name].dtype) for name in entry.names if name in stored}
        if len(dtypes) > 1:
            mixed.append(f"{', '.join(entry.names)}: {', '.join(sorted(map(str, dtypes)))}")
        too_wide += [entry.path for kind in dtypes if jax.dtypes.canonicalize_dtype(kind) != kind]
    raise_if_any(
        "these tensors are not those of the network that the config describes",
        {
            "missing": sorted(missing),
            "unexpected": sorted(set(stored) - set(expected) - {constant.name for constant in constants}),
            "of the wrong shape": shape_mismatches(given, {**expected, **fixed}),
            "not of floating type": [f"{name}: {stored[name].dtype}" for name in not_floating],
            "of several dtypes in one parameter (pass dtype)": mixed,
            "of a 64-bit dtype, with jax_enable_x64 off (pass dtype)": too_wide if not not_floating else [],
        },
    )


def check_constant(constant: Constant, stored: StoredTensor) -> None:
    """Raises ValueError if a stored constant differs from its value by more than its precision allows."""
    expected, found = np.asarray(constant.value, np.float64), np.asarray(stored.read(), np.float64)
    stored.release()
    precision = float(jnp.finfo(stored.dtype).eps) if is_floating(stored.dtype) else 0.0
    allowed = max(1e-5, precision) * np.abs(expected).max(initial=0.0)
    error = np.abs(found - expected).max(initial=0.0)
    if not error <= allowed:  # also true if error is NaN
        raise ValueError(
            f"tensor {constant.name!r} is a constant of this network, but differs from its value by {error:.2g}"
        )


def tensor_shapes(entry: Entry, shape: tuple[int, ...]) -> Shapes:
    """Returns the shapes of an entry's tensors, computed with a broadcast zero, which takes no memory."""
    views = entry.to_torch(np.broadcast_to(np.zeros((), np.int8), shape))
    return {name: view.shape for name, view in zip(entry.names, views, strict=True)}


def is_floating(dtype: np.dtype) -> bool:
    """Returns whether a dtype is floating; bfloat16 and float8, which NumPy does not know, included."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def shape_mismatches(given: Shapes, expected: Shapes) -> list[str]:
    """Returns one phrase per shape that is not as expected."""
    pairs = ((name, given[name], expected[name]) for name in sorted(expected) if name in given)
    return [f"{name} {list(shape)} instead of {list(wanted)}" for name, shape, wanted in pairs if shape != wanted]


def raise_if_any(what: str, problems: Mapping[str, Sequence[str]], limit: int = 50) -> None:
    """Raises ValueError if there are any problems; the message lists them by kind, at most `limit` per kind."""
    lines = []
    for kind, names in problems.items():
        if names:
            more = f", and {len(names) - limit} more" if len(names) > limit else ""
            lines.append(f"{kind} ({len(names)}): {', '.join(map(str, names[:limit]))}{more}")
    if lines:
        raise ValueError(f"{what}\n  " + "\n  ".join(lines))


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name, count in collections.Counter(names).items() if count > 1}
