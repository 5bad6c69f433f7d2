"""Damage to files, and a full disk, for the fault matrix."""

from __future__ import annotations

import os
import random
from pathlib import Path

__all__ = ["fill_disk", "flip", "remove", "truncate"]


def truncate(path: Path, random: random.Random) -> None:
    """Cuts a file at a random place."""
    os.truncate(path, random.randrange(path.stat().st_size))


def flip(path: Path, random: random.Random) -> None:
    """Changes a random bit of a file, which is not one of a space."""
    content = bytearray(path.read_bytes())
    solid = [place for place, byte in enumerate(content) if byte not in b" \n"]
    content[random.choice(solid)] ^= 1 << random.randrange(8)
    path.write_bytes(bytes(content))


def remove(path: Path, random: random.Random) -> None:
    """Deletes a file."""
    path.unlink()


def fill_disk(path: Path) -> None:
    """Writes a file until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            try:
                while file.write(b"0" * size) == size:
                    pass
            except OSError:
                continue
