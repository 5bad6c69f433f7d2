"""Discrete noise schedules: beta sequences, and the table of coefficients computed from them."""

from diffusers_fn.noise_schedules.betas import (
    cosine_betas,
    exponential_betas,
    laplace_betas,
    linear_betas,
    quadratic_betas,
    scaled_linear_betas,
    sigmoid_betas,
    sqrt_betas,
    zero_terminal_snr,
)
from diffusers_fn.noise_schedules.table import (
    NoiseSchedule,
    check_timesteps,
    level_at,
    make_noise_schedule,
    on_host,
    respace,
    table_entry,
)

__all__ = [
    "NoiseSchedule",
    "check_timesteps",
    "cosine_betas",
    "exponential_betas",
    "laplace_betas",
    "level_at",
    "linear_betas",
    "make_noise_schedule",
    "on_host",
    "quadratic_betas",
    "respace",
    "scaled_linear_betas",
    "sigmoid_betas",
    "sqrt_betas",
    "table_entry",
    "zero_terminal_snr",
]


def __dir__() -> list[str]:
    return __all__
