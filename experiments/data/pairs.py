"""Pairs of noise and example written by `experiments.reflow`, read in place of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.data.dataset import UNREADABLE, Dataset

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
    labels = np.asarray(arrays["labels"], np.int32) if "labels" in arrays else None
    if images.shape != noise.shape or images.shape[1:] != tuple(dataset.shape) or not len(images):
        raise ValueError(
            f"{where} holds images {list(images.shape)} and noise {list(noise.shape)}; the data have shape "
            f"{tuple(dataset.shape)}"
        )
    if labels is not None and (len(labels) != len(images) or labels.max() >= dataset.num_classes):
        raise ValueError(f"{where} has labels of other classes than the {dataset.num_classes} of the data")
    return Dataset(images, labels, tuple(dataset.shape), dataset.num_classes if labels is not None else 0, noise)
