"""Data sets in NumPy files."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import UNREADABLE, Dataset, check_labels, field, select_split

__all__ = ["check_images", "load_arrays"]


def load_arrays(config: Any, split: str) -> Dataset:
    """Returns one split of the arrays in `data.path`: an .npy of images, or an .npz of images and labels.

    With `data.shape` = (L, C) the examples are sequences `[n, L, C]`.

    uint8 images stay uint8 and are mapped to [-1, 1] by the pipeline. Float images must lie in [-1, 1], unless
    `data.normalize=False` accepts any range (latents, standardised measurements).
    """
    if field(config, "path") is None:
        raise ValueError("data.path is not set; set --config.data.path to an .npy or .npz file")
    path = Path(config.path).expanduser()
    images_key, labels_key = field(config, "images_key", "images"), field(config, "labels_key", "labels")
    images, labels = _read(path, images_key, labels_key)
    sequences = len(field(config, "shape", ())) == 2
    images = check_images(images, str(path), normalize=field(config, "normalize", True), sequences=sequences)
    num_classes = 0
    if labels is not None:
        labels, num_classes = check_labels(labels, len(images), None, str(path))
    whole = Dataset(images, labels, images.shape[1:], num_classes)
    return select_split(whole, split, field(config, "heldout_fraction", 0.2), field(config, "seed", 0), str(path))


def check_images(images: np.ndarray, where: str, *, normalize: bool = True, sequences: bool = False) -> np.ndarray:
    """Returns the images as uint8 or float32, `[n, H, W, C]` or `[n, D]`, or sequences `[n, L, C]`.

    Raises:
      ValueError: for a wrong rank or dtype, no examples, NaN or infinite entries, channel-first images, and floats
        outside [-1, 1] unless `normalize` is False.
    """
    shape = list(images.shape)
    if sequences and (images.ndim != 3 or 0 in shape):
        raise ValueError(
            f"{where}: data.shape is (L, C), so the examples must be sequences [n, L, C]; got shape {shape}"
        )
    if not sequences and (images.ndim not in (2, 4) or 0 in shape):
        hint = "; add a channel axis: images[..., None]" if images.ndim == 3 else ""
        raise ValueError(f"{where}: images must be [n, H, W, C] or points [n, D]; got shape {shape}{hint}")
    if images.ndim == 4 and shape[1] in (1, 3) and shape[2] == shape[3] > 4:
        raise ValueError(
            f"{where}: images of shape {shape} look channel-first; store [n, H, W, C]: images.transpose(0, 2, 3, 1)"
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{where}: images must be uint8 (0..255) or float (within [-1, 1]); got {images.dtype}")
    bad = ~np.isfinite(images)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{where}: {int(bad.sum())} of {images.size} image entries are NaN or infinite, the first at "
            f"index {first}; remove those examples"
        )
    images = images.astype(np.float32)
    low, high = float(images.min()), float(images.max())
    if normalize and not -1.0 <= low <= high <= 1.0:
        raise ValueError(
            f"{where}: float images must lie within [-1, 1]; got [{low:g}, {high:g}]; rescale them, store "
            "uint8, or set data.normalize=False to accept them unchanged"
        )
    return images


def _read(path: Path, images_key: str, labels_key: str) -> tuple[np.ndarray, np.ndarray | None]:
    if not path.is_file() or path.suffix not in (".npy", ".npz"):
        raise ValueError(f"data.path must be an existing .npy or .npz file; got {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            arrays = {key: loaded[key] for key in (images_key, labels_key) if key in loaded.files}
            names = loaded.files
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as NumPy arrays ({error})") from error
    if images_key not in arrays:
        raise ValueError(
            f"{path}: no array {images_key!r}; it holds {', '.join(names) or 'no arrays'}; set data.images_key"
        )
    return arrays[images_key], arrays.get(labels_key)
