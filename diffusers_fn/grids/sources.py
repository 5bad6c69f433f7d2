"""Helpers of the grids: noise schedules as processes, the ratio sigma / alpha, the check of a number of steps."""

from __future__ import annotations

import numpy as np

from diffusers_fn._types import Array
from diffusers_fn.noise_schedules import NoiseSchedule
from diffusers_fn.processes import Process, tabulated

__all__ = ["Source", "as_process", "check_num_steps", "ratio_at"]

Source = NoiseSchedule | Process


def as_process(source: Source) -> Process:
    """Returns the process: the one given, or `tabulated` of a noise schedule.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> as_process(make_noise_schedule(linear_betas(1000))).t_max
    999.0
    """
    return tabulated(source) if isinstance(source, NoiseSchedule) else source


def ratio_at(process: Process, t: float) -> Array:
    """Returns sigma / alpha of the process at time t, inf at pure noise.

    >>> from diffusers_fn.processes import edm
    >>> float(ratio_at(edm(), 80.0))
    80.0
    """
    level = process(t)
    with np.errstate(divide="ignore"):
        return level.sigma / level.alpha


def check_num_steps(num_steps: int, num_timesteps: int | None = None) -> None:
    """Raises ValueError unless num_steps is an integer of at least 1, and at most num_timesteps if that is given.

    >>> check_num_steps(2.5)
    Traceback (most recent call last):
    ...
    ValueError: num_steps must be an integer of at least 1; got 2.5
    """
    if not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer of at least 1; got {num_steps}")
    if num_timesteps is not None and num_steps > num_timesteps:
        raise ValueError(f"num_steps must not exceed the {num_timesteps} timesteps of the schedule; got {num_steps}")
