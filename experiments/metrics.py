"""How good samples are: figures that need no network trained elsewhere, each beside that of held-out data.

Images are `[n, ...]` in [-1, 1]; features are `[n, d]`. Nothing here comes with pretrained weights, so the
Fréchet distance is one in a feature space made from the data and named beside the figure. It is not the "FID"
of papers, which is taken in Inception's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import distance
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC

from experiments.data import Dataset, float_images

_CHUNK = 1024  # rows of a distance matrix held at a time
_BLOCK = 4096  # training images held at a time
_CLASSIFIER_DIM = 64  # more pixels than this go through PCA first
_PCA_DIM = 64
_LEAST = 5  # images of a set, for three nearest neighbours and a covariance


class Classifier(NamedTuple):
    """An independent judge of class labels, trained on real images.

    Attributes:
      predict: images `[n, ...]` -> int32 labels `[n]`.
      features: images `[n, ...]` -> float64 decision values `[n, num_classes]`, larger for a likelier class.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    features: Callable[[np.ndarray], np.ndarray]


def fit_classifier(images: Any, labels: Any, seed: int = 0, *, max_examples: int = 20_000) -> Classifier:
    """Returns a support vector machine trained on real images.

    Radial basis functions with C = 10 and gamma = 1 / (d var(x)) on the pixels, or, beyond 64 pixels, on
    their 64 leading principal components. C. Cortes and V. Vapnik, "Support-Vector Networks", Machine
    Learning 20 (1995), https://doi.org/10.1007/BF00994018. Trained on the digits' train split it labels about
    98.5% of the held-out split right; on 20,000 images of Fashion-MNIST, about 88% of the test images.

    Args:
      images: `[n, ...]` in [-1, 1].
      labels: integers `[n]` of at least two classes.
      seed: picks the examples if there are more than `max_examples`, and seeds the PCA.
      max_examples: at most this many are used, for the time grows as their square.

    Raises:
      ValueError: for no labels, or counts that differ, or fewer than two classes.
    """
    flat, labels = _flat(images), np.asarray(labels)
    if labels.shape != (len(flat),):
        raise ValueError(f"one label for each image is needed; got {labels.shape} for {len(flat)} images")
    if len(np.unique(labels)) < 2:
        raise ValueError("a classifier needs images of at least two classes")
    keep = _subset(len(flat), max_examples, seed)
    flat, labels = flat[keep], labels[keep]
    svm = SVC(C=10.0, gamma="scale", decision_function_shape="ovr", cache_size=500)
    steps: Pipeline = make_pipeline(svm)
    if flat.shape[1] > _CLASSIFIER_DIM:
        size = min(_CLASSIFIER_DIM, len(flat) - 1)
        steps = make_pipeline(PCA(size, svd_solver="randomized", random_state=seed), svm)
    steps.fit(flat, labels)

    def predict(images: np.ndarray) -> np.ndarray:
        return steps.predict(_flat(images)).astype(np.int32)

    def features(images: np.ndarray) -> np.ndarray:
        values = steps.decision_function(_flat(images))
        return values if values.ndim == 2 else np.stack([-values, values], axis=1)

    return Classifier(predict, features)


def class_accuracy(classifier: Classifier, images: Any, labels: Any) -> float:
    """Returns the share of images that the classifier gives the label they were asked (or known) to have."""
    labels, predicted = np.asarray(labels), classifier.predict(images)
    if labels.shape != predicted.shape:
        raise ValueError(f"one label for each image is needed; got {labels.shape} for {len(predicted)} images")
    return float(np.mean(predicted == labels))


class FeatureSpace(NamedTuple):
    """A named map from images `[n, ...]` to features `[n, d]`."""

    name: str
    features: Callable[[np.ndarray], np.ndarray]


def pca_features(reference: Any, num_components: int | None = None, seed: int = 0) -> FeatureSpace:
    """Returns the projection on the leading principal components of the reference images' pixels.

    Not whitened: distances are those of pixels, in the subspace. Named `pixels-PCA-<d>`, d = `num_components`
    or, if None, the least of 64, the number of pixels and n - 1.
    """
    flat = _flat(reference)
    size = min(num_components or _PCA_DIM, flat.shape[1], len(flat) - 1)
    pca = PCA(size, svd_solver="full" if flat.shape[1] <= 1024 else "randomized", random_state=seed).fit(flat)
    return FeatureSpace(f"pixels-PCA-{size}", lambda images: pca.transform(_flat(images)))


def frechet_distance(features_a: Any, features_b: Any) -> float:
    """Returns the (squared) Fréchet distance of Gaussians fitted to features `[n, d]` and `[m, d]`.

    d^2 = |mu_a - mu_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)),   eq. 6 of
    M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium"
    (2017), https://arxiv.org/abs/1706.08500, with C the unbiased covariances.

    The trace of the square root is the sum of the singular values of C_a^(1/2) C_b^(1/2), both square roots
    symmetric, which is exact for covariances without full rank too (n <= d).

    The distance of two finite samples of one distribution is above zero, and the more so the smaller they
    are: compare figures of equal n alone.

    Raises:
      ValueError: unless both are `[n, d]` with the same d, n at least 2, and finite.

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(frechet_distance(x, x + 2.0), 6)
    12.0
    """
    (mean_a, root_a), (mean_b, root_b) = (_gaussian(features, 2) for features in (features_a, features_b))
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"features differ in dimension: {mean_a.shape[0]} and {mean_b.shape[0]}")
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    spread = np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross  # Tr C = |C^(1/2)|_F^2
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + spread))


def precision_recall(real_features: Any, fake_features: Any, k: int = 3) -> tuple[float, float]:
    """Returns (precision, recall): shares of fakes near real data, and of real data near fakes.

    A set's manifold is the union of balls about its members, each as wide as the distance to its k-th nearest
    other member. Precision is the share of fakes within the real manifold, recall that of real examples
    within the fake manifold: eqs. 1 and 2 of T. Kynkäänniemi et al., "Improved Precision and Recall Metric
    for Assessing Generative Models" (2019), https://arxiv.org/abs/1904.06991. Use sets of equal size.

    Raises:
      ValueError: unless both sets have more than k examples of the same dimension, and k is at least 1.

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> precision_recall(x, x), precision_recall(x, x + 100.0)
    ((1.0, 1.0), (0.0, 0.0))
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    real, fake = _features(real_features, k + 1), _features(fake_features, k + 1)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features differ in dimension: {real.shape[1]} and {fake.shape[1]}")
    return _share_within(fake, real, k), _share_within(real, fake, k)


def nearest_training_distance(images: Any, train: Dataset | np.ndarray) -> np.ndarray:
    """Returns each image's Euclidean distance over all pixels to the nearest training image, float64 `[n]`.

    The training images, `[m, ...]` or a data set, are gone through in blocks, so that neither they nor the
    distances need fit in memory. In a block |x - y|^2 = |x|^2 - 2 x.y + |y|^2 finds the nearest by a float32
    matrix product; its distance is then taken from the difference itself: a copy is at distance 0 exactly.

    >>> nearest_training_distance([[0.0, 0.0], [1.0, 1.0]], np.array([[1.0, 1.0], [0.0, 0.5]])).tolist()
    [0.5, 0.0]
    """
    flat = _flat(images)
    nearest = np.full(len(flat), np.inf)
    rounded = flat.astype(np.float32)
    for start in range(0, len(train), _BLOCK):
        which = range(start, min(start + _BLOCK, len(train)))
        block = _flat(float_images(train, which) if isinstance(train, Dataset) else train[which.start : which.stop])
        transposed = block.T.astype(np.float32)
        half_squares = 0.5 * np.sum(transposed**2, axis=0)
        for first in range(0, len(flat), _CHUNK):
            rows = slice(first, first + _CHUNK)
            found = block[np.argmax(rounded[rows] @ transposed - half_squares, axis=1)]
            nearest[rows] = np.minimum(nearest[rows], np.linalg.norm(flat[rows] - found, axis=1))
    return nearest


def memorised_fraction(fake_distances: Any, heldout_distances: Any, quantile: float = 0.01) -> float:
    """Returns the share of samples that lie as near to a training image as hardly any held-out image does.

    The bound is the `quantile` of the held-out images' distances to the training set, so fresh real images
    would score about `quantile`, and a sampler that repeats its training images scores 1. Both arguments are
    distances as `nearest_training_distance` returns them, to the same training set.

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


class PixelStdRatio(NamedTuple):
    """Spread of one set over that of another: below 1 it varies too little (lost modes, pale samples)."""

    mean: float
    smallest: float
    largest: float


def pixel_std_ratio(fake: Any, real: Any) -> PixelStdRatio:
    """Returns how each pixel's standard deviation over the fakes compares with that over the real images.

    `mean` is the ratio of the standard deviations' means over pixels. `smallest` and `largest` are the
    extremes of the pixels' own ratios, over pixels that vary in the real images at least a tenth as much as
    the most variable one (a border that is always black would divide by zero).

    Raises:
      ValueError: if the real images are all alike, or one side has fewer than two images.

    >>> ratio = pixel_std_ratio([[0.0, 1.0], [0.5, -1.0]], [[0.0, 1.0], [1.0, -1.0]])
    >>> ratio.smallest, ratio.largest
    (0.5, 1.0)
    """
    if min(len(fake), len(real)) < 2:
        raise ValueError(f"a standard deviation needs two images; got {len(fake)} fake and {len(real)} real ones")
    std_fake, std_real = (np.std(_flat(images), axis=0, ddof=1) for images in (fake, real))
    if not std_real.max() > 0:
        raise ValueError("the real images are all alike: their standard deviation is zero")
    varies = std_real >= 0.1 * std_real.max()
    ratio = std_fake[varies] / std_real[varies]
    return PixelStdRatio(float(std_fake.mean() / std_real.mean()), float(ratio.min()), float(ratio.max()))


def evaluate_samples(
    samples: Any,
    labels_asked: Any,
    train: Dataset,
    heldout: Dataset,
    *,
    classifier: Classifier | None = None,
    seed: int = 0,
    max_reference: int = 5_000,
) -> dict[str, Any]:
    """Returns figures of the samples, each beside the same figure of held-out real images; ready for JSON.

    The held-out figures are what a perfect sampler would reach, so read each pair together. Everything is
    measured against the train split. The Fréchet distance, precision and recall depend on the size of a set:
    samples and held-out images are cut to `num_compared` = min(samples, held-out, train) of each, drawn at
    random, so that the two columns can be compared. Precision and recall have a reference of that size too,
    the Fréchet distances one of `num_train`. The nearest image is sought in the whole train split.

    Args:
      samples: `[n, *shape]` in [-1, 1]; clipped, as a picture of them would be.
      labels_asked: integers `[n]`, the classes that the samples were asked for, or None.
      train: the train split; the reference, and what the classifier learns from.
      heldout: the held-out split.
      classifier: one fitted before, on `train`; None fits one if there are labels.
      seed: of the random subsets and the classifier.
      max_reference: at most this many train images, and held-out images, are looked at, a random choice.

    Returns:
      A dict of dicts with "samples" and "heldout": `class_accuracy` (if there are labels),
      `frechet_distance`, `classifier_frechet_distance` (the same in the classifier's decision values),
      `precision`, `recall`, `nearest_training_distance` (medians), `memorised_fraction`, `pixel_std_ratio`;
      and the counts used.

    Raises:
      ValueError: if the samples have another shape than the data or NaN or infinite entries, or if labels are
        missing on one side.
    """
    samples = np.asarray(samples, np.float32)
    if samples.shape[1:] != train.shape:
        raise ValueError(f"samples must be [n, {', '.join(map(str, train.shape))}]; got {list(samples.shape)}")
    if not np.isfinite(samples).all():
        broken = int((~np.isfinite(samples)).reshape(len(samples), -1).any(axis=1).sum())
        raise ValueError(f"{broken} of {len(samples)} samples hold NaN or infinite values")
    samples = np.clip(samples, -1.0, 1.0)
    at_train, at_heldout = (_subset(len(part), max_reference, seed) for part in (train, heldout))
    real, fresh = float_images(train, at_train), float_images(heldout, at_heldout)
    size = min(len(samples), len(fresh), len(real))
    if size < _LEAST:
        raise ValueError(f"at least {_LEAST} samples, held-out and train images are needed; got {size} of one")
    figures: dict[str, Any] = {
        "num_samples": len(samples),
        "num_heldout": len(fresh),
        "num_train": len(real),
        "num_compared": size,
    }
    if labels_asked is not None:
        if train.labels is None or heldout.labels is None:
            raise ValueError("samples were asked for by label, but the data set has no labels")
        classifier = classifier or fit_classifier(real, train.labels[at_train], seed)
        figures["class_accuracy"] = {
            "samples": class_accuracy(classifier, samples, labels_asked),
            "heldout": class_accuracy(classifier, fresh, heldout.labels[at_heldout]),
        }
    space = pca_features(real, seed=seed)
    few_samples, few_fresh, few_real = (x[_subset(len(x), size, seed)] for x in (samples, fresh, real))
    reference = space.features(real)
    figures["frechet_distance"] = {
        "feature_space": space.name,
        "samples": frechet_distance(space.features(few_samples), reference),
        "heldout": frechet_distance(space.features(few_fresh), reference),
    }
    if classifier is not None:
        judged = classifier.features(real)
        figures["classifier_frechet_distance"] = {
            "feature_space": f"classifier-decision-{judged.shape[1]}",
            "samples": frechet_distance(classifier.features(few_samples), judged),
            "heldout": frechet_distance(classifier.features(few_fresh), judged),
        }
    few_reference = space.features(few_real)
    for_samples = precision_recall(few_reference, space.features(few_samples))
    for_heldout = precision_recall(few_reference, space.features(few_fresh))
    for i, name in enumerate(("precision", "recall")):
        figures[name] = {"feature_space": space.name, "samples": for_samples[i], "heldout": for_heldout[i]}
    to_samples, to_fresh = nearest_training_distance(samples, train), nearest_training_distance(fresh, train)
    figures["nearest_training_distance"] = {
        "unit": "euclidean, pixels in [-1, 1], median",
        "samples": float(np.median(to_samples)),
        "heldout": float(np.median(to_fresh)),
    }
    figures["memorised_fraction"] = {
        "samples": memorised_fraction(to_samples, to_fresh),
        "heldout": memorised_fraction(to_fresh, to_fresh),
    }
    figures["pixel_std_ratio"] = {
        "samples": pixel_std_ratio(samples, real)._asdict(),
        "heldout": pixel_std_ratio(fresh, real)._asdict(),
    }
    return figures


def _flat(images: Any) -> np.ndarray:
    images = np.asarray(images)
    return images.reshape(len(images), -1).astype(np.float64)


def _features(features: Any, at_least: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < at_least or not features.shape[1]:
        raise ValueError(f"features must be [n, d] with n >= {at_least}; got {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values")
    return features


def _gaussian(features: Any, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean `[d]` and the symmetric square root of the unbiased covariance `[d, d]`."""
    features = _features(features, at_least)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(features, rowvar=False)))
    return features.mean(axis=0), (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _distance_chunks(rows: np.ndarray, columns: np.ndarray) -> Any:
    """Yields `[<= 1024, m]` blocks of the Euclidean distances between rows `[n, d]` and columns `[m, d]`."""
    for start in range(0, len(rows), _CHUNK):
        yield distance.cdist(rows[start : start + _CHUNK], columns)


def _share_within(points: np.ndarray, members: np.ndarray, k: int) -> float:
    """Returns the share of points inside the manifold of `members`; a point is nowhere its own neighbour."""
    radius = np.concatenate(  # entry 0 of a sorted row is the member itself
        [np.partition(rows, k, axis=1)[:, k] for rows in _distance_chunks(members, members)]
    )
    return float(np.mean(np.concatenate([(rows <= radius).any(axis=1) for rows in _distance_chunks(points, members)])))


def _subset(n: int, size: int, seed: int) -> np.ndarray:
    """Returns at most `size` of 0..n-1: all in order, or a random choice, sorted."""
    return np.arange(n) if n <= size else np.sort(np.random.default_rng(seed).permutation(n)[:size])
