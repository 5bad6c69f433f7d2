"""The continuous process that interpolates a discrete noise schedule."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.noise_schedules import NoiseSchedule, on_host
from diffusers_fn.processes.base import Process, TimeFunction, make_process, on_circle

__all__ = ["Interpolation", "linear_log_alpha", "linear_log_snr", "linear_sigma", "tabulated"]


class Interpolation(NamedTuple):
    """The quantity y that is linear in t between the timesteps of a noise schedule, a monotone function of log SNR.

    Attributes:
      of: log SNR -> y.
      log_snr: y -> log SNR.
      slope: y -> d(log SNR) / dy.

    >>> round(float(linear_sigma.of(linear_sigma.log_snr(3.0))), 12)
    3.0
    """

    of: TimeFunction
    log_snr: TimeFunction
    slope: TimeFunction


linear_log_snr = Interpolation(lambda log_snr: log_snr, lambda y: y, lambda y: 1.0)
linear_sigma = Interpolation(  # y = sigma / alpha
    lambda log_snr: namespace(log_snr).exp(-log_snr / 2), lambda y: -2 * namespace(y).log(y), lambda y: -2 / y
)
linear_log_alpha = Interpolation(  # y = log(alpha)
    lambda log_snr: -namespace(log_snr).logaddexp(0.0, -log_snr) / 2,
    lambda y: 2 * y - namespace(y).log(-namespace(y).expm1(2 * y)),
    lambda y: -2 / namespace(y).expm1(2 * y),
)


def tabulated(schedule: NoiseSchedule, interpolation: Interpolation = linear_log_snr) -> Process:
    """Returns the continuous process that interpolates a discrete noise schedule, t in [0, T-1], labelled by t.

    At an integer t the level is that of the schedule. Between two timesteps log SNR is linear in t by default, with
    alpha^2 + sigma^2 = 1; the samplers of other libraries also interpolate sigma / alpha (`linear_sigma`) or log(alpha)
    (`linear_log_alpha`). With slope = d(log SNR) / dt,

        f = slope sigma^2 / 2,   g^2 = -slope sigma^2

    Args:
      schedule: the noise schedule.
      interpolation: the quantity that is linear in t.

    Raises:
      ValueError: if the schedule has a single timestep, ends on pure noise (log SNR = -inf) or is traced.

    >>> from diffusers_fn.levels import log_snr
    >>> from diffusers_fn.noise_schedules import level_at, linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> process = tabulated(schedule)
    >>> bool(np.isclose(process(499.0).sigma, level_at(schedule, 499).sigma, rtol=1e-14))
    True
    >>> process.time(log_snr(process(12.5))).round(6)
    np.float64(12.5)
    """
    alphas_cumprod = on_host(schedule).alphas_cumprod
    if alphas_cumprod[-1] == 0:
        raise ValueError("the schedule ends on pure noise, where log SNR is -inf: use linspace or trailing instead")
    if alphas_cumprod.size < 2:
        raise ValueError("a process through a table needs at least 2 timesteps; got 1")
    log_snrs = np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)
    steps, table = np.arange(log_snrs.size, dtype=np.float64), interpolation.of(log_snrs)
    rising = np.argsort(table)

    def interpolate(x: Any, knots: np.ndarray, values: np.ndarray) -> Array:
        xp = namespace(x)
        return xp.interp(x, xp.asarray(knots, x.dtype), xp.asarray(values, x.dtype))

    def coefficients(t: ArrayLike) -> tuple[Array, Array]:
        return on_circle(interpolation.log_snr(interpolate(t, steps, table)))

    def time(log_snr: ArrayLike) -> Array:
        _check_within_table(log_snr, log_snrs)
        return interpolate(interpolation.of(log_snr), table[rising], steps[rising])

    def rates(t: Any) -> tuple[Array, Array]:
        xp = namespace(t)
        interval = xp.clip(xp.floor(t).astype(int), 0, table.size - 2)
        slope = xp.asarray(np.diff(table), t.dtype)[interval] * interpolation.slope(interpolate(t, steps, table))
        _, sigma = coefficients(t)
        return slope * sigma**2 / 2, -slope * sigma**2

    last = steps[-1].item()
    return make_process(coefficients, time, rates, ends=(0.0, last), domain=(0.0, last))


def _check_within_table(log_snr: Any, table: np.ndarray) -> None:
    values = concrete(log_snr)
    if values is None or not values.size:
        return
    slack = (1e-9 if values.dtype == np.float64 else 1e-6) * (table[0] - table[-1])
    if not (values.min() >= table[-1] - slack and values.max() <= table[0] + slack):
        ends = np.exp(-0.5 * table[[0, -1]])
        raise ValueError(
            f"sigma / alpha must lie within the schedule's own range, {ends[0]:.6g} to {ends[1]:.6g}; "
            f"got {np.exp(-0.5 * values.max()):.6g} to {np.exp(-0.5 * values.min()):.6g}"
        )
