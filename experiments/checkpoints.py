"""Checkpoints of a training run: written in the background, verified when read, never half trusted."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging


class Checkpoints:
    """The checkpoints of one work directory, on orbax.

    A save copies the state to the host and returns; writing goes on in the background, into a folder that gets its
    name only when it is complete. A restore takes the newest checkpoint whose contents have the checksum that was
    stored with them. Nothing is ever deleted for being unreadable.
    """

    def __init__(self, workdir: Path, keep: int = 3, *, read_only: bool = False):
        """Opens the folder `checkpoints` of a work directory; keeps the newest `keep`, or only reads."""
        self._damaged = workdir / "damaged"
        self._directory = (workdir / "checkpoints").absolute()
        self._keep, self._read_only = keep, read_only
        self._open()

    def save(self, step: int, state: Any) -> None:
        """Saves the state under its step; waits for the save before it, if that one is still being written.

        Raises:
          OSError: if this save or the one before it failed, for instance on a full disk; complete checkpoints stay.
        """
        # Copies: the training step donates the arrays that it was given.
        state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        meta = {"checksum": checksum(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._explain_failure(lambda: self._manager.save(step, args=args))

    def restore(self, template: Any) -> tuple[int, Any] | None:
        """Returns (step, state) of the newest sound checkpoint, or None if there is no checkpoint at all.

        Damaged newer ones are warned of and, unless this was opened to read only, moved aside into `damaged/`, so that
        their steps can be saved again; where none is sound, all stay in place.

        Args:
          template: a tree of arrays or jax.ShapeDtypeStruct like the state.

        Raises:
          ValueError: if there are checkpoints and none of them could be read.
        """
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
        failures: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                args = ocp.args.Composite(state=ocp.args.StandardRestore(template), meta=ocp.args.JsonRestore())
                restored = self._manager.restore(step, args=args)
                if checksum(restored.state) != restored.meta["checksum"]:
                    raise ValueError("its contents do not have the checksum stored with them")
            except Exception as error:
                failures[step] = _first_line(error)
                continue
            for damaged, reason in failures.items():
                logging.warning("Checkpoint %d is damaged, going on from %d: %s", damaged, step, reason)
                if not self._read_only:
                    self._set_aside(damaged)
            return step, restored.state
        if failures:
            raise ValueError(
                f"none of the checkpoints in {self._directory} could be read ("
                + "; ".join(f"{step}: {reason}" for step, reason in failures.items())
                + "): put back a copy, or start again in a new --workdir"
            )
        return None

    def wait(self) -> None:
        """Returns when the last save is on disk; raises OSError if it failed."""
        self._explain_failure(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the last save and releases the folder; raises OSError if it failed."""
        self._explain_failure(self._manager.close)

    def _explain_failure(self, save: Callable[[], Any]) -> None:
        try:
            save()
        except Exception as error:
            raise OSError(
                f"a checkpoint could not be written to {self._directory} (is the disk full?); complete ones are kept "
                f"and the same command resumes from the newest: {_first_line(error)}"
            ) from error

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
