"""Checkpoints of a training run: written in the background and verified by a checksum when they are read."""

from __future__ import annotations

import functools
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

__all__ = ["Checkpoints", "Restored", "checksum"]

_MARGIN = 2**20  # bytes that a checkpoint needs beside its arrays


class Restored(NamedTuple):
    """A checkpoint.

    Attributes:
      step: of the state.
      state: as saved.
      meta: what was saved beside it.
    """

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one work directory, written by orbax.

    `save` copies the state to the host and returns; the files are written in the background, into a folder that is
    renamed only when it is complete. `restore` reads the newest checkpoint whose contents match the stored checksum.
    Unreadable checkpoints are never deleted.
    """

    def __init__(self, workdir: Path, keep: int = 3, *, read_only: bool = False):
        """Opens the folder `checkpoints` of a work directory.

        Args:
          workdir: the work directory.
          keep: number of checkpoints to keep; older ones are deleted.
          read_only: whether nothing in the work directory may be changed.
        """
        self._damaged = workdir / "damaged"
        self._directory = (workdir / "checkpoints").absolute()
        self._keep, self._read_only = keep, read_only
        self._open()

    def save(self, step: int, state: Any, meta: Mapping[str, Any] | None = None) -> None:
        """Saves the state as the checkpoint of a step, after waiting for an unfinished earlier save.

        Args:
          step: its number.
          state: a tree of arrays.
          meta: further values for JSON, which `restore` returns.

        Raises:
          FloatingPointError: if the state has a number that is not finite; nothing is written.
          OSError: if this save or the one before it failed, for instance on a full disk; complete checkpoints stay.
        """
        # Copied, because the training step donates its arguments.
        state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        _check_finite(step, state)
        self.wait()
        self._check_space(step, state)
        held = {"checksum": checksum(state), "meta": dict(meta or {})}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(held))
        self._explain_failure(lambda: self._manager.save(step, args=args))

    def restore(self, template: Any, accept: Callable[[dict[str, Any]], bool] = lambda meta: True) -> Restored | None:
        """Returns the newest intact checkpoint that is accepted, or None if there is none.

        For each damaged newer checkpoint a warning is logged. Unless `read_only`, it is moved into `damaged/`, so that
        its step can be saved again. If no checkpoint is intact, all stay in place.

        Args:
          template: a tree of arrays or jax.ShapeDtypeStruct with the structure of the state.
          accept: (meta) -> whether to take a checkpoint.

        Raises:
          ValueError: if there are checkpoints and none of them can be read.
        """
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
        failures: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                args = ocp.args.Composite(state=ocp.args.StandardRestore(template), meta=ocp.args.JsonRestore())
                restored = self._manager.restore(step, args=args)
                if checksum(restored.state) != restored.meta["checksum"]:
                    raise ValueError("its contents do not match the stored checksum")
            except Exception as error:
                failures[step] = _first_line(error)
                continue
            meta = restored.meta.get("meta", {})  # absent before it was introduced
            if not accept(meta):
                continue
            for damaged, reason in failures.items():
                logging.warning("Checkpoint %d is damaged, using checkpoint %d: %s", damaged, step, reason)
                if not self._read_only:
                    self._set_aside(damaged)
            return Restored(step, restored.state, meta)
        if failures:
            raise ValueError(
                f"none of the checkpoints in {self._directory} could be read ("
                + "; ".join(f"{step}: {reason}" for step, reason in failures.items())
                + "): restore a backup, or train again in a new --workdir"
            )
        return None

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, so that these can be saved again."""
        for later in self._manager.all_steps():
            if later > step:
                self._explain_failure(functools.partial(self._manager.delete, later))

    def wait(self) -> None:
        """Waits until the last save is on disk; raises OSError if it failed."""
        self._explain_failure(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the last save and releases the folder; raises OSError if it failed."""
        self._explain_failure(self._manager.close)

    def _explain_failure(self, save: Callable[[], Any]) -> None:
        try:
            save()
        except Exception as error:
            raise OSError(
                f"a checkpoint could not be written to {self._directory} (is the disk full?); complete checkpoints are "
                f"kept, and the same command resumes from the newest: {_first_line(error)}"
            ) from error

    def _check_space(self, step: int, state: Any) -> None:
        """Raises OSError if the disk has no space for the state: orbax's threads print hundreds of lines then."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _MARGIN
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(
                f"the checkpoint of step {step} needs {needed / 2**20:.0f} MiB, but the disk of {self._directory} has "
                f"{free / 2**20:.0f} MiB free; complete checkpoints are kept, and the same command resumes from the "
                "newest once there is space"
            )

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, create=not self._read_only, read_only=self._read_only
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        self._damaged.mkdir(exist_ok=True)
        aside = self._damaged / str(step)
        number = 0
        while aside.exists():
            number += 1
            aside = self._damaged / f"{step}.{number}"
        shutil.move(self._directory / str(step), aside)
        self._open()


def _check_finite(step: int, state: Any) -> None:
    """Raises FloatingPointError if a floating-point array of a tree has a number that is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.numpy.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(leaf).all():
            raise FloatingPointError(
                f"the state of step {step} is not finite (in {jax.tree_util.keystr(path)}) and was not saved; the last "
                "checkpoint is kept"
            )


def checksum(tree: Any) -> int:
    """Returns the CRC-32 of all arrays of a tree, in the order of its leaves.

    >>> checksum({"a": np.zeros(2)}) == checksum({"a": np.zeros(2)}) != checksum({"a": np.ones(2)})
    True
    """
    value = 0
    for leaf in jax.tree.leaves(tree):
        leaf = np.ascontiguousarray(leaf)
        value = zlib.crc32(leaf.tobytes() + str((leaf.dtype, leaf.shape)).encode(), value)
    return value


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
