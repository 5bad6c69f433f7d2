"""Data sets in folders of PNG and JPEG files."""

import dataclasses
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from experiments.data.dataset import Dataset, check_shape, field, select_split

__all__ = ["ImageFiles", "decode", "list_images", "load_images"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_HINT = "set --config.data.path to a folder of .png, .jpg or .jpeg files, or to one with a sub-folder per class"
# Exceptions that Pillow raises for damaged files of these two formats.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_PNG_ORIENTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}  # PNG chunks that may hold an orientation
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 exchange width and height


def load_images(config: Any, split: str) -> Dataset:
    """Returns one split of the images in the folder `data.path`, each uint8 `[H, W, C]`.

    Files in sub-folders get labels by the sorted names of the sub-folders. The files of the split are decoded
    at once, with a progress bar, if they need at most `data.memory_limit_mb`; otherwise each file is decoded on
    demand, and a damaged file is only found then.
    """
    if field(config, "path") is None:
        raise ValueError(f"data.path is not set; {_HINT}")
    folder = Path(config.path).expanduser()
    size = field(config, "image_size") or None
    channels = field(config, "channels", (field(config, "shape") or (3,))[-1])
    if channels not in (1, 3):
        raise ValueError(
            f"data.channels, by default the last axis of data.shape, must be 1 (grey) or 3 (RGB); got {channels!r}"
        )
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"data.image_size must be 0 (unchanged) or a positive integer, in pixels; got {size!r}")
    files, labels, num_classes = list_images(folder)
    height, width = (size, size) if size else _common_size(files)
    shape = (height, width, channels)
    check_shape(config, shape)  # before the images are decoded
    whole = Dataset(ImageFiles(tuple(files), shape, crop=size is not None), labels, shape, num_classes)
    part = select_split(whole, split, field(config, "heldout_fraction", 0.2), field(config, "seed", 0), str(folder))
    if len(part) * height * width * channels > field(config, "memory_limit_mb", 1024) * 2**20:
        return part
    images = np.empty((len(part), *shape), np.uint8)
    for i in tqdm(range(len(part)), desc=f"decoding {split} images", disable=len(part) < 1000):
        images[i] = part.images[i]
    return dataclasses.replace(part, images=images)


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded on demand: `files[i]` is uint8 of the shape `shape`; see `decode`."""

    paths: tuple[Path, ...]
    shape: tuple[int, int, int]
    crop: bool

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return decode(self.paths[index], self.shape, crop=self.crop)


def decode(path: Path, shape: tuple[int, int, int], *, crop: bool) -> np.ndarray:
    """Returns the pixels of one file as uint8 `[H, W, C]`, rotated by its EXIF orientation.

    Args:
      path: the file.
      shape: (H, W, C).
      crop: whether the largest centred square is resized (bicubic, antialiased) to H x W.

    Raises:
      ValueError: if the file is damaged, has more than 8 bits per channel, or another size.
    """
    height, width, channels = shape
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except _DAMAGED as error:
        raise ValueError(f"{path}: not a readable image ({error}); remove or replace the file") from error
    if mode.startswith(("I", "F")):
        raise ValueError(f"{path}: pixel mode {mode} is not 8 bits per channel; convert the file")
    if crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop(
            (left, top, left + side, top + side)
        )  # resize(box=...) would also read pixels outside the box
        image = square.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
    if pixels.shape != shape:
        raise ValueError(f"{path}: is {image.width}x{image.height}, not {width}x{height} as when it was listed")
    return pixels


def list_images(folder: Path) -> tuple[list[Path], np.ndarray | None, int]:
    """Returns (sorted files, int32 labels or None, number of classes) of a folder or its sub-folders.

    Raises:
      ValueError: if there are no images, or they lie both in the folder and in sub-folders.
    """
    if not folder.is_dir():
        raise ValueError(f"data.path is not a folder: {folder}; {_HINT}")
    flat = _images_in(folder)
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if flat and classes:
        raise ValueError(
            f"{folder}: images lie both in the folder ({flat[0].name}) and beside sub-folders "
            f"({classes[0].name}); put all of them in sub-folders, one per class, or none"
        )
    if flat:
        return flat, None, 0
    members = [_images_in(p) for p in classes]
    for subfolder, files in zip(classes, members):
        if not files:
            raise ValueError(f"{subfolder}: this class sub-folder holds no images; remove it or fill it")
    if not classes:
        raise ValueError(f"{folder}: no images; {_HINT}")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in members])
    return [file for files in members for file in files], labels, len(classes)


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


def _common_size(files: list[Path]) -> tuple[int, int]:
    """Returns the common (height, width) of all files, reading only their headers."""
    first = _header_size(files[0])
    for file in files[1:]:
        if (size := _header_size(file)) != first:
            raise ValueError(
                f"images differ in size: {files[0]} is {first[1]}x{first[0]} and {file} is "
                f"{size[1]}x{size[0]}; set data.image_size to crop and resize them"
            )
    return first


def _header_size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            width, height = image.size
            # getexif() would decode a PNG without such a chunk completely.
            has_exif = image.format == "JPEG" or _PNG_ORIENTATION & image.info.keys()
            turned = has_exif and image.getexif().get(_ORIENTATION, 1) >= 5
    except _DAMAGED as error:
        raise ValueError(f"{file}: not a readable image ({error}); remove or replace the file") from error
    return (width, height) if turned else (height, width)
