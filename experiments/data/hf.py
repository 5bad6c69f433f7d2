"""Data sets of Hugging Face's `datasets`, saved with `save_to_disk` and read from there; they need that library.

https://huggingface.co/docs/datasets/process#save
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import Dataset, field, hash_each
from experiments.data.encoded import CAPTION_KEYS, IMAGE_KEYS, LABEL_KEYS, Texts, load_named_splits, pick_key
from experiments.data.row_files import mixed

__all__ = ["load_hf"]

_WHAT = "a folder that dataset.save_to_disk(FOLDER) wrote"


def load_hf(config: Any, split: str) -> Dataset:
    """Returns one split of the folder `data.path`: of `data.split`, or with `data.heldout_split` that one, held out.

    A folder of one data set, not of several splits, has the split "train" alone. The image column holds images or uint8
    arrays; labels are a column of class labels or integers, captions one of texts.

    Raises:
      ValueError: if the library is not installed, the folder is none of its own, or lacks such a split or column.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"data.name=hf needs the library `datasets`, which cannot be imported ({error}): pip install datasets"
        ) from error
    if field(config, "path") is None:
        raise ValueError(f"data.path is not set; set --config.data.path to {_WHAT}")
    folder = Path(config.path).expanduser()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # of many types: missing, damaged or foreign files
        raise ValueError(f"{folder}: cannot be read ({_line(error)}); set --config.data.path to {_WHAT}") from error
    splits = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}

    def open_split(name: str) -> _Examples:
        if name not in splits:
            raise ValueError(
                f"{folder}: no split {name!r}; it has {', '.join(splits)}; set data.split or data.heldout_split"
            )
        return _open(config, splits[name], f"{folder} ({name})")

    return load_named_splits(config, split, open_split, str(folder))


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
    table: Any  # the image column, as Arrow data
    key: str
    origin: str
    files: tuple[Path, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    captions: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.table)

    def images(self, indices: Sequence[int]) -> Iterator[bytes | np.ndarray]:
        column = self.table[list(indices)][self.key]
        for index, value in zip(indices, column):
            yield self._image(value.as_py(), index)

    def _image(self, value: Any, index: int) -> bytes | np.ndarray:
        if isinstance(value, Mapping):  # an image: its content, or the path of its file
            content, path = value.get("bytes"), value.get("path")
            if content is None and path is None:
                raise ValueError(f"{self.where(index)}: the image is missing")
            if content is None:
                try:
                    return Path(str(path)).read_bytes()
                except OSError as error:
                    raise ValueError(f"{self.where(index)}: {path} cannot be read ({error.strerror})") from error
            return bytes(content)
        try:
            return np.asarray(value, np.uint8)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{self.where(index)}: not an image of uint8 numbers ({error})") from error

    def where(self, index: int) -> str:
        return f"{self.origin}: example {index}"

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        files = " ".join(f"{file.name} {file.stat().st_size}" for file in self.files)
        return mixed(hash_each([files.encode()]), np.asarray(indices))


def _open(config: Any, dataset: Any, origin: str) -> _Examples:
    import datasets

    columns = list(dataset.column_names)
    image = pick_key(columns, field(config, "images_key"), "images", IMAGE_KEYS, "images_key", origin)
    label = pick_key(columns, field(config, "labels_key"), "labels", LABEL_KEYS, "labels_key", origin)
    if image is None:
        raise ValueError(f"{origin}: no column 'image'; it has {', '.join(columns)}; set data.images_key")
    labels = names = None
    if label is not None and field(config, "num_classes") != 0:
        labels = np.asarray(dataset.with_format("numpy", columns=[label])[:][label])
        given = getattr(dataset.features[label], "names", None)
        names = tuple(map(str, given)) if given else None
    text = next((key for key in CAPTION_KEYS if key in columns), None)
    captions = None
    if text is not None:
        texts = dataset.with_format("arrow", columns=[text])
        captions = Texts(lambda index: str(texts[index][text][0].as_py()), len(dataset))
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    files = tuple(Path(str(file["filename"])) for file in dataset.cache_files)
    table = dataset.with_format("arrow", columns=[image])
    return _Examples(table, image, origin, files, labels, names, captions)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
