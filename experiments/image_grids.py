"""Images as grids in PNG files, with NumPy and Pillow alone."""

import math
import os
from typing import Any

import numpy as np
from PIL import Image

from experiments.files import write_atomically

__all__ = ["Bounds", "image_grid", "picture_range", "save_grid", "to_uint8"]

Bounds = tuple[float, float]

_GAP = 2  # pixels between the images of a grid
_BACKGROUND = 96  # grey level of the gaps
_MIN_WIDTH = 600  # pixels; smallest width of a grid without a given scale


def picture_range(bounds: Bounds | None, values: Any) -> Bounds:
    """Returns the values that black and white stand for: the bounds of the data or, if None, those of the values.

    The latter are the quantiles 0.5% and 99.5% of the finite values, so that a single outlier does not make all else
    grey.

    >>> picture_range((-1.0, 1.0), None), picture_range(None, np.linspace(0.0, 200.0, 201))
    ((-1.0, 1.0), (1.0, 199.0))
    """
    if bounds is not None:
        return bounds
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(each) for each in np.quantile(finite, [0.005, 0.995])) if finite.size else (-1.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def to_uint8(images: Any, bounds: Bounds = (-1.0, 1.0)) -> np.ndarray:
    """Returns images as uint8, 0 and 255 at the bounds, rounded to nearest; values outside the bounds are clipped.

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
    if bounds != (-1.0, 1.0):
        images = (2.0 * (images - np.float64(bounds[0])) / (bounds[1] - bounds[0]) - 1.0).astype(np.float32)
    return np.rint(127.5 * (np.clip(images, -1.0, 1.0) + 1.0)).astype(np.uint8)


def image_grid(
    images: Any, columns: int | None = None, scale: int | None = None, bounds: Bounds = (-1.0, 1.0)
) -> np.ndarray:
    """Returns images laid out row by row, uint8 `[height, width, C]`, with gaps of 2 pixels.

    Args:
      images: `[n, H, W, C]`, C = 1 or 3.
      columns: images per row; None makes the grid about square.
      scale: side of the square that each pixel becomes; None takes the smallest with a grid at least 600 pixels wide.
      bounds: the values that black and white stand for.

    Raises:
      ValueError: if the shape is wrong, there are no images, an entry is NaN, or columns or scale is below 1.

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
    tiles = to_uint8(images, bounds).repeat(scale, axis=1).repeat(scale, axis=2)
    tall, wide = height * scale + _GAP, width * scale + _GAP
    grid = np.full((rows * tall + _GAP, columns * wide + _GAP, channels), _BACKGROUND, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = _GAP + i // columns * tall, _GAP + i % columns * wide
        grid[top : top + height * scale, left : left + width * scale] = tile
    return grid


def save_grid(
    path: str | os.PathLike[str],
    images: Any,
    columns: int | None = None,
    scale: int | None = None,
    bounds: Bounds = (-1.0, 1.0),
) -> None:
    """Writes `image_grid(images, columns, scale, bounds)` as a PNG file."""
    grid = image_grid(images, columns, scale, bounds)
    picture = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))
