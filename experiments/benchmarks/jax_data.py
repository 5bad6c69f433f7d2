"""The data pipeline, alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

import diffusers_fn as dfn
from experiments import data
from experiments.benchmarks.work import Work


def batches(shape: Sequence[int], num_examples: int, flip: bool) -> Work:
    """Draws batches of bytes in memory, shuffled, as experiments.train does, onto the devices; times are of an example.

    Args:
      shape: of a batch, [B, H, W, C].
      num_examples: in the data set.
      flip: mirror at random.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, *shape[1:]), np.uint8)
    dataset = data.Dataset(images, None, tuple(shape[1:]), 0)
    stream = data.batches(dataset, shape[0], 0, flip=flip)
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))

    def run() -> None:
        jax.block_until_ready(dfn.training.split_batch(next(stream), mesh))

    return Work(run=run, units=shape[0])
