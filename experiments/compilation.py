"""Compiling: the cache on disk that the binaries share, and programs compiled ahead of their first call."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import platform
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags

MAX_BYTES = 2 << 30  # of the cache: what was not used for longest makes room
_HIT = "/jax/compilation_cache/cache_hits"


def define_flags() -> None:
    """Defines --compilation_cache."""
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs from run to run, or off. Default: $JAX_COMPILATION_CACHE_DIR if it is "
        "set, else diffusers_fn/jax in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).",
    )


def use_cache(folder: str | None = None) -> Path | None:
    """Turns JAX's persistent compilation cache on; returns its folder, or None where there is none.

    Nothing about it stops a run: a folder that cannot be made or written is said in one line, damaged entries and a
    full disk are JAX's warnings. It may be deleted at any time.

    Args:
      folder: what --compilation_cache says: a folder, "off", or None for the default. In it, each kind of machine has
        a folder of its own: programs for a CPU use instructions that another one may lack.
    """
    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    config: Any = jax.config
    if folder is None and config.jax_compilation_cache_dir:  # the user's own choice, which JAX has read
        return Path(config.jax_compilation_cache_dir)
    try:
        path = (Path(folder).expanduser() if folder else _user_cache() / "diffusers_fn" / "jax") / machine()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable")
        prune(path, MAX_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        print(f"no compilation cache ({error}): --compilation_cache names another folder, or off")
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return path


def machine() -> str:
    """Returns a name of this kind of machine: its architecture, and a checksum of what its CPU can do.

    >>> machine() == machine()
    True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):  # not Linux
        told = platform.processor()
    features = " ".join(sorted(told.partition(":")[2].split()) or [told])
    return f"{platform.machine() or 'any'}-{zlib.crc32(features.encode()):08x}"


def prune(folder: Path, max_bytes: int) -> None:
    """Removes the files of a folder that were not used for longest, until the rest holds no more than max_bytes."""
    found = []
    for path in folder.iterdir():
        if path.is_file():
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def compile_now(what: str, function: Any, *args: Any) -> Any:
    """Returns a jitted function, compiled for arguments like these and no others, and prints how long that took.

    Args:
      what: is compiled, for the line that is printed.
      function: of jax.jit; donation and shardings stay.
      args: as it will be called with, or their shapes.

    >>> double = compile_now("double", jax.jit(lambda x: 2 * x), 1.0)  # doctest: +ELLIPSIS
    compiling double ... ...s...
    >>> double(4.0).item()
    8.0
    """
    print(f"compiling {what} ...", end=" ", flush=True)
    hits, start = _cache_hits(), time.monotonic()
    before = len(hits)
    with _without_collecting():
        lowered = function.lower(*args)
    compiled = lowered.compile()
    return_memory()
    print(f"{time.monotonic() - start:.1f} s{', from the cache' if len(hits) > before else ''}", flush=True)
    return compiled


def return_memory() -> None:
    """Gives the memory that the compiler no longer uses back to the system; glibc would keep most of it.

    For a large training step that is more than half a gigabyte. Other systems' allocators are left alone.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Keeps Python from looking for unreachable cycles: tracing makes millions of objects, and all of them live."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@functools.cache
def _cache_hits() -> list[str]:
    """A list that gets an entry for every program that is read from the cache."""
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event == _HIT else None)
    return hits


def _user_cache() -> Path:
    """The folder for caches of the XDG base directory specification; a relative one is to be ignored."""
    named = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    return named if named.is_absolute() else Path.home() / ".cache"
