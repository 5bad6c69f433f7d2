"""Files that are replaced as a whole."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Calls `write(file)` on a new file beside `path`, then puts it in place of `path`; makes the folder.

    A reader, or a run that is killed half way, sees the old file or the new one and nothing between.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text in UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))
