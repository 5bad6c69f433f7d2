"""The lock of a work directory: one process trains in it at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock"]

_BEAT = 10.0  # seconds between two signs of life of the holder: new times of the lock file
_PATIENCE = 45.0  # seconds without a sign of life after which a holder on another host has ended


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Holds the lock of a work directory, the file `lock` with the holder's host, process and start time.

    The operating system releases it when the process ends, however it ends. Locks of a process on another host, which
    some file systems do not share, count as released after 45 seconds without a sign of life. A folder that did not
    exist, and in which nothing was written, is removed again.

    Raises:
      ValueError: if another process holds the lock; nothing has been read or changed then.
    """
    created = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    path = workdir / "lock"
    file = _acquire(workdir, path)
    stop = threading.Event()
    beat = threading.Thread(target=_show_life, args=(file, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(OSError):  # the folder was removed
            path.unlink()  # before it is released
        os.close(file)
        with contextlib.suppress(OSError):  # not empty
            for folder in created:
                folder.rmdir()


def _acquire(workdir: Path, path: Path) -> int:
    """Returns the descriptor of the locked file, with this process as its holder."""
    while True:
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has just removed the folder that it had created
            continue
        try:
            free = _flock(file)
            holder = _holder(path)
            elsewhere = holder.get("host") not in (None, socket.gethostname())
            if free is None and not elsewhere:
                free = not _is_alive(holder.get("pid"))
            if elsewhere and free is not False:
                free = not _shows_life(path, holder)
            if not free:
                raise ValueError(_refusal(workdir, path, holder, elsewhere))
            if _is_at(file, path):  # not removed in the meantime
                os.ftruncate(file, 0)
                os.write(file, json.dumps(_this_process()).encode() + b"\n")
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _flock(file: int) -> bool | None:
    """Locks the file; returns False if another process has locked it, None if locks are not supported here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return None
    return True


def _holder(path: Path) -> dict[str, Any]:
    """The process that the file names; {} if it names none."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}


def _is_alive(pid: Any) -> bool:
    """Whether a process of this host runs; this process itself does not count: it has just started."""
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _show_life(file: int, stop: threading.Event) -> None:
    while not stop.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(file)


def _shows_life(path: Path, holder: dict[str, Any]) -> bool:
    """Whether the holder, on another host, sets a new time of the file within a while."""
    print(f"waiting for at most {_PATIENCE:.0f} s: is process {holder.get('pid')} on {holder['host']} still training?")
    before, end = path.stat().st_mtime_ns, time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, _PATIENCE / 10))
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as again:  # opened: NFS asks the server then
            if os.fstat(again.fileno()).st_mtime_ns != before:
                return True
    return False


def _refusal(workdir: Path, path: Path, holder: dict[str, Any], elsewhere: bool) -> str:
    who = (
        f"process {holder['pid']} on {holder.get('host')}, since {holder.get('since')}"
        if "pid" in holder
        else "another"
    )
    shared = "; the file system may not share locks between hosts" if elsewhere else ""
    return (
        f"{workdir} is in use: {who}, trains there{shared}. Wait until it ends, or give another --workdir (if it has "
        f"ended for certain, delete {path})"
    )
