"""Evaluation figures against closed forms, identities and counts by hand."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import data, feature_metrics, features, metrics


def with_moments(rng, n, mean, covariance):
    """Returns n points whose sample mean and unbiased sample covariance are exactly the given ones."""
    x = rng.normal(size=(n, len(mean)))
    x = x - x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


@pytest.fixture(scope="module")
def digits():
    return tuple(data.load(SimpleNamespace(name="digits"), split) for split in ("train", "heldout"))


# --- Frechet distance ---------------------------------------------------------------------------------------


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 5))
    std_a, std_b = rng.uniform(0.1, 3, (2, 5))
    a, b = (with_moments(rng, 40, m, np.diag(s**2)) for m, s in ((mean_a, std_a), (mean_b, std_b)))
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    np.testing.assert_allclose(feature_metrics.frechet_distance(a, b), expected, rtol=1e-10)


def test_frechet_distance_in_two_dimensions_is_the_closed_form():
    # For 2 x 2 matrices Tr (A B)^(1/2) = sqrt(Tr AB + 2 sqrt(det A det B)); these two do not commute.
    rng = np.random.default_rng(1)
    first, second = np.array([[2.0, 1.2], [1.2, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
    assert np.abs(first @ second - second @ first).max() > 0.1
    root = np.sqrt(np.trace(first @ second) + 2 * np.sqrt(np.linalg.det(first) * np.linalg.det(second)))
    expected = np.trace(first) + np.trace(second) - 2 * root + 25.0
    a, b = with_moments(rng, 30, [0, 0], first), with_moments(rng, 50, [3, 4], second)
    np.testing.assert_allclose(feature_metrics.frechet_distance(a, b), expected, rtol=1e-10)


@pytest.mark.parametrize("n", [3, 20, 500])
def test_frechet_distance_laws_hold_without_full_rank_too(n):
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(n, 30)), rng.normal(size=(n, 30)) * 0.3 + 0.2
    distance = feature_metrics.frechet_distance(a, b)
    scale = np.sum(a**2) / n
    assert feature_metrics.frechet_distance(a, a) < 1e-12 * scale
    np.testing.assert_allclose(feature_metrics.frechet_distance(b, a), distance, rtol=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    np.testing.assert_allclose(feature_metrics.frechet_distance(a @ rotation, b @ rotation), distance, rtol=1e-9)
    np.testing.assert_allclose(feature_metrics.frechet_distance(3 * a + 1, 3 * b + 1), 9 * distance, rtol=1e-9)
    np.testing.assert_allclose(feature_metrics.frechet_distance(a, a + 0.5), 0.25 * 30, rtol=1e-9)


def test_frechet_distance_agrees_with_a_matrix_square_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(200, 6))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    np.testing.assert_allclose(feature_metrics.frechet_distance(a, b), expected, rtol=1e-8)


def test_frechet_distance_of_one_feature():
    a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0]])
    np.testing.assert_allclose(feature_metrics.frechet_distance(a, b), 16 + 2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 2)), np.zeros((5, 2)), r"n >= 2; got \[1, 2\]"),
        (np.zeros((5, 2)), np.zeros((5, 3)), "differ in dimension: 2 and 3"),
        (np.zeros((5, 2)), np.full((5, 2), np.nan), "NaN"),
        (np.zeros(5), np.zeros(5), r"must be \[n, d\]"),
    ],
)
def test_frechet_distance_refuses_what_has_no_covariance(a, b, message):
    with pytest.raises(ValueError, match=message):
        feature_metrics.frechet_distance(a, b)


# --- precision and recall -----------------------------------------------------------------------------------


def test_precision_and_recall_distinguish_lost_modes_from_bad_samples():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 100, 2)) * 0.1 + np.array([[[0.0, 0.0]], [[10.0, 0.0]]])
    real = np.concatenate([one, other])
    precision, recall = feature_metrics.precision_recall(real, one)
    assert precision == 1.0  # copies of real examples
    assert recall == 0.5  # of one mode of two
    assert feature_metrics.precision_recall(one, real) == (recall, precision)  # the definition is symmetric


def test_precision_and_recall_counted_by_hand_on_a_line():
    real = np.array([[0.0], [1.0], [3.0], [7.0]])  # k = 1: radii 1, 1, 2, 4
    fake = np.array([[-1.0], [-1.5], [11.0], [11.5]])  # radii 0.5, 0.5, 0.5, 0.5
    assert feature_metrics.precision_recall(real, fake, k=1) == (0.5, 0.0)  # -1 and 11 lie on the boundary of a ball
    # k = 2: the radii of the real ones are 3, 2, 3, 6, so -1, -1.5, 11 and 11.5 are all inside;
    # those of the fakes are 12, 12.5, 12, 12.5 (each reaches across the gap), so all real ones are inside.
    assert feature_metrics.precision_recall(real, fake, k=2) == (1.0, 1.0)


def test_precision_refuses_too_few_examples():
    with pytest.raises(ValueError, match=r"n >= 4; got \[3, 2\]"):
        feature_metrics.precision_recall(np.zeros((9, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        feature_metrics.precision_recall(np.zeros((9, 2)), np.zeros((9, 2)), k=0)


# --- memorisation -------------------------------------------------------------------------------------------


def test_nearest_distance_in_blocks_equals_brute_force(monkeypatch):
    rng = np.random.default_rng(0)
    train, images = rng.uniform(-1, 1, (53, 3, 2, 1)), rng.uniform(-1, 1, (29, 3, 2, 1))
    images[4] = train[50]
    expected = np.sqrt(((images[:, None] - train) ** 2).sum(axis=(2, 3, 4))).min(axis=1)
    for block in (4096, 7):
        monkeypatch.setattr(metrics, "_BLOCK", block)
        monkeypatch.setattr(metrics, "_CHUNK", block // 2)
        np.testing.assert_allclose(metrics.nearest_training_distance(images, train), expected, rtol=1e-6)
    assert metrics.nearest_training_distance(images, train)[4] == 0.0
    as_bytes = data.Dataset(rng.integers(0, 256, (9, 3, 2, 1), dtype=np.uint8), None, (3, 2, 1), 0)
    np.testing.assert_array_equal(
        metrics.nearest_training_distance(images, as_bytes),
        metrics.nearest_training_distance(images, data.float_images(as_bytes)),
    )


def test_memorised_fraction_is_one_for_copies_and_the_quantile_for_fresh_data():
    heldout = np.arange(1.0, 1001.0)
    assert feature_metrics.memorised_fraction(np.zeros(7), heldout) == 1.0
    assert feature_metrics.memorised_fraction(heldout, heldout, 0.1) == 0.1
    assert feature_metrics.memorised_fraction(heldout + 1000, heldout) == 0.0
    assert feature_metrics.memorised_fraction([0.0, 0.0, 50.0], np.zeros(20)) == pytest.approx(
        2 / 3
    )  # duplicates in the data
    for bad in ({"quantile": 1.5}, {"fake_distances": []}):
        with pytest.raises(ValueError, match=r"quantile must lie in \[0, 1\]"):
            feature_metrics.memorised_fraction(**{"fake_distances": [1.0], "heldout_distances": heldout, **bad})


# --- spread -------------------------------------------------------------------------------------------------


def test_pixel_std_ratio_of_scaled_data_is_the_scale():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(30, 4, 4, 1)) * rng.uniform(0.5, 1, (4, 4, 1))
    real[:, 0] = -1.0  # a constant border
    np.testing.assert_allclose(metrics.pixel_std_ratio(0.7 * real + 0.1, real), [0.7] * 3)
    doubled = real.copy()
    doubled[:, 2, 1] *= 2
    ratio = metrics.pixel_std_ratio(doubled, real)
    np.testing.assert_allclose([ratio.smallest, ratio.largest], [1, 2])
    np.testing.assert_allclose(metrics.pixel_std_ratio(np.repeat(real[:1], 5, axis=0), real), 0, atol=1e-12)
    with pytest.raises(ValueError, match="all alike"):
        metrics.pixel_std_ratio(real, np.zeros((5, 4, 4, 1)))
    with pytest.raises(ValueError, match="needs two images; got 1 fake"):
        metrics.pixel_std_ratio(real[:1], real)


# --- classifier ---------------------------------------------------------------------------------------------


def test_the_classifier_predicts_held_out_digits(digits):
    train, heldout = digits
    classifier = features.fit_classifier(train.images, train.labels, seed=0)
    # 98.5% is expected, with a standard error of 0.64% over 359 images; the bound is three of them below.
    assert features.class_accuracy(classifier, heldout.images, heldout.labels) > 0.966
    assert features.class_accuracy(classifier, heldout.images, (heldout.labels + 1) % 10) < 0.02
    decisions = classifier.features(heldout.images)
    assert decisions.shape == (359, 10)
    assert np.mean(decisions.argmax(axis=1) == classifier.predict(heldout.images)) > 0.95


def test_the_classifier_uses_principal_components_for_larger_images(digits):
    train, heldout = digits
    larger = [d.images.repeat(3, axis=1).repeat(3, axis=2) for d in digits]  # the same digits, 24 x 24
    classifier = features.fit_classifier(larger[0], train.labels, seed=0, max_examples=1000)
    assert features.class_accuracy(classifier, larger[1], heldout.labels) > 0.96


def test_the_classifier_of_two_classes_has_two_features():
    points, labels = np.array([[-1.0], [-0.9], [0.9], [1.0]]), np.array([0, 0, 1, 1])
    classifier = features.fit_classifier(points, labels)
    assert classifier.predict(points).tolist() == labels.tolist()
    assert classifier.features(points).argmax(axis=1).tolist() == labels.tolist()
    with pytest.raises(ValueError, match="at least two classes"):
        features.fit_classifier(points, np.zeros(4, int))
    with pytest.raises(ValueError, match="one label for each image"):
        features.fit_classifier(points, labels[:3])
    with pytest.raises(ValueError, match="one label for each image"):
        features.class_accuracy(classifier, points, labels[:3])


def test_full_components_are_a_rotation_of_the_pixels(digits):
    images = digits[0].images[:200]
    space = features.pca_features(images, 64)
    assert space.name == "pixels-PCA-64"
    a, b = space.features(images[:50]), images[:50].reshape(50, 64).astype(np.float64)
    np.testing.assert_allclose(
        np.linalg.norm(a[:, None] - a, axis=-1), np.linalg.norm(b[:, None] - b, axis=-1), atol=1e-6
    )


# --- all together -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts(digits):
    train, heldout = digits
    rng = np.random.default_rng(0)
    made = {
        "real": (heldout.images, heldout.labels),
        "copies": (train.images[:359], train.labels[:359]),
        "noise": (rng.uniform(-1, 1, (359, 8, 8, 1)), heldout.labels),
        "one class": (train.images[train.labels == 3], np.full(np.sum(train.labels == 3), 3)),
    }
    classifier = features.fit_classifier(train.images, train.labels, seed=0)
    return {name: metrics.evaluate_samples(*pair, train, heldout, classifier=classifier) for name, pair in made.items()}


def test_real_data_given_as_samples_score_as_real_data(verdicts):
    for figure in verdicts["real"].values():
        if isinstance(figure, dict):
            assert figure["samples"] == figure["heldout"]


def test_each_kind_of_failure_shows_in_its_figure(verdicts):
    copies, noise, one = verdicts["copies"], verdicts["noise"], verdicts["one class"]
    assert copies["memorised_fraction"]["samples"] == 1.0
    assert copies["memorised_fraction"]["heldout"] < 0.02
    assert copies["nearest_training_distance"]["samples"] == 0.0
    assert noise["class_accuracy"]["samples"] < 0.25
    assert noise["precision"]["samples"] == 0.0
    assert noise["frechet_distance"]["samples"] > 20 * noise["frechet_distance"]["heldout"]
    assert one["class_accuracy"]["samples"] > 0.98
    assert one["recall"]["samples"] < 0.3
    assert one["pixel_std_ratio"]["samples"]["mean"] < 0.8
    assert one["num_compared"] == one["num_samples"] < 200
    assert one["frechet_distance"]["samples"] > 5 * one["frechet_distance"]["heldout"]


def test_figures_are_json_and_the_same_each_time(verdicts, digits):
    train, heldout = digits
    again = metrics.evaluate_samples(heldout.images, heldout.labels, train, heldout)
    assert json.loads(json.dumps(verdicts["real"], allow_nan=False)) == json.loads(json.dumps(again))


def test_points_without_labels_are_evaluated_too():
    fields = SimpleNamespace(name="toy2d", variant="swiss_roll", num_examples=500)
    train, heldout = (data.load(fields, split) for split in ("train", "heldout"))
    figures = metrics.evaluate_samples(heldout.images, None, train, heldout)
    assert "class_accuracy" not in figures
    assert figures["frechet_distance"]["feature_space"] == "pixels-PCA-2"


def test_perfect_samples_of_any_range_score_as_held_out_data():
    """N(0, 3^2): clipping the samples to [-1, 1] gave a Frechet distance of 35 and a recall of 0."""
    draws = 3.0 * np.random.default_rng(0).standard_normal((3, 1_000, 10)).astype(np.float32)
    samples, (train, heldout) = draws[0], (data.Dataset(part, None, (10,), 0) for part in draws[1:])
    figures = metrics.evaluate_samples(samples, None, train, heldout, bounds=None)
    frechet = figures["frechet_distance"]
    assert frechet["samples"] < 1.5 * frechet["heldout"] < 1.5  # clipped samples: 43
    for name in ("precision", "recall"):
        np.testing.assert_allclose(figures[name]["samples"], 0.86, atol=0.04)
        np.testing.assert_allclose(figures[name]["heldout"], 0.86, atol=0.04)
    assert abs(figures["pixel_std_ratio"]["samples"]["mean"] - 1) < 0.1
    assert figures["memorised_fraction"]["samples"] < 0.03
    assert figures["nearest_training_distance"]["unit"] == "euclidean, values in any range, median"


def test_figures_do_not_depend_on_the_scale_of_the_data():
    draws = np.random.default_rng(1).uniform(-1, 1, (3, 200, 6)).astype(np.float32)
    labels = np.arange(200) % 2
    draws[:, labels == 1] *= 0.25

    def figures(scale, bounds):
        train, heldout = (data.Dataset(scale * part, labels.astype(np.int32), (6,), 2) for part in draws[1:])
        return metrics.evaluate_samples(scale * draws[0], labels, train, heldout, bounds=bounds)

    plain, scaled = figures(np.float32(1), (-1.0, 1.0)), figures(np.float32(64), None)
    for name in ("class_accuracy", "precision", "recall", "memorised_fraction", "pixel_std_ratio"):
        assert scaled[name] == plain[name]
    ratio = {"frechet_distance": 64**2, "nearest_training_distance": 64}
    for name, factor in ratio.items():  # powers of two are exact, up to the order of sums
        for column in ("samples", "heldout"):
            np.testing.assert_allclose(scaled[name][column], factor * plain[name][column], rtol=1e-6)


def test_a_single_class_needs_no_classifier():
    draws = np.random.default_rng(3).uniform(-1, 1, (3, 50, 3)).astype(np.float32)
    train, heldout = (data.Dataset(part, np.zeros(50, np.int32), (3,), 1) for part in draws[1:])
    figures = metrics.evaluate_samples(draws[0], np.zeros(50, np.int32), train, heldout)
    assert "class_accuracy" not in figures
    assert "recall" in figures


def test_samples_and_real_data_are_clipped_alike():
    draws = np.random.default_rng(2).normal(size=(3, 200, 3)).astype(np.float32)
    train, heldout = (data.Dataset(part, None, (3,), 0) for part in draws[1:])
    same = metrics.evaluate_samples(draws[2], None, train, heldout)
    for figure in same.values():
        if isinstance(figure, dict):
            assert figure["samples"] == figure["heldout"]


def test_samples_that_cannot_be_judged_are_refused(digits):
    train, heldout = digits
    broken = heldout.images.copy()
    broken[3:5, 0, 0] = np.nan
    with pytest.raises(ValueError, match="2 of 359 samples hold NaN"):
        metrics.evaluate_samples(broken, None, train, heldout)
    with pytest.raises(ValueError, match=r"samples must be \[n, 8, 8, 1\]; got \[359, 64\]"):
        metrics.evaluate_samples(broken.reshape(359, 64), None, train, heldout)
    with pytest.raises(ValueError, match="at least 5 samples"):
        metrics.evaluate_samples(heldout.images[:4], None, train, heldout)
    unlabelled = dataclasses.replace(train, labels=None, num_classes=0)
    with pytest.raises(ValueError, match="no labels"):
        metrics.evaluate_samples(heldout.images, heldout.labels, unlabelled, heldout)
