"""Grey levels of data: the evenly spaced values on which they lie, which bits per dimension depend on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusers_fn.from_config.derived import data_range
from experiments import data

__all__ = ["Grid", "check_loss_levels", "find_grid", "given_grid"]

_COMMON = 256  # numbers of levels up to this are found even if the data use few of them
_LARGEST = 65_536  # 16 bits
_USED = 0.25  # share of the levels that the data use, beyond _COMMON levels


class Grid(NamedTuple):
    """Evenly spaced values from `first` to `last`."""

    first: float
    last: float
    num_levels: int

    def __str__(self) -> str:
        return f"{self.num_levels} grey levels from {self.first:g} to {self.last:g}"


def find_grid(images: Any, bounds: tuple[float, float] | None) -> Grid | None:
    """Returns the coarsest grid on which the data lie; None if they have no grey levels.

    Up to 256 levels between the bounds are tried first. Other data, such as floats in [0, 1], integers 0..255 or the
    centres of bins, are compared with grids from their own smallest to their own largest value.

    Args:
      images: values.
      bounds: range of the data, or None.

    >>> find_grid(np.array([-1.0, 0.5, 1.0]), (-1.0, 1.0))
    Grid(first=-1.0, last=1.0, num_levels=5)
    >>> find_grid(np.arange(256.0), None)
    Grid(first=0.0, last=255.0, num_levels=256)
    """
    values = np.unique(np.asarray(images, np.float64))
    if len(values) < 2 or len(values) > _LARGEST:
        return None
    if bounds is not None:
        for num_levels in range(2, _COMMON + 1):
            if _lie_on(values, grid := Grid(*bounds, num_levels)):
                return grid
    most = min(_LARGEST, max(_COMMON, int(len(values) / _USED)))
    for num_levels in range(len(values), most + 1):
        if _lie_on(values, grid := Grid(float(values[0]), float(values[-1]), num_levels)):
            return grid
    return None


def given_grid(num_levels: int, images: Any, bounds: tuple[float, float] | None) -> Grid:
    """Returns the grid of `num_levels` levels between the bounds, or over the data's own range without bounds.

    Raises:
      ValueError: if the data do not lie on it; the message has the grid that was found.
    """
    if num_levels < 2:
        raise ValueError(f"--num_levels must be at least 2, or 0 to detect it; got {num_levels}")
    values = np.unique(np.asarray(images, np.float64))
    first, last = bounds or (float(values[0]), float(values[-1]))
    grid = Grid(first, last, num_levels)
    if not _lie_on(values, grid):
        found = find_grid(images, bounds)
        raise ValueError(
            f"the data do not lie on the {grid} (--num_levels={num_levels}): "
            + (f"they have {found}; leave --num_levels out" if found else "they have no grey levels")
        )
    return grid


def check_loss_levels(config: ConfigDict, dataset: data.Dataset, num_examples: int = 200) -> None:
    """Raises ValueError unless the data lie on the config.loss.num_levels grey levels of a variational bound.

    Objectives other than `hybrid` and `vlb` have no grey levels. The first `num_examples` examples are read.
    """
    if config.task != "diffusion" or config.loss.objective not in ("hybrid", "vlb") or config.latent.enabled:
        return
    what = f"config.loss.objective is {config.loss.objective!r}, a bound for grey levels from -1 to 1"
    bounds = data_range(config)
    if bounds is None:  # the bound is that of a density
        return
    values = np.unique(data.float_images(dataset, np.arange(min(num_examples, len(dataset)))))
    found, num_levels = find_grid(values, bounds), config.loss.num_levels
    if found is None:
        raise ValueError(f"{what}, but the data have no grey levels: set config.loss.objective to 'denoising'")
    if not _lie_on(values, Grid(*bounds, num_levels)):
        remedy = f"set it to {found.num_levels}" if (found.first, found.last) == bounds else "scale the data to [-1, 1]"
        raise ValueError(f"config.loss.num_levels is {num_levels}, but the data have {found}: {remedy}")
    if found.num_levels < num_levels and len(dataset) >= num_examples:
        raise ValueError(
            f"config.loss.num_levels is {num_levels}, but the data use {found.num_levels} of these levels: set it to "
            f"{found.num_levels}, with which the bound is that of the data"
        )


def _lie_on(values: np.ndarray, grid: Grid) -> bool:
    """Whether float32 values lie on a grid, up to their rounding."""
    span = grid.last - grid.first
    steps = (np.asarray(values, np.float64) - grid.first) * (grid.num_levels - 1) / span
    rounding = 2.0**-22 * max(abs(grid.first), abs(grid.last)) * (grid.num_levels - 1) / span
    near = np.abs(steps - np.round(steps)) < max(1e-3, rounding)
    return bool(np.all(near) and steps[0] > -0.5 and steps[-1] < grid.num_levels - 0.5)
