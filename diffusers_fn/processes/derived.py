"""Processes derived from another one: shifted, with other time labels, with data and noise exchanged."""

from __future__ import annotations

import numpy as np

from diffusers_fn._arrays import concrete, floating, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes.base import Process, TimeFunction

__all__ = ["exchanged", "labelled", "shifted"]


def shifted(process: Process, shift: float) -> Process:
    """Returns the process with log SNR lowered by 2 log(shift): shift > 1 puts more of the time at high noise.

    Its level at t is the level of `process` at t', time label included, with
    log SNR(t') = log SNR(t) - 2 log(shift). For `flow`,

        t' = shift t / (1 + (shift - 1) t)

    Esser et al., "Scaling Rectified Flow Transformers", 2024, https://arxiv.org/abs/2403.03206, eq. 23. The shift of
    simple diffusion for images of size d, log SNR + 2 log(64 / d), is `shifted(process, d / 64)` (Hoogeboom et al.
    2023, https://arxiv.org/abs/2301.11093). t_min and t_max are moved so that t' stays in the old range.

    Raises:
      ValueError: unless shift > 0.

    >>> from diffusers_fn.processes import flow
    >>> shifted(flow(), 3.0)(0.5)
    Level(alpha=np.float64(0.25), sigma=np.float64(0.75), t=np.float64(0.75))
    """
    if (value := concrete(shift)) is not None and not value > 0:
        raise ValueError(f"shift must be positive; got {shift}")
    offset = 2 * namespace(shift).log(shift)

    def moved(t: ArrayLike) -> Array:
        return process.time(log_snr(process.level(t)) - offset)

    def level(t: ArrayLike) -> Level:
        return process.level(moved(t))

    def time(log_snr: ArrayLike) -> Array:
        return process.time(log_snr + offset)

    def rates(t: ArrayLike) -> tuple[Array, Array]:
        # dt' / dt is the ratio of the derivatives of log SNR, -g^2 / sigma^2, at t and at t'.
        t_moved = moved(t)
        f, g2 = process.rates(t_moved)
        speed = g2 / process.level(t_moved).sigma ** 2
        with np.errstate(invalid="ignore"):  # NaN at alpha = 0, where both are infinite
            speedup = process.rates(t)[1] / process.level(t).sigma ** 2 / speed
        return f * speedup, g2 * speedup

    xp = namespace(offset)
    highest, lowest = (log_snr(process.level(t)) for t in (process.t_min, process.t_max))
    t_min = xp.where(offset < 0, process.time(highest + xp.minimum(offset, 0.0)), process.t_min)[()]
    t_max = xp.where(offset > 0, process.time(lowest + xp.maximum(offset, 0.0)), process.t_max)[()]
    return Process(level, time, rates, t_min, t_max)


def labelled(process: Process, label: TimeFunction) -> Process:
    """Returns the process with label(t) as the time label of its levels.

    To combine it with a shift, label first and shift then: `shifted` looks up the label at the shifted time.

    Args:
      process: a process.
      label: t -> label, S each; written with operators or `jax.numpy`, so that it can be traced.

    >>> from diffusers_fn.processes import flow
    >>> labelled(flow(), lambda t: 1000 * t)(0.25).t
    np.float64(250.0)
    """

    def level(t: ArrayLike) -> Level:
        old = process.level(t)
        return Level(old.alpha, old.sigma, label(floating(t)))

    return process._replace(level=level)


def exchanged(process: Process) -> Process:
    """Returns the process with data and noise exchanged: alpha and sigma swapped, with the same time labels.

    `invert` runs a solver on exchanged levels. A solver with inner stages finds their levels on this process:
    `invert(denoise, levels, x0, make=lambda levels: solvers.dpm2(levels, exchanged(process)))`.

    >>> from diffusers_fn.processes import flow
    >>> exchanged(flow())(0.25)
    Level(alpha=np.float64(0.25), sigma=np.float64(0.75), t=np.float64(0.25))
    """

    def level(t: ArrayLike) -> Level:
        old = process.level(t)
        return Level(old.sigma, old.alpha, old.t)

    def rates(t: ArrayLike) -> tuple[Array, Array]:
        # From d(log alpha) = f dt and d(sigma^2) = (g^2 + 2 f sigma^2) dt.
        f, g2 = process.rates(t)
        old = process.level(t)
        growth = f + g2 / (2 * old.sigma**2)
        return growth, 2 * old.alpha**2 * (f - growth)

    return Process(level, lambda log_snr: process.time(-log_snr), rates, process.t_min, process.t_max)
