"""Data sets in folders of image files."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.data.dataset import (
    Dataset,
    check_all_present,
    check_shape,
    crops_at_random,
    field,
    memory_limit,
    read_rows,
    select_split,
)
from experiments.data.decoding import RESIZE, Format, decode, upright_size
from experiments.data.listing import SUFFIXES, list_images

__all__ = [
    "ImageFiles",
    "check_image_fields",
    "image_format",
    "in_memory",
    "load_images",
    "num_channels",
    "split_format",
]

_TOGETHER = 64  # images that a thread reads at a time


def load_images(config: Any, split: str) -> Dataset:
    """Returns one split of the images in the folder `data.path`, each uint8 `[H, W, C]`; see `list_images`.

    The files of the split are decoded at once, with a progress bar, if they need at most `data.memory_limit_mb`;
    otherwise each file is decoded on demand, and a damaged file is only found then. With the train split, one printed
    line names files that are no images.

    Raises:
      ValueError: if the folder or a field of the config is not as described there; if a file is damaged.
    """
    if field(config, "path") is None:
        raise ValueError(
            f"data.path is not set; set --config.data.path to a folder of images ({' '.join(SUFFIXES)}), or to one "
            "with a sub-folder per class"
        )
    folder = Path(config.path).expanduser()
    check_image_fields(config)
    listing = list_images(folder)
    if listing.left_out and split == "train":
        count, examples = len(listing.left_out), ", ".join(listing.left_out[:3])
        kind = "1 file that is no image" if count == 1 else f"{count} files that are no images"
        print(f"{folder}: left out {kind}: {examples}{', ...' if count > 3 else ''}")
    target = image_format(config) or _common_format(config, folder, listing.names)
    if listing.labels is not None and listing.class_names is None and field(config, "num_classes") != 0:
        check_all_present(listing.labels, listing.num_classes, str(folder))
    check_shape(config, target.shape, "; set data.shape to that, or data.resize to crop, pad or stretch")
    files = ImageFiles(folder, listing.names, split_format(target, split))
    whole = Dataset(
        files,
        listing.labels,
        target.shape,
        listing.num_classes,
        class_names=listing.class_names,
        names=listing.names,
        captions=listing.captions,
    )
    part = select_split(whole, split, field(config, "heldout_fraction", 0.2), field(config, "seed", 0), str(folder))
    return in_memory(part, memory_limit(config), f"decoding {split} images")


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded on demand: `files[i]` is uint8 of the shape `target.shape`; see `decode`."""

    folder: Path
    names: tuple[str, ...]
    target: Format

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return decode(self.folder / self.names[index], self.target)

    @property
    def random_crop(self) -> bool:
        """Whether training reads random crops, others in each epoch."""
        return self.target.resize == "adm_random_crop"

    def rows(self, indices: np.ndarray, random: np.ndarray | None = None) -> np.ndarray:
        """Returns several images `[n, H, W, C]`; crops are drawn from the uint64 numbers `random` [n, 4], if any."""
        numbers = [None] * len(indices) if random is None else random
        return np.stack(
            [decode(self.folder / self.names[int(i)], self.target, random=r) for i, r in zip(indices, numbers)]
        )

    def identity(self, index: int) -> bytes:
        """Returns the relative name and the size of a file, which identify the example without decoding it."""
        return f"{self.names[index]} {os.stat(self.folder / self.names[index]).st_size}".encode()


def check_image_fields(config: Any) -> None:
    """Raises ValueError if a field of `config.data` that says how images are converted has no meaning."""
    resize, size = field(config, "resize", "none"), field(config, "image_size", 0)
    if resize not in RESIZE:
        raise ValueError(f"data.resize must be one of {', '.join(RESIZE)}; got {resize!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(
            f"data.image_size must be 0 (that of data.shape) or a positive integer, in pixels; got {size!r}"
        )
    if (channels := num_channels(config)) not in (1, 3, 4):
        raise ValueError(
            "data.channels, by default the last axis of data.shape, must be 1 (grey), 3 (RGB) or 4 (RGB and opacity); "
            f"got {channels!r}"
        )
    colour = field(config, "background", (255, 255, 255))
    if isinstance(colour, str) or len(colour) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in colour):
        raise ValueError(f"data.background must be a colour (red, green, blue), each 0..255; got {colour!r}")
    shape = field(config, "shape")
    if shape is not None and len(shape) != 3:
        raise ValueError(f"data.shape must be (height, width, channels) for images; got {tuple(shape)}")
    if resize.startswith("adm_") and not size and shape is not None and shape[0] != shape[1]:
        raise ValueError(
            f"data.resize={resize} crops to squares; data.shape is {tuple(shape)}: set data.resize to crop, pad or "
            "stretch, or a square data.shape"
        )


def image_format(config: Any) -> Format | None:
    """Returns what images are converted to; None if nothing is resized and data.shape is not set.

    `data.image_size` = S gives S x S, by cropping unless `data.resize` selects another way. Otherwise the size is
    that of `data.shape`.
    """
    resize, size, shape = field(config, "resize", "none"), field(config, "image_size", 0), field(config, "shape")
    background: Any = tuple(field(config, "background", (255, 255, 255)))
    if size:
        return Format((size, size, num_channels(config)), "crop" if resize == "none" else resize, background)
    if resize == "none":
        return None
    if shape is None:
        raise ValueError(f"data.resize is {resize!r}, but neither data.shape nor data.image_size states a size")
    return Format((int(shape[0]), int(shape[1]), num_channels(config)), resize, background)


def split_format(target: Format, split: str) -> Format:
    """Returns the format of a split: of held-out images the crop is the central one."""
    return target._replace(resize="adm_crop") if split != "train" and target.resize == "adm_random_crop" else target


def in_memory(dataset: Dataset, limit: int, title: str) -> Dataset:
    """Returns the data set with its uint8 images read at once, if they need at most `limit` bytes; in several threads.

    Images that are cropped at random are not, because each epoch needs another crop.
    """
    if crops_at_random(dataset) or len(dataset) * int(np.prod(dataset.shape)) > limit:
        return dataset
    images = np.empty((len(dataset), *dataset.shape), np.uint8)

    def read(start: int) -> int:
        which = np.arange(start, min(start + _TOGETHER, len(dataset)))
        images[which] = read_rows(dataset.images, which)
        return len(which)

    starts = range(0, len(dataset), _TOGETHER)
    with ThreadPoolExecutor() as pool, tqdm(total=len(dataset), desc=title, disable=len(dataset) < 1000) as progress:
        try:
            for count in pool.map(read, starts):
                progress.update(count)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # of a damaged image: the others are not read
            raise
    return dataclasses.replace(dataset, images=images)


def num_channels(config: Any) -> int:
    """Returns data.channels, by default the last axis of data.shape, or 3."""
    channels: int = field(config, "channels", (field(config, "shape") or (3,))[-1])
    return channels


def _common_format(config: Any, folder: Path, names: tuple[str, ...]) -> Format:
    """Returns the format of the common size of all files, reading only their headers."""
    first = upright_size(folder / names[0])
    for name in names[1:]:
        if (size := upright_size(folder / name)) != first:
            raise ValueError(
                f"images differ in size: {folder / names[0]} is {first[1]}x{first[0]} and {folder / name} is "
                f"{size[1]}x{size[0]}; set data.resize to crop, pad or stretch to data.shape, or data.image_size to "
                "crop and resize them to squares"
            )
    background: Any = tuple(field(config, "background", (255, 255, 255)))
    return Format((*first, num_channels(config)), "none", background)
