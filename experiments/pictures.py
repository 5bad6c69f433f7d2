"""Pictures of samples: grids of images, scatter plots, line plots. Each is a PNG file, replaced as a whole."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.files import write_atomically
from experiments.image_grids import Bounds, image_grid, picture_range, save_grid, to_uint8

__all__ = [
    "image_grid",
    "picture_range",
    "save_grid",
    "save_line",
    "save_picture",
    "save_points",
    "save_sequences",
    "to_uint8",
]


def save_picture(
    path: Path,
    samples: np.ndarray,
    columns: int | None = None,
    reference: Any = None,
    bounds: Bounds = (-1.0, 1.0),
    *,
    alpha: bool = False,
) -> None:
    """Writes a PNG file: images as a grid, points in the plane as a scatter plot, sequences and other vectors as lines.

    Images with two channels or more than three, such as latents, are drawn as one grey image per channel, side by side.

    Args:
      path: the PNG file.
      samples: `[n, *shape]`.
      columns: samples per row; None makes the picture about square.
      reference: real data; points are drawn with them, and they set the axes of sequences.
      bounds: the values that black and white stand for.
      alpha: the last of four channels is opacity; images are drawn on grey.
    """
    if samples.ndim == 4:
        if alpha and samples.shape[-1] == 4:
            low, high = bounds
            opacity = np.clip((samples[..., 3:] - low) / (high - low), 0.0, 1.0)
            samples = opacity * samples[..., :3] + (1.0 - opacity) * (low + high) / 2
        if samples.shape[-1] not in (1, 3):
            samples = np.concatenate(np.split(samples, samples.shape[-1], axis=-1), axis=2)
        save_grid(path, samples, columns=columns, bounds=bounds)
    elif samples.ndim == 3:
        save_sequences(path, samples, columns, reference)
    elif samples.shape[1:] == (2,):
        save_points(path, samples, reference)
    else:
        save_sequences(path, samples[:100, :, None], columns, None if reference is None else reference[..., None])


def save_points(path: str | os.PathLike[str], points: Any, reference: Any = None, title: str = "") -> None:
    """Writes a scatter plot of points `[n, 2]`, above reference points `[m, 2]` in grey if they are given.

    The axes cover at most three times the extent of the reference (or of the points), so that a single outlier does not
    shrink the rest; the legend counts the points outside.

    Raises:
      ValueError: if the shape is wrong, or a point is NaN or infinite.
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


def save_sequences(
    path: str | os.PathLike[str], sequences: Any, columns: int | None = None, reference: Any = None
) -> None:
    """Writes sequences `[n, L, C]` as small plots on common axes, row by row, with one line per channel.

    The axes cover the sequences, but at most three times the extent of the reference, if it is given.

    Args:
      path: the PNG file.
      sequences: `[n, L, C]`.
      columns: plots per row; None makes the picture about square.
      reference: real sequences `[m, L, C]`, or None.

    Raises:
      ValueError: if the shape is wrong, or a value is NaN or infinite.
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
    if reference is not None and np.size(reference):
        low, high = float(np.min(reference)), float(np.max(reference))
        reach = 3 * (high - low) / 2 + 1e-6
        center, margin = (low + high) / 2, 0.05 * (high - low) + 1e-6
        low, high = min(low, float(sequences.min())), max(high, float(sequences.max()))
        axes[0].set_ylim(max(low, center - reach) - margin, min(high, center + reach) + margin)
    for ax, sequence in zip(axes, sequences):
        ax.plot(sequence, linewidth=0.8)
    for ax in axes[n:]:
        ax.set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))


def save_line(path: str | os.PathLike[str], x: Any, y: Any, xlabel: str, ylabel: str) -> None:
    """Writes a line plot of y `[n]` over x `[n]`, with a logarithmic horizontal axis."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.asarray(x), np.asarray(y), marker=".")
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axes.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def _check_points(points: Any, what: str) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"{what} must be [n, 2] with n > 0; got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError(f"{int((~np.isfinite(points)).sum())} coordinates of {what} are NaN or infinite")
    return points
