"""The grids of the schedulers in sigma = sigma / alpha with alpha = 1: Euler, Heun, LMS, DPM2, DPM-Solver++(SDE)."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn.pretrained.schedulers.kinds import GRIDS, SPACING, TABLE, Grid, Options
from diffusers_fn.pretrained.schedulers.spacings import given_timesteps, respaced, timesteps_with_end
from diffusers_fn.pretrained.schedulers.tables import alphas_cumprod, at_ratio, clean, ratios, time_of

__all__ = ["CHOICES", "LATENT", "OPTIONS", "init_scale", "labels_at", "sigma_grid"]

OPTIONS: dict[str, Any] = {**TABLE, **SPACING, "prediction_type": "epsilon"}
LATENT = {**OPTIONS, **GRIDS, "beta_start": 0.00085, "beta_end": 0.012}
CHOICES = {
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
    "final_sigmas_type": ("zero", "sigma_min"),
}


def sigma_grid(options: Options, num_steps: int, run: Options, *, whole: bool = False) -> Grid:
    """Returns the grid: sigma linear between timesteps, then respaced between its own ends by the config.

    Args: as `Kind.grid`; whole: whether use_karras_sigmas rounds the labels to whole timesteps.
    """
    table = ratios(alphas_cumprod(options, almost_zero=True))
    if (given := run.get("sigmas")) is not None:
        return _of_sigmas(np.asarray(given, np.float64), table, options)
    timesteps = given_timesteps(run, options, num_steps)
    if timesteps is None:
        timesteps = timesteps_with_end(options, num_steps, fractional=True)
    sigmas = np.interp(timesteps, np.arange(table.size), table)
    if options.get("interpolation_type") == "log_linear":
        sigmas = np.exp(np.linspace(np.log(table[-1]), np.log(table[0]), num_steps + 1))
    if (other := respaced(options, sigmas, num_steps)) is not None:
        sigmas, timesteps = other, time_of(other, table)
        timesteps = timesteps.round() if whole and options["use_karras_sigmas"] else timesteps
    last = table[0] if options.get("final_sigmas_type") == "sigma_min" else 0.0
    sigmas = np.append(sigmas, last)
    return _grid(sigmas, timesteps, options)


def _of_sigmas(sigmas: np.ndarray, table: np.ndarray, options: Options) -> Grid:
    if sigmas.ndim != 1 or sigmas.size < 2 or np.any(np.diff(sigmas) >= 0) or sigmas[-1] < 0:
        raise ValueError(f"sigmas must be a descending list, the last one included, such as 0; got {sigmas}")
    return _grid(sigmas, time_of(sigmas[:-1], table), options)


def _grid(sigmas: np.ndarray, timesteps: np.ndarray, options: Options) -> Grid:
    """The grid of N timesteps and N + 1 sigmas; with log_linear interpolation there is one more, which no step uses."""
    num = timesteps.size
    if options.get("timestep_type") == "continuous" and options["prediction_type"] == "v_prediction":
        timesteps = 0.25 * np.log(sigmas[:num])
    end = clean() if sigmas[num] == 0 else at_ratio(sigmas[num], timesteps[-1], space="ve")
    return Grid(at_ratio(sigmas[:num], timesteps, space="ve"), end, num_sigmas=sigmas.size - 1)


def init_scale(options: Options, grid: Grid) -> float:
    """Returns sigma of the first level, or sqrt(sigma^2 + 1) with leading spacing, which starts below pure noise."""
    sigma = float(np.max(grid.levels.sigma))
    return sigma if options["timestep_spacing"] in ("linspace", "trailing") else float(np.sqrt(sigma**2 + 1.0))


def labels_at(options: Options, sigmas: np.ndarray) -> np.ndarray:
    """Returns the fractional timesteps at given sigmas."""
    return time_of(sigmas, ratios(alphas_cumprod(options, almost_zero=True)))
