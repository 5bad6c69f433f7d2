"""What the training loop needs to know of the thing that it trains: config.task names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import diffusers_fn as dfn
from experiments import data, runs


class Task(NamedTuple):
    """A thing to train.

    Attributes:
      init: (key) -> params.
      loss: (params, key, batch) -> (loss [B], metrics [B]), with extras as a fourth argument where there are any.
      make_pictures: (dataset, key) -> draw, and draw(params, extras, path) writes a picture: always of the same
        noise, labels or images.
      extras_like: the shapes of what the loss needs beside the parameters; None for nothing.
      make_extras: (dataset) -> extras at the start of a run; what they come from (data, other runs) is read here.
      update_extras: (extras, metrics [B]) -> extras, after each step; None where they stay.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[..., Any]
    make_pictures: Callable[[data.Dataset, jax.Array], Callable[[Any, Any, Path], None]]
    extras_like: Any = None
    make_extras: Callable[[data.Dataset], Any] = lambda dataset: None
    update_extras: Callable[[Any, dict[str, jax.Array]], Any] | None = None


def make_task(config: ConfigDict) -> Task:
    """Returns the task of a config.

    Raises:
      ValueError: if config.task is unknown, or the config describes nothing that can be trained.
    """
    if config.task not in TASKS:
        raise ValueError(f"config.task must be one of {', '.join(sorted(TASKS))}; got {config.task!r}")
    return TASKS[config.task](config)


def diffusion(config: ConfigDict) -> Task:
    """Returns the task of a diffusion model; its picture is a grid of samples."""
    model, objective = dfn.build(config), dfn.build_objective(config)

    def make_pictures(dataset: data.Dataset, key: jax.Array) -> Callable[[Any, Any, Path], None]:
        labels = runs.grid_labels(config)
        num_samples = len(labels) if labels is not None else 1_000 if len(config.data.shape) == 1 else 64
        cond = None if labels is None else jnp.asarray(labels)
        keys = jax.random.split(key, num_samples)
        sample = jax.jit(lambda params: model.sample(params, keys, num_samples, cond=cond).x0)
        reference = data.float_images(dataset, np.arange(min(2_000, len(dataset))))

        def draw(params: Any, extras: Any, path: Path) -> None:
            runs.save_picture(path, np.asarray(sample(params)), None if labels is None else 10, reference)

        return draw

    return Task(
        model.init,
        objective.loss,
        make_pictures,
        extras_like=objective.extras,
        make_extras=lambda dataset: objective.extras,
        update_extras=objective.update_extras,
    )


TASKS: Mapping[str, Callable[[ConfigDict], Task]] = {
    "diffusion": diffusion,
}
