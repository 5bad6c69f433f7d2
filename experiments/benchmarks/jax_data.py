"""The data pipeline on its own."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

import diffusers_fn as dfn
from experiments import data
from experiments.benchmarks.work import Work

__all__ = ["batches"]


def batches(shape: Sequence[int], num_examples: int, flip: bool) -> Work:
    """Draws shuffled batches of uint8 images in memory onto the devices, as experiments.train does.

    Times are per example.

    Args:
      shape: [B, H, W, C], the shape of a batch.
      num_examples: size of the data set.
      flip: whether images are mirrored at random.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, *shape[1:]), np.uint8)
    dataset = data.Dataset(images, None, tuple(shape[1:]), 0)
    stream = data.batches(dataset, shape[0], 0, flip=flip)
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))

    def run() -> None:
        jax.block_until_ready(dfn.training.split_batch(next(stream), mesh))

    return Work(run=run, units=shape[0])
