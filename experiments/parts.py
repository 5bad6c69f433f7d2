"""Samples on disk, batch by batch, so that an interrupted command continues where it stopped."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from experiments.files import write_atomically, write_text
from experiments.lost_processes import PREEMPTED

__all__ = ["Parts"]

_IDENTITY = "command.json"


class Parts:
    """A folder of batches of samples, one file each, and of what identifies the command that draws them.

    A batch is there as a whole or not at all.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Opens the folder, and creates it with the first batch.

        Args:
          folder: of the parts.
          identity: all that the samples depend on, for JSON; the same command gives the same.

        Raises:
          ValueError: if the folder holds parts of another command.
        """
        self.folder = folder
        self._identity = json.loads(json.dumps(identity, default=list))
        path = folder / _IDENTITY
        if not path.exists():
            return
        try:
            held = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete the folder {folder} to draw all samples") from None
        differing = [
            f"{name}: {held.get(name)} there, {value} here"
            for name, value in self._identity.items()
            if held.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{folder} holds samples of another command that was interrupted ({'; '.join(differing)}): repeat that "
                "command to continue it, or delete the folder"
            )

    def __contains__(self, start: object) -> bool:
        return isinstance(start, int) and self._path(start).exists()

    def save(self, start: int, samples: np.ndarray) -> None:
        """Writes the batch whose first sample has the index `start`."""
        if not (self.folder / _IDENTITY).exists():
            write_text(self.folder / _IDENTITY, json.dumps(self._identity, indent=2) + "\n")
        write_atomically(self._path(start), lambda file: np.save(file, samples))

    def count(self) -> int:
        """Returns the number of samples on disk."""
        return sum(len(np.load(path, mmap_mode="r")) for path in self._paths())

    def batches(self) -> Iterator[np.ndarray]:
        """Yields the batches in order, one at a time in memory."""
        for path in self._paths():
            yield np.load(path)

    def read(self, first: int | None = None) -> np.ndarray:
        """Returns the first samples, or all, as one array."""
        shape, dtype = self._stacked(self.count() if first is None else min(first, self.count()))
        samples, start = np.empty(shape, dtype), 0
        for batch in self.batches():
            taken = batch[: shape[0] - start]
            samples[start : start + len(taken)] = taken
            start += len(taken)
            if start == shape[0]:
                break
        return samples

    def write_npz(self, path: Path, **arrays: Any) -> None:
        """Writes an .npz file with all batches as the array `samples`, and other arrays; one batch in memory."""

        def write(file: BinaryIO) -> None:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                with archive.open("samples.npy", "w", force_zip64=True) as entry:
                    shape, dtype = self._stacked(self.count())
                    descr = np.lib.format.dtype_to_descr(dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(entry, header)
                    for batch in self.batches():
                        entry.write(np.ascontiguousarray(batch).tobytes())
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)

        write_atomically(path, write)

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def interrupted(self, num_samples: int) -> SystemExit:
        """Returns the exception that ends the process after Ctrl-C, having printed what is kept."""
        kept = self.count() if self.folder.exists() else 0
        print(f"\ninterrupted: {kept} of {num_samples} samples are kept in {self.folder}; the same command continues")
        return SystemExit(PREEMPTED)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:010d}.npy"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npy"))

    def _stacked(self, num_samples: int) -> tuple[tuple[int, ...], np.dtype]:
        example = np.load(self._paths()[0], mmap_mode="r")
        return (num_samples, *example.shape[1:]), example.dtype
