"""Reads safetensors files, strictly and lazily, and writes them.

A file is the length of its header (8 bytes, little-endian), the header (JSON, {name: {dtype, shape, data_offsets}}),
and the values, row-major, without gaps; https://github.com/huggingface/safetensors, "Format". No code from a file is
run: the header is parsed as data and checked against the file's size before the file is mapped.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = ["DTYPES", "StoredTensor", "open_safetensors", "read_metadata", "strict_json", "write_safetensors"]

_MAX_HEADER_BYTES = 100_000_000  # bytes, as in the reference
_MAX_AXES = 64  # as in NumPy
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


class StoredTensor(NamedTuple):
    """A tensor that is read on demand; its shape and dtype are known without reading it.

    Attributes:
      read: () -> the array; for a file, a view of the mapped file.
      release: () -> None, frees the memory that reading took; the array remains valid and is read again if used.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    release: Callable[[], None] = lambda: None


def open_safetensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Returns the tensors of a file by name, in the order of the file, without reading their values.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file violates the format: the header is truncated, too long, not JSON or has a duplicate
        name; a dtype is unknown; offsets overlap, leave gaps, or do not match the shape or the file's size.

    >>> import tempfile
    >>> file = tempfile.NamedTemporaryFile()
    >>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> write_safetensors(file, {"a": (a.shape, a.dtype)}, [("a", a)])
    >>> file.flush()
    >>> open_safetensors(file.name)["a"].read()
    array([[0., 1., 2.],
           [3., 4., 5.]], dtype=float32)
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            begin, header = _read_header(file, size)
            placed = _check_header(header, size - begin)
        except ValueError as error:
            raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {name: _stored(mapped, begin + at, shape, dtype) for name, (at, shape, dtype) in placed.items()}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the metadata in the header of a file, {} if there are none.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if its header is damaged.
    """
    with open(path, "rb") as file:
        try:
            _, header = _read_header(file, os.fstat(file.fileno()).st_size)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is not a valid safetensors file: {error}") from error
    return dict(header.get("__metadata__", {}))


def write_safetensors(
    file: BinaryIO,
    specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file: the header from `specs`, {name: (shape, dtype)}, then `tensors` one by one, in any order.

    The order in the file is the reference's: by decreasing size of the dtype, then by name.

    Raises:
      ValueError: for a dtype that the format does not support, and for tensors that differ from their spec.

    >>> import io
    >>> file = io.BytesIO()
    >>> write_safetensors(file, {"a": ((1,), np.dtype("<f4"))}, [("a", np.ones(1, np.float32))])
    >>> file.getvalue()[8:]
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  \\x00\\x00\\x80?'
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for name, (_, dtype) in specs.items():
        if dtype not in codes:
            raise ValueError(f"{name} has dtype {dtype}; safetensors files can hold {sorted(DTYPES)}")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in sorted(specs, key=lambda name: (-specs[name][1].itemsize, name)):
        shape, dtype = specs[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    written = set()
    for name, array in tensors:
        if name in written or (array.shape, array.dtype) != specs[name]:
            raise ValueError(f"{name} must be written once, as {specs[name]}; got {array.shape}, {array.dtype}")
        written.add(name)
        file.seek(8 + len(text) + header[name]["data_offsets"][0])
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if written != set(specs):
        raise ValueError(f"tensors in specs that were not written: {sorted(set(specs) - written)}")


def strict_json(text: bytes) -> Any:
    """Returns the value of JSON text in UTF-8; ValueError if it is invalid, repeats a key or has NaN or infinity.

    >>> strict_json(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            keys = [key for key, _ in items]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its JSON cannot be read: {error}") from error


def _read_header(file: BinaryIO, size: int) -> tuple[int, Any]:
    """Returns the offset at which the values begin, and the parsed header."""
    if size < 8:
        raise ValueError(f"it has {size} bytes, but the header's length field alone takes 8")
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {length} bytes, more than the {_MAX_HEADER_BYTES} allowed")
    if 8 + length > size:
        raise ValueError(f"its header claims {length} bytes, but only {size - 8} follow: it may be truncated")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("its header does not begin with {")
    return 8 + length, strict_json(text)


def _check_header(header: dict[str, Any], size: int) -> dict[str, tuple[int, tuple[int, ...], np.dtype]]:
    """Returns {name: (offset, shape, dtype)} by offset; ValueError unless the tensors fill `size` bytes exactly."""
    header = dict(header)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ must map strings to strings")
    spans = [(*_check_tensor(name, entry), name) for name, entry in header.items()]
    placed, end = {}, 0
    for begin, stop, shape, dtype, name in sorted(spans, key=lambda span: span[:2]):
        if begin != end:
            kind = "overlaps the one before it" if begin < end else "leaves a gap before it"
            raise ValueError(f"tensor {name!r} {kind}: it begins at byte {begin}, the one before it ends at {end}")
        placed[name], end = (begin, shape, dtype), stop
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, but {size} follow the header: it may be truncated")
    return placed


def _check_tensor(name: str, entry: Any) -> tuple[int, int, tuple[int, ...], np.dtype]:
    """Returns (begin, end, shape, dtype) of one tensor's entry in the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets and nothing else; got {entry!r}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {code!r}; allowed are {sorted(DTYPES)}")
    for field, value in (("shape", shape), ("data_offsets", offsets)):
        whole = isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
        if not whole or len(value) > _MAX_AXES:
            raise ValueError(
                f"tensor {name!r} has {field} {str(value)[:200]}; allowed are at most {_MAX_AXES} integers >= 0"
            )
    if len(offsets) != 2:
        raise ValueError(f"tensor {name!r} must have two data_offsets; got {offsets}")
    needed = math.prod(shape) * DTYPES[code].itemsize
    if offsets[1] - offsets[0] != needed:
        raise ValueError(
            f"tensor {name!r} of shape {shape} and dtype {code} takes {needed} bytes; its offsets are {offsets}"
        )
    return offsets[0], offsets[1], tuple(shape), DTYPES[code]


def _stored(mapped: mmap.mmap, begin: int, shape: tuple[int, ...], dtype: np.dtype) -> StoredTensor:
    def read() -> np.ndarray:
        return np.frombuffer(mapped, dtype, math.prod(shape), begin).reshape(shape)

    def release() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system reclaims the pages when needed
            page = begin - begin % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, page, begin + math.prod(shape) * dtype.itemsize - page)

    return StoredTensor(shape, dtype, read, release)
