"""The step at which several processes stop, when one of them was asked to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

__all__ = ["Notes", "StopTogether"]

_REQUEST = "stop"


class Notes(Protocol):
    """What is used of `coordination.Board`."""

    process_id: int
    num_processes: int

    def write(self, name: str, text: str) -> None:
        """Writes a note."""

    def read(self, name: str, seconds: float) -> str | None:
        """Returns a note; None if it is not written in this time."""


class StopTogether:
    """Agrees on the call of the training step after which all processes stop.

    A request is a note that a thread of each process waits for. It then notes how many calls its process has started,
    and the main thread starts no further one before the notes of all processes are there: all stop after the largest of
    their numbers. Nothing is communicated before there is a request. The threads do not depend on the main threads, so
    that a process that waits for another one in a collective operation does not block the agreement.
    """

    def __init__(self, notes: Notes, on_request: Callable[[], None] = lambda: None):
        """Starts the thread.

        Args:
          notes: of all processes.
          on_request: called, by the thread, when any process was asked to stop.
        """
        self._notes, self._on_request = notes, on_request
        self._calls = 0  # that were started
        self._last: int | None = None  # the number of the last call
        self._frozen = False  # whether self._calls was noted
        self._lock = threading.Lock()
        self._agreed, self._closed = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="stop together").start()

    def request(self) -> None:
        """Asks all processes to stop."""
        self._notes.write(_REQUEST, str(self._notes.process_id))

    def may_call(self) -> bool:
        """Returns whether the next call may be started, and counts it: the same for each number on all processes."""
        with self._lock:
            if not self._frozen:
                self._calls += 1
                return True
        self._agreed.wait()
        if self._last is None or self._calls >= self._last:
            return False
        self._calls += 1
        return True

    def close(self) -> None:
        """Ends the thread soon."""
        self._closed.set()

    def _watch(self) -> None:
        with contextlib.suppress(ConnectionError):  # at the end of the run; or process 0 is lost, which ends this one
            self._agree()

    def _agree(self) -> None:
        while self._notes.read(_REQUEST, 10.0) is None:
            if self._closed.is_set():
                return
        with self._lock:
            self._frozen = True
            self._notes.write(f"{_REQUEST}/{self._notes.process_id}", str(self._calls))
        self._on_request()
        names = [f"{_REQUEST}/{process}" for process in range(self._notes.num_processes)]
        found: dict[str, int] = {}
        while len(found) < len(names):
            for name in names:
                text = None if name in found else self._notes.read(name, 10.0)
                if text is not None:
                    found[name] = int(text)
        self._last = max(found.values())
        self._agreed.set()
