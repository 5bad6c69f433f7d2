"""Checkpoints of a training run: written in the background by all its processes, verified when they are read.

Each is a folder `checkpoints/STEP` with the shards of the state (`shard_files`) and `checkpoint.json`. It gets its name
once all of it is on the disk. Those that older versions wrote by orbax are read, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from experiments import processes
from experiments.orbax_checkpoints import read_orbax
from experiments.shard_files import (
    ShardReader,
    is_written,
    named_leaves,
    read_sealed,
    write_sealed,
    write_shards,
)
from experiments.snapshots import Snapshots

__all__ = ["Checkpoints", "Restored"]

_MARGIN = 2**20  # bytes that a checkpoint needs beside its arrays
_PATIENCE = 600.0  # seconds for which a process that has written its shards waits for the others
_RECORD = "checkpoint.json"


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
    """The checkpoints of one work directory.

    `save` copies the state on its devices and returns; a thread writes it, array by array. `restore` reads the newest
    checkpoint whose contents match the stored checksums, onto any devices. Unreadable checkpoints are never deleted.

    All processes of a run, which share the work directory, call each function together.
    """

    def __init__(self, workdir: Path, keep: int = 3, *, keep_every: int = 0, read_only: bool = False):
        """Opens the folder `checkpoints` of a work directory.

        Args:
          workdir: the work directory.
          keep: number of checkpoints to keep; older ones are deleted.
          keep_every: those of steps that are multiples of it are never deleted; 0: none.
          read_only: whether nothing in the work directory may be changed.
        """
        self._damaged = workdir / "damaged"
        self._directory = (workdir / "checkpoints").absolute()
        self._keep, self._keep_every, self._read_only = keep, keep_every, read_only
        self._snapshots = Snapshots()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        if not read_only and processes.is_main():
            self._directory.mkdir(parents=True, exist_ok=True)
            for unfinished in [*self._directory.glob(".*"), *self._directory.glob("*orbax-checkpoint-tmp*")]:
                shutil.rmtree(unfinished, ignore_errors=True)
        if not read_only:
            processes.wait()

    def prepare(self, state: Any) -> None:
        """Compiles what `save` needs for states like this one, which would otherwise slow down the first save."""
        self._snapshots.prepare(state)

    def save(self, step: int, state: Any, meta: Mapping[str, Any] | None = None) -> None:
        """Saves the state as the checkpoint of a step, after waiting for an unfinished earlier save.

        The state may be donated afterwards. If its devices have no memory for a copy, it is written before `save`
        returns.

        Args:
          step: its number.
          state: a tree of arrays.
          meta: further values for JSON, which `restore` returns.

        Raises:
          FloatingPointError: if the state of the save before this one had a number that is not finite; nothing of it
            is on disk.
          OSError: if the save before this one failed, for instance on a full disk; complete checkpoints stay.
        """
        self.wait()
        copied = True
        try:
            snapshot = self._snapshots.take(state)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            snapshot, copied = state, False
        self._thread = threading.Thread(
            target=self._try_to_write, args=(step, snapshot, dict(meta or {})), daemon=True, name="checkpoint"
        )
        self._thread.start()
        if not copied:
            self.wait()

    def restore(self, template: Any, accept: Callable[[dict[str, Any]], bool] = lambda meta: True) -> Restored | None:
        """Returns the newest intact checkpoint that is accepted, or None if there is none.

        For each damaged newer checkpoint a warning is logged. Unless `read_only`, it is moved into `damaged/`, so that
        its step can be saved again. If no checkpoint is intact, all stay in place.

        Args:
          template: a tree of arrays or jax.ShapeDtypeStruct with the structure of the state. Where a ShapeDtypeStruct
            has a sharding, a jax.Array with this sharding is returned, of which each process reads its own part;
            elsewhere a NumPy array.
          accept: (meta) -> whether to take a checkpoint.

        Raises:
          ValueError: if there are checkpoints and none of them can be read.
        """
        failures: dict[int, str] = {}
        for step in sorted(self._steps(), reverse=True):
            found, failure = self._try_to_read(step, template)
            if processes.any_process(found is None):
                failures[step] = failure or "another process could not read it"
                continue
            assert found is not None
            if not accept(found.meta):
                continue
            for damaged, reason in failures.items():
                logging.warning("Checkpoint %d is damaged, using checkpoint %d: %s", damaged, step, reason)
                if not self._read_only:
                    self._set_aside(damaged)
            return found
        if failures:
            raise ValueError(
                f"none of the checkpoints in {self._directory} could be read ("
                + "; ".join(f"{step}: {reason}" for step, reason in failures.items())
                + "): restore a backup, or train again in a new --workdir"
            )
        return None

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, so that these can be saved again."""
        self.wait()
        if processes.is_main():
            for later in self._steps():
                if later > step:
                    self._delete(later)
        processes.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk; raises OSError or FloatingPointError, as `save`, if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if isinstance(failure, FloatingPointError):
            raise failure
        if failure is not None:
            raise OSError(
                f"a checkpoint could not be written to {self._directory} (is the disk full?); complete checkpoints are "
                f"kept, and the same command resumes from the newest: {_first_line(failure)}"
            ) from failure

    def close(self) -> None:
        """Waits for the last save, raises as `wait`, and gives the memory of the copies back."""
        self._snapshots = Snapshots()
        self.wait()

    def _try_to_write(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Runs in the thread."""
        folder = self._directory / f".{step}.tmp"
        try:
            folder.mkdir(exist_ok=True)
            _check_space(step, folder, state)
            write_shards(folder, state, lambda name, data: _check_finite(step, name, data))
            if processes.is_main():
                self._await(folder, lambda: is_written(folder, jax.process_count()))
                content = {"step": step, "num_processes": jax.process_count(), "meta": meta}
                write_sealed(folder / _RECORD, content)
                _flush_names(folder)
                os.rename(folder, self._directory / str(step))
                _flush_names(self._directory)
                self._delete_old()
            else:
                self._await(folder, (self._directory / str(step)).exists)
        except BaseException as error:
            self._failure = error
            if jax.process_count() == 1:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # for the other processes
                    (folder / f"failed-{jax.process_index()}").touch()

    def _await(self, folder: Path, done: Callable[[], bool]) -> None:
        """Waits for the other processes, which may fail."""
        deadline = time.monotonic() + _PATIENCE
        while not done():
            if failed := sorted(folder.glob("failed-*")):
                raise OSError(f"process {failed[0].name.removeprefix('failed-')} could not write its part")
            if time.monotonic() > deadline:
                raise OSError(f"the other processes have not written their parts within {_PATIENCE:.0f} s")
            time.sleep(0.01)

    def _try_to_read(self, step: int, template: Any) -> tuple[Restored | None, str]:
        """Returns the checkpoint of a step, or None and the reason."""
        folder = self._directory / str(step)
        try:
            if not any(folder.glob("shards-*")) and (folder / "state").exists():
                return Restored(step, *read_orbax(self._directory, step, template)), ""
            record = read_sealed(folder / _RECORD)
            if record["step"] != step:
                raise ValueError(f"it is that of step {record['step']}")
            reader, like = ShardReader(folder, record["num_processes"]), named_leaves(template)
            if left_over := reader.names - set(like):
                raise ValueError(f"it has {', '.join(sorted(left_over)[:3])}, which this config does not")
            leaves = [reader.read(name, leaf) for name, leaf in like.items()]
            return Restored(step, jax.tree.unflatten(jax.tree.structure(template), leaves), record["meta"]), ""
        except jax.errors.JaxRuntimeError:  # of the devices
            raise
        except Exception as error:
            return None, _first_line(error)

    def _steps(self) -> list[int]:
        return [int(path.name) for path in self._directory.glob("*") if path.name.isdigit()]

    def _delete_old(self) -> None:
        for step in sorted(self._steps())[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                self._delete(step)

    def _delete(self, step: int) -> None:
        hidden = self._directory / f".{step}.deleted"  # a process that is killed leaves no half of a checkpoint
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(self._directory / str(step), hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        if processes.is_main():
            self._damaged.mkdir(exist_ok=True)
            aside, number = self._damaged / str(step), 0
            while aside.exists():
                number += 1
                aside = self._damaged / f"{step}.{number}"
            shutil.move(self._directory / str(step), aside)
        processes.wait()


def _check_space(step: int, folder: Path, state: Any) -> None:
    """Raises OSError if the disk has no space for the state, before any of it is written."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _MARGIN
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"that of step {step} needs {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free")


def _check_finite(step: int, name: str, data: np.ndarray) -> None:
    """Raises FloatingPointError if a floating-point array has a number that is not finite."""
    if jax.numpy.issubdtype(data.dtype, np.inexact) and not np.isfinite(data).all():
        raise FloatingPointError(
            f"the state of step {step} is not finite (in {name}) and was not saved; the last checkpoint is kept"
        )


def _flush_names(folder: Path) -> None:
    """Makes the names of the files in a folder durable, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
