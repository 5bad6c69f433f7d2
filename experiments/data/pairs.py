"""Pairs of noise and example written by `experiments.reflow`, read in place of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.data.dataset import UNREADABLE, Dataset, check_labels

__all__ = ["paired"]


def paired(path: str, dataset: Dataset) -> Dataset:
    """Returns the pairs in a file as a data set with `noise`.

    Args:
      path: the file, config.data.pairs.
      dataset: the data that the pairs replace; shape and classes must match.

    Raises:
      ValueError: if the file does not exist or cannot be read, or its pairs have another shape or other classes.
    """
    where = f"config.data.pairs = {path!r}"
    if not Path(path).expanduser().is_file():
        raise ValueError(f"{where} does not exist: write it with experiments.reflow, or set it to ''")
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in ("images", "noise", "labels") if name in loaded.files}
    except UNREADABLE as error:
        raise ValueError(f"{where} cannot be read ({error}): write it again with experiments.reflow") from error
    missing = {"images", "noise"} - set(arrays)
    if missing:
        raise ValueError(f"{where} has no array {sorted(missing)[0]!r}: write the file with experiments.reflow")
    images, noise = (np.asarray(arrays[name], np.float32) for name in ("images", "noise"))
    if images.shape != noise.shape or images.shape[1:] != tuple(dataset.shape) or not len(images):
        raise ValueError(
            f"{where} holds images {list(images.shape)} and noise {list(noise.shape)}; the data have shape "
            f"{tuple(dataset.shape)}"
        )
    if not (np.isfinite(images).all() and np.isfinite(noise).all()):
        raise ValueError(f"{where} holds entries that are NaN or infinite: write it again with experiments.reflow")
    if dataset.labels is None:
        return Dataset(images, None, tuple(dataset.shape), 0, noise)
    if "labels" not in arrays:
        raise ValueError(
            f"{where} has no labels, the data have {dataset.num_classes} classes: write it again, or set "
            "data.num_classes=0"
        )
    labels, num_classes = check_labels(arrays["labels"], len(images), dataset.num_classes, where)
    return Dataset(images, labels, tuple(dataset.shape), num_classes, noise, dataset.class_names)
