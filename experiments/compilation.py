"""Compilation: the persistent cache that the binaries share, and programs compiled before their first call."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import platform
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags

__all__ = ["MAX_BYTES", "compile_now", "define_flags", "machine", "prune", "return_memory", "use_cache"]

MAX_BYTES = 2 << 30  # largest size of the cache; the least recently used files are removed first
_HIT = "/jax/compilation_cache/cache_hits"


def define_flags() -> None:
    """Defines --compilation_cache, and lists it in the --help of the binary."""
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder of the compilation cache, or 'off' for none. Default: $JAX_COMPILATION_CACHE_DIR if it is set, else "
        "diffusers_fn/jax in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).",
    )
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["compilation_cache"])


def use_cache(folder: str | None = None) -> Path | None:
    """Enables JAX's persistent compilation cache and returns its folder, or None if there is none.

    Problems with the cache never stop a run: if the folder cannot be created or written, one line is printed; for
    damaged entries and a full disk JAX logs warnings. The folder may be deleted at any time.

    Args:
      folder: the value of --compilation_cache: a folder, "off", or None for the default. Each kind of machine has a
        subfolder of its own, because programs compiled for one CPU may use instructions that another one lacks.
    """
    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    config: Any = jax.config
    if folder is None and config.jax_compilation_cache_dir:  # $JAX_COMPILATION_CACHE_DIR, which JAX has read
        return Path(config.jax_compilation_cache_dir)
    try:
        path = (Path(folder).expanduser() if folder else _user_cache() / "diffusers_fn" / "jax") / machine()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable")
        prune(path, MAX_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        print(f"no compilation cache ({error}): set --compilation_cache to another folder, or to off")
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return path


def machine() -> str:
    """Returns a name of this kind of machine: its architecture and a checksum of its CPU's features.

    >>> machine() == machine()
    True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags_line = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):  # not Linux
        flags_line = platform.processor()
    features = " ".join(sorted(flags_line.partition(":")[2].split()) or [flags_line])
    return f"{platform.machine() or 'any'}-{zlib.crc32(features.encode()):08x}"


def prune(folder: Path, max_bytes: int) -> None:
    """Removes the least recently used files of a folder until the rest holds at most `max_bytes`."""
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
    """Returns a jitted function compiled for the shapes of the arguments, and prints the compilation time.

    Args:
      what: name of the program in the printed line.
      function: a function returned by jax.jit; donation and shardings are kept.
      args: example arguments, or their shapes.

    >>> double = compile_now("double", jax.jit(lambda x: 2 * x), 1.0)  # doctest: +ELLIPSIS
    compiling double ... ...s...
    >>> double(4.0).item()
    8.0
    """
    print(f"compiling {what} ...", end=" ", flush=True)
    hits, start = _cache_hits(), time.monotonic()
    before = len(hits)
    with _without_garbage_collection():
        lowered = function.lower(*args)
    compiled = lowered.compile()
    return_memory()
    print(f"{time.monotonic() - start:.1f} s{', from the cache' if len(hits) > before else ''}", flush=True)
    return compiled


def return_memory() -> None:
    """Returns memory that the compiler has freed to the system; glibc would keep most of it.

    Does nothing with other C libraries.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disables the search for cycles: tracing creates millions of objects, and all of them stay alive."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@functools.cache
def _cache_hits() -> list[str]:
    """Returns a list that grows by one entry per program read from the cache."""
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event == _HIT else None)
    return hits


def _user_cache() -> Path:
    """Returns the cache folder of the XDG base directory specification, which ignores relative paths."""
    named = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    return named if named.is_absolute() else Path.home() / ".cache"
