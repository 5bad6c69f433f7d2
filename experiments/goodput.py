"""Goodput: the share of a run's wall time that it spent in training steps, and where the rest went.

Each process that trains appends lines of JSON to goodput.jsonl in the work directory: the step, and the seconds that it
has spent on each of `BUCKETS` until then. From the lines of all starts `Total` adds up the run. Time in steps that
were repeated, after a restart or a return to a checkpoint, is lost work. The time between two starts is not counted,
nor is that of a killed process after its last line.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import metric_log

__all__ = ["BUCKETS", "FILE", "Goodput", "Total", "described", "process_age", "read", "share"]

FILE = "goodput.jsonl"
BUCKETS = {
    "startup": "start-up",  # imports, data, restoring the state
    "compilation": "compilation",  # of the training step
    "steps": "steps",
    "data": "data",  # the devices waited for a batch
    "checkpoints": "checkpoints",  # the steps waited for them
    "evaluation": "pictures and evaluation",
    "lost": "lost work",  # computed by `Total`
}


class Goodput:
    """A clock that always runs for one bucket, at first for start-up.

    Attributes:
      total: of all starts until the last line.
    """

    def __init__(self, path: Path | None = None, age: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts the clock.

        Args:
          path: the file of lines; None keeps none.
          age: seconds that have passed since the process started, which count as start-up.
          clock: returns the time in seconds.
        """
        self._path, self._clock, self._bucket = path, clock, "startup"
        self._session = time.time() - age
        self._since = self._began = clock() - age
        self._seconds = dict.fromkeys((name for name in BUCKETS if name != "lost"), 0.0)
        self.total = Total([] if path is None else metric_log.read(path))

    @contextlib.contextmanager
    def bucket(self, name: str) -> Iterator[None]:
        """Counts the time inside for a bucket instead of the one outside."""
        outside = self._switch(name)
        try:
            yield
        finally:
            self._switch(outside)

    def move(self, seconds: float, frm: str, to: str) -> None:
        """Counts seconds that have passed in a bucket for another one."""
        self._switch(self._bucket)
        seconds = min(max(seconds, 0.0), self._seconds[frm])
        self._seconds[frm] -= seconds
        self._seconds[to] += seconds

    def record(self, step: int, *, back: bool = False) -> None:
        """Appends a line; the first one of a start is written before its first step.

        Args:
          step: number of steps that are done.
          back: the run continues from this step, after a return to its checkpoint; later steps were lost.

        Raises:
          OSError: if it cannot be written.
        """
        self._switch(self._bucket)
        line = {"session": self._session, "wall": self._since - self._began, **self._seconds}
        line |= {"back": 1} if back else {}
        line = {name: round(value, 3) for name, value in line.items()}
        self.total.add({"step": step, **line})
        if self._path is not None:
            _end_line(self._path)
            metric_log.json_lines(self._path)(step, line)

    def _switch(self, name: str) -> str:
        now, outside = self._clock(), self._bucket
        self._seconds[outside] += now - self._since
        self._since, self._bucket = now, name
        return outside


class Total:
    """The seconds of each of `BUCKETS` over all starts of a run, added up line by line.

    Attributes:
      seconds: their sum is the wall time of the processes.

    >>> total = Total()
    >>> total.add({"session": 1, "step": 0, "steps": 0.0})
    >>> total.add({"session": 1, "step": 4, "steps": 2.0})
    >>> total.add({"session": 1, "step": 10, "steps": 5.0})
    >>> total.add({"session": 2, "step": 4, "steps": 0.0, "startup": 2.0})  # a restart at step 4
    >>> total.seconds["steps"], total.seconds["lost"], total.seconds["startup"]
    (2.0, 3.0, 2.0)
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """Adds up lines, in their order."""
        self.seconds = dict.fromkeys(BUCKETS, 0.0)
        self._before: Mapping[str, Any] = {}
        self._marks: list[tuple[float, float]] = []  # number of steps, seconds in steps until then
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds a line of the file."""
        started = line.get("session") != self._before.get("session")
        for name in self.seconds:
            self.seconds[name] += (line.get(name) or 0.0) - (0.0 if started else self._before.get(name) or 0.0)
        if started or line.get("back"):
            while self._marks and self._marks[-1][0] > line["step"]:
                self._marks.pop()
            kept = self._marks[-1][1] if self._marks else 0.0
            self.seconds["lost"] += self.seconds["steps"] - kept
            self.seconds["steps"] = kept
        self._marks.append((line["step"], self.seconds["steps"]))
        self._before = dict(line)


def read(workdir: Path) -> dict[str, float] | None:
    """Returns the seconds of each of `BUCKETS` of a run; None if nothing was recorded."""
    lines = metric_log.read(workdir / FILE)
    return Total(lines).seconds if lines else None


def share(total: Mapping[str, float]) -> float:
    """Returns the share of the wall time in steps that were kept.

    >>> share({"steps": 3.0, "data": 1.0})
    0.75
    """
    wall = sum(total.values())
    return total["steps"] / wall if wall > 0 else 0.0


def described(total: Mapping[str, float]) -> str:
    """Returns the seconds of the buckets as one line of shares, the largest first.

    >>> described({"steps": 90.0, "startup": 10.0, "data": 0.0})
    'goodput 90.0% of 100 s (steps 90.0%, start-up 10.0%)'
    """
    wall = max(sum(total.values()), 1e-9)
    parts = sorted(((seconds, name) for name, seconds in total.items() if seconds >= 5e-4 * wall), reverse=True)
    listed = ", ".join(f"{BUCKETS[name]} {seconds / wall:.1%}" for seconds, name in parts)
    return f"goodput {share(total):.1%} of {wall:.0f} s ({listed})"


def process_age() -> float:
    """Returns the seconds since this process started; 0 where the system does not tell (it is read from Linux' /proc).

    >>> process_age() >= 0
    True
    """
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(float(Path("/proc/uptime").read_text().split()[0]) - started, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _end_line(path: Path) -> None:
    """Ends the incomplete last line that a killed process may have left."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
