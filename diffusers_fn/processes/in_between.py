"""A noise level between two others, for solvers with inner stages."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes.base import Process, at_log_snr, on_circle

__all__ = ["between"]


def between(start: Level, end: Level, fraction: ArrayLike, process: Process | None = None) -> Level:
    """Returns the level at log SNR (1 - fraction) log_snr(start) + fraction log_snr(end), S = [] or [N].

    With a process it is the level of that process, time label included. Without one it lies on the circle
    alpha^2 + sigma^2 = 1 if both ends do, and else on the straight line between them in the plane of (alpha, sigma),
    which is exact for alpha = 1 and for `flow`. The label is then interpolated linearly in log SNR on the circle and
    where alpha or sigma is constant, and linearly in sigma otherwise.

    Args:
      start: the first level, S; in a solver the noisier one.
      end: the second level, S.
      fraction: [] or S in [0, 1], 0 at `start`.
      process: the process of both levels, if known.

    Raises:
      ValueError: if fraction is outside [0, 1] or log SNR is infinite at an end (alpha = 0 or sigma = 0). Traced values
        are not checked: the result is NaN there.

    >>> between(Level(1.0, 4.0, 0.0), Level(1.0, 1.0, 1.0), 0.5)
    Level(alpha=np.float64(1.0), sigma=np.float64(2.0), t=np.float64(0.5))
    """
    _check_between(start, end, fraction)
    xp = namespace(start, end, fraction)
    middle = (1 - fraction) * log_snr(start) + fraction * log_snr(end)
    if process is not None:
        return at_log_snr(process, middle)

    constant = start.alpha == end.alpha
    circle = _is_on_circle(start) & _is_on_circle(end) & xp.logical_not(constant)
    # The intersection of the ray alpha = ratio sigma with the chord from start to end.
    ratio = xp.exp(middle / 2)
    cross = start.sigma * end.alpha - start.alpha * end.sigma
    chord_sigma = cross / ((end.alpha - start.alpha) - ratio * (end.sigma - start.sigma))
    chord_alpha = xp.where(constant, start.alpha, ratio * chord_sigma)
    circle_alpha, circle_sigma = on_circle(middle)
    alpha = xp.where(circle, circle_alpha, chord_alpha)
    sigma = xp.where(circle, circle_sigma, chord_sigma)

    width = xp.where(start.sigma == end.sigma, 1.0, end.sigma - start.sigma)
    weight = xp.where(circle | constant | (start.sigma == end.sigma), fraction, (sigma - start.sigma) / width)
    return Level(alpha[()], sigma[()], ((1 - weight) * start.t + weight * end.t)[()])


def _is_on_circle(level: Level) -> Array:
    return abs(level.alpha**2 + level.sigma**2 - 1) < 1e-6


def _check_between(start: Level, end: Level, fraction: Any) -> None:
    value = concrete(fraction)
    if value is not None and not np.all((value >= 0) & (value <= 1)):
        raise ValueError(f"fraction must lie in [0, 1]; got {fraction}")
    for name, level in (("start", start), ("end", end)):
        for field in ("alpha", "sigma"):
            value = concrete(getattr(level, field))
            if value is not None and np.any(value == 0):
                raise ValueError(
                    f"log SNR is infinite where {name}.{field} = 0, so there is no level in between: "
                    "use a start with alpha > 0 and an end with sigma > 0"
                )
