"""Data sets that TensorFlow Datasets prepared with file_format="array_record", read without TensorFlow.

A folder NAME/VERSION holds dataset_info.json (the splits and their shards), features.json (what an example holds), one
file of class names per label, and the shards NAME-SPLIT.array_record-00000-of-00010 of tf.train.Example messages. Read
are one image, one class label and one text; folders with other features are fine, since those are not read.

https://www.tensorflow.org/datasets/external_tfrecord describes the folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.array_record import Records, open_shards, read_labels
from experiments.data.dataset import Dataset, field
from experiments.data.encoded import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    LABEL_KEYS,
    Texts,
    load_named_splits,
    pick_key,
)
from experiments.data.tf_example import parse_example

__all__ = ["load_tfds"]

_WHAT = "a folder of a data set of TensorFlow Datasets, such as ~/tensorflow_datasets/mnist/3.0.1"
_REMEDY = 'prepare it with builder.download_and_prepare(file_format="array_record")'
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def load_tfds(config: Any, split: str) -> Dataset:
    """Returns one split of the folder `data.path`: of `data.split`, or with `data.heldout_split` that one, held out.

    Raises:
      ValueError: if the folder is none of TFDS, in another file format, or has no such split or features.
    """
    if field(config, "path") is None:
        raise ValueError(f"data.path is not set; set --config.data.path to {_WHAT}")
    folder = Path(config.path).expanduser()
    info, features = _read_json(folder, "dataset_info.json"), _features(folder)
    if info.get("fileFormat") != "array_record":
        raise ValueError(f"{folder}: its file format is {info.get('fileFormat')!r}, not 'array_record'; {_REMEDY}")
    return load_named_splits(config, split, functools.partial(_open, config, folder, info, features), str(folder))


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
    records: Records
    key: str
    shape: tuple[int, ...] | None
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    captions: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.records)

    def images(self, indices: Sequence[int]) -> Iterator[bytes | np.ndarray]:
        for index, record in zip(indices, self.records.many(indices)):
            yield self._image(_parsed(self.records, index, record).get(self.key, []), index)

    def _image(self, value: list[Any], index: int) -> bytes | np.ndarray:
        if self.shape is not None:  # a tensor: one list of numbers
            if len(value) != np.prod(self.shape):
                raise ValueError(f"{self.where(index)}: {len(value)} numbers do not have the shape {self.shape}")
            return np.asarray(value, np.int64).astype(np.uint8).reshape(self.shape)
        if len(value) != 1 or not isinstance(value[0], bytes):
            raise ValueError(f"{self.where(index)}: {self.key!r} does not hold the content of one image file")
        content: bytes = value[0]
        return content

    def where(self, index: int) -> str:
        return self.records.where(index)

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return self.records.hashes(indices)


def _open(config: Any, folder: Path, info: Mapping[str, Any], features: Mapping[str, Any], split: str) -> _Examples:
    records = open_shards(_shards(folder, info, split))
    where = str(folder / "features.json")
    image = _pick(features, config, "images", IMAGE_KEYS, where)
    label = _pick(features, config, "labels", LABEL_KEYS, where)
    if image is None:
        raise ValueError(f"{where}: no feature 'image'; it has {', '.join(features)}; set data.images_key")
    shape = _image_shape(features[image], image, where)
    labels = names = None
    if label is not None and field(config, "num_classes") != 0:
        if _kind(features[label]) not in ("ClassLabel", "Scalar", "Tensor"):
            raise ValueError(
                f"{where}: the feature {label!r} is {_kind(features[label])}, not a class label; set data.labels_key, "
                "or data.num_classes=0 if labels are not used"
            )
        labels = read_labels(records, "tfds", (split, label), lambda record: _only(parse_example(record)[label]))
        names = _class_names(folder / f"{label}.labels.txt")
    text = next((key for key in CAPTION_KEYS if _kind(features.get(key, {})) == "Text"), None)
    captions = None
    if text is not None:
        read = lambda index: _only(_parsed(records, index, records[index])[text]).decode()  # noqa: E731
        captions = Texts(read, len(records))
    return _Examples(records, image, shape, labels, names, captions)


def _pick(features: Mapping[str, Any], config: Any, default: str, common: Sequence[str], where: str) -> Any:
    name = f"{default}_key"
    return pick_key(list(features), field(config, name), default, common, name, where)


def _shards(folder: Path, info: Mapping[str, Any], name: str) -> list[Path]:
    """Returns the files of a split, all of which must be there."""
    splits = {split["name"]: split for split in info.get("splits", [])}
    if name not in splits:
        raise ValueError(
            f"{folder}: no split {name!r}; it has {', '.join(splits)}; set data.split or data.heldout_split"
        )
    split = splits[name]
    if (template := split.get("filepathTemplate", _TEMPLATE)) != _TEMPLATE:
        raise ValueError(f"{folder}: files named {template!r} are not supported, only {_TEMPLATE!r}; {_REMEDY}")
    count = len(split["shardLengths"])
    shards = [folder / f"{info['name']}-{name}.array_record-{number:05d}-of-{count:05d}" for number in range(count)]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise ValueError(
            f"{missing[0]}: {len(missing)} of the {count} shards of the split {name!r} are missing; {_REMEDY}"
        )
    return shards


def _features(folder: Path) -> dict[str, Any]:
    held = _read_json(folder, "features.json").get("featuresDict", {}).get("features")
    if not held:
        raise ValueError(f"{folder / 'features.json'}: its examples are no dictionaries of features")
    return dict(held)


def _image_shape(feature: Mapping[str, Any], name: str, where: str) -> tuple[int, ...] | None:
    """Returns the shape of a uint8 tensor; None of an encoded image."""
    kind = _kind(feature)
    stored = feature.get("image" if kind == "Image" else "tensor", {})
    if kind == "Image" and stored.get("dtype", "uint8") == "uint8":
        return None
    shape = tuple(int(size) for size in stored.get("shape", {}).get("dimensions", ()))
    if (
        kind == "Tensor"
        and stored.get("dtype") == "uint8"
        and stored.get("encoding", "none") == "none"
        and all(size > 0 for size in shape)
    ):
        return shape
    raise ValueError(
        f"{where}: the feature {name!r} is {kind} of {stored.get('dtype')}; only uint8 Image and uncompressed uint8 "
        "Tensor of known shape are read; write it as .npy shards, data.name=arrays"
    )


def _kind(feature: Mapping[str, Any]) -> str:
    """Returns the name of a feature's class, such as "Image"."""
    return str(feature.get("pythonClassName", "")).rsplit(".", 1)[-1]


def _class_names(path: Path) -> tuple[str, ...] | None:
    return tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else None


def _parsed(records: Records, index: int, record: bytes) -> dict[str, list[Any]]:
    try:
        return parse_example(record)
    except Exception as error:  # DecodeError, which is no ValueError
        raise ValueError(f"{records.where(index)}: not a tf.train.Example ({error}); {_REMEDY}") from error


def _only(values: Sequence[Any]) -> Any:
    """Returns the entry of a list of one."""
    return values[0] if len(values) == 1 else None


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder}: no {name}; set --config.data.path to {_WHAT}")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {_REMEDY}") from error
    if not isinstance(held, dict):
        raise ValueError(f"{path}: holds no object; {_REMEDY}")
    return held
