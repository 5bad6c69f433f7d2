"""Writing files atomically."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["write_atomically", "write_text"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any], *, durable: bool = False) -> None:
    """Writes a temporary file by `write(file)` and renames it to `path`; creates the folder if needed.

    A reader sees either the old file or the complete new one, also if the process is killed on the way; with `durable`,
    also if the machine fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str, *, durable: bool = False) -> None:
    """Writes text as UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()), durable=durable)
