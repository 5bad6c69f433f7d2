"""Stopping a run by SIGINT (Ctrl-C) or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from tqdm import tqdm

from experiments import processes
from experiments.coordination import board
from experiments.lost_processes import PREEMPTED, end_all
from experiments.stop_together import StopTogether

__all__ = ["PREEMPTED", "StopSignal"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context manager that turns SIGINT and SIGTERM into a request to stop, and restores their handlers at its end.

    The first signal sets `requested` and prints a line; the loop saves a checkpoint and stops. Within `leave_at_once`,
    where all is saved, it ends the run. The second signal ends the run without saving.

    Python runs signal handlers between two instructions of the main thread, that is, after a call of XLA has returned,
    which can take minutes. Here a thread reads the signals' numbers as they arrive (signal.set_wakeup_fd). If the
    process may be ended (`own_process`), this thread ends it, also during such a call; otherwise, in a notebook or a
    test, the main thread raises an exception when the call has returned.

    With several processes a signal to one of them stops all after the same step, see `StopTogether`; where one of them
    leaves at once, all do.

    Outside the main thread no handlers can be set: `requested` stays False.

    Attributes:
      requested: whether the run was asked to stop; processes find out at different times.
    """

    def __init__(self, own_process: bool = False):
        """Prepares handlers, which `with` sets.

        Args:
          own_process: whether the process may be ended, with the exit code PREEMPTED, or 128 + the signal's number
            for the second signal. If not, SystemExit(PREEMPTED) and KeyboardInterrupt are raised.
        """
        self.requested = False
        self._own_process = own_process
        self._handled = 0
        self._farewell: str | None = None  # printed before leaving; None: the run must not be left
        self._lock = threading.RLock()
        self._previous: dict[int, Any] = {}
        self._together: StopTogether | None = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self
        notes = board()
        self._together = None if notes is None else StopTogether(notes, self._ask)
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True, name="signals").start()
        for number in _SIGNALS:
            signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        signal.set_wakeup_fd(self._previous_fd)
        if self._together is not None:
            self._together.close()
        self._writer.close()  # ends the thread
        self._previous = {}

    def may_call(self) -> bool:
        """Returns whether the next call of the training step may be started, the same on all processes."""
        return not self.requested if self._together is None else self._together.may_call()

    def agreed(self) -> bool:
        """Returns whether any process was asked to stop; all processes must call it together."""
        return processes.any_process(self.requested)

    @contextlib.contextmanager
    def leave_at_once(self, farewell: str) -> Iterator[None]:
        """Within this context a signal ends the run: there is nothing to save.

        Args:
          farewell: the line that is printed then.
        """
        with self._lock:
            outer, self._farewell = self._farewell, farewell
            if self.requested:
                self._leave()
        try:
            yield
        finally:
            with self._lock:
                self._farewell = outer

    def _watch(self) -> None:
        """Reads the signals' numbers in a thread of its own."""
        with self._reader:
            for first in iter(lambda: self._reader.recv(1), b""):
                if first[0] in _SIGNALS:
                    break
            else:
                return
            with self._lock:
                if self._farewell is None and self._together is not None:
                    self._together.request()
                elif self._farewell is None or not self._own_process:
                    self._ask()
                else:
                    self.requested = True
                    self._leave()
            for second in iter(lambda: self._reader.recv(1), b""):
                if second[0] in _SIGNALS and self._own_process:
                    end_all(128 + second[0], "by a second signal")

    def _ask(self) -> None:
        self.requested = True
        if self._farewell is None:
            _say("stopping after this step (a second signal stops at once, without saving)")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread."""
        self.requested = True
        self._handled += 1
        if self._own_process:
            return
        if self._handled > 1:
            raise KeyboardInterrupt
        if self._farewell is not None:
            self._leave()

    def _leave(self) -> None:
        _say(self._farewell or "")
        if self._own_process:
            end_all(PREEMPTED, self._farewell or "")
        raise SystemExit(PREEMPTED)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal is gone: stop all the same
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
