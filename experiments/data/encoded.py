"""Data sets of encoded images in large files: decoded on demand, with what every such format shares."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from experiments.data.dataset import (
    Dataset,
    check_all_present,
    check_labels,
    check_shape,
    field,
    memory_limit,
    select_split,
)
from experiments.data.decoding import Format, decode, pixels, upright_size
from experiments.data.folders import check_image_fields, image_format, in_memory, num_channels, split_format

__all__ = ["Examples", "Texts", "as_label", "encoded_dataset", "load_named_splits", "pick_key", "shard_paths"]

IMAGE_KEYS = ("image", "images", "img")
LABEL_KEYS = ("label", "labels")
CAPTION_KEYS = ("text", "caption")


class Examples(Protocol):
    """Examples in files, of which the images are read on demand.

    Attributes:
      labels: integers `[n]`, or None.
      class_names: of the classes 0, 1, ..., or None.
      captions: texts that are read on demand, or None.
    """

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def captions(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> Iterable[bytes | np.ndarray]:
        """Returns images: the content of a file, or pixels, uint8 `[H, W, C]` or `[H, W]`."""

    def where(self, index: int) -> str:
        """Returns the place of an example, for messages."""

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        """Returns uint64 `[n]` that identify examples without reading them."""


def encoded_dataset(config: Any, split: str, examples: Examples, where: str, *, whole: bool = True) -> Dataset:
    """Returns one split of encoded examples as a data set.

    The images of the split are decoded at once if they need at most `data.memory_limit_mb`, otherwise each time they
    are read, and a damaged image is only found then.

    Args:
      config: the fields of `config.data`.
      split: "train" or "heldout".
      examples: the examples.
      where: their origin, for messages.
      whole: whether the examples are those of both splits, of which a share is held out.

    Raises:
      ValueError: if a field of the config has no meaning, or the first image or the labels do not fit it.
    """
    if not len(examples):
        raise ValueError(f"{where}: no examples")
    check_image_fields(config)
    target = image_format(config) or _native_format(config, examples)
    check_shape(config, target.shape, "; set data.shape to that, or data.resize to crop, pad or stretch")
    images = _Images(examples, split_format(target, split))
    names, num_classes, labels = examples.class_names, 0, None
    if examples.labels is not None and field(config, "num_classes") != 0:
        labels, num_classes = check_labels(examples.labels, len(examples), None if names is None else len(names), where)
        if names is None and whole:
            check_all_present(labels, num_classes, where)
    dataset = Dataset(
        images,
        labels,
        target.shape,
        num_classes,
        class_names=names if labels is not None else None,
        captions=examples.captions,
    )
    if whole:
        dataset = select_split(dataset, split, field(config, "heldout_fraction", 0.2), field(config, "seed", 0), where)
    return in_memory(dataset, memory_limit(config), f"decoding {split} images")


def load_named_splits(config: Any, split: str, open_split: Callable[[str], Examples], where: str) -> Dataset:
    """Returns one split of a data set that has splits of its own: data.split, and data.heldout_split if it is set.

    Without data.heldout_split a share of data.split is held out.
    """
    trained_on, held_out = field(config, "split", "train"), field(config, "heldout_split")
    if held_out is None:
        return encoded_dataset(config, split, open_split(trained_on), where)
    if held_out == trained_on:
        raise ValueError(f"{where}: data.heldout_split is data.split, {held_out!r}: name another split, or none")
    examples = open_split(trained_on if split == "train" else held_out)
    dataset = encoded_dataset(config, split, examples, where, whole=False)
    if dataset.labels is None or dataset.class_names is not None:
        return dataset
    other = open_split(held_out if split == "train" else trained_on).labels
    largest = -1 if other is None else int(np.max(other, initial=-1))
    return dataclasses.replace(dataset, num_classes=max(dataset.num_classes, largest + 1))


@dataclasses.dataclass(frozen=True, eq=False)
class _Images:
    """The images of encoded examples as an `ImageSource`."""

    examples: Examples
    target: Format

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> np.ndarray:
        image: np.ndarray = self.rows(np.array([index]))[0]
        return image

    @property
    def random_crop(self) -> bool:
        return self.target.resize == "adm_random_crop"

    def rows(self, indices: np.ndarray, random: np.ndarray | None = None) -> np.ndarray:
        chosen = np.asarray(indices).tolist()
        rows = np.empty((len(chosen), *self.target.shape), np.uint8)
        for place, (index, content) in enumerate(zip(chosen, self.examples.images(chosen))):
            rows[place] = self._decoded(content, index, None if random is None else random[place])
        return rows

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return self.examples.hashes(indices)

    def _decoded(self, content: bytes | np.ndarray, index: int, random: np.ndarray | None) -> np.ndarray:
        where = functools.partial(self.examples.where, index)
        if isinstance(content, bytes):
            return decode(content, self.target, where=where, random=random)
        return _from_pixels(content, self.target, where, random)


def _from_pixels(array: np.ndarray, target: Format, where: Callable[[], str], random: np.ndarray | None) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(
            f"{where()}: the image is {array.dtype} of shape {list(array.shape)}; it must be the content of an image "
            "file, or uint8 [H, W, C]: store other numbers in .npy shards, data.name=arrays"
        )
    array = array if array.ndim == 3 else array[..., None]
    if array.shape == target.shape and random is None and array.shape[-1] != 4:
        return array
    if array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{where()}: the image has {array.shape[-1]} channels, not 1, 3 or 4")
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    try:
        return pixels(image, target, random)
    except ValueError as error:
        raise ValueError(f"{where()}: {error}") from error


def _native_format(config: Any, examples: Examples) -> Format:
    """Returns the format of the size of the first image; one of another size is refused when it is read."""
    content, background = next(iter(examples.images([0]))), field(config, "background", (255, 255, 255))
    size = upright_size(content, where=lambda: examples.where(0)) if isinstance(content, bytes) else content.shape[:2]
    return Format((int(size[0]), int(size[1]), num_channels(config)), "none", tuple(background))


@dataclasses.dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """Texts that `read(i)` reads on demand."""

    read: Callable[[int], str]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any, /) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.read(int(index))


def pick_key(keys: Sequence[str], given: Any, default: str, common: Sequence[str], field_name: str, where: str) -> Any:
    """Returns the key that a config field names; if it has its default, the first of the common keys, or None.

    Raises:
      ValueError: if the field names a key that is not there.
    """
    if given is not None and given != default and given not in keys:
        raise ValueError(f"{where}: no {given!r}; it has {', '.join(keys)}; correct data.{field_name}")
    return next((key for key in (given, *common) if key in keys), None)


def as_label(value: Any, where: str) -> int:
    """Returns the label of an example.

    Raises:
      ValueError: if it is None or no integer.
    """
    if value is None:
        raise ValueError(f"{where}: no label, but others have one; give all a label, or set data.num_classes=0")
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{where}: the label must be an integer 0, 1, ...; got {value!r:.40}")
    return int(value)


def shard_paths(path: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """Returns the shards that data.path names, sorted by name: a file, or those files of a folder with such a suffix.

    Raises:
      ValueError: if there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"data.path is neither a file nor a folder: {path}; set --config.data.path to {what}")
    found = sorted(file for file in path.iterdir() if file.is_file() and any(s in file.name for s in suffixes))
    found = [file for file in found if not file.name.startswith(".")]
    if not found:
        raise ValueError(f"{path}: no files *{suffixes[0]}; set --config.data.path to {what}")
    return found
