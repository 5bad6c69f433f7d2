"""Data of your own: a function (config.data, split) -> arrays, as `config.data.name` names it."""

from typing import Any

import numpy as np


def load(settings: Any, split: str) -> dict[str, np.ndarray]:
    """Returns the points of a split, {"images": [N, 2] in [-1, 1], "labels": [N] in 0..2}: a cloud per class.

    split is "train" or "heldout": the function itself keeps them apart.
    """
    rng = np.random.default_rng([settings.seed, split == "heldout"])
    labels = np.arange(settings.num_examples if split == "train" else settings.num_examples // 5) % 3
    angles = 2 * np.pi * labels / 3
    centres = 0.6 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    points = centres + 0.05 * rng.standard_normal((len(labels), 2))
    return {"images": np.clip(points, -1, 1).astype(np.float32), "labels": labels.astype(np.int32)}
