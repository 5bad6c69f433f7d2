"""What is read of all examples of large files before training, kept beside them: labels, places of the examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import UNREADABLE, hash_each
from experiments.data.row_files import mixed
from experiments.files import write_atomically

__all__ = ["indexed", "shard_hashes"]


def indexed(
    shards: Sequence[Path], kind: str, fields: Sequence[Any], build: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns the arrays of `build()`, which reads all shards, or of the file that an earlier call wrote beside them.

    The file is `index-KIND-CHECKSUM.npz`; it holds for shards of the same names, sizes and times of change, and for the
    same `fields`. It may be deleted. In a folder that cannot be written, every start reads all shards.
    """
    stamps = [[shard.name, (stat := shard.stat()).st_size, stat.st_mtime_ns] for shard in shards]
    digest = hashlib.blake2b(json.dumps([stamps, list(fields)]).encode(), digest_size=8).hexdigest()
    path = shards[0].parent / f"index-{kind}-{digest}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as loaded:
                return {name: loaded[name] for name in loaded.files}
        except UNREADABLE:
            print(f"{path} is damaged and is written anew")
    arrays: dict[str, Any] = dict(build())
    try:
        write_atomically(path, lambda file: np.savez(file, **arrays))
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}): each start reads all of the {len(shards)} shards again")
    return arrays


def shard_hashes(shards: Sequence[Path], which: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns uint64 `[n]` of examples from the name and size of their shard, and their number in it."""
    return mixed(hash_each(f"{shard.name} {shard.stat().st_size}".encode() for shard in shards)[which], numbers)
