"""Arrays in .npy files, uncompressed .npz files and IDX files that are read row by row, not held in memory."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from experiments.data.dataset import UNREADABLE, hash_each

__all__ = ["RowFile", "RowFiles", "from_npy", "from_npz", "mixed"]

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: magic, length of its name, length of the extra field


class RowFile(NamedTuple):
    """An array in a file.

    Attributes:
      path: the file.
      offset: where its first row begins, in bytes.
      dtype: of the numbers.
      shape: `(n, ...)`; rows lie one after the other, each in C order.
    """

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def whole(self) -> np.ndarray:
        """Returns all rows."""
        return np.fromfile(self.path, self.dtype, int(np.prod(self.shape)), offset=self.offset).reshape(self.shape)


class RowFiles:
    """The rows of several arrays, one after the other, as an `ImageSource` that holds none of them in memory.

    Rows are read with `pread`, not mapped, so that the pages of the file do not count as memory of the process.

    Args:
      files: the arrays, which must have one type and one shape per row.
      convert: function of several rows `[n, ...]` and their origin, such as a check of their range.

    Raises:
      ValueError: if the arrays differ in type or shape of a row.
    """

    def __init__(
        self, files: Sequence[RowFile], convert: Callable[[np.ndarray, str], np.ndarray] | None = None
    ) -> None:
        first = files[0]
        for file in files[1:]:
            if (file.dtype, file.shape[1:]) != (first.dtype, first.shape[1:]):
                raise ValueError(
                    f"{file.path} holds rows of {file.dtype} {list(file.shape[1:])}, {first.path} of {first.dtype} "
                    f"{list(first.shape[1:])}: all files must hold rows of one type and shape"
                )
        self.files, self.shape, self.dtype = tuple(files), first.shape[1:], first.dtype
        self._convert = convert
        self._ends = np.cumsum([file.shape[0] for file in files])
        self._row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> np.ndarray:
        row: np.ndarray = self.rows(np.array([index]))[0]
        return row

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows at `indices`, converted."""
        indices = np.asarray(indices)
        out = np.empty((len(indices), *self.shape), self.dtype)
        buffers = out.reshape(-1).view(np.uint8).data
        which = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(which):
            file = self.files[number]
            places = np.flatnonzero(which == number)
            starts = file.offset + (indices[places] - self._ends[number] + file.shape[0]) * self._row_bytes
            self._read(file.path, buffers, places.tolist(), starts.tolist())
        return out if self._convert is None else self._convert(out, str(self.files[0].path))

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        """Returns what identifies rows without reading them: name and size of their file, and their number in it."""
        indices = np.asarray(indices)
        which = np.searchsorted(self._ends, indices, side="right")
        counts = np.array([file.shape[0] for file in self.files])
        of_files = hash_each(f"{file.path.name} {os.stat(file.path).st_size}".encode() for file in self.files)
        return mixed(of_files[which], indices - (self._ends - counts)[which])

    def _read(self, path: Path, buffers: memoryview, places: list[int], starts: list[int]) -> None:
        size = self._row_bytes
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for place, start in zip(places, starts):
                if os.preadv(descriptor, [buffers[place * size : (place + 1) * size]], start) != size:
                    raise ValueError(f"{path}: shorter than its header states: truncated; write the file again")
        finally:
            os.close(descriptor)


def mixed(seeds: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns uint64 hashes of pairs of numbers: the mixing function of SplitMix64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, https://doi.org/10.1145/2660193.2660195
    """
    x = np.asarray(seeds, np.uint64) + (np.asarray(numbers).astype(np.uint64) + np.uint64(1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed_: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed_


def from_npy(path: Path) -> RowFile:
    """Returns the array in an .npy file, of which only the header is read.

    Raises:
      ValueError: if the file is no such file, truncated, in Fortran order, or holds objects.
    """
    with open(path, "rb") as file:
        found = _from_header(file, path, 0)
    if path.stat().st_size < found.offset + found.nbytes:
        raise ValueError(f"{path}: truncated: its header states {found.nbytes} bytes of numbers; write the file again")
    return found


def from_npz(path: Path, key: str) -> RowFile:
    """Returns the array `key` in an .npz file, of which only headers are read.

    Raises:
      ValueError: as `from_npy`; if the array is compressed.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        member = archive.getinfo(f"{key}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{path}: {key!r} needs {member.file_size / 2**20:.0f} MB, more than data.memory_limit_mb, and is "
                "compressed, so that its rows cannot be read one by one: save it with np.savez or np.save, or raise "
                "data.memory_limit_mb"
            )
        file.seek(member.header_offset)
        _, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        return _from_header(file, path, member.header_offset + _LOCAL_HEADER.size + name + extra)


def _from_header(file: BinaryIO, path: Path, start: int) -> RowFile:
    try:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as a NumPy array ({error})") from error
    if fortran and len(shape) > 1:
        raise ValueError(
            f"{path}: the array is in Fortran order, and needs more than data.memory_limit_mb: save "
            "np.ascontiguousarray(array), or raise data.memory_limit_mb"
        )
    if dtype.hasobject:
        raise ValueError(f"{path}: images must be real numbers; got {dtype}; save numbers, not objects")
    return RowFile(path, file.tell(), dtype, tuple(shape))
