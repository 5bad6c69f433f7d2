"""Point clouds in the plane: the smallest data on which a diffusion model can be tested."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.data.dataset import Dataset, field, philox, select_split

__all__ = ["CLOUDS", "Cloud", "load_toy2d", "sample_cloud"]

_SCALE = 0.4  # root mean square of the coordinates of every cloud
_POINT_STREAM = 2**64 - 2  # the second half of the Philox key


class Cloud(NamedTuple):
    """A curve `curve(u, label) -> [n, 2]` with parameter u in [0, 1], and the scatter of points around it."""

    curve: Callable[[np.ndarray, np.ndarray], np.ndarray]
    num_classes: int
    noise: float


def load_toy2d(config: Any, split: str) -> Dataset:
    """Returns one split of `data.num_examples` points of the cloud `data.variant`, float32 `[n, 2]`."""
    name, count = field(config, "variant", "moons"), field(config, "num_examples", 10_000)
    seed = field(config, "seed", 0)
    points, labels = sample_cloud(name, count, seed)
    num_classes = 0 if labels is None else int(labels.max()) + 1
    whole = Dataset(points, labels, (2,), num_classes)
    return select_split(whole, split, field(config, "heldout_fraction", 0.2), seed, f"toy2d {name}")


def sample_cloud(name: str, num_points: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns (float32 points `[n, 2]`, int32 labels `[n]` or None), cycling through the classes.

    Every cloud has mean 0, root mean square 0.4 over both coordinates, and lies inside (-1, 1)^2: the scatter
    around the curve is Gaussian, truncated at three standard deviations. The label is the index of the moon, arm,
    ring, Gaussian or square of the checkerboard; `swiss_roll` has no labels.

    Raises:
      ValueError: if the cloud is unknown, or there are fewer points than classes.

    >>> points, labels = sample_cloud("eight_gaussians", 16, seed=0)
    >>> points.shape, labels[:3].tolist()
    ((16, 2), [0, 1, 2])
    """
    if name not in CLOUDS:
        raise ValueError(f"data.variant must be one of {', '.join(CLOUDS)}; got {name!r}")
    cloud = CLOUDS[name]
    if not isinstance(num_points, int) or num_points < cloud.num_classes:
        raise ValueError(f"data.num_examples must be at least {cloud.num_classes}; got {num_points!r}")
    rng = np.random.Generator(philox(seed, _POINT_STREAM))
    labels = np.arange(num_points, dtype=np.int32) % cloud.num_classes
    mean, rms = _moments(cloud)
    points = cloud.curve(rng.random(num_points), labels)
    if name == "checkerboard":  # its points fill squares of side 1 around the curve
        points = points + rng.random((num_points, 2)) - 0.5
        rms = np.sqrt(rms**2 + 1 / 12)
    points = (points - mean) * np.sqrt(_SCALE**2 - cloud.noise**2) / rms
    points = points + cloud.noise * _truncated_normal(rng, (num_points, 2))
    return points.astype(np.float32), labels if cloud.num_classes > 1 else None


def _moments(cloud: Cloud) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [2] and the root mean square of the curve, by the midpoint rule in u."""
    u = (np.arange(8192) + 0.5) / 8192
    curve = np.concatenate([cloud.curve(u, np.full(u.shape, c)) for c in range(cloud.num_classes)])
    mean = curve.mean(axis=0)
    return mean, np.sqrt(np.mean((curve - mean) ** 2))


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], bound: float = 3.0) -> np.ndarray:
    z = rng.standard_normal(shape)
    while (outside := np.abs(z) > bound).any():
        z[outside] = rng.standard_normal(int(outside.sum()))
    return z


def _polar(radius: Any, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _moons(u: np.ndarray, label: np.ndarray) -> np.ndarray:
    upper = _polar(1.0, np.pi * u)
    return np.where(label[:, None] == 0, upper, np.array([1.0, 0.5]) - upper)


def _two_spirals(u: np.ndarray, label: np.ndarray) -> np.ndarray:
    radius = np.sqrt(0.02 + 0.98 * u)  # uniform density along the arm
    return _polar(radius, 3 * np.pi * radius + np.pi * label)


def _swiss_roll(u: np.ndarray, label: np.ndarray) -> np.ndarray:
    angle = 1.5 * np.pi * (1 + 2 * u)
    return _polar(angle, angle)


def _checkerboard(u: np.ndarray, label: np.ndarray) -> np.ndarray:
    row = label // 2  # the centres of the 8 dark squares of a 4 x 4 board
    return np.stack([2 * (label % 2) + row % 2, row], axis=-1).astype(np.float64)


def _eight_gaussians(u: np.ndarray, label: np.ndarray) -> np.ndarray:
    return _polar(1.0, np.pi / 4 * label)


def _rings(u: np.ndarray, label: np.ndarray) -> np.ndarray:
    return _polar(1.0 + label, 2 * np.pi * u)


CLOUDS: dict[str, Cloud] = {
    "moons": Cloud(_moons, num_classes=2, noise=0.03),
    "two_spirals": Cloud(_two_spirals, num_classes=2, noise=0.015),
    "swiss_roll": Cloud(_swiss_roll, num_classes=1, noise=0.015),
    "checkerboard": Cloud(_checkerboard, num_classes=8, noise=0.0),
    "eight_gaussians": Cloud(_eight_gaussians, num_classes=8, noise=0.04),
    "rings": Cloud(_rings, num_classes=2, noise=0.025),
}
