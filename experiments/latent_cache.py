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

import diffusers_fn as dfn
from experiments import data
from experiments.latent_shards import Latents, read_latents
from experiments.orbax_checkpoints import checksum

__all__ = ["calibrate", "in_place_of", "read", "split"]

_TOGETHER = 4096  # latents that are read at a time to calibrate them


def read(config: ConfigDict, params: Any) -> Latents:
    """Returns the latents of the training data at config.latent.cache, which stay on disk.

    Args:
      config: config of the run.
      params: parameters of the autoencoder, compared by checksum.

    Raises:
      ValueError: if there are none, or an autoencoder with other parameters wrote them.
    """
    path = Path(config.latent.cache).expanduser()
    if not path.exists():
        raise ValueError(f"config.latent.cache = {str(path)!r} does not exist: run experiments.encode, or set it to ''")
    try:
        latents = read_latents(path)
    except ValueError as error:
        raise ValueError(f"config.latent.cache: {error}: run experiments.encode again, or set it to ''") from error
    if latents.checksum != checksum(params):
        raise ValueError(
            f"config.latent.cache = {config.latent.cache!r} was made by another autoencoder, or at another training "
            "step, than that of config.latent.autoencoder_workdir (a run that has begun keeps its own copy): run "
            "experiments.encode again, or set it to ''"
        )
    return latents


def calibrate(latents: Latents) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scale and shift of latents, see `diffusers_fn.latents.calibrate`; some are in memory at a time."""
    parts = (
        np.arange(start, min(start + _TOGETHER, len(latents.mean))) for start in range(0, len(latents.mean), _TOGETHER)
    )
    pairs = ((latents.mean.rows(which), latents.logvar.rows(which)) for which in parts)
    held: Any = lambda pair: pair  # noqa: E731, what is read is encoded already
    return dfn.latents.calibrate_codec(dfn.latents.Codec(held, lambda z: z), pairs)


def in_place_of(config: ConfigDict, dataset: data.Dataset, params: Any) -> data.Dataset:
    """Returns the training data with mean and logvar, concatenated on the last axis, in place of the images.

    They are read on demand if they need more than config.data.memory_limit_mb.

    Raises:
      ValueError: as `read`; if the number of latents or their labels differ from those of the data set; if
        config.data.flip is set, or the images are cropped at random.
    """
    latents = read(config, params)
    labels = dataset.labels
    same = labels is None or (latents.labels is not None and np.array_equal(latents.labels, labels))
    if len(latents.mean) != len(dataset) or not same:
        raise ValueError(
            f"config.latent.cache = {config.latent.cache!r} holds {len(latents.mean)} latents of other data, or of "
            f"another split, than the {len(dataset)} examples of config.data and config.seed: run experiments.encode "
            "with these"
        )
    if config.data.flip:
        raise ValueError("latents cannot be mirrored: set config.data.flip to False, or config.latent.cache to ''")
    if data.crops_at_random(dataset):
        raise ValueError(
            "latents are of one crop per image: set config.data.resize to 'adm_crop', or config.latent.cache to ''"
        )
    moments: Any = _Moments(latents)
    if moments.nbytes <= data.memory_limit(config.data):
        moments = moments.rows(np.arange(len(moments)))
    return dataclasses.replace(dataset, images=moments, shape=(*latents.mean.shape[:-1], 2 * latents.mean.shape[-1]))


class _Moments:
    """Mean and logvar, concatenated on the last axis, as a source of images."""

    def __init__(self, latents: Latents) -> None:
        self._parts = latents.mean, latents.logvar
        self.nbytes = 4 * 2 * len(latents.mean) * int(np.prod(latents.mean.shape))

    def __len__(self) -> int:
        return len(self._parts[0])

    def __getitem__(self, index: int, /) -> np.ndarray:
        row: np.ndarray = self.rows(np.array([index]))[0]
        return row

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return np.concatenate([part.rows(indices).astype(np.float32, copy=False) for part in self._parts], axis=-1)

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        return self._parts[0].hashes(indices)


def split(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns a batch from `in_place_of` in the format of `latents.in_latent_space`: mean and logvar apart.

    >>> sorted(split({"image": jnp.zeros((2, 6)), "label": jnp.arange(2)}))
    ['label', 'logvar', 'mean']
    """
    mean, logvar = jnp.split(batch["image"], 2, axis=-1)
    others = {name: value for name, value in batch.items() if name != "image"}
    return {**others, "mean": mean, "logvar": logvar}
