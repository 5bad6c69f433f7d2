"""Loads the data set that `config.data` describes.

Fields of `config.data` (if a field is absent, None or "", its default holds):

| field | kinds | meaning |
|---|---|---|
| `name` | all | a key of `KINDS`, or `"package.module:function"`, see `functions` |
| `shape` | all | shape of one example, which is checked; None: any; (L, C): `arrays` of sequences |
| `num_classes` | all | None: taken from the data; 0: no labels; else the data must have as many |
| `heldout_fraction` | all but `idx` | share of the examples in the held-out split (0.2); a function draws its own |
| `seed` | all but `idx` | seed of the split, and of the points of `toy2d` (0) |
| `path` | all but `digits`, `toy2d` | folder or file |
| `split` | `tfds`, `hf` | the split of the data set that is trained on (`train`) |
| `heldout_split` | `tfds`, `hf` | the split that is held out; None or "": a share of `split` |
| `resize` | image files | of another size: `none` (refused), `crop`, `pad`, `stretch`, `adm_crop`, `adm_random_crop` |
| `image_size` | image files | S: H x W is S x S, and `none` means `crop`; None or 0: that of `shape` |
| `background` | image files | RGB colour behind transparent pixels and beside padded images (white) |
| `channels` | image files | 1 (grey), 3 (RGB) or 4 (with opacity); default: the last axis of `shape`, or 3 |
| `memory_limit_mb` | all | images of a split that need more than this many MB are read on demand (1024) |
| `images_key`, `labels_key` | `arrays`, records | names of the arrays, features or columns (`images`, `labels`) |
| `value_range` | `arrays` | (low, high), which become -1 and 1; None: uint8 is 0..255, floats lie in [-1, 1] |
| `normalize` | `arrays` | False: numbers such as latents are used unchanged, also uint8 (True) |
| `variant` | `toy2d` | `moons`, `two_spirals`, `swiss_roll`, `checkerboard`, `eight_gaussians`, `rings` |
| `num_examples` | `toy2d` | number of points, train and held-out together (10000) |

Image files are those of `images`, `tar` and records; records are `array_record`, `tfds` and `hf`. A
function has the fields of `arrays` and, for Pillow images, of `images`. The other kinds always lie in [-1, 1].
docs/data.md describes each kind.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.data.array_record import load_array_record
from experiments.data.arrays import load_arrays
from experiments.data.dataset import Dataset, check_shape, field, select_split
from experiments.data.folders import load_images
from experiments.data.functions import load_function
from experiments.data.hf import load_hf
from experiments.data.idx import load_idx
from experiments.data.tar import load_tar
from experiments.data.tfds import load_tfds
from experiments.data.toy2d import load_toy2d

__all__ = ["KINDS", "has_heldout", "load", "load_digits"]


def load(data_config: Any, split: str) -> Dataset:
    """Returns the "train" or the "heldout" split of the data set that `data_config` describes.

    The two splits are disjoint and the same in every run. Values lie in [-1, 1] after `float_images`, unless
    `data.normalize` is False.

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
    own = isinstance(name, str) and ":" in name
    if not own and name not in KINDS:
        raise ValueError(
            f'data.name must be one of {", ".join(KINDS)}, or "package.module:function" of your own; got {name!r}'
        )
    if field(data_config, "value_range") is not None and not own and name != "arrays":
        raise ValueError(f"data.value_range is for data.name=arrays and functions; {name} has a fixed range")
    dataset = load_function(data_config, split) if own else KINDS[name](data_config, split)
    check_shape(data_config, dataset.shape)
    configured = field(data_config, "num_classes")
    if own and split == "heldout" and dataset.labels is not None and dataset.class_names is None:
        # The function's held-out examples may lack the last classes.
        dataset = dataclasses.replace(dataset, num_classes=max(dataset.num_classes, configured or 0))
    dataset = _with_classes(dataset, configured, name)
    if split == "train" and dataset.labels is not None:
        absent = np.flatnonzero(np.bincount(dataset.labels, minlength=dataset.num_classes) == 0)
        if absent.size:
            print(f"{name}: {absent.size} of {dataset.num_classes} classes have no training example: {_listed(absent)}")
    return dataset


def has_heldout(data_config: Any) -> bool:
    """Returns whether a data set has held-out examples: a share of it, or a split of their own."""
    own_split = field(data_config, "name") == "idx" or field(data_config, "heldout_split") is not None
    return own_split or field(data_config, "heldout_fraction", 0.2) != 0


def _with_classes(dataset: Dataset, num_classes: int | None, name: str) -> Dataset:
    """Returns the data set with that number of classes; None: its own, 0: without labels."""
    if num_classes == 0:
        return dataclasses.replace(dataset, labels=None, num_classes=0, class_names=None)
    if num_classes is None or num_classes == dataset.num_classes:
        return dataset
    remedy = "set config.data.num_classes (with backbone.num_classes None)"
    if dataset.labels is None:
        raise ValueError(f"{num_classes} classes are configured, but the data ({name}) have no labels; {remedy} to 0")
    if dataset.num_classes > num_classes:
        raise ValueError(
            f"{num_classes} classes are configured, but the labels of the data ({name}) go up to "
            f"{dataset.num_classes - 1}; {remedy} to {dataset.num_classes}, or to 0 for no labels"
        )
    raise ValueError(
        f"{num_classes} classes are configured, but the data ({name}) have {dataset.num_classes}: nothing would be "
        f"trained for the classes {dataset.num_classes}..{num_classes - 1}; {remedy} to {dataset.num_classes}"
    )


def _listed(numbers: np.ndarray) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


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
    "array_record": load_array_record,
    "tfds": load_tfds,
    "hf": load_hf,
    "tar": load_tar,
}
