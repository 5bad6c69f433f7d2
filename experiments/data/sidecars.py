"""Captions in text files beside images: `cat.txt` for `cat.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_sidecars"]


def read_sidecars(
    folder: Path, images: Sequence[str], others: Sequence[str]
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Returns the captions of the images, and the files that are not captions; no captions if no image has one.

    An image without such a file has the empty caption. White space is stripped, and line ends become spaces.

    Args:
      folder: the folder.
      images: relative paths of the images in it.
      others: relative paths of its other files.

    Raises:
      ValueError: if a text file cannot be read as UTF-8.
    """
    own = {_stem(name) + ".txt": name for name in images}
    found = {own[name]: _read(folder / name) for name in others if name in own}
    if not found:
        return None, tuple(others)
    return tuple(found.get(name, "") for name in images), tuple(name for name in others if name not in own)


def _stem(name: str) -> str:
    return name[: name.rfind(".")]


def _read(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}, a caption, cannot be read: {error}") from error
