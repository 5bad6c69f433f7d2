"""Latents written by `experiments.encode`, read in place of the images that they encode."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import data
from experiments.orbax_checkpoints import checksum

__all__ = ["in_place_of", "read", "split"]


def read(config: ConfigDict, params: Any) -> dict[str, np.ndarray]:
    """Returns the arrays in the file config.latent.cache for the training data: mean, logvar and labels, if any.

    Args:
      config: config of the run.
      params: parameters of the autoencoder, compared by checksum.

    Raises:
      ValueError: if there is no such file, or an autoencoder with other parameters wrote it.
    """
    arrays = _load(config)
    if int(arrays["checksum"]) != checksum(params):
        raise ValueError(
            f"config.latent.cache = {config.latent.cache!r} was made by another autoencoder, or at another training "
            "step, than that of config.latent.autoencoder_workdir (a run that has begun keeps its own copy): run "
            "experiments.encode again, or set it to ''"
        )
    return arrays


def in_place_of(config: ConfigDict, dataset: data.Dataset, params: Any) -> data.Dataset:
    """Returns the training data with mean and logvar, concatenated on the last axis, in place of the images.

    Raises:
      ValueError: as `read`; if the number of latents or their labels differ from those of the data set; if
        config.data.flip is set.
    """
    arrays = read(config, params)
    moments = np.concatenate([arrays["mean"], arrays["logvar"]], axis=-1)
    labels = dataset.labels
    same = labels is None or np.array_equal(arrays.get("labels", ()), labels)
    if len(moments) != len(dataset) or not same:
        raise ValueError(
            f"config.latent.cache = {config.latent.cache!r} holds {len(moments)} latents of other data, or of another "
            f"split, than the {len(dataset)} examples of config.data and config.seed: run experiments.encode with these"
        )
    if config.data.flip:
        raise ValueError("latents cannot be mirrored: set config.data.flip to False, or config.latent.cache to ''")
    return dataclasses.replace(dataset, images=moments, shape=moments.shape[1:])


def split(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns a batch from `in_place_of` in the format of `latents.in_latent_space`: mean and logvar apart.

    >>> sorted(split({"image": jnp.zeros((2, 6)), "label": jnp.arange(2)}))
    ['label', 'logvar', 'mean']
    """
    mean, logvar = jnp.split(batch["image"], 2, axis=-1)
    others = {name: value for name, value in batch.items() if name != "image"}
    return {**others, "mean": mean, "logvar": logvar}


def _load(config: ConfigDict) -> dict[str, np.ndarray]:
    path = Path(config.latent.cache).expanduser()
    if not path.is_file():
        raise ValueError(f"config.latent.cache = {str(path)!r} does not exist: run experiments.encode, or set it to ''")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in ("mean", "logvar", "labels", "checksum") if name in loaded.files}
    except data.UNREADABLE as error:
        raise ValueError(f"config.latent.cache = {str(path)!r} cannot be read ({error})") from error
    if not {"mean", "logvar", "checksum"} <= set(arrays):
        raise ValueError(f"config.latent.cache = {str(path)!r} was not written by experiments.encode")
    return arrays
