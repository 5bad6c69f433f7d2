"""The data set type, its split into train and held-out examples, and checks. Shared by every kind of data."""

import dataclasses
import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

__all__ = [
    "UNREADABLE",
    "Dataset",
    "ImageSource",
    "check_all_present",
    "check_labels",
    "check_shape",
    "crops_at_random",
    "field",
    "float_images",
    "hash_each",
    "memory_limit",
    "philox",
    "read_rows",
    "select_split",
    "source_hashes",
    "split_indices",
]

# Pixel value 0..255 -> [-1, 1]; a table look-up is exact without float64 images.
_FLOAT_OF_UINT8 = (np.arange(256) / 127.5 - 1.0).astype(np.float32)
# Exceptions that np.load raises for files that are truncated, damaged or of another format.
UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    TypeError,
    AttributeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
_DEFAULT_MEGABYTES = 1024
_SPLIT_STREAM = 2**64 - 1  # the second half of the Philox key; the epochs of the pipeline use 0, 1, 2, ...


class ImageSource(Protocol):
    """Images that are read on demand: `source[i]` is an array `[H, W, C]`, uint8 or float32 in [-1, 1].

    A source may also have

    - `rows(indices) -> [n, H, W, C]`, which reads several at once;
    - `identity(i) -> bytes`, which identifies an example without reading it, or, for many examples,
      `hashes(indices) -> uint64 [n]`;
    - `random_crop = True` and `rows(indices, random) -> [n, H, W, C]` with uint64 `random` [n, 4]: training reads these
      crops, others in each epoch.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples of one shape, with or without class labels.

    Attributes:
      images: `[n, *shape]`, float32 in [-1, 1] (in any range with data.normalize=False) or, to save memory, uint8
        0..255; or an `ImageSource` of n images. `float_images` converts each of them to float32.
      labels: int32 `[n]` in 0..num_classes-1, or None.
      shape: the shape of one example, such as `(8, 8, 1)` or `(2,)`.
      num_classes: number of classes of the whole data set, train and held-out; 0 without labels.
      noise: float32 `[n, *shape]`, the noise paired with each example, or None.
      class_names: of the classes 0, 1, ..., or None.
      names: of the examples, such as the file names, or None.
      captions: texts of the examples, or None.
      text: the conditions made of the captions, `[n, *S]`, or None; read as `text[indices]`.

    Raises:
      ValueError: if labels, noise, names, captions, text or class names are not as many as the examples or classes.
    """

    images: np.ndarray | ImageSource
    labels: np.ndarray | None
    shape: tuple[int, ...]
    num_classes: int
    noise: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    names: Sequence[str] | None = None
    captions: Sequence[str] | None = None
    text: Any = None

    def __post_init__(self) -> None:
        for name in ("labels", "noise", "names", "captions", "text"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != len(self.images):
                raise ValueError(f"a data set of {len(self.images)} images has {len(entries)} {name}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"a data set of {self.num_classes} classes has {len(self.class_names)} class names")

    def __len__(self) -> int:
        return len(self.images)


def float_images(
    dataset: Dataset, indices: Sequence[int] | np.ndarray | None = None, *, random: np.ndarray | None = None
) -> np.ndarray:
    """Returns the images at `indices` (all of them by default) as float32 `[n, *shape]`; uint8 0..255 becomes [-1, 1].

    With uint64 `random` [n, 4], sources that crop at random draw the crops from it.

    >>> d = Dataset(np.array([[[[0]]], [[[255]]]], np.uint8), None, (1, 1, 1), 0)
    >>> float_images(d).ravel().tolist()
    [-1.0, 1.0]
    """
    source: Any = dataset.images
    if isinstance(source, np.ndarray):
        images = source if indices is None else source[np.asarray(indices)]
    else:
        images = read_rows(source, np.arange(len(dataset)) if indices is None else np.asarray(indices), random)
    return _FLOAT_OF_UINT8[images] if images.dtype == np.uint8 else np.asarray(images, np.float32)


def read_rows(source: Any, indices: np.ndarray, random: np.ndarray | None = None) -> np.ndarray:
    """Returns several images of a source, `[n, *shape]`; random crops if it has them and `random` is given."""
    if random is not None and getattr(source, "random_crop", False):
        read: np.ndarray = source.rows(indices, random)
    elif (rows := getattr(source, "rows", None)) is not None:
        read = rows(indices)
    else:
        read = np.stack([source[int(i)] for i in indices])
    return read


def crops_at_random(dataset: Dataset) -> bool:
    """Returns whether training reads another crop of each image in each epoch."""
    return bool(getattr(dataset.images, "random_crop", False))


def split_indices(
    num_examples: int, heldout_fraction: float, seed: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sorted (train, held-out) indices: disjoint, all of 0..num_examples-1, stratified by label.

    With m = round(heldout_fraction * n), the examples are ordered by class, in random order within a class, and
    position i is held out if floor((i+1) m / n) > floor(i m / n). So m examples are held out, and the number per class
    differs from the share m/n of the class by less than one. The random order comes from raw Philox bits, which NumPy
    guarantees to be the same in every version.

    Args:
      num_examples: n.
      heldout_fraction: in [0, 1).
      seed: an integer >= 0.
      labels: `[n]` integers, or None to ignore classes.

    Raises:
      ValueError: if `heldout_fraction` or `seed` is out of range.

    >>> train, heldout = split_indices(10, 0.2, seed=0, labels=np.repeat([0, 1], 5))
    >>> len(train), len(heldout)
    (8, 2)
    """
    if not 0.0 <= heldout_fraction < 1.0:
        raise ValueError(f"data.heldout_fraction must lie in [0, 1); got {heldout_fraction}")
    n, m = num_examples, round(heldout_fraction * num_examples)
    random = philox(seed, _SPLIT_STREAM).random_raw(n)
    classes = np.zeros(n, np.int32) if labels is None else labels
    layout = np.lexsort((random, classes))
    position = np.arange(n)
    held = (position + 1) * m // n > position * m // n
    return np.sort(layout[~held]), np.sort(layout[held])


def philox(seed: int, stream: int) -> np.random.Philox:
    """Returns the counter-based bit generator of a pair (seed, stream); streams are independent.

    Raises:
      ValueError: if the seed is not an integer in [0, 2**63).

    >>> bool(philox(0, 1).random_raw() == philox(0, 1).random_raw())
    True
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"a data seed must be an integer in [0, 2**63); got {seed!r}")
    return np.random.Philox(key=np.array([int(seed), stream], np.uint64))


def field(config: Any, name: str, default: Any = None) -> Any:
    """Returns `config.name`, or `default` if the field is absent, None or an empty string."""
    value = getattr(config, name, None)
    return default if value is None or (isinstance(value, str) and not value) else value


def memory_limit(config: Any) -> int:
    """Returns data.memory_limit_mb in bytes: what the images of a split may need in memory."""
    limit = getattr(config, "memory_limit_mb", None)
    return round((_DEFAULT_MEGABYTES if limit is None else limit) * 2**20)


def check_shape(config: Any, shape: tuple[int, ...], remedy: str = "; set data.shape to that") -> None:
    """Raises ValueError if `config.shape` is set and differs from the shape of the examples."""
    expected = field(config, "shape")
    if expected is not None and tuple(expected) != shape:
        raise ValueError(
            f"data.shape is {tuple(expected)}, but the examples of this data set ({config.name}) have the shape "
            f"{tuple(shape)}{remedy}"
        )


def check_labels(labels: Any, num_images: int, num_classes: int | None, where: str) -> tuple[np.ndarray, int]:
    """Returns (int32 labels `[n]`, number of classes); `num_classes=None` derives it from the largest label.

    Raises:
      ValueError: unless there is one integer label in 0..num_classes-1 per image.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        hint = ""
        if labels.ndim == 2 and labels.shape[1] > 1:
            hint = "; of one-hot rows store labels.argmax(axis=1)"
        elif labels.ndim == 2:
            hint = "; store labels[:, 0]"
        elif labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.round(labels)).all():
            hint = "; store labels.astype(np.int32)"
        elif labels.dtype.kind in "US":
            hint = "; store names, labels = np.unique(labels, return_inverse=True) as `class_names` and `labels`"
        raise ValueError(
            f"{where}: labels must be integers of shape [n]; got {labels.dtype} of shape {list(labels.shape)}{hint}"
        )
    if len(labels) != num_images:
        raise ValueError(f"{where}: {len(labels)} labels for {num_images} images; there must be one for each")
    if labels.size and labels.min() < 0:
        first = int(np.argmax(labels < 0))
        raise ValueError(f"{where}: label {labels[first]} (index {first}) is negative; classes count from 0")
    largest = int(labels.max()) if labels.size else -1
    if largest >= 2**31 - 1:
        raise ValueError(f"{where}: label {largest} is too large; classes count from 0")
    if num_classes is None:
        num_classes = largest + 1
    if largest >= num_classes:
        first = int(np.argmax(labels >= num_classes))
        raise ValueError(
            f"{where}: label {labels[first]} (index {first}) is beyond the {num_classes} classes 0.."
            f"{num_classes - 1}; correct the labels or the number of classes"
        )
    return labels.astype(np.int32), num_classes


def check_all_present(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raises ValueError if a class has no example, as with a label 255 for "unlabelled"."""
    present = np.unique(labels)
    if len(present) < num_classes:
        absent = np.setdiff1d(np.arange(len(present) + 1), present)[0]
        raise ValueError(
            f"{where}: labels go up to {num_classes - 1}, but only {len(present)} of the classes 0..{num_classes - 1} "
            f"have examples; class {absent} has none. Number the classes without gaps, store the names of all classes "
            "as `class_names`, or set data.num_classes=0 if labels are not used"
        )


def source_hashes(source: Any, indices: np.ndarray) -> np.ndarray:
    """Returns uint64 `[n]` that identify the examples of a source: by its `hashes`, `identity`, or the indices."""
    if (hashes := getattr(source, "hashes", None)) is not None:
        return np.asarray(hashes(indices), np.uint64)
    identity = getattr(source, "identity", lambda i: str(i).encode())
    return hash_each(identity(int(i)) for i in indices)


def hash_each(entries: Iterable[Any]) -> np.ndarray:
    """Returns the 64-bit BLAKE2b hashes of bytes-like entries, uint64 `[n]`."""
    digests = b"".join(hashlib.blake2b(entry, digest_size=8).digest() for entry in entries)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def select_split(dataset: Dataset, split: str, heldout_fraction: float, seed: int, where: str) -> Dataset:
    """Returns the "train" or the "heldout" split of a whole data set, by `split_indices`."""
    train, heldout = split_indices(len(dataset), heldout_fraction, seed, dataset.labels)
    indices = train if split == "train" else heldout
    if not len(indices):
        raise ValueError(
            f"{where}: the {split} split is empty ({len(dataset)} examples, data.heldout_fraction="
            f"{heldout_fraction}); add examples or change data.heldout_fraction"
        )
    if isinstance(dataset.images, np.ndarray):
        images: Any = dataset.images[indices]
    else:
        images = _Subset(dataset.images, indices)
    labels = None if dataset.labels is None else dataset.labels[indices]
    noise = None if dataset.noise is None else dataset.noise[indices]
    names, captions = (_chosen(entries, indices) for entries in (dataset.names, dataset.captions))
    return dataclasses.replace(dataset, images=images, labels=labels, noise=noise, names=names, captions=captions)


def _chosen(entries: Sequence[str] | None, indices: np.ndarray) -> Sequence[str] | None:
    if entries is None or not isinstance(entries, (tuple, list)):  # read on demand
        return None if entries is None else _SubsetOfTexts(entries, indices)
    return tuple(entries[i] for i in indices)


@dataclasses.dataclass(frozen=True, eq=False)
class _SubsetOfTexts(Sequence[str]):
    source: Sequence[str]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any, /) -> Any:
        return self.source[int(self.indices[index])]


@dataclasses.dataclass(frozen=True, eq=False)
class _Subset:
    """The images of a source at some indices."""

    source: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> np.ndarray:
        image: np.ndarray = self.source[int(self.indices[index])]
        return image

    @property
    def random_crop(self) -> bool:
        return bool(getattr(self.source, "random_crop", False))

    def rows(self, indices: np.ndarray, random: np.ndarray | None = None) -> np.ndarray:
        return read_rows(self.source, self.indices[indices], random)

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return source_hashes(self.source, self.indices[indices])
