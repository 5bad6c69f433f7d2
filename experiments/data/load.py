"""Turns `config.data` into a data set.

Fields of `config.data` (an absent field, None or "" takes the default):

| field | kinds | meaning |
|---|---|---|
| `name` | all | `digits`, `idx`, `images`, `arrays` or `toy2d` |
| `shape` | all | of one example; None: found in the data; else the data must have it; (L, C): `arrays` of sequences |
| `num_classes` | all | None: found in the data; 0: drop the labels; else a bound that labels must keep |
| `heldout_fraction` | all but `idx` | share of the examples that is held out (0.2) |
| `seed` | all but `idx` | seed of the split, and of the points of `toy2d` (0) |
| `path` | `idx`, `images`, `arrays` | folder or file |
| `image_size` | `images` | None or 0: all must be of one size; S: centre-crop and resize to S x S |
| `channels` | `images` | 1 (grey) or 3 (RGB); the last axis of `shape`, or else 3 |
| `memory_limit_mb` | `images` | decode at once up to this many MB of uint8, else on demand (1024) |
| `images_key`, `labels_key` | `arrays` | names inside an .npz (`images`, `labels`) |
| `normalize` | `arrays` | False: take float arrays as they are, such as latents (True) |
| `variant` | `toy2d` | `moons`, `two_spirals`, `swiss_roll`, `checkerboard`, `eight_gaussians`, `rings` |
| `num_examples` | `toy2d` | how many points are drawn, train and held-out together (10000) |
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


def load(data_config: Any, split: str) -> Dataset:
    """Returns the "train" or the "heldout" part of the data set that `data_config` describes.

    The two parts are disjoint and the same in every run. Images lie in [-1, 1] after `float_images`.

    Args:
      data_config: an object with the fields above, such as an `ml_collections.ConfigDict`.
      split: "train" or "heldout".

    Raises:
      ValueError: for an unknown name or split, and for data that is missing, damaged or out of range; the
        message says what was given, what is allowed and what to do.

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
