"""Points on the chord between two levels, where the inner stages of Runge-Kutta methods lie."""

from __future__ import annotations

import jax
import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes import Process, at_log_snr, between

__all__ = ["on_chord"]


def on_chord(start: Level, end: Level, fraction: float, process: Process | None) -> tuple[Level, ArrayLike]:
    """Returns (level, scale) for a point of the chord: the level to evaluate the network at, and the factor of x there.

    The chord is the straight line between the levels in the plane of alpha and sigma; dx = x0_hat d(alpha) + eps_hat
    d(sigma) holds along it as along any path. A network is trained on the levels of its process only, so it is
    evaluated at the level of the same sigma / alpha, where x is `scale` times as large.

    Args:
      start: Level[M].
      end: Level[M].
      fraction: of the way from start to end, in [0, 1].
      process: the process on which both lie; None interpolates, see `processes.between`.

    Raises:
      ValueError: without a process, if alpha = 0 at a start whose end lies on the circle alpha^2 + sigma^2 = 1.

    >>> level, scale = on_chord(Level(1.0, 3.0, 0.0), Level(1.0, 1.0, 1.0), 0.5, None)
    >>> round(float(level.sigma), 6), round(float(scale), 6)
    (2.0, 1.0)
    """
    if fraction in (0, 1):
        return (end if fraction else start), 1.0
    xp = namespace(start, end)
    along = lambda u: jax.tree.map(lambda a, b: (1 - u) * a + u * b, start, end)  # noqa: E731
    point = along(fraction)
    if process is not None:
        level = at_log_snr(process, log_snr(point))
        return level, level.sigma / point.sigma
    _check_circle(start, end)
    # Log SNR is infinite at alpha = 0: there, interpolate from a point of the chord nearer to the end instead.
    finite = jax.tree.map(lambda a, b: xp.where(start.alpha == 0, b, a), start, along(0.5 * fraction))
    share = (log_snr(point) - log_snr(finite)) / (log_snr(end) - log_snr(finite))
    level = between(finite, end, share, None)
    return level, level.sigma / point.sigma


def _check_circle(start: Level, end: Level) -> None:
    alpha, sigma, next_alpha, next_sigma = (concrete(a) for a in (start.alpha, start.sigma, end.alpha, end.sigma))
    if alpha is None or sigma is None or next_alpha is None or next_sigma is None:
        return
    if np.any((alpha == 0) & (abs(next_alpha**2 + next_sigma**2 - 1) < 1e-6)):
        raise ValueError(
            "on a variance-preserving process the levels between pure noise (alpha = 0) and the next level are not "
            "known from these two: pass the process, e.g. process=processes.cosine()"
        )
