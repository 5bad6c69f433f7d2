"""Pairs noise with examples by minibatch optimal transport, for straighter flows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["coupled", "optimal_pairing"]


def coupled(
    batches: Iterator[dict[str, np.ndarray]], seed: int, *, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches with standard normal `noise` [B, ...], paired with the images by `optimal_pairing`.

    The noise of batch number k depends on (seed, k) alone: a resumed run gets the noise of an uninterrupted one.

    Args:
      batches: batches with `image` [B, ...] and, optionally, `label` [B].
      seed: random seed of the noise.
      start_step: the number of the first batch.
    """
    for step, batch in enumerate(batches, start_step):
        image = batch["image"]
        noise = np.random.default_rng([seed, step]).standard_normal(image.shape, np.float32)
        yield {**batch, "noise": optimal_pairing(image, noise, batch.get("label"))}


def optimal_pairing(image: np.ndarray, noise: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
    """Returns noise [B, ...] in the order that minimises sum |image_i - noise_i|^2 within each class.

    Tong et al., "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport", 2023,
    https://arxiv.org/abs/2302.00482, section 3.2.3; Pooladian et al. 2023, https://arxiv.org/abs/2304.14772.

    Noise stays within a class, because otherwise the noise paired with a class would not be normal, although sampling
    that class starts from normal noise.

    >>> optimal_pairing(np.array([[0.0], [5.0]]), np.array([[4.0], [1.0]])).tolist()
    [[1.0], [4.0]]
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and only needed here

    paired = noise.copy()
    groups = [np.arange(len(image))] if label is None else [np.flatnonzero(label == y) for y in np.unique(label)]
    for group in groups:
        x, z = (part[group].reshape(len(group), -1).astype(np.float64) for part in (image, noise))
        cost = np.sum(x**2, axis=1)[:, None] - 2 * x @ z.T + np.sum(z**2, axis=1)
        rows, columns = linear_sum_assignment(cost)
        paired[group[rows]] = noise[group[columns]]
    return paired
