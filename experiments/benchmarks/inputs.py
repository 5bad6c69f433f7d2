"""Random inputs that every contender draws for itself; the same seed gives the same inputs in each process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Inputs", "draw"]


class Inputs(NamedTuple):
    """Inputs of a training step, channels last.

    Attributes:
      x: [B, H, W, C] float32, noisy images.
      t: [B] int32, timesteps in 0 ... 999.
      labels: [B] int32, or None.
      noise: [B, H, W, C] float32, the target of the network.
    """

    x: np.ndarray
    t: np.ndarray
    labels: np.ndarray | None
    noise: np.ndarray


def draw(shape: Sequence[int], num_classes: int = 0, seed: int = 0) -> Inputs:
    """Returns inputs whose x has the shape [B, H, W, C].

    >>> draw((2, 4, 4, 3), 10).labels.shape
    (2,)
    """
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, *shape), np.float32)
    t = rng.integers(0, 1000, shape[0]).astype(np.int32)
    labels = rng.integers(0, num_classes, shape[0]).astype(np.int32) if num_classes else None
    return Inputs(x, t, labels, noise)
