"""Placement of arrays on a device mesh: data, fully sharded data and tensor parallelism by rules, under jit.

A mesh has the axes data, fsdp and tensor. Batches are split over data and fsdp together. Parameters, and all that has
their shapes (gradients, optimizer state, averages), are split over fsdp, so that each device holds a part of them
(Zhao et al., "PyTorch FSDP" (2023), https://arxiv.org/abs/2304.11277, section 3), and over tensor, so that each device
computes with a part of them (Shoeybi et al., "Megatron-LM" (2019), https://arxiv.org/abs/1909.08053, section 3). XLA
inserts the communication.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["Rules", "batch_axes", "make_mesh", "place", "replicate", "shardings", "split_batch"]

_AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[str, PartitionSpec]]  # (regular expression on the end of a path, how the last axes are split)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with the axes ("data", "fsdp", "tensor"), of type Auto.

    Devices that are next to each other share tensor, then fsdp: what communicates most is closest.

    Args:
      data, fsdp, tensor: sizes of the axes; -1 for one of them is what is left of the devices.
      devices: in the order in which they fill the mesh; None for all of them, process by process.

    Raises:
      ValueError: unless the sizes multiply to the number of devices.

    >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    given = dict(zip(_AXES, (data, fsdp, tensor), strict=True))
    free = [name for name, size in given.items() if size == -1]
    known = math.prod(size for size in given.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in given.values()):
        raise ValueError(f"sizes of a mesh must be at least 1, and one of them may be -1; got {given}")
    if len(devices) % known or (not free and known != len(devices)):
        raise ValueError(
            f"a mesh of {given} does not fit {len(devices)} devices: the sizes must multiply to their number; -1 for "
            "one of them is what is left"
        )
    sizes = [len(devices) // known if size == -1 else size for size in given.values()]
    return Mesh(np.asarray(devices).reshape(sizes), _AXES, axis_types=(AxisType.Auto,) * len(_AXES))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes over which batches are split: data and fsdp, or the first axis of a mesh without them.

    >>> batch_axes(make_mesh(devices=jax.devices()[:1]))
    ('data', 'fsdp')
    """
    return tuple(name for name in ("data", "fsdp") if name in mesh.axis_names) or tuple(mesh.axis_names[:1])


def shardings(tree: Any, mesh: Mesh, rules: Rules = (), *, min_size: int = 2**14) -> Any:
    """Returns a tree of NamedSharding for arrays or their shapes: parameters, optimizer state, averages, or all.

    The first rule whose expression is found in a leaf's path, such as "opt_state/0/mu/block_3/mlp/dense_0/kernel",
    decides: its PartitionSpec is that of the leaf's last axes, and axes before them, such as the depth of blocks that
    are stacked for a scan, are not split. Names of axes that the mesh does not have, or whose size does not divide
    the array's, are left out; for fsdp the largest axis that it divides is taken instead. Arrays that no rule names
    are split over fsdp alone, on the largest axis that it divides. Over fsdp no array is split that has fewer than
    `min_size` entries: gathering costs more than keeping it.

    Args:
      tree: of arrays or jax.ShapeDtypeStruct.
      mesh: of the devices.
      rules: such as `RULES["dit"]`; the order matters.
      min_size: the least number of entries of an array that is split over fsdp.

    >>> mesh = make_mesh(devices=jax.devices()[:1])
    >>> rules = [("kernel$", PartitionSpec("fsdp", "tensor"))]
    >>> tuple(shardings({"kernel": jax.ShapeDtypeStruct((7, 256, 128), "float32")}, mesh, rules)["kernel"].spec)
    (None, 'fsdp', 'tensor')
    """
    compiled = [(re.compile(pattern), spec) for pattern, spec in rules]

    def sharding_of(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = tuple(leaf.shape)
        spec = next((spec for pattern, spec in compiled if pattern.search(name)), None)
        return NamedSharding(mesh, _fitted(shape, spec, mesh, math.prod(shape) >= min_size))

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every array replicated on all devices of the mesh, for keys and small arrays.

    With several processes each of them passes the same values.

    >>> mesh = Mesh(jax.devices()[:1], ("batch",))
    >>> replicate(jax.numpy.ones(3), mesh).sharding.is_fully_replicated
    True
    """
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _placed(leaf, whole, _from_whole), tree)


def place(tree: Any, where: Any) -> Any:
    """Returns the tree with every array at its sharding, for parameters and states that are whole on the host.

    With several processes each of them passes the same values, and its devices get their parts.

    Args:
      tree: of arrays.
      where: a tree of shardings like it, of `shardings`.

    >>> mesh = make_mesh(devices=jax.devices()[:1])
    >>> tree = {"a": np.ones(3)}
    >>> place(tree, shardings(tree, mesh))["a"].sharding.mesh == mesh
    True
    """
    return jax.tree.map(lambda leaf, sharding: _placed(leaf, sharding, _from_whole), tree, where)


def split_batch(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Returns the tree with one axis of every array split over the axes data and fsdp, for batches and keys.

    A mesh without these axes splits over its first. With several processes each passes its own rows, in the order of
    the processes, and gets the global array, whose axis has the rows of all of them.

    Args:
      tree: arrays whose examples lie along `axis`.
      mesh: the device mesh.
      axis: the batch axis of the arrays, at least 0; 1 for batches stacked for a scan, [steps, B, ...].

    Raises:
      ValueError: if axis is negative, or an array has no such axis or one that the number of devices does not divide.

    >>> mesh = Mesh(jax.devices()[:1], ("batch",))
    >>> split_batch(jax.numpy.ones(3), mesh).sharding.spec[0]
    'batch'
    """
    if axis < 0:
        raise ValueError(f"axis must be at least 0; got {axis}")
    names = batch_axes(mesh)
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, names if len(names) > 1 else names[0]))
    over = math.prod(mesh.shape[name] for name in names) // _num_parts(mesh, names)
    for leaf in jax.tree.leaves(tree):
        if leaf.ndim <= axis or leaf.shape[axis] % over:
            raise ValueError(f"axis {axis} of a batch of shape {leaf.shape} cannot be split evenly over {over} devices")
    return jax.tree.map(lambda leaf: _placed(leaf, sharding, jax.make_array_from_process_local_data), tree)


def _num_parts(mesh: Mesh, names: tuple[str, ...]) -> int:
    """Returns into how many parts the processes divide a batch: those that share the same rows pass them each."""
    if not mesh.is_multi_process:
        return 1
    order = [*names, *(name for name in mesh.axis_names if name not in names)]
    grid = mesh.devices.transpose([mesh.axis_names.index(name) for name in order])
    rows = grid.reshape(math.prod(mesh.shape[name] for name in names), -1)
    return len({frozenset(device.process_index for device in row) for row in rows})


def _placed(leaf: Any, sharding: NamedSharding, assemble: Callable[[NamedSharding, np.ndarray], jax.Array]) -> Any:
    """Returns an array on a mesh: of one process by device_put, else assembled by each process from its values."""
    if not sharding.mesh.is_multi_process or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _placed(jax.random.key_data(leaf), sharding, assemble)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return assemble(sharding, np.asarray(leaf))


def _from_whole(sharding: NamedSharding, whole: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _fitted(shape: tuple[int, ...], spec: PartitionSpec | None, mesh: Mesh, large: bool) -> PartitionSpec:
    """Returns a rule's spec as far as mesh and shape allow; where its own axis is not divisible, fsdp takes another."""
    given = [None] * len(shape) if spec is None else [*[None] * (len(shape) - len(spec)), *spec][-len(shape) :]
    found: list[Any] = [
        name if name in mesh.axis_names and size % mesh.shape[name] == 0 else None
        for name, size in zip(given, shape, strict=True)
    ]
    if not large:
        found = [None if name == "fsdp" else name for name in found]
    elif "fsdp" not in found and (spec is None or "fsdp" in spec) and "fsdp" in mesh.axis_names:
        start = 0 if spec is None else len(shape) - len(spec)
        free = [i for i in range(start, len(shape)) if found[i] is None and shape[i] % mesh.shape["fsdp"] == 0]
        if free:
            found[max(free, key=lambda i: (shape[i], i))] = "fsdp"
    return PartitionSpec(*found)
