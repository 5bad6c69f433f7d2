"""Data sets in ArrayRecord files, each record a MessagePack map: random access, any number of shards.

    record = {"image": the content of a PNG, JPEG, ... file, "label": 3, "text": "a caption"}

`label` and `text` are optional. In place of a file's content, `image` may hold the bytes of uint8 pixels, with
`shape` [H, W, C]. A file `class_names.json` beside the shards may hold a list of the names of all classes.

ArrayRecord: https://github.com/google/array_record . MessagePack: https://msgpack.org .
"""

from __future__ import annotations

import array
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from tqdm import tqdm

from experiments.data.dataset import Dataset, field
from experiments.data.encoded import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    LABEL_KEYS,
    Texts,
    as_label,
    encoded_dataset,
    pick_key,
    shard_paths,
)
from experiments.data.index_files import indexed, shard_hashes

__all__ = ["SUFFIXES", "Records", "load_array_record", "open_shards", "read_class_names", "read_labels"]

SUFFIXES = (".array_record", ".arrayrecord")
_TOGETHER = 64  # records that are read at a time for their labels
_WHAT = "a folder of ArrayRecord shards (NAME.array_record-00000-of-00010 or NAME-00000.array_record)"


def load_array_record(config: Any, split: str) -> Dataset:
    """Returns one split of the ArrayRecord shards in the folder `data.path`.

    Raises:
      ValueError: if there are no shards, or a shard or a record cannot be read.
    """
    import msgpack

    if field(config, "path") is None:
        raise ValueError(f"data.path is not set; set --config.data.path to {_WHAT}")
    path = Path(config.path).expanduser()
    records = open_shards(shard_paths(path, SUFFIXES, _WHAT))

    def parsed(record: bytes, index: int) -> dict[str, Any]:
        return _parsed(record, lambda: records.where(index), msgpack.unpackb)

    first = parsed(records[0], 0)
    keys = [key for key in first if isinstance(key, str)]
    image = pick_key(keys, field(config, "images_key"), "images", IMAGE_KEYS, "images_key", records.where(0))
    label = pick_key(keys, field(config, "labels_key"), "labels", LABEL_KEYS, "labels_key", records.where(0))
    text = next((key for key in CAPTION_KEYS if key in keys), None)
    if image is None:
        raise ValueError(f"{records.where(0)}: no 'image'; it has {', '.join(keys)}; set data.images_key")
    if label is not None and field(config, "num_classes") != 0:
        fields = (label,)
        labels = read_labels(records, "array_record", fields, lambda record: msgpack.unpackb(record).get(label))
    else:
        labels = None
    captions = (
        None if text is None else Texts(lambda index: str(parsed(records[index], index).get(text, "")), len(records))
    )
    examples = _Examples(records, parsed, image, labels, read_class_names(records.shards), captions)
    return encoded_dataset(config, split, examples, str(path))


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The records of ArrayRecord shards, one after the other: `records[i]` is bytes."""

    shards: tuple[Path, ...]
    source: Any
    ends: np.ndarray

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> bytes:
        return self.many([index])[0]

    def many(self, indices: Sequence[int]) -> Sequence[bytes]:
        """Returns several records, which are read at once."""
        try:
            records: Sequence[bytes] = self.source.__getitems__(indices)
        except Exception as error:  # array_record raises the status of its C++ code, of several types
            raise ValueError(
                f"{self.where(indices[0])}, or one that is read with it: cannot be read ({_line(error)}); write the "
                "shard again"
            ) from error
        return records

    def place(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns (number of the shard, number within it) of records."""
        which = np.searchsorted(self.ends, indices, side="right")
        before = np.concatenate([[0], self.ends[:-1]])
        return which, np.asarray(indices) - before[which]

    def where(self, index: int) -> str:
        which, number = self.place(index)
        return f"{self.shards[int(which)]}: record {int(number)}"

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return shard_hashes(self.shards, *self.place(indices))


def open_shards(shards: Sequence[Path]) -> Records:
    """Returns the records of the shards; opens each for its number of records.

    Raises:
      ValueError: if a shard cannot be read.
    """
    from array_record.python import array_record_module

    counts = []
    for shard in shards:
        try:
            reader = array_record_module.ArrayRecordReader(str(shard))
            counts.append(reader.num_records())
            reader.close()
        except Exception as error:  # the status of its C++ code, of several types
            raise ValueError(f"{shard}: not a readable ArrayRecord file ({_line(error)}); write it again") from error
    instructions = [_Instruction(str(shard), 0, count, count) for shard, count in zip(shards, counts) if count]
    if not instructions:
        raise ValueError(f"{shards[0].parent}: the ArrayRecord shards hold no records")
    return Records(tuple(shards), grain.sources.ArrayRecordDataSource(instructions), np.cumsum(counts))


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """Which records of a shard are read: all."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
    records: Records
    parsed: Callable[[bytes, int], dict[str, Any]]
    key: str
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    captions: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.records)

    def images(self, indices: Sequence[int]) -> Iterator[bytes | np.ndarray]:
        for index, record in zip(indices, self.records.many(indices)):
            yield self._image(self.parsed(record, index), index)

    def _image(self, record: dict[str, Any], index: int) -> bytes | np.ndarray:
        content, shape = record.get(self.key), record.get("shape")
        if not isinstance(content, bytes):
            raise ValueError(f"{self.where(index)}: {self.key!r} must hold bytes; got {type(content).__name__}")
        if shape is None:
            return content
        if not isinstance(shape, list) or len(content) != np.prod(shape, dtype=np.int64):
            raise ValueError(f"{self.where(index)}: {len(content)} bytes of pixels do not have the shape {shape!r}")
        return np.frombuffer(content, np.uint8).reshape(shape)

    def where(self, index: int) -> str:
        return self.records.where(index)

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return self.records.hashes(indices)


def read_labels(records: Records, kind: str, fields: Sequence[str], label_of: Callable[[bytes], Any]) -> np.ndarray:
    """Returns the labels of all records, which are read once for that, see `indexed`."""

    def build() -> dict[str, np.ndarray]:
        labels = array.array("q")
        starts = range(0, len(records), _TOGETHER)
        for start in tqdm(starts, desc="reading labels", delay=2):
            for index, record in enumerate(records.many(range(start, min(start + _TOGETHER, len(records)))), start):
                try:
                    label = label_of(record)
                except Exception as error:  # whatever the decoder raises for foreign bytes
                    raise ValueError(f"{records.where(index)}: cannot be decoded ({_line(error)})") from error
                labels.append(label if type(label) is int else as_label(label, records.where(index)))
        return {"labels": np.array(labels, np.int64)}

    return indexed(records.shards, kind, fields, build)["labels"]


def read_class_names(shards: Sequence[Path]) -> tuple[str, ...] | None:
    """Returns the texts in the file class_names.json beside shards; None without such a file."""
    path = shards[0].parent / "class_names.json"
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: must hold a list of texts, the names of the classes 0, 1, ...")
    return tuple(names)


def _parsed(record: bytes, where: Callable[[], str], unpack: Callable[[bytes], Any]) -> dict[str, Any]:
    try:
        parsed = unpack(record)
    except ValueError as error:  # msgpack's errors are of this type
        raise ValueError(
            f"{where()}: not a MessagePack map ({_line(error)}); of TFDS folders set data.name=tfds"
        ) from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{where()}: must be a MessagePack map; got {type(parsed).__name__}")
    return parsed


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
