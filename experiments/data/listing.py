"""Which files of a folder are images, and the class of each."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.data.metadata import FILES, read_metadata
from experiments.data.sidecars import read_sidecars

__all__ = ["SUFFIXES", "Listing", "list_images"]

# Of the formats that Pillow reads, those of pictures. `.avif` needs a Pillow with its library.
_WANTED = "png jpg jpeg jpe jfif webp bmp dib tif tiff gif apng avif ppm pgm pbm pnm tga qoi"
SUFFIXES = tuple(f".{name}" for name in _WANTED.split() if f".{name}" in Image.registered_extensions())
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
_HINT = f"set --config.data.path to a folder of images ({' '.join(SUFFIXES)}), or to one with a sub-folder per class"


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
      names: paths relative to the folder, with forward slashes, sorted by class and name.
      labels: int32 `[n]`, or None.
      class_names: of the classes 0, 1, ..., or None.
      captions: one per image, or None.
      left_out: relative paths of the files that are no images.
    """

    names: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    captions: tuple[str, ...] | None
    left_out: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        if self.class_names is not None:
            return len(self.class_names)
        return 0 if self.labels is None else int(self.labels.max()) + 1


def list_images(folder: Path) -> Listing:
    """Returns the images in a folder, with the classes that its sub-folders or its metadata file give them.

    A class is a sub-folder; its images may lie at any depth below it. Names that are whole numbers are ordered as
    numbers, others as text. `metadata.jsonl` or `metadata.csv` in the folder, in the format of Hugging Face's
    imagefolder, has one line per image: `file_name` and, optionally, `label` (integer or text) and `text` (a caption).
    With such a file the sub-folders mean nothing. Without one, the text file beside an image, with the suffix .txt in
    place of its own, holds its caption. Hidden files and folders are skipped.

    Raises:
      ValueError: if there are no images; if images lie both in the folder and in sub-folders; if a class has none; if
        the sub-folders are splits (`train`, `test`); if the metadata do not fit the images.
    """
    if not folder.is_dir():
        raise ValueError(f"data.path is not a folder: {folder}; {_HINT}")
    images, others = _walk(folder)
    if not images and others:
        raise ValueError(f"{folder}: no images, only files such as {others[0]}; {_HINT}")
    metadata = read_metadata(folder, images)
    if metadata is None:
        listing = _by_folder(folder, images, others)
        captions, left_out = read_sidecars(folder, listing.names, others)
        return listing._replace(captions=captions, left_out=left_out)
    order = sorted(range(len(images)), key=lambda i: PurePosixPath(images[i]).parts)
    labels = None if metadata.labels is None else metadata.labels[order]
    captions = None if metadata.captions is None else tuple(metadata.captions[i] for i in order)
    return Listing(tuple(images[i] for i in order), labels, metadata.class_names, captions, others)


def _by_folder(folder: Path, images: list[str], others: tuple[str, ...]) -> Listing:
    subfolders = _subfolders(folder)
    flat = [name for name in images if "/" not in name]
    if flat and subfolders:
        raise ValueError(
            f"{folder}: images lie both in the folder ({min(flat)}) and beside sub-folders ({subfolders[0]}); put all "
            "of them in sub-folders, one per class, or none"
        )
    if not images and not subfolders:
        raise ValueError(f"{folder}: no images; {_HINT}")
    if flat:
        return Listing(tuple(sorted(flat)), None, None, None, others)
    if (found := [name for name in subfolders if name.lower() in _SPLITS]) and len(found) == len(subfolders):
        raise ValueError(
            f"{folder}: the sub-folders {', '.join(found)} are splits, not classes; set data.path to one of them, such "
            f"as {folder / found[0]}: the held-out images are a share of it, data.heldout_fraction"
        )
    index = {name: i for i, name in enumerate(subfolders)}
    parts = [PurePosixPath(name).parts for name in images]
    order = sorted(range(len(images)), key=lambda i: (index[parts[i][0]], parts[i]))
    labels = np.array([index[parts[i][0]] for i in order], np.int32)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(subfolders)) == 0)
    if empty.size:
        raise ValueError(
            f"{folder / subfolders[empty[0]]}: this class sub-folder holds no images; remove it or fill it"
        )
    return Listing(tuple(images[i] for i in order), labels, tuple(subfolders), None, others)


def _walk(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Returns the relative paths of the images and of all other visible files."""
    images: list[str] = []
    others: list[str] = []
    visited: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a link to a folder above it
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if _visible(name))
        prefix = "" if place == str(folder) else Path(place).relative_to(folder).as_posix() + "/"
        for name in files:
            if _visible(name) and not (not prefix and name in FILES):
                (images if name[name.rfind(".") :].lower() in SUFFIXES else others).append(prefix + name)
    return images, tuple(sorted(others))


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _subfolders(folder: Path) -> list[str]:
    names = [entry.name for entry in folder.iterdir() if _visible(entry.name) and entry.is_dir()]
    whole = all(name.isdecimal() for name in names)  # 2 comes before 10
    return sorted(names, key=(lambda name: (int(name), name)) if whole else None)  # type: ignore[arg-type]
