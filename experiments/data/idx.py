"""Data sets in the IDX files of MNIST and its relatives (Fashion-MNIST, KMNIST, ...), gzipped or not.

Format: http://yann.lecun.com/exdb/mnist/ : two zero bytes, a type byte (0x08: unsigned byte), the rank, the
sizes as big-endian 32-bit integers, then the entries in C order.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import Dataset, check_labels, field, memory_limit
from experiments.data.row_files import RowFile, RowFiles

__all__ = ["load_idx", "read_idx"]

_HINT = (
    "set --config.data.path to a folder with the four files of MNIST; Debian's package dataset-fashion-mnist "
    "installs those of Fashion-MNIST in /usr/share/datasets/fashion-mnist"
)


def load_idx(config: Any, split: str) -> Dataset:
    """Returns the `train-*` files ("train") or the `t10k-*` files ("heldout") of the folder `data.path`.

    Images are uint8 `[n, H, W, 1]`; the pipeline maps them to [-1, 1]. If they need more than `data.memory_limit_mb`,
    they are read on demand, which needs a file that is not gzipped.
    """
    path = field(config, "path")
    if path is None:
        raise ValueError(f"data.path is not set; {_HINT}")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.path is not a folder: {folder}; {_HINT}")
    labels = {}
    for part in ("train", "t10k"):  # both, so that the two splits agree on the number of classes
        file = _find(folder, f"{part}-labels-idx1-ubyte")
        labels[part] = read_idx(file, rank=1)
    num_classes = 1 + max(int(label.max(initial=0)) for label in labels.values())
    part = "train" if split == "train" else "t10k"
    file = _find(folder, f"{part}-images-idx3-ubyte")
    stored = _large_images(file, memory_limit(config))
    images: Any = RowFiles([stored]) if stored else read_idx(file, rank=3)[..., None]
    shape = stored.shape[1:] if stored else images.shape[1:]
    if not len(images) * math.prod(shape):
        raise ValueError(f"{file}: holds no images (sizes {[len(images), *shape[:-1]]})")
    checked, _ = check_labels(labels[part], len(images), num_classes, str(folder))
    return Dataset(images, checked, shape, num_classes)


def read_idx(path: str | Path, rank: int) -> np.ndarray:
    """Returns the contents of one IDX file as uint8 with `rank` axes.

    A gzip file is recognised by its first bytes, not by its name.

    Raises:
      ValueError: if the file is not IDX of unsigned bytes with that rank, if its length does not match its header, or
        if gzip cannot read it.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); download the file again") from error
    sizes = _sizes(path, data, rank)
    _check_length(path, sizes, len(data))
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def _large_images(path: Path, limit: int) -> RowFile | None:
    """Returns the images of a file, `[n, H, W, 1]`, if they need more than `limit` bytes; reads only its header."""
    try:
        with open(path, "rb") as file:
            header = file.read(16)
        if gzipped := header[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                header = file.read(16)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); download the file again") from error
    sizes = _sizes(path, header, rank=3)
    if math.prod(sizes) <= limit:
        return None
    if gzipped:
        raise ValueError(
            f"{path}: its images need {math.prod(sizes) / 2**20:.0f} MB, more than data.memory_limit_mb, and the file "
            f"is gzipped, so that they cannot be read one by one: decompress it (gunzip {path.name}), or raise "
            "data.memory_limit_mb"
        )
    _check_length(path, sizes, path.stat().st_size)
    return RowFile(path, 16, np.dtype(np.uint8), (*sizes, 1))


def _sizes(path: Path, data: bytes, rank: int) -> tuple[int, ...]:
    """Returns the sizes of the axes from the first bytes of a file."""
    header, magic = 4 + 4 * rank, bytes([0, 0, 8, rank])
    if data[:4] != magic:
        raise ValueError(
            f"{path}: not an IDX file of unsigned bytes with {rank} axes: the first four bytes must be "
            f"{magic.hex(' ')}; got {data[:4].hex(' ') or 'an empty file'}"
        )
    if len(data) < header:
        raise ValueError(f"{path}: truncated inside its header: {len(data)} bytes of {header}")
    return struct.unpack(f">{rank}I", data[4:header])


def _check_length(path: Path, sizes: tuple[int, ...], length: int) -> None:
    expected = 4 + 4 * len(sizes) + math.prod(sizes)
    if length != expected:
        state = "truncated" if length < expected else "too long"
        raise ValueError(
            f"{path}: {state}: its header has the sizes {list(sizes)}, {expected} bytes in all; got "
            f"{length}; download the file again"
        )


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise ValueError(f"{folder}: contains neither {name} nor {name}.gz; {_HINT}")
