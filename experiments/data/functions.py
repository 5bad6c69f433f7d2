"""Data sets that a function of the user's own returns: arrays, an indexable data set, or an iterable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.data.arrays import array_dataset, check_axes, check_values, convert_some, value_range
from experiments.data.dataset import Dataset, ImageSource, check_all_present, check_labels, field, memory_limit
from experiments.data.decoding import Format, pixels
from experiments.data.folders import check_image_fields, image_format

__all__ = ["load_function", "to_dataset"]

_CAPTIONS = ("text", "caption")
_PROBED = 64  # examples whose values are checked together when examples are read on demand


def load_function(config: Any, split: str) -> Dataset:
    """Returns what the function data.name = "package.module:function" returns for a split, as a data set.

    The function gets `(config.data, split)` with split "train" or "heldout", chooses the examples of the split itself
    (`split_indices` does it), and returns what `to_dataset` takes.

    Raises:
      ValueError: if the function cannot be imported or returns something else.
    """
    from experiments.runs import import_name

    function: Callable[[Any, str], Any] = import_name(config.name)
    if not callable(function):
        raise ValueError(f"data.name={config.name!r} is no function (data_config, split) -> data; it is {function!r}")
    return to_dataset(config, function(config, split), f"{config.name} ({split})", whole=split == "train")


def to_dataset(config: Any, returned: Any, where: str, *, whole: bool = True) -> Dataset:
    """Returns data of any of these forms as a `Dataset`; values are checked and mapped as those of array files.

    - a `Dataset`;
    - an array of images; a pair (images, labels); a dict of arrays with the keys of an .npz file;
    - an indexable data set: `len(data)` and `data[i]`, a dict or a pair. Its examples are read at once if they fit
      into data.memory_limit_mb, else each time they are used;
    - an iterable of such examples, with an end, which must fit into data.memory_limit_mb.

    The dict of an example has `image`, or data.images_key, and optionally `label`, or data.labels_key, and a caption
    `text`. An image is an array or a Pillow image; Pillow images are converted as data.resize and data.background say.

    Args:
      config: the fields of `config.data`.
      returned: the data.
      where: their origin, for messages.
      whole: whether every class must have an example: not in a held-out split.

    Raises:
      ValueError: for other forms, and values or labels out of range.
    """
    if isinstance(returned, Dataset):
        return _checked(config, returned, where)
    if _is_array(returned):
        return array_dataset(config, np.asarray(returned), None, None, where, whole=whole)
    if isinstance(returned, tuple) and len(returned) == 2 and _is_array(returned[0]):
        return array_dataset(config, np.asarray(returned[0]), returned[1], None, where, whole=whole)
    if isinstance(returned, Mapping):
        images = _pick(returned, (field(config, "images_key", "images"), "images", "image"))
        if images is None:
            raise ValueError(f"{where}: no array 'images'; it returned {', '.join(map(str, returned))}")
        labels = _pick(returned, (field(config, "labels_key", "labels"), "labels", "label"))
        return array_dataset(config, np.asarray(images), labels, returned.get("class_names"), where, whole=whole)
    if hasattr(returned, "__len__") and hasattr(returned, "__getitem__"):
        return _from_indexable(config, returned, where, whole)
    if isinstance(returned, Iterable):
        return _assemble(config, _Reader(config, where), returned, None, where, whole)
    raise ValueError(
        f"{where}: the function returned {type(returned).__name__}; it must return a Dataset, arrays, an indexable "
        "data set or an iterable of dicts with 'image' and 'label'"
    )


def _checked(config: Any, dataset: Dataset, where: str) -> Dataset:
    """Returns a data set of the user's own with its labels, and the images that are in memory, checked."""
    images, labels = dataset.images, dataset.labels
    if isinstance(images, np.ndarray):
        images = check_axes(images, where, field(config, "shape"))
        images = check_values(
            images, where, normalize=field(config, "normalize", True), value_range=value_range(config)
        )
    if labels is not None:
        labels, _ = check_labels(labels, len(dataset), dataset.num_classes, where)
    return dataclasses.replace(dataset, images=images, labels=labels)


class _Reader:
    """Takes examples apart: image, label and caption."""

    def __init__(self, config: Any, where: str) -> None:
        self._images = (field(config, "images_key", "images"), "image", "images")
        self._labels = (field(config, "labels_key", "labels"), "label", "labels")
        self._where, self._config = where, config
        self._shape = field(config, "shape")
        self._target: Format | None = None

    def __call__(self, example: Any, index: int) -> tuple[np.ndarray, Any, Any]:
        """Returns (image, label or None, caption or None) of example number `index`."""
        if isinstance(example, Mapping):
            image = _pick(example, self._images)
            if image is None:
                raise ValueError(
                    f"{self._where}: example {index} has no 'image'; it has {', '.join(map(str, example))}; set "
                    "data.images_key"
                )
            label, caption = _pick(example, self._labels), _pick(example, _CAPTIONS)
        elif isinstance(example, (tuple, list)) and len(example) == 2:
            image, label = example
            caption = None
        else:
            image, label, caption = example, None, None
        return self._array(image, index), label, caption

    def _array(self, image: Any, index: int) -> np.ndarray:
        if isinstance(image, Image.Image):
            if self._target is None:
                check_image_fields(self._config)
                channels = int((self._shape or (3,))[-1])
                self._target = image_format(self._config) or Format((image.height, image.width, channels))
            try:
                return pixels(image, self._target)
            except ValueError as error:
                raise ValueError(f"{self._where}: example {index}: {error}") from error
        if not _is_array(image):
            raise ValueError(f"{self._where}: example {index}: the image is {type(image).__name__}, not an array")
        array = np.asarray(image)
        if self._shape is not None and array.ndim == 2 and len(self._shape) == 3 and self._shape[-1] == 1:
            array = array[..., None]
        return array


def _assemble(config: Any, read: _Reader, examples: Iterable[Any], names: Any, where: str, whole: bool) -> Dataset:
    """Returns all examples in memory."""
    limit, used = memory_limit(config), 0
    images: list[np.ndarray] = []
    labels: list[Any] = []
    captions: list[Any] = []
    for index, example in enumerate(tqdm(examples, desc=f"reading {where}", leave=False, delay=2)):
        image, label, caption = read(example, index)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{where}: example {index} has the shape {image.shape}, those before it {images[0].shape}; resize "
                "them, or return Pillow images and set data.resize"
            )
        if images and image.dtype != images[0].dtype:
            raise ValueError(f"{where}: example {index} is {image.dtype}, those before it {images[0].dtype}")
        used += image.nbytes
        if used > limit:
            raise ValueError(
                f"{where}: more than data.memory_limit_mb={limit / 2**20:.3g} MB after {index + 1} examples. An "
                "iterable is read to its end before training: raise the limit, end the iterable earlier, or return "
                "an object with len(data) and data[i], which is read on demand"
            )
        images.append(image)
        labels.append(label)
        captions.append(caption)
    if not images:
        raise ValueError(f"{where}: no examples")
    dataset = array_dataset(config, np.stack(images), _labels(labels, where), names, where, whole=whole)
    return dataclasses.replace(dataset, captions=_texts(captions))


def _from_indexable(config: Any, source: Any, where: str, whole: bool) -> Dataset:
    """Returns an indexable data set in memory if it fits, else read on demand; labels are read in advance."""
    if not len(source):
        raise ValueError(f"{where}: no examples")
    read, count = _Reader(config, where), len(source)
    image, label, _ = read(source[0], 0)
    names = _class_names(source, config) if label is not None else None
    if count * image.nbytes <= memory_limit(config):
        return _assemble(config, read, (source[i] for i in range(count)), names, where, whole)
    check_axes(image[None], where, field(config, "shape"))
    probed = [read(source[int(i)], int(i))[0] for i in np.linspace(0, count - 1, min(_PROBED, count))]
    check_values(
        _stacked(probed, where), where, normalize=field(config, "normalize", True), value_range=value_range(config)
    )
    images = _OnDemand(source, read, config, where, image.shape, image.dtype)
    if label is None:
        return Dataset(images, None, image.shape, 0)
    column = _labels(_label_column(source, config, read), where)
    labels, num_classes = check_labels(column, count, None if names is None else len(names), where)
    if whole and names is None and field(config, "num_classes") != 0:
        check_all_present(labels, num_classes, where)
    return Dataset(images, labels, image.shape, num_classes, class_names=names)


@dataclasses.dataclass(frozen=True, eq=False)
class _OnDemand(ImageSource):
    """The images of an indexable data set, each checked when it is read."""

    source: Any
    read: _Reader
    config: Any
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> np.ndarray:
        image = self.read(self.source[index], index)[0]
        where = f"{self.where}: example {index}"
        if image.shape != self.shape or image.dtype != self.dtype:
            raise ValueError(f"{where} is {image.dtype} {image.shape}, others are {self.dtype} {self.shape}")
        return convert_some(self.config, image[None], where)[0]


def _label_column(source: Any, config: Any, read: _Reader) -> list[Any]:
    """Returns the label of every example, without decoding images where the data set has columns."""
    columns = getattr(source, "column_names", None)
    if isinstance(columns, (list, tuple)):
        name = next((n for n in (field(config, "labels_key", "labels"), "label", "labels") if n in columns), None)
        if name is not None:
            return list(source[name])
    return [read(source[i], i)[1] for i in tqdm(range(len(source)), desc="reading labels", delay=2)]


def _class_names(source: Any, config: Any) -> tuple[str, ...] | None:
    """Returns the class names of a data set of Hugging Face's `datasets` or torchvision, if it has them."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):
        feature = _pick(features, (field(config, "labels_key", "labels"), "label", "labels"))
        names = getattr(feature, "names", None)
    else:
        names = getattr(source, "classes", None)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) and names else None


def _labels(labels: list[Any], where: str) -> np.ndarray | None:
    missing = [i for i, label in enumerate(labels) if label is None]
    if len(missing) == len(labels):
        return None
    if missing:
        raise ValueError(f"{where}: {len(missing)} of {len(labels)} examples have no label, the first is {missing[0]}")
    try:
        return np.asarray([np.asarray(label)[()] for label in labels])
    except ValueError as error:
        raise ValueError(f"{where}: labels must be integers ({error})") from error


def _texts(captions: list[Any]) -> tuple[str, ...] | None:
    if any(caption is None for caption in captions):
        return None
    return tuple(c.decode() if isinstance(c, bytes) else str(c) for c in captions)


def _stacked(images: list[np.ndarray], where: str) -> np.ndarray:
    if len({(image.shape, image.dtype) for image in images}) > 1:
        raise ValueError(f"{where}: examples differ in shape or type; set data.resize, or convert them in the function")
    return np.stack(images)


def _pick(example: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    """Returns the first of the entries that is there and not None."""
    return next((example[key] for key in keys if key in example and example[key] is not None), None)


def _is_array(value: Any) -> bool:
    """Whether it is an array of NumPy, JAX, PyTorch or TensorFlow, or nested lists of numbers are not."""
    return hasattr(value, "__array__") and not isinstance(value, Image.Image)
