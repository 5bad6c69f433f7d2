"""Reads torch's files (.pt, .pth, .ckpt, .bin) without torch and without running any code from them.

A file is a zip archive of a pickle, which names its tensors' storages, and of the storages' bytes; before torch 1.6 it
was a sequence of pickles followed by the bytes (torch/serialization.py in https://github.com/pytorch/pytorch). A pickle
can call any function that it names. Here a name means one of a few functions of this module, which describe tensors, or
data that is skipped; every other name is refused before anything is called.
"""

from __future__ import annotations

import collections
import mmap
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusers_fn.pretrained.safetensors_file import StoredTensor

__all__ = ["open_torch_file"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "Double": np.dtype("<f8"),
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(jnp.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
    "ComplexDouble": np.dtype("<c16"),
    "ComplexFloat": np.dtype("<c8"),
    "Untyped": np.dtype("u1"),
}
_NAMED_DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(jnp.bfloat16),
    "float8_e4m3fn": np.dtype(jnp.float8_e4m3fn),
    "float8_e5m2": np.dtype(jnp.float8_e5m2),
    **{f"{kind}{bits}": np.dtype(f"<{kind[0]}{bits // 8}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "bool": np.dtype("?"),
}
# What training scripts store beside tensors: it is read as `_Skipped`, whatever its arguments.
_SKIPPED = {
    "argparse": ("Namespace",),
    "builtins": ("set", "frozenset", "slice", "complex", "bytearray"),
    "_codecs": ("encode",),
    "datetime": ("datetime", "timedelta", "date"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath"),
    "pathlib._local": ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath"),
    "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint",),  # first checkpoints of Stable Diffusion
    "torch": ("device",),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before torch 1.6
_LEGACY_PROTOCOL = 1001


def open_torch_file(path: str | os.PathLike[str]) -> Any:
    """Returns the object in a torch file, its tensors as `StoredTensor`, which are read on demand from the mapped file.

    Dictionaries, lists, tuples, numbers and strings are themselves; argparse.Namespace, NumPy scalars and paths are
    skipped.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file is damaged or no torch file, or its pickle names anything but tensors and plain data.
    """
    path = Path(path)
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):
                return _read_zip(file)
            file.seek(0)
            return _read_legacy(file)
        except _Refused as error:
            raise ValueError(f"{path} is refused: {error}") from error
        except Exception as error:  # of any type: a damaged pickle fails wherever it is first used
            raise ValueError(f"{path} is damaged, truncated or no file of torch's: {error}") from error


class _Refused(ValueError):
    """A file that is whole and that is not read."""


class _Storage(NamedTuple):
    """A one-dimensional array in a file; `begin` has one entry, the offset of its bytes, once that is known."""

    mapped: mmap.mmap
    dtype: np.dtype
    size: int
    begin: list[int]


class _Skipped:
    """Stands for an object that is no tensor and no plain data; nothing of it is kept."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Skipped:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _StorageType(NamedTuple):
    """torch.FloatStorage and others."""

    dtype: np.dtype


class _Function(NamedTuple):
    """A function that a pickle may call and, unlike a Python function, cannot change."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain data, and refuses every name that is neither."""

    def __init__(self, file: BinaryIO, storage: Any = None) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if name in _SKIPPED.get(module, ()):
            return _Skipped
        if module == "collections" and name in ("OrderedDict", "defaultdict"):
            return collections.OrderedDict if name == "OrderedDict" else _Function(lambda *factory: {})
        if module == "torch" and name == "Size":
            return _Function(tuple)
        if module == "torch" and name in _NAMED_DTYPES:
            return _StorageType(_NAMED_DTYPES[name])
        if module in ("torch", "torch.storage") and name.removesuffix("Storage") in _DTYPES:
            return _StorageType(_DTYPES[name.removesuffix("Storage")])
        if module == "torch._utils" and name in _REBUILD:
            return _Function(_REBUILD[name])
        raise _Refused(
            f"its pickle names {module}.{name}, which is neither a tensor nor plain data, and no code from a file is "
            "run; load it with torch where you trust it, and save its state dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError("its pickle refers to something else than a storage of tensors")
        _, kind, key, _, size = pid[:5]
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or not _is_size(size):
            raise ValueError("its pickle describes a storage of tensors wrongly")
        if len(pid) > 5 and pid[5] is not None:
            raise _Refused("its storages are views of others; write it anew with a current version of torch")
        return self._storage(kind.dtype, key, size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    return _view(storage, _StorageType(storage.dtype), offset, shape, strides)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    """Of an untyped storage, whose dtype is given after two more arguments."""
    return _view(storage, rest[2], offset, shape, strides)


def _view(storage: Any, kind: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    whole = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 64
    if not whole or not all(map(_is_size, (offset, *shape, *strides))) or not isinstance(kind, _StorageType):
        raise ValueError("its pickle describes a tensor wrongly")
    if not isinstance(storage, _Storage):
        raise ValueError("its pickle has a tensor without a storage")
    dtype = kind.dtype
    size = storage.size * storage.dtype.itemsize // dtype.itemsize
    if 0 not in shape and offset + sum((n - 1) * step for n, step in zip(shape, strides)) >= size:
        raise ValueError(f"a tensor of shape {list(shape)} reaches beyond its storage of {size} elements")

    def read() -> np.ndarray:
        if 0 in shape:
            return np.zeros(shape, dtype)
        flat = np.frombuffer(storage.mapped, dtype, size - offset, storage.begin[0] + offset * dtype.itemsize)
        steps = tuple(step * dtype.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

    def release() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system reclaims the pages when needed
            page = storage.begin[0] - storage.begin[0] % mmap.PAGESIZE
            storage.mapped.madvise(mmap.MADV_DONTNEED, page, storage.begin[0] + size * dtype.itemsize - page)

    return StoredTensor(shape, dtype, read, release)


_REBUILD = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _typed_tensor,
    "_rebuild_parameter": lambda data, *rest: data,
    "_rebuild_parameter_with_state": lambda data, *rest: data,
}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _read_zip(file: BinaryIO) -> Any:
    """The object in an archive of NAME/data.pkl and the storages' bytes, NAME/data/KEY."""
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
        if len(roots) != 1 or records[f"{roots[0]}data.pkl"].compress_type != zipfile.ZIP_STORED:
            raise _Refused("it is a zip archive, but not one that torch.save wrote")
        root = roots[0]
        if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
            raise _Refused("its numbers are big-endian; write it anew on a little-endian machine")

        def storage(dtype: np.dtype, key: str, size: int) -> _Storage:
            info = records[f"{root}data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != size * dtype.itemsize:
                raise ValueError(f"its storage {key} must be {size * dtype.itemsize} bytes, not compressed")
            header = mapped[info.header_offset : info.header_offset + 30]  # that of the record; the values follow it
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            begin = info.header_offset + 30 + lengths
            if begin + info.file_size > len(mapped):
                raise ValueError(f"its storage {key} ends after the file does: it may be truncated")
            return _Storage(mapped, dtype, size, [begin])

        with archive.open(f"{root}data.pkl") as content:
            return _Unpickler(content, storage).load()  # type: ignore[arg-type]


def _read_legacy(file: BinaryIO) -> Any:
    """The object in a file from before torch 1.6: pickles of a number, a version, the machine, the object and the keys.

    The bytes of each storage follow in the order of the keys, after its size.
    """
    if _Unpickler(file).load() != _LEGACY_MAGIC or _Unpickler(file).load() != _LEGACY_PROTOCOL:
        raise ValueError("it does not begin as a torch file does")
    machine = _Unpickler(file).load()
    if not isinstance(machine, Mapping) or machine.get("little_endian") is not True:
        raise _Refused("its numbers are big-endian; write it anew on a little-endian machine")
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    storages: dict[str, _Storage] = {}

    def storage(dtype: np.dtype, key: str, size: int) -> _Storage:
        return storages.setdefault(key, _Storage(mapped, dtype, size, []))

    content = _Unpickler(file, storage).load()
    keys, position = _Unpickler(file).load(), file.tell()
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise ValueError("its list of storages is not that of its tensors")
    for key in keys:
        found = storages[key]
        if int.from_bytes(mapped[position : position + 8], "little") != found.size:
            raise ValueError(f"its storage {key} has another size than its tensors: it may be truncated")
        found.begin.append(position + 8)
        position += 8 + found.size * found.dtype.itemsize
    if position > len(mapped):
        raise ValueError(f"its tensors end at byte {position}, but it has {len(mapped)}: it may be truncated")
    return content
