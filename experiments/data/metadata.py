"""Labels and captions of an image folder: `metadata.jsonl` or `metadata.csv`, as in Hugging Face's imagefolder.

Format: https://huggingface.co/docs/datasets/image_dataset#imagefolder
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

__all__ = ["FILES", "Metadata", "read_metadata"]

FILES = ("metadata.jsonl", "metadata.csv")
_CAPTIONS = ("text", "caption")


class Metadata(NamedTuple):
    """Labels and captions, in the order of the images.

    Attributes:
      labels: int32 `[n]`, or None.
      class_names: the sorted texts, if labels are texts; None if they are numbers.
      captions: one per image, or None.
    """

    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    captions: tuple[str, ...] | None


def read_metadata(folder: Path, images: Sequence[str]) -> Metadata | None:
    """Returns what the metadata file of a folder states of its images; None without such a file.

    Args:
      folder: the folder.
      images: relative paths of the images in it.

    Raises:
      ValueError: if the file cannot be read; if a line is broken, names no image of the folder, or lacks a label that
        others have; if an image has no line or two.
    """
    present = [folder / name for name in FILES if (folder / name).is_file()]
    if not present:
        return None
    if len(present) > 1:
        raise ValueError(f"{folder}: holds {' and '.join(FILES)}; keep one of them")
    path, position = present[0], {name: i for i, name in enumerate(images)}
    rows: list[tuple[int, dict[str, Any]] | None] = [None] * len(images)
    for line, row in _rows(path):
        given = row.get("file_name")
        if not isinstance(given, str) or not given:
            raise ValueError(f"{path}, line {line}: has no file_name")
        name = PurePosixPath(given.replace("\\", "/")).as_posix()
        if name not in position:
            state = "is no image of a known format" if (folder / name).is_file() else "does not exist"
            raise ValueError(f"{path}, line {line}: the file {given!r} {state} in {folder}")
        if (earlier := rows[position[name]]) is not None:
            raise ValueError(f"{path}, line {line}: the file {given!r} has a line already, {earlier[0]}")
        rows[position[name]] = line, row
    missing = [name for name, row in zip(images, rows) if row is None]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(images)} images have no line: {', '.join(sorted(missing)[:3])}"
            f"{', ...' if len(missing) > 3 else ''}; add the lines or move the files"
        )
    found = [row for row in rows if row is not None]
    labels, class_names = _labels(path, found)
    return Metadata(labels, class_names, _captions(path, found))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, fields) of the non-empty lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    if None in row or None in row.values():
                        raise ValueError(f"line {reader.line_num}: has another number of columns than the first line")
                    yield reader.line_num, row
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    try:
                        row = json.loads(text)
                    except ValueError as error:
                        raise ValueError(f"line {line}: not JSON ({error})") from None
                    if not isinstance(row, dict):
                        raise ValueError(f"line {line}: not a JSON object: {text.strip()[:60]}")
                    yield line, row
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error


def _labels(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    if not any("label" in row for _, row in rows):
        return None, None
    values = []
    for line, row in rows:
        value = row.get("label")
        if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
            raise ValueError(f"{path}, line {line}: label must be an integer or a text; got {value!r}")
        values.append(value)
    if path.suffix == ".csv" and all(value.lstrip("-").isdecimal() for value in values if isinstance(value, str)):
        values = [int(value) for value in values]
    if all(isinstance(value, str) for value in values):
        class_names = sorted(set(map(str, values)))
        index: dict[Any, int] = {name: i for i, name in enumerate(class_names)}
        return np.array([index[value] for value in values], np.int32), tuple(class_names)
    for (line, _), value in zip(rows, values):
        if not isinstance(value, int):
            raise ValueError(f"{path}, line {line}: label {value!r} is a text, those of other lines are integers")
        if not 0 <= value < 2**31:
            raise ValueError(f"{path}, line {line}: label {value} is not a class 0, 1, ...")
    return np.array(values, np.int32), None


def _captions(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> tuple[str, ...] | None:
    name = next((name for name in _CAPTIONS if any(name in row for _, row in rows)), None)
    if name is None:
        return None
    for line, row in rows:
        if not isinstance(row.get(name), str):
            raise ValueError(f"{path}, line {line}: {name} must be a text; got {row.get(name)!r}")
    return tuple(row[name] for _, row in rows)
