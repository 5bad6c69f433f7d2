"""Data sets in tar files of images, as WebDataset writes them: read by the places of the members, without unpacking.

The members of one example lie one after the other and share the name up to the first dot: `0001.jpg`, and optionally
`0001.cls` (the class, an integer), `0001.txt` (a caption), or `0001.json` with `label` and `text`. A file
`class_names.json` beside the shards may hold a list of the names of all classes.

https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import array
import dataclasses
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.data.array_record import read_class_names
from experiments.data.dataset import Dataset, field
from experiments.data.encoded import CAPTION_KEYS, LABEL_KEYS, Texts, as_label, encoded_dataset, shard_paths
from experiments.data.index_files import indexed, shard_hashes
from experiments.data.listing import SUFFIXES

__all__ = ["load_tar"]

_WHAT = "a folder of tar files (NAME-00000.tar), or one of them"
_NO_LABEL = -(2**63)


def load_tar(config: Any, split: str) -> Dataset:
    """Returns one split of the tar files in the folder `data.path`.

    Raises:
      ValueError: if there are none, or one is compressed, damaged, or has examples without an image.
    """
    if field(config, "path") is None:
        raise ValueError(f"data.path is not set; set --config.data.path to {_WHAT}")
    path = Path(config.path).expanduser()
    shards = tuple(shard_paths(path, (".tar",), _WHAT))
    label = field(config, "labels_key", "labels")
    index = indexed(shards, "tar", (label,), lambda: _index(shards, label))
    if not len(index["images"]):
        raise ValueError(f"{path}: the tar files hold no images ({' '.join(SUFFIXES)})")
    labels: Any = index["labels"]
    absent = np.flatnonzero(labels == _NO_LABEL)
    if len(absent) == len(labels) or field(config, "num_classes") == 0:
        if label != "labels" and len(absent) == len(labels):
            raise ValueError(f"{path}: no member .json has {label!r}; correct data.labels_key")
        labels = None
    members = _Members(shards, index["shards"], index["images"], index["texts"])
    if labels is not None and len(absent):
        as_label(None, members.where(int(absent[0])))
    captions = Texts(members.caption, len(members)) if (index["texts"][:, 1] != 0).any() else None
    examples = _Examples(members, labels, read_class_names(shards), captions)
    return encoded_dataset(config, split, examples, str(path))


@dataclasses.dataclass(frozen=True, eq=False)
class _Members:
    """Where the members of the examples lie.

    Attributes:
      paths: the tar files.
      shards: int32 `[n]`, the tar file of an example.
      images, texts: int64 `[n, 2]`, offset and size; a size of 0 without a text, a negative one for JSON.
    """

    paths: tuple[Path, ...]
    shards: np.ndarray
    images: np.ndarray
    texts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, offset: int, size: int) -> bytes:
        path = self.paths[int(self.shards[index])]
        descriptor = os.open(path, os.O_RDONLY)
        try:
            content = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
        if len(content) != size:
            raise ValueError(f"{self.where(index)}: truncated; write the tar file again")
        return content

    def image(self, index: int) -> bytes:
        offset, size = self.images[index].tolist()
        return self.read(index, offset, size)

    def caption(self, index: int) -> str:
        offset, size = self.texts[index].tolist()
        content = self.read(index, offset, abs(size))
        return content.decode() if size >= 0 else str(_entry(json.loads(content), CAPTION_KEYS) or "")

    def where(self, index: int) -> str:
        return f"{self.paths[int(self.shards[index])]}: the image at byte {int(self.images[index, 0])}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
    members: _Members
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    captions: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.members)

    def images(self, indices: Sequence[int]) -> Iterator[bytes | np.ndarray]:
        return map(self.members.image, indices)

    def where(self, index: int) -> str:
        return self.members.where(index)

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return shard_hashes(self.members.paths, self.members.shards[indices], self.members.images[indices, 0])


def _index(shards: Sequence[Path], label_key: str) -> dict[str, np.ndarray]:
    """Returns the places of the members of all examples, and the labels; reads headers, .cls and .json members."""
    numbers, images, texts, labels = (array.array("q") for _ in range(4))
    for number, shard in enumerate(tqdm(shards, desc="indexing tar files", delay=2)):
        for example in _examples_of(shard, label_key):
            numbers.append(number)
            images.extend(example.image)
            texts.extend(example.text)
            labels.append(example.label)
    return {
        "shards": np.array(numbers, np.int32),
        "images": np.array(images, np.int64).reshape(-1, 2),
        "texts": np.array(texts, np.int64).reshape(-1, 2),
        "labels": np.array(labels, np.int64),
    }


@dataclasses.dataclass
class _Example:
    key: str
    image: tuple[int, int] = (0, 0)
    text: tuple[int, int] = (0, 0)
    label: int = _NO_LABEL


def _examples_of(shard: Path, label_key: str) -> list[_Example]:
    found: list[_Example] = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isfile() and not os.path.basename(member.name).startswith("."):
                    key, _, suffix = member.name.rpartition("/")[2].partition(".")
                    key = member.name[: len(member.name) - len(suffix)]
                    if not found or found[-1].key != key:
                        found.append(_Example(key))
                    _add(found[-1], archive, member, suffix.lower(), label_key, shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"{shard}: not a readable, uncompressed tar file ({error}); decompress it, or write it again"
        ) from error
    return [example for example in found if example.image[1]]


def _add(
    example: _Example, archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, label_key: str, shard: Path
) -> None:
    """Adds a member to its example; members of other kinds are passed over."""
    place, where = (member.offset_data, member.size), f"{shard}: {member.name}"
    if f".{suffix.rpartition('.')[2]}" in SUFFIXES:
        if example.image[1]:
            raise ValueError(f"{where}: a second image of one example; give each example a name of its own")
        example.image = place
    elif suffix == "txt":
        example.text = place
    elif suffix in ("cls", "json"):
        content: Any = archive.extractfile(member)
        try:
            held = json.loads(content.read())
        except ValueError as error:
            raise ValueError(f"{where}: must hold {'an integer' if suffix == 'cls' else 'JSON'} ({error})") from None
        if suffix == "cls":
            example.label = as_label(held, where)
        elif isinstance(held, dict):
            if (value := _entry(held, (label_key, *LABEL_KEYS))) is not None:
                example.label = as_label(value, where)
            if not example.text[1] and _entry(held, CAPTION_KEYS) is not None:
                example.text = (place[0], -place[1])


def _entry(held: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((held[key] for key in keys if held.get(key) is not None), None)
