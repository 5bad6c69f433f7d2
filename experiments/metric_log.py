"""The metrics of a run, passed to sinks: lines of JSON, TensorBoard events, functions of the user's own."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from experiments.files import write_text

__all__ = ["Events", "MetricLog", "Sink", "indented", "json_lines", "read"]

Sink = Callable[[int, dict[str, float]], None]  # (step, metrics by name)


class MetricLog:
    """Passes metrics to `metrics.jsonl`, to TensorBoard events in `tensorboard/`, and to further sinks.

    Files are opened, written and closed by each call, so that what was written is complete whenever the run ends, and
    an error of the disk is raised by the call.
    """

    def __init__(self, workdir: Path, start_step: int = 0, sinks: Iterable[Sink] = (), *, writes: bool = True):
        """Opens the log of a run that continues after `start_step`; later entries of a killed run are removed.

        Args:
          workdir: of the run.
          start_step: its step.
          sinks: further ones.
          writes: False for a log that drops all it is given, of the processes that write nothing.
        """
        self.path = workdir / "metrics.jsonl"
        self._sinks: tuple[Sink, ...] = ()
        self._writes = writes
        if not writes:
            return
        self._events = Events(workdir / "tensorboard")
        self.rewind(start_step)
        self._sinks = (json_lines(self.path), self._events.write, *sinks)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Passes one entry to every sink.

        Raises:
          OSError: if it cannot be written, for instance because the disk is full.
        """
        for sink in self._sinks:
            sink(step, metrics)

    def rewind(self, step: int) -> None:
        """Removes the entries after a step; TensorBoard drops them, too."""
        if not self._writes:
            return
        kept = [entry for entry in read(self.path) if entry["step"] <= step]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._events.start(step)

    def text(self, name: str, markdown: str) -> None:
        """Shows a text in TensorBoard."""
        if self._writes:
            self._events.add(0, summary.text(name, markdown))

    def picture(self, name: str, step: int, path: Path) -> None:
        """Shows a PNG file in TensorBoard."""
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._events.add(step, summary.image(name, pixels, dataformats="HWC"))


def json_lines(path: Path) -> Sink:
    """Returns the sink that appends lines such as {"step": 100, "loss": 0.25} to a file; null if not finite.

    Raises (the sink):
      OSError: if the file cannot be written.
    """

    def write(step: int, metrics: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        _append(path, (json.dumps({"step": step, **finite}) + "\n").encode())

    return write


class Events:
    """A file of TensorBoard events in a folder.

    It is written by the calling thread. tensorboardX's own writer has a thread, which on a full disk ends with a
    traceback, and then blocks the caller.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._path = folder / name
        self._append(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def start(self, step: int) -> None:
        """Starts after a step: TensorBoard drops entries of later steps that were written before."""
        log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=log))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """The sink of metrics; those that are not finite are left out."""
        self.add(step, *(summary.scalar(name, value) for name, value in metrics.items() if math.isfinite(value)))

    def add(self, step: int, *summaries: Any) -> None:
        """Appends summaries of one step.

        Raises:
          OSError: if the file cannot be written.
        """
        self._append(*(event_pb2.Event(wall_time=time.time(), step=step, summary=each) for each in summaries))

    def _append(self, *events: Any) -> None:
        """Appends records: length, its checksum, the event, its checksum."""
        records = bytearray()
        for event in events:
            data = event.SerializeToString()
            length = struct.pack("<Q", len(data))
            records += length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
        _append(self._path, records)


def indented(text: str) -> str:
    """Returns a text as a code block of Markdown."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the entries of a log.

    A damaged line, such as the incomplete one that a killed run can leave at the end, is left out; a warning names
    file and line of every other one.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        entry = _parsed(line)
        if entry is not None:
            entries.append(entry)
        elif line.strip() and number < len(lines):
            logging.warning("%s, line %d is damaged and left out: %.60r", path, number, line)
    return entries


def _append(path: Path, content: bytes | bytearray) -> None:
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def _parsed(line: str) -> dict[str, Any] | None:
    """Returns the entry of a line; None if it is not one."""
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    if not isinstance(step, (int, float)) or isinstance(step, bool) or not math.isfinite(step):
        return None
    plain = all(value is None or isinstance(value, (int, float)) for value in entry.values())
    return entry if plain else None
