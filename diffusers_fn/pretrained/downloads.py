"""Recognises what is often found in place of a file of weights: a git-lfs pointer, an error page, a whole pipeline."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["check_download", "check_pipeline"]

_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n.*?^size (\d+)$", re.DOTALL | re.MULTILINE)
_MARKUP = re.compile(rb"\s*<(!doctype html|html|\?xml|error)", re.IGNORECASE)


def check_download(path: Path) -> None:
    """Raises ValueError if a file is empty, a git-lfs pointer or a page of HTML or XML.

    >>> import tempfile
    >>> file = tempfile.NamedTemporaryFile(suffix=".bin")
    >>> _ = file.write(b"<!DOCTYPE html><html>404</html>"), file.flush()
    >>> try: check_download(Path(file.name))
    ... except ValueError as error: print(str(error).removeprefix(file.name))
     is a web page, probably an error message of the server, and no weights: download it again
    """
    with open(path, "rb") as file:
        begin = file.read(1024)
    if not begin:
        raise ValueError(f"{path} is empty: download it again")
    pointer = _LFS.match(begin)
    if pointer:
        raise ValueError(
            f"{path} is a git-lfs pointer to a file of {int(pointer[1]):,} bytes, not the file itself: run "
            "`git lfs pull` in its repository"
        )
    if _MARKUP.match(begin):
        raise ValueError(
            f"{path} is a web page, probably an error message of the server, and no weights: download it again"
        )


def check_pipeline(path: Path) -> None:
    """Raises ValueError if a path is the root of a pipeline of several networks; the message lists their folders."""
    root = path.parent if path.name == "model_index.json" else path
    if not (root / "model_index.json").is_file() or (root / "config.json").is_file():
        return
    folders = sorted(found.parent.name for found in root.glob("*/config.json"))
    raise ValueError(
        f"{root} is a pipeline of several networks: load one of its folders, "
        + (" or ".join(f'load("{root / name}")' for name in folders) or "of which none is here")
    )
