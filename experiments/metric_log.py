"""The metrics of a run, as lines of JSON and as TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from experiments.files import write_text

__all__ = ["MetricLog", "read"]


class MetricLog:
    """Appends metrics to `metrics.jsonl` and to TensorBoard events in `tensorboard/`."""

    def __init__(self, workdir: Path, start_step: int = 0):
        """Opens the log of a run that continues after `start_step`; later entries of a killed run are removed."""
        self.path = workdir / "metrics.jsonl"
        kept = [entry for entry in read(self.path) if entry["step"] <= start_step]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = self.path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one entry.

        Raises:
          OSError: if it cannot be written, for instance because the disk is full.
        """
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        # An error ends the thread in which tensorboardX writes; once its queue is full, add_scalar would wait forever.
        if not self._events.file_writer.event_writer._worker.is_alive():
            raise OSError(f"{self._events.logdir} cannot be written: is the disk full?")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both files."""
        self._file.close()
        self._events.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the entries of a log, without an incomplete line left by a killed run."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries
