"""Quality of samples: figures that need no pretrained network, each beside the same figure of held-out data.

Images are `[n, ...]` in any range. Distances are in the units of the data, and the Fréchet distance in their squares;
all other figures do not depend on the scale. The Fréchet distance is taken in a feature space fitted to the data and
named beside the figure; it is not the "FID" of papers, which uses features of the Inception network.
"""

from typing import Any, NamedTuple

import numpy as np

from experiments.data import Dataset, float_images
from experiments.feature_metrics import frechet_distance, memorised_fraction, precision_recall
from experiments.features import (
    Classifier,
    FeatureSpace,
    class_accuracy,
    fit_classifier,
    flatten,
    pca_features,
    random_subset,
)

__all__ = ["PixelStdRatio", "evaluate_samples", "nearest_training_distance", "pixel_std_ratio"]

_CHUNK = 1024  # images whose distances are held in memory at a time
_BLOCK = 4096  # training images held in memory at a time
_MIN_IMAGES = 5  # smallest set with three nearest neighbours and a covariance


def evaluate_samples(
    samples: Any,
    labels_asked: Any,
    train: Dataset,
    heldout: Dataset,
    *,
    classifier: Classifier | None = None,
    seed: int = 0,
    max_reference: int = 5_000,
    bounds: tuple[float, float] | None = (-1.0, 1.0),
) -> dict[str, Any]:
    """Returns figures of the samples, each beside the same figure of held-out real images; ready for JSON.

    A perfect sampler would reach the held-out figures, so read each pair together. The train split is the reference
    of every figure. The Fréchet distance, precision and recall depend on the size of a set: random subsets of
    `num_compared` = min(samples, held-out, train) samples and held-out images are compared with the reference, which
    has `num_compared` images for precision and recall and `num_train` for the Fréchet distances. The nearest image is
    searched in the whole train split.

    Args:
      samples: `[n, *shape]`.
      labels_asked: integers `[n]`, the classes that the samples were conditioned on, or None.
      train: the train split.
      heldout: the held-out split.
      classifier: a classifier already fitted to `train`; None fits one if there are labels.
      seed: seed of the random subsets and the classifier.
      max_reference: largest number of train images, and of held-out images, that are used.
      bounds: range of the data, to which samples and real images are clipped, as in a picture; None: any range, and
        nothing is clipped.

    Returns:
      A dict of dicts with "samples" and "heldout": `class_accuracy` (if there are labels of several classes),
      `frechet_distance`, `classifier_frechet_distance` (the same in the classifier's decision values),
      `precision`, `recall`, `nearest_training_distance` (medians), `memorised_fraction`, `pixel_std_ratio`;
      and the sizes of the sets.

    Raises:
      ValueError: if the samples have another shape than the data or NaN or infinite entries, or if the data have no
        labels although the samples have.
    """
    clip = (lambda images: images) if bounds is None else (lambda images: np.clip(images, *bounds))
    samples = clip(_check_samples(samples, train.shape))
    at_train, at_heldout = (random_subset(len(part), max_reference, seed) for part in (train, heldout))
    real, unseen = clip(float_images(train, at_train)), clip(float_images(heldout, at_heldout))
    size = min(len(samples), len(unseen), len(real))
    if size < _MIN_IMAGES:
        raise ValueError(f"at least {_MIN_IMAGES} samples, held-out and train images are needed; got {size} of one")
    figures: dict[str, Any] = {
        "num_samples": len(samples),
        "num_heldout": len(unseen),
        "num_train": len(real),
        "num_compared": size,
    }
    if labels_asked is not None:
        if train.labels is None or heldout.labels is None:
            raise ValueError("samples were asked for by label, but the data set has no labels")
        if classifier is None and len(np.unique(train.labels)) > 1:
            classifier = fit_classifier(real, train.labels[at_train], seed)
        if classifier is not None:
            figures["class_accuracy"] = {
                "samples": class_accuracy(classifier, samples, labels_asked),
                "heldout": class_accuracy(classifier, unseen, heldout.labels[at_heldout]),
            }
    space = pca_features(real, seed=seed)
    few_samples, few_unseen, few_real = (x[random_subset(len(x), size, seed)] for x in (samples, unseen, real))
    figures["frechet_distance"] = _frechet_distances(space, space.features(real), few_samples, few_unseen)
    if classifier is not None:
        decisions = classifier.features(real)
        judged = FeatureSpace(f"classifier-decision-{decisions.shape[1]}", classifier.features)
        figures["classifier_frechet_distance"] = _frechet_distances(judged, decisions, few_samples, few_unseen)
    few_reference = space.features(few_real)
    for_samples = precision_recall(few_reference, space.features(few_samples))
    for_heldout = precision_recall(few_reference, space.features(few_unseen))
    for i, name in enumerate(("precision", "recall")):
        figures[name] = {"feature_space": space.name, "samples": for_samples[i], "heldout": for_heldout[i]}
    to_samples, to_unseen = nearest_training_distance(samples, train), nearest_training_distance(unseen, train)
    figures["nearest_training_distance"] = {
        "unit": "euclidean, "
        + ("values in any range" if bounds is None else f"pixels in [{bounds[0]:g}, {bounds[1]:g}]")
        + ", median",
        "samples": float(np.median(to_samples)),
        "heldout": float(np.median(to_unseen)),
    }
    figures["memorised_fraction"] = {
        "samples": memorised_fraction(to_samples, to_unseen),
        "heldout": memorised_fraction(to_unseen, to_unseen),
    }
    figures["pixel_std_ratio"] = {
        "samples": pixel_std_ratio(samples, real)._asdict(),
        "heldout": pixel_std_ratio(unseen, real)._asdict(),
    }
    return figures


def nearest_training_distance(images: Any, train: Dataset | np.ndarray) -> np.ndarray:
    """Returns the Euclidean distance of each image to the nearest training image, over all pixels, float64 `[n]`.

    The training images, `[m, ...]` or a data set, are read in blocks, so that neither they nor the distances need to
    fit in memory. Within a block the nearest image is found from |x - y|^2 = |x|^2 - 2 x.y + |y|^2 by a float32
    matrix product; its distance is then computed from x - y itself, so that a copy has distance 0 exactly.

    >>> nearest_training_distance([[0.0, 0.0], [1.0, 1.0]], np.array([[1.0, 1.0], [0.0, 0.5]])).tolist()
    [0.5, 0.0]
    """
    flat = flatten(images)
    nearest = np.full(len(flat), np.inf)
    rounded = flat.astype(np.float32)
    for start in range(0, len(train), _BLOCK):
        which = range(start, min(start + _BLOCK, len(train)))
        block = flatten(float_images(train, which) if isinstance(train, Dataset) else train[which.start : which.stop])
        transposed = block.T.astype(np.float32)
        half_squares = 0.5 * np.sum(transposed**2, axis=0)
        for first in range(0, len(flat), _CHUNK):
            rows = slice(first, first + _CHUNK)
            found = block[np.argmax(rounded[rows] @ transposed - half_squares, axis=1)]
            nearest[rows] = np.minimum(nearest[rows], np.linalg.norm(flat[rows] - found, axis=1))
    return nearest


class PixelStdRatio(NamedTuple):
    """Standard deviations of one set over those of another: below 1 it varies too little (lost modes, pale samples)."""

    mean: float
    smallest: float
    largest: float


def pixel_std_ratio(fake: Any, real: Any) -> PixelStdRatio:
    """Returns the ratio of each pixel's standard deviation over the fakes to that over the real images.

    `mean` is the ratio of the mean standard deviations. `smallest` and `largest` are the extremes of the ratios of
    single pixels, over the pixels whose standard deviation in the real images is at least a tenth of the largest one
    (a border that is always black would divide by zero).

    Raises:
      ValueError: if the real images are all alike, or one side has fewer than two images.

    >>> ratio = pixel_std_ratio([[0.0, 1.0], [0.5, -1.0]], [[0.0, 1.0], [1.0, -1.0]])
    >>> ratio.smallest, ratio.largest
    (0.5, 1.0)
    """
    if min(len(fake), len(real)) < 2:
        raise ValueError(f"a standard deviation needs two images; got {len(fake)} fake and {len(real)} real ones")
    std_fake, std_real = (np.std(flatten(images), axis=0, ddof=1) for images in (fake, real))
    if not std_real.max() > 0:
        raise ValueError("the real images are all alike: their standard deviation is zero")
    varies = std_real >= 0.1 * std_real.max()
    ratio = std_fake[varies] / std_real[varies]
    return PixelStdRatio(float(std_fake.mean() / std_real.mean()), float(ratio.min()), float(ratio.max()))


def _check_samples(samples: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the samples as float32 `[n, *shape]`."""
    samples = np.asarray(samples, np.float32)
    if samples.shape[1:] != shape:
        raise ValueError(f"samples must be [n, {', '.join(map(str, shape))}]; got {list(samples.shape)}")
    if not np.isfinite(samples).all():
        broken = int((~np.isfinite(samples)).reshape(len(samples), -1).any(axis=1).sum())
        raise ValueError(f"{broken} of {len(samples)} samples hold NaN or infinite values")
    return samples


def _frechet_distances(space: FeatureSpace, reference: np.ndarray, samples: Any, heldout: Any) -> dict[str, Any]:
    """Returns the Fréchet distances of samples and of held-out images to the features `reference` of train images."""
    return {
        "feature_space": space.name,
        "samples": frechet_distance(space.features(samples), reference),
        "heldout": frechet_distance(space.features(heldout), reference),
    }
