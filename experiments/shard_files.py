"""Trees of arrays as shards in files: each process writes the shards that it holds, any process reads any part.

| file | content |
|---|---|
| `shards-00000.safetensors` | the shards of process 0; a whole array is named by its path, a part by path@origin |
| `shards-00000.json` | for each of them: name, array, origin, CRC-32 |

A JSON file holds its own checksum. No function here communicates, and none holds more than one shard in host memory.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusers_fn.pretrained.safetensors_file import StoredTensor, open_safetensors, write_safetensors
from experiments.files import write_atomically, write_text

__all__ = ["ShardReader", "is_written", "named_leaves", "read_sealed", "write_sealed", "write_shards"]


class _Shard(NamedTuple):
    """A part of an array, or all of it: the path of the array, the first element; `data` brings it to the host."""

    name: str
    array: str
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data: Callable[[], np.ndarray]


class _Stored(NamedTuple):
    """A shard in a file, and its checksum."""

    origin: tuple[int, ...]
    tensor: StoredTensor
    crc32: int


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path.

    >>> named_leaves({"a": [1, 2]})
    {'a/0': 1, 'a/1': 2}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two arrays of the tree have the same path: use no '/' in names")
    return named


def write_shards(folder: Path, tree: Any, check: Callable[[str, np.ndarray], None] = lambda name, data: None) -> None:
    """Writes the shards of a tree that this process holds, to the disk itself; the JSON file comes last.

    Of equal shards on several devices one is written. Arrays of the host are written by process 0.

    Args:
      folder: an existing folder, common to all processes.
      tree: of arrays.
      check: (path, shard) -> None, called before a shard is written; may raise.

    Raises:
      OSError: if a file cannot be written.
      ValueError: if the dtype of an array cannot be stored.
    """
    shards = list(_local_shards(tree))
    sums: dict[str, int] = {}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for shard in shards:
            data = shard.data()
            check(shard.array, data)
            sums[shard.name] = zlib.crc32(_bytes(data))
            yield shard.name, data

    specs = {shard.name: (shard.shape, shard.dtype) for shard in shards}
    weights, index = _files(folder, jax.process_index())
    write_atomically(weights, lambda file: write_safetensors(file, specs, tensors()), durable=True)
    held = [
        {"name": each.name, "array": each.array, "origin": each.origin, "crc32": sums[each.name]} for each in shards
    ]
    write_sealed(index, {"shards": held})


def is_written(folder: Path, num_processes: int) -> bool:
    """Returns whether all processes have written their shards."""
    return all(_files(folder, number)[1].exists() for number in range(num_processes))


class ShardReader:
    """Reads arrays, whole or in parts, from the files of all processes; each shard that is read is verified."""

    def __init__(self, folder: Path, num_processes: int):
        """Reads the names, shapes and checksums, but no array.

        Raises:
          OSError: if a file is missing.
          ValueError: if a file is damaged.
        """
        self._shards: dict[str, list[_Stored]] = {}
        self._verified: set[tuple[str, tuple[int, ...]]] = set()
        for number in range(num_processes):
            weights, index = _files(folder, number)
            tensors = open_safetensors(weights)
            for held in read_sealed(index)["shards"]:
                if held["name"] not in tensors:
                    raise ValueError(f"{weights.name} has no {held['name']}")
                stored = _Stored(tuple(held["origin"]), tensors[held["name"]], held["crc32"])
                self._shards.setdefault(held["array"], []).append(stored)

    @property
    def names(self) -> set[str]:
        """The paths of the arrays."""
        return set(self._shards)

    def read(self, name: str, like: Any) -> Any:
        """Returns an array: a jax.Array with the sharding of `like`, where this has one, else a NumPy array.

        Args:
          name: path of the array.
          like: array or jax.ShapeDtypeStruct.

        Raises:
          ValueError: if the array is missing, incomplete, of another shape or dtype, or does not match its checksum.
        """
        shape, dtype = tuple(like.shape), np.dtype(like.dtype)
        stored = self._shards.get(name, [])
        elements = sum(math.prod(each.tensor.shape) for each in stored)
        if not stored or elements != math.prod(shape) or any(each.tensor.dtype != dtype for each in stored):
            found = f"{elements} elements of {stored[0].tensor.dtype}" if stored else "nothing"
            raise ValueError(f"{name} must have shape {shape} and dtype {dtype}; the checkpoint has {found}")
        sharding = like.sharding if isinstance(like, jax.ShapeDtypeStruct) else None
        if sharding is None:
            return self._part(name, (slice(None),) * len(shape), shape, dtype)
        parts: dict[str, np.ndarray] = {}  # equal ones of several devices are read once

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            if str(index) not in parts:
                parts[str(index)] = self._part(name, index or (), shape, dtype)
            return parts[str(index)]

        return jax.make_array_from_callback(shape, sharding, part)

    def _part(self, name: str, index: Sequence[slice], shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        bounds = [each.indices(size)[:2] for each, size in zip(index, shape)]
        part = np.empty([stop - start for start, stop in bounds], dtype)
        filled = 0
        for stored in self._shards[name]:
            ends = [begin + size for begin, size in zip(stored.origin, stored.tensor.shape)]
            low = [max(start, begin) for (start, _), begin in zip(bounds, stored.origin, strict=True)]
            high = [min(stop, end) for (_, stop), end in zip(bounds, ends)]
            if any(first >= last for first, last in zip(low, high)):
                continue
            source = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, stored.origin))
            target = tuple(slice(a - start, b - start) for a, b, (start, _) in zip(low, high, bounds))
            part[target] = self._read(name, stored)[source]
            filled += part[target].size
            stored.tensor.release()
        if filled != part.size:
            raise ValueError(f"{name} is incomplete: {filled} of {part.size} elements of {list(index)} are there")
        return part

    def _read(self, name: str, stored: _Stored) -> np.ndarray:
        data = stored.tensor.read()
        if (name, stored.origin) not in self._verified:
            if zlib.crc32(_bytes(data)) != stored.crc32:
                raise ValueError(f"{name} at {stored.origin} does not match its stored checksum")
            self._verified.add((name, stored.origin))
        return data


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON with its own checksum, atomically."""
    text = json.dumps(content, sort_keys=True)
    write_text(
        path, json.dumps({"crc32": zlib.crc32(text.encode()), "content": json.loads(text)}, indent=1), durable=True
    )


def read_sealed(path: Path) -> Any:
    """Returns what `write_sealed` wrote; raises OSError or ValueError if the file is missing or damaged."""
    try:
        held = json.loads(path.read_bytes().decode())
        content = held["content"]
        intact = zlib.crc32(json.dumps(content, sort_keys=True).encode()) == held["crc32"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged ({type(error).__name__}: {error})") from error
    if not intact:
        raise ValueError(f"{path.name} does not match its stored checksum")
    return content


def _local_shards(tree: Any) -> Iterator[_Shard]:
    first = jax.process_index() == 0
    for name, leaf in named_leaves(tree).items():
        shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
        if not isinstance(leaf, jax.Array):
            if first:
                yield _Shard(name, name, (0,) * len(shape), shape, dtype, lambda leaf=leaf: leaf)  # type: ignore[misc]
            continue
        if leaf.is_fully_addressable and not first:  # each process has an equal array of its own
            continue
        for i, shard in enumerate(leaf.addressable_shards):
            if shard.replica_id == 0:
                origin, size = tuple(each.start or 0 for each in shard.index), shard.data.shape
                place = "" if size == shape else f"@{','.join(map(str, origin))}"
                data = lambda leaf=leaf, i=i: np.asarray(leaf.addressable_shards[i].data)  # noqa: E731
                yield _Shard(name + place, name, origin, size, dtype, data)


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"shards-{number:05d}.safetensors", folder / f"shards-{number:05d}.json"


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
