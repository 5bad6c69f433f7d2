"""Noise tables of scheduler configs: betas by name, and the levels in them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusers_fn import noise_schedules
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level
from diffusers_fn.noise_schedules.betas import check_betas
from diffusers_fn.pretrained.schedulers.kinds import Options

__all__ = ["ALMOST_ZERO", "BETAS", "alphas_cumprod", "at_ratio", "at_timesteps", "clean", "ratios", "time_of"]

BETAS: Mapping[str, Any] = {
    "linear": noise_schedules.linear_betas,
    "scaled_linear": noise_schedules.scaled_linear_betas,
    "squaredcos_cap_v2": lambda num, start, end: noise_schedules.cosine_betas(num),
    "sigmoid": noise_schedules.sigmoid_betas,
    "laplace": lambda num, start, end: noise_schedules.laplace_betas(num),
    "exp": lambda num, start, end: noise_schedules.exponential_betas(num),
}

# What some classes write over alpha_bar at the last timestep of a schedule of zero terminal SNR.
ALMOST_ZERO = 2.0**-24


def alphas_cumprod(options: Options, *, almost_zero: bool = False) -> np.ndarray:
    """Returns alpha_bar [T] of a config, float64.

    Args:
      options: TABLE's, and rescale_betas_zero_snr where the class has it.
      almost_zero: whether rescale_betas_zero_snr ends at alpha_bar = 2^-24 in place of 0, as in classes that divide by
        alpha.

    >>> from diffusers_fn.pretrained.schedulers.kinds import TABLE
    >>> f"{alphas_cumprod(TABLE)[-1]:.6e}"
    '4.035830e-05'
    """
    trained = options["trained_betas"]
    fields = (options["num_train_timesteps"], options["beta_start"], options["beta_end"], options["beta_schedule"])
    table = _alphas_cumprod(*fields) if trained is None else np.cumprod(1.0 - check_betas(trained))
    if not options.get("rescale_betas_zero_snr"):
        return table
    betas = 1.0 - table / np.concatenate([[1.0], table[:-1]])
    rescaled = np.cumprod(1.0 - noise_schedules.zero_terminal_snr(betas))
    return np.append(rescaled[:-1], ALMOST_ZERO if almost_zero else 0.0)


@functools.cache
def _alphas_cumprod(num: int, start: float, end: float, schedule: str) -> np.ndarray:
    table = np.cumprod(1.0 - BETAS[schedule](num, start, end))
    table.setflags(write=False)
    return table


def ratios(table: np.ndarray) -> np.ndarray:
    """Returns sigma / alpha [T] of alpha_bar."""
    return ((1.0 - table) / table) ** 0.5


def at_timesteps(table: np.ndarray, timesteps: np.ndarray, before: float = 1.0) -> Level:
    """Returns the levels of integer timesteps; negative ones have alpha_bar = before, the clean data by default.

    Raises:
      ValueError: if a timestep is beyond the table.
    """
    timesteps = np.asarray(timesteps, np.int64)
    if np.any(timesteps >= table.size):
        raise ValueError(
            f"timestep {timesteps.max()} is beyond the {table.size} of the schedule: take another number of steps, or "
            "a smaller steps_offset"
        )
    alpha_bar = np.where(timesteps < 0, before, table[np.maximum(timesteps, 0)])
    return Level(np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar), timesteps.astype(np.float64))


def at_ratio(ratio: ArrayLike, t: ArrayLike, *, space: str = "vp") -> Level:
    """Returns the levels of a scheduler's sigmas.

    Args:
      ratio: sigma / alpha, or sigma itself in the space "flow".
      t: labels.
      space: "vp" for alpha^2 + sigma^2 = 1, "ve" for alpha = 1, "flow" for alpha = 1 - sigma.
    """
    ratio, t = np.asarray(ratio, np.float64), np.asarray(t, np.float64)
    if space == "vp":
        alpha = 1.0 / (ratio**2 + 1.0) ** 0.5
        return Level(alpha, ratio * alpha, t)
    return Level(1.0 - ratio if space == "flow" else np.ones_like(ratio), ratio, t)


def clean() -> Level:
    """Returns the level of clean data, Level[]."""
    return Level(np.float64(1.0), np.float64(0.0), np.float64(0.0))


def time_of(ratio: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns fractional timesteps at which a table of sigma / alpha [T], linear in its logarithm, has given values.

    Values outside of the table get its ends. Where the table is not monotone (zero terminal SNR) the last timestep
    below counts, as in the reference.
    """
    log_table, log_ratio = np.log(table), np.log(np.maximum(ratio, 1e-10))
    if log_table.size < 2:
        return np.zeros_like(log_ratio)
    at_least = log_ratio[None] >= log_table[:, None]
    low = np.clip(np.cumsum(at_least, axis=0).argmax(axis=0), None, log_table.size - 2)
    weight = np.clip((log_table[low] - log_ratio) / (log_table[low] - log_table[low + 1]), 0.0, 1.0)
    return (1.0 - weight) * low + weight * (low + 1)
