"""Grids in the time of a process, or in its log SNR.

`process` is a process or a noise schedule, for which t is the fractional timestep. By default t_max and t_min are the
ends of the process.
"""

from __future__ import annotations

import math

import numpy as np

from diffusers_fn.grids.sources import Source, as_process, check_num_steps
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes import Process, at_log_snr

__all__ = ["beta", "beta_quantile", "power_t", "uniform_log_snr", "uniform_t"]


def uniform_t(process: Source, num_steps: int, t_max: float | None = None, t_min: float | None = None) -> Level:
    """Returns levels evenly spaced in t, from t_max to t_min.

    With `vp` it is the grid of score SDEs (Song et al. 2021, https://arxiv.org/abs/2011.13456) and EDM's "VP"; with
    `shifted(flow(), shift)` it is the grid of rectified flows (Esser et al. 2024, https://arxiv.org/abs/2403.03206),
    where t_min = 1 / num_steps makes all steps equally long in t, the last one included.

    Raises:
      ValueError: unless num_steps >= 1 and t_min < t_max, both in the process's domain.

    >>> from diffusers_fn.processes import flow, shifted
    >>> uniform_t(flow(), 4, t_min=0.25).sigma
    array([1.  , 0.75, 0.5 , 0.25])
    >>> uniform_t(shifted(flow(), 3.0), 4, t_min=0.25).sigma
    array([1.  , 0.9 , 0.75, 0.5 ])
    """
    return power_t(process, num_steps, 1.0, t_max=t_max, t_min=t_min)


def power_t(
    process: Source, num_steps: int, power: float = 2.0, *, t_max: float | None = None, t_min: float | None = None
) -> Level:
    """Returns levels evenly spaced in t^(1/power), from t_max to t_min: denser near the data for power > 1.

    power = 2 is the quadratic grid of DPM-Solver (Lu et al. 2022, https://arxiv.org/abs/2206.00927, section 3.3, for
    continuous-time models). With `edm` it is `karras` with rho = power.

    Raises:
      ValueError: as `uniform_t`, or unless power > 0.

    >>> from diffusers_fn.processes import vp
    >>> power_t(vp(), 3, t_min=0.01).t.round(4)
    array([1.    , 0.3025, 0.01  ])
    """
    if not power > 0:
        raise ValueError(f"power must be positive; got {power}")
    process, t_max, t_min = _ends(process, num_steps, t_max, t_min)
    return process(np.linspace(t_max ** (1 / power), t_min ** (1 / power), num_steps) ** power)


def uniform_log_snr(process: Source, num_steps: int, t_max: float | None = None, t_min: float | None = None) -> Level:
    """Returns levels evenly spaced in log SNR from t_max to t_min; a noise schedule gets fractional timesteps.

    Lu et al., "DPM-Solver", 2022, https://arxiv.org/abs/2206.00927, section 3.3.

    Raises:
      ValueError: unless num_steps >= 1, or if the process ends on pure noise (log SNR -inf).

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> uniform_log_snr(make_noise_schedule(linear_betas(1000)), 3).t.round(1)
    array([999. , 302.3,   0. ])
    """
    process, t_max, t_min = _ends(process, num_steps, t_max, t_min)
    lowest, highest = log_snr(process(np.array([t_max, t_min])))
    if not np.isfinite(lowest) or not np.isfinite(highest):
        raise ValueError(
            f"log SNR is infinite at t = {t_min if np.isfinite(lowest) else t_max}: give another t_max or t_min"
        )
    return at_log_snr(process, np.linspace(lowest, highest, num_steps))


def beta(
    process: Source,
    num_steps: int,
    a: float = 0.6,
    b: float = 0.6,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
) -> Level:
    """Returns levels at evenly spaced quantiles of Beta(a, b) in t: denser at both ends for a, b < 1.

        t = t_min + (t_max - t_min) q(u),   u = 1 ... 0,   q the inverse of the regularised incomplete beta function

    Lee et al., "Beta Sampling is All You Need", 2024, https://arxiv.org/abs/2407.12173. Beta(1, 1) is `uniform_t`.

    Raises:
      ValueError: as `uniform_t`, or unless a > 0 and b > 0.

    >>> from diffusers_fn.processes import flow
    >>> beta(flow(), 5, t_min=0.0).t.round(4)
    array([1.    , 0.8243, 0.5   , 0.1757, 0.    ])
    """
    if not (a > 0 and b > 0):
        raise ValueError(f"beta needs a > 0 and b > 0; got {a} and {b}")
    process, t_max, t_min = _ends(process, num_steps, t_max, t_min)
    return process(t_min + (t_max - t_min) * beta_quantile(np.linspace(1.0, 0.0, num_steps), a, b))


_TERMS = 60  # terms of the continued fraction; float64 needs about sqrt(max(a, b)) of them


def beta_quantile(u: np.ndarray, a: float, b: float) -> np.ndarray:
    """Returns x with I_x(a, b) = u, the quantile function of Beta(a, b) (bisection to the last bit near 0).

    >>> beta_quantile(np.array([0.0, 0.25, 1.0]), 1.0, 1.0).round(12)
    array([0.  , 0.25, 1.  ])
    """
    low, high = np.zeros_like(u), np.ones_like(u)
    for _ in range(100):
        middle = (low + high) / 2
        below = _incomplete_beta(middle, a, b) < u
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(u <= 0, 0.0, np.where(u >= 1, 1.0, (low + high) / 2))


def _incomplete_beta(x: np.ndarray, a: float, b: float) -> np.ndarray:
    """Returns I_x(a, b) by its continued fraction, on the side of the mean where it converges fast."""
    swap = x > (a + 1) / (a + b + 2)
    x, a_side, b_side = np.where(swap, 1 - x, x), np.where(swap, b, a), np.where(swap, a, b)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    with np.errstate(divide="ignore"):
        front = np.exp(a_side * np.log(x) + b_side * np.log1p(-x) - log_beta) / a_side
    # Evaluated from the last term: 1 + d_1 / (1 + d_2 / (1 + ...)), DLMF 8.17.22-23.
    fraction = np.ones_like(x)
    for m in range(_TERMS, -1, -1):
        odd = -(a_side + m) * (a_side + b_side + m) / ((a_side + 2 * m) * (a_side + 2 * m + 1)) * x
        fraction = 1 + odd / fraction
        if m > 0:
            fraction = 1 + m * (b_side - m) / ((a_side + 2 * m - 1) * (a_side + 2 * m)) * x / fraction
    return np.where(swap, 1 - front / fraction, front / fraction)


def _ends(source: Source, num_steps: int, t_max: float | None, t_min: float | None) -> tuple[Process, float, float]:
    check_num_steps(num_steps)
    process = as_process(source)
    t_max = process.t_max if t_max is None else t_max
    t_min = process.t_min if t_min is None else t_min
    if not t_min < t_max:
        raise ValueError(f"t_min must lie below t_max; got {t_min} and {t_max}")
    return process, t_max, t_min
