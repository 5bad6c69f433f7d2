"""Metrics that are pure functions of features `[n, d]` or of distances: Fréchet distance, precision, memorisation."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.spatial import distance

__all__ = ["frechet_distance", "memorised_fraction", "precision_recall"]

_CHUNK = 1024  # rows of a distance matrix held in memory at a time


def frechet_distance(features_a: Any, features_b: Any) -> float:
    """Returns the (squared) Fréchet distance of Gaussians fitted to features `[n, d]` and `[m, d]`.

    d^2 = |mu_a - mu_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)),   eq. 6 of
    M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium"
    (2017), https://arxiv.org/abs/1706.08500, with C the unbiased covariances.

    The trace of the square root is the sum of the singular values of C_a^(1/2) C_b^(1/2), both square roots
    symmetric, which is also exact for covariances without full rank (n <= d).

    The distance of two finite samples of one distribution is above zero, and grows as the samples get smaller:
    compare figures of equal n only.

    Raises:
      ValueError: unless both are finite `[n, d]` with the same d and n at least 2.

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(frechet_distance(x, x + 2.0), 6)
    12.0
    """
    (mean_a, root_a), (mean_b, root_b) = (_fit_gaussian(features) for features in (features_a, features_b))
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"features differ in dimension: {mean_a.shape[0]} and {mean_b.shape[0]}")
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    spread = np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross  # Tr C = |C^(1/2)|_F^2
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + spread))


def precision_recall(real_features: Any, fake_features: Any, k: int = 3) -> tuple[float, float]:
    """Returns (precision, recall): the share of fakes near real data, and of real data near fakes.

    The manifold of a set is the union of balls around its members; the radius of each ball is the distance to the
    k-th nearest other member. Precision is the share of fakes within the real manifold, recall the share of real
    examples within the fake manifold: eqs. 1 and 2 of T. Kynkäänniemi et al., "Improved Precision and Recall Metric
    for Assessing Generative Models" (2019), https://arxiv.org/abs/1904.06991. Use sets of equal size.

    Raises:
      ValueError: unless both sets have more than k examples of the same dimension, and k is at least 1.

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> precision_recall(x, x), precision_recall(x, x + 100.0)
    ((1.0, 1.0), (0.0, 0.0))
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    real, fake = _check_features(real_features, k + 1), _check_features(fake_features, k + 1)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features differ in dimension: {real.shape[1]} and {fake.shape[1]}")
    return _share_within(fake, real, k), _share_within(real, fake, k)


def memorised_fraction(fake_distances: Any, heldout_distances: Any, quantile: float = 0.01) -> float:
    """Returns the share of samples that are closer to a training image than almost all held-out images are.

    The threshold is the `quantile` of the held-out images' distances to the training set, so new real images
    score about `quantile`, and a sampler that repeats its training images scores 1. Both arguments are distances
    `[n]` to the nearest image of the same training set (`metrics.nearest_training_distance`).

    Raises:
      ValueError: if `quantile` is outside [0, 1] or a set is empty.

    >>> memorised_fraction([0.0, 5.0], np.arange(1.0, 102.0))
    0.5
    """
    if not 0.0 <= quantile <= 1.0 or not np.size(fake_distances) or not np.size(heldout_distances):
        raise ValueError(
            f"quantile must lie in [0, 1] and both sets be non-empty; got quantile={quantile}, "
            f"{np.size(fake_distances)} and {np.size(heldout_distances)} distances"
        )
    bound = np.quantile(np.asarray(heldout_distances), quantile)
    return float(np.mean(np.asarray(fake_distances) <= bound))


def _check_features(features: Any, min_examples: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < min_examples or not features.shape[1]:
        raise ValueError(f"features must be [n, d] with n >= {min_examples}; got {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values")
    return features


def _fit_gaussian(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean `[d]` and the symmetric square root of the unbiased covariance `[d, d]`."""
    features = _check_features(features, 2)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(features, rowvar=False)))
    return features.mean(axis=0), (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _distance_chunks(rows: np.ndarray, columns: np.ndarray) -> Iterator[np.ndarray]:
    """Yields `[<= 1024, m]` blocks of the Euclidean distances between rows `[n, d]` and columns `[m, d]`."""
    for start in range(0, len(rows), _CHUNK):
        yield distance.cdist(rows[start : start + _CHUNK], columns)


def _share_within(points: np.ndarray, members: np.ndarray, k: int) -> float:
    """Returns the share of points inside the manifold of `members`; a member is not its own neighbour."""
    radius = np.concatenate(  # entry 0 of a sorted row is the member itself
        [np.partition(rows, k, axis=1)[:, k] for rows in _distance_chunks(members, members)]
    )
    return float(np.mean(np.concatenate([(rows <= radius).any(axis=1) for rows in _distance_chunks(points, members)])))
