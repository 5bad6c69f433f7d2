"""Latent diffusion: loading the first stage, an autoencoder, and decoding the samples of the second stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import diffusers_fn as dfn
from experiments import data, latent_cache, processes, states
from experiments.files import write_text
from experiments.workdir import read_config_file

_COPY = "autoencoder.json"  # the first stage's config, in the second stage's work directory


def first_stage(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Returns the config of a run's autoencoder: the copy in the run's directory, once training has begun.

    Raises:
      ValueError: if there is none, or it was trained on data of another shape.
    """
    copy, given = workdir / _COPY, config.latent.autoencoder_workdir
    source = copy if copy.exists() else Path(given) / "config.json" if given else None
    if source is None or not source.exists():
        raise ValueError(
            "config.latent.enabled needs a trained autoencoder: set config.latent.autoencoder_workdir to the --workdir "
            f"of a run of configs/autoencoder.py; got {given!r}"
        )
    stage = read_config_file(source)
    if stage.get("task") != "autoencoder" or tuple(stage.data.shape) != tuple(config.data.shape):
        raise ValueError(
            f"config.latent.autoencoder_workdir = {given!r} holds a run of task {stage.get('task')!r} on data of shape "
            f"{tuple(stage.data.shape)}; an autoencoder of {tuple(config.data.shape)} (config.data.shape) is needed"
        )
    return stage


def keep_first_stage(stage: ConfigDict, workdir: Path) -> None:
    """Copies the first stage's config into the work directory, so that sampling needs no other directory."""
    if processes.is_main() and not (workdir / _COPY).exists():
        write_text(workdir / _COPY, json.dumps(stage.to_dict(), indent=2) + "\n")


def in_latents(config: ConfigDict, autoencoder: dfn.Autoencoder) -> ConfigDict:
    """Returns the config of a model of the latents: data of their shape, in any range, so that nothing is clipped."""
    inner = ConfigDict(config.to_dict())
    inner.data.shape = autoencoder.latent_shape
    inner.data.normalize = False
    return inner


def shape_of(shape: tuple[int, ...], data_shape: tuple[int, ...], latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the latents of data of another size, for a convolutional autoencoder.

    Raises:
      ValueError: if the latents have no axes of space, or the size is not a multiple of the autoencoder's factor.

    >>> shape_of((16, 24, 1), (8, 8, 1), (4, 4, 2))
    (8, 12, 2)
    """
    if len(latent_shape) != len(data_shape):
        raise ValueError(
            f"latents of shape {latent_shape} have no axes of space: samples of this model have the shape {data_shape}"
        )
    factors = [size // inner for size, inner in zip(data_shape[:-1], latent_shape[:-1])]
    if any(size % factor for size, factor in zip(shape, factors)):
        raise ValueError(f"the size of a sample must be a multiple of {factors}, as the autoencoder's; got {shape}")
    return (*(size // factor for size, factor in zip(shape, factors)), latent_shape[-1])


def extras_like(autoencoder: dfn.Autoencoder) -> Any:
    """Returns the shapes of `make_extras`."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    number = jax.ShapeDtypeStruct((), np.float32)
    return {"autoencoder": jax.eval_shape(autoencoder.init, key), "scale": number, "shift": number}


def make_extras(config: ConfigDict, stage: ConfigDict, autoencoder: dfn.Autoencoder, dataset: data.Dataset) -> Any:
    """Returns the autoencoder's averaged parameters, and the scale and shift of the data's latents."""
    workdir = Path(config.latent.autoencoder_workdir)
    _, state = states.load_state(stage, workdir, states.state_like(stage, autoencoder.init))
    if config.latent.cache:
        scale, shift = latent_cache.calibrate(latent_cache.read(config, state.ema))
    else:
        encode, params = jax.jit(autoencoder.encode), jax.device_put(state.ema)
        scale, shift = _calibrate(lambda x: encode(params, x), dataset)
    return {"autoencoder": state.ema, "scale": np.float32(scale), "shift": np.float32(shift)}


def decoded(config: ConfigDict, diffusion: dfn.Diffusion, autoencoder: dfn.Autoencoder, extras: Any) -> dfn.Diffusion:
    """Returns a model in latents as a model of the data. `extras`: the value of `make_extras`.

    Raises:
      ValueError: if config.latent.decode_batch_size is negative.
    """
    codec = dfn.latents.make_codec(autoencoder.encode, autoencoder.decode, extras["autoencoder"])
    size = config.latent.decode_batch_size
    if size < 0:
        raise ValueError(f"config.latent.decode_batch_size must be 0 (all at once) or more; got {size}")
    if size:
        codec = dfn.latents.in_chunks(codec, size)
    model: Any = diffusion
    return dfn.latents.in_latent_space(model, codec, scale=extras["scale"], shift=extras["shift"])


def _calibrate(encode: Callable[[Any], Any], dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of the latents of all examples, with a progress bar."""
    size = 500
    parts = tqdm(range(0, len(dataset), size), desc="calibrating", unit="batch", disable=len(dataset) <= size)
    batches = (data.float_images(dataset, np.arange(start, min(start + size, len(dataset)))) for start in parts)
    return dfn.latents.calibrate_codec(dfn.latents.Codec(encode, lambda z: z), batches)
