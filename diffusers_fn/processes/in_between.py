"""A level between two others, for solvers with inner stages."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.processes.base import Process, at_log_snr, on_circle


def between(frm: Level, to: Level, fraction: Any, process: Process | None = None) -> Level:
    """Returns the level at log SNR (1 - fraction) log_snr(frm) + fraction log_snr(to), S = [] or [N].

    With a process it is the process' own level, label included. Without one the two ends alone give it: on the circle
    alpha^2 + sigma^2 = 1 if both lie on it, else on the chord between them in the plane of alpha and sigma (exact for
    alpha = 1 and for flow). The label is then linear in log SNR on the circle and where alpha or sigma is constant, and
    linear in sigma otherwise.

    Args:
      frm: the noisier level, S.
      to: the cleaner level, S.
      fraction: a number in [0, 1], 0 at `frm`.
      process: the process that both levels lie on, if known.

    Raises:
      ValueError: if a readable fraction is outside [0, 1], or if log SNR is not finite at a readable end (alpha = 0 or
        sigma = 0). Where it cannot be read the result is NaN.

    >>> between(Level(1.0, 4.0, 0.0), Level(1.0, 1.0, 1.0), 0.5)
    Level(alpha=np.float64(1.0), sigma=np.float64(2.0), t=np.float64(0.5))
    """
    _check_between(frm, to, fraction)
    xp = namespace(frm, to, fraction)
    middle = (1 - fraction) * log_snr(frm) + fraction * log_snr(to)
    if process is not None:
        return at_log_snr(process, middle)

    constant = frm.alpha == to.alpha
    circle = _is_on_circle(frm) & _is_on_circle(to) & xp.logical_not(constant)
    # Where the ray alpha = ratio sigma meets the chord.
    ratio = xp.exp(middle / 2)
    cross = frm.sigma * to.alpha - frm.alpha * to.sigma
    chord_sigma = cross / ((to.alpha - frm.alpha) - ratio * (to.sigma - frm.sigma))
    chord_alpha = xp.where(constant, frm.alpha, ratio * chord_sigma)
    circle_alpha, circle_sigma = on_circle(middle)
    alpha = xp.where(circle, circle_alpha, chord_alpha)
    sigma = xp.where(circle, circle_sigma, chord_sigma)

    width = xp.where(frm.sigma == to.sigma, 1.0, to.sigma - frm.sigma)
    weight = xp.where(circle | constant | (frm.sigma == to.sigma), fraction, (sigma - frm.sigma) / width)
    return Level(alpha[()], sigma[()], ((1 - weight) * frm.t + weight * to.t)[()])


def _is_on_circle(level: Level) -> Array:
    return abs(level.alpha**2 + level.sigma**2 - 1) < 1e-6


def _check_between(frm: Level, to: Level, fraction: Any) -> None:
    value = concrete(fraction)
    if value is not None and not np.all((value >= 0) & (value <= 1)):
        raise ValueError(f"fraction must lie in [0, 1]; got {fraction}")
    for name, level in (("frm", frm), ("to", to)):
        for field in ("alpha", "sigma"):
            value = concrete(getattr(level, field))
            if value is not None and np.any(value == 0):
                raise ValueError(
                    f"log SNR is infinite where {name}.{field} = 0, and no level lies between: "
                    "start from a level with alpha > 0 and stop at one with sigma > 0"
                )
