"""Which noise goes with which example: minibatch optimal transport, for straighter flows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def coupled(
    batches: Iterator[dict[str, np.ndarray]], seed: int, *, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches with `noise`, standard normal, paired with the images by `optimal_pairing`.

    The noise of batch number k comes from (seed, k): a resumed run sees what an uninterrupted one does.

    Args:
      batches: with `image` [B, ...] and perhaps `label` [B].
      seed: of the noise.
      start_step: the number of the first batch.
    """
    for step, batch in enumerate(batches, start_step):
        image = batch["image"]
        noise = np.random.default_rng([seed, step]).standard_normal(image.shape, np.float32)
        yield {**batch, "noise": optimal_pairing(image, noise, batch.get("label"))}


def optimal_pairing(image: np.ndarray, noise: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
    """Returns noise [B, ...] in the order that makes sum |image_i - noise_i|^2 smallest, class by class.

    Tong et al., "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport", 2023,
    https://arxiv.org/abs/2302.00482, section 3.2.3; Pooladian et al. 2023, https://arxiv.org/abs/2304.14772. Within a
    class, for across classes the noise of a class would no longer be normal, and sampling that class starts from
    normal noise.

    >>> optimal_pairing(np.array([[0.0], [5.0]]), np.array([[4.0], [1.0]])).tolist()
    [[1.0], [4.0]]
    """
    from scipy.optimize import linear_sum_assignment  # a quarter of a second, for runs that couple alone

    paired = noise.copy()
    groups = [np.arange(len(image))] if label is None else [np.flatnonzero(label == y) for y in np.unique(label)]
    for group in groups:
        x, z = (part[group].reshape(len(group), -1).astype(np.float64) for part in (image, noise))
        cost = np.sum(x**2, axis=1)[:, None] - 2 * x @ z.T + np.sum(z**2, axis=1)
        rows, columns = linear_sum_assignment(cost)
        paired[group[rows]] = noise[group[columns]]
    return paired
