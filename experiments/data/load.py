"""Loads the data set that `config.data` describes.

Fields of `config.data` (if a field is absent, None or "", its default holds):

| field | kinds | meaning |
|---|---|---|
| `name` | all | `digits`, `idx`, `images`, `arrays` or `toy2d` |
| `shape` | all | shape of one example, which is checked; None: any; (L, C): `arrays` of sequences |
| `num_classes` | all | None: taken from the data; 0: no labels; else labels must be smaller than this |
| `heldout_fraction` | all but `idx` | share of the examples in the held-out split (0.2) |
| `seed` | all but `idx` | seed of the split, and of the points of `toy2d` (0) |
| `path` | `idx`, `images`, `arrays` | folder or file |
| `image_size` | `images` | None or 0: all images must have the same size; S: centre-crop and resize to S x S |
| `channels` | `images` | 1 (grey) or 3 (RGB); default: the last axis of `shape`, or 3 |
| `memory_limit_mb` | `images` | decode at once if uint8 images need at most this many MB, else on demand (1024) |
| `images_key`, `labels_key` | `arrays` | names of the arrays in an .npz (`images`, `labels`) |
| `normalize` | `arrays` | False: float arrays, such as latents, may leave [-1, 1] (True) |
| `variant` | `toy2d` | `moons`, `two_spirals`, `swiss_roll`, `checkerboard`, `eight_gaussians`, `rings` |
| `num_examples` | `toy2d` | number of points, train and held-out together (10000) |
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.data.arrays import load_arrays
from experiments.data.dataset import Dataset, check_shape, field, select_split
from experiments.data.folders import load_images
from experiments.data.idx import load_idx
from experiments.data.toy2d import load_toy2d

__all__ = ["KINDS", "load", "load_digits"]


def load(data_config: Any, split: str) -> Dataset:
    """Returns the "train" or the "heldout" split of the data set that `data_config` describes.

    The two splits are disjoint and the same in every run. Images lie in [-1, 1] after `float_images`.

    Args:
      data_config: an object with the fields above as attributes, such as an `ml_collections.ConfigDict`.
      split: "train" or "heldout".

    Raises:
      ValueError: if the name or split is unknown, or the data are missing, damaged or out of range.

    >>> from types import SimpleNamespace
    >>> digits = load(SimpleNamespace(name="digits"), "train")
    >>> digits.images.shape, digits.num_classes
    ((1438, 8, 8, 1), 10)
    """
    if split not in ("train", "heldout"):
        raise ValueError(f'split must be "train" or "heldout"; got {split!r}')
    name = field(data_config, "name")
    if name not in KINDS:
        raise ValueError(f"data.name must be one of {', '.join(KINDS)}; got {name!r}")
    dataset = KINDS[name](data_config, split)
    check_shape(data_config, dataset.shape)
    bound = field(data_config, "num_classes")
    if bound == 0:
        return dataclasses.replace(dataset, labels=None, num_classes=0)
    if bound is None:
        return dataset
    if dataset.labels is None:
        raise ValueError(f"data.num_classes is {bound}, but this data set ({name}) has no labels; set it to 0 or None")
    if dataset.num_classes > bound:
        raise ValueError(
            f"data.num_classes is {bound}, but the labels of this data set ({name}) go up to "
            f"{dataset.num_classes - 1}; set it to at least {dataset.num_classes}, or to 0 for no labels"
        )
    return dataclasses.replace(dataset, num_classes=int(bound))


def load_digits(config: Any, split: str) -> Dataset:
    """Returns scikit-learn's 1,797 handwritten digits, 8x8x1, grey levels 0..16 mapped to [-1, 1].

    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
    (1998), https://doi.org/10.24432/C50P49 (the test part). The files come with scikit-learn.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    images = (digits.images[..., None] / 8.0 - 1.0).astype(np.float32)
    whole = Dataset(images, digits.target.astype(np.int32), (8, 8, 1), 10)
    return select_split(whole, split, field(config, "heldout_fraction", 0.2), field(config, "seed", 0), "digits")


KINDS: dict[str, Callable[[Any, str], Dataset]] = {
    "digits": load_digits,
    "idx": load_idx,
    "images": load_images,
    "arrays": load_arrays,
    "toy2d": load_toy2d,
}
