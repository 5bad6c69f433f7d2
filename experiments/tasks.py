"""What can be trained: config.task names an entry of TASKS."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import diffusers_fn as dfn
from diffusers_fn.from_config import derived
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.noise import make_noise
from experiments import data, latent, latent_cache, over_devices, own, processes
from experiments.heldout import LevelLoss, level_loss
from experiments.pictures import picture_range, save_line, save_picture


class Task(NamedTuple):
    """Functions that the training loop calls.

    Attributes:
      init: (key) -> params.
      loss: (params, key, batch) -> (loss [B], metrics [B]), with extras as a fourth argument where there are any.
      make_pictures: (dataset, key) -> draw; draw(params, extras, path) writes a picture, each time from the same noise,
        labels or images.
      extras_like: shapes of the arrays that the loss needs beside the parameters; None for nothing.
      make_extras: (dataset) -> extras at the start of a run; reads the data and other runs where it needs them.
      update_extras: (extras, metrics [B]) -> extras after each step; None if they are constant.
      examples: (dataset, extras) -> the data set from which batches are drawn, in the same order.
      level_loss: the loss at given noise levels; None if there is none.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[..., Any]
    make_pictures: Callable[[data.Dataset, jax.Array], Callable[[Any, Any, Path], None]]
    extras_like: Any = None
    make_extras: Callable[[data.Dataset], Any] = lambda dataset: None
    update_extras: Callable[[Any, dict[str, jax.Array]], Any] | None = None
    examples: Callable[[data.Dataset, Any], data.Dataset] = lambda dataset, extras: dataset
    level_loss: LevelLoss | None = None


def make_task(config: ConfigDict, workdir: Path) -> Task:
    """Returns the task of a config, trained in a work directory.

    Raises:
      ValueError: if config.task is unknown, or the config is not one that can be trained.
    """
    task: Task = choose("task", config.task, TASKS).make(config, workdir)
    return task


def diffusion(config: ConfigDict, workdir: Path) -> Task:
    """Returns the task of a diffusion model; its picture is a grid of samples."""
    if config.latent.enabled:
        return latent_diffusion(config, workdir)
    tables = own.tables(config)
    model, objective = dfn.build(config, tables), dfn.build_objective(config, tables)
    return Task(
        model.init,
        objective.loss,
        lambda dataset, key: sample_grid(config, lambda extras: model, dataset, key),
        extras_like=objective.extras,
        make_extras=lambda dataset: objective.extras,
        update_extras=objective.update_extras,
        level_loss=level_loss(config, tables),
    )


def latent_diffusion(config: ConfigDict, workdir: Path) -> Task:
    """Returns the task of a diffusion model in the latents of a trained autoencoder, which its extras hold."""
    stage = latent.first_stage(config, workdir)
    net = dfn.build_autoencoder(stage)
    inner = latent.in_latents(config, net)
    tables = own.tables(inner)
    model = dfn.build(inner, tables)
    if dfn.build_objective(inner, tables).extras is not None:
        raise ValueError(
            f"config.loss.time_sampler = {config.loss.time_sampler!r} does not go with latents: set it to 'uniform'"
        )

    decoded = functools.partial(latent.decoded, config, model, net)

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array], extras: Any) -> Any:
        if config.latent.cache:
            batch = latent_cache.split(batch)
        return decoded(extras).loss(params, key, batch)

    def make_extras(dataset: data.Dataset) -> Any:
        latent.keep_first_stage(stage, workdir)
        return latent.make_extras(config, stage, net, dataset)

    def examples(dataset: data.Dataset, extras: Any) -> data.Dataset:
        if not config.latent.cache:
            return dataset
        return latent_cache.in_place_of(config, dataset, processes.gather(extras["autoencoder"]))

    return Task(
        model.init,
        loss,
        lambda dataset, key: sample_grid(config, decoded, dataset, key),
        extras_like=latent.extras_like(net),
        make_extras=make_extras,
        examples=examples,
    )


def sample_grid(
    config: ConfigDict, model_of: Callable[[Any], dfn.Diffusion], dataset: data.Dataset, key: jax.Array
) -> Callable[[Any, Any, Path], None]:
    """Returns draw(params, extras, path), which writes a grid of samples of model_of(extras), a row per condition."""
    labels = grid_labels(config, dataset)
    num_samples = len(labels) if labels is not None else 1_000 if len(config.data.shape) == 1 else 64
    rows = jax.random.split(key, num_samples), labels
    sample = jax.jit(lambda params, extras, keys, cond: model_of(extras).sample(params, keys, len(keys), cond=cond).x0)
    reference = data.float_images(dataset, np.arange(min(2_000, len(dataset))))
    bounds = _picture_range(config, reference)

    def draw(params: Any, extras: Any, path: Path) -> None:
        columns = None if labels is None else 10
        split = over_devices.split_rows(rows, over_devices.mesh_of(params))
        samples = over_devices.first_rows(sample(params, extras, *split), num_samples)
        if processes.is_main():
            save_picture(path, samples, columns, reference, bounds, alpha=config.data.name == "images")

    return draw


def grid_labels(config: ConfigDict, dataset: data.Dataset) -> np.ndarray | None:
    """Returns the conditions of a sample grid: ten of each of the first ten classes or captions; None without them.

    Classes of the network that no example has are left out: nothing was trained for them. Captions are those of
    examples that are evenly spaced in the data set.
    """
    if dataset.text is not None:
        return np.repeat(dataset.text[np.linspace(0, len(dataset) - 1, 10).round().astype(int)], 10, axis=0)
    if not derived.num_classes(config) or dataset.labels is None:
        return None
    return np.repeat(np.unique(dataset.labels)[:10], 10)


def _picture_range(config: ConfigDict, reference: np.ndarray) -> tuple[float, float]:
    """The values that black and white stand for; printed if they are those of the data at hand."""
    bounds = derived.data_range(config)
    found = picture_range(bounds, reference)
    if bounds is None and reference.ndim == 4:
        print(f"pictures: black is {found[0]:.4g}, white {found[1]:.4g}, the quantiles 0.5% and 99.5% of the data")
    return found


def autoencoder(config: ConfigDict, workdir: Path) -> Task:
    """Returns the task of an autoencoder; its picture has originals above their reconstructions."""
    net = dfn.build_autoencoder(config)

    def make_pictures(dataset: data.Dataset, key: jax.Array) -> Callable[[Any, Any, Path], None]:
        images = data.float_images(dataset, np.arange(min(10, len(dataset))))
        reconstruct = jax.jit(lambda params, x: net.decode(params, net.encode(params, x)[0]))
        bounds = _picture_range(config, images)

        def draw(params: Any, extras: Any, path: Path) -> None:
            split = over_devices.split_rows(images, over_devices.mesh_of(params))
            pair = np.concatenate([images, over_devices.first_rows(reconstruct(params, split), len(images))])
            if processes.is_main():
                save_picture(path, pair, len(images), images, bounds, alpha=config.data.name == "images")

        return draw

    return Task(net.init, net.loss, make_pictures)


def classifier(config: ConfigDict, workdir: Path) -> Task:
    """Returns the task of a noise-aware classifier; its picture is the accuracy on training data by noise level."""
    net = dfn.build_classifier(config)
    noise = make_noise(config.noise_schedule)

    def make_pictures(dataset: data.Dataset, key: jax.Array) -> Callable[[Any, Any, Path], None]:
        chosen = np.arange(min(1_000, len(dataset)))
        assert dataset.labels is not None
        images, labels = data.float_images(dataset, chosen), np.asarray(dataset.labels)[chosen]
        u = np.linspace(0.0, 1.0, 21)[:-1]

        @jax.jit
        def accuracies(params: Any, images: Any) -> tuple[jax.Array, jax.Array]:
            def at(u: jax.Array) -> tuple[jax.Array, jax.Array]:
                level = noise.level(u)
                eps = jax.random.normal(key, images.shape)
                logits = net.apply(params, level.alpha * images + level.sigma * eps, level.t)
                return jnp.asarray(level.sigma / level.alpha), jnp.mean(jnp.argmax(logits, axis=-1) == labels)

            return jax.lax.map(at, jnp.asarray(u, jnp.float32))

        def draw(params: Any, extras: Any, path: Path) -> None:
            ratio, accuracy = processes.gather(accuracies(params, images))
            if processes.is_main():
                save_line(path, ratio, accuracy, "sigma / alpha", "accuracy on training data")

        return draw

    return Task(net.init, net.loss, make_pictures)


class TaskEntry(NamedTuple):
    """A task that config.task names.

    Attributes:
      make: (config, workdir) -> Task.
      has_samples: whether samples can be drawn from a run of it.
    """

    make: Callable[[ConfigDict, Path], Task]
    has_samples: bool = False


TASKS: Mapping[str, TaskEntry] = {
    "diffusion": TaskEntry(diffusion, has_samples=True),
    "autoencoder": TaskEntry(autoencoder),
    "classifier": TaskEntry(classifier),
}
