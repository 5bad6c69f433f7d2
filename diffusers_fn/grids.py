"""Grids: which noise levels a sampler visits, from the noisiest down to the last noisy one.

Each function returns Level[N] in float64 on the host (those that step through timesteps also trace, where the schedule
is traced). A plan stops at the last noisy level: the hop into sigma = 0 is the final denoise of `sample`, whatever the
solver.
"""

from __future__ import annotations

import numpy as np

from diffusers_fn._arrays import is_traced
from diffusers_fn.discrete import ddim_timesteps
from diffusers_fn.levels import Level
from diffusers_fn.noise_schedules import NoiseSchedule, check_timesteps, level_at, on_host


def linspace(schedule: NoiseSchedule, num_steps: int) -> Level:
    """Returns num_steps levels evenly spaced in t from T-1 to 0, rounded to timesteps.

    Raises:
      ValueError: unless 1 <= num_steps <= T.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> linspace(make_noise_schedule(linear_betas(1000)), 5).t
    array([999., 749., 500., 250.,   0.])
    """
    return _visit(schedule, ddim_timesteps(_num_timesteps(schedule), num_steps, "uniform"))


def quadratic(schedule: NoiseSchedule, num_steps: int) -> Level:
    """Returns num_steps levels with t quadratic in the step, denser near the data (Song et al. 2021, app. D.2).

    https://arxiv.org/abs/2010.02502. The first is t = 0.8 T, as in the paper, not T-1.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> quadratic(make_noise_schedule(linear_betas(1000)), 5).t
    array([800., 450., 200.,  50.,   0.])
    """
    return _visit(schedule, ddim_timesteps(_num_timesteps(schedule), num_steps, "quadratic"))


def leading(schedule: NoiseSchedule, num_steps: int, offset: int = 0) -> Level:
    """Returns levels at t = offset + i (T // num_steps), i descending: the plan of the first DDIM code.

    It never visits T-1, so a model sampled from pure noise starts off its path; `trailing` does not have that
    flaw (Lin et al. 2024, https://arxiv.org/abs/2305.08891, table 2).

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> leading(make_noise_schedule(linear_betas(1000)), 5, offset=1).t
    array([801., 601., 401., 201.,   1.])
    """
    num_timesteps = _num_timesteps(schedule)
    _check_num_steps(num_steps, num_timesteps)
    if offset < 0:
        raise ValueError(f"offset must not be negative: t = -1 is the clean data, no level of a plan; got {offset}")
    return _visit(schedule, np.arange(num_steps)[::-1] * (num_timesteps // num_steps) + offset)


def trailing(schedule: NoiseSchedule, num_steps: int) -> Level:
    """Returns levels at t = round(T - i T / num_steps) - 1: from T-1 down, the last one a stride above clean.

    Lin et al. 2024, https://arxiv.org/abs/2305.08891, table 2.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> trailing(make_noise_schedule(linear_betas(1000)), 5).t
    array([999., 799., 599., 399., 199.])
    """
    num_timesteps = _num_timesteps(schedule)
    _check_num_steps(num_steps, num_timesteps)
    timesteps = np.round(num_timesteps - np.arange(num_steps) * (num_timesteps / num_steps)) - 1
    return _visit(schedule, timesteps.astype(np.int64))


def karras(
    num_steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    *,
    schedule: NoiseSchedule | None = None,
) -> Level:
    """Returns levels whose sigma is evenly spaced in sigma^(1/rho), from sigma_max to sigma_min.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, eq. 5. By default alpha = 1 and the label is
    log(sigma) / 4 (EDM). With a schedule, its own levels with sigma / alpha on that grid, labelled by the
    fractional timestep (interpolated in log SNR).

    Raises:
      ValueError: unless num_steps >= 1 and 0 < sigma_min < sigma_max and rho > 0; with a schedule, if the grid
        leaves the schedule's range of sigma / alpha.

    >>> karras(3).sigma.round(4)
    array([8.0000e+01, 2.5152e+00, 2.0000e-03])
    """
    _check_num_steps(num_steps, None if schedule is None else _num_timesteps(schedule))
    if not 0 < sigma_min < sigma_max or not rho > 0:
        raise ValueError(
            f"karras needs 0 < sigma_min < sigma_max and rho > 0; got {sigma_min}, {sigma_max} and rho = {rho}"
        )
    sigma = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps) ** rho
    if schedule is None:
        return Level(np.ones_like(sigma), sigma, np.log(sigma) / 4)
    return _at_log_snr(schedule, -2.0 * np.log(sigma))


def uniform_log_snr(schedule: NoiseSchedule, num_steps: int) -> Level:
    """Returns levels evenly spaced in log SNR over the schedule's whole range, labelled by fractional timesteps.

    Lu et al., "DPM-Solver", 2022, https://arxiv.org/abs/2206.00927, section 3.3.

    Raises:
      ValueError: unless 1 <= num_steps <= T, or if the schedule ends on pure noise (log SNR -inf) or is traced.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> uniform_log_snr(make_noise_schedule(linear_betas(1000)), 3).t.round(1)
    array([999. , 302.3,   0. ])
    """
    _check_num_steps(num_steps, _num_timesteps(schedule))
    lowest, highest = _table_log_snr(schedule)[[-1, 0]]
    return _at_log_snr(schedule, np.linspace(lowest, highest, num_steps))


def _visit(schedule: NoiseSchedule, timesteps: np.ndarray) -> Level:
    check_timesteps(schedule, timesteps)  # a plan holds no clean level
    return level_at(schedule if is_traced(schedule) else on_host(schedule), timesteps)


def _num_timesteps(schedule: NoiseSchedule) -> int:
    return schedule.betas.shape[0]


def _check_num_steps(num_steps: int, num_timesteps: int | None) -> None:
    if num_steps != int(num_steps) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer of at least 1; got {num_steps}")
    if num_timesteps is not None and num_steps > num_timesteps:
        raise ValueError(f"num_steps must not exceed the {num_timesteps} timesteps of the schedule; got {num_steps}")


def _table_log_snr(schedule: NoiseSchedule) -> np.ndarray:
    alphas_cumprod = on_host(schedule).alphas_cumprod
    if alphas_cumprod[-1] == 0:
        raise ValueError("the schedule ends on pure noise, where log SNR is -inf: use linspace or trailing instead")
    return np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)


def _at_log_snr(schedule: NoiseSchedule, log_snr: np.ndarray) -> Level:
    """The schedule's levels at the given log SNR, alpha^2 + sigma^2 = 1, t interpolated."""
    table = _table_log_snr(schedule)
    slack = 1e-9 * (table[0] - table[-1])
    if log_snr.min() < table[-1] - slack or log_snr.max() > table[0] + slack:
        ends = np.exp(-0.5 * table[[0, -1]])
        raise ValueError(
            f"sigma / alpha must lie within the schedule's own range, {ends[0]:.6g} to {ends[1]:.6g}; "
            f"got {np.exp(-0.5 * log_snr.max()):.6g} to {np.exp(-0.5 * log_snr.min()):.6g}"
        )
    t = np.interp(log_snr, table[::-1], np.arange(table.size)[::-1])
    return Level(np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr))), t)
