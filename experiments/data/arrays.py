"""Data sets in NumPy files, and checks of arrays of any origin."""

import functools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import (
    UNREADABLE,
    Dataset,
    check_all_present,
    check_labels,
    field,
    memory_limit,
    select_split,
)
from experiments.data.row_files import RowFile, RowFiles, from_npy, from_npz

__all__ = ["array_dataset", "check_axes", "check_values", "convert_some", "load_arrays", "shards_of", "value_range"]

_PROBED = 64  # images whose values are checked together when images are read on demand

_STATE_RANGE = (
    "set data.value_range=(0, 1) if 0 and 1 are the smallest and largest possible value, or data.value_range={} to "
    "accept them as they are"
)


def load_arrays(config: Any, split: str) -> Dataset:
    """Returns one split of the arrays in `data.path`.

    It is an .npy of images; an .npz of images and labels; or a folder of shards: `images-*.npy` and, as many,
    `labels-*.npy`, in the order of their names, where data.images_key and data.labels_key are other names than `images`
    and `labels`. An .npz may hold the texts `class_names`, a folder a file `class_names.npy`.

    With `data.shape` = (L, C) the examples are sequences `[n, L, C]`. `check_values` describes the values. Images that
    need more than `data.memory_limit_mb` are read on demand, row by row; some of them are checked at once, the others
    when they are read. The labels are always held in memory.
    """
    if field(config, "path") is None:
        raise ValueError("data.path is not set; set --config.data.path to an .npy or .npz file, or a folder of shards")
    path = Path(config.path).expanduser()
    images_key, labels_key = field(config, "images_key", "images"), field(config, "labels_key", "labels")
    arrays, files = _read(path, images_key, labels_key, memory_limit(config))
    labels, names = arrays.get(labels_key), arrays.get("class_names")
    if files is None:
        whole = array_dataset(config, arrays[images_key], labels, names, str(path))
    else:
        whole = _on_demand(config, files, labels, names, str(path))
    return select_split(whole, split, field(config, "heldout_fraction", 0.2), field(config, "seed", 0), str(path))


def array_dataset(
    config: Any, images: np.ndarray, labels: Any, class_names: Any, where: str, *, whole: bool = True
) -> Dataset:
    """Returns checked arrays as a data set.

    Args:
      config: the fields of `config.data`.
      images: the images.
      labels: one per image, or None.
      class_names: texts, or None.
      where: the origin of the arrays, for messages.
      whole: whether every class must have an example: not in a held-out split alone.
    """
    images = check_axes(np.asarray(images), where, field(config, "shape"))
    images = check_values(images, where, normalize=field(config, "normalize", True), value_range=value_range(config))
    return _with_labels(config, images, labels, class_names, where, whole)


def convert_some(config: Any, images: np.ndarray, where: str) -> np.ndarray:
    """Returns some of the images of a data set, whose range `check_values` cannot infer from them alone.

    Raises:
      ValueError: for values that are NaN or infinite, or out of range.
    """
    bounds = value_range(config)
    if not field(config, "normalize", True) or bounds is not None:
        return check_values(images, where, normalize=bounds is not None, value_range=bounds)
    return images if images.dtype == np.uint8 else check_values(images, where, value_range=(-1.0, 1.0))


def _on_demand(config: Any, files: Sequence[RowFile], labels: Any, class_names: Any, where: str) -> Dataset:
    """Returns arrays of which the images stay on disk."""
    source = RowFiles(files, functools.partial(convert_some, config))
    stored, count = RowFiles(files), len(source)
    check_axes(np.broadcast_to(np.zeros((), stored.dtype), (count, *stored.shape)), where, field(config, "shape"))
    some = stored.rows(np.unique(np.linspace(0, count - 1, min(_PROBED, count)).astype(np.int64)))
    check_values(some, where, normalize=field(config, "normalize", True), value_range=value_range(config))
    return _with_labels(config, source, labels, class_names, where, whole=True)


def _with_labels(config: Any, images: Any, labels: Any, class_names: Any, where: str, whole: bool) -> Dataset:
    shape = images.shape[1:] if isinstance(images, np.ndarray) else images.shape
    names = None if class_names is None else _check_names(class_names, where)
    if labels is None:
        return Dataset(images, None, shape, 0)
    labels, num_classes = check_labels(labels, len(images), None if names is None else len(names), where)
    if whole and names is None and field(config, "num_classes") != 0:
        check_all_present(labels, num_classes, where)
    return Dataset(images, labels, shape, num_classes, class_names=names)


def value_range(config: Any) -> tuple[float, float] | None:
    """Returns data.value_range as two numbers, low < high; None if it is not set.

    Raises:
      ValueError: if it is anything else, or contradicts data.normalize=False.
    """
    given = field(config, "value_range")
    if given is None:
        return None
    if not field(config, "normalize", True):
        raise ValueError(
            f"data.value_range={given} maps values to [-1, 1], and data.normalize=False leaves them unchanged: set one "
            "of them"
        )
    numbers = isinstance(given, Sequence) and all(isinstance(v, (int, float, np.number)) for v in given)
    if isinstance(given, str) or not numbers or len(given) != 2 or not np.isfinite(given).all() or given[0] >= given[1]:
        raise ValueError(f"data.value_range must be (low, high) with low < high; got {given!r}")
    return float(given[0]), float(given[1])


def check_axes(images: np.ndarray, where: str, shape: Sequence[int] | None) -> np.ndarray:
    """Returns the images, `[n, H, W, C]` or `[n, D]`, or sequences `[n, L, C]` if `shape` is (L, C).

    Raises:
      ValueError: for another rank, no examples, and channel-first images.
    """
    got, rank = list(images.shape), None if shape is None else len(shape)
    if rank == 2 and (images.ndim != 3 or 0 in got):
        raise ValueError(f"{where}: data.shape is (L, C), so the examples must be sequences [n, L, C]; got shape {got}")
    if rank != 2 and (images.ndim not in (2, 4) or 0 in got):
        hint = "; add a channel axis: images[..., None]" if images.ndim == 3 else ""
        raise ValueError(f"{where}: images must be [n, H, W, C] or points [n, D]; got shape {got}{hint}")
    wanted = None if shape is None else list(shape)
    guessed = wanted is None and images.ndim == 4 and got[1] in (1, 3) and got[2] == got[3] > 4
    if images.ndim == 4 and (guessed or (wanted != got[1:] and wanted == [got[2], got[3], got[1]])):
        raise ValueError(
            f"{where}: images of shape {got} look channel-first; store [n, H, W, C]: images.transpose(0, 2, 3, 1)"
        )
    return images


def check_values(
    images: np.ndarray, where: str, *, normalize: bool = True, value_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Returns the values in [-1, 1] as float32, or uint8 0..255, which `float_images` maps to [-1, 1].

    Args:
      images: array of numbers of any shape.
      where: its origin, for messages.
      normalize: False: every number becomes float32 and is otherwise unchanged, also uint8.
      value_range: (low, high), mapped linearly to -1 and 1. None: uint8 is 0..255, floats lie in [-1, 1].

    Raises:
      ValueError: for values that are NaN or infinite, outside `value_range`, or that leave the range in doubt: floats
        that all lie in [0, 1], uint8 up to 1, and integers of other types.

    >>> check_values(np.array([[0.0, 0.5, 1.0]]), "x", value_range=(0, 1)).tolist()
    [[-1.0, 0.0, 1.0]]
    """
    if images.dtype.kind not in "fiub":
        hint = "; save numbers, not objects: np.stack(images)" if images.dtype.kind == "O" else ""
        raise ValueError(f"{where}: images must be real numbers; got {images.dtype}{hint}")
    if images.dtype.kind == "f":
        _check_finite(images, where)
    low, high = float(images.min()), float(images.max())
    if not normalize:
        return images.astype(np.float32)
    if value_range is not None:
        return _mapped(images, where, low, high, value_range)
    if images.dtype == np.uint8:
        if high <= 1:
            raise ValueError(f"{where}: uint8 images of values up to {high:g}; " + _STATE_RANGE.format("(0, 255)"))
        return images
    if images.dtype.kind != "f":
        raise ValueError(
            f"{where}: images are {images.dtype} between {low:g} and {high:g}; set data.value_range to the smallest "
            "and largest possible value, which become -1 and 1, or data.normalize=False to use the numbers unchanged"
        )
    if not -1.0 <= low <= high <= 1.0:
        raise ValueError(
            f"{where}: float images must lie within [-1, 1]; got [{low:g}, {high:g}]; set data.value_range to the "
            "smallest and largest possible value, which become -1 and 1, or data.normalize=False to accept them "
            "unchanged"
        )
    if low >= 0:
        raise ValueError(
            f"{where}: all floats lie in [{low:g}, {high:g}], without a negative one; " + _STATE_RANGE.format("(-1, 1)")
        )
    return images.astype(np.float32)


def _mapped(images: np.ndarray, where: str, low: float, high: float, bounds: tuple[float, float]) -> np.ndarray:
    smallest, largest = bounds
    if low < smallest or high > largest:
        raise ValueError(
            f"{where}: values lie in [{low:g}, {high:g}], beyond data.value_range = ({smallest:g}, {largest:g})"
        )
    if images.dtype == np.uint8 and bounds == (0.0, 255.0):
        return images
    if bounds == (-1.0, 1.0):
        return images.astype(np.float32)
    mapped = np.empty(images.shape, np.float32)
    for start in range(0, len(images), 1024):  # a few at a time as float64
        part = images[start : start + 1024].astype(np.float64)
        mapped[start : start + 1024] = (part - smallest) * (2 / (largest - smallest)) - 1
    return mapped.clip(-1, 1, out=mapped)  # rounding may exceed 1 by a little


def _check_finite(images: np.ndarray, where: str) -> None:
    bad = ~np.isfinite(images)
    if images.dtype.itemsize > 4:  # beyond float32
        bad |= np.abs(images) > np.finfo(np.float32).max
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{where}: {int(bad.sum())} of {images.size} image entries are NaN or infinite, the first at "
            f"index {first}; remove those examples"
        )


def _check_names(class_names: Any, where: str) -> tuple[str, ...]:
    names = np.asarray(class_names)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise ValueError(f"{where}: class_names must be texts of shape [number of classes]; got {names.dtype}")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist())


def _read(
    path: Path, images_key: str, labels_key: str, limit: int
) -> tuple[dict[str, np.ndarray], tuple[RowFile, ...] | None]:
    """Returns (arrays by name, None), or (arrays other than the images, the images' files) if they exceed the limit."""
    if path.is_dir():
        return _read_shards(path, images_key, labels_key, limit)
    if not path.is_file() or path.suffix not in (".npy", ".npz"):
        raise ValueError(f"data.path must be an existing .npy or .npz file, or a folder of shards; got {path}")
    if path.suffix == ".npy" and path.stat().st_size > limit:
        return {}, (from_npy(path),)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {images_key: loaded}, None
        with loaded:
            names, large = loaded.files, _stored_size(path, images_key) > limit
            wanted = (labels_key, "class_names") if large else (images_key, labels_key, "class_names")
            arrays = {key: loaded[key] for key in wanted if key in names}
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as NumPy arrays ({error})") from error
    if images_key not in names:
        raise ValueError(
            f"{path}: no array {images_key!r}; it holds {', '.join(names) or 'no arrays'}; set data.images_key"
        )
    if labels_key != "labels" and labels_key not in arrays:
        raise ValueError(f"{path}: no array {labels_key!r}; it holds {', '.join(names)}; correct data.labels_key")
    return arrays, (from_npz(path, images_key),) if large else None


def _stored_size(path: Path, key: str) -> int:
    with zipfile.ZipFile(path) as archive:
        return next((member.file_size for member in archive.infolist() if member.filename == f"{key}.npy"), 0)


def _read_shards(
    folder: Path, images_key: str, labels_key: str, limit: int
) -> tuple[dict[str, np.ndarray], tuple[RowFile, ...] | None]:
    images, labels = (tuple(from_npy(path) for path in shards_of(folder, key)) for key in (images_key, labels_key))
    if not images:
        raise ValueError(
            f"{folder}: no files {images_key}-*.npy; write the shards of the images under such names, or set "
            "data.images_key"
        )
    if labels_key != "labels" and not labels:
        raise ValueError(f"{folder}: no files {labels_key}-*.npy; correct data.labels_key")
    RowFiles(images)  # raises unless rows agree
    arrays = {"class_names": np.load(file)} if (file := folder / "class_names.npy").is_file() else {}
    if labels:
        arrays[labels_key] = np.concatenate([shard.whole() for shard in labels])
    if sum(shard.nbytes for shard in images) > limit:
        return arrays, images
    return {images_key: np.concatenate([shard.whole() for shard in images]), **arrays}, None


def shards_of(folder: Path, key: str) -> list[Path]:
    """Returns the files `key-*.npy` of a folder in the order of their names."""
    return sorted(path for path in folder.glob("*.npy") if path.name.startswith(f"{key}-"))
