"""Pictures of a run: grids of images, clouds of points, curves. Each is a PNG that is replaced as a whole."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments.files import write_atomically

_GAP = 2  # pixels between the images of a grid
_BACKGROUND = 96  # grey level of the gaps
_MIN_WIDTH = 600  # pixels, of a grid whose scale is not given

Curve = tuple[np.ndarray, np.ndarray]


def to_uint8(images: Any) -> np.ndarray:
    """Returns images in [-1, 1] as bytes 0..255, rounded to the nearest; values outside are clipped.

    Raises:
      ValueError: if an entry is NaN.

    >>> to_uint8([-1.0, 0.0, 2.0]).tolist()
    [0, 128, 255]
    """
    images = np.asarray(images, np.float32)
    if np.isnan(images).any():
        where = tuple(int(i) for i in np.argwhere(np.isnan(images))[0])
        count = int(np.isnan(images).sum())
        raise ValueError(f"{count} of {images.size} values to be drawn are NaN, the first at index {where}")
    return np.rint(127.5 * (np.clip(images, -1.0, 1.0) + 1.0)).astype(np.uint8)


def image_grid(images: Any, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Returns images laid out row by row, uint8 `[height, width, C]`, with gaps of 2 pixels.

    Args:
      images: `[n, H, W, C]` in [-1, 1], C = 1 or 3.
      columns: images in a row; None: as near to a square as can be.
      scale: each pixel becomes a square of this side; None: the smallest that makes the grid 600 pixels wide.

    Raises:
      ValueError: for another shape, no images, NaN, or a number of columns or a scale below 1.

    >>> image_grid(np.zeros((4, 8, 8, 1)), scale=1).shape
    (22, 22, 1)
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images must be [n, H, W, C] with n > 0 and C = 1 or 3; got {list(images.shape)}")
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1; got {columns}")
    columns = min(columns, n)
    if scale is None:
        scale = max(1, math.ceil((_MIN_WIDTH - _GAP * (columns + 1)) / (columns * width)))
    if scale < 1:
        raise ValueError(f"scale must be at least 1; got {scale}")
    rows = math.ceil(n / columns)
    tiles = to_uint8(images).repeat(scale, axis=1).repeat(scale, axis=2)
    tall, wide = height * scale + _GAP, width * scale + _GAP
    grid = np.full((rows * tall + _GAP, columns * wide + _GAP, channels), _BACKGROUND, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = _GAP + i // columns * tall, _GAP + i % columns * wide
        grid[top : top + height * scale, left : left + width * scale] = tile
    return grid


def save_grid(path: str | os.PathLike[str], images: Any, columns: int | None = None, scale: int | None = None) -> None:
    """Writes `image_grid(images, columns, scale)` as a PNG file."""
    grid = image_grid(images, columns, scale)
    picture = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def save_points(path: str | os.PathLike[str], points: Any, reference: Any = None, title: str = "") -> None:
    """Writes a scatter plot of points `[n, 2]`, over reference points `[m, 2]` in grey if there are any.

    The axes show the reference (or the points) and no more than three times as much, so that one stray point
    does not shrink the rest; the legend counts the points outside.

    Raises:
      ValueError: for another shape, or NaN or infinite points.
    """
    points = _check_points(points, "points")
    frame = points if reference is None else _check_points(reference, "reference")
    center, half = frame.mean(axis=0), 1.1 * np.abs(frame - frame.mean(axis=0)).max() + 1e-6
    reach = min(np.abs(points - center).max() * 1.05, 3 * half)
    half = max(half, reach)
    outside = int((np.abs(points - center) > half).any(axis=1).sum())
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(4000 / max(len(points), 1), 0.5, 12))
    if reference is not None:
        axes.scatter(frame[:, 0], frame[:, 1], s=size, c="0.75", linewidths=0, label=f"data ({len(frame)})")
    stray = f", {outside} outside" if outside else ""
    axes.scatter(points[:, 0], points[:, 1], s=size, c="C0", linewidths=0, label=f"samples ({len(points)}{stray})")
    axes.set(
        xlim=(center[0] - half, center[0] + half),
        ylim=(center[1] - half, center[1] + half),
        xlabel="first coordinate",
        ylabel="second coordinate",
        title=title,
        aspect="equal",
    )
    axes.legend(loc="upper right", markerscale=max(1.0, 4 / size))
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def save_sequences(path: str | os.PathLike[str], sequences: Any, columns: int | None = None) -> None:
    """Writes sequences `[n, L, C]` as small plots, a line a channel, laid out row by row on common axes.

    Args:
      path: the PNG file.
      sequences: the sequences.
      columns: plots in a row; None: as near to a square as can be.

    Raises:
      ValueError: for another shape, or NaN or infinite values.
    """
    sequences = np.asarray(sequences, np.float64)
    if sequences.ndim != 3 or 0 in sequences.shape:
        raise ValueError(f"sequences must be [n, L, C] with n > 0; got {list(sequences.shape)}")
    if not np.isfinite(sequences).all():
        raise ValueError(f"{int((~np.isfinite(sequences)).sum())} values to be drawn are NaN or infinite")
    n = len(sequences)
    columns = min(n, math.ceil(math.sqrt(n)) if columns is None else columns)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(columns, 0.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    for ax, sequence in zip(axes, sequences):
        ax.plot(sequence, linewidth=0.8)
    for ax in axes[n:]:
        ax.set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))


def save_curves(
    path: str | os.PathLike[str],
    metrics: str | os.PathLike[str] | Mapping[str, Any],
    names: Sequence[str] = ("loss",),
    *,
    smoothing: float | None = None,
    title: str = "Training",
) -> None:
    """Writes curves over training steps: raw values faint, their running mean in full.

    The vertical axis is logarithmic if all the values are positive. Gaps stay where a value is NaN or
    infinite.

    Args:
      path: the PNG file.
      metrics: a file of JSON lines such as `{"step": 100, "loss": 0.25}`, or a mapping from a name to values,
        or to a pair (steps, values). A last line that was cut off by the end of a run is passed over.
      names: which of the metrics to draw; those that have no values are left out.
      smoothing: decay of the running mean between one value and the next, in [0, 1). None: so that the mean
        reaches back over a fiftieth of the curve; a curve of few values is left as it is.
      title: written above the plot.

    Raises:
      ValueError: if none of `names` has a value, or a line before the last is not JSON.
    """
    if smoothing is not None and not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing must lie in [0, 1); got {smoothing}")
    if isinstance(metrics, Mapping):
        found = {name: _as_curve(metrics[name]) for name in names if name in metrics}
    else:
        found = read_curves(metrics, names)
    curves = {name: curve for name, curve in found.items() if len(curve[0])}
    if not curves:
        raise ValueError(f"no values of {', '.join(names)} to draw")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (name, (steps, values)) in enumerate(curves.items()):
        decay = 1.0 - 1.0 / max(1.0, len(values) / 50) if smoothing is None else smoothing
        axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(values, decay), color=f"C{i}", linewidth=1.8, label=name)
    finite = np.concatenate([values[np.isfinite(values)] for _, values in curves.values()])
    axes.set(xlabel="training step", ylabel=" / ".join(curves), title=title)
    if finite.size and finite.min() > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def save_line(path: str | os.PathLike[str], x: Any, y: Any, xlabel: str, ylabel: str) -> None:
    """Writes y over x, both [n], the horizontal axis logarithmic."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.asarray(x), np.asarray(y), marker=".")
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axes.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def read_curves(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Curve]:
    """Returns {name: (steps, values)} from a file of JSON lines with a `step` in each.

    A step that comes twice (a run that was resumed from an earlier checkpoint) keeps its last value.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    curves: dict[str, dict[float, float]] = {name: {} for name in names}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        for name in names:
            if name in record and "step" in record:
                value = record[name]
                curves[name][float(record["step"])] = math.nan if value is None else float(value)
    return {name: _as_curve((sorted(points), [points[s] for s in sorted(points)])) for name, points in curves.items()}


def running_mean(values: Any, decay: float) -> np.ndarray:
    """Returns the exponentially weighted mean of the values so far, sum_j d^(i-j) v_j / sum_j d^(i-j).

    Values that are NaN or infinite count for nothing.

    >>> running_mean([1.0, 3.0], 0.5).round(3).tolist()
    [1.0, 2.333]
    """
    values = np.asarray(values, np.float64)
    means = np.full(len(values), np.nan)
    total = weight = 0.0
    for i, value in enumerate(values):
        total, weight = decay * total, decay * weight
        if np.isfinite(value):
            total, weight = total + value, weight + 1.0
        if weight > 0:
            means[i] = total / weight
    return means


def _as_curve(curve: Any) -> Curve:
    paired = isinstance(curve, tuple) and len(curve) == 2
    values = np.asarray(curve[1] if paired else curve, np.float64)
    steps = np.asarray(curve[0], np.float64) if paired else np.arange(len(values), dtype=np.float64)
    if values.ndim != 1 or steps.shape != values.shape:
        raise ValueError(f"a curve needs one step for each value; got {steps.shape} and {values.shape}")
    return steps, values


def _check_points(points: Any, what: str) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"{what} must be [n, 2] with n > 0; got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError(f"{int((~np.isfinite(points)).sum())} coordinates of {what} are NaN or infinite")
    return points
