"""The end of a run of several processes when one of them has ended: bounded, with a message, for all of them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from experiments.coordination import Board, address, board

__all__ = ["HEARTBEAT", "PREEMPTED", "AgreedExit", "end_all", "ending_together", "expect", "finish", "watch"]

HEARTBEAT = 30  # seconds without a heartbeat after which a process counts as lost
PREEMPTED = 75  # exit code of a run that ended early and that the same command continues; EX_TEMPFAIL of sysexits.h
_NOTE = "ended"
_POLL = 1.0  # seconds between two looks at which processes live
_FAREWELL = 1.0  # seconds in which the others read a note of process 0, which takes the notes with it
_END = 24 * 3600.0
_finished, _leaving = threading.Event(), threading.Event()  # of this process
_handlers: list[Any] = []  # C function pointers, which must outlive their use


def expect(coordinator: str | None, process_id: int | None, seconds: float) -> None:
    """Waits until the coordinator can be reached; from then on a failed connection ends the process with a message.

    JAX would abort it with a stack trace.

    Args:
      coordinator: HOST:PORT; None if JAX finds it in the environment.
      process_id: of this one; process 0 is the coordinator.
      seconds: in which all processes should connect.

    Raises:
      ValueError: if the coordinator cannot be reached within this time.
    """
    end = time.monotonic() + seconds
    while coordinator is not None and process_id != 0 and not _reachable(coordinator):
        if time.monotonic() > end:
            raise ValueError(
                f"the coordinator at {coordinator} could not be reached within {seconds:.0f} s: is process 0 running "
                "there, and is the port open? Give every process the same --coordinator"
            )
        time.sleep(0.5)
    _on_abort(
        lambda: (
            f"error: not all processes have connected to the coordinator at {coordinator or address()} within "
            f"{seconds:.0f} s: start as many as --num_processes, with different --process_id"
        ),
        1,
    )


def watch() -> None:
    """Watches the other processes in threads of its own: if one of them ends before `finish`, ends this one."""
    notes = board()
    if notes is None:
        return
    _on_abort(lambda: _lost([0]), PREEMPTED)  # JAX aborts a process as soon as it cannot reach process 0
    for work in (_watch_notes, _watch_heartbeats):
        threading.Thread(target=work, args=(notes,), daemon=True, name=work.__name__).start()


def end_all(code: int, message: str = "") -> NoReturn:
    """Ends this process at once, without waiting for other threads, and the other processes with the same code.

    Args:
      code: exit code.
      message: what they print about it.
    """
    notes = None if _finished.is_set() else board()
    _leaving.set()
    if notes is not None:
        with contextlib.suppress(ConnectionError):  # nobody is there to read it
            notes.write(_NOTE, json.dumps({"process": notes.process_id, "code": code, "message": message}))
            if notes.process_id == 0:
                time.sleep(_FAREWELL)
    _exit(code)


def finish() -> None:
    """Waits until all processes are at their end, and disconnects them."""
    notes = board()
    if notes is None:
        return
    with contextlib.suppress(ConnectionError):  # the others have ended
        notes.barrier("finish", _END)
    _finished.set()
    if notes.process_id == 0:
        time.sleep(_FAREWELL)  # the others must not find the coordinator gone
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


class AgreedExit(SystemExit):
    """An exit that all processes make, with the same code."""


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """A context whose end all processes reach together; an error, or an exit of one with another code, ends them all.

    An error of JAX can be the consequence of a lost process: it is reported only if none turns out to be lost.
    """
    try:
        yield
    except BaseException as error:
        if board() is None:
            raise
        if isinstance(error, AgreedExit) or (isinstance(error, SystemExit) and not error.code):
            _end_with_all(int(error.code or 0))
        if _may_be_a_loss(error):
            time.sleep(HEARTBEAT + 10)  # the watching threads end the process if it is one
        code, message = _ending(error)
        end_all(code, message)
    if board() is not None:
        _end_with_all(0)


def _end_with_all(code: int) -> NoReturn:
    """Ends this process when all are at their end; JAX's threads do not survive the end of the interpreter."""
    finish()
    _exit(code)


def _ending(error: BaseException) -> tuple[int, str]:
    """Returns exit code and message of an error, printed as Python would."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            return error.code, "interrupted; the same command continues" if error.code == PREEMPTED else "interrupted"
        _print(str(error.code))
        return 1, str(error.code)
    traceback.print_exception(error)
    return 1, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _may_be_a_loss(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is of JAX's runtime and not for want of memory."""
    while error is not None:
        if isinstance(error, (jax.errors.JaxRuntimeError, ConnectionError)):
            return "RESOURCE_EXHAUSTED" not in str(error)
        error = error.__cause__ or error.__context__
    return False


def _watch_notes(notes: Board) -> None:
    """Waits for the note of a process that ends all."""
    while not _finished.is_set():
        try:
            text = notes.read(_NOTE, 60.0)
        except ConnectionError:  # process 0 is lost: JAX aborts this process
            return
        if text is not None and not _finished.is_set():
            note = json.loads(text)
            if note["process"] != notes.process_id:
                if note["message"] and not _leaving.is_set():
                    _print(f"process {note['process']} has ended with code {note['code']}: {note['message']}")
                _exit(note["code"])


def _watch_heartbeats(notes: Board) -> None:
    """Looks which processes live; the heartbeats are JAX's own, of threads that no Python code can stop."""
    while not _finished.wait(_POLL):
        try:
            lost = set(range(notes.num_processes)) - notes.live()
        except ConnectionError:  # process 0 is lost: JAX aborts this process
            return
        if lost and not _finished.is_set():
            _print(_lost(sorted(lost)))
            if notes.process_id == 0:
                time.sleep(_POLL + _FAREWELL)  # the others find out, too
            _exit(PREEMPTED)


def _lost(processes: list[int]) -> str:
    which = f"process {processes[0]}" if len(processes) == 1 else f"processes {', '.join(map(str, processes))}"
    return (
        f"{which} of this run cannot be reached any more (killed, or its host is down): this process ends, too; the "
        "same command, started again for all processes, resumes from the last checkpoint"
    )


def _on_abort(message: Callable[[], str], code: int) -> None:
    """Replaces what abort() does, which JAX's runtime calls for a lost coordinator: prints a message and ends."""

    def handle(number: int) -> None:
        _print(message())
        _exit(code)

    with contextlib.suppress(AttributeError, OSError, TypeError):  # no C library with signal()
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
        _handlers.append(handler)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def _reachable(coordinator: str) -> bool:
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _print(line: str) -> None:
    if line:
        with contextlib.suppress(OSError, ValueError):
            print(f"\n{line}", file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
