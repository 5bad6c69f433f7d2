"""Grids of integer timesteps of a noise schedule, and functions that move other grids to integer timesteps."""

from __future__ import annotations

import dataclasses

import numpy as np

from diffusers_fn._arrays import is_traced
from diffusers_fn.discrete import ddim_timesteps
from diffusers_fn.grids.sources import check_num_steps
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.noise_schedules import NoiseSchedule, check_timesteps, level_at, on_host
from diffusers_fn.processes import tabulated

__all__ = ["drop_last", "leading", "linspace", "quadratic", "round_labels", "snap", "trailing"]


def linspace(schedule: NoiseSchedule, num_steps: int) -> Level:
    """Returns num_steps levels evenly spaced in t from T-1 to 0, rounded to integer timesteps.

    Some samplers of other libraries use one more level and drop t = 0: `drop_last(linspace(schedule, num_steps + 1))`.

    Raises:
      ValueError: unless 1 <= num_steps <= T.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> linspace(make_noise_schedule(linear_betas(1000)), 5).t
    array([999., 749., 500., 250.,   0.])
    """
    return _visit(schedule, ddim_timesteps(_num_timesteps(schedule), num_steps, "uniform"))


def quadratic(schedule: NoiseSchedule, num_steps: int) -> Level:
    """Returns num_steps levels with t quadratic in the index, denser near the data.

    Song et al. 2021, https://arxiv.org/abs/2010.02502, appendix D.2. The first timestep is 0.8 T, as in the paper.

    Raises:
      ValueError: as `linspace`.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> quadratic(make_noise_schedule(linear_betas(1000)), 5).t
    array([800., 450., 200.,  50.,   0.])
    """
    return _visit(schedule, ddim_timesteps(_num_timesteps(schedule), num_steps, "quadratic"))


def leading(schedule: NoiseSchedule, num_steps: int, offset: int = 0) -> Level:
    """Returns levels at t = offset + i (T // num_steps), i descending: the timesteps of the original DDIM code.

    T-1 is not among them, so the network is never evaluated at the noise level of the initial state; `trailing` starts
    at T-1 (Lin et al. 2024, https://arxiv.org/abs/2305.08891, table 2).

    Raises:
      ValueError: unless 1 <= num_steps <= T and the timesteps lie in [0, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> leading(make_noise_schedule(linear_betas(1000)), 5, offset=1).t
    array([801., 601., 401., 201.,   1.])
    """
    num_timesteps = _num_timesteps(schedule)
    check_num_steps(num_steps, num_timesteps)
    if offset < 0:
        raise ValueError(f"offset must be at least 0, since a plan has no clean level (t = -1); got {offset}")
    return _visit(schedule, np.arange(num_steps)[::-1] * (num_timesteps // num_steps) + offset)


def trailing(schedule: NoiseSchedule, num_steps: int) -> Level:
    """Returns levels at t = round(T - i T / num_steps) - 1, from T-1 down to one stride above the clean data.

    Lin et al. 2024, https://arxiv.org/abs/2305.08891, table 2.

    Raises:
      ValueError: unless 1 <= num_steps <= T.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> trailing(make_noise_schedule(linear_betas(1000)), 5).t
    array([999., 799., 599., 399., 199.])
    """
    num_timesteps = _num_timesteps(schedule)
    check_num_steps(num_steps, num_timesteps)
    timesteps = np.round(num_timesteps - np.arange(num_steps) * (num_timesteps / num_steps)) - 1
    return _visit(schedule, timesteps.astype(np.int64))


def snap(levels: Level, schedule: NoiseSchedule) -> Level:
    """Returns the nearest levels of the schedule, for networks that were trained on integer timesteps.

    The nearest timestep is the rounded time of `tabulated(schedule)` at the log SNR of a level (half to even).

    Raises:
      ValueError: if two levels have the same nearest timestep, or a level is outside the range of the schedule.

    >>> from diffusers_fn.grids import karras
    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> snap(karras(4, schedule=schedule), schedule).t
    array([999., 775., 301.,   0.])
    """
    timesteps = np.asarray(np.round(tabulated(schedule).time(log_snr(levels))), np.int64)
    values, counts = np.unique(timesteps, return_counts=True)
    if np.any(counts > 1):
        raise ValueError(
            f"{counts.max()} levels would share the timestep {values[counts.argmax()]}: use fewer steps, or keep the "
            "levels and round their labels alone with round_labels"
        )
    return _visit(schedule, timesteps)


def round_labels(levels: Level) -> Level:
    """Returns the same levels with their time labels rounded to the nearest integers.

    >>> round_labels(Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([300.4, 12.8]))).t
    array([300.,  13.])
    """
    return dataclasses.replace(levels, t=np.round(levels.t))


def drop_last(levels: Level) -> Level:
    """Returns the levels without the last one, for conventions in which the grid includes the end of sampling.

    Raises:
      ValueError: unless there are at least 2 levels.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> drop_last(linspace(make_noise_schedule(linear_betas(1000)), 6)).t
    array([999., 799., 599., 400., 200.])
    """
    if np.shape(levels.t)[0] < 2:
        raise ValueError("drop_last needs at least 2 levels; got 1")
    return levels[:-1]


def _visit(schedule: NoiseSchedule, timesteps: np.ndarray) -> Level:
    check_timesteps(schedule, timesteps)  # t = -1 is excluded: a plan has no clean level
    return level_at(schedule if is_traced(schedule) else on_host(schedule), timesteps)


def _num_timesteps(schedule: NoiseSchedule) -> int:
    return schedule.betas.shape[0]
