"""A folder of encoded data: shards of latents in .npy files, written and read without holding them in memory.

The folder holds `mean-00000.npy`, `logvar-00000.npy`, ... [n, *latent], `labels-00000.npy`, ... if there are labels,
the same with the prefix `heldout_` for held-out examples, and, written last, `latents.json` with the autoencoder's
`step`, `params` and `checksum`. data.name=arrays with data.images_key=mean reads such a folder as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.arrays import shards_of
from experiments.data.dataset import UNREADABLE
from experiments.data.row_files import RowFiles, from_npy, from_npz

__all__ = ["LatentWriter", "Latents", "latent_writer", "read_latents"]

_META = "latents.json"
_SHARD_BYTES = 2**27  # of the means in one file


class Latents(NamedTuple):
    """Latents on disk.

    Attributes:
      mean, logvar: sources of `[*latent]`, see `experiments.data.row_files.RowFiles`.
      labels: integers `[n]`, or None.
      checksum: of the autoencoder's parameters.
    """

    mean: RowFiles
    logvar: RowFiles
    labels: np.ndarray | None
    checksum: int


def read_latents(path: Path) -> Latents:
    """Returns the latents of the training data in a folder of shards, or in an .npz file of earlier versions.

    Raises:
      ValueError: if it is neither, or a file is damaged.
    """
    try:
        if path.is_dir():
            meta = json.loads((path / _META).read_text(encoding="utf-8"))
            mean, logvar = (RowFiles([from_npy(file) for file in shards_of(path, key)]) for key in ("mean", "logvar"))
            shards = [np.load(file, allow_pickle=False) for file in shards_of(path, "labels")]
            labels = np.concatenate(shards) if shards else None
            if len(mean) != meta["counts"]["train"]:
                raise ValueError(f"{path}: holds {len(mean)} latents of {meta['counts']['train']}: files are missing")
            found = Latents(mean, logvar, labels, int(meta["checksum"]))
        else:
            mean, logvar = (RowFiles([from_npz(path, key)]) for key in ("mean", "logvar"))
            with np.load(path, allow_pickle=False) as loaded:
                labels = loaded["labels"] if "labels" in loaded.files else None
                found = Latents(mean, logvar, labels, int(loaded["checksum"]))
    except (KeyError, IndexError, FileNotFoundError) as error:
        raise ValueError(f"{path}: was not written by experiments.encode ({error} is missing)") from error
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if len(mean) != len(logvar) or mean.shape != logvar.shape:
        raise ValueError(
            f"{path}: its means are {len(mean)} x {mean.shape}, its logvars {len(logvar)} x {logvar.shape}"
        )
    return found


@contextlib.contextmanager
def latent_writer(folder: Path) -> Iterator[LatentWriter]:
    """Yields the writer of a folder of latents, which appears as a whole when `finish` is called, or not at all.

    Args:
      folder: where the shards will lie; an earlier folder of latents there is replaced.

    Raises:
      ValueError: if there is anything else.
    """
    if folder.exists() and not (folder / _META).is_file():
        raise ValueError(f"{folder} exists and holds no latents: set --output to another folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield LatentWriter(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class LatentWriter:
    """Writes the shards of latents in a temporary folder; see `latent_writer`."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self._folder, self._temporary = folder, temporary
        self._counts: dict[str, int] = {}

    def write(self, split: str, parts: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray | None) -> None:
        """Writes batches of (mean, logvar) [B, ...] of a split, "train" or "heldout", and its labels."""
        prefix = "" if split == "train" else f"{split}_"
        pending: list[tuple[np.ndarray, np.ndarray]] = []
        number = start = 0
        for mean, logvar in parts:
            pending.append((mean, logvar))
            if sum(part[0].nbytes for part in pending) >= _SHARD_BYTES:
                start = self._shard(prefix, number, start, pending, labels)
                number, pending = number + 1, []
        if pending:
            start = self._shard(prefix, number, start, pending, labels)
        self._counts[split] = start

    def finish(self, meta: dict[str, Any]) -> None:
        """Writes the description and puts the folder in place."""
        held = json.dumps({**meta, "counts": self._counts}, indent=2) + "\n"
        (self._temporary / _META).write_text(held, encoding="utf-8")
        if self._folder.exists():
            shutil.rmtree(self._folder)
        os.replace(self._temporary, self._folder)

    def _shard(self, prefix: str, number: int, start: int, parts: list[Any], labels: np.ndarray | None) -> int:
        """Writes a shard of the examples from `start` on; returns the first of the next."""
        mean, logvar = (np.concatenate(each) for each in zip(*parts))
        stop = start + len(mean)
        arrays = {"mean": mean, "logvar": logvar, **({} if labels is None else {"labels": labels[start:stop]})}
        for name, array in arrays.items():
            np.save(self._temporary / f"{prefix}{name}-{number:05d}.npy", array)
        return stop
